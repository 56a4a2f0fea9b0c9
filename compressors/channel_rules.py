"""What each operation does to the labels of channels: passes them on, ties them, or fixes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .graph import ELEMENTWISE, Graph, Node
from .labels import Ids, Labelling, Labels, reshape


def label(graph: Graph) -> Labelling:
    """Follow labels through all nodes of a graph."""
    state = Labelling(graph)
    for node in graph.nodes:
        rule = _RULES.get(node.op, _freeze_all)
        for tensor, found in zip(node.outputs, rule(state, node), strict=True):
            state.labels[tensor] = found
    for tensor in graph.outputs:
        for ids in state.of(tensor):
            state.freeze(ids, "it is an output of the network")
    return state


def _freeze_all(s: Labelling, n: Node) -> list[Labels]:
    what = n.attrs.get("target", n.op)
    for t in n.inputs:
        if t:
            for ids in s.operand(t):
                s.freeze(ids, f"operation {what} reads it")
    return [[None] * len(s.shape(t)) for t in n.outputs]


def _same(s: Labelling, n: Node) -> list[Labels]:
    return [list(s.operand(n.inputs[0]))]


def _conv(s: Labelling, n: Node) -> list[Labels]:
    x, w, b = n.inputs
    groups = n.attrs["groups"]
    shape = s.graph.params[w].shape
    source, out = s.of(x)[1], s.param(w, 0)
    if groups == 1:
        s.tie(source, s.param(w, 1), "its input has a fixed size")
    elif shape[1] == 1 and source is not None:  # depthwise: an input channel and its outputs go together
        for column in out.reshape(groups, -1).T:
            s.tie(column, source)
    elif shape[1] == 1:
        s.freeze(out, "a depthwise layer follows its input, which is fixed")
    else:  # the same channel of every group goes, so that the groups stay alike
        if source is not None:
            rows = source.reshape(groups, -1)
            for row in rows:
                s.tie(row, s.param(w, 1))
        else:
            s.freeze(s.param(w, 1), "its input has a fixed size")
        rows = out.reshape(groups, -1)
        for row in rows[1:]:
            s.tie(rows[0], row)
    if b:
        s.tie(out, s.param(b, 0))
    return [[s.of(x)[0], out, *[None] * (len(shape) - 2)]]


def _conv_transpose(s: Labelling, n: Node) -> list[Labels]:
    x, w, b = n.inputs
    groups = n.attrs["groups"]
    shape = s.graph.params[w].shape
    source = s.of(x)[1]
    if groups > 1 and shape[1] == 1:
        s.tie(source, s.param(w, 0), "a depthwise layer follows its input, which is fixed")
        out = s.param(w, 0)
    else:  # with groups, the same channel of every group goes, so that the groups stay alike
        s.tie(source, s.param(w, 0), "its input has a fixed size")
        rows = s.param(w, 0).reshape(groups, -1)
        for row in rows[1:]:
            s.tie(rows[0], row)
        out = np.tile(s.param(w, 1), groups)
    if b:
        s.tie(out, s.param(b, 0))
    return [[s.of(x)[0], out, *[None] * (len(shape) - 2)]]


def _linear(s: Labelling, n: Node) -> list[Labels]:
    x, w, b = n.inputs
    known = s.of(x)
    s.tie(known[-1], s.param(w, 1), "its input has a fixed size")
    if b:
        s.tie(s.param(w, 0), s.param(b, 0))
    return [[*known[:-1], s.param(w, 0)]]


def _tie_param(s: Labelling, x: Ids | None, name: str, dim: int = 0) -> None:
    if name:
        s.tie(x, s.param(name, dim), "it normalises a fixed size")


def _batch_norm(s: Labelling, n: Node) -> list[Labels]:
    known = s.of(n.inputs[0])
    for p in n.inputs[1:]:
        _tie_param(s, known[1], p)
    return [list(known)]


def _layer_norm(s: Labelling, n: Node) -> list[Labels]:
    known, dims = s.of(n.inputs[0]), n.attrs["dims"]
    for p in n.inputs[1:]:
        if p:
            for d in range(dims):
                _tie_param(s, known[len(known) - dims + d], p, d)
    return [list(known)]


def _group_norm(s: Labelling, n: Node) -> list[Labels]:
    known = s.of(n.inputs[0])
    if known[1] is not None:
        rows = known[1].reshape(n.attrs["groups"], -1)
        for row in rows[1:]:
            s.tie(rows[0], row)
    for p in n.inputs[1:]:
        _tie_param(s, known[1], p)
    return [list(known)]


def _broadcast(s: Labelling, operands: Sequence[tuple[Labels, tuple[int, ...]]], rank: int) -> Labels:
    """Tie the dimensions of operands aligned from the right; sizes of 1 are broadcast."""
    out: Labels = [None] * rank
    for d in range(1, rank + 1):
        sized = [(known[-d], shape[-d]) for known, shape in operands if len(shape) >= d and shape[-d] != 1]
        if not sized:
            continue
        first = sized[0][0]
        for ids, _ in sized[1:]:
            s.tie(first, ids, "it is combined with a tensor of fixed size")
        out[rank - d] = first
    return out


def _binary(s: Labelling, n: Node) -> list[Labels]:
    rank = len(s.shape(n.outputs[0]))
    return [_broadcast(s, [(s.operand(t), s.shape(t)) for t in n.inputs], rank)]


def _prelu(s: Labelling, n: Node) -> list[Labels]:
    known = s.of(n.inputs[0])
    if s.graph.params[n.inputs[1]].shape[0] > 1:
        _tie_param(s, known[1], n.inputs[1])
    return [list(known)]


def _matmul(s: Labelling, n: Node) -> list[Labels]:
    a, b = n.inputs
    la, lb = s.operand(a), s.operand(b)
    if len(la) < 2 or len(lb) < 2:
        return _freeze_all(s, n)
    s.tie(la[-1], lb[-2], "it is multiplied with a fixed size")
    sa, sb = s.shape(a), s.shape(b)
    batch = _broadcast(s, [(la[:-2], sa[:-2]), (lb[:-2], sb[:-2])], max(len(sa), len(sb)) - 2)
    return [[*batch, la[-2], lb[-1]]]


def _sdpa(s: Labelling, n: Node) -> list[Labels]:
    q, k, v = (s.operand(t) for t in n.inputs[:3])
    reason = "attention needs equal sizes here"
    for d in range(len(q) - 2):
        s.tie(q[d], k[d], reason)
        s.tie(q[d], v[d], reason)
    s.tie(q[-1], k[-1], reason)
    s.tie(k[-2], v[-2], reason)
    if len(n.inputs) > 3 and n.inputs[3]:
        mask, shape = s.operand(n.inputs[3]), s.shape(n.inputs[3])
        for d in range(1, len(mask) + 1):
            if shape[-d] != 1:
                other = q[-d] if d > 1 else k[-2]
                s.freeze(mask[-d], reason)
                s.freeze(other, reason)
    return [[*q[:-1], v[-1]]]


def _cat(s: Labelling, n: Node) -> list[Labels]:
    axis = n.attrs["axis"]
    parts = [s.operand(t) for t in n.inputs]
    out: Labels = list(parts[0])
    for d in range(len(out)):
        if d != axis:
            for p in parts[1:]:
                s.tie(out[d], p[d], "it is concatenated with a tensor of fixed size")
    if all(p[axis] is None for p in parts):
        out[axis] = None
        return [out]
    pieces = []
    for t, p in zip(n.inputs, parts, strict=True):
        ids = p[axis]
        pieces.append(np.zeros(abs(s.shape(t)[axis]), dtype=np.int64) if ids is None else ids)
    out[axis] = np.concatenate(pieces)
    return [out]


def _split(s: Labelling, n: Node) -> list[Labels]:
    axis, known = n.attrs["axis"], s.of(n.inputs[0])
    out, start = [], 0
    for t in n.outputs:
        size = abs(s.shape(t)[axis])
        ids = known[axis]
        out.append([*known[:axis], None if ids is None else ids[start : start + size], *known[axis + 1 :]])
        start += size
    return out


def _slice(s: Labelling, n: Node) -> list[Labels]:
    axis, known = n.attrs["axis"], list(s.operand(n.inputs[0]))
    ids = known[axis]
    if ids is not None and n.attrs["step"] != 1:
        s.freeze(ids, "it is sliced with a step")
    elif ids is not None and n.attrs["start"] > 0 and n.attrs["end"] < len(ids):
        s.freeze(ids[: n.attrs["start"]], "a slice begins behind it")
    known[axis] = None if ids is None else ids[n.attrs["start"] : n.attrs["end"] : n.attrs["step"]]
    return [known]


def _select(s: Labelling, n: Node) -> list[Labels]:
    axis, known = n.attrs["axis"], list(s.operand(n.inputs[0]))
    s.freeze(known[axis], "one position of it is selected")
    return [[*known[:axis], *known[axis + 1 :]]]


def _permute(s: Labelling, n: Node) -> list[Labels]:
    known = s.operand(n.inputs[0])
    return [[known[d] for d in n.attrs["perm"]]]


def _spatial(s: Labelling, n: Node) -> list[Labels]:
    known = s.of(n.inputs[0])
    for ids in known[2:]:
        s.freeze(ids, f"{n.op} runs over it")
    return [[*known[:2], *[None] * (len(known) - 2)]]


def _mean(s: Labelling, n: Node) -> list[Labels]:
    known = s.of(n.inputs[0])
    for a in n.attrs["axes"]:
        s.freeze(known[a], "a mean is taken over it")
    if n.attrs["keepdim"]:
        return [[None if d in n.attrs["axes"] else x for d, x in enumerate(known)]]
    return [[x for d, x in enumerate(known) if d not in n.attrs["axes"]]]


def _pad(s: Labelling, n: Node) -> list[Labels]:
    known, pads = list(s.of(n.inputs[0])), n.attrs["pads"]
    for i in range(len(pads) // 2):
        if pads[2 * i] or pads[2 * i + 1]:
            s.freeze(known[-1 - i], "it is padded")
            known[-1 - i] = None
    return [known]


def _axis(s: Labelling, n: Node) -> list[Labels]:
    known = list(s.of(n.inputs[0]))
    s.freeze(known[n.attrs["axis"]], f"{n.op} runs over it")
    known[n.attrs["axis"]] = None
    return [known]


def _embedding(s: Labelling, n: Node) -> list[Labels]:
    ids, w = n.inputs
    return [[*[None] * len(s.shape(ids)), s.param(w, 1)]]


def _expand(s: Labelling, n: Node) -> list[Labels]:
    known, before, after = s.operand(n.inputs[0]), s.shape(n.inputs[0]), s.shape(n.outputs[0])
    lead = len(after) - len(before)
    return [[*[None] * lead, *[x if before[d] == after[lead + d] else None for d, x in enumerate(known)]]]


_RULES: dict[str, Callable[[Labelling, Node], list[Labels]]] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "prelu": _prelu,
    "matmul": _matmul,
    "sdpa": _sdpa,
    "cat": _cat,
    "split": _split,
    "slice": _slice,
    "select": _select,
    "permute": _permute,
    "mean": _mean,
    "pad": _pad,
    "softmax": _axis,
    "log_softmax": _axis,
    "embedding": _embedding,
    "expand": _expand,
    "reshape": reshape,
    **dict.fromkeys(("max_pool", "avg_pool", "upsample"), _spatial),
    **dict.fromkeys(("add", "sub", "mul", "div", "pow", "maximum", "minimum"), _binary),
    **dict.fromkeys((*ELEMENTWISE, "clip", "leaky_relu", "elu", "gelu"), _same),
}
