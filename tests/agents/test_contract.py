import json
import math
import subprocess
import sys

import numpy as np
import pytest

from agents.contract import Budget, Outcome, Problem, Suggestion
from agents.errors import AgentError, BudgetError, HistoryError, UnknownAgentError
from agents.registry import list_agents, make_agent, register
from agents.toys import ToyCosts, toy_outcome, toy_problem, toy_space


def test_violations_are_relative_and_nan_is_infeasible() -> None:
    budget = Budget(max_latency_ms=2.0, max_size_bytes=100.0)
    costs = {
        "latency_ms": np.array([1.0, 2.0, 3.0, np.nan]),
        "size_bytes": np.array([100.0, 101.0, 50.0, 1.0]),
    }
    found = budget.violations(costs)
    np.testing.assert_allclose(found[:3], [[-0.5, 0.0], [0.0, 0.01], [0.5, -0.5]])
    assert np.isposinf(found[3, 0])
    assert budget.feasible(costs).tolist() == [True, False, False, False]
    assert budget.why_not({"latency_ms": 3.0, "size_bytes": 50.0}) == "latency_ms 3 > 2"


def test_risk_judges_the_upper_bound() -> None:
    costs = {"latency_ms": np.array([1.0]), "latency_high_ms": np.array([3.0])}
    assert Budget(max_latency_ms=2.0).feasible(costs).tolist() == [True]
    assert Budget(max_latency_ms=2.0, risk=0.9).feasible(costs).tolist() == [False]
    assert Budget(max_latency_ms=2.0, risk=0.9).limits == {"latency_high_ms": 2.0}


def test_budget_without_limits_allows_everything() -> None:
    budget = Budget(max_drop=1.0)
    assert budget.violations({"latency_ms": np.ones(3)}).shape == (3, 0)
    assert budget.feasible({"latency_ms": np.ones(3)}).all()
    assert budget.to_dict() == {"max_drop": 1.0}


@pytest.mark.parametrize(
    "bad",
    [
        {"max_latency_ms": -1.0},
        {"max_macs": math.nan},
        {"max_drop": -0.5},
        {"risk": 1.5},
        {"max_size_bytes": math.inf},
    ],
)
def test_bad_budgets_name_the_field_and_value(bad: dict[str, float]) -> None:
    with pytest.raises(BudgetError) as caught:
        Budget(**bad)
    ((name, value),) = bad.items()
    assert name in str(caught.value)
    assert str(value) in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_limit_on_a_cost_that_is_not_given() -> None:
    with pytest.raises(BudgetError, match="energy_mj") as caught:
        Budget(max_energy_mj=1.0).violations({"latency_ms": np.ones(1)})
    assert "latency_ms" in str(caught.value)


def test_outcome_and_suggestion_round_trip_through_json() -> None:
    problem = toy_problem(toy_space(1))
    policy = problem.space.resolve(problem.space.uniform(0.5, 8))
    outcome = Outcome(policy, 0.9, {"latency_ms": 1.5}, 0.01, 0.88, 0.92, False, "drop 5 points", True, 0.25)
    assert Outcome.from_dict(json.loads(json.dumps(outcome.to_dict()))) == outcome
    blind = toy_outcome(problem, policy, None)
    assert Outcome.from_dict(json.loads(json.dumps(blind.to_dict()))).accuracy is None
    suggestion = Suggestion(3, (0.1, 1 / 3), policy, "why")
    assert Suggestion.from_dict(json.loads(json.dumps(suggestion.to_dict()))) == suggestion
    with pytest.raises(HistoryError, match="accuracy"):
        Outcome.from_dict({"policy": {}, "costs": {}})


def test_drop_counts_points_and_follows_the_direction() -> None:
    space = toy_space(1)
    up = Problem(space, Budget(max_drop=1.0), ToyCosts(space.structure), 0.9)
    down = Problem(space, Budget(max_drop=1.0), ToyCosts(space.structure), 0.1, higher_is_better=False)
    assert up.drop(0.89) == pytest.approx(1.0)
    assert down.drop(0.12) == pytest.approx(2.0)
    assert up.holds_drop(0.89)
    assert not down.holds_drop(0.12)
    with pytest.raises(BudgetError, match="max_drop"):
        Problem(space, Budget(), ToyCosts(space.structure), 0.9, objective="latency")


def test_registry_names_the_near_match() -> None:
    problem = toy_problem(toy_space(1))
    with pytest.raises(UnknownAgentError, match="Did you mean 'random'") as caught:
        make_agent("randon", problem)
    assert caught.value.exit_code == 2
    assert isinstance(caught.value, AgentError)
    assert {"uniform", "random", "tpe", "gp", "nsga2", "joint"} <= set(list_agents())
    for name in list_agents():
        agent = make_agent(name, problem, 1)
        assert agent.name == name
        assert list_agents()[name] == agent.summary
    with pytest.raises(AgentError, match="registered already"):
        register("random", lambda p, s: make_agent("uniform", p, s), "another")


def test_importing_agents_is_cheap() -> None:
    code = (
        "import sys, agents, agents.contract; "
        "print([m for m in ('torch', 'onnxruntime', 'optuna', 'sklearn', 'scipy', 'moocore') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""
