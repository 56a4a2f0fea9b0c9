"""What ncnn really runs of its loaded files: layers, and their sizes in a run; apart from lowering."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hw_profiles.kernel import CONV_OPS
from search.kernels_found import FoundKernel

#: Layers that hand a blob on without touching its values: no kernel is run for them.
_IDLE = frozenset({"Input", "MemoryData", "Split", "Noop"})
#: Fused activations by their code (ncnn, fused_activation.h), as the network calls them.
_ACTIVATIONS = {1: "relu", 2: "leaky_relu", 3: "clip", 4: "sigmoid", 5: "mish", 6: "hardswish"}


@dataclass(frozen=True)
class Line:
    """Parameters of one layer as they stand in the file; arrays as tuples under their plain id."""

    kind: str
    params: Mapping[int, Any]

    def integer(self, key: int, default: int = 0) -> int:
        """One parameter."""
        return int(self.params.get(key, default))


def read_lines(text: str) -> dict[str, Line]:
    """Layers of a .param file by name."""
    found = {}
    for row in text.splitlines()[2:]:
        words = row.split()
        if len(words) < 4:
            continue
        skip = 4 + int(words[2]) + int(words[3])
        params: dict[int, Any] = {}
        for word in words[skip:]:
            key, _, value = word.partition("=")
            if int(key) <= -23300:
                params[-23300 - int(key)] = tuple(float(v) for v in value.split(",")[1:])
            else:
                params[int(key)] = float(value)
        found[words[1]] = Line(words[0], params)
    return found


def read_layers(net: Any, text: str) -> list[FoundKernel]:
    """Kernels of a loaded net in order, with the sizes that one run on zeros gives every blob."""
    from search.exporters.ncnn_files import extract

    lines = read_lines(text)
    blobs = [b.name for b in net.blobs()]
    layers = list(net.layers())
    feed = {x.name: x for x in layers if x.type == "Input"}
    inputs = {blobs[x.tops[0]]: _zeros(lines[name]) for name, x in feed.items()}
    constant = {blobs[t] for x in layers if x.type == "MemoryData" for t in x.tops}
    source = {blobs[t]: blobs[x.bottoms[0]] for x in layers if x.type == "Split" for t in x.tops}
    names = [n for n in blobs if n not in inputs and n not in constant]
    shapes = {n: tuple(v.shape) for n, v in zip(names, extract(net, inputs, names), strict=True)}
    shapes |= {n: v.shape for n, v in inputs.items()}
    found = []
    for x in layers:
        if x.type in _IDLE:
            continue
        line = lines[x.name]
        reads = [blobs[i] for i in x.bottoms if blobs[i] not in constant]
        writes = [blobs[i] for i in x.tops]
        weight = _weight(line)
        found.append(
            FoundKernel(
                x.type,
                "ncnn",
                "int8" if line.integer(8) and weight else "fp32",
                x.name,
                _fused(line),
                tuple((1, *shapes[t]) for t in reads),
                tuple((1, *shapes[t]) for t in writes),
                (x.name,) if weight else (),
                weight,
                tuple(source.get(t, t) for t in reads),
                tuple(writes),
                *_window(line),
                line.integer(7, 1) if x.type in CONV_OPS else 1,
            )
        )
    return found


def _zeros(line: Line) -> Any:
    shape = [line.integer(key) for key in (2, 11, 1, 0) if line.integer(key)]
    return np.zeros(shape, np.float32)


def _fused(line: Line) -> tuple[str, ...]:
    code = line.integer(9) if line.kind in CONV_OPS or line.kind == "InnerProduct" else 0
    return (_ACTIVATIONS.get(code, f"activation {code}"),) if code else ()


def _weight(line: Line) -> tuple[int, ...]:
    """Sizes of a layer's weights, as its parameters count them; () where it has none."""
    if line.kind == "InnerProduct":
        return (line.integer(0), line.integer(2) // line.integer(0))
    if line.kind not in CONV_OPS:
        return ()
    window = (line.integer(11), line.integer(1)) if not line.kind.endswith("1D") else (line.integer(1),)
    per_group = line.integer(6) // line.integer(0) // math.prod(window)
    return (line.integer(0), per_group, *window)


def _window(line: Line) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(kernel, stride) of a convolution or a pooling; () of all others."""
    pooling = line.kind in ("Pooling", "Pooling1D")
    if (line.kind not in CONV_OPS and not pooling) or (pooling and line.integer(4)):
        return (), ()
    stride = 2 if pooling else 3
    if line.kind.endswith("1D"):
        return (line.integer(1),), (line.integer(stride, 1),)
    return (line.integer(11), line.integer(1)), (line.integer(10 + stride, 1), line.integer(stride, 1))
