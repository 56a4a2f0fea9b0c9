"""What agents take for a suggestion, by how many outcomes they know, and which take more than they may.

    .venv/bin/python scripts/bench_agent_time.py [--marks 10,100,1000] [--suggestions 110] [--agents tpe,gp]

Two problems: digits32 on a raspberry-pi-4 as `search` sets it up, and a toy of 38 coordinates. An agent is
brought back from a history of random feasible policies with a synthetic metric, then suggests, one by one,
each answered. Own time is process time without what the problem does for it: prices, losses, steps of the
relaxed network. The first suggestion after a return builds what an undisturbed agent has at hand: it is shown
apart. Limits: 10 ms of own time on average, 200 ms for gp and joint, and for hyper, which is joint
with other starts, at a thousand outcomes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agents.contract import Gates, Outcome, Problem, Relaxation, Suggestion
from agents.loss_table import loss_table, separable_loss
from agents.pricing import Pricer
from agents.registry import list_agents, make_agent
from agents.repair import random_feasible
from agents.toys import toy_problem, toy_space
from search.threads import single_threaded

V = TypeVar("V")
#: Milliseconds of own time that a suggestion may take, on average, at a thousand outcomes.
LIMIT, LIMITS = 10.0, {"gp": 200.0, "joint": 200.0, "hyper": 200.0}
JUDGED_AT = 1000
#: Policies the history is made of: random feasible ones, and their mutants repaired.
SEEDS = 40

History = list[tuple[Suggestion, Outcome]]


class Meter:
    """Process time spent inside a problem's own functions."""

    def __init__(self) -> None:
        self.inside = 0.0

    def timed(self, function: Callable[..., V] | None) -> Callable[..., V] | None:
        """The same function, its time noted; calls of one from another count once."""
        if function is None:
            return None

        def called(*args: Any) -> V:
            began, before = time.process_time(), self.inside
            try:
                return function(*args)
            finally:
                self.inside = before + time.process_time() - began

        return called

    def problem(self, problem: Problem) -> Problem:
        """The problem with all that it does for an agent timed."""
        costs, made = self.timed(problem.costs), self.timed(problem.relaxation)
        assert costs is not None
        return replace(
            problem,
            costs=costs,
            estimates=self.timed(problem.estimates),
            losses=self.timed(problem.losses),
            losses_around=self.timed(problem.losses_around),
            relaxation=None if made is None else lambda: TimedRelaxation(made(), self),
        )


@dataclass(frozen=True)
class TimedRelaxation:
    """A relaxation whose steps count as the problem's, not the agent's."""

    inner: Relaxation
    meter: Meter

    def step(self, gates: Gates, batch: int) -> tuple[float, list[NDArray[np.float64]]]:
        """As the inner one's."""
        step = self.meter.timed(self.inner.step)
        assert step is not None
        return step(gates, batch)


@dataclass(frozen=True)
class Timing:
    """Milliseconds: the first suggestion, mean and 95th percentile of the others, and mean with prices."""

    first: float
    mean: float
    p95: float
    whole: float
    suggestions: int


def problems(evaluations: int) -> Iterator[tuple[str, Problem]]:
    """The two problems, with as many evaluations planned."""
    yield "toy", toy_problem(toy_space(7, 64), share=0.3, conversion=0.03, evaluations=evaluations)
    from search.config import make_config
    from search.setup import load_setup

    config = {
        "target": "raspberry-pi-4",
        "task": "digits32",
        "max_latency": "0.5x",
        "evaluations": evaluations,
    }
    yield "digits32/raspberry-pi-4", load_setup(make_config(config)).problem


def history_of(problem: Problem, count: int) -> tuple[History, Callable[[Suggestion], float]]:
    """Distinct feasible policies with a synthetic metric, and the metric."""
    pricer, rng = Pricer(problem), np.random.default_rng(0)
    table = loss_table(problem, {})
    table = table.scaled(0.1 * np.exp(np.random.default_rng(1).normal(0.0, 1.2, problem.space.dimension)))

    def metric(s: Suggestion) -> float:
        return float(0.1 + 0.85 * np.exp(-separable_loss(table, problem.space.indices(s.point)[None])[0]))

    seeds = [x for _ in range(SEEDS) if (x := random_feasible(pricer, rng)) is not None]
    found: dict[str, tuple[Suggestion, Outcome]] = {}
    while len(found) < count:
        rows = np.stack([seeds[int(rng.integers(len(seeds)))] for _ in range(64)])
        drawn = rng.integers(0, problem.space.cardinalities, size=rows.shape)
        rows = np.where(rng.random(rows.shape) < 0.06, drawn, rows)
        for row in rows[pricer.feasible(rows)]:
            policy = pricer.policy(row)
            if policy.digest not in found and len(found) < count:
                s = Suggestion(len(found), pricer.point(row), policy, "history")
                costs = {k: float(v[0]) for k, v in pricer.price(row[None]).items()}
                found[policy.digest] = (s, Outcome(policy, metric(s), costs))
    return list(found.values()), metric


def timed(
    name: str,
    problem: Problem,
    history: History,
    metric: Callable[[Suggestion], float],
    n: int,
    seconds: float,
) -> Timing:
    """Bring an agent back from a history, have it suggest up to ``n`` times and tell it each outcome."""
    meter = Meter()
    agent = make_agent(name, meter.problem(problem), 0)
    agent.replay(history)
    own, whole = [], []
    for _ in range(n + 1):
        meter.inside, began = 0.0, time.process_time()
        batch = agent.suggest(1)
        spent = time.process_time() - began
        for s in batch:
            costs = {k: float(v[0]) for k, v in problem.costs([s.policy]).items()}
            agent.update(s, Outcome(s.policy, metric(s), costs))
        whole.append(1e3 * spent)
        own.append(1e3 * (spent - meter.inside))
        if not batch or sum(whole) > 1e3 * seconds:
            break
    rest = own[1:] or own
    return Timing(
        own[0], float(np.mean(rest)), float(np.quantile(rest, 0.95)), float(np.mean(whole)), len(own)
    )


def limit_of(name: str) -> float:
    """Milliseconds that an agent may take."""
    return LIMITS.get(name, LIMIT)


@single_threaded
def main() -> int:
    """Measure, print the table, and name those over their limit; exit code 1 if there are any."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--marks", default="10,100,1000", help="numbers of outcomes known")
    parser.add_argument("--suggestions", type=int, default=110, help="suggestions timed at each, or fewer")
    parser.add_argument("--seconds", type=float, default=15.0, help="process seconds a row, at most")
    parser.add_argument("--agents", default=",".join(list_agents()))
    parser.add_argument("--evaluations", type=int, default=1000, help="evaluations that problems announce")
    options = parser.parse_args()
    marks = [int(m) for m in options.marks.split(",")]
    names: Sequence[str] = options.agents.split(",")
    over: list[str] = []
    for label, problem in problems(options.evaluations):
        history, metric = history_of(problem, max(marks))
        print(f"\n{label}, {problem.space.dimension} coordinates: own ms a suggestion")
        print(f"{'agent':16s} outcomes    first     mean      p95   mean with prices")
        for name in names:
            for mark in marks:
                t = timed(name, problem, history[:mark], metric, options.suggestions, options.seconds)
                late = mark >= JUDGED_AT and t.mean > limit_of(name)
                print(
                    f"{name:16s} {mark:8d} {t.first:8.1f} {t.mean:8.1f} {t.p95:8.1f} {t.whole:10.1f}"
                    + (f"   over {limit_of(name):g}" if late else ""),
                    flush=True,
                )
                if late:
                    over.append(f"{name} on {label}: {t.mean:.1f} ms, {limit_of(name):g} allowed")
    print("\n" + ("\n".join(over) if over else "every agent within its limit"))
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
