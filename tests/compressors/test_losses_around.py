from __future__ import annotations

import numpy as np
import pytest
import torch

from compressors.apply import compress
from compressors.network import batched
from compressors.sensitivity import around, losses_around
from compressors.sensitivity.changes import Changes
from compressors.sensitivity.divergence import divergence
from compressors.simulate import answers
from compressors.space import PolicySpace
from tests.compressors.helpers import EIGHT, MIXED, network_of, space_of

SAMPLES = 8


def middle(space: PolicySpace) -> np.ndarray:
    """Half of the channels, the lowest bits, nothing removed or factorised."""
    top = space.cardinalities - 1
    kinds = np.array([c.kind for c in space.choices])
    return np.where(kinds == "keep", top // 2, np.where(np.isin(kinds, ("act_bits", "weight_bits")), 0, top))


@pytest.mark.parametrize("target", [EIGHT, MIXED], ids=["eight", "mixed"])
@pytest.mark.parametrize(
    "name",
    [
        "residual", "inception", "depthwise-separable", "grouped", "decoder", "shared-weights", "transformer",
        "two-inputs", "two-outputs", "fixed-batch",
    ],
)  # fmt: skip
def test_losses_around_a_policy(name: str, target: object) -> None:
    network, space = network_of(name), space_of(name, target)  # type: ignore[arg-type]
    at = middle(space)
    found = losses_around(network, space, at, SAMPLES)
    assert found.keys() == {c.name for c in space.choices}
    for choice in space.choices:
        losses = found[choice.name]
        assert losses.shape == (len(choice.values),)
        assert np.isfinite(losses).all()
        assert (losses >= 0).all()
        assert losses[-1] == 0
    assert max(float(v[0]) for v in found.values()) > 0
    again = losses_around(network, space, at, SAMPLES)
    assert all((again[k] == v).all() for k, v in found.items())


def test_they_are_divergences_of_whole_policies() -> None:
    """Derived anew: both policies made in full and simulated, 4 bits and 8."""
    network, space = network_of("residual"), space_of("residual", MIXED)
    at = middle(space)
    found = losses_around(network, space, at, SAMPLES)
    judge = around._Judge(network, space, at, SAMPLES, None)
    whole = Changes(network, space)
    (chunk,) = judge.chunks
    with torch.no_grad():
        before = batched(whole.graph, whole.weights, chunk)

    def loss(point: np.ndarray) -> float:
        policy = space.resolve(space.at(point))
        made = compress(judge.few, policy, space.abilities.numerics)
        return divergence(judge.outputs, before, answers(made, chunk)) / SAMPLES

    for kind in ("keep", "weight_bits"):
        i = next(i for i, c in enumerate(space.choices) if c.kind == kind)
        low, high = at.copy(), at.copy()
        low[i], high[i] = 0, space.cardinalities[i] - 1
        expected = max(0.0, loss(low) - loss(high))
        tolerance = 1e-9 if kind == "weight_bits" else 0.02 * expected + 1e-4  # 8 bits are not simulated
        assert found[space.choices[i].name][0] == pytest.approx(expected, abs=tolerance)


def test_more_is_measured_where_it_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    network, space = network_of("residual"), space_of("residual")
    rich = around._Judge(network, space, middle(space), None, None)
    assert (rich.points, rich.total) == (around.POINTS, min(around.SAMPLES, len(network.calibration[0])))
    monkeypatch.setattr(around, "EFFORT", 1.0)
    poor = around._Judge(network, space, middle(space), None, None)
    assert (poor.points, poor.total) == (2, 8)
    choice = max((c for c in space.choices if c.kind == "keep"), key=lambda c: len(c.values))
    here = len(choice.values) // 2
    fewer = around._wanted(choice, here, 2)
    assert {0, here - 1, here, here + 1, len(choice.values) - 1} <= set(fewer)
    assert len(fewer) <= len(around._wanted(choice, here, around.POINTS))
