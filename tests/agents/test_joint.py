from dataclasses import replace

import numpy as np
import pytest

from agents.embedding import Embedding, loss_tables
from agents.pricing import Pricer
from agents.repair import PRIOR_LOSS
from agents.surrogate import Warp, expected_area
from agents.toys import toy_problem, toy_space


def test_measured_losses_are_the_unit_and_the_prior_fills_what_is_missing() -> None:
    problem = toy_problem(toy_space(2), share=0.3)
    choices = problem.space.choices
    given = {c.name: 7.0 * np.linspace(1.0, 0.0, len(c.values)) ** 2 for c in choices if c.kind == "keep"}
    given["keep:g0"] = np.full(len(given["keep:g0"]), np.nan)
    tables = dict(
        zip((c.name for c in choices), loss_tables(replace(problem, losses=lambda: given)), strict=True)
    )
    np.testing.assert_array_equal(tables["keep:g1"], given["keep:g1"])
    assert tables["keep:g0"][0] == pytest.approx(7.0)  # prior 1, in the unit of what was measured
    assert tables["removed:block0"][0] == pytest.approx(7.0 * PRIOR_LOSS["removed"])
    assert all(t[-1] == 0 and (t[:-1] > 0).all() for t in tables.values())


def test_a_removed_block_counts_once() -> None:
    problem = toy_problem(toy_space(2), share=0.3)
    embedding, top = Embedding(problem), Pricer(problem).top
    names = [c.name for c in problem.space.choices]
    removed, both = top.copy(), top.copy()
    removed[names.index("removed:block0")] = both[names.index("removed:block0")] = 0
    both[names.index("keep:g0")] = both[names.index("rank:b0a")] = 0
    points = embedding.at(np.stack([top, removed, both]))
    np.testing.assert_array_equal(points[1], points[2])
    assert (points[0] == 0).all()
    summed = embedding.summed(np.stack([top, removed, both]))
    np.testing.assert_allclose((points**2).sum(1) * embedding.scale, summed)
    both[names.index("keep:g1")] = 0
    assert embedding.summed(both[None])[0] > summed[1]


def test_expected_area_of_a_certain_candidate_is_the_growth_of_the_hypervolume() -> None:
    gain = np.array([0.9, 0.8, 0.7, 0.2])
    back = Warp(gain)
    steps = (np.array([0.0, 1.0, 3.0]), np.array([0.1, 0.7, 0.9]))  # reached from 1 ms and 3 ms on; up to 4
    value, latency = np.array([0.8, 0.95, 0.6]), np.array([2.0, 3.5, 2.0])
    area = expected_area(back.warp(value), np.full(3, 1e-9), latency, steps, 4.0, back)
    np.testing.assert_allclose(area, [0.1, 0.5 * 0.05, 0.0], atol=1e-7)
    unsure = expected_area(back.warp(value), np.full(3, 0.5), latency, steps, 4.0, back)
    assert (unsure > area).all()
    np.testing.assert_allclose(back.unwarp(back.warp(gain)), gain, atol=1e-12)
