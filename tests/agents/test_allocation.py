import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.allocation import Item, front, nondominated, solve, tied, total
from agents.allocation_milp import Pair, pair_total, solve_milp
from agents.errors import AgentError


def random_items(rng: np.random.Generator, width: int, most: int = 6) -> tuple[list[Item], np.ndarray]:
    """Items whose costs may be negative and fall where others rise, and limits that may not be reachable."""
    count = int(rng.integers(1, most))
    items = []
    for _ in range(count):
        choices = int(rng.integers(1, 5))
        items.append(Item(rng.random(choices), rng.normal(0.3, 1.0, (choices, width))))
    return items, rng.normal(0.3 * count, 1.0, width)


def brute_force(items: list[Item], limits: np.ndarray, pairs: tuple[Pair, ...] = ()) -> float:
    best = np.inf
    for choices in itertools.product(*(range(len(i.loss)) for i in items)):
        loss, cost = pair_total(items, pairs, np.array(choices))
        if (cost <= limits).all():
            best = min(best, loss)
    return best


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_programme_and_front_find_what_enumeration_finds(seed: int, width: int) -> None:
    items, limits = random_items(np.random.default_rng(seed), width)
    best, found, every = brute_force(items, limits), solve(items, limits), front(items)
    row = every.within(limits)
    if not np.isfinite(best):
        assert found is None
        assert row is None
        return
    assert found is not None
    assert row is not None
    assert found.loss == pytest.approx(best, abs=1e-12)
    assert every.loss[row] == pytest.approx(best, abs=1e-12)
    assert total(items, found.choices)[0] == pytest.approx(found.loss)
    assert (found.cost <= limits + 1e-9).all()
    assert total(items, every.choices[row])[1] == pytest.approx(every.cost[row])


@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_nondominated_keeps_one_of_every_best_and_nothing_else(seed: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 700))
    table = rng.integers(0, 9, size=(n, width + 1)).astype(float)
    rows = nondominated(table[:, 0], table[:, 1:])
    kept = table[rows]
    assert len(np.unique(kept, axis=0)) == len(kept)
    if n:
        covered = (kept[None] <= table[:, None]).all(axis=2).any(axis=1)
        assert covered.all()
        beats = (kept[None] <= kept[:, None]).all(axis=2) & (kept[None] < kept[:, None]).any(axis=2)
        assert not beats.any()


def test_a_grid_of_cells_stays_within_limits_and_close() -> None:
    rng = np.random.default_rng(3)
    x = np.linspace(0.0, 1.0, 8)
    items = [
        Item(rng.lognormal() * (1 - x) ** 2, np.outer(0.1 + x, rng.lognormal(0, 1, 2))) for _ in range(25)
    ]
    limits = 0.45 * np.sum([i.cost[-1] for i in items], axis=0)
    exact, coarse = solve(items, limits), solve(items, limits, cells=32)
    assert exact is not None
    assert coarse is not None
    assert (coarse.cost <= limits).all()
    assert exact.loss <= coarse.loss <= 1.05 * exact.loss


def test_ties_choose_alike_even_through_each_other() -> None:
    rng = np.random.default_rng(0)
    items = [Item(rng.random(3), rng.random((3, 1))) for _ in range(5)]
    limit = np.array([2.0])
    found = solve(items, limit, ties=[(0, 3), (3, 4)])
    assert found is not None
    assert found.choices[0] == found.choices[3] == found.choices[4]
    best = min(
        total(items, np.array([a, b, c, a, a]))[0]
        for a, b, c in itertools.product(range(3), repeat=3)
        if total(items, np.array([a, b, c, a, a]))[1][0] <= 2.0
    )
    assert found.loss == pytest.approx(best)
    by_milp = solve_milp(items, limit, ties=[(0, 3), (3, 4)])
    assert by_milp is not None
    assert by_milp.loss == pytest.approx(best)
    with pytest.raises(AgentError, match="different numbers of choices"):
        tied([items[0], Item(np.zeros(2), np.zeros((2, 1)))], [(0, 1)])


def test_items_that_make_no_sense_are_refused() -> None:
    with pytest.raises(AgentError, match="not finite"):
        Item(np.array([0.0, np.nan]), np.zeros((2, 1)))
    with pytest.raises(AgentError, match="shape"):
        Item(np.zeros(2), np.zeros((3, 1)))


@pytest.mark.parametrize("seed", range(8))
def test_milp_with_pairs_finds_what_enumeration_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    width = 1 + seed % 2
    items, limits = random_items(rng, width, most=5)
    pairs = tuple(
        Pair(
            i,
            j,
            rng.normal(0, 0.5, (len(items[i].loss), len(items[j].loss), width)),
            rng.normal(0, 0.2, (len(items[i].loss), len(items[j].loss))) if rng.random() < 0.5 else None,
        )
        for i, j in itertools.combinations(range(len(items)), 2)
    )
    best, found = brute_force(items, limits, pairs), solve_milp(items, limits, pairs)
    if not np.isfinite(best):
        assert found is None
        return
    assert found is not None
    assert found.loss == pytest.approx(best, abs=1e-7)
    assert found.gap <= 1e-6
    assert (found.cost <= limits + 1e-6).all()


def test_many_items_are_allocated_quickly_and_no_worse_than_their_relaxation_allows() -> None:
    rng = np.random.default_rng(1)
    x = np.linspace(0.0, 1.0, 8)
    items = [
        Item(rng.lognormal(0, 1.5) * (1 - x) ** 2, (rng.lognormal() * (0.1 + x))[:, None]) for _ in range(60)
    ]
    limit = np.array([0.5 * sum(i.cost[-1, 0] for i in items)])
    found, by_milp = solve(items, limit), solve_milp(items, limit, gap=1e-9)
    assert found is not None
    assert by_milp is not None
    assert found.loss <= by_milp.loss * (1 + 1e-7)
    assert found.cost[0] <= limit[0]
