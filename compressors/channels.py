"""Which channels can only be removed together, found by following labels through the graph.

Every channel of every weight-bearing operation carries a label. Each operation either passes labels on
(relu), ties labels of several tensors (add, batch-norm, depthwise convolution, attention heads) or
fixes them (softmax over channels, an unknown operation). Labels that end up tied are one *unit*; units
that touch the same dimensions the same number of times are interchangeable and form a `ChannelGroup`.

This does what DepGraph (Fang et al., CVPR 2023) does on autograd graphs, on the exported graph instead,
where functional operations, shared weights, fused qkv projections and hard-coded view sizes are visible.
"""

from __future__ import annotations

from dataclasses import dataclass

from .channel_rules import label
from .graph import ChannelGroup, DimSize, Graph, Node, TensorType
from .labels import FROZEN, Ids, Labelling


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
            for r in roots[roots != FROZEN]:
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
