"""The network as it would be exported, with made-up values: what a runtime is asked kernel templates with.

Which kernels a runtime makes depends on operations, quantisers and the classes of channel counts
(`search.lowering_sizes.alignment_classes`), and not on how many channels there are. So the question is asked
with few: a transformer's ninety megabytes become one, and the answer, whose sizes are formulas, is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from compressors.compressed import ActivationCode, Code, DynamicCode, WeightCode
from compressors.graph import Graph
from compressors.policy import DYNAMIC
from compressors.skeleton import Placement, Skeleton, concrete
from search.emit import emit
from search.emit.builder import ArrayLike, Builder, keeps_values

if TYPE_CHECKING:
    import onnx

#: Channels that are left at least, and steps by which they are taken away: whole blocks of every layout.
LEAST, STEP = 32, 16


class DummyBuilder(Builder):
    """Emission with weights of the right shapes and arbitrary values; quick because they are shared."""

    def array(self, param: str) -> ArrayLike:
        """Values of a parameter: the real ones if known (they may steer fusions), else a constant."""
        known = self.weights.get(param)
        if known is not None:
            return super().array(param)
        kind = self.graph.params[param]
        return _filled(kind.shape, kind.dtype, self._number(param))

    def _number(self, param: str) -> int:
        """Runtimes share equal initializers: every parameter has a value of its own."""
        if not hasattr(self, "_numbers"):
            self._numbers = {p: i % 100 for i, p in enumerate(self.graph.params)}
        return self._numbers[param]

    def weight_codes(self, param: str, code: WeightCode) -> ArrayLike:
        """See `Builder.weight_codes`."""
        return _filled(self.graph.params[param].shape, "int8", self._number(param))

    def bias_codes(self, param: str, scale: ArrayLike) -> ArrayLike:
        """See `Builder.bias_codes`."""
        return _filled(scale.shape, "int32", self._number(param))


@lru_cache(maxsize=4096)
def _filled(shape: tuple[int, ...], dtype: str, number: int = 0) -> ArrayLike:
    value = 0.01 + 1e-4 * number if dtype.startswith("float") else 1 + number
    return np.full(shape, value, dtype=np.dtype(dtype))


def dummy_model(
    graph: Graph, where: Placement, activations: str, constants: Mapping[str, Any]
) -> onnx.ModelProto:
    """The network as it would be exported, but for the values of weights and quantisers.

    ``activations`` is the numerics' name of that kind, or `DYNAMIC`. Quantisers differ from tensor to tensor,
    start at 0 behind a ReLU and are inherited through operations that only move values, as compression
    makes them.
    """
    codes = {}
    for n in graph.nodes:
        if len(n.inputs) > 1 and n.inputs[1] in where.params:
            bits = where.params[n.inputs[1]]
            axis = 1 if n.op == "conv_transpose" and n.attrs["groups"] == 1 else 0
            scale = _filled((graph.params[n.inputs[1]].shape[axis],), "float32")
            codes[n.inputs[1]] = WeightCode(scale, axis, bits, 2 ** (bits - 1) - 1)  # type: ignore[arg-type]
    return emit(graph, constants, dummy_codes(graph, where, activations), codes, builder=DummyBuilder)


def dummy_codes(graph: Graph, where: Placement, activations: str) -> Mapping[str, Code]:
    """Quantisers of made-up scales with the relations that real ones have."""
    if activations == DYNAMIC:
        return {t: DynamicCode.of(bits, graph, t) for t, bits in where.tensors.items()}
    found: dict[str, ActivationCode] = {}
    for i, t in enumerate([*graph.inputs, *(t for n in graph.nodes for t in n.outputs)]):
        bits = where.tensors.get(t)
        if bits is None:
            continue
        n = graph.producer.get(t)
        if n is not None and n.inputs and n.inputs[0] in found and keeps_values(n, found[n.inputs[0]]):
            found[t] = found[n.inputs[0]]
            continue
        scale = 0.02 + 1e-5 * i
        if activations != "u8-affine":
            half = 1 << (bits - 1)
            scale = scale if activations != "power-of-two" else 2.0**-5
            found[t] = ActivationCode(scale, 0, bits, -half, half - 1)
            continue
        high, zero = (1 << bits) - 1, 1 << (bits - 1)
        if n is not None and n.op == "relu":
            zero = 0
        elif n is not None and n.op == "clip":
            low, most = max(n.attrs["min"], -8.0), min(n.attrs["max"], 8.0)
            scale = 0.99 * (most - low) / high - 1e-7 * i
            zero = min(max(round(-low / scale), 0), high)
        found[t] = ActivationCode(scale, zero, bits, 0, high)
    return found


# -- few channels


def fewer(value: int) -> int:
    """The least count that is as well aligned: in the same class for every block of 4, 8 or 16."""
    return value - (value - LEAST) // STEP * STEP if value > LEAST else value


def small_graph(skeleton: Skeleton, values: Mapping[str, int]) -> Graph:
    """The folded network with `fewer` channels and ranks than ``values``, and short embedding tables."""
    graph = concrete(skeleton.graph, skeleton, {name: fewer(v) for name, v in values.items()})
    tables = {t: replace(graph.params[t], shape=(LEAST, *graph.params[t].shape[1:])) for t in _tables(graph)}
    return graph.resized(graph.tensors, {**graph.params, **tables}) if tables else graph


def _tables(graph: Graph) -> list[str]:
    """Tables of more rows than `LEAST` that are read at places which the inputs tell, and nowhere else.

    What is read at constant places is read when the runtime loads the file, and must be there.
    """
    told = set(graph.inputs)
    for n in graph.nodes:
        if not told.isdisjoint(n.inputs):
            told.update(n.outputs)
    found = dict.fromkeys(n.inputs[1] for n in graph.nodes if n.op == "embedding")
    return [
        t
        for t in found
        if t in graph.params
        and graph.params[t].shape[0] > LEAST
        and all(n.op == "embedding" and n.inputs[0] in told for n in graph.consumers[t])
    ]


__all__ = ["DummyBuilder", "dummy_codes", "dummy_model", "fewer", "small_graph"]
