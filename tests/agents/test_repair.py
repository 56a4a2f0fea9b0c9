import itertools

import numpy as np
import pytest

from agents.contract import Budget
from agents.errors import NothingFeasibleError
from agents.ladder import coarse_to_fine, ladder, nearest_first
from agents.pricing import Pricer
from agents.repair import expected_losses, random_feasible, repair, require_feasible, smallest_reachable
from agents.toys import toy_problem, toy_space


@pytest.mark.parametrize("share", [0.8, 0.3, 0.05])
@pytest.mark.parametrize("conversion", [0.0, 0.05])
def test_repaired_points_hold_the_budget(share: float, conversion: float) -> None:
    problem = toy_problem(toy_space(3, 32), share=share, conversion=conversion)
    pricer, rng = Pricer(problem), np.random.default_rng(0)
    limit = problem.budget.max_latency_ms
    for _ in range(15):
        point = random_feasible(pricer, rng)
        assert point is not None
        cost = problem.costs([problem.space.resolve(problem.space.at(point))])["latency_ms"][0]
        assert limit is not None
        assert cost <= limit
        assert (point >= 0).all()
        assert (point <= pricer.top).all()


def test_a_feasible_point_is_left_alone_without_refill() -> None:
    problem = toy_problem(toy_space(2), share=0.5)
    pricer = Pricer(problem)
    small = np.zeros_like(pricer.top)
    kept = repair(pricer, small, refill=False)
    assert kept is not None
    assert (kept == small).all()
    grown = repair(pricer, small)
    assert grown is not None
    assert (grown >= small).all()
    assert grown.sum() > small.sum()


def test_growing_leaves_no_single_channel_step_that_fits() -> None:
    problem = toy_problem(toy_space(2, methods=("prune",)), share=0.5)
    pricer = Pricer(problem)
    point = repair(pricer, pricer.top)
    assert point is not None
    for i in np.flatnonzero(point < pricer.top):
        raised = point.copy()
        raised[i] += 1
        assert not pricer.feasible(raised[None])[0]
    assert pricer.feasible(point[None])[0]


def test_frozen_coordinates_stay() -> None:
    problem = toy_problem(toy_space(2), share=0.5)
    pricer = Pricer(problem)
    frozen = ~np.isin(pricer.kinds, ("keep",))
    start = pricer.quantised
    point = repair(
        pricer,
        start,
        budget=Budget(max_latency_ms=float(pricer.latency(start[None])[0]) * 0.7),
        frozen=frozen,
    )
    assert point is not None
    assert (point[frozen] == start[frozen]).all()
    assert (point[~frozen] <= start[~frozen]).all()


def test_frozen_coordinates_stay_even_where_only_they_could_help() -> None:
    problem = toy_problem(toy_space(2), share=0.05)
    pricer = Pricer(problem)
    frozen = pricer.kinds != "keep"
    assert repair(pricer, pricer.top) is not None
    point = repair(pricer, pricer.top, frozen=frozen)
    assert point is None or (point[frozen] == pricer.top[frozen]).all()


def test_smallest_reachable_equals_brute_force_on_a_small_space() -> None:
    space = toy_space(1, 16, methods=("prune", "quantize", "depth"))
    for conversion in (0.0, 0.05):
        problem = toy_problem(space, conversion=conversion)
        points = itertools.product(*(range(c) for c in space.cardinalities))
        every = problem.costs([space.resolve(space.at(p)) for p in points])["latency_ms"]
        costs, policy = smallest_reachable(problem)
        assert costs["latency_ms"] == pytest.approx(every.min())
        assert problem.costs([policy])["latency_ms"][0] == pytest.approx(every.min())
        assert smallest_reachable(problem)[1] == policy


def test_nothing_feasible_says_what_can_be_reached() -> None:
    problem = toy_problem(toy_space(1), budget=Budget(max_latency_ms=1e-6))
    with pytest.raises(NothingFeasibleError) as caught:
        require_feasible(problem)
    assert caught.value.exit_code == 4
    reachable = smallest_reachable(problem)[0]["latency_ms"]
    assert f"{reachable:.4g}" in str(caught.value)
    require_feasible(toy_problem(toy_space(1), budget=Budget(max_latency_ms=reachable)))


def test_measured_losses_order_the_repair() -> None:
    space = toy_space(2, methods=("prune",))
    names = [c.name for c in space.choices]
    given = {c.name: np.linspace(1.0, 0.0, len(c.values)) for c in space.choices}
    given["keep:g0"] = 50.0 * given["keep:g0"]
    base = toy_problem(space, share=0.6)
    problem = type(base)(space, base.budget, base.costs, 0.95, losses=lambda: given)
    point = repair(Pricer(problem), Pricer(problem).top)
    assert point is not None
    kept = dict(zip(names, point / Pricer(problem).top, strict=True))
    assert kept["keep:g0"] == 1.0
    assert kept["keep:g1"] < 1.0
    assert expected_losses(problem)[names.index("keep:g0")] == 50.0


def test_ladder_orders() -> None:
    problem = toy_problem(toy_space(2), share=0.4)
    rungs = ladder(Pricer(problem))
    near = nearest_first(rungs)
    assert all(r.excess <= 0 for r in near)
    assert near[0].excess == max(r.excess for r in near if r.precision == near[0].precision)
    even = coarse_to_fine(rungs)
    assert even[0].latency == max(r.latency for r in near)
    assert sorted(r.latency for r in even) == sorted(r.latency for r in near)


def test_small_spaces_are_listed_exactly() -> None:
    space = toy_space(1, 8, methods=("prune", "depth"))
    problem = toy_problem(space, share=0.5)
    pricer = Pricer(problem)
    listed = pricer.feasible_points(4096)
    every = np.array(list(itertools.product(*(range(c) for c in space.cardinalities))))
    assert len(listed) == int(pricer.feasible(every).sum())
    assert len(pricer.feasible_points(2)) == 0
    assert pricer.feasible(listed).all()
