"""Sites: what one step of an episode decides. An episode walks the layers as AMC and HAQ do.

AMC (He et al. 2018) decides one layer's keep ratio per step, HAQ (Wang et al. 2019)
one layer's weight bits and then its activation bits. Here a step decides everything that a layer is the first
to meet, by one joint action in [0, 1]^K over `KINDS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressors.graph import Structure
from compressors.resolve import fused_output
from compressors.space import Choice, PolicySpace

from .pricing import Indices

#: Coordinates of an action, in this order; K of them.
KINDS = ("keep", "rank", "weight_bits", "act_bits", "removed")
K = len(KINDS)
Floats = NDArray[np.float64]
#: An action or an observation, as gymnasium hands it over.
Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Site:
    """One step: per kind of `KINDS` the coordinates it decides, () where the layer has no such choice.

    All coordinates of one kind take the same part of the action. ``second`` marks the activation step of
    a layer that takes two.
    """

    layer: str
    coordinates: tuple[tuple[int, ...], ...]
    second: bool = False

    @property
    def all(self) -> list[int]:
        """Every coordinate decided here, ascending."""
        return sorted(i for found in self.coordinates for i in found)

    @property
    def mask(self) -> Vector:
        """1 for the parts of an action that count here, 0 for those that are ignored; shape (K,)."""
        return np.array([bool(found) for found in self.coordinates], dtype=np.float32)


def sites(space: PolicySpace, *, two_steps: bool = False) -> tuple[Site, ...]:
    """The steps of an episode, in order of execution; together they decide every coordinate once.

    A channel group or block belongs to its first layer, a tensor group to the first layer that reads it.
    ``two_steps``: activations apart, after the rest of the layer (HAQ). A space without choices has one step.
    """
    order = _layer_order(space.structure)
    reads = _first_met(space.structure, order)
    met: dict[int, list[list[int]]] = {}
    for i, choice in enumerate(space.choices):
        at = _position(space.structure, choice, order, reads)
        met.setdefault(at, [[] for _ in KINDS])[KINDS.index(choice.kind)].append(i)
    names = {at: name for name, at in order.items()}
    found = [
        Site(names.get(at, ""), tuple(tuple(c) for c in coordinates))
        for at, coordinates in sorted(met.items())
    ]
    if two_steps:
        found = [part for site in found for part in _halves(site)]
    return tuple(found) or (Site("", ((),) * K),)


def _layer_order(structure: Structure) -> dict[str, int]:
    """Layer to its place in the order of execution."""
    at = {n.name: k for k, n in enumerate(structure.graph.nodes)}
    ordered = sorted(structure.layers, key=lambda x: min((at.get(n, 0) for n in x.nodes), default=0))
    return {x.name: k for k, x in enumerate(ordered)}


def _first_met(structure: Structure, order: dict[str, int]) -> dict[str, int]:
    """Tensor group to the first layer that reads it, or else that writes it."""
    graph, group_of = structure.graph, structure.tensor_group_of
    found: dict[str, int] = {}
    for reading in (True, False):
        here: dict[str, int] = {}
        for name in sorted(order, key=lambda x: order[x]):
            for node in (graph.by_name[n] for n in structure.layer[name].nodes):
                group = group_of.get(node.inputs[0] if reading else fused_output(graph, node), "")
                here.setdefault(group, order[name])
        found = here | found
    return found


def _position(structure: Structure, choice: Choice, order: dict[str, int], reads: dict[str, int]) -> int:
    """The layer that decides a choice; what no layer meets is decided by the last one."""
    last = max(order.values(), default=0)
    if choice.kind in ("rank", "weight_bits"):
        return order[choice.subject]
    if choice.kind == "act_bits":
        return reads.get(choice.subject, last)
    named = structure.group if choice.kind == "keep" else structure.block
    return min((order[x] for x in named[choice.subject].layers), default=last)


def _halves(site: Site) -> Iterator[Site]:
    """HAQ's two steps: what concerns weights, then activations; a half with nothing to decide is left out."""
    acts = KINDS.index("act_bits")
    first = tuple(() if k == acts else c for k, c in enumerate(site.coordinates))
    if any(first):
        yield Site(site.layer, first)
    if site.coordinates[acts]:
        yield Site(site.layer, tuple(c if k == acts else () for k, c in enumerate(site.coordinates)), True)


def chosen(site: Site, action: Vector | Floats, sizes: Indices) -> dict[int, int]:
    """Coordinate to value index for an action in [0, 1]^K; ``sizes`` (d,) counts the values.

    Bins of equal width, as HAQ rounds: the value at ``floor(a n)`` of n.
    """
    share = np.clip(np.asarray(action, dtype=float), 0.0, 1.0)
    return {
        i: min(int(share[k] * sizes[i]), int(sizes[i]) - 1)
        for k, coordinates in enumerate(site.coordinates)
        for i in coordinates
    }


def taken(site: Site, indices: Indices, sizes: Indices) -> Vector:
    """The action that stands for what was decided here, shape (K,): middles of the bins, 0 where masked."""
    found = np.zeros(K, dtype=np.float32)
    for k, coordinates in enumerate(site.coordinates):
        if coordinates:
            found[k] = sum((indices[i] + 0.5) / sizes[i] for i in coordinates) / len(coordinates)
    return found


def decided(course: Sequence[Site], steps: int) -> list[int]:
    """Coordinates decided in the first ``steps`` steps."""
    return [i for site in course[:steps] for i in site.all]
