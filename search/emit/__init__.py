"""From a graph with weights and quantisers to an ONNX model, without torch's exporter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compressors.compressed import Code, WeightCode
from compressors.graph import Graph
from search.emit.builder import Builder, UnsupportedOperationError
from search.emit.operations import OPERATIONS

if TYPE_CHECKING:
    import onnx


def emit(
    graph: Graph,
    weights: Mapping[str, Any],
    activations: Mapping[str, Code] | None = None,
    codes: Mapping[str, WeightCode] | None = None,
    biases: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
    builder: type[Builder] = Builder,
) -> onnx.ModelProto:
    """An ONNX model with the given quantise/dequantise placement; sizes are those of ``graph``.

    ``weights`` are float values (tensors or arrays), already rounded where ``codes`` names them;
    ``biases[param]`` is the scale per channel of a bias that is stored as int32. The batch size is the
    free dimension "batch" unless ``graph.fixed_batch``. Raises UnsupportedOperationError.
    """
    b = builder(graph, weights, activations or {}, codes or {}, biases or {})
    for t in graph.inputs:
        if t in b.activations:
            b.quantise(t)
    for n in graph.nodes:
        handler = OPERATIONS.get(n.op)
        if handler is None:
            raise UnsupportedOperationError(f"operation {n.op!r} (node {n.name!r}) has no ONNX form")
        if n.name not in b.idle:
            handler(b, n)
        for t in n.outputs:
            if t in b.activations:
                b.quantise(t)
    return b.model(metadata or {})


__all__ = ["UnsupportedOperationError", "emit"]
