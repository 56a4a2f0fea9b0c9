"""Conformance suite for evaluators: `check_evaluator(make, jobs, bad)` raises at the first breach.

Anyone who writes an evaluator can run it::

    from search.evaluate_testing import check_evaluator
    check_evaluator(lambda: MyEvaluator(spec, numerics), scorer, policies, bad)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from compressors.policy import ResolvedPolicy

from .errors import TailorbirdError
from .evaluate import Evaluator, Finished, Job
from .score import Scorer


class EvaluatorConformanceError(TailorbirdError):
    """An evaluator that breaks its contract; the message says where."""


def check_evaluator(
    make: Callable[[], Evaluator],
    reference: Scorer,
    policies: Sequence[ResolvedPolicy],
    bad: ResolvedPolicy,
) -> None:
    """Run every check on one evaluator that ``make`` starts.

    ``reference`` scores at least three ``policies`` in this process, ``bad`` is one it cannot score. Numbers
    must be equal to the last bit: the same policy, machine and thread count give the same network.
    """
    with make() as evaluator:
        _idle(evaluator)
        _scores(evaluator, reference, policies)
        _bars(evaluator, reference, policies)
        _errors(evaluator, policies, bad)
        _idle(evaluator)
        evaluator.submit(
            [Job(100 + i, p) for i, p in enumerate(policies)]
        )  # closed while these are under way


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise EvaluatorConformanceError(what)


def collected(evaluator: Evaluator, count: int) -> dict[int, Finished]:
    """The ends of ``count`` jobs by number, in whatever order they come."""
    found: dict[int, Finished] = {}
    while len(found) < count:
        finished = evaluator.completed()
        _need(bool(finished), f"completed() returned nothing with {count - len(found)} jobs under way")
        for f in finished:
            _need(f.job.number not in found, f"job {f.job.number} came back twice")
            found[f.job.number] = f
    return found


def _idle(evaluator: Evaluator) -> None:
    _need(evaluator.workers >= 1, "workers must be at least 1")
    _need(evaluator.completed() == [], "completed() must return [] when nothing is under way")


def _scores(evaluator: Evaluator, reference: Scorer, policies: Sequence[ResolvedPolicy]) -> None:
    """Jobs sent in two parts all come back, with the scores of this process."""
    jobs = [Job(i, p) for i, p in enumerate(policies)]
    evaluator.submit(jobs[:1])
    evaluator.submit(jobs[1:])
    for number, finished in collected(evaluator, len(jobs)).items():
        _same(finished, reference, jobs[number])


def _bars(evaluator: Evaluator, reference: Scorer, policies: Sequence[ResolvedPolicy]) -> None:
    """An early end is the same everywhere, whatever was scored before."""
    bar = 1.0 if reference.task.metric.higher_is_better else 0.0
    jobs = [Job(i, p, bar) for i, p in reversed(list(enumerate(policies)))]
    evaluator.submit(jobs)
    for finished in collected(evaluator, len(jobs)).values():
        _same(finished, reference, finished.job)


def _same(finished: Finished, reference: Scorer, job: Job) -> None:
    _need(finished.job == job, f"job {job.number} came back as another: {finished.job}")
    _need(finished.score is not None, f"job {job.number} has no score: {finished.error}")
    expected = reference.score(job.policy, job.bar)
    if finished.score is not None:
        mine, theirs = expected.to_dict(), finished.score.to_dict()
        mine.pop("seconds")
        theirs.pop("seconds")
        _need(mine == theirs, f"job {job.number} scored {theirs} instead of {mine}")


def _errors(evaluator: Evaluator, policies: Sequence[ResolvedPolicy], bad: ResolvedPolicy) -> None:
    """A policy that cannot be scored gives an error and takes nothing else down."""
    evaluator.submit([Job(0, policies[0]), Job(1, bad), Job(2, policies[1])])
    found = collected(evaluator, 3)
    _need(found[1].score is None and bool(found[1].error), "a policy that fails must come back with an error")
    _need("\n" not in found[1].error, "an error is one line")
    for number in (0, 2):
        _need(
            found[number].score is not None, f"job {number} failed with its neighbour: {found[number].error}"
        )
        _need(not found[number].error, f"job {number} has both a score and an error")


__all__ = ["EvaluatorConformanceError", "check_evaluator", "collected"]
