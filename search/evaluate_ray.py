"""A pool of Ray actors that evaluate: what scores lies in the object store, policies and scores travel.

There is no barrier: a worker that finishes is sent the next job at once, and holds one more in its queue, so
that it does not wait while the agent thinks. A worker that dies is replaced; the job it was at is tried once
more, by a worker that holds no other, and if that one dies too it is an error. So is a job that takes longer
than it may. No other job is lost by either.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .cluster import ClusterError, connect, disconnect
from .evaluate import Evaluator, Examiner, Finished, Job, attempt
from .task import TaskSpec
from .travel import Packed, own_modules, pack, unpack

#: Jobs that a worker holds at most: the one it is at and those behind it.
DEPTH = 2
#: How often a job is begun before it is held to be what kills workers.
TRIES = 2
#: Seconds without any worker, and failed starts in a row, after which it is given up.
NOBODY_AFTER, FAILED_STARTS = 180.0, 3
#: Seconds between two looks at jobs that have a time limit or workers that start.
LOOK_EVERY = 1.0


@dataclass(frozen=True)
class Place:
    """Where a worker runs: its process and the cluster's node (hex)."""

    pid: int
    node: str


class EvaluationWorker:
    """What runs in an actor."""

    def __init__(self, packed: Packed, spec: TaskSpec | None, threads: int) -> None:
        from .memory import keep_freed_memory

        keep_freed_memory()
        own_modules(spec)  # the task's file may add methods
        self._examiner = unpack(packed)
        if "torch" in sys.modules:  # what needs none shall not load it
            import scipy.linalg  # noqa: F401  its library can be limited once it is loaded
            import torch
            from threadpoolctl import threadpool_limits

            torch.set_num_threads(threads)
            threadpool_limits(threads, "blas")

    def place(self) -> Place:
        """Answers once the worker is ready."""
        import os

        import ray

        return Place(os.getpid(), ray.get_runtime_context().get_node_id())

    def work(self, job: Job) -> Finished:
        """One job's end."""
        return attempt(self._examiner, job)


@dataclass
class Worker:
    """An actor as the driver sees it. ``jobs``: what it holds, the one it is at first."""

    actor: Any
    starting: Any
    place: Place | None = None
    jobs: deque[tuple[Any, Job]] = field(default_factory=deque)
    since: float = 0.0

    @property
    def awaited(self) -> Any:
        """What is heard of it next; None while it has nothing to do."""
        return self.starting if self.place is None else self.jobs[0][0] if self.jobs else None


class RayEvaluator(Evaluator):
    """Scores policies in ``workers`` actors.

    ``examiner`` is packed into the object store, with the functions of its task's own file (``spec``).
    ``timeout``: seconds that one evaluation may take. ``resources``: what a worker asks the cluster for, by
    Ray's names ("CPU", "GPU", or custom ones). ``tell`` hears of workers that are lost.
    """

    def __init__(
        self,
        examiner: Examiner,
        workers: int,
        *,
        spec: TaskSpec | None = None,
        address: str | None = None,
        threads: int = 1,
        timeout: float | None = None,
        resources: Mapping[str, float] | None = None,
        depth: int = DEPTH,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        packed = pack(examiner, own_modules(spec))
        self.count = workers
        self.workers = workers * depth
        self.packed_bytes = packed.size_bytes
        self._depth, self._timeout, self._tell = depth, timeout, tell
        self._ray = connect(address, cpus=workers)
        self._closed = False
        wanted = dict(resources or {"CPU": 1.0})
        options = {"num_cpus": wanted.pop("CPU", 0.0), "num_gpus": wanted.pop("GPU", 0.0)}
        self._actor = self._ray.remote(
            **options, resources=wanted or None, max_restarts=0, max_task_retries=0
        )(EvaluationWorker)
        self._arguments = (self._ray.put(packed), spec, threads)
        self._queue: deque[Job] = deque()
        self._tries: dict[int, int] = {}
        self._failed_starts = 0
        self._heard = time.monotonic()
        self._workers = [self._started() for _ in range(workers)]

    @property
    def places(self) -> tuple[Place, ...]:
        """Of the workers that are ready."""
        return tuple(w.place for w in self._workers if w.place is not None)

    def wait_ready(self) -> None:
        """Until every worker has started."""
        while any(w.place is None for w in self._workers):
            self._hear()

    def submit(self, jobs: Sequence[Job]) -> None:
        self._queue.extend(jobs)
        self._feed()

    def completed(self) -> list[Finished]:
        while self._queue or any(w.jobs for w in self._workers):
            found = self._hear()
            if found:
                return found
        return []

    def withdraw(self) -> list[Job]:
        found = list(self._queue)
        self._queue.clear()
        return found

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for w in self._workers:
                self._ray.kill(w.actor)
            disconnect()

    # -- workers

    def _started(self) -> Worker:
        actor = self._actor.remote(*self._arguments)
        return Worker(actor, actor.place.remote())

    def _feed(self) -> None:
        """Jobs to ready workers, to the ones that hold least first; a second try to one that holds none."""
        for held in range(self._depth):
            for w in self._workers:
                if not self._queue:
                    return
                if w.place is None or len(w.jobs) != held or self._is_suspect(w):
                    continue
                if held and self._queue[0].number in self._tries:
                    return
                job = self._queue.popleft()
                if not w.jobs:
                    w.since = time.monotonic()
                w.jobs.append((w.actor.work.remote(job), job))

    def _is_suspect(self, worker: Worker) -> bool:
        return any(job.number in self._tries for _, job in worker.jobs)

    def _hear(self) -> list[Finished]:
        """What happened since, or within a moment; waits for the first news of it."""
        awaited = {w.awaited: w for w in self._workers if w.awaited is not None}
        limited = self._timeout is not None or len(self.places) < self.count
        refs = list(awaited)
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=LOOK_EVERY if limited else None)
        if len(refs) > 1 and ready:
            ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0)
        found = [f for ref in ready if (f := self._heard_of(awaited[ref], ref)) is not None]
        found += self._late()
        self._check_alive()
        self._feed()
        return found

    def _heard_of(self, worker: Worker, ref: Any) -> Finished | None:
        errors = self._ray.exceptions
        try:
            value = self._ray.get(ref)
        except errors.RayTaskError as problem:  # the answer could not be sent
            if worker.place is None:
                self._start_failed(worker, problem)
                return None
            return self._end(worker, f"{type(problem).__name__}: {_line(problem)}")
        except errors.RayError as problem:
            if worker.place is None:
                self._start_failed(worker, problem)
                return None
            return self._died(worker, problem)
        self._heard = time.monotonic()
        if isinstance(value, Place):
            worker.place, self._failed_starts = value, 0
            return None
        worker.jobs.popleft()
        worker.since = time.monotonic()
        self._tries.pop(value.job.number, None)
        return value  # type: ignore[no-any-return]

    def _end(self, worker: Worker, error: str) -> Finished:
        _, job = worker.jobs.popleft()
        worker.since = time.monotonic()
        self._tries.pop(job.number, None)
        return Finished(job, None, error[:300])

    def _died(self, worker: Worker, problem: Exception) -> Finished | None:
        """Replace a dead worker; its first job is tried again, or is at its end."""
        lost = self._is_lost(worker)
        self._tell("a node is lost" if lost else f"a worker died, another takes its place: {_cause(problem)}")
        job = worker.jobs[0][1]
        tries = self._tries.get(job.number, 0) + (0 if lost else 1)
        if tries >= TRIES:
            found = self._end(worker, f"the worker died of it, {tries} times: {_cause(problem)}")
            self._replace(worker)
            return found
        self._replace(worker)
        if tries:
            self._tries[job.number] = tries
        return None

    def _replace(self, worker: Worker) -> None:
        self._queue.extendleft(job for _, job in reversed(worker.jobs))
        self._workers[self._workers.index(worker)] = self._started()

    def _is_lost(self, worker: Worker) -> bool:
        """Whether the worker's node is gone, which is no job's fault."""
        node = worker.place.node if worker.place is not None else ""
        return any(n["NodeID"] == node and not n["Alive"] for n in self._ray.nodes())

    def _late(self) -> list[Finished]:
        """Ends of the jobs whose time is up; their workers are killed and replaced."""
        found = []
        now = time.monotonic()
        for w in [w for w in self._workers if self._timeout is not None and w.jobs]:
            if self._timeout is not None and now - w.since > self._timeout:
                self._ray.kill(w.actor)
                found.append(self._end(w, f"it took longer than {self._timeout:g} s (--evaluation-timeout)"))
                self._replace(w)
        return found

    def _start_failed(self, worker: Worker, problem: Exception) -> None:
        self._failed_starts += 1
        if self._failed_starts >= FAILED_STARTS:
            raise ClusterError(
                f"workers do not start: {_cause(problem)}.",
                "Every node needs this version of Tailorbird and the packages that the task uses.",
            ) from problem
        self._workers[self._workers.index(worker)] = self._started()

    def _check_alive(self) -> None:
        if self.places or time.monotonic() - self._heard < NOBODY_AFTER:
            return
        free = self._ray.available_resources()
        raise ClusterError(
            f"no worker has started within {NOBODY_AFTER:g} s; free in the cluster: "
            f"{free.get('CPU', 0.0):g} CPUs, {free.get('GPU', 0.0):g} GPUs.",
            "Wait until it is free, or take another with --ray-address.",
        )


def _line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[-1]


def _cause(problem: Exception) -> str:
    """Why an actor died, in a few words."""
    text = str(problem)
    if "memory" in text.lower() and "oom" in text.lower():
        return "out of memory"
    return f"{type(problem).__name__}: {_line(problem)}"[:200]


__all__ = ["DEPTH", "Place", "RayEvaluator"]
