"""The benchmark of agents' own time: what it leaves out and what it counts."""

import dataclasses
import importlib.util
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from agents.architecture import Separable
from agents.registry import make_agent
from agents.toys import toy_problem, toy_space

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_agent_time", ROOT / "scripts/bench_agent_time.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def spin(seconds: float) -> None:
    """Use the processor: process time is what is measured."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_time_in_the_problem_is_not_the_agents(bench: ModuleType) -> None:
    meter = bench.Meter()

    def inner() -> int:
        spin(0.02)
        return 1

    timed = meter.timed(inner)

    def outer() -> int:
        spin(0.02)
        return timed() + timed()

    assert meter.timed(outer)() == 2
    assert 0.06 <= meter.inside < 0.12  # calls within a call once, not twice
    assert meter.timed(None) is None


def test_slow_prices_are_told_from_a_slow_agent(bench: ModuleType) -> None:
    plain = toy_problem(toy_space(2), share=0.4, evaluations=20)

    def slow(policies):  # type: ignore[no-untyped-def]
        spin(0.005)
        return plain.costs(policies)

    problem = dataclasses.replace(plain, costs=slow)
    history, metric = bench.history_of(plain, 12)
    assert len({s.policy.digest for s, _ in history}) == 12
    assert all(o.feasible and not plain.budget.why_not(o.costs) for _, o in history)
    found = bench.timed("random", problem, history, metric, 5, 10.0)
    assert found.suggestions == 6
    assert found.whole > found.mean + 5.0
    assert np.isfinite([found.first, found.mean, found.p95, found.whole]).all()
    assert bench.limit_of("gp") == bench.limit_of("hyper") > bench.limit_of("tpe") == 10.0


def test_steps_of_the_relaxed_network_are_the_problems(bench: ModuleType) -> None:
    plain = toy_problem(toy_space(2), share=0.4, evaluations=20)

    class Slow(Separable):
        def step(self, gates, batch):  # type: ignore[no-untyped-def]
            spin(0.001)
            return super().step(gates, batch)

    meter = bench.Meter()
    relaxation = Slow.of(plain)
    slow = Slow(relaxation.losses)
    agent = make_agent("gradient", meter.problem(dataclasses.replace(plain, relaxation=lambda: slow)), 0)
    agent.suggest(1)
    assert meter.inside > 0.001 * 160  # the first training has so many steps
