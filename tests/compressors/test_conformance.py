"""Everything registered passes its conformance suite, and the suites notice what breaks their rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from compressors.factors import FACTORISATIONS, Factorisation
from compressors.graph import ChannelGroup
from compressors.importance import CRITERIA, Evidence
from compressors.quantize import RANGES, WEIGHT_SCALES
from compressors.registry import Registry
from compressors.resolve import Numerics
from compressors.testing import (
    CHECKS,
    ConformanceError,
    check_criterion,
    check_factorisation,
    check_range,
    check_weight_scale,
)


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, (known, _) in CHECKS.items() for n in known])
def test_everything_registered_conforms(kind: str, name: str) -> None:
    known, check = CHECKS[kind]
    check(name)
    assert known.summary(name)


@pytest.fixture
def register() -> Iterator[Callable[[Registry[Any], Any], str]]:
    """Registers a function as "odd" for one test."""
    with ExitStack() as stack:
        yield lambda known, item: stack.enter_context(known.having("odd", item))


def wrong_shape(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """One score too many."""
    return torch.zeros(group.size + 1)


def by_position(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Scores that look at where a channel is stored."""
    return torch.arange(group.size, dtype=torch.float32)


def not_finite(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Logarithm of zero."""
    return torch.zeros(group.size).log()


@pytest.mark.parametrize(
    ("function", "rule"), [(wrong_shape, "shape"), (by_position, "order"), (not_finite, "infinite")]
)
def test_bad_criteria_are_noticed(register: Any, function: Any, rule: str) -> None:
    name = register(CRITERIA, function)
    with pytest.raises(ConformanceError, match=rule) as caught:
        check_criterion(name)
    assert "'odd'" in str(caught.value)
    assert "\n" not in str(caught.value)


def upside_down(sample: Tensor, bits: int, numerics: Numerics) -> tuple[float, float]:
    """High before low."""
    return float(sample.max()), float(sample.min()) - 1.0


def too_wide(sample: Tensor, bits: int, numerics: Numerics) -> tuple[float, float]:
    """A range far outside the values."""
    return float(sample.min()) * 9 - 1.0, float(sample.max()) * 9 + 1.0


def too_narrow(sample: Tensor, bits: int, numerics: Numerics) -> tuple[float, float]:
    """Nearly everything saturates."""
    return 0.0, min(0.01, max(0.0, float(sample.max())))


@pytest.mark.parametrize(
    ("function", "rule"), [(upside_down, "upside down"), (too_wide, "outside"), (too_narrow, "lose")]
)
def test_bad_ranges_are_noticed(register: Any, function: Any, rule: str) -> None:
    name = register(RANGES, function)
    with pytest.raises(ConformanceError, match=rule) as caught:
        check_range(name)
    assert "'odd'" in str(caught.value)
    assert caught.value.exit_code == 3


def by_channel_of_another(rows: Tensor, bits: int, high: int) -> Tensor:
    """One scale for all channels."""
    return rows.abs().max().expand(rows.shape[0]) / high


def clipped_away(rows: Tensor, bits: int, high: int) -> Tensor:
    """Far too fine: nearly all weights saturate."""
    return rows.abs().amax(1).clamp_min(1e-12) / high / 100


def zero_scale(rows: Tensor, bits: int, high: int) -> Tensor:
    """Zero where a channel is."""
    return rows.abs().amax(1) / high


@pytest.mark.parametrize(
    ("function", "rule"),
    [(by_channel_of_another, "other channels"), (clipped_away, "lose"), (zero_scale, "positive")],
)
def test_bad_weight_scales_are_noticed(register: Any, function: Any, rule: str) -> None:
    name = register(WEIGHT_SCALES, function)
    with pytest.raises(ConformanceError, match=rule) as caught:
        check_weight_scale(name)
    assert "'odd'" in str(caught.value)
    assert "\n" not in str(caught.value)


def altered(name: str, **changes: Any) -> Factorisation:
    """A registered scheme with some fields replaced."""
    return replace(FACTORISATIONS[name], **{"name": "odd", **changes})


def doubled(weight: Tensor, rank: tuple[int, ...], transposed: bool = False) -> list[Tensor]:
    """Twice what it should be."""
    return [2 * p for p in FACTORISATIONS["svd"].weights(weight, rank, transposed)]


def one_less(weight: Tensor, rank: tuple[int, ...], transposed: bool = False) -> list[Tensor]:
    """One rank less than asked for."""
    return FACTORISATIONS["svd"].weights(weight, (max(1, rank[0] - 1),), transposed)


def nameless(weight: Tensor, rank: tuple[int, ...], transposed: bool = False) -> list[Tensor]:
    return FACTORISATIONS["svd"].weights(weight, rank, transposed)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"weights": doubled}, "full rank is off"),
        ({"weights": one_less}, "shapes are not those announced"),
        ({"weights": nameless}, "docstring"),
        ({"ranks": 2}, "1 ranks, not 2"),
        ({"ratios": (0.5, 0.75)}, "do not fall"),
        ({"ratios": ()}, "do not fall"),
        ({"fits": lambda layer: False}, "for no layer"),
        ({"full_rank": lambda shape: (2,)}, "full rank is off"),
    ],
)
def test_bad_factorisations_are_noticed(register: Any, changes: dict[str, Any], rule: str) -> None:
    name = register(FACTORISATIONS, altered("svd", **changes))
    with pytest.raises(ConformanceError, match=rule) as caught:
        check_factorisation(name)
    assert "'odd'" in str(caught.value)


def test_unregistered_names_are_noticed() -> None:
    with pytest.raises(ConformanceError, match="Did you mean 'taylor'"):
        check_criterion("taylr")
    with pytest.raises(ConformanceError, match="not registered"):
        check_range("nothing")
    with pytest.raises(ConformanceError, match="Did you mean 'largest'"):
        check_weight_scale("large")
    with pytest.raises(ConformanceError, match="factorisation 'tucker' is not registered"):
        check_factorisation("tucker")
