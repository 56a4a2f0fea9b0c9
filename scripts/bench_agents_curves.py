"""What the benchmark of agents says: values after so many evaluations or minutes, spreads, comparisons.

Pure functions of finished cells; `bench_agents_report` prints them and draws them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import numpy as np
from bench_agents_cells import Record, Step
from numpy.typing import NDArray

from agents.pareto import front_mask, hypervolume

Floats = NDArray[np.float64]
#: The metric below which no area counts, as a share of the best that the runs of a problem found.
FLOOR = 0.8
EVALUATIONS = (25, 50, 100, 200, 400)
MINUTES = (1.0, 2.0, 5.0)
Quantity = Literal["best", "hypervolume"]


@dataclass(frozen=True)
class Mark:
    """When a run is looked at: after so many evaluations, or so many minutes of replayed wall-clock."""

    unit: Literal["evaluations", "minutes"]
    at: float

    def __str__(self) -> str:
        return f"{self.at:g}" if self.unit == "evaluations" else f"{self.at:g} min"


def marks_of(records: Iterable[Record]) -> list[Mark]:
    """The marks that runs of this length have."""
    most = max((r.cell.evaluations for r in records), default=0)
    counts = [m for m in EVALUATIONS if m <= most] or [most]
    return [*(Mark("evaluations", m) for m in counts), *(Mark("minutes", m) for m in MINUTES)]


# -- one run


def seconds_of(record: Record) -> Floats:
    """Replayed wall-clock at the end of each evaluation of ``[*known, *steps]``, shape (P,), from 0."""
    rows = [*record.known, *record.steps]
    paid = accumulate(s.evaluation_seconds for s in rows)
    return np.array([p + s.agent_seconds for p, s in zip(paid, rows, strict=True)])


def until(record: Record, mark: Mark) -> list[Step]:
    """What a run had found at a mark, the baselines included."""
    if mark.unit == "evaluations":
        return [*record.known, *record.steps[: int(mark.at)]]
    late = np.searchsorted(seconds_of(record), 60.0 * mark.at, side="right")
    return [*record.known, *record.steps][: int(late)]


def reached(record: Record, mark: Mark) -> bool:
    """Whether a run went on until a mark, or had nothing new to try."""
    if record.exhausted:
        return True
    if mark.unit == "evaluations":
        return len(record.steps) >= mark.at
    return bool(record.steps) and float(seconds_of(record)[-1]) >= 60.0 * mark.at


def points(steps: Iterable[Step]) -> Floats:
    """(gain, latency in ms) of what is usable, shape (P, 2)."""
    rows = [(s.gain, s.latency_ms) for s in steps if s.usable and s.gain is not None]
    return np.array(rows, dtype=float).reshape(len(rows), 2)


def floor_of(found: Floats) -> float:
    """The gain down to which area counts, of all points (P, 2) of a problem."""
    most = float(found[:, 0].max(initial=-np.inf))
    return most - (1.0 - FLOOR) * abs(most) if len(found) else 0.0


def volume(found: Floats, floor: float, limit_ms: float) -> float:
    """Hypervolume of points (P, 2) down to the floor and up to the budget, in gain times ms."""
    # a point at the edge of the budget counts by its metric alone: a hair's breadth more than nothing
    edge = limit_ms * (1.0 + 1e-6)
    return hypervolume(found[found[:, 0] > floor], (floor, edge), (True, False))


# -- all runs of a problem


@dataclass(frozen=True)
class Problem:
    """The runs of one task, target and budget, and the hypervolume of all they found together.

    ``floor``: the gain down to which area counts; ``least``: of anything usable, which stands for the best of
    a run that found nothing.
    """

    name: tuple[str, str, str]
    records: tuple[Record, ...]
    floor: float
    least: float
    whole: float

    @property
    def agents(self) -> list[str]:
        """Agents with a run, in order of their first."""
        return list(dict.fromkeys(r.cell.agent for r in self.records))

    def values(self, agent: str, mark: Mark, quantity: Quantity) -> dict[int, float]:
        """Seed to value; the hypervolume as a share of the whole."""
        return {r.cell.seed: self._value(r, mark, quantity) for r in self.records if r.cell.agent == agent}

    def complete(self, agent: str, mark: Mark) -> bool:
        """Whether all runs of an agent went on until a mark."""
        return all(reached(r, mark) for r in self.records if r.cell.agent == agent)

    def _value(self, record: Record, mark: Mark, quantity: Quantity) -> float:
        found = points(until(record, mark))
        if quantity == "best":
            return float(found[:, 0].max()) if len(found) else self.least
        return volume(found, self.floor, record.limit_ms) / self.whole if self.whole > 0 else 0.0


def problems(records: Iterable[Record]) -> list[Problem]:
    """Runs by problem; those that failed are left out."""
    by_name: dict[tuple[str, str, str], list[Record]] = {}
    for r in records:
        if not r.failure:
            by_name.setdefault(r.cell.problem, []).append(r)
    return [_problem(name, rows) for name, rows in by_name.items()]


def _problem(name: tuple[str, str, str], rows: Sequence[Record]) -> Problem:
    every = np.concatenate([points([*r.known, *r.steps]) for r in rows])
    floor = floor_of(every)
    front = every[front_mask(every, (True, False))] if len(every) else every
    least = float(every[:, 0].min()) if len(every) else 0.0
    return Problem(name, tuple(rows), floor, least, volume(front, floor, rows[0].limit_ms))


# -- spreads and comparisons


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over seeds."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """NaN without values."""
        found = np.array(list(values), dtype=float)
        if not len(found):
            return cls(np.nan, np.nan, np.nan, 0)
        low, median, high = (float(q) for q in np.percentile(found, (25, 50, 75)))
        return cls(median, low, high, len(found))


@dataclass(frozen=True)
class Comparison:
    """One agent against another, run by run with the same problem and seed.

    ``problems_won``, ``problems_tied`` and ``problems_lost`` by the medians over seeds; ``p``: two-sided
    Wilcoxon signed-rank test over all pairs; ``median``: of the differences.
    """

    other: str
    mark: Mark
    quantity: Quantity
    pairs: int
    median: float
    p: float
    problems_won: tuple[tuple[str, str, str], ...]
    problems_tied: tuple[tuple[str, str, str], ...]
    problems_lost: tuple[tuple[str, str, str], ...]


def compare(found: Sequence[Problem], mine: str, other: str, mark: Mark, quantity: Quantity) -> Comparison:
    """Paired comparison over the problems that both have runs on."""
    differences: list[float] = []
    judged: dict[int, list[tuple[str, str, str]]] = {1: [], 0: [], -1: []}
    for problem in found:
        a, b = (problem.values(x, mark, quantity) for x in (mine, other))
        seeds = sorted(a.keys() & b.keys())
        if seeds:
            differences += [a[s] - b[s] for s in seeds]
            gap = Spread.of(a.values()).median - Spread.of(b.values()).median
            judged[0 if abs(gap) < 1e-9 else 1 if gap > 0 else -1].append(problem.name)
    return Comparison(
        other, mark, quantity, len(differences), Spread.of(differences).median, wilcoxon(differences),
        tuple(judged[1]), tuple(judged[0]), tuple(judged[-1]),
    )  # fmt: skip


def wilcoxon(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test, zeros split between the signs (Pratt 1959); 1 for none."""
    from scipy.stats import wilcoxon as test

    values = np.array(differences)
    if len(values) == 0 or not np.any(np.abs(values) > 1e-12):
        return 1.0
    return float(test(values, zero_method="zsplit", method="auto").pvalue)


@dataclass(frozen=True)
class Claim:
    """Whether one agent after few evaluations is at least as good as another after many, on one problem."""

    problem: tuple[str, str, str]
    few: Spread
    many: Spread

    @property
    def holds(self) -> bool:
        """By the medians."""
        return self.few.median >= self.many.median - 1e-9


def claims(
    found: Sequence[Problem], mine: tuple[str, int], other: tuple[str, int], quantity: Quantity
) -> list[Claim]:
    """(agent, evaluations) against (agent, evaluations), problem by problem."""
    rows = []
    for problem in found:
        spreads = [
            Spread.of(problem.values(agent, Mark("evaluations", count), quantity).values())
            for agent, count in (mine, other)
        ]
        if all(s.count for s in spreads):
            rows.append(Claim(problem.name, *spreads))
    return rows


def own_seconds(found: Sequence[Problem]) -> Mapping[str, tuple[Spread, Spread]]:
    """Agent to seconds a suggestion: its own, and of the evaluation it led to."""
    rows: dict[str, tuple[list[float], list[float]]] = {}
    for record in (r for problem in found for r in problem.records if r.steps):
        own, paid = rows.setdefault(record.cell.agent, ([], []))
        own.append(record.steps[-1].agent_seconds / len(record.steps))
        paid.append(sum(s.evaluation_seconds for s in record.steps) / len(record.steps))
    return {agent: (Spread.of(own), Spread.of(paid)) for agent, (own, paid) in rows.items()}


# -- curves


@dataclass(frozen=True)
class Curve:
    """An agent's median and quartiles on one problem at each of ``x``, shape (X,) each."""

    agent: str
    x: Floats
    median: Floats
    low: Floats
    high: Floats


def curves(problem: Problem, unit: Literal["evaluations", "minutes"], quantity: Quantity) -> list[Curve]:
    """One curve an agent, from the start to the end of the longest run."""
    if unit == "evaluations":
        most = max(len(r.steps) for r in problem.records)
        x = np.unique(np.geomspace(1, max(most, 2), 36).round())
    else:
        ends = [float(seconds_of(r)[-1]) for r in problem.records if r.steps]
        x = np.geomspace(0.05, max(0.1, min(max(ends, default=60.0) / 60.0, max(MINUTES))), 30)
    found = []
    for agent in problem.agents:
        rows = [Spread.of(problem.values(agent, Mark(unit, float(v)), quantity).values()) for v in x]
        median, low, high = (np.array([getattr(r, name) for r in rows]) for name in ("median", "low", "high"))
        found.append(Curve(agent, x, median, low, high))
    return found


__all__ = [
    "Claim",
    "Comparison",
    "Curve",
    "Mark",
    "Problem",
    "Spread",
    "claims",
    "compare",
    "curves",
    "marks_of",
    "own_seconds",
    "problems",
]
