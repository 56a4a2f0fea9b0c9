import dataclasses
import os
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest

from agents.contract import Budget, Problem
from agents.cost_model import cost_table, options, singles
from agents.loss_table import LossTable, loss_table, separable_loss, shape_of
from agents.pair_model import refine
from agents.pricing import Pricer
from agents.registry import make_agent
from agents.solver import allocate, improve, ladder_of_solutions, neighbours
from agents.testing import check_agent, run
from agents.toys import ToyAccuracy, toy_losses, toy_outcome, toy_problem, toy_space
from compressors.space import PolicySpace


def drawn_losses(space: PolicySpace, seed: int) -> dict[str, np.ndarray]:
    """Random losses that fall towards the last value, of very different sizes by coordinate."""
    rng = np.random.default_rng(seed)
    return {
        c.name: np.r_[np.sort(rng.lognormal(0, 1, len(c.values) - 1))[::-1] * rng.lognormal(0, 1), 0.0]
        for c in space.choices
    }


def grid(space: PolicySpace) -> np.ndarray:
    sizes = tuple(int(c) for c in space.cardinalities)
    return np.indices(sizes, dtype=np.int64).reshape(len(sizes), -1).T


def test_conformance() -> None:
    check_agent(lambda problem, seed: make_agent("exact", problem, seed))


SCRIPT = """
from agents.registry import make_agent
from agents.testing import run, score_of
from agents.toys import ToyAccuracy, toy_problem, toy_space
space = toy_space(2)
problem = toy_problem(space, share=0.3, evaluations=16, measured=ToyAccuracy(space.structure))
history = run(make_agent("exact", problem, 5), problem, 12, score_of(problem))
print(*(s.policy.digest for s, _ in history))
"""


def test_the_same_suggestions_in_fresh_processes() -> None:
    texts = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1]
    assert len(set(texts[0].split())) == 12


# -- losses


def test_measured_losses_stand_and_gaps_are_filled_on_the_shape_of_the_prior() -> None:
    space = toy_space(2, 32)
    problem = toy_problem(space)
    given = drawn_losses(space, 0)
    i = next(k for k, c in enumerate(space.choices) if c.kind == "keep")
    name, n = space.choices[i].name, len(space.choices[i].values)
    given[name] = np.full(n, np.nan)
    given[name][0], given[name][n // 2] = 4.0, 1.0
    del given[space.choices[0].name]
    table = loss_table(problem, given)
    row = table.loss[i, :n]
    assert row[0] == 4.0
    assert row[n // 2] == 1.0
    assert row[-1] == 0.0
    assert (np.diff(row) < 0).all()
    assert np.isposinf(table.loss[i, n:]).all()
    assert table.measured[i, :n].sum() == 3
    assert 0 < table.loss[0, 0] < np.inf
    assert not table.measured[0].any()


def test_without_losses_the_prior_is_spread_convexly() -> None:
    problem = toy_problem(toy_space(1, 32, bits=((8, 8), (4, 8))))
    table = loss_table(problem)
    for i, c in enumerate(problem.space.choices):
        row = table.loss[i, : len(c.values)]
        assert row[-1] == 0.0
        assert (np.diff(row) < 0).all()
        assert (np.diff(row, 2) >= -1e-12).all()
        np.testing.assert_allclose(row / row[0], shape_of(c))


def test_what_is_inside_a_removed_block_does_not_count() -> None:
    space = toy_space(2, 32, bits=((8, 8), (4, 8)))
    table = loss_table(toy_problem(space), drawn_losses(space, 1))
    names = [c.name for c in space.choices]
    rng = np.random.default_rng(0)
    rows = np.stack([rng.integers(0, space.cardinalities) for _ in range(50)])
    inside = {"keep:g0", "rank:b0a", "rank:b0b", "weight_bits:b0a", "weight_bits:b0b", "act_bits:h0"}
    block = names.index("removed:block0")
    rows[:, block] = 0
    assert {names[j] for j in np.flatnonzero(table.hides[block])} == inside
    other = rows.copy()
    for j in (names.index(n) for n in inside):
        other[:, j] = rng.integers(0, space.cardinalities[j], size=len(rows))
    np.testing.assert_allclose(separable_loss(table, rows), separable_loss(table, other))
    other[:, names.index("keep:trunk")] = (rows[:, names.index("keep:trunk")] + 1) % 8
    assert (separable_loss(table, rows) != separable_loss(table, other)).all()
    pricer = Pricer(toy_problem(space))
    for a, b in zip(rows[:5], rows[:5] * ~table.hides[block] + 0, strict=True):
        assert pricer.policy(a) == pricer.policy(b)


def test_toy_losses_are_those_of_the_metric() -> None:
    space = toy_space(2, 32, bits=((8, 8), (4, 8)))
    accuracy = ToyAccuracy(space.structure, seed=3)
    losses = toy_losses(space, accuracy)
    dense = accuracy(space.resolve(space.dense))
    for i, c in enumerate(space.choices):
        assert losses[c.name].shape == (len(c.values),)
        assert losses[c.name][-1] == 0.0
        at = space.cardinalities - 1
        at[i] = 0
        if c.kind in ("keep", "removed"):
            changed = accuracy(space.resolve(space.at(at)))
            assert losses[c.name][0] == pytest.approx(np.log((dense - 0.1) / (changed - 0.1)))
    # Bits that a single change of the space cannot bring about are measured all the same.
    assert losses["weight_bits:b0a"][0] > losses["weight_bits:b0a"][1] > 0


# -- costs around a policy


def test_single_changes_are_priced_exactly_also_inside_removed_blocks() -> None:
    space = toy_space(2, 32)
    problem = toy_problem(space, conversion=0.05)
    pricer, table = Pricer(problem), loss_table(problem)
    at = pricer.quantised
    at[0] = 0  # block0 is gone
    around = singles(pricer, table, at, ("latency_ms", "size_bytes"))
    there = at.copy()
    there[0] = 1
    for i in range(len(at)):
        ref = there if table.hides[0, i] else at
        for v in range(int(space.cardinalities[i])):
            row = ref.copy()
            row[i] = v
            costs = cost_table(pricer, np.stack([row, ref]), around.names)
            np.testing.assert_allclose(around.delta[i, v], costs[0] - costs[1], atol=1e-12)
    items = options(around, table, space.cardinalities)
    covered = np.concatenate([o.columns for o in items])
    assert sorted(covered.tolist()) == list(range(len(at)))


# -- allocation under a black box


@pytest.mark.parametrize("methods", [("prune", "depth", "quantize"), ("prune", "depth", "factorize")])
@pytest.mark.parametrize("conversion", [0.0, 0.03])
def test_small_spaces_are_solved_to_the_optimum(methods: tuple[str, ...], conversion: float) -> None:
    space = toy_space(1, 16, methods=methods)
    problem = toy_problem(space, conversion=conversion)
    pricer, rows = Pricer(problem), grid(space)
    cost = pricer.latency(rows)
    for seed in range(3):
        table = loss_table(problem, drawn_losses(space, seed))
        loss = separable_loss(table, rows)
        for share in (0.7, 0.4, 0.25):
            budget = Budget(max_latency_ms=float(share * cost[-1]))
            plain = allocate(pricer, table, budget)
            held = cost <= share * cost[-1]
            assert held.any()
            assert plain is not None
            assert separable_loss(table, plain[None])[0] <= 1.1 * loss[held].min()
            found = refine(pricer, table, budget, plain)
            assert pricer.feasible(found[None], budget)[0]
            assert separable_loss(table, found[None])[0] == pytest.approx(loss[held].min(), abs=1e-9)


def test_nothing_feasible_is_none_and_no_limit_changes_nothing() -> None:
    problem = toy_problem(toy_space(1))
    pricer, table = Pricer(problem), loss_table(problem)
    assert allocate(pricer, table, Budget(max_latency_ms=1e-9)) is None
    free = allocate(pricer, table, Budget())
    assert free is not None
    assert (free == pricer.top).all()
    assert list(ladder_of_solutions(pricer, table, Budget(max_latency_ms=1e-9))) == []


@pytest.mark.parametrize("limits", ["latency", "two", "risk"])
def test_neither_pairs_by_milp_nor_exchanges_find_better(limits: str) -> None:
    space = toy_space(3, 32, bits=((8, 8), (4, 8)))
    base = toy_problem(space, share=0.2, conversion=0.03)
    top = Pricer(base).price(space.cardinalities[None] - 1)
    budget = {
        "latency": base.budget,
        "two": dataclasses.replace(base.budget, max_size_bytes=float(0.15 * top["size_bytes"][0])),
        "risk": dataclasses.replace(base.budget, risk=0.9),
    }[limits]
    problem = dataclasses.replace(base, budget=budget)
    pricer, table = Pricer(problem), loss_table(problem, drawn_losses(space, 5))
    found = allocate(pricer, table, budget)
    assert found is not None
    loss = separable_loss(table, found[None])[0]
    assert pricer.feasible(found[None])[0]
    for other in (refine(pricer, table, budget, found), improve(pricer, table, budget, found)):
        assert pricer.feasible(other[None])[0]
        assert separable_loss(table, other[None])[0] == pytest.approx(loss, rel=0.01)
    # From a worse start the pairs do find something.
    start = next(iter(ladder_of_solutions(pricer, table, dataclasses.replace(budget, max_latency_ms=0.05))))
    better = refine(pricer, table, budget, start.indices)
    assert pricer.feasible(better[None])[0]
    assert separable_loss(table, better[None])[0] < start.loss


def test_neighbours_are_feasible_near_and_by_rising_loss() -> None:
    problem = toy_problem(toy_space(2, 32), share=0.3)
    pricer, table = Pricer(problem), loss_table(problem, drawn_losses(problem.space, 2))
    found = allocate(pricer, table, problem.budget)
    assert found is not None
    near = [row for row, _ in zip(neighbours(pricer, table, problem.budget, found), range(60), strict=False)]
    assert len(near) == 60
    assert pricer.feasible(np.stack(near)).all()
    assert all(1 <= (row != found).sum() <= 2 for row in near)
    losses = separable_loss(table, np.stack(near))
    assert (np.diff(losses) >= -1e-12).all()
    assert losses[0] >= separable_loss(table, found[None])[0] - 1e-12


def test_a_ladder_tightens_and_each_level_is_within_its_limit() -> None:
    problem = toy_problem(toy_space(4, 32), share=0.5)
    pricer, table = Pricer(problem), loss_table(problem, drawn_losses(problem.space, 4))
    levels = list(ladder_of_solutions(pricer, table, levels=6))
    assert len(levels) == 6
    for above, below in pairwise(levels):
        assert below.latency < above.latency
        assert below.loss > above.loss
    for s in levels:
        assert pricer.feasible(s.indices[None], s.budget)[0]
        assert s.loss == pytest.approx(separable_loss(table, s.indices[None])[0])


class Skewed:
    """Estimates that are too low for the policies an optimum is made of: few bits look 30 % quicker."""

    def __init__(self, problem: Problem, by: float) -> None:
        self.problem, self.by = problem, by

    def __call__(self, policies):  # type: ignore[no-untyped-def]
        costs = dict(self.problem.costs(policies))
        few = np.array([np.mean([b <= 8 for b in p.weight_bits.values()]) for p in policies])
        costs["latency_ms"] = costs["latency_ms"] * (1.0 - self.by * few)
        return costs


@pytest.mark.parametrize("by", [-0.3, 0.01, 0.3])
def test_where_estimates_are_off_the_exact_costs_decide(by: float) -> None:
    exact = toy_problem(toy_space(3, 32), share=0.3)
    problem = dataclasses.replace(exact, estimates=Skewed(exact, by))
    table = loss_table(problem, drawn_losses(problem.space, 0))
    best = allocate(Pricer(exact), table, exact.budget)
    assert best is not None
    for s in ladder_of_solutions(Pricer(problem), table, levels=3):
        assert not exact.budget.why_not(Pricer(exact).exact(s.indices))
    first = next(ladder_of_solutions(Pricer(problem), table))
    loss = separable_loss(table, np.stack([first.indices, best]))
    assert loss[0] <= 1.05 * loss[1]


# -- the agent


def test_with_measured_losses_the_first_suggestion_is_near_the_best_of_many() -> None:
    space = toy_space(4, 32)
    accuracy = ToyAccuracy(space.structure, seed=1)
    problem = toy_problem(space, share=0.25, evaluations=40, measured=accuracy)
    first = make_agent("exact", problem, 0).suggest(1)[0]
    blind = dataclasses.replace(problem, losses=None)
    history = run(make_agent("random", blind, 0), blind, 40, lambda s: accuracy(s.policy))
    assert accuracy(first.policy) > max(o.accuracy for _, o in history if o.accuracy is not None)


def test_least_latency_closes_in_on_the_drop() -> None:
    space = toy_space(3, 32)
    accuracy = ToyAccuracy(space.structure, seed=2)
    problem = toy_problem(
        space, budget=Budget(max_drop=3.0), objective="latency", evaluations=30, measured=accuracy
    )
    agent = make_agent("exact", problem, 0)
    base = problem.costs([space.resolve(space.dense)])["latency_ms"][0]
    quickest = []
    for _ in range(30):
        s = agent.suggest(1)[0]
        outcome = toy_outcome(problem, s.policy, accuracy(s.policy))
        agent.update(s, outcome)
        quickest.append(outcome.costs["latency_ms"] if outcome.feasible else np.inf)
    assert min(quickest[:8]) < 0.5 * base
    assert min(quickest) <= min(quickest[:8])


def test_a_suggestion_is_quick_after_the_start() -> None:
    space = toy_space(4, 32)
    problem = toy_problem(space, share=0.3, evaluations=200, measured=ToyAccuracy(space.structure))
    agent = make_agent("exact", problem, 0)
    for s in agent.suggest(40):  # the start: the front's levels are among these
        agent.update(s, toy_outcome(problem, s.policy, 0.5))
    start = time.process_time()
    for _ in range(100):
        (s,) = agent.suggest(1)
        agent.update(s, toy_outcome(problem, s.policy, 0.5))
    assert (time.process_time() - start) / 100 < 0.05  # 10 ms on an idle machine


def table_of(loss: list[list[float]]) -> LossTable:
    d = len(loss)
    return LossTable(
        np.array(loss), np.zeros((d, d), dtype=bool), np.full(d, -1), np.ones((d, len(loss[0])), bool)
    )


def test_tempering_and_scaling_keep_order_and_gaps() -> None:
    table = table_of([[4.0, 1.0, 0.0], [0.25, 0.0, np.inf]])
    tempered = table.tempered(0.5)
    np.testing.assert_allclose(tempered.loss, [[4.0, 2.0, 0.0], [1.0, 0.0, np.inf]])
    np.testing.assert_allclose(table.scaled(np.array([2.0, 4.0])).loss, [[8.0, 2.0, 0.0], [1.0, 0.0, np.inf]])
