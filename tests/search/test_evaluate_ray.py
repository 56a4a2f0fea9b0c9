"""Evaluation in Ray actors: the same scores as here, and what is lost when workers are lost: nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import search.evaluate_ray as pool
from search import cluster
from search.cluster import ClusterError
from search.evaluate import Job
from search.evaluate_ray import RayEvaluator
from search.evaluate_testing import check_evaluator, collected
from search.score import Scorer
from search.task import TaskSpec, load_task
from tests.search import scoring_task
from tests.search.test_score import ABILITIES, policies_of
from tests.search.worker_tasks import ToyExaminer, Unloadable, toy_policies

SPEC = TaskSpec(name=f"{Path(__file__).parent / 'scoring_task.py'}:make_task")
pytestmark = pytest.mark.slow  # a cluster takes ten seconds


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    cluster.connect(cpus=4)
    yield
    cluster.disconnect()


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.of(load_task(SPEC), ABILITIES.numerics)


def test_two_actors_conform(scorer: Scorer) -> None:
    policies = policies_of(scorer)
    bad = replace(policies[3], ranges="no-such-method")
    check_evaluator(
        lambda: RayEvaluator(scorer.for_workers(), 2, spec=scorer.task.spec), scorer, policies, bad
    )


def test_a_task_that_only_lives_here_travels_in_parts() -> None:
    task = scoring_task.make_task()
    here = Scorer.of(task, ABILITIES.numerics)
    policies = policies_of(here)[:3]
    with RayEvaluator(here.for_workers(), 1, spec=None) as evaluator:
        evaluator.submit([Job(i, p, 0.9) for i, p in enumerate(policies)])
        found = collected(evaluator, len(policies))
    for i, p in enumerate(policies):
        score = found[i].score
        assert score is not None
        assert score.value == here.score(p, 0.9).value


def test_a_killed_worker_loses_no_job(tmp_path: Path) -> None:
    policies = toy_policies(9)
    file = tmp_path / "once"
    file.touch()
    told: list[str] = []
    examiner = ToyExaminer(0.01, {policies[2].digest: "dies once"}, file)
    with RayEvaluator(examiner, 2, tell=told.append) as evaluator:
        evaluator.submit([Job(i, p) for i, p in enumerate(policies)])
        found = collected(evaluator, len(policies))
    assert not file.exists()  # somebody died
    assert len(told) == 1
    assert all(f.score is not None for f in found.values())


def test_jobs_that_kill_hang_or_eat_all_memory_are_errors_and_the_others_are_scored() -> None:
    policies = toy_policies(12)
    examiner = ToyExaminer(
        0.01, {policies[1].digest: "dies", policies[4].digest: "hangs", policies[7].digest: "no memory"}
    )
    with RayEvaluator(examiner, 2, timeout=3.0) as evaluator:
        evaluator.submit([Job(i, p) for i, p in enumerate(policies)])
        found = collected(evaluator, len(policies))
        assert evaluator.completed() == []
    assert "the worker died of it" in found[1].error
    assert "longer than 3 s" in found[4].error
    assert "Memory" in found[7].error
    for number in set(found) - {1, 4, 7}:
        score = found[number].score
        assert score is not None
        assert score.value == examiner.examined(policies[number])[0].value


def test_jobs_behind_the_workers_are_taken_back() -> None:
    policies = toy_policies(9)
    with RayEvaluator(ToyExaminer(0.2), 2) as evaluator:
        evaluator.submit([Job(i, p) for i, p in enumerate(policies)])
        first = evaluator.completed()
        back = evaluator.withdraw()
        rest = collected(evaluator, len(policies) - len(back) - len(first))
    numbers = [f.job.number for f in first] + [j.number for j in back] + list(rest)
    assert len(back) >= len(policies) - 5
    assert sorted(numbers) == list(range(len(policies)))


def test_workers_that_cannot_start_are_given_up() -> None:
    with RayEvaluator(Unloadable(), 1) as evaluator:  # type: ignore[arg-type]
        evaluator.submit([Job(0, toy_policies(1)[0])])
        with pytest.raises(ClusterError, match=r"do not start.*lacks what it needs"):
            evaluator.completed()
    assert ClusterError.exit_code == 3


def test_what_the_cluster_does_not_have_is_not_waited_for_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "NOBODY_AFTER", 2.0)
    with RayEvaluator(ToyExaminer(), 1, resources={"CPU": 1, "GPU": 1}) as evaluator:
        evaluator.submit([Job(0, toy_policies(1)[0])])
        with pytest.raises(ClusterError, match=r"no worker has started within 2 s.* 0 GPUs"):
            evaluator.completed()
