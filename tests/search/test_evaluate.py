"""Evaluation in this process, and the suite that every evaluator passes."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from compressors.policy import ResolvedPolicy
from search.evaluate import InlineEvaluator, Job, make_evaluator
from search.evaluate_testing import EvaluatorConformanceError, check_evaluator
from search.score import Scorer
from search.task import TaskSpec, load_task
from tests.search.test_score import ABILITIES, policies_of

SPEC = TaskSpec(name=f"{Path(__file__).parent / 'scoring_task.py'}:make_task")


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.of(load_task(SPEC), ABILITIES.numerics)


def bad_of(policy: ResolvedPolicy) -> ResolvedPolicy:
    """A policy that nobody can score."""
    return replace(policy, ranges="no-such-method")


def test_one_process_conforms(scorer: Scorer) -> None:
    policies = policies_of(scorer)
    check_evaluator(lambda: InlineEvaluator(scorer), scorer, policies, bad_of(policies[3]))


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


def test_one_worker_is_this_process_and_needs_no_ray(scorer: Scorer) -> None:
    alone = make_evaluator(scorer.task, scorer, 1)
    assert isinstance(alone, InlineEvaluator)
    assert alone.workers == 1
    text = "import sys, search.engine, search.evaluate; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_jobs_that_nobody_began_are_taken_back(scorer: Scorer) -> None:
    policies = policies_of(scorer)
    evaluator = InlineEvaluator(scorer)
    evaluator.submit([Job(i, p) for i, p in enumerate(policies)])
    first = evaluator.completed()
    assert [f.job.number for f in first] == [0]
    assert [j.number for j in evaluator.withdraw()] == list(range(1, len(policies)))
    assert evaluator.completed() == []
