"""What every value of every coordinate is expected to lose, and sums of it for many policies at once.

The sum of losses measured one by one is the model that exact allocation minimises and that surrogates start
from. Conventions: a removed block costs what its removal costs, and nothing that is chosen inside it counts;
the loss of a rank is that of the whole layer factorised at that ratio, whatever channels it keeps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from compressors.graph import Structure
from compressors.resolve import without_blocks
from compressors.space import Choice, PolicySpace

from .contract import Losses, Problem
from .pricing import Indices
from .repair import PRIOR_LOSS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Least loss of a value, as a share of what it would be by the prior: nothing is free, noise may say so.
FLOOR = 1e-3


@dataclass(frozen=True)
class LossTable:
    """Losses in nats (or in units of the prior, where nothing was measured), nothing missing.

    ``loss`` (d, V): of each value, inf beyond a coordinate's last one, 0 at it. ``hides`` (d, d): whether
    coordinate j does not count once the block of coordinate i is removed; ``parent`` (d,): the innermost
    coordinate that hides each one, -1 for none. ``measured`` (d, V): which losses were measured.
    """

    loss: Floats
    hides: NDArray[np.bool_]
    parent: Ints
    measured: NDArray[np.bool_]

    def tempered(self, exponent: float) -> LossTable:
        """Losses raised to a power at the same largest finite loss: below 1 small losses weigh more."""
        finite = np.isfinite(self.loss)
        most = float(self.loss[finite].max(initial=0.0)) or 1.0
        raised = most * (np.where(finite, self.loss, 0.0) / most) ** exponent
        return replace(self, loss=np.where(finite, raised, np.inf))

    def scaled(self, factors: Floats) -> LossTable:
        """Losses times ``factors`` (d,), coordinate by coordinate."""
        finite = np.isfinite(self.loss)
        return replace(
            self, loss=np.where(finite, np.where(finite, self.loss, 0.0) * factors[:, None], np.inf)
        )

    def counted(self, indices: Indices) -> NDArray[np.bool_]:
        """Which coordinates count in each policy: those inside no removed block, (P, d)."""
        blocks, hides = self._hiding
        if not len(blocks):
            return np.ones(indices.shape, dtype=bool)
        return np.asarray((indices[:, blocks] == 0).astype(float) @ hides == 0)

    @cached_property
    def _hiding(self) -> tuple[Ints, Floats]:
        """Coordinates that hide others, (k,), and which ones they hide, (k, d) of 0 and 1."""
        blocks = np.flatnonzero(self.hides.any(axis=1))
        return blocks, self.hides[blocks].astype(float)

    @cached_property
    def roots(self) -> Floats:
        """Roots of the losses as shares of the largest finite one, (d, V); 0 where there is no value."""
        finite = np.where(np.isfinite(self.loss), self.loss, 0.0)
        found: Floats = (finite / (float(finite.max(initial=0.0)) or 1.0)) ** 0.5
        return found


def separable_loss(losses: LossTable, indices: Indices) -> Floats:
    """Predicted loss of policies given as value indices (P, d): the sum of what counts, shape (P,)."""
    each = losses.loss[np.arange(indices.shape[1]), indices]
    return np.asarray(np.where(losses.counted(indices), each, 0.0).sum(axis=1))


def loss_table(problem: Problem, losses: Losses | None = None) -> LossTable:
    """The table of a problem: as in ``losses`` (default: what the problem measures), else by the prior.

    A value that was not measured lies on the prior's shape between those that were; a coordinate of which
    nothing was measured takes the prior at the scale of the others.
    """
    given = losses if losses is not None else problem.losses() if problem.losses is not None else {}
    choices = problem.space.choices
    shapes = [shape_of(c) for c in choices]
    known = [_measured(c, given) for c in choices]
    scale = _scale(choices, shapes, known)
    width = max((len(s) for s in shapes), default=1)
    table, measured = np.full((len(choices), width), np.inf), np.zeros((len(choices), width), dtype=bool)
    for i, (choice, shape, found) in enumerate(zip(choices, shapes, known, strict=True)):
        prior = scale * PRIOR_LOSS.get(choice.kind, 1.0) * shape
        table[i, : len(shape)] = np.maximum(_filled(found, prior), FLOOR * prior)
        measured[i, : len(shape)] = np.isfinite(found)
    hides = hidden(problem.space)
    return LossTable(table, hides, _parents(hides), measured)


def shape_of(choice: Choice) -> Floats:
    """How the prior spreads over the values of a choice, (values,): 1 at the first, 0 at the last, convex.

    Rounding noise is 4^-bits; of channels and ranks a share x taken away is expected to lose x^2.
    """
    n = len(choice.values)
    if n < 2:
        return np.zeros(n)
    if choice.kind in ("weight_bits", "act_bits"):
        noise = 4.0 ** -np.array([float(str(v)) for v in choice.values])
        return np.asarray((noise - noise[-1]) / max(noise[0] - noise[-1], 1e-300))
    return np.asarray((1.0 - np.arange(n) / (n - 1)) ** 2)


def hidden(space: PolicySpace) -> NDArray[np.bool_]:
    """``[i, j]``: coordinate i removes a block that all of what coordinate j changes stands in; (d, d)."""
    structure, choices = space.structure, space.choices
    found = np.zeros((len(choices), len(choices)), dtype=bool)
    for i, block in enumerate(choices):
        if block.kind != "removed":
            continue
        dead = set(structure.block[block.subject].layers)
        graph = without_blocks(structure, (block.subject,))
        alive = {*graph.inputs, *(t for n in graph.nodes for t in n.outputs)}
        tensors = {g.name for g in structure.tensor_groups if not alive & set(g.tensors)}
        for j, c in enumerate(choices):
            if c.kind == "act_bits":
                found[i, j] = c.subject in tensors
            elif i != j:
                layers = _layers(structure, c)
                found[i, j] = bool(layers) and layers <= dead
    # Two blocks of the same layers: the first one hides the other, not both each other.
    return np.asarray(found & ~(np.triu(found.T & found)).T)


def _layers(structure: Structure, choice: Choice) -> set[str]:
    """Layers that a choice of channels, blocks, ranks or weight bits changes."""
    if choice.kind == "keep":
        return set(structure.group[choice.subject].layers)
    return set(structure.block[choice.subject].layers) if choice.kind == "removed" else {choice.subject}


def _parents(hides: NDArray[np.bool_]) -> Ints:
    """The hiding coordinate that itself hides least, for every coordinate; -1 for none."""
    size = hides.sum(axis=1)
    parent = np.full(len(hides), -1, dtype=np.int64)
    for j in range(len(hides)):
        above = np.flatnonzero(hides[:, j])
        if len(above):
            parent[j] = above[np.argmin(size[above])]
    return parent


def _measured(choice: Choice, given: Losses) -> Floats:
    """What was measured, (values,), NaN elsewhere; the last value loses nothing by definition."""
    found = np.full(len(choice.values), np.nan)
    row = given.get(choice.name)
    if row is not None:
        found[:] = np.where(np.isfinite(row), np.maximum(row, 0.0), np.nan)
        found[-1] = 0.0
    return found


def _scale(choices: tuple[Choice, ...], shapes: list[Floats], known: list[Floats]) -> float:
    """Median of measured losses over the prior's; 1 where nothing was measured."""
    ratios = [
        found[ok] / (PRIOR_LOSS.get(c.kind, 1.0) * shape[ok])
        for c, shape, found in zip(choices, shapes, known, strict=True)
        if (ok := np.isfinite(found) & (found > 0) & (shape > 0)).any()
    ]
    return float(np.median(np.concatenate(ratios))) if ratios else 1.0


def _filled(found: Floats, prior: Floats) -> Floats:
    """Measured losses, and between them the prior's shape at the interpolated ratio of the two."""
    ok = np.isfinite(found) & (prior > 0)
    if not ok.any():
        return prior
    at = np.arange(len(found))
    ratio = np.interp(at, at[ok], found[ok] / prior[ok])
    return np.where(np.isfinite(found), found, ratio * prior)
