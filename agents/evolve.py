"""The evolutionary search of OFA and APQ over predictions, a generation at a time in arrays.

A population holds every policy once: else copies of the best one are all that is left after some generations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .pricing import Indices

Floats = NDArray[np.float64]
#: (score (P,), higher is better; excess (P,), feasible where 0 or less) of value indices (P, d).
Judge = Callable[[Indices], tuple[Floats, Floats]]

#: As published: Cai et al. 2020, `EvolutionFinder` of the released code; Wang et al. 2020, section 3.3.
POPULATION, PARENTS, MUTATED, PROBABILITY = 100, 0.25, 0.5, 0.1
#: Children drawn for one that is kept: those over the budget are thrown away, all of a generation at once.
DRAWN = 2


@dataclass(frozen=True)
class Visited:
    """Distinct policies that a search judged feasible, best first: (V, d) and scores (V,); all it judged."""

    indices: Indices
    score: Floats
    predictions: int


def evolve(
    start: Indices,
    judge: Judge,
    cardinalities: Indices,
    rng: np.random.Generator,
    generations: int,
    keep: int,
) -> Visited:
    """Run from a population (any number, d) and return the ``keep`` best feasible ones on the way."""
    keys = _keys(len(cardinalities))
    population, rank = _distinct(start, _rank(*judge(start)), keys)
    judged, rows, ranks = len(start), [population], [rank]
    parents, children = int(POPULATION * PARENTS), POPULATION - int(POPULATION * PARENTS)
    mutants = int(children * MUTATED)
    for _ in range(generations):
        elite = np.argsort(-rank, kind="stable")[:parents]
        population, rank = population[elite], rank[elite]
        drawn = np.concatenate(
            [
                mutated(population, cardinalities, rng, DRAWN * mutants),
                crossed(population, rng, DRAWN * (children - mutants)),
            ]
        )
        new = _rank(*judge(drawn))
        judged += len(drawn)
        # The first feasible ones in a random order; if there are too few, those that miss by least.
        order = rng.permutation(len(drawn))
        order = order[np.argsort(np.where(new[order] > INFEASIBLE / 2, 0.0, -new[order]), kind="stable")]
        chosen = order[:children]
        rows.append(drawn[chosen])
        ranks.append(new[chosen])
        population, rank = _distinct(
            np.concatenate([population, rows[-1]]), np.concatenate([rank, ranks[-1]]), keys
        )
    every, score = np.concatenate(rows), np.concatenate(ranks)
    good = np.flatnonzero(score > INFEASIBLE / 2)
    every, score = _distinct(every[good], score[good], keys)
    best = np.argsort(-score, kind="stable")[:keep]
    return Visited(every[best], score[best], judged)


#: Scores of what breaks the budget lie below this, by how much it does.
INFEASIBLE = -1e6


def _rank(score: Floats, excess: Floats) -> Floats:
    return np.where(excess <= 0, score, INFEASIBLE - excess)


def mutated(parents: Indices, cardinalities: Indices, rng: np.random.Generator, count: int) -> Indices:
    """``count`` copies of random parents, every coordinate drawn anew with the published probability."""
    found: Indices = parents[rng.integers(len(parents), size=count)].copy()
    row, column = np.nonzero(rng.random(found.shape, dtype=np.float32) < PROBABILITY)
    found[row, column] = (rng.random(len(row)) * cardinalities[column]).astype(np.int64)
    return found


def crossed(parents: Indices, rng: np.random.Generator, count: int) -> Indices:
    """``count`` children of two random parents, every coordinate from either."""
    a, b = parents[rng.integers(len(parents), size=(2, count))]
    found: Indices = np.where(rng.random(a.shape, dtype=np.float32) < 0.5, a, b)
    return found


def _keys(d: int) -> Indices:
    """Multipliers that turn a policy into a number; different ones get the same once in 2^64."""
    return np.random.default_rng(0).integers(-(2**62), 2**62, size=d)


def _distinct(rows: Indices, rank: Floats, keys: Indices) -> tuple[Indices, Floats]:
    """Each policy once, in the order of first appearance."""
    _, first = np.unique((rows * keys).sum(axis=1), return_index=True)
    first.sort()
    return rows[first], rank[first]
