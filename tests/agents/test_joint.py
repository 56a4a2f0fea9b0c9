import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from agents.contract import Costs
from agents.embedding import points
from agents.loss_table import loss_table, separable_loss
from agents.pricing import Pricer
from agents.registry import make_agent
from agents.solver import ladder_of_solutions
from agents.surrogate import Warp, expected_area
from agents.testing import run, score_of
from agents.toys import ToyAccuracy, toy_problem, toy_space
from agents.variants import Stream, around
from compressors.policy import ResolvedPolicy


def test_a_removed_block_counts_once_and_lengths_are_sums_of_amplitudes() -> None:
    problem = toy_problem(toy_space(2), share=0.3)
    losses, top = loss_table(problem), Pricer(problem).top
    names = [c.name for c in problem.space.choices]
    removed, both = top.copy(), top.copy()
    removed[names.index("removed:block0")] = both[names.index("removed:block0")] = 0
    both[names.index("keep:g0")] = both[names.index("rank:b0a")] = 0
    rows = np.stack([top, removed, both])
    at = points(losses, rows)
    np.testing.assert_array_equal(at[1], at[2])
    assert (at[0] == 0).all()
    amplitude = losses.tempered(0.5)
    largest = float(losses.loss[np.isfinite(losses.loss)].max())
    np.testing.assert_allclose((at**2).sum(1) * largest, separable_loss(amplitude, rows))
    both[names.index("keep:g1")] = 0
    assert (points(losses, both[None]) ** 2).sum() > (at[1] ** 2).sum()


def test_expected_area_of_a_certain_candidate_is_the_growth_of_the_hypervolume() -> None:
    gain = np.array([0.9, 0.8, 0.7, 0.2])
    back = Warp(gain)
    steps = (np.array([0.0, 1.0, 3.0]), np.array([0.1, 0.7, 0.9]))  # reached from 1 ms and 3 ms on; up to 4
    value, latency = np.array([0.8, 0.95, 0.6]), np.array([2.0, 3.5, 2.0])
    area = expected_area(back.warp(value), np.full(3, 1e-9), latency, steps, 4.0, back)
    np.testing.assert_allclose(area, [0.1, 0.5 * 0.05, 0.0], atol=1e-7)
    unsure = expected_area(back.warp(value), np.full(3, 0.5), latency, steps, 4.0, back)
    assert unsure[2] > area[2]  # what falls short for sure may still not, once it is unsure
    assert (unsure[:2] > 0).all()
    np.testing.assert_allclose(back.unwarp(back.warp(gain)), gain, atol=1e-12)


@pytest.mark.parametrize("by", [-0.3, 0.2])
def test_the_budget_is_used_where_estimates_are_off(by: float) -> None:
    space = toy_space(3, 32)
    accuracy = ToyAccuracy(space.structure)
    exact = toy_problem(space, share=0.3, evaluations=30, measured=accuracy)

    def skewed(policies: Sequence[ResolvedPolicy]) -> Costs:
        """Policies of few bits look slower (``by`` below 0) or quicker than they are."""
        few = np.array([np.mean([b <= 8 for b in p.weight_bits.values()]) for p in policies])
        costs = dict(exact.costs(policies))
        return {**costs, "latency_ms": costs["latency_ms"] * (1.0 - by * few)}

    problem = dataclasses.replace(exact, estimates=skewed)
    history = run(make_agent("joint", problem, 0), problem, 30, score_of(exact))
    limit = exact.budget.max_latency_ms
    assert limit is not None
    used = {
        words: [o.costs["latency_ms"] / limit for s, o in history if words in s.origin]
        for words in ("losses perturbed by", "at the budget")
    }
    assert min(len(u) for u in used.values()) >= 3
    assert all(np.median(u) > 0.9 for u in used.values())
    assert all(max(u) <= 1 for u in used.values())


def test_a_stream_gives_each_policy_once_and_what_is_known_not_at_all() -> None:
    problem = toy_problem(toy_space(2, 32), share=0.3)
    pricer, losses = Pricer(problem), loss_table(problem)
    first = next(ladder_of_solutions(pricer, losses))
    stream = Stream(pricer, around(first, losses, 0), lambda x: bool(pricer.feasible(x[None])[0]))
    known: set[str] = set()
    for _ in range(12):
        ahead, found = stream.pick(known, 1), stream.pick(known)
        assert found is not None
        assert ahead is not None
        assert pricer.feasible(found[0][None])[0]
        digest = pricer.policy(found[0]).digest
        assert digest not in known
        assert pricer.policy(ahead[0]).digest not in {digest, *known}
        known.add(digest)
    ended = Stream(pricer, iter([(first.indices, "one")] * 3), lambda x: True)
    assert ended.pick(known | {pricer.policy(first.indices).digest}) is None
    assert Stream(pricer, iter([(first.indices, "one")]), lambda x: False).pick(()) is None
