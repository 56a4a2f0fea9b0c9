"""Cells of the benchmark of agents: one agent with one seed on one problem, searched as `search` does it.

A cell is a study without a run's folder: the two baselines, then the agent's policies, one at a time, each
with the bar that the study gives it. Scores come from the shared pool where it has them; a cell notes what
every evaluation *takes* and what the agent itself took, so that its wall-clock can be replayed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from agents.contract import Agent, Outcome, Problem, Suggestion
from agents.pareto import usable
from agents.registry import make_agent
from agents.repair import require_feasible
from search.config import make_config
from search.evaluate import Finished, InlineEvaluator, Job
from search.evidence import Clock
from search.pool import Pool, PooledEvaluator, open_pool
from search.setup import Setup, load_setup
from search.study import Study, outcome_of

V = TypeVar("V")
SCHEMA_VERSION = 1
#: Setups that a process keeps: they hold calibration data and prefixes.
KEPT = 2


@dataclass(frozen=True, order=True)
class Cell:
    """What is run; ``budget`` is the limit of the latency as a user writes it."""

    task: str
    target: str
    budget: str
    seed: int
    agent: str
    evaluations: int

    @property
    def problem(self) -> tuple[str, str, str]:
        """What the cells that may be compared have in common."""
        return self.task, self.target, self.budget


@dataclass(frozen=True)
class Step:
    """One evaluation: what it took, all that the agent had taken until then, and what it scored.

    ``gain``: the metric, higher is better; None where the policy could not be scored. ``usable``: evaluated
    to the end and inside the budget.
    """

    evaluation_seconds: float
    agent_seconds: float
    gain: float | None
    latency_ms: float
    usable: bool
    digest: str


@dataclass
class Record:
    """A finished cell. ``known`` are the baselines; ``measured``: seconds of what was measured once."""

    cell: Cell
    base_gain: float
    base_latency_ms: float
    limit_ms: float
    dimension: int
    known: list[Step] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    measured: dict[str, float] = field(default_factory=dict)
    exhausted: bool = False
    pooled: int = 0
    wall_seconds: float = 0.0
    failure: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON document; steps as rows, since there are many."""
        doc = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        for name in ("known", "steps"):
            doc[name] = [list(_rounded(s)) for s in getattr(self, name)]
        return doc

    @classmethod
    def from_dict(cls, doc: Mapping[str, Any]) -> Record:
        """Read what `to_dict` wrote. Raises ValueError for another version's."""
        if doc.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"a record of version {doc.get('schema_version')!r}")
        values = {k: v for k, v in doc.items() if k != "schema_version"}
        values["cell"] = Cell(**values["cell"])
        for name in ("known", "steps"):
            values[name] = [Step(*row) for row in values[name]]
        return cls(**values)


def _rounded(step: Step) -> tuple[object, ...]:
    row = (round(step.evaluation_seconds, 5), round(step.agent_seconds, 5), step.gain)
    return (*row, step.latency_ms, step.usable, step.digest)


# -- time


@dataclass
class Meter:
    """What a problem measures once and all its cells use, such as sensitivities: timed the first time."""

    once: dict[str, float] = field(default_factory=dict)
    inside: float = 0.0
    called: set[str] = field(default_factory=set)

    def metered(self, name: str, measure: Callable[[], V] | None) -> Callable[[], V] | None:
        """The same measurement, timed."""
        if measure is None:
            return None

        def call() -> V:
            clock = Clock()
            found = measure()
            spent = clock.spent()
            self.once.setdefault(name, spent)
            self.inside += spent
            self.called.add(name)
            return found

        return call

    @property
    def charged(self) -> float:
        """Seconds that a run by itself would have spent on what this cell called."""
        return sum(self.once[name] for name in self.called)

    def begin(self) -> None:
        """A new cell: nothing was called yet."""
        self.inside = 0.0
        self.called.clear()


class Timed(Agent):
    """An agent whose own time is taken. What it had measured counts as `Meter` says, not as it took here."""

    name = "timed"
    summary = "an agent whose own time is taken"

    def __init__(self, problem: Problem, seed: int, agent: str = "", meter: Meter | None = None) -> None:
        self.meter = meter if meter is not None else Meter()
        self._own = 0.0
        self._inner: Agent = self._taken(lambda: make_agent(agent, problem, seed))
        #: Seconds until each update, that one included.
        self.marks: list[float] = []

    def _taken(self, do: Callable[[], V]) -> V:
        before, clock = self.meter.inside, Clock()
        try:
            return do()
        finally:
            self._own += max(0.0, clock.spent() - (self.meter.inside - before))

    def suggest(self, n: int = 1) -> list[Suggestion]:
        return self._taken(lambda: self._inner.suggest(n))

    def update(self, suggestion: Suggestion, outcome: Outcome) -> None:
        self._taken(lambda: self._inner.update(suggestion, outcome))
        self.marks.append(self._own + self.meter.charged)

    def replay(self, history: Iterable[tuple[Suggestion, Outcome | None]]) -> None:
        self._inner.replay(history)

    @property
    def outstanding(self) -> tuple[Suggestion, ...]:
        return self._inner.outstanding


# -- running


class Bench:
    """Runs cells in one process; what cells of one task and target share is set up once."""

    def __init__(self, pool: str | None = None) -> None:
        self.place = pool
        self._setups: dict[tuple[str, str], tuple[Setup, Pool, Meter]] = {}

    def run(self, cell: Cell) -> Record:
        """One cell, from its baselines to its last evaluation."""
        began = time.perf_counter()
        shared, pool, meter = self._shared(cell)
        setup = _narrowed(shared, cell)
        problem = setup.problem
        problem = replace(
            problem,
            losses=meter.metered("losses", problem.losses),
            relaxation=meter.metered("relaxation", problem.relaxation),
        )
        record = Record(
            cell,
            problem.gain(problem.base_accuracy),
            setup.base_costs["latency_ms"],
            setup.budget.limits["latency_ms"],
            setup.space.dimension,
        )
        before = pool.found
        self._studied(record, setup, problem, pool, meter)
        record.pooled = pool.found - before
        record.wall_seconds = round(time.perf_counter() - began, 3)
        return record

    def _studied(self, record: Record, setup: Setup, problem: Problem, pool: Pool, meter: Meter) -> None:
        require_feasible(problem)
        meter.begin()
        agent = Timed(problem, record.cell.seed, record.cell.agent, meter)
        study = Study(problem, agent, PooledEvaluator(InlineEvaluator(setup.scorer), pool), None)
        for i, (suggestion, score) in enumerate(_baselines(setup, pool)):
            outcome = outcome_of(problem, Finished(Job(-1 - i, suggestion.policy), score))
            if outcome.feasible:
                study.learn(suggestion, outcome)
        study.run(record.cell.evaluations)
        outcomes = [*(e.outcome for e in study.known), *(e.outcome for e in study.entries)]
        steps = [_step(problem, o, t) for o, t in zip(outcomes, agent.marks, strict=True)]
        record.known, record.steps = steps[: len(study.known)], steps[len(study.known) :]
        record.measured = {name: round(meter.once[name], 4) for name in sorted(meter.called)}
        record.exhausted = study.exhausted

    def _shared(self, cell: Cell) -> tuple[Setup, Pool, Meter]:
        key = (cell.task, cell.target)
        if key not in self._setups:
            while len(self._setups) >= KEPT:
                self._setups.pop(next(iter(self._setups)))[1].close()
            setup = load_setup(make_config({"task": cell.task, "target": cell.target}))
            pool = open_pool(self.place, setup.scorer, lambda text: print(f"pool: {text}", flush=True))
            self._setups[key] = setup, pool, Meter()
        return self._setups[key]


def _narrowed(shared: Setup, cell: Cell) -> Setup:
    """The problem of one budget: all but the limit is the same."""
    config = make_config(
        {
            "task": cell.task,
            "target": cell.target,
            "max_latency": cell.budget,
            "agent": cell.agent,
            "seed": cell.seed,
            "evaluations": cell.evaluations,
        }
    )
    return replace(shared, config=config, budget=config.budget(shared.base_costs))


def _baselines(setup: Setup, pool: Pool) -> Iterable[tuple[Suggestion, Any]]:
    """Plain INT8 and uniform scaling, which every search scores first; as `search.engine` does."""
    space = setup.space
    bits = max(space.abilities.act_bits, default=None)
    proposals = [("int8", space.uniform(1.0, bits)), ("uniform", space.uniform(0.5, bits))]
    for i, (name, proposal) in enumerate(proposals if bits is not None else proposals[1:]):
        policy = space.resolve(proposal)
        point = tuple(float(x) for x in space.encode(proposal))
        yield Suggestion(-1 - i, point, policy, f"baseline: {name}"), pool.score(policy)


def _step(problem: Problem, outcome: Outcome, agent_seconds: float) -> Step:
    return Step(
        outcome.seconds,
        agent_seconds,
        None if outcome.accuracy is None else problem.gain(outcome.accuracy),
        outcome.costs["latency_ms"],
        usable(outcome),
        outcome.policy.digest,
    )


__all__ = ["Bench", "Cell", "Meter", "Record", "Step", "Timed"]
