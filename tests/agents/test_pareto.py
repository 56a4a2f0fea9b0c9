import dataclasses

import numpy as np
import pytest

from agents.contract import Budget, Outcome
from agents.pareto import best, front, front_mask, hypervolume
from agents.toys import toy_outcome, toy_problem, toy_space


def brute(values: np.ndarray, maximise: tuple[bool, ...]) -> list[bool]:
    sign = np.where(maximise, 1, -1)
    v = values * sign
    found = []
    for i in range(len(v)):
        dominated = any((v[j] >= v[i]).all() and (v[j] > v[i]).any() for j in range(len(v)))
        copy = any((v[j] == v[i]).all() for j in range(i))
        found.append(not dominated and not copy)
    return found


@pytest.mark.parametrize("m", [1, 2, 3])
def test_front_mask_equals_brute_force(m: int) -> None:
    rng = np.random.default_rng(m)
    for n in (0, 1, 7, 60):
        values = rng.integers(0, 6, size=(n, m)).astype(float)  # few values: ties and copies
        for maximise in ((True,) * m, (False,) * m, (True, False, True)[:m]):
            assert front_mask(values, maximise).tolist() == brute(values, maximise)


def test_nan_rows_are_never_on_the_front() -> None:
    values = np.array([[np.nan, 0.0], [0.5, 1.0], [0.4, np.nan]])
    assert front_mask(values, (True, False)).tolist() == [False, True, False]
    assert front_mask(values[:1], (True, False)).sum() == 0


def test_hypervolume_of_rectangles() -> None:
    values = np.array([[0.9, 2.0], [0.5, 1.0], [0.4, 1.5]])
    # (0.9, 2) covers 0.9 x 2 up to (0, 4); (0.5, 1) adds 0.5 x 1.
    assert hypervolume(values, (0.0, 4.0), (True, False)) == pytest.approx(0.9 * 2 + 0.5 * 1)
    assert hypervolume(values, (1.0, 4.0), (True, False)) == 0.0
    assert hypervolume(values[:0], (0.0, 4.0), (True, False)) == 0.0


def outcomes() -> tuple[list[Outcome], Budget]:
    problem = toy_problem(toy_space(1))
    space = problem.space
    found = [
        toy_outcome(problem, space.resolve(space.uniform(r, 8)), a)
        for r, a in ((1.0, 0.95), (0.75, 0.93), (0.5, 0.93), (0.25, 0.7))
    ]
    return found, problem.budget


def test_best_breaks_ties_by_latency_and_skips_what_does_not_count() -> None:
    found, _ = outcomes()
    problem = toy_problem(toy_space(1), budget=Budget())
    assert best(found[1:], problem) == 1
    assert best([dataclasses.replace(found[0], stopped_early=True), found[3]], problem) == 1
    assert best([dataclasses.replace(found[0], feasible=False)], problem) is None
    assert best([dataclasses.replace(found[0], accuracy=None)], problem) is None
    fast = toy_problem(toy_space(1), budget=Budget(max_drop=2.5), objective="latency")
    assert best(found, fast) == 2


def test_front_is_ordered_and_shows_what_the_drop_buys() -> None:
    found, _ = outcomes()
    problem = toy_problem(toy_space(1), budget=Budget(max_drop=2.5), objective="latency")
    judged = [dataclasses.replace(o, feasible=problem.holds_drop(o.accuracy or 0.0)) for o in found]
    assert front(judged, problem) == [0, 2, 3]
    assert front([], problem) == []
    limit = Budget(max_latency_ms=found[2].costs["latency_ms"])
    tight = toy_problem(toy_space(1), budget=limit)
    judged = [dataclasses.replace(o, feasible=not limit.why_not(o.costs)) for o in found]
    assert front(judged, tight) == [2, 3]
