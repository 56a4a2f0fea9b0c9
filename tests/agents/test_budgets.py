"""Budgets hold after rounding, by prices that share nothing with those the agents saw."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from agents.contract import Budget, Suggestion
from agents.registry import list_agents
from agents.testing import toy_problem

ROOT = Path(__file__).resolve().parents[2]
#: Agents that take seconds a problem.
SLOW = {"gp", "ddpg", "ddpg-accuracy", "haq"}
QUICK = [name for name in list_agents() if name not in SLOW]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_budgets", ROOT / "scripts/bench_budgets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_no_agent_breaks_a_limit_of_a_toy(bench: ModuleType) -> None:
    counts = bench.run(4 * len(QUICK), first=0, toys=1.0, names=QUICK)
    assert [v for c in counts.values() for v in c.violations] == []
    assert all(c.suggestions > c.problems for c in counts.values())
    used = np.concatenate([c.filled for c in counts.values()])
    assert (used <= 1.0).all()
    assert np.median(used) > 0.9  # limits that nobody comes near would prove nothing


@pytest.mark.slow
@pytest.mark.parametrize("name", list_agents())
def test_no_agent_breaks_a_limit_of_a_real_target(bench: ModuleType, name: str) -> None:
    counts = bench.run(6, first=500, toys=0.1, names=[name])
    assert counts[name].violations == []
    assert counts[name].suggestions > 0


def test_problems_differ_and_repeat(bench: ModuleType) -> None:
    problems = [bench.problem_of(k, bench.world_of(k, 1.0)) for k in range(60)]
    again = bench.problem_of(7, bench.world_of(7, 1.0))
    assert again.budget == problems[7].budget
    assert {len(p.budget.limits) for p in problems} >= {1, 2, 3}
    assert len({p.budget for p in problems}) == 60
    assert any(p.budget.risk is not None for p in problems)
    assert {p.objective for p in problems} == {"accuracy", "latency"}
    assert 0 < sum(p.estimates is None for p in problems) < 60
    assert 0 < sum(p.losses is None for p in problems) < 60


def test_the_judge_sees_what_is_wrong(bench: ModuleType) -> None:
    world = bench.toy_world(1)
    space = world.space
    dense, point = space.resolve(space.dense), (1.0,) * space.dimension
    base = float(world.costs([dense])["latency_ms"][0])
    tight = toy_problem(space, budget=Budget(max_latency_ms=0.5 * base))
    why, share = bench.check(world, tight, Suggestion(0, point, dense, "dense"))
    assert "latency_ms" in why
    assert share == pytest.approx(2.0)
    smallest = (0.0,) * space.dimension
    why, _ = bench.check(world, tight, Suggestion(0, smallest, dense, "another policy"))
    assert "decode" in why
    foreign = bench.toy_world(3).space
    other = foreign.resolve(foreign.dense)
    why, _ = bench.check(world, tight, Suggestion(0, point, other, "of another network"))
    assert "not of the space" in why
    assert bench.check(world, toy_problem(space, budget=Budget()), Suggestion(0, point, dense, "")) == (
        "",
        0.0,
    )
