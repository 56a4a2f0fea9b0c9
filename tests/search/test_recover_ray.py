"""Recovery on Ray Tune: as good as in one process, and what is lost when workers or drivers die: nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from compressors.policy import ResolvedPolicy
from compressors.space import PolicySpace
from hw_profiles.target import load_target
from search import cluster
from search.abilities import abilities_of
from search.recover_ray import NAME, Plan, recover_all
from search.score import Scorer, interval, score_compressed
from search.task import Task
from tests.search.recovery_task import deadly, make_task

pytestmark = pytest.mark.slow  # a cluster takes ten seconds
ABILITIES = abilities_of(load_target("fpga-bitfusion"))


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    cluster.connect(cpus=2)
    yield
    cluster.disconnect()


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.of(make_task(), ABILITIES.numerics)


def policies_of(scorer: Scorer, *kept: float) -> tuple[ResolvedPolicy, ...]:
    """One policy a share of channels, weights and activations of four bits."""
    space = PolicySpace(scorer.network.structure, ABILITIES)
    return tuple(space.resolve(space.uniform(k, 4, 4)) for k in kept)


def value(task: Task, compressed: object) -> float:
    return interval(score_compressed(compressed, task.validation, task.metric))[0]  # type: ignore[arg-type]


def test_two_candidates_get_better_at_once(
    scorer: Scorer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task = scorer.task
    plan = Plan(policies_of(scorer, 0.5, 0.375), 4.0, halving=False)
    told: list[str] = []
    found = recover_all(
        task, scorer.network, scorer.numerics, plan, tmp_path / "place", workers=2, tell=told.append
    )
    assert told == []
    for policy, one in zip(plan.policies, found, strict=True):
        assert one is not None
        assert one.compressed.policy == policy
        assert one.after > one.before
        assert one.after == pytest.approx(value(task, one.compressed))
        assert one.steps > 20
        assert one.seconds >= 4.0
    assert capfd.readouterr().out == ""
    assert not list((tmp_path / "place" / NAME).rglob("*.pt"))


def test_a_worker_that_dies_goes_on_from_its_checkpoint(scorer: Scorer, tmp_path: Path) -> None:
    once = tmp_path / "once"
    once.touch()
    task = replace(scorer.task, metric=deadly(once, 9))
    plan = Plan(policies_of(scorer, 0.5), 4.0)
    told: list[str] = []
    (found,) = recover_all(
        task, scorer.network, scorer.numerics, plan, tmp_path / "place", workers=2, tell=told.append
    )
    assert not once.exists()  # somebody died
    assert len(told) == 1
    assert "a worker died" in told[0]
    assert int(told[0].split("from ")[1].split()[0]) >= 20
    assert found is not None
    assert found.after > found.before


def test_what_falls_behind_is_given_up(scorer: Scorer, tmp_path: Path) -> None:
    plan = Plan(policies_of(scorer, 0.75, 0.5, 0.125), 6.0)
    told: list[str] = []
    found = recover_all(
        scorer.task, scorer.network, scorer.numerics, plan, tmp_path / "place", workers=2, tell=told.append
    )
    assert any("trial 3/3 is behind the others" in t for t in told)
    assert found[0] is not None
    assert found[2] is not None
    assert found[2].steps < found[0].steps
    assert found[2].after >= found[2].before


def test_ctrl_c_ends_the_trials_and_a_second_run_goes_on_with_them(scorer: Scorer, tmp_path: Path) -> None:
    plan = Plan(policies_of(scorer, 0.5, 0.375), 8.0, halving=False)
    place, stop, told = tmp_path / "place", threading.Event(), []
    threading.Timer(4.0, stop.set).start()
    arguments = (scorer.task, scorer.network, scorer.numerics, plan, place)
    first = recover_all(*arguments, workers=2, stop=stop, tell=told.append)
    assert told == []
    second = recover_all(*arguments, workers=2, again=True, tell=told.append)
    assert told == []
    for before, after in zip(first, second, strict=True):
        assert before is not None
        assert after is not None
        assert after.steps > before.steps
        assert after.after >= before.after
        assert after.before == before.before
    third = recover_all(*arguments, workers=2, again=True, tell=told.append)
    assert told == ["2 of 2 trials had ended before"]
    assert [x and x.steps for x in third] == [x and x.steps for x in second]
