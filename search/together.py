"""One search for several targets: their studies take turns, and each learns from all.

Every target has a run of its own, with its folder, journal, budget and deliverable. What is decided between
the runs (whose turn it is, which policy is offered to whom) follows from their journals alone, so that a
resumed group goes on as an undisturbed one. See `agents.joined` for what is shared, and what is not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from agents.contract import Agent, Outcome
from agents.errors import NothingFeasibleError
from agents.joined import Exchange, JoinedAgent, Offer, Party
from agents.repair import require_feasible

from . import engine
from .console import Progress, Silent
from .engine import Search
from .errors import TailorbirdError, UsageError
from .group import Group, refuse_doubles, total_evaluations
from .matrix import matrix_of
from .result import RunResult
from .results import Matrix, Results
from .runfolder import check_free
from .setup import Setup, load_setup
from .task import load_task, prepared
from .threads import single_threaded
from .timing import measures

if TYPE_CHECKING:
    from .config import RunConfig
    from .task import Task

#: Share of all evaluations that are kept for a policy common to all targets.
COMMON_SHARE = 0.05
#: How the origins begin of what cost nothing, was taken from another study, is to serve all.
FREE, TAKEN, COMMON = "free: ", "taken: ", "common: "


@dataclass(frozen=True)
class Together:
    """What a search for several targets gives: a result each, and the matrix unless it was interrupted.

    ``failed``: the errors of targets that have none, each beginning with the target's name.
    """

    folder: Path
    results: tuple[RunResult, ...]
    matrix: Matrix | None
    failed: tuple[Exception, ...] = ()


def check(config: RunConfig) -> None:
    """Refuse what can be refused before any network is traced."""
    engine.check(config)
    if config.measure == "active":
        raise UsageError(
            "--measure active searches one target at a time.", "Use --measure front, or one target."
        )
    refuse_doubles(config)
    if config.resume is None and config.out is not None:
        check_free(Path(config.out))


@single_threaded
def run(
    config: RunConfig,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    task: Task | None = None,
    command: Sequence[str] = (),
) -> Together:
    """Search all targets of a configuration together; begin, or go on where its ``resume`` names a group.

    A target that cannot hold its budget, or whose result cannot be delivered, is left out, and the others go
    on. Raises the package's errors; a target's own where all of them fail.
    """
    show = _Once(progress if progress is not None else Silent())
    shared = prepared(task) if task is not None else load_task(config.task_spec())
    group = None if config.resume is None else Group(Path(config.resume), config)
    first = config.for_each_target() if group is None else group.configs
    setups = [load_setup(one, shared) for one in first]
    failed = _Failed(show)
    feasible = [_can_hold(setup, failed) for setup in setups]
    failed.unless(any(feasible))
    if group is not None:
        group.write(None)
    else:
        group = Group.create(config)
        for setup, one in zip(setups, group.configs, strict=True):
            setup.config = one
    studies = Studies()
    with ExitStack() as runs:
        for setup in (s for s, holds in zip(setups, feasible, strict=True) if holds):
            joined = partial(studies.joined, len(studies.searches))
            try:
                studies.searches.append(runs.enter_context(engine.begun(setup, show, stop, command, joined)))
            except NothingFeasibleError as problem:  # by prices that its device corrected
                failed.add(setup, problem)
        failed.unless(bool(studies.searches))
        with ExitStack() as evaluators:
            for search in studies.searches:
                evaluators.enter_context(search.study.evaluator)
            studies.search(
                total_evaluations(config, len(studies.searches)), show, stop, config.timeout_seconds
            )
            chosen = [engine.shortlisted(search) for search in studies.searches]
        documents, matrix = _ended(studies, chosen, failed)
    group.write(matrix)
    found = [
        RunResult(search.run.folder.path, results, task)
        for search, results in zip(studies.searches, documents, strict=True)
        if results is not None
    ]
    failed.unless(bool(found))
    return Together(group.path, tuple(found), matrix, tuple(failed.errors))


class _Failed:
    """Targets that are left out: each is told of once, when it is found out."""

    def __init__(self, show: Progress) -> None:
        self.errors: list[Exception] = []
        self._show = show

    def add(self, setup: Setup, problem: TailorbirdError | NothingFeasibleError) -> None:
        if isinstance(problem, TailorbirdError):
            problem.message = f"{setup.target.name}: {problem.message}"
        else:
            problem = NothingFeasibleError(f"{setup.target.name}: {problem}")
        self.errors.append(problem)
        self._show.note(f"left out {str(problem).partition(chr(10))[0]}")

    def unless(self, some: bool) -> None:
        """Raise the first error where no target is left."""
        if not some:
            raise self.errors[0]


def _can_hold(setup: Setup, failed: _Failed) -> bool:
    """Whether a target's budget can be held, as far as that can be known before its device is asked."""
    if measures(setup):  # once prices are corrected
        return True
    try:
        require_feasible(setup.problem)
    except NothingFeasibleError as problem:
        failed.add(setup, problem)
        return False
    return True


def _ended(
    studies: Studies, chosen: Sequence[list[Outcome]], failed: _Failed
) -> tuple[list[Results | None], Matrix | None]:
    """Conclude every run and write it, whatever becomes of the others: None for one that failed."""
    documents: list[Results | None] = []
    for search, outcomes in zip(studies.searches, chosen, strict=True):
        try:
            documents.append(engine.concluded(search, outcomes))
        except TailorbirdError as problem:
            failed.add(search.run.setup, problem)
            documents.append(None)
    matrix = studies.matrix()
    for search, results in zip(studies.searches, documents, strict=True):
        if results is not None:
            results["matrix"] = matrix
            results["search"]["reused"] = studies.reused(search)
            engine.written(search, results)
    return documents, matrix


@dataclass
class Studies:
    """The studies of all targets under way, and whose turn it is."""

    searches: list[Search] = field(default_factory=list)
    _forced: dict[int, Offer] = field(default_factory=dict)

    @cached_property
    def exchange(self) -> Exchange:
        """What the studies are worth to each other, once all have begun."""
        return Exchange([_party(s) for s in self.searches])

    def joined(self, at: int, setup: Setup, agent: Agent) -> Agent:
        """The agent of a target behind one that offers it what the others found."""
        return JoinedAgent(agent, partial(self._offer, at))

    def _offer(self, at: int, agent: JoinedAgent) -> Offer | None:
        if at in self._forced:
            return self._forced.pop(at)
        free = self.exchange.free(at, agent.knows)
        if free is not None:
            return _called(free, FREE)
        entries = self.searches[at].study.entries
        if entries and entries[-1].suggestion.origin.startswith(TAKEN):
            return None  # what others found and what its own agent proposes take turns
        taken = self.exchange.promising(at, agent.knows)
        return None if taken is None else _called(taken, TAKEN)

    # -- counting

    def paid(self, at: int) -> int:
        """Evaluations that a target's study cost."""
        entries = self.searches[at].study.entries
        return sum(not e.suggestion.origin.startswith(FREE) for e in entries)

    def taken(self, at: int) -> int:
        """Evaluations of a study that were of others' policies: who has fewer of them needs more turns."""
        entries = self.searches[at].study.entries
        return sum(e.suggestion.origin.startswith(TAKEN) for e in entries)

    def reused(self, search: Search) -> int:
        """Evaluations of a study that cost nothing, because another target had paid for them."""
        return sum(e.suggestion.origin.startswith(FREE) for e in search.study.entries)

    @property
    def all_paid(self) -> int:
        """Evaluations of all studies."""
        return sum(self.paid(at) for at in range(len(self.searches)))

    # -- the search

    def search(self, total: int, show: Progress, stop: threading.Event | None, timeout: float | None) -> None:
        """Turns, until ``total`` evaluations are spent, time is up, or no agent has anything new."""
        deadline = None if timeout is None else time.monotonic() + timeout
        show.start(total, self.all_paid, self.searches[0].run.setup.task.metric.unit)
        reserve = max(len(self.searches) - 1, int(COMMON_SHARE * total))
        reserve = min(reserve, total // 4)

        def over() -> bool:
            late = deadline is not None and time.monotonic() >= deadline
            return late or (stop is not None and stop.is_set())

        def turns(until: int) -> None:
            resting: set[int] = set()
            while not over() and len(resting) < len(self.searches) and self.all_paid < until:
                left = (k for k in range(len(self.searches)) if k not in resting)
                at = min(left, key=lambda k: (self.paid(k) + self.taken(k), k))
                if not self._turn(at, until - self.all_paid, show, stop):
                    resting.add(at)

        turns(total - reserve)
        while not over() and self.all_paid < total and self._common(show, stop):
            pass
        turns(total)
        for at in range(len(self.searches)):
            while not over() and self._free(at) and self._turn(at, 1, show, stop):
                pass
        show.close()
        for search in self.searches:
            if search.run.stopped:
                search.run.journal.append("interrupted", {"evaluated": len(search.study.entries)})

    def _turn(self, at: int, most: int, show: Progress, stop: threading.Event | None) -> bool:
        """Evaluations of one target, as many as its workers take at once; whether there were any."""
        search = self.searches[at]
        study, timings = search.study, search.run.timings
        before, start = len(study.entries), time.perf_counter()
        study.run(before + max(1, min(study.evaluator.workers, most)), None, stop, show)
        timings["search"] = timings.get("search", 0.0) + time.perf_counter() - start
        return len(study.entries) > before

    def _free(self, at: int) -> bool:
        agent = self.searches[at].study.agent
        return isinstance(agent, JoinedAgent) and self.exchange.free(at, agent.knows) is not None

    def _common(self, show: Progress, stop: threading.Event | None) -> bool:
        """One evaluation of the policy that might serve all best, where it was not evaluated yet."""
        policy = self.exchange.common()
        if policy is None:
            return False
        at = self.exchange.missing(policy)[0]
        self._forced[at] = _called(self.exchange.offer(policy, at, "for every target"), COMMON)
        found = self._turn(at, 1, show, stop)
        self._forced.clear()
        return found

    # -- what comes of it

    def matrix(self) -> Matrix | None:
        """The matrix of the delivered policies and their targets; None unless there are two."""
        ended = [s for s in self.searches if s.delivered is not None]
        picked = [s.delivered.candidate.searched.policy for s in ended if s.delivered is not None]
        if len(picked) < 2 or any(s.run.stopped and s.delivered is None for s in self.searches):
            return None
        among = self.exchange if len(ended) == len(self.searches) else Exchange([_party(s) for s in ended])
        return matrix_of([s.run.setup for s in ended], picked, among, self.all_paid)


def _party(search: Search) -> Party:
    setup, study = search.run.setup, search.study
    return Party(setup.target.name, setup.problem, setup.space.abilities.rounding.key, lambda: study.outcomes)


def _called(offer: Offer, how: str) -> Offer:
    return Offer(offer.point, offer.policy, how + offer.origin, offer.free)


class _Once:
    """A Progress that shows what several runs have in common once."""

    def __init__(self, inner: Progress) -> None:
        self.inner = inner
        self._shown: set[str] = set()

    def header(self, lines: Sequence[str]) -> None:
        fresh = [line for line in lines if line not in self._shown]
        self._shown.update(fresh)
        self.inner.header(fresh)

    def start(self, total: int, done: int = 0, unit: str = "%") -> None:
        self.inner.start(total, done, unit)

    def update(self, outcome: Outcome, best: Outcome | None, front_size: int, feasible_share: float) -> None:
        self.inner.update(outcome, best, front_size, feasible_share)

    def note(self, text: str) -> None:
        self.inner.note(text)

    def close(self) -> None:
        self.inner.close()


__all__ = ["Together", "check", "run"]
