"""The evolutionary search of OFA and APQ over predictions, a generation at a time in arrays."""

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
    population = start
    rank = _rank(*judge(population))
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
        population = np.concatenate([population, drawn[chosen]])
        rank = np.concatenate([rank, new[chosen]])
        rows.append(drawn[chosen])
        ranks.append(new[chosen])
    return _best(np.concatenate(rows), np.concatenate(ranks), keep, judged)


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


def _best(rows: Indices, rank: Floats, keep: int, judged: int) -> Visited:
    good = np.flatnonzero(rank > INFEASIBLE / 2)
    # Distinct ones last: most of what was visited is not worth comparing.
    order = good[np.argsort(-rank[good], kind="stable")][: 8 * keep]
    _, first = np.unique(rows[order], axis=0, return_index=True)
    chosen = order[np.sort(first)][:keep]
    return Visited(rows[chosen], rank[chosen], judged)
