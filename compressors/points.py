"""Points of a policy space resolved quickly: what `PolicySpace.resolve` gives, most of it remembered.

Agents weigh hundreds of points for one suggestion, most of which differ in channels alone. Channels are
looked up; bits are remembered by the choices they follow from, ranks by the shape that they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .graph import Layer
from .policy import Factor, Policy, ResolvedPolicy
from .resolve import resolve, resolved_bits, resolved_keep, resolved_rank

if TYPE_CHECKING:
    from .space import PolicySpace

#: Entries that a memo holds at most; it begins anew then.
MOST = 65_536


@dataclass(frozen=True)
class _Frame:
    """What is left once blocks are removed: groups with their coordinate (-1: none) and the channels each
    value keeps, and coordinates of ranks with their layer and the groups that its shape follows."""

    removed: tuple[str, ...]
    groups: tuple[tuple[str, int, tuple[int, ...]], ...]
    ranks: tuple[tuple[int, Layer, tuple[str, ...]], ...]


class Points:
    """Resolves value indices of one space."""

    def __init__(self, space: PolicySpace) -> None:
        self.space = space
        kinds = [c.kind for c in space.choices]
        self._removed = [i for i, kind in enumerate(kinds) if kind == "removed"]
        self._bits = [i for i, kind in enumerate(kinds) if kind in ("removed", "weight_bits", "act_bits")]
        self._frames: dict[tuple[int, ...], _Frame] = {}
        self._known_bits: dict[tuple[int, ...], tuple[Mapping[str, int], Mapping[str, int]]] = {}
        self._known_ranks: dict[tuple[int, ...], Factor | None] = {}

    def __call__(self, indices: NDArray[np.int64]) -> ResolvedPolicy:
        """The resolved policy of value indices (d,)."""
        row: list[int] = indices.tolist()
        asked = tuple([row[i] for i in self._removed])
        frame = self._frames.get(asked)
        if frame is None:
            frame = self._frames[asked] = self._frame(indices)
        kept = {name: values[row[i]] if i >= 0 else values[0] for name, i, values in frame.groups}
        factors = self._factors(row, frame, kept)
        key = tuple([row[i] for i in self._bits])
        bits = self._known_bits.get(key)
        if bits is None:
            bits = self._resolved_bits(indices, frame.removed)
            if len(self._known_bits) >= MOST:
                self._known_bits.clear()
            self._known_bits[key] = bits
        able = self.space.abilities
        network = self.space.structure.graph.digest
        return ResolvedPolicy(
            network, kept, factors, *bits, frame.removed, able.criterion, able.ranges, able.scales
        )

    def _factors(self, row: list[int], frame: _Frame, kept: Mapping[str, int]) -> dict[str, Factor]:
        found: dict[str, Factor] = {}
        for i, layer, groups in frame.ranks:
            wanted = self.space.choices[i].values[row[i]]
            if not isinstance(wanted, tuple):
                continue
            key = (i, row[i], *[kept.get(g, 0) for g in groups])
            if key not in self._known_ranks:
                if len(self._known_ranks) >= MOST:
                    self._known_ranks.clear()
                self._known_ranks[key] = resolved_rank(self.space.structure, layer, kept, wanted)
            factor = self._known_ranks[key]
            if factor is not None:
                found[layer.name] = factor
        return found

    def _resolved_bits(
        self, indices: NDArray[np.int64], removed: tuple[str, ...]
    ) -> tuple[Mapping[str, int], Mapping[str, int]]:
        return resolved_bits(self.space.structure, self.space.abilities, self.space.at(indices), removed)

    def _frame(self, indices: NDArray[np.int64]) -> _Frame:
        space, structure = self.space, self.space.structure
        first = resolve(structure, space.abilities, space.at(indices))
        dead = {x for b in first.removed for x in structure.block[b].layers}
        at = {(c.kind, c.subject): i for i, c in enumerate(space.choices)}
        groups = []
        for g in structure.groups:
            if g.name not in first.kept:
                continue
            i = at.get(("keep", g.name), -1)
            wanted = [v for v in space.choices[i].values if isinstance(v, int)] if i >= 0 else [g.size]
            groups.append((g.name, i, tuple(self._kept(g.name, g.size, v) for v in wanted)))
        ranks = []
        for layer in structure.layers:
            i = at.get(("rank", layer.name), -1)
            if i >= 0 and layer.name not in dead:
                shape = structure.sizes[layer.weight]
                ranks.append((i, layer, tuple(dict.fromkeys(g for d in shape for g, _ in d.mult))))
        return _Frame(first.removed, tuple(groups), tuple(ranks))

    def _kept(self, group: str, size: int, channels: int) -> int:
        """Channels of a group when so many are asked for."""
        space = self.space
        asked = Policy(keep={group: channels / size})
        return resolved_keep(space.structure, space.abilities, asked, set())[group]


__all__ = ["Points"]
