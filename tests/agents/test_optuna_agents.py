"""What the sampler agents promise beyond the conformance suite."""

import dataclasses

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, IntDistribution
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator, _ParzenEstimatorParameters
from optuna.samplers._tpe.sampler import default_weights

from agents.cmaes import CmaesAgent
from agents.contract import Outcome, Suggestion
from agents.gp import GpAgent
from agents.nsga2 import GENERATION, Nsga2Agent
from agents.optuna_base import BROKEN, OptunaAgent, SamplerAgent, records_of
from agents.parzen import GridParzen
from agents.registry import make_agent
from agents.testing import run, score_of
from agents.toys import toy_outcome, toy_problem, toy_space
from agents.tpe import TpeAgent

PARAMETERS = _ParzenEstimatorParameters(1.0, True, False, default_weights, True)
SAMPLERS = ("tpe", "gp", "nsga2", "cmaes")


def observed(
    sizes: tuple[int, ...], count: int, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, optuna.distributions.BaseDistribution]]:
    """Observations on coordinates of these sizes; those of two or three values are categories."""
    rng = np.random.default_rng(seed)
    space = {
        f"c{i}": CategoricalDistribution(range(n)) if n <= 3 else IntDistribution(0, n - 1)
        for i, n in enumerate(sizes)
    }
    # Without ties: Optuna's unstable sort gives equal observations their bandwidths in any order.
    columns = {
        f"c{i}": rng.integers(0, n, count) if n <= 3 else rng.permutation(n)[:count]
        for i, n in enumerate(sizes)
    }
    return {k: v.astype(float) for k, v in columns.items()}, space


@pytest.mark.parametrize("count", [0, 1, 2, 7, 30])
def test_grid_parzen_is_optunas_estimator(count: int) -> None:
    seen, space = observed((40, 3, 2, 64, 33), count, seed=count)
    rng = np.random.default_rng(1)
    at = {n: rng.integers(0, 2 if n == "c2" else 3, 50).astype(float) for n in space}
    ours, theirs = GridParzen(seen, space, PARAMETERS), _ParzenEstimator(seen, space, PARAMETERS)
    np.testing.assert_allclose(ours.log_pdf(at), theirs.log_pdf(at), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.exp(ours.table).sum(axis=1), 1.0, atol=1e-9)


def test_grid_parzen_samples_what_it_says() -> None:
    seen, space = observed((6, 3, 5), 4, seed=0)
    model = GridParzen(seen, space, PARAMETERS)
    draws = model.sample(np.random.RandomState(0), 40_000)
    for k, (name, size) in enumerate(zip(space, (6, 3, 5), strict=True)):
        expected = np.exp(model.table[k, :size]) @ model.weights
        found = np.bincount(draws[name].astype(int), minlength=size) / 40_000
        np.testing.assert_allclose(found, expected, atol=0.01)
    assert max(draws["c1"]) <= 2


def test_tpe_uses_it_and_optuna_has_the_hook() -> None:
    agent = make_agent("tpe", toy_problem(toy_space(1)), 0)
    assert isinstance(agent, TpeAgent)
    assert agent.sampler(0)._parzen_estimator_cls is GridParzen


@pytest.mark.parametrize("name", SAMPLERS)
def test_outcomes_known_beforehand_are_learned_and_spare_evaluations(name: str) -> None:
    problem = toy_problem(toy_space(3), share=0.3, evaluations=60)
    score = score_of(problem)
    past = run(make_agent("random", problem, 9), problem, 30, score)
    warm = make_agent(name, problem, 0)
    assert isinstance(warm, SamplerAgent)
    warm.replay([(dataclasses.replace(s, number=-1000 - k), o) for k, (s, o) in enumerate(past)])
    cold = [s.origin for s, _ in run(make_agent(name, problem, 0), problem, 10, score)]
    after = run(warm, problem, 4, score)
    assert sum(o.startswith("start") for o in cold) > 4
    assert [s.origin.startswith("start") for s, _ in after] == [True, True, False, False]
    assert len(warm.told) == 34
    if isinstance(warm, OptunaAgent):
        assert len(warm.finished()) == 34


def test_trials_are_built_once_and_the_history_is_bounded() -> None:
    problem = toy_problem(toy_space(2), share=0.3)
    agent = TpeAgent(problem, 0)
    run(agent, problem, 30, score_of(problem))
    first = list(agent.finished())
    agent.history = 12
    more = run(agent, problem, 6, score_of(problem))
    assert len(more) == 6
    assert all(a is b for a, b in zip(first, agent.finished(), strict=False))
    shown = agent.shown()
    assert len(shown) == 12
    best = max(agent.finished(), key=lambda t: t.value)
    assert best in shown
    assert agent.finished()[-1] in shown


def infeasible_after_all(agent: OptunaAgent, count: int) -> tuple[Suggestion, Outcome]:
    """Told among others: the uncompressed network, best metric of all and far over the budget."""
    problem = agent.problem
    run(agent, problem, count, score_of(problem))
    policy = problem.space.resolve(problem.space.dense)
    known = Suggestion(-5, (1.0,) * problem.space.dimension, policy, "known")
    outcome = toy_outcome(problem, policy, 0.99)
    agent.update(known, outcome)
    return known, outcome


def test_outcomes_that_break_limits_are_told_as_such() -> None:
    problem = toy_problem(toy_space(2), share=0.3)
    tpe, gp, nsga2 = TpeAgent(problem, 0), GpAgent(problem, 0), Nsga2Agent(problem, 0)
    for agent in (tpe, gp, nsga2):
        _, outcome = infeasible_after_all(agent, 8)
        assert not outcome.feasible
        trial = agent.finished()[-1]
        excess = outcome.costs["latency_ms"] / problem.budget.limits["latency_ms"] - 1
        assert trial.constraints == {"limits": pytest.approx(excess)}
        assert agent.worth(agent.told[-1]) < BROKEN
        assert (trial in agent.shown()) == (agent is not gp)
    elites = nsga2.sampler(0).select_parent(
        records_of([*nsga2.finished()], nsga2.sampler(0), nsga2.directions), 1
    )
    dense = nsga2.finished()[-1]
    assert dense not in elites[: len(elites) - 1]


def test_nsga2_selects_the_elites_that_optuna_would() -> None:
    problem = toy_problem(toy_space(2), share=0.3, evaluations=36)
    agent = Nsga2Agent(problem, 0)
    run(agent, problem, 5 * agent.population + 2, score_of(problem))
    done, size = agent.finished(), agent.population
    # Optuna's own book-keeping: every trial with its generation, parents selected from the first on.
    labelled = []
    for k, trial in enumerate(done):
        copy = optuna.trial.create_trial(
            params=trial.params,
            distributions=trial.distributions,
            values=trial.values,
            system_attrs={GENERATION: k // size},
        )
        copy.number = trial.number
        copy._trial_id = k
        labelled.append(copy)
    sampler = agent.sampler(0)
    study = records_of(labelled, sampler, agent.directions)
    theirs = sampler.get_parent_population(study, 5)
    shown = agent.shown()
    ours = sampler.select_parent(records_of(shown, sampler, agent.directions), 1)
    assert len(shown) == 2 * size
    assert sorted(t.number for t in ours) == sorted(t.number for t in theirs)


def test_cmaes_begins_at_the_best_known_and_moves_with_what_it_is_told() -> None:
    problem = toy_problem(toy_space(4), share=0.5, evaluations=90)
    agent = CmaesAgent(problem, 0)
    history = run(agent, problem, 12, score_of(problem))
    begun = agent._begin(len(agent.told), 1)
    places = np.stack([agent._place(t) for t in agent.told])
    best = places[np.argsort([-t.gain for t in agent.told], kind="stable")[:3]]
    np.testing.assert_allclose(begun.mean, best.mean(axis=0))
    history += run(agent, problem, 60, score_of(problem))
    assert agent._optimizer is not None
    assert agent._optimizer.generation >= 2
    late, early = ([o.accuracy for _, o in rows] for rows in (history[-15:], history[:15]))
    assert np.median(late) > np.median(early)
    cells = np.floor(agent._place(agent.told[-1]) * agent.cells).astype(int)
    assert (cells == agent.told[-1].indices[agent.open]).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_do_without_a_design(name: str) -> None:
    """Where no uniform policy, however filled, holds several tight limits there is none."""
    problem = toy_problem(toy_space(4), share=0.5, evaluations=90)
    agent = make_agent(name, problem, 0)
    agent.design = []  # type: ignore[attr-defined]
    history = run(agent, problem, 12, score_of(problem))
    assert len(history) == 12
    assert all(o.feasible for _, o in history)


@pytest.mark.parametrize("name", ["tpe", "nsga2", "cmaes"])
def test_samplers_beat_random_at_equal_evaluations(name: str) -> None:
    problem = toy_problem(toy_space(4, 32), share=0.25, evaluations=60)
    score = score_of(problem)
    top = {}
    for who in ("random", name):
        found = [o.accuracy for _, o in run(make_agent(who, problem, 0), problem, 60, score)]
        top[who] = max(a for a in found if a is not None)
    assert top[name] > top["random"]
