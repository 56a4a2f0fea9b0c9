"""Policies around an allocation, most promising first: other readings of its losses, and its neighbours."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator

import numpy as np

from .cost_model import singles
from .loss_table import LossTable
from .pricing import Indices, Pricer
from .solver import Solution, neighbours, variant

#: Exponents that losses are tempered with, then standard deviations of their logarithm when perturbed.
TEMPERS, NOISE = (0.5, 1.5, 0.7, 2.0), (0.3, 0.6, 1.0)
#: Next-best policies for each variant.
NEXT_BEST = 3
#: Policies found before that end a stream, and candidates looked at for one suggestion.
STALE, LOOK = 24, 200

Candidates = Iterator[tuple[Indices, str]]


def around(solution: Solution, losses: LossTable, seed: int) -> Candidates:
    """Variants of a solution at its budget, endless, and its next-best policies in between.

    ``losses``: those that the solution sums up least; variants temper or perturb them.
    """
    pricer, budget = solution.pricer, solution.budget
    near = neighbours(pricer, losses, budget, solution.indices)
    changes = singles(pricer, losses, solution.indices, tuple(budget.limits))
    for k, (table, words) in enumerate(_tables(losses, seed)):
        point = variant(changes, pricer, table, budget)
        if point is not None:
            yield point, f"exact: {words}"
        for _, row in zip(range(NEXT_BEST if k else 1), near, strict=False):
            yield row, "exact: next best in summed loss"


def _tables(losses: LossTable, seed: int) -> Iterator[tuple[LossTable, str]]:
    for exponent in TEMPERS:
        yield losses.tempered(exponent), f"losses to the power of {exponent:g}"
    for k in range(1 << 30):
        rng, spread = np.random.default_rng((seed, k)), NOISE[k % len(NOISE)]
        factors = np.exp(rng.normal(0.0, spread, size=len(losses.loss)))
        yield losses.scaled(factors), f"losses perturbed by e^{spread:g}"


class Stream:
    """Candidates in order, made as they are asked for; each policy once, those that hold the budget.

    ``holds``: whether value indices (d,) hold the budget by exact costs. Ends when nothing new comes.
    """

    def __init__(self, pricer: Pricer, source: Candidates, holds: Callable[[Indices], bool]) -> None:
        self._pricer, self._holds = pricer, holds
        self._source = self._fresh(source)
        self._found: list[tuple[Indices, str, str]] = []

    def pick(self, known: Container[str], skip: int = 0) -> tuple[Indices, str] | None:
        """The first candidate (after ``skip`` others) whose digest is not known; None at the end."""
        left = skip
        for k in range(LOOK + len(self._found)):
            if k == len(self._found):
                made = next(self._source, None)
                if made is None:
                    return None
                self._found.append(made)
            indices, origin, digest = self._found[k]
            if digest not in known:
                if left == 0:
                    return indices, origin
                left -= 1
        return None

    def _fresh(self, source: Candidates) -> Iterator[tuple[Indices, str, str]]:
        seen, stale = set[str](), 0
        for indices, origin in source:
            digest = self._pricer.policy(indices).digest
            stale = stale + 1 if digest in seen else 0
            if stale > STALE:
                return
            if digest not in seen:
                seen.add(digest)
                if self._holds(indices):
                    yield indices, origin, digest


__all__ = ["Candidates", "Stream", "around"]
