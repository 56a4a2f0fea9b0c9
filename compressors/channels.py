"""Which channels can only be removed together, found by following labels through the graph.

Every channel of every weight-bearing operation carries a label. Each operation either passes labels on
(relu), ties labels of several tensors (add, batch-norm, depthwise convolution, attention heads) or
fixes them (softmax over channels, an unknown operation). Labels that end up tied are one *unit*; units
that touch the same dimensions the same number of times are interchangeable and form a `ChannelGroup`.

This does what DepGraph (Fang et al., CVPR 2023) does on autograd graphs, on the exported graph instead,
where functional operations, shared weights, fused qkv projections and hard-coded view sizes are visible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .graph import ChannelGroup, DimSize, Graph, Node, TensorType

Ids = NDArray[np.int64]
#: Per dimension: label ids, one a position (of one sample), or None where the size never changes.
Labels = list["Ids | None"]
_HINT = 2  # batch size at which reshapes are followed
_FROZEN = 0


@dataclass
class Labelling:
    """Labels of all tensors and parameters of a graph, with a union-find over them."""

    graph: Graph
    parent: list[int] = field(default_factory=lambda: [0])
    labels: dict[str, Labels] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)

    def fresh(self, n: int) -> Ids:
        """n new labels."""
        start = len(self.parent)
        self.parent.extend(range(start, start + n))
        return np.arange(start, start + n, dtype=np.int64)

    def root(self, i: int) -> int:
        """Representative of a label."""
        while self.parent[i] != i:
            self.parent[i] = self.parent[self.parent[i]]
            i = self.parent[i]
        return i

    def roots(self, ids: Ids) -> Ids:
        """Representatives of many labels."""
        return np.array([self.root(int(i)) for i in ids.ravel()], dtype=np.int64).reshape(ids.shape)

    def _join(self, a: int, b: int) -> None:
        ra, rb = self.root(a), self.root(b)
        if ra != rb:
            low, high = min(ra, rb), max(ra, rb)
            self.parent[high] = low
            if high in self.reasons:
                self.reasons.setdefault(low, self.reasons[high])

    def tie(self, a: Ids | None, b: Ids | None, reason: str = "") -> None:
        """Make the positions of two dimensions inseparable; one without labels fixes the other."""
        if a is None or b is None or a.shape != b.shape:
            self.freeze(a, reason)
            self.freeze(b, reason)
            return
        for x, y in zip(a.ravel(), b.ravel(), strict=True):
            self._join(int(x), int(y))

    def freeze(self, ids: Ids | None, reason: str) -> None:
        """These positions can never be removed."""
        if ids is None:
            return
        for i in ids.ravel():
            r = self.root(int(i))
            if r != _FROZEN:
                self.reasons.setdefault(r, reason)
                self.reasons.setdefault(int(i), reason)
                self.parent[r] = _FROZEN

    def of(self, tensor: str) -> Labels:
        """Labels of an activation, or of a parameter (all without labels until an operation asks)."""
        if tensor not in self.labels:
            self.labels[tensor] = [None] * len(self.graph.type_of(tensor).shape)
        return self.labels[tensor]

    def param(self, name: str, dim: int) -> Ids:
        """Labels of a parameter's dimension, made when first asked for."""
        known = self.of(name)
        found = known[dim]
        if found is None:
            found = known[dim] = self.fresh(self.graph.params[name].shape[dim])
        return found

    def operand(self, name: str) -> Labels:
        """Labels of an operand of an elementwise operation; a parameter's dimensions all take part."""
        if name in self.graph.params:
            for d, size in enumerate(self.graph.params[name].shape):
                if size > 1:
                    self.param(name, d)
        return self.of(name)


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


def _shape(s: Labelling, tensor: str) -> tuple[int, ...]:
    return s.graph.type_of(tensor).shape


def _freeze_all(s: Labelling, n: Node) -> list[Labels]:
    what = n.attrs.get("target", n.op)
    for t in n.inputs:
        if t:
            for ids in s.operand(t):
                s.freeze(ids, f"operation {what} reads it")
    return [[None] * len(_shape(s, t)) for t in n.outputs]


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
    if groups == 1:
        s.tie(source, s.param(w, 0), "its input has a fixed size")
        out: Ids | None = s.param(w, 1)
    elif shape[1] == 1:
        s.tie(source, s.param(w, 0), "a depthwise layer follows its input, which is fixed")
        out = s.param(w, 0)
    else:
        reason = "grouped transposed convolutions are left as they are"
        s.freeze(source, reason)
        s.freeze(s.param(w, 0), reason)
        out = None
    if b:
        s.tie(out, s.param(b, 0), "grouped transposed convolutions are left as they are")
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
    rank = len(_shape(s, n.outputs[0]))
    return [_broadcast(s, [(s.operand(t), _shape(s, t)) for t in n.inputs], rank)]


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
    sa, sb = _shape(s, a), _shape(s, b)
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
        mask, shape = s.operand(n.inputs[3]), _shape(s, n.inputs[3])
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
        pieces.append(np.zeros(abs(_shape(s, t)[axis]), dtype=np.int64) if ids is None else ids)
    out[axis] = np.concatenate(pieces)
    return [out]


def _split(s: Labelling, n: Node) -> list[Labels]:
    axis, known = n.attrs["axis"], s.of(n.inputs[0])
    out, start = [], 0
    for t in n.outputs:
        size = abs(_shape(s, t)[axis])
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
    return [[*[None] * len(_shape(s, ids)), s.param(w, 1)]]


def _expand(s: Labelling, n: Node) -> list[Labels]:
    known, before, after = s.operand(n.inputs[0]), _shape(s, n.inputs[0]), _shape(s, n.outputs[0])
    lead = len(after) - len(before)
    return [[*[None] * lead, *[x if before[d] == after[lead + d] else None for d, x in enumerate(known)]]]


def _reshape(s: Labelling, n: Node) -> list[Labels]:
    before, after = _shape(s, n.inputs[0]), _shape(s, n.outputs[0])
    known = s.operand(n.inputs[0])
    out: Labels = [None] * len(after)
    for ins, outs in _blocks(before, after):
        _reshape_block(s, n, known, before, ins, after, outs, out)
    return [out]


def _real(size: int) -> int:
    return size if size >= 0 else -size * _HINT


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of dimensions whose products agree on both sides."""
    found, i, j = [], 0, 0
    while i < len(before) or j < len(after):
        ins, outs = [], []
        a = b = 1
        if i < len(before):
            ins.append(i)
            a *= _real(before[i])
            i += 1
        if j < len(after):
            outs.append(j)
            b *= _real(after[j])
            j += 1
        while a != b:
            if a < b:
                ins.append(i)
                a *= _real(before[i])
                i += 1
            else:
                outs.append(j)
                b *= _real(after[j])
                j += 1
        found.append((ins, outs))
    return found


def _reshape_block(
    s: Labelling,
    n: Node,
    known: Labels,
    before: Sequence[int],
    ins: list[int],
    after: Sequence[int],
    outs: list[int],
    out: Labels,
) -> None:
    labelled = [d for d in ins if known[d] is not None]
    if not labelled:
        return
    main = max(labelled, key=lambda d: abs(before[d]))
    for d in labelled:
        if d != main:
            s.freeze(known[d], "it is merged with another searched dimension")
    ids = known[main]
    if ids is None:
        return
    if before[main] < 0:
        ids = np.tile(ids, _HINT)
    where = [1] * len(ins)
    where[ins.index(main)] = _real(before[main])
    grid = np.broadcast_to(ids.reshape(where), [_real(before[d]) for d in ins])
    grid = s.roots(np.ascontiguousarray(grid)).reshape([_real(after[d]) for d in outs])
    wide = [i for i, d in enumerate(outs) if _real(after[d]) > 1]
    for i in wide:
        rows = np.moveaxis(grid, i, 0).reshape(grid.shape[i], -1)
        if bool((rows == rows[:, :1]).all()):
            out[outs[i]] = _per_sample(s, rows[:, 0], after[outs[i]])
            return
    i = _carrier(s, n, outs, wide, after)
    rows = np.moveaxis(grid, i, 0).reshape(grid.shape[i], -1)
    for column in rows.T[1:]:
        s.tie(rows[:, 0], column)
    out[outs[i]] = _per_sample(s, rows[:, 0], after[outs[i]])


def _per_sample(s: Labelling, ids: Ids, size: int) -> Ids | None:
    """Labels of one sample; a batch dimension must repeat them sample after sample."""
    if size >= 0:
        return ids
    rows = ids.reshape(_HINT, -1)
    for row in rows[1:]:
        s.tie(rows[0], row)
    first: Ids = rows[0]
    return first


def _carrier(s: Labelling, n: Node, outs: list[int], wide: list[int], after: Sequence[int]) -> int:
    """Which dimension of a split keeps the labels; the others are tied along.

    Heads of attention (..., heads, width) go as a whole; in a channel shuffle (groups, channels, h, w)
    the channels go; dimensions that are indexed later (the 3 of q, k, v) stay.
    """
    free = [
        i for i in wide if abs(after[outs[i]]) > 1 and not _indexed(s.graph, n.outputs[0], outs[i])
    ] or wide
    return free[0] if outs[-1] == len(after) - 1 else free[-1]


def _indexed(graph: Graph, tensor: str, dim: int) -> bool:
    """Whether a dimension is later taken apart by select, split or slice."""
    for n in graph.consumers.get(tensor, ()):
        if n.op in ("select", "split", "slice") and n.attrs["axis"] == dim:
            return True
        if n.op == "permute" and _indexed(graph, n.outputs[0], n.attrs["perm"].index(dim)):
            return True
        if n.op == "reshape":
            before, after = graph.tensors[tensor].shape, graph.tensors[n.outputs[0]].shape
            for ins, outs in _blocks(before, after):
                same = [d for d in outs if after[d] == before[dim]]
                if (
                    dim in ins
                    and len(same) == 1
                    and math.prod(abs(before[d]) for d in ins) == abs(before[dim])
                ):
                    return _indexed(graph, n.outputs[0], same[0])
    return False


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
    "reshape": _reshape,
    **dict.fromkeys(("max_pool", "avg_pool", "upsample"), _spatial),
    **dict.fromkeys(("add", "sub", "mul", "div", "pow", "maximum", "minimum"), _binary),
    **dict.fromkeys(
        (
            "relu",
            "sigmoid",
            "tanh",
            "exp",
            "sqrt",
            "rsqrt",
            "neg",
            "abs",
            "erf",
            "log",
            "sin",
            "cos",
            "reciprocal",
            "hardswish",
            "hardsigmoid",
            "silu",
            "mish",
            "softplus",
            "floor",
            "clip",
            "leaky_relu",
            "elu",
            "gelu",
        ),
        _same,
    ),
}


@dataclass(frozen=True)
class Channels:
    """Groups found in a graph, sizes of everything as functions of them, and why the rest is fixed."""

    groups: tuple[ChannelGroup, ...]
    sizes: dict[str, tuple[DimSize, ...]]
    starts: dict[str, tuple[DimSize, DimSize]]
    reasons: dict[str, str]


def channel_groups(graph: Graph, outputs_of: dict[str, tuple[str, int]]) -> Channels:
    """Groups of a graph. ``outputs_of`` maps layer name to (weight parameter, its output dimension)."""
    s = label(graph)
    places: dict[int, dict[tuple[str, int], int]] = {}
    rooted: dict[tuple[str, int], Ids] = {}
    for tensor, known in s.labels.items():
        for dim, ids in enumerate(known):
            if ids is None:
                continue
            roots = rooted[tensor, dim] = s.roots(ids)
            for r in roots[roots != _FROZEN]:
                spot = places.setdefault(int(r), {})
                spot[tensor, dim] = spot.get((tensor, dim), 0) + 1
    weights = {place: layer for layer, place in outputs_of.items()}
    by_footprint: dict[tuple[tuple[tuple[str, int], int], ...], list[int]] = {}
    for r in sorted(places):
        if any(p in weights for p in places[r]):
            by_footprint.setdefault(tuple(sorted(places[r].items())), []).append(r)
    groups, unit_of = _make_groups(graph, by_footprint, weights, rooted)
    sizes = {
        t: tuple(_dim_size(graph, groups, unit_of, rooted, t, d) for d in range(len(kind.shape)))
        for t, kind in {**graph.tensors, **graph.params}.items()
    }
    starts = {
        n.name: _slice_ends(groups, unit_of, rooted, n)
        for n in graph.nodes
        if n.op == "slice" and (n.inputs[0], n.attrs["axis"]) in rooted
    }
    return Channels(tuple(groups), sizes, starts, _why_fixed(s, outputs_of, unit_of, rooted))


def _make_groups(
    graph: Graph,
    by_footprint: dict[tuple[tuple[tuple[str, int], int], ...], list[int]],
    weights: dict[tuple[str, int], str],
    rooted: dict[tuple[str, int], Ids],
) -> tuple[list[ChannelGroup], dict[int, tuple[str, int]]]:
    order = {layer: i for i, layer in enumerate(weights.values())}
    groups: list[ChannelGroup] = []
    unit_of: dict[int, tuple[str, int]] = {}
    used: set[str] = set()
    found = sorted(
        by_footprint.items(),
        key=lambda kv: (min(order[weights[p]] for p, _ in kv[0] if p in weights), kv[1][0]),
    )
    for footprint, roots in found:
        if len(roots) < 2:
            continue
        layers = sorted((weights[p] for p, _ in footprint if p in weights), key=order.__getitem__)
        name = layers[0]
        while name in used:
            stem, _, number = name.partition("#")
            name = f"{stem}#{int(number or 1) + 1}"
        used.add(name)
        index = {r: i for i, r in enumerate(roots)}
        for r, i in index.items():
            unit_of[r] = (name, i)
        slices = {p: tuple(index.get(int(r), -1) for r in rooted[p]) for p, _ in footprint}
        depthwise = any(
            n.op == "conv" and n.attrs["groups"] > 1 and (n.inputs[1], 0) in slices for n in graph.nodes
        )
        groups.append(ChannelGroup(name, len(roots), slices, tuple(dict.fromkeys(layers)), depthwise))
    return groups, unit_of


def _count(
    groups: list[ChannelGroup], unit_of: dict[int, tuple[str, int]], roots: Ids, batch: bool
) -> DimSize:
    const, seen = 0, dict[str, int]()
    for r in roots:
        owner = unit_of.get(int(r))
        if owner is None:
            const += 1
        else:
            seen[owner[0]] = seen.get(owner[0], 0) + 1
    size = {g.name: g.size for g in groups}
    return DimSize(const, tuple((g, n // size[g]) for g, n in seen.items()), batch)


def _dim_size(
    graph: Graph,
    groups: list[ChannelGroup],
    unit_of: dict[int, tuple[str, int]],
    rooted: dict[tuple[str, int], Ids],
    tensor: str,
    dim: int,
) -> DimSize:
    size = graph.type_of(tensor).shape[dim]
    roots = rooted.get((tensor, dim))
    if roots is None:
        return DimSize(abs(size), (), size < 0)
    return _count(groups, unit_of, roots, size < 0)


def _slice_ends(
    groups: list[ChannelGroup],
    unit_of: dict[int, tuple[str, int]],
    rooted: dict[tuple[str, int], Ids],
    n: Node,
) -> tuple[DimSize, DimSize]:
    roots = rooted[n.inputs[0], n.attrs["axis"]]
    return (
        _count(groups, unit_of, roots[: n.attrs["start"]], False),
        _count(groups, unit_of, roots[: n.attrs["end"]], False),
    )


def _why_fixed(
    s: Labelling,
    outputs_of: dict[str, tuple[str, int]],
    unit_of: dict[int, tuple[str, int]],
    rooted: dict[tuple[str, int], Ids],
) -> dict[str, str]:
    found = {}
    for layer, place in outputs_of.items():
        roots = rooted.get(place)
        if roots is not None and any(int(r) in unit_of for r in roots):
            continue
        known = s.labels[place[0]][place[1]]
        reason = "its channels have a fixed size"
        if known is not None:
            reason = next(
                (s.reasons[i] for i in known.tolist() if i in s.reasons),
                "they are tied to a tensor of fixed size",
            )
        found[layer] = reason
    return found


__all__ = ["Channels", "TensorType", "channel_groups", "label"]
