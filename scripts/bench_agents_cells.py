"""Cells of the benchmark of agents: one agent with one seed on one problem, searched as `search` does it.

A cell is a study without a run's folder: the two baselines, then the agent's policies, one at a time, each
with the bar that the study gives it. Scores come from the shared pool where it has them; a cell notes what
every evaluation *takes* and what the agent itself took, so that its wall-clock can be replayed.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from agents.contract import Agent, Outcome, Problem, Suggestion
from agents.errors import NothingFeasibleError
from agents.pareto import usable
from agents.registry import make_agent
from agents.repair import require_feasible
from compressors.sensitivity import losses_around, measured_losses
from search.config import make_config
from search.evaluate import Finished, InlineEvaluator, Job
from search.evidence import Clock
from search.pool import Pool, PooledEvaluator, open_pool
from search.sensitivity import class_axes, losses_key
from search.setup import Setup, load_setup
from search.study import Study, outcome_of

P = ParamSpec("P")
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
    """A finished cell. ``known`` are the baselines; ``measured``: seconds of what the agent had measured."""

    cell: Cell
    base_gain: float
    base_latency_ms: float
    limit_ms: float
    dimension: int
    known: list[Step] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    measured: float = 0.0
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

    def brief(self) -> dict[str, Any]:
        """As `to_dict`, rounded and without digests: what reports need."""
        doc = self.to_dict()
        for name in ("known", "steps"):
            doc[name] = [
                [
                    round(seconds, 3),
                    round(own, 3),
                    gain if gain is None else round(gain, 5),
                    round(ms, 6),
                    ok,
                    "",
                ]
                for seconds, own, gain, ms, ok, _ in doc[name]
            ]
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


class Costs:
    """What measurements of a problem take, seconds by key, kept in a file that several processes add to."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._known: dict[str, float] = {}

    def get(self, key: str) -> float | None:
        """Seconds; None where nobody has measured it yet."""
        if key not in self._known and self.path is not None and self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    row = json.loads(line)
                    self._known.setdefault(row["key"], float(row["seconds"]))
        return self._known.get(key)

    def put(self, key: str, seconds: float) -> None:
        """Keep what a measurement took."""
        self._known[key] = seconds
        if self.path is not None:
            append(self.path, {"key": key, "seconds": round(seconds, 5)})


def append(path: Path, document: Mapping[str, Any]) -> None:
    """One more line of JSON; behind a line that was cut short, on a line of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        start = b"" if file.read(1) in (b"", b"\n") else b"\n"
        file.write(start + json.dumps(document, separators=(",", ":")).encode() + b"\n")


class Meter:
    """Charges a cell for what it has measured (sensitivities) as if nobody had measured it before."""

    def __init__(self, costs: Costs | None = None) -> None:
        self.costs = costs if costs is not None else Costs()
        #: Seconds actually spent in measurements, and seconds by key that the present cell has to pay.
        self.inside = 0.0
        self.called: dict[str, float] = {}

    def metered(
        self, measure: Callable[P, V], key_of: Callable[P, str], cold: Callable[P, object] | None = None
    ) -> Callable[P, V]:
        """The same measurement, charged. ``cold`` measures without looking at any cache."""

        def call(*args: P.args, **kwargs: P.kwargs) -> V:
            whole, key = Clock(), key_of(*args, **kwargs)
            seconds = self.costs.get(key)
            if seconds is None and cold is not None:
                clock = Clock()
                cold(*args, **kwargs)
                seconds = clock.spent()
                self.costs.put(key, seconds)
            clock = Clock()
            found = measure(*args, **kwargs)
            if seconds is None:
                seconds = clock.spent()
                self.costs.put(key, seconds)
            self.inside += whole.spent()
            self.called[key] = seconds
            return found

        return call

    @property
    def charged(self) -> float:
        """Seconds that a run by itself would have spent on what this cell called."""
        return sum(self.called.values())

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

    def __init__(self, pool: str | None = None, costs: Path | None = None) -> None:
        self.place = pool
        self._costs = Costs(costs)
        self._setups: dict[tuple[str, str], tuple[Setup, Pool]] = {}
        self._feasible: dict[tuple[str, str, str], str] = {}

    def run(self, cell: Cell) -> Record:
        """One cell, from its baselines to its last evaluation."""
        began = time.perf_counter()
        shared, pool = self._shared(cell)
        setup, meter = _narrowed(shared, cell), Meter(self._costs)
        problem = _charged(setup.problem, shared, meter)
        self._require(cell, problem)
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
        record.measured = round(meter.charged, 4)
        record.exhausted = study.exhausted

    def _shared(self, cell: Cell) -> tuple[Setup, Pool]:
        key = (cell.task, cell.target)
        if key not in self._setups:
            while len(self._setups) >= KEPT:
                self._setups.pop(next(iter(self._setups)))[1].close()
            setup = load_setup(make_config({"task": cell.task, "target": cell.target}))
            pool = open_pool(self.place, setup.scorer, lambda text: print(f"pool: {text}", flush=True))
            self._setups[key] = setup, pool
        return self._setups[key]

    def _require(self, cell: Cell, problem: Problem) -> None:
        """Raise NothingFeasibleError where nothing holds the budget; found out once a problem."""
        if cell.problem not in self._feasible:
            try:
                require_feasible(problem)
                self._feasible[cell.problem] = ""
            except NothingFeasibleError as none:
                self._feasible[cell.problem] = str(none).splitlines()[0]
        if self._feasible[cell.problem]:
            raise NothingFeasibleError(self._feasible[cell.problem])


def _charged(problem: Problem, shared: Setup, meter: Meter) -> Problem:
    """The problem with its measurements charged; what they found is shared by all cells of a process."""
    network, space = shared.scorer.network, shared.space

    def cold_losses() -> None:
        shared.known_losses = measured_losses(network, space, classes=class_axes(shared.task, space))

    def cold_around(at: Sequence[int]) -> None:
        key = tuple(int(v) for v in at)
        shared.known_around[key] = losses_around(network, space, key, classes=class_axes(shared.task, space))

    def key_of(at: Sequence[int] | None = None) -> str:
        return f"losses {losses_key(shared.task, space, at)}"

    relaxation = problem.relaxation
    if relaxation is not None:
        name = f"relaxation {losses_key(shared.task, space)}"
        relaxation = meter.metered(relaxation, lambda: name)
    return replace(
        problem,
        losses=meter.metered(shared.losses, key_of, cold_losses),
        losses_around=meter.metered(shared.losses_around, key_of, cold_around),
        relaxation=relaxation,
    )


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


__all__ = ["Bench", "Cell", "Costs", "Meter", "Record", "Step", "Timed", "append"]
