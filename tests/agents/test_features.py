import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from agents.contract import Budget, Costs
from agents.features import BUDGET, COORDINATE, NETWORK, budget_features, budget_shares, features, layers_of
from agents.pricing import Pricer
from agents.toys import ToyCosts, toy_problem, toy_space

AT = {name: k for k, name in enumerate(COORDINATE)}


def test_every_column_is_finite_small_and_named() -> None:
    problem = toy_problem(toy_space(3, 64, bits=((8, 8), (4, 8))), share=0.3, conversion=0.05)
    found = features(Pricer(problem))
    assert found.coordinates.shape == (problem.space.dimension, len(COORDINATE))
    assert found.network.shape == (len(NETWORK),)
    assert np.isfinite(found.coordinates).all()
    assert np.abs(found.coordinates).max() <= 2.0
    assert len({*COORDINATE, *NETWORK}) == len(COORDINATE) + len(NETWORK)
    kinds = [c.kind for c in problem.space.choices]
    assert found.coordinates[:, : len(kinds)][:, AT["removed"]].tolist() == [
        float(k == "removed") for k in kinds
    ]


def test_shapes_and_shares_are_the_layers_own() -> None:
    space = toy_space(2, 32)
    row = dict(
        zip((c.name for c in space.choices), features(Pricer(toy_problem(space))).coordinates, strict=True)
    )
    weights = {x.name: 9 * x.cin * x.cout for x in space.structure.layers}
    for kind, subject, layers in (("rank", "b0a", ["b0a"]), ("keep", "g1", ["b1a", "b1b"])):
        own = row[f"{kind}:{subject}"]
        total = sum(weights.values())
        assert own[AT["weights"]] == pytest.approx(sum(weights[x] for x in layers) / total)
        assert own[AT["multiplications"]] == pytest.approx(own[AT["weights"]])  # all maps are alike
        assert own[AT["log2 cout"]] == pytest.approx(0.5)
        assert own[AT["log2 positions"]] == pytest.approx(0.6)
        assert own[AT["log2 kernel"]] == pytest.approx(np.log2(9) / 5)
    assert row["keep:g1"][AT["depth"]] == pytest.approx(3.5 / 4)
    assert row["keep:g1"][AT["last"]] == 1
    assert row["keep:g0"][AT["last"]] == 0
    assert row["keep:g0"][AT["log2 group"]] == pytest.approx(0.5)


def test_an_activation_touches_what_writes_and_what_reads_it() -> None:
    space = toy_space(2, 32)
    names = [x.name for x in space.structure.layers]
    choice = next(c for c in space.choices if c.name == "act_bits:h1")
    assert [names[i] for i in layers_of(space.structure, choice)] == ["b1a", "b1b"]
    first = next(c for c in space.choices if c.name == "act_bits:x")
    assert [names[i] for i in layers_of(space.structure, first)] == ["stem"]


@dataclasses.dataclass(frozen=True)
class Slower:
    """A device that takes so many times as long for everything."""

    costs: ToyCosts
    factor: float

    def __call__(self, policies) -> Costs:  # type: ignore[no-untyped-def]
        return {k: self.factor * np.asarray(v) for k, v in self.costs(policies).items()}


def test_units_do_not_count() -> None:
    """A slower device, another unit of the loss and another metric's scale: the same features."""
    problem = toy_problem(toy_space(2), share=0.3)
    rng = np.random.default_rng(0)
    losses = {
        c.name: float(rng.uniform(0.1, 3)) * np.linspace(1, 0, len(c.values)) ** 2
        for c in problem.space.choices
    }
    plain = replace(problem, losses_around=lambda at: losses)
    other = replace(
        problem,
        costs=Slower(ToyCosts(problem.space.structure), 1000.0),
        budget=Budget(1000.0 * (problem.budget.max_latency_ms or 0.0)),
        losses=lambda: {k: 50.0 * v for k, v in losses.items()},
        base_accuracy=-12.0,
        higher_is_better=False,
    )
    one, two = features(Pricer(plain)), features(Pricer(other))
    np.testing.assert_allclose(one.coordinates, two.coordinates, atol=1e-9)
    np.testing.assert_allclose(one.network, two.network, atol=1e-9)
    assert one.coordinates[:, AT["measured"]].all()


def test_measured_losses_set_price_and_curvature() -> None:
    problem = toy_problem(toy_space(2), share=0.3)
    losses = {
        c.name: np.linspace(1, 0, len(c.values)) ** (1 if c.subject == "g0" else 2)
        for c in problem.space.choices
        if c.kind == "keep"
    }
    losses["keep:g1"] = 100.0 * losses["keep:g1"]
    found = features(Pricer(replace(problem, losses_around=lambda at: losses))).coordinates
    row = dict(zip((c.name for c in problem.space.choices), found, strict=True))
    assert row["keep:g0"][AT["loss at half"]] == pytest.approx(0.5)
    assert row["keep:g0"][AT["first loss"]] == pytest.approx(1.0)
    assert row["keep:g1"][AT["loss at half"]] == pytest.approx(0.25, abs=0.02)
    assert row["keep:g1"][AT["first loss"]] < 0.2
    assert row["keep:g1"][AT["log10 price"]] > row["keep:g0"][AT["log10 price"]]
    assert row["keep:g1"][AT["rank of loss"]] == 1.0
    assert row["keep:g1"][AT["measured"]] == 1
    assert row["rank:b0a"][AT["measured"]] == 0


def test_budgets_are_shares_of_the_uncompressed_network() -> None:
    problem = toy_problem(toy_space(2), share=0.25)
    costs = {k: float(v[0]) for k, v in problem.costs([problem.space.resolve(problem.space.dense)]).items()}
    shares = budget_shares(problem.budget, costs)
    assert shares == {"latency_ms": pytest.approx(0.25)}
    risky = Budget(max_latency_ms=costs["latency_high_ms"] / 8, max_macs=costs["macs"] / 2, risk=0.9)
    both = budget_shares(risky, costs)
    assert both == {"latency_ms": pytest.approx(0.125), "macs": pytest.approx(0.5)}
    row = dict(zip(BUDGET, budget_features(both), strict=True))
    assert row["log2 latency_ms"] == row["log2 tightest"] == pytest.approx(-1.0)
    assert row["log2 macs"] == pytest.approx(-1 / 3)
    assert row["limits macs"] == 1
    assert row["limits size_bytes"] == 0
    assert not budget_features({}).any()
