"""Evaluators: policies in, scores out as they complete; in this process, in several, or in Ray actors.

The contract is ``submit`` and ``completed``: jobs may finish in any order, a job that fails gives an
error in place of a score and takes nothing else down.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

from compressors.policy import ResolvedPolicy
from compressors.resolve import Numerics

from .evidence import Evidence
from .score import Score, Scorer
from .task import Task, TaskSpec, load_task


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

    def close(self) -> None:
        """Release workers; unfinished jobs are dropped. Nothing to do where there are none."""
        return

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _attempt(scorer: Scorer, job: Job) -> Finished:
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

    def completed(self) -> list[Finished]:
        return [_attempt(self.scorer, self._queue.popleft())] if self._queue else []


_scorer: Scorer | None = None  # of a worker process


def _start(spec: TaskSpec, numerics: Numerics, threads: int) -> None:
    global _scorer
    import torch

    torch.set_num_threads(threads)
    _scorer = Scorer.of(load_task(spec), numerics)


def _work(job: Job) -> Finished:
    if _scorer is None:
        return Finished(job, None, "the worker was not started")
    return _attempt(_scorer, job)


class ProcessEvaluator(Evaluator):
    """Worker processes, each with the task rebuilt from its spec.

    When a worker dies, all are started anew and the jobs under way go out again, one at a time until the
    culprit is known.
    """

    def __init__(self, spec: TaskSpec, numerics: Numerics, workers: int, threads: int = 1) -> None:
        self.workers = workers
        self._arguments = (spec, numerics, threads)
        self._pool = self._started()
        self._jobs: dict[Future[Finished], Job] = {}
        self._suspects: deque[Job] = deque()

    def _started(self) -> ProcessPoolExecutor:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.workers, context, initializer=_start, initargs=self._arguments)

    def submit(self, jobs: Sequence[Job]) -> None:
        if self._suspects:
            self._suspects.extend(jobs)
            return
        for job in jobs:
            self._send(job)

    def _send(self, job: Job) -> None:
        try:
            self._jobs[self._pool.submit(_work, job)] = job
        except BrokenProcessPool:  # a worker died since; `completed` hears of it from the jobs under way
            self._suspects.append(job)

    def completed(self) -> list[Finished]:
        while self._jobs or self._suspects:
            alone = bool(self._suspects) and not self._jobs
            if alone:
                self._send(self._suspects.popleft())
            done, _ = wait(self._jobs, return_when=FIRST_COMPLETED)
            found = [f.result() for f in done if f.exception() is None]
            died = [f for f in done if f.exception() is not None]
            if died:
                jobs = [self._jobs.pop(f) for f in list(self._jobs) if f in died or not f.done()]
                self._restart()
                if alone:
                    found += [Finished(job, None, "the worker died of it") for job in jobs]
                else:
                    self._suspects.extendleft(reversed(jobs))
            for f in done:
                self._jobs.pop(f, None)
            if found:
                return found
        return []

    def _restart(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = self._started()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class RayEvaluator(Evaluator):
    """A pool of Ray actors: each builds the task once, then only policies and scores travel."""

    def __init__(
        self, spec: TaskSpec, numerics: Numerics, workers: int, threads: int = 1, address: str | None = None
    ) -> None:
        import ray

        self.workers = workers
        self._ray = ray
        self._own = not ray.is_initialized()
        if self._own:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            logging.getLogger("ray").setLevel(logging.ERROR)  # its notices would stand among ours
            ray.init(
                address=address,
                num_cpus=None if address else workers,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                configure_logging=False,
            )
        actor: Any = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=1)(_RayWorker)
        self._actors: list[Any] = [actor.remote(spec, numerics, threads) for _ in range(workers)]
        self._idle = deque(range(workers))
        self._queue: deque[Job] = deque()
        self._running: dict[Any, tuple[Job, int]] = {}

    def submit(self, jobs: Sequence[Job]) -> None:
        self._queue.extend(jobs)
        self._feed()

    def _feed(self) -> None:
        while self._queue and self._idle:
            job, worker = self._queue.popleft(), self._idle.popleft()
            self._running[self._actors[worker].work.remote(job)] = (job, worker)

    def completed(self) -> list[Finished]:
        if not self._running:
            return []
        done, _ = self._ray.wait(list(self._running), num_returns=1)
        found = []
        for ref in done:
            job, worker = self._running.pop(ref)
            self._idle.append(worker)
            try:
                found.append(self._ray.get(ref))
            except self._ray.exceptions.RayError as problem:
                found.append(Finished(job, None, f"the worker died: {type(problem).__name__}"))
        self._feed()
        return found

    def close(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
        if self._own:
            self._ray.shutdown()


class _RayWorker:
    """What runs in a Ray actor."""

    def __init__(self, spec: TaskSpec, numerics: Numerics, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._scorer = Scorer.of(load_task(spec), numerics)

    def work(self, job: Job) -> Finished:
        return _attempt(self._scorer, job)


def make_evaluator(
    task: Task, scorer: Scorer, workers: int, ray_address: str | None = None, threads: int = 1
) -> Evaluator:
    """The evaluator for a number of workers: this process for one, Ray actors for several."""
    if workers <= 1 and ray_address is None:
        return InlineEvaluator(scorer)
    if task.spec is None:
        return InlineEvaluator(scorer)
    return RayEvaluator(task.spec, scorer.numerics, workers, threads, ray_address)
