"""Every shipped target passes the conformance suite, and the suite catches targets that would mislead."""

from __future__ import annotations

import pytest

from hw_profiles.target import Constant, Target, list_targets, load_target
from hw_profiles.testing import ConformanceError, check_target

SHIPPED = list_targets()


def _with_constants(target: Target, **tables: dict[str, Constant] | None) -> Target:
    constants = {k.replace("__", "."): v for k, v in tables.items()}
    merged = {**target.cost.constants, **{k: v for k, v in constants.items() if v is not None}}
    return target.model_copy(update={"cost": target.cost.model_copy(update={"constants": merged})})


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_targets_conform(name: str) -> None:
    check_target(name)
    target = load_target(name)
    assert target.cost.constants
    assert target.validation.status in ("validated", "unvalidated")
    assert target.energy is not None or target.kind == "fpga"


def test_free_operations_are_caught() -> None:
    base = load_target("x86-avx512-vnni")
    free = {name: Constant(value=0.0, source="a test") for name in ("read", "written", "overhead")}
    with pytest.raises(ConformanceError, match="unknown operation is free") as caught:
        check_target(_with_constants(base, unknown=free))
    assert caught.value.exit_code == 3
    assert "x86-avx512-vnni" in str(caught.value)


def test_constants_without_a_source_and_falling_prices_are_caught() -> None:
    base = load_target("x86-avx512-vnni")
    falling = {"macs": Constant(value=-0.1, source="x" * 5), "overhead": Constant(value=3e6, source="a test")}
    with pytest.raises(ConformanceError) as caught:
        check_target(_with_constants(base, nchwc__dense=falling, plain__dense=falling))
    assert "plain.dense.macs: source 'xxxxx' names nothing" in str(caught.value)
    assert "latency falls with more output channels" in str(caught.value)


def test_claims_without_a_command_are_caught() -> None:
    base = load_target("x86-avx512-vnni")
    claimed = base.model_copy(update={"validation": base.validation.model_copy(update={"command": ""})})
    with pytest.raises(ConformanceError, match="median_error or command is missing"):
        check_target(claimed)
