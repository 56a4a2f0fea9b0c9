"""The evolutionary search and the predictors it lives on."""

import dataclasses

import numpy as np
import pytest

from agents.contract import Budget
from agents.evolution import EvolutionAgent
from agents.evolve import evolve
from agents.predictors import AccuracyPredictor, CostTables, Features, Regression
from agents.pricing import Pricer
from agents.random_ import RandomAgent
from agents.repair import random_feasible
from agents.testing import run, score_of
from agents.toys import ToyAccuracy, toy_outcome, toy_problem, toy_space


def test_regression_finds_the_weights_and_knows_its_doubt() -> None:
    rng = np.random.default_rng(0)
    weights = np.r_[3.0, -2.0, np.zeros(20)]
    f = rng.normal(size=(60, 22))
    group = np.repeat([0, 1], [2, 20])
    grid = [(a, b, s) for a in (0.3, 1.0) for b in (0.0, 1.0) for s in (0.03, 0.3)]
    model = Regression(f, f @ weights + 5.0 + 0.1 * rng.normal(size=60), group, grid)
    far = rng.normal(size=(200, 22))
    np.testing.assert_allclose(model.predict(far), far @ weights + 5.0, atol=0.3)
    assert model.grid[1] == 0.0  # the evidence switches off what explains nothing
    assert model.grid[2] == 0.03
    draws = model.sampled(far, model.samples(rng, 300))
    np.testing.assert_allclose(draws.mean(axis=1), model.predict(far), atol=0.1)
    few = Regression(f[:4], f[:4] @ weights, group, [(1.0, 1.0, 0.3)])
    assert few.sampled(far, few.samples(rng, 300)).std(axis=1).mean() > 5 * draws.std(axis=1).mean()


def test_evidence_is_that_of_the_marginal_gaussian() -> None:
    rng = np.random.default_rng(3)
    f, y = rng.normal(size=(9, 4)), rng.normal(size=9)
    group = np.array([0, 0, 1, 1])
    grid = [(0.5, 1.0, 0.4), (1.0, 0.0, 0.4), (2.0, 0.5, 1.5)]
    model = Regression(f, y, group, grid)
    centred, t = f - f.mean(axis=0), (y - y.mean()) / y.std()
    found, expected = [], []
    for *deviations, noise in grid:
        s = np.array(deviations)[group]
        cov = centred * s**2 @ centred.T + noise**2 * np.eye(9)
        _, logdet = np.linalg.slogdet(cov)
        expected.append(-4.5 * np.log(t @ np.linalg.solve(cov, t) / 9) - 0.5 * logdet)
        found.append(model._evidence(s, noise))
    np.testing.assert_allclose(np.diff(found), np.diff(expected), atol=1e-8)


@pytest.mark.parametrize("measured", [False, True])
def test_accuracy_is_predicted_from_dozens_of_outcomes(measured: bool) -> None:
    space = toy_space(5, 64)
    accuracy = ToyAccuracy(space.structure, seed=2)
    problem = toy_problem(space, share=0.3, measured=accuracy if measured else None)
    pricer, rng = Pricer(problem), np.random.default_rng(0)
    rows = np.stack([random_feasible(pricer, rng) for _ in range(140)])
    y = np.array([accuracy(pricer.policy(r)) for r in rows])
    predictor = AccuracyPredictor(Features(pricer, 0), rows[:70], y[:70])
    found = predictor(predictor.features(rows[70:]))
    assert np.corrcoef(found, y[70:])[0, 1] > (0.85 if measured else 0.6)
    assert predictor.marginal(rows[0]).shape == (space.dimension,)


def test_tables_price_policies_near_those_they_were_fitted_to() -> None:
    problem = toy_problem(toy_space(5, 64), share=0.3, conversion=0.02)
    pricer, rng = Pricer(problem), np.random.default_rng(0)
    rows = np.stack([random_feasible(pricer, rng) for _ in range(40)])
    near = rows[rng.integers(len(rows), size=500)]
    drawn = rng.integers(0, problem.space.cardinalities, size=near.shape)
    near = np.where(rng.random(near.shape) < 0.1, drawn, near)
    features, latency = Features(pricer, 0), pricer.latency(near)
    tables = CostTables(features, near[:400], {"latency_ms": latency[:400]})
    found = tables(features(near[400:]))["latency_ms"]
    assert np.median(np.abs(found / latency[400:] - 1)) < 0.2
    assert np.corrcoef(found, latency[400:])[0, 1] > 0.93
    assert (found > 0).all()


def test_what_stands_inside_a_removed_block_does_not_count() -> None:
    problem = toy_problem(toy_space(2))
    features = Features(Pricer(problem), 0)
    names = [c.name for c in problem.space.choices]
    gone = problem.space.cardinalities - 1
    gone[names.index("removed:block0")] = 0
    other = gone.copy()
    other[names.index("keep:g0")] = 0
    np.testing.assert_array_equal(features(gone[None]), features(other[None]))
    gone[names.index("removed:block0")] = other[names.index("removed:block0")] = 1
    assert (features(gone[None]) != features(other[None])).any()


def test_evolution_finds_the_best_of_a_knapsack() -> None:
    rng = np.random.default_rng(0)
    worth, weight = rng.uniform(1, 2, 30), rng.uniform(1, 2, 30)
    cardinalities = np.full(30, 2, dtype=np.int64)
    # Fractional bound of the knapsack: nothing feasible can be worth more.
    order = np.argsort(-worth / weight)
    filled = np.cumsum(weight[order]) <= 20.0
    bound = worth[order][filled].sum() + worth[order][filled.sum()]
    start = rng.integers(0, 2, size=(100, 30))
    found = evolve(start, lambda x: (x @ worth, x @ weight - 20.0), cardinalities, rng, 200, keep=50)
    assert found.predictions > 25_000
    assert (found.indices @ weight <= 20.0).all()
    assert len(np.unique(found.indices, axis=0)) == len(found.indices) == 50
    np.testing.assert_allclose(found.score, found.indices @ worth)
    assert (np.diff(found.score) <= 0).all()
    assert found.score[0] > 0.97 * bound


def test_tens_of_thousands_of_predictions_few_prices_and_few_evaluations() -> None:
    problem = toy_problem(toy_space(4, 32), share=0.25, evaluations=60)
    score = score_of(problem)
    agent = EvolutionAgent(problem, 0)
    history = run(agent, problem, 60, score)
    batches = {s.origin.rsplit("predicted from ", 1)[1] for s, _ in history if "predicted from" in s.origin}
    assert len(batches) >= 3
    assert agent.predictions > 20_000 * len(batches)
    assert agent.pricer.priced < agent.predictions / 20
    fronts = [o.costs["latency_ms"] for s, o in history if "front at" in s.origin]
    assert np.median(fronts) < 0.95 * (problem.budget.max_latency_ms or 0)
    random = run(RandomAgent(problem, 0), problem, 60, score)
    best, plain = (max(o.accuracy for _, o in h if o.accuracy is not None) for h in (history, random))
    assert best > plain


def test_a_run_is_a_function_of_the_outcomes_up_to_its_boundary() -> None:
    problem = toy_problem(toy_space(3), share=0.3, evaluations=30)
    score = score_of(problem)
    whole = EvolutionAgent(problem, 4)
    history = run(whole, problem, 17, score)
    other = EvolutionAgent(problem, 4)
    # Later outcomes differ: what they change begins with the next run.
    cut = whole._current().boundary
    changed = [
        (s, dataclasses.replace(o, accuracy=0.3) if k >= cut else o) for k, (s, o) in enumerate(history)
    ]
    other.replay(changed)
    np.testing.assert_array_equal(whole._current().main, other._current().main)
    early = EvolutionAgent(problem, 4)
    early.replay(
        [(s, dataclasses.replace(o, accuracy=0.3) if k == 0 else o) for k, (s, o) in enumerate(history)]
    )
    assert not np.array_equal(whole._current().main, early._current().main)


def test_least_latency_keeps_to_the_drop() -> None:
    space = toy_space(4, 32)
    accuracy = ToyAccuracy(space.structure, seed=1)
    problem = toy_problem(
        space, budget=Budget(max_drop=3.0), objective="latency", evaluations=50, measured=accuracy
    )
    agent = EvolutionAgent(problem, 0)
    held = []
    for _ in range(50):
        for s in agent.suggest(1):
            outcome = toy_outcome(problem, s.policy, accuracy(s.policy))
            agent.update(s, outcome)
            if outcome.feasible:
                held.append((s.number, outcome.costs["latency_ms"]))
    start = min(ms for k, ms in held if k < agent.first)
    assert min(ms for _, ms in held) < start
