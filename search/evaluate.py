"""Evaluators: policies in, scores out as they complete; in this process, or in Ray actors.

The contract is ``submit`` and ``completed``: jobs may finish in any order, a job that fails gives an
error in place of a score and takes nothing else down.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from compressors.policy import ResolvedPolicy

from .evidence import Evidence
from .score import Score, Scorer
from .task import Task


class Examiner(Protocol):
    """What scores policies: a `Scorer`, or anything else that answers alike."""

    def examined(
        self, policy: ResolvedPolicy, bar: float | None = None, known: Evidence | None = None
    ) -> tuple[Score, Evidence]:
        """See `Scorer.examined`."""
        ...


@dataclass(frozen=True)
class Job:
    """One policy to score; ``number`` is the caller's, ``bar`` and ``known`` as in `Scorer.examined`."""

    number: int
    policy: ResolvedPolicy
    bar: float | None = None
    known: Evidence | None = None


@dataclass(frozen=True)
class Finished:
    """A job's end: a score with what it rests on, or one line saying why there is none."""

    job: Job
    score: Score | None
    error: str = ""
    evidence: Evidence | None = None


class Evaluator(ABC):
    """Scores policies; a context manager."""

    #: How many jobs keep it busy.
    workers: int = 1

    @abstractmethod
    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs; returns at once."""

    @abstractmethod
    def completed(self) -> list[Finished]:
        """Wait until at least one job is done and return all that are; [] when none is under way."""

    def withdraw(self) -> list[Job]:
        """Take back the jobs that no worker was given yet; they do not come out of `completed`."""
        return []

    def close(self) -> None:
        """Release workers; unfinished jobs are dropped. Nothing to do where there are none."""
        return

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def attempt(scorer: Examiner, job: Job) -> Finished:
    """Score one job; whatever is raised becomes its one-line error."""
    try:
        score, evidence = scorer.examined(job.policy, job.bar, job.known)
        return Finished(job, score, evidence=evidence)
    except Exception as problem:  # a user's metric may raise anything; one policy is not the run
        line = str(problem).strip().splitlines()
        return Finished(job, None, f"{type(problem).__name__}: {line[0] if line else ''}"[:300])


class InlineEvaluator(Evaluator):
    """One process: a job runs when `completed` is called, so that Ctrl-C falls between jobs."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self._queue: deque[Job] = deque()

    def submit(self, jobs: Sequence[Job]) -> None:
        self._queue.extend(jobs)

    def withdraw(self) -> list[Job]:
        found = list(self._queue)
        self._queue.clear()
        return found

    def completed(self) -> list[Finished]:
        return [attempt(self.scorer, self._queue.popleft())] if self._queue else []


def make_evaluator(
    task: Task,
    scorer: Scorer,
    workers: int,
    ray_address: str | None = None,
    timeout: float | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Evaluator:
    """This process for one worker; Ray actors for several, in a cluster, or with a time limit (seconds)."""
    if workers <= 1 and ray_address is None and timeout is None:
        return InlineEvaluator(scorer)
    from .evaluate_ray import RayEvaluator

    return RayEvaluator(
        scorer.for_workers(), workers, spec=task.spec, address=ray_address, timeout=timeout, tell=tell
    )
