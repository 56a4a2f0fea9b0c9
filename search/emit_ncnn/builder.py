"""Building an ncnn program: layers, the blobs between them, and the text and bytes they are stored as.

Format: a magic number, the numbers of layers and blobs, one line a layer: type, name, numbers of inputs and
outputs, their names, parameters as id=value; -23300-id=count,values for arrays (ncnn wiki,
"param and model file structure"). Weights follow in the order of layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressors.compressed import ActivationCode, WeightCode
from compressors.graph import Graph, Node
from search.emit.builder import UnsupportedOperationError, as_array

MAGIC = 7767517
#: Layers of bookkeeping: they hand a blob on without touching its values.
BOOKKEEPING = frozenset({"Input", "MemoryData", "Split", "Noop"})
#: Weights that stand behind this word are 32-bit floats; those of other layers stand without it.
_FLOAT32_TAG = (0).to_bytes(4, "little")
_INT8_TAG = (0x000D4B38).to_bytes(4, "little")

Value = int | float | Sequence[int] | Sequence[float]
#: One size of a blob: a number, or where it comes from: (tensor or parameter of the graph, dimension).
Size = int | tuple[str, int]


@dataclass(frozen=True)
class Blob:
    """What flows between layers: sizes of one sample, and where each of them comes from in the graph."""

    name: str
    shape: tuple[int, ...]
    sizes: tuple[Size, ...]


@dataclass(frozen=True)
class Layer:
    """One line of a .param file; those with weights are called after them.

    ``node`` is the operation of the graph it executes, "" for bookkeeping; ``weight`` its parameter;
    ``fused`` what runs inside it as well; ``precision`` "fp32" or "int8".
    """

    type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: Mapping[int, Value]
    data: bytes = field(default=b"", repr=False)
    node: str = ""
    weight: str = ""
    fused: tuple[str, ...] = ()
    precision: str = "fp32"

    def line(self) -> str:
        """The layer as text."""
        head = [self.type, self.name, str(len(self.inputs)), str(len(self.outputs))]
        return " ".join([*head, *self.inputs, *self.outputs, *map(_entry, self.params.items())])


def _entry(item: tuple[int, Value]) -> str:
    key, value = item
    if isinstance(value, int | float):
        return f"{key}={_number(value)}"
    return f"{-23300 - key}={len(value)}" + "".join(f",{_number(v)}" for v in value)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.9e}"  # a point makes it a float to ncnn


@dataclass(frozen=True)
class Program:
    """Layers in order of execution, and every blob by name. Inputs are in0, in1, ..., outputs out0, ..."""

    layers: tuple[Layer, ...]
    blobs: Mapping[str, Blob]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def text(self) -> str:
        """Content of the .param file."""
        count = len({t for layer in self.layers for t in layer.outputs})
        lines = [str(MAGIC), f"{len(self.layers)} {count}", *(x.line() for x in self.layers)]
        return "\n".join(lines) + "\n"

    @property
    def binary(self) -> bytes:
        """Content of the .bin file."""
        return b"".join(x.data for x in self.layers)


class Builder:
    """Collects the layers of one program. Handlers name blobs as the graph names its tensors."""

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Any] | None,
        activations: Mapping[str, ActivationCode],
        codes: Mapping[str, WeightCode],
        constants: Mapping[str, Any] | None = None,
    ) -> None:
        if (graph.fixed_batch or 1) != 1:
            raise UnsupportedOperationError(
                f"the network is traced for a batch of {graph.fixed_batch}; ncnn runs one sample at a time"
            )
        self.graph = graph
        self.weights = weights
        self.activations = activations
        self.codes = codes
        self._numbers = weights if weights is not None else constants or {}
        self.layers: list[Layer] = []
        self.blobs: dict[str, Blob] = {}
        self.taken: set[str] = set()  # nodes that run inside an earlier layer
        self._alias: dict[str, str] = {}
        self._memory: dict[tuple[str, tuple[int, ...]], str] = {}
        for t in graph.inputs:
            self.blob(t)
            self.layers.append(Layer("Input", t, (), (t,), shape_params(self.shape(t), 0, 1, 11, 2)))

    # -- blobs

    def axes(self, tensor: str) -> list[int]:
        """Dimensions of a tensor that a blob has: all but the batch, which stands anywhere as -1.

        -k, for k times the batch, stays as k: with one sample that is what it is.
        """
        shape = self.graph.type_of(tensor).shape
        fixed = self.graph.fixed_batch == 1 and tensor in self.graph.tensors
        return [i for i, d in enumerate(shape) if d != -1 and not (fixed and i == 0 and d == 1)]

    def sample(self, tensor: str) -> tuple[tuple[int, ...], tuple[Size, ...]]:
        """Shape of a tensor without its batch, and where the sizes come from."""
        kept = self.axes(tensor)
        full = self.graph.type_of(tensor).shape
        if len(kept) > 4:
            raise UnsupportedOperationError(f"tensor {tensor!r}: ncnn cannot hold the shape {full}")
        shape = tuple(abs(full[i]) for i in kept)
        return shape or (1,), tuple((tensor, i) for i in kept) or (1,)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Sizes of a blob or of a tensor of the graph, for one sample."""
        name = self.read(tensor)
        return self.blobs[name].shape if name in self.blobs else self.sample(tensor)[0]

    def blob(self, tensor: str) -> str:
        """Declare the blob of a tensor of the graph."""
        self.blobs[tensor] = Blob(tensor, *self.sample(tensor))
        return tensor

    def inner(self, n: Node, hint: str, shape: Sequence[int], sizes: Sequence[Size]) -> str:
        """Declare a blob between the several layers that one operation becomes."""
        name = f"{n.outputs[0]}/{hint}"
        while name in self.blobs:
            name += "_"
        self.blobs[name] = Blob(name, tuple(shape), tuple(sizes))
        return name

    def alias(self, tensor: str, source: str) -> None:
        """Let a tensor be another name of a blob: the same values in the same shape."""
        self._alias[tensor] = self.read(source)

    def read(self, tensor: str) -> str:
        """The blob that holds a tensor."""
        return self._alias.get(tensor, tensor)

    # -- layers

    def layer(
        self, kind: str, n: Node, inputs: Iterable[str], outputs: Iterable[str],
        params: Mapping[int, Value] | None = None, data: bytes = b"", **more: Any,
    ) -> None:  # fmt: skip
        """Add a layer that executes ``n`` or a part of it."""
        outs = tuple(outputs)
        reads = tuple(self.read(t) for t in inputs)
        name = more.get("weight") or outs[0]
        self.layers.append(Layer(kind, name, reads, outs, params or {}, data, n.name, **more))

    def memory(self, param: str, rank: int) -> str:
        """A stored constant as a blob of the given rank, sizes of 1 put in front."""
        shape: tuple[int, ...] = self.graph.params[param].shape
        while len(shape) > rank and shape[0] == 1:
            shape = shape[1:]
        if len(shape) > rank:
            raise UnsupportedOperationError(f"constant {param!r}: its shape {shape} has a size per sample")
        shape = (*(1 for _ in range(rank - len(shape))), *shape)
        key = (param, shape)
        if key not in self._memory:
            name = f"{param}/{'x'.join(map(str, shape))}"
            self._memory[key] = name
            self.blobs[name] = Blob(name, shape, shape)
            data = self.raw(param)
            self.layers.append(
                Layer("MemoryData", name, (), (name,), shape_params(shape, 0, 1, 11, 2), data, weight=param)
            )
        return self._memory[key]

    # -- weights

    def array(self, param: str) -> NDArray[np.float32] | None:
        """Values of a parameter as floats, None where the program is only to be read."""
        return None if self.weights is None else as_array(self.weights[param]).astype(np.float32)

    def scalar(self, param: str) -> float:
        """The value of a parameter of one element; 1 where values are left out."""
        known = self._numbers.get(param)
        return 1.0 if known is None else float(as_array(known).reshape(()).item())

    def raw(self, param: str, fill: float = 0.0, count: int = 0) -> bytes:
        """Values without a tag; ``count`` values ``fill`` where the parameter is absent."""
        if self.weights is None:
            return b""
        values = self.array(param) if param else np.full(count, fill, np.float32)
        return np.ascontiguousarray(values, dtype="<f4").tobytes()

    def tagged(self, values: NDArray[np.float32] | None) -> bytes:
        """Values behind the tag of their type."""
        return b"" if values is None else _FLOAT32_TAG + np.ascontiguousarray(values, dtype="<f4").tobytes()

    def floats(self, values: Iterable[float]) -> bytes:
        """A row of numbers without a tag."""
        return np.asarray(list(values), dtype="<f4").tobytes()

    def whole(self, codes: NDArray[np.int8]) -> bytes:
        """8-bit codes behind their tag, filled up to whole words."""
        data = np.ascontiguousarray(codes).tobytes()
        return _INT8_TAG + data + b"\0" * (-len(data) % 4)

    # -- the program

    def program(self) -> Program:
        """The finished program: names as they are stored, a Split wherever a blob has several readers."""
        inputs = {t: f"in{i}" for i, t in enumerate(self.graph.inputs)}
        results = [self.read(t) for t in self.graph.outputs]
        readers: dict[str, int] = {}
        for t in [*(t for x in self.layers for t in x.inputs), *results]:
            readers[t] = readers.get(t, 0) + 1
        names = Names(inputs)
        for i, t in enumerate(results):
            if readers[t] == 1 and t not in inputs:
                names.known[t] = f"out{i}"
        return self._assembled(names, readers, results)

    def _assembled(self, names: Names, readers: Mapping[str, int], results: Sequence[str]) -> Program:
        layers: list[Layer] = []
        blobs: dict[str, Blob] = {}
        waiting: dict[str, list[str]] = {}  # blob -> the copies not yet read
        ends = {t: f"out{i}" for i, t in enumerate(results)}
        for x in self.layers:
            reads = tuple(waiting[t].pop(0) if t in waiting else names.of(t) for t in x.inputs)
            writes = tuple(names.of(t) for t in x.outputs)
            layers.append(replace(x, name=names.layer(x.name), inputs=reads, outputs=writes))
            for t in x.outputs:
                blobs[names.of(t)] = replace(self.blobs[t], name=names.of(t))
                count = readers.get(t, 0)
                if count > 1 or (t in ends and names.of(t) != ends[t]):
                    last = [ends[t]] if t in ends else []
                    copies = [f"{names.of(t)}/copy{i}" for i in range(count - len(last))] + last
                    waiting[t] = copies
                    layers.append(
                        Layer("Split", names.layer(f"{t}/split"), (names.of(t),), tuple(copies), {})
                    )
                    blobs |= {c: replace(self.blobs[t], name=c) for c in copies}
        outputs = tuple(ends[t] for t in results)
        return Program(tuple(layers), blobs, tuple(names.known[t] for t in self.graph.inputs), outputs)


class Names:
    """Names as they may stand in a .param file: no white space, at most 255 characters, none twice."""

    def __init__(self, known: Mapping[str, str]) -> None:
        self.known = dict(known)
        self._layers: set[str] = set()

    def of(self, blob: str) -> str:
        """The stored name of a blob."""
        return self.known.setdefault(blob, re.sub(r"\s", "_", blob)[-200:])

    def layer(self, wanted: str) -> str:
        """A name for a layer, told apart from earlier ones."""
        name = made = re.sub(r"\s", "_", wanted)[-200:]
        count = 1
        while made in self._layers:
            made, count = f"{name}/{count}", count + 1
        self._layers.add(made)
        return made


def shape_params(shape: Sequence[int], w: int, h: int, d: int, c: int) -> dict[int, int]:
    """Parameters of a shape: w alone, (h, w), (c, h, w) or (c, d, h, w), under the given ids."""
    ids = {1: (w,), 2: (h, w), 3: (c, h, w), 4: (c, d, h, w)}[len(shape)]
    return {i: int(n) for i, n in sorted(zip(ids, shape, strict=True))}
