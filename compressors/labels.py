"""Labels of channels, and how a reshape carries them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .graph import Graph, Node

Ids = NDArray[np.int64]
#: Per dimension: label ids, one a position (of one sample), or None where the size never changes.
Labels = list["Ids | None"]
HINT = 2  # batch size at which reshapes are followed
FROZEN = 0


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
            if r != FROZEN:
                self.reasons.setdefault(r, reason)
                self.reasons.setdefault(int(i), reason)
                self.parent[r] = FROZEN

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape of an activation or a parameter."""
        return self.graph.type_of(tensor).shape

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


def reshape(s: Labelling, n: Node) -> list[Labels]:
    before, after = s.shape(n.inputs[0]), s.shape(n.outputs[0])
    known = s.operand(n.inputs[0])
    out: Labels = [None] * len(after)
    for ins, outs in _blocks(before, after):
        _reshape_block(s, n, known, before, ins, after, outs, out)
    return [out]


def _real(size: int) -> int:
    return size if size >= 0 else -size * HINT


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
        ids = np.tile(ids, HINT)
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
    rows = ids.reshape(HINT, -1)
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
