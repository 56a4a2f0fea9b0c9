"""Parameters that belong to no layer: no policy changes their bits or rank, and the notes say why.

Embeddings, position tables, scales, slopes and norms that cannot be folded. Their channels still go where
the group they are tied to is pruned.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .graph import DimSize, Graph, Layer, Loose, Node, TensorType

_BYTES = {"float64": 8, "int64": 8, "float16": 2, "bfloat16": 2, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
_NORMS = {"batch_norm": "batch-norm", "layer_norm": "layer-norm", "group_norm": "group-norm"}
#: Bytes below which numbers that come from formulas are not worth a line each.
_WORTH_A_LINE = 64


def bytes_of(kind: TensorType) -> int:
    """Bytes of a parameter at its own type."""
    return math.prod(kind.shape) * _BYTES.get(kind.dtype, 4)


def loose_parameters(
    graph: Graph,
    layers: Sequence[Layer],
    unfoldable: Sequence[str],
    sizes: Mapping[str, tuple[DimSize, ...]],
) -> tuple[Loose, ...]:
    """What no layer owns, in execution order; each parameter once.

    ``unfoldable``: names of the batch-norms that stay; what the others hold goes into the layer before.
    """
    seen = {p for x in layers for p in (x.weight, x.bias)}
    seen |= {p for x in layers for n in x.nodes for p in graph.by_name[n].inputs[1:]}
    found: list[Loose] = []
    for n in graph.nodes:
        names = tuple(dict.fromkeys(p for p in n.inputs if p in graph.params and p not in seen))
        seen.update(names)
        if names and not (n.op == "batch_norm" and n.name not in unfoldable):
            found.append(_loose(graph, n, names, sizes))
    return tuple(found)


def _loose(graph: Graph, n: Node, names: tuple[str, ...], sizes: Mapping[str, tuple[DimSize, ...]]) -> Loose:
    kinds = [graph.params[p] for p in names]
    weighs = n.op in ("matmul", "aten") and any(
        len(k.shape) > 1 and k.dtype.startswith("float") and math.prod(k.shape) > 1 for k in kinds
    )
    tied = any(d.mult for p in names for d in sizes.get(p, ()))
    stay = "stay float, less the channels that are pruned around it" if tied else "stay as they are"
    size = sum(map(bytes_of, kinds))
    subject = names[0].rpartition(".")[0] if len(names) > 1 else names[0]
    return Loose(subject or names[0], names, size, f"{size} bytes {stay}: {_why(n, kinds)}", weighs)


def _why(n: Node, kinds: Sequence[TensorType]) -> str:
    if n.op == "batch_norm":
        return "no weight-bearing operation stands directly before this batch-norm to fold it into"
    if n.op in _NORMS:
        return f"scale and offset of a {_NORMS[n.op]}, which runtimes compute in float"
    if n.op == "embedding":
        return "an embedding is looked up, not multiplied: no kernel reads it in fewer bits or at a rank"
    if n.op == "prelu":
        return "slopes of a PReLU, one number a channel"
    if not all(k.dtype.startswith("float") for k in kinds):
        return f"a constant that {n.op} reads"
    if n.op in ("add", "sub"):
        return "a table or an offset that is added to activations, not a weight that multiplies channels"
    if n.op in ("mul", "div"):
        return "a scale of activations, element by element"
    operation = n.attrs.get("target", n.op)
    return f"{operation} reads it, which is not an operation whose weights can be searched"


def notes_of(graph: Graph, loose: Sequence[Loose]) -> list[tuple[str, str]]:
    """One note each, and one that sums them up: how many bytes stay as they are."""
    found = [
        (x.subject, x.reason)
        for x in loose
        if x.size_bytes >= _WORTH_A_LINE or not x.subject.startswith("constant_")
    ]
    total = sum(x.size_bytes for x in loose)
    if found:
        share = total / max(1, sum(map(bytes_of, graph.params.values())))
        text = f"{total} bytes, {share:.1%} of all, belong to no layer; no policy changes their bits or rank"
        found.append(("parameters", text))
    return found


__all__ = ["bytes_of", "loose_parameters", "notes_of"]
