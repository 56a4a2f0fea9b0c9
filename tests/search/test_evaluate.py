"""Evaluators: one process, two processes and two Ray actors score alike and survive the same losses."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from compressors.policy import ResolvedPolicy
from search.evaluate import Evaluator, InlineEvaluator, Job, ProcessEvaluator, RayEvaluator, make_evaluator
from search.evaluate_testing import EvaluatorConformanceError, check_evaluator, collected
from search.score import Scorer
from search.task import TaskSpec, load_task
from tests.search.test_score import ABILITIES, policies_of

SPEC = TaskSpec(name=f"{Path(__file__).parent / 'scoring_task.py'}:make_task")
Make = Callable[[], Evaluator]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.of(load_task(SPEC), ABILITIES.numerics)


@pytest.fixture
def kill_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Workers started from here on die once when this file exists."""
    file = tmp_path / "kill"
    monkeypatch.setenv("TAILORBIRD_TEST_KILL", str(file))
    yield file
    file.unlink(missing_ok=True)


def processes() -> Evaluator:
    return ProcessEvaluator(SPEC, ABILITIES.numerics, 2)


def actors() -> Evaluator:
    return RayEvaluator(SPEC, ABILITIES.numerics, 2)


def bad_of(policy: ResolvedPolicy) -> ResolvedPolicy:
    """A policy that nobody can score."""
    return replace(policy, ranges="no-such-method")


def test_one_process_conforms(scorer: Scorer) -> None:
    policies = policies_of(scorer)
    check_evaluator(lambda: InlineEvaluator(scorer), scorer, policies, bad_of(policies[3]))


def test_two_processes_conform(scorer: Scorer) -> None:
    policies = policies_of(scorer)
    check_evaluator(processes, scorer, policies, bad_of(policies[3]))


@pytest.mark.slow
def test_two_ray_actors_conform(scorer: Scorer) -> None:
    policies = policies_of(scorer)
    check_evaluator(actors, scorer, policies, bad_of(policies[3]))


@pytest.mark.parametrize("make", [processes, pytest.param(actors, marks=pytest.mark.slow)])
def test_a_killed_worker_loses_no_job(make: Make, scorer: Scorer, kill_file: Path) -> None:
    policies = policies_of(scorer)
    expected = [scorer.score(p).value for p in policies]
    with make() as evaluator:
        evaluator.submit([Job(0, policies[0])])
        first = collected(evaluator, 1)
        kill_file.touch()
        evaluator.submit([Job(i, p) for i, p in enumerate(policies)])
        found = collected(evaluator, len(policies))
        assert not kill_file.exists()  # somebody died
        evaluator.submit([Job(9, policies[1])])
        later = collected(evaluator, 1)
    scores = [found[i].score for i in range(len(policies))]
    assert [None if s is None else s.value for s in scores] == expected
    assert first[0].score is not None
    assert later[9].score is not None


def test_two_processes_name_the_job_that_kills_them(scorer: Scorer, tmp_path: Path) -> None:
    text = (Path(__file__).parent / "scoring_task.py").read_text()
    fatal = tmp_path / "fatal_task.py"
    fatal.write_text(text.replace("trigger and Path(trigger).exists()", "float(outputs[0].std()) == 0.0"))
    fatal.write_text(fatal.read_text().replace("Path(trigger).unlink()", "pass"))
    policies = policies_of(scorer)
    with ProcessEvaluator(TaskSpec(name=f"{fatal}:make_task"), ABILITIES.numerics, 2) as evaluator:
        evaluator.submit([Job(i, p) for i, p in enumerate(policies)])
        found = collected(evaluator, len(policies))
    assert sorted(found) == list(range(len(policies)))
    assert all(f.score is not None or "died" in f.error for f in found.values())


def test_the_suite_notices_a_wrong_evaluator(scorer: Scorer) -> None:
    class Forgetful(InlineEvaluator):
        def submit(self, jobs: object) -> None:
            super().submit(list(jobs)[:1])  # type: ignore[call-overload]

    policies = policies_of(scorer)
    with pytest.raises(EvaluatorConformanceError, match="jobs under way"):
        check_evaluator(lambda: Forgetful(scorer), scorer, policies, bad_of(policies[3]))
    other = Scorer(scorer.task, scorer.network, replace(ABILITIES.numerics, weight_reserve=2))
    with pytest.raises(EvaluatorConformanceError, match="scored"):
        check_evaluator(lambda: InlineEvaluator(other), scorer, policies, bad_of(policies[3]))
    assert EvaluatorConformanceError.exit_code == 1


def test_the_evaluator_for_a_number_of_workers(scorer: Scorer) -> None:
    alone = make_evaluator(scorer.task, scorer, 1)
    nowhere_else = make_evaluator(replace(scorer.task, spec=None), scorer, 4)
    assert isinstance(alone, InlineEvaluator)
    assert isinstance(nowhere_else, InlineEvaluator)
    assert alone.workers == nowhere_else.workers == 1
    assert os.environ.get("TAILORBIRD_TEST_KILL") is None
