import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from agents.allocation import solve
from hw_profiles.apq import apq_table
from hw_profiles.haq import cost_share, published_policy
from hw_profiles.hawq import integer_programs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def published() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "published_problems", ROOT / "scripts/published_problems.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_hawq_programs_are_optimal_none_worse_than_published_and_one_better(published: ModuleType) -> None:
    programs = integer_programs()
    assert len(programs) == 18
    better = []
    for p in programs:
        bits = published.solved(p)
        (loss, cost), (theirs, spent) = p.of(bits), p.of(p.published)
        assert cost <= p.limit * (1 + 1e-9)
        assert spent <= p.limit * (1 + 1e-9)
        assert all(bits[a] == bits[b] for a, b in p.ties)
        assert all(p.published[a] == p.published[b] for a, b in p.ties)
        assert loss <= theirs * (1 + 1e-9)
        if loss < theirs * (1 - 1e-9):
            better.append((p.name, round(loss, 5), round(theirs, 5)))
    assert better == [("resnet50 size 0.25", 0.07495, 0.08311)]


def test_no_single_or_double_change_improves_a_hawq_solution(published: ModuleType) -> None:
    """The optimum by another road: for ResNet-18 every one of the 2^16 ties-respecting policies."""
    for p in (p for p in integer_programs() if p.network == "resnet18"):
        free = [i for i in range(len(p.published)) if i not in {b for _, b in p.ties}]
        owner = {b: a for a, b in p.ties}
        where = np.array([free.index(owner.get(i, i)) for i in range(len(p.published))])
        picks = (np.arange(2 ** len(free))[:, None] >> np.arange(len(free))) & 1
        choices = picks[:, where]
        rows = np.arange(len(where))
        loss, cost = p.loss[rows, choices].sum(axis=1), p.cost[rows, choices].sum(axis=1)
        best = loss[cost <= p.limit * (1 + 1e-12)].min()
        assert p.of(published.solved(p))[0] == pytest.approx(best, rel=1e-9)


def test_haq_policy_has_every_published_bit_and_more_within_the_budget(published: ModuleType) -> None:
    share, weights, acts = published_policy()
    assert cost_share(weights, acts) == pytest.approx(0.5964, abs=1e-4)
    assert (weights[[0, -1]] == 8).all()
    assert (acts[[0, -1]] == 8).all()
    w, a = published.haq_policy(share, list(zip(weights.tolist(), acts.tolist(), strict=True)))
    assert cost_share(w, a) <= share
    assert (w >= weights).all()
    assert (a >= acts).all()
    assert w.sum() >= weights.sum() + 49
    free_w, free_a = published.haq_policy(share, [(2, 2)] * len(weights))
    assert cost_share(free_w, free_a) <= share
    assert free_w.sum() >= w.sum()
    assert (free_w[[0, -1]] == 8).all()
    assert min(free_w.min(), free_a.min()) >= 2


def test_apq_optima_are_those_of_an_enumeration(published: ModuleType) -> None:
    table = apq_table()
    assert len(table) == 779
    assert any(c[8, 4][0] > c[8, 8][0] for c in table.values() if (8, 4) in c and (8, 8) in c)
    rng = np.random.default_rng(0)
    compared = 0
    while compared < 30:
        items, limits = published.apq_instance(rng)
        if len(items) > 7:  # the script takes eight layers as well: 43 million policies each
            continue
        assert published.agrees(solve(items, limits), published.enumerated(items, limits))
        compared += 1
