import numpy as np

from agents.embedding import points
from agents.loss_table import loss_table, separable_loss
from agents.pricing import Pricer
from agents.surrogate import Warp, expected_area
from agents.toys import toy_problem, toy_space


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
