"""Action walls: whatever a controller asks for, the finished policy holds every limit after rounding.

AMC (He et al. 2018, algorithm 1) clips an action so that the rest at its lowest ratio still meets the budget,
right for additive, monotone costs and wrong after rounding (its released "50 %" network has 51.67 %).
Here a feasible completion, the *witness*, is carried along: before each step there is a policy that agrees
with all that was decided and holds every limit by exact costs. An action for which no such policy is found is
walked towards the witness's own choice, which has one by construction. Nothing is assumed about costs.

HAQ (Wang et al. 2019) asks for bits freely and walks them down at the end: `walk_down`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .observation import Observer
from .pricing import Indices, Pricer
from .repair import PRIOR_LOSS, anchors, hold_exactly, repair
from .sites import KINDS, Site

#: Order in which a step's choices give way, least harmful first.
YIELDING = sorted(KINDS, key=lambda kind: PRIOR_LOSS[kind])


class Walls:
    """Keeps episodes inside the budget.

    ``exact``: judge by the problem's costs, not by its estimates (where it has any); costlier, and what an
    outsider's agent needs, since nobody repairs its policies afterwards.
    """

    def __init__(self, observer: Observer, *, exact: bool = True) -> None:
        self.observer = observer
        self.pricer: Pricer = observer.pricer
        self.exact = exact and self.pricer.problem.estimates is not None

    def start(self) -> Indices | None:
        """The first witness, (d,); None when nothing feasible is found."""
        for anchor in anchors(self.pricer):
            judged = self._exactly(anchor) if self.exact else self.pricer.feasible(anchor[None])[0]
            if judged:
                return anchor
        return hold_exactly(self.pricer, anchors(self.pricer)[0])

    def keep(self, step: int, wanted: dict[int, int], witness: Indices) -> Indices:
        """The next witness: takes ``wanted`` (coordinate to value index) at ``step``, or as much as can be.

        ``witness`` (d,) must hold the budget. The result holds it, agrees with ``witness`` on what was
        decided before, and decides this step: as wanted where a completion is found, else by the first point
        that bisection finds on the way from the wanted choice to the witness's.
        """
        asked = witness.copy()
        asked[list(wanted)] = list(wanted.values())
        found = self._completed(step, asked)
        if found is not None:
            return found
        way = self._way(self.observer.course[step], asked, witness)
        held, _ = boundary(len(way) - 1, lambda k: self._completed(step, way[k]), witness)
        return held

    def _completed(self, step: int, point: Indices) -> Indices | None:
        """A feasible point with ``point``'s choices up to ``step``: the rest at its cheapest, or as it is."""
        rows = np.stack([self.observer.prefix(step + 1, point), point])
        return self._first_held(rows)

    def _first_held(self, rows: Indices) -> Indices | None:
        """The first of some points (P, d) that holds every limit; estimates guide, exact costs decide."""
        for k in np.flatnonzero(self.pricer.feasible(rows)):
            row: Indices = rows[k]
            if not self.exact or self._exactly(row):
                return row
        return None

    def _exactly(self, point: Indices) -> bool:
        """Whether a point holds every limit by exact costs."""
        return not self.pricer.budget.why_not(self.pricer.exact(point))

    @staticmethod
    def _way(site: Site, start: Indices, witness: Indices) -> Indices:
        """From ``start`` (d,) to the witness, which differ at ``site``, by unit steps, (L + 1, d)."""
        steps: list[tuple[int, int]] = []
        for kind in YIELDING:
            for i in site.coordinates[KINDS.index(kind)]:
                gap = int(witness[i] - start[i])
                steps += [(i, 1 if gap > 0 else -1)] * abs(gap)
        return unit_path(start, steps)


def boundary(
    last: int, held: Callable[[int], Indices | None], at_last: Indices, first: int = 0
) -> tuple[Indices, int]:
    """Bisect positions ``first`` (fails) to ``last`` (holds, as ``at_last``): what holds next to a failure.

    Where holding is monotone this is the first position that holds; anyhow it is one that holds.
    """
    found = at_last
    while last - first > 1:
        middle = (first + last) // 2
        point = held(middle)
        if point is None:
            first = middle
        else:
            last, found = middle, point
    return found, last


def unit_path(start: Indices, steps: Sequence[tuple[int, int]]) -> Indices:
    """``start`` (d,) and the points after each step (coordinate, +1 or -1), shape (L + 1, d)."""
    moves = np.zeros((len(steps) + 1, len(start)), dtype=np.int64)
    for row, (i, sign) in enumerate(steps, start=1):
        moves[row, i] = sign
    path: Indices = start[None] + np.cumsum(moves, axis=0)
    return path


def walk_down(pricer: Pricer, course: Sequence[Site], start: Indices) -> Indices | None:
    """HAQ's final wall: bits walk down until the budget holds; None when nothing feasible is found.

    Sweeps from the last layer to the first, in each layer one step off the activations, then one off the
    weights. Where all bits at their lowest do not suffice the other coordinates are repaired as well.
    """
    if pricer.feasible(start[None])[0]:
        return start
    path = unit_path(start, [(i, -1) for i in _sweeps(course, start)])
    if not pricer.feasible(path[-1:])[0]:
        return repair(pricer, path[-1], refill=False)
    held, _ = boundary(
        len(path) - 1, lambda k: path[k] if pricer.feasible(path[k][None])[0] else None, path[-1]
    )
    return held


def _sweeps(course: Sequence[Site], start: Indices) -> list[int]:
    """Coordinates in the order in which they lose a step each, until all bits are at their lowest."""
    kinds = (KINDS.index("act_bits"), KINDS.index("weight_bits"))
    layers = dict.fromkeys(s.layer for s in reversed(course))
    order = [
        i for layer in layers for k in kinds for s in course if s.layer == layer for i in s.coordinates[k]
    ]
    left = {i: int(start[i]) for i in order}
    found: list[int] = []
    while any(left.values()):
        for i in order:
            if left[i]:
                found.append(i)
                left[i] -= 1
    return found
