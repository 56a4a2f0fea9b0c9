"""Everything registered passes its conformance suite, and the suites notice what breaks their rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from compressors.factorize import FACTORISATIONS
from compressors.graph import ChannelGroup
from compressors.importance import CRITERIA, Evidence
from compressors.policy import FACTOR_METHODS
from compressors.quantize import RANGES
from compressors.resolve import Numerics
from compressors.testing import ConformanceError, check_criterion, check_factorisation, check_range


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_criteria(name: str) -> None:
    check_criterion(name)


@pytest.mark.parametrize("name", sorted(RANGES))
def test_ranges(name: str) -> None:
    check_range(name)


@pytest.mark.parametrize("name", sorted(FACTORISATIONS))
def test_factorisations(name: str) -> None:
    check_factorisation(name)
    assert name in FACTOR_METHODS


@pytest.fixture
def register() -> Iterator[Callable[[dict[str, Any], Any], str]]:
    """Registers a function as "odd" for one test."""
    used: list[dict[str, Any]] = []

    def put(registry: dict[str, Any], function: Any) -> str:
        registry["odd"] = function
        used.append(registry)
        return "odd"

    yield put
    for registry in used:
        del registry["odd"]


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


def test_bad_factorisations_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = FACTORISATIONS["svd"]
    monkeypatch.setitem(FACTORISATIONS, "svd", lambda w, r: [2 * p for p in exact(w, r)])
    with pytest.raises(ConformanceError, match="full rank is off"):
        check_factorisation("svd")
    monkeypatch.setitem(FACTORISATIONS, "svd", lambda w, r: exact(w, (max(1, r[0] - 1),)))
    with pytest.raises(ConformanceError, match="shapes are not those announced"):
        check_factorisation("svd")


def test_unregistered_names_are_noticed(register: Any) -> None:
    with pytest.raises(ConformanceError, match="Did you mean 'taylor'"):
        check_criterion("taylr")
    with pytest.raises(ConformanceError, match="not registered"):
        check_range("nothing")
    name = register(FACTORISATIONS, FACTORISATIONS["svd"])
    with pytest.raises(ConformanceError, match="number of ranks"):
        check_factorisation(name)
