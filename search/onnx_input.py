"""An ONNX file from outside, looked at before any runtime opens it: what it refers to stays in its folder.

A tensor may name another file that holds its values (`external_data` in onnx.proto3). A location that leads
out of the network's folder, by itself or over a link, would have the runtime read what its maker chose.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

from .errors import InputError
from .safe_json import read_limited

if TYPE_CHECKING:
    import onnx

#: Bytes of an ONNX file: what protobuf can hold.
MOST_BYTES = (2 << 30) - 1
#: Graphs in graphs (the branches of If, the bodies of loops).
DEEPEST = 20


def check_onnx(path: Path) -> onnx.ModelProto:
    """The network of a file, without the values that lie in other files. Raises InputError."""
    import onnx

    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r}.")
    content = read_limited(path, MOST_BYTES)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as problem:  # protobuf's own, of several kinds
        raise InputError(
            f"{str(path)!r} is not an ONNX file: {str(problem).splitlines()[0][:120]}"
        ) from problem
    for tensor in tensors_of(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(tensor, path)
    return model


def tensors_of(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a network: initializers, attributes, those of inner graphs and functions."""
    yield from _of_graph(model.graph, 0)
    for function in model.functions:
        for node in function.node:
            yield from _of_node(node, 0)
    for training in model.training_info:
        yield from _of_graph(training.initialization, 0)
        yield from _of_graph(training.algorithm, 0)


def _of_graph(graph: Any, depth: int) -> Iterator[onnx.TensorProto]:
    if depth > DEEPEST:
        raise InputError("an ONNX file has graphs inside graphs without end.")
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _of_node(node, depth)


def _of_node(node: Any, depth: int) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        yield from (attribute.t, *attribute.tensors)
        for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
            yield from (sparse.values, sparse.indices)
        if attribute.HasField("g"):
            yield from _of_graph(attribute.g, depth + 1)
        for graph in attribute.graphs:
            yield from _of_graph(graph, depth + 1)


def _check_external(tensor: onnx.TensorProto, path: Path) -> None:
    """Raises InputError unless a tensor's values lie in a regular file beside or below the network."""
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    name = f"{str(path)!r}: the external data of {tensor.name[:80]!r}"
    pure = PurePosixPath(location)
    odd = pure.is_absolute() or PureWindowsPath(location).drive or "\\" in location or "\0" in location
    if not location or odd or ".." in pure.parts:
        raise InputError(f"{name} leads out of its folder: {location[:80]!r}.")
    folder = path.parent.resolve()
    try:
        real = (folder / pure).resolve()
        inside, there = real.is_relative_to(folder), real.is_file()
    except (OSError, ValueError) as problem:
        raise InputError(f"{name}: {location[:80]!r} is no path.") from problem
    if not inside:
        raise InputError(f"{name} leads out of its folder over a link: {location[:80]!r}.")
    if not there:
        raise InputError(f"{name} is missing: External data file {location[:80]!r}.")
    try:
        start, length = int(entries.get("offset") or 0), int(entries.get("length") or 0)
    except ValueError as problem:
        raise InputError(f"{name}: offset or length is no number.") from problem
    if start < 0 or length < 0 or start + length > real.stat().st_size:
        raise InputError(f"{name} ends behind the end of {location[:80]!r}.")


__all__ = ["check_onnx", "tensors_of"]
