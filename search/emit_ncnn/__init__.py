"""From a graph with weights to ncnn's two files: layers in plain text (.param), weights behind it (.bin).

ncnn runs the layers of a .param file as they stand: it changes no graph when it loads one. So whatever is to
run as one kernel has to be one layer here: activations are written into the convolution or product before
them, batch-norm is folded beforehand, quantities that only relabel values become no layer at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressors.compressed import ActivationCode, WeightCode
from compressors.graph import Graph
from search.emit.builder import UnsupportedOperationError
from search.emit_ncnn.builder import Blob, Builder, Layer, Program
from search.emit_ncnn.operations import OPERATIONS


def emit_ncnn(
    graph: Graph,
    weights: Mapping[str, Any] | None,
    activations: Mapping[str, ActivationCode] | None = None,
    codes: Mapping[str, WeightCode] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> Program:
    """The layers of a concrete graph for one sample; ncnn knows no batch.

    ``weights`` are float values (tensors or arrays) by parameter, already rounded where ``codes`` names them;
    ``activations`` are the quantisers of what integer layers read, and of nothing else (`at_reads`). Without
    ``weights`` the program is only to be read: `Program.binary` is empty, no quantiser's values are looked
    at, and of numbers in formulas only ``constants`` are known. Raises UnsupportedOperationError.
    """
    b = Builder(graph, weights, activations or {}, codes or {}, constants)
    for n in graph.nodes:
        handler = OPERATIONS.get(n.op)
        if handler is None:
            what = n.attrs.get("target", n.op)
            raise UnsupportedOperationError(f"operation {what!r} (node {n.name!r}) has no ncnn form")
        if n.name not in b.taken:
            handler(b, n)
    return b.program()


__all__ = ["Blob", "Layer", "Program", "UnsupportedOperationError", "emit_ncnn"]
