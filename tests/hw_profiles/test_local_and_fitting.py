"""The local target by instruction set; least squares that finds known constants; YAML blocks rewritten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from hw_profiles import Predictor, load_target
from hw_profiles.errors import BadTargetError
from hw_profiles.fitting import Key, Row, constants_yaml, log_sigma, predict_ns, replace_block, solve, total
from hw_profiles.local import cpu_flags, describe
from hw_profiles.testing import check_target, sample_batch

X86 = load_target("x86-avx512-vnni")
VNNI, AVX2 = frozenset({"avx2", "avx512f", "avx512_vnni"}), frozenset({"avx2", "fma"})


def test_vnni_gets_the_measured_constants() -> None:
    found = describe(VNNI, "x86_64", 8)
    assert found.cost.constants == X86.cost.constants
    assert found.cost.interval.runtime_factor.value == pytest.approx(2.3)  # measured on another machine
    assert (found.name, found.device.cores, found.default_threads) == ("local", 8, 1)
    assert not found.numerics.reduced_range_weights


@pytest.mark.parametrize(
    ("flags", "machine", "isa"), [(AVX2, "x86_64", "avx2"), (frozenset({"asimddp"}), "aarch64", "arm64")]
)
def test_others_are_slower_and_less_certain(flags: frozenset[str], machine: str, isa: str) -> None:
    found = describe(flags, machine, 4)
    base, other = (Predictor(t).predict(sample_batch(X86)) for t in (X86, found))
    assert found.isa == isa
    assert found.validation.status == "unvalidated"
    assert found.numerics.reduced_range_weights == (isa == "avx2")
    assert (other.latency_ms > 1.2 * base.latency_ms).all()
    assert other.high_ms[0] / other.low_ms[0] > base.high_ms[0] / base.low_ms[0]
    check_target(found)


def test_flags_are_read_from_cpuinfo() -> None:
    assert cpu_flags("processor: 0\nflags\t\t: fpu avx2 avx512_vnni\nflags: later\n") == {
        "fpu",
        "avx2",
        "avx512_vnni",
    }
    assert cpu_flags("Features\t: asimd asimddp\n") == {"asimd", "asimddp"}
    assert cpu_flags("") == frozenset()


def test_known_constants_are_found_and_none_is_negative() -> None:
    rng = np.random.default_rng(0)
    truth: dict[Key, float] = {("a", "macs"): 0.02, ("a", "overhead"): 900.0, ("b", "read"): 0.3}
    rows: list[Row] = []
    for _ in range(60):
        counts = {("a", "macs"): float(rng.uniform(1e4, 1e6)), ("a", "overhead"): float(rng.integers(1, 9))}
        rows.append({**counts, ("b", "read"): float(rng.uniform(1e2, 1e5)), ("b", "useless"): 1.0})
    times = np.array([predict_ns(row, truth) for row in rows])
    found = solve(rows, times, 1.0 / times, ridge=1e-9)
    for key, value in truth.items():
        assert found[key] == pytest.approx(value, rel=0.02)
    assert found["b", "useless"] < 50.0
    assert min(found.values()) >= 0.0
    assert ("b", "useless") not in solve(rows, times, 1.0 / times, drop=[("b", "useless")])


def test_rows_add_up_and_the_interval_covers_nine_of_ten() -> None:
    assert total([{("a", "x"): 1.0}, {("a", "x"): 2.0, ("b", "y"): 3.0}]) == {
        ("a", "x"): 3.0,
        ("b", "y"): 3.0,
    }
    errors = np.abs(np.random.default_rng(0).normal(0.0, 0.1, 2000))
    assert log_sigma(errors) == pytest.approx(0.1, rel=0.05)
    assert predict_ns({("a", "x"): 2.0, ("c", "z"): 5.0}, {("a", "x"): 3.0}) == 6.0


def test_blocks_of_a_target_file_are_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("cost:\n  # fitted: begin\n  old: 1\n  # fitted: end\ntail: 2\n", encoding="utf-8")
    text = constants_yaml(
        {("a", "macs"): 0.5, ("a", "overhead"): 0.0, ("b", "read"): 0.0}, {"": "a test", "a": "another"}
    )
    replace_block(path, "fitted", text, indent="  ")
    read = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert read["tail"] == 2
    assert read["cost"]["constants"]["a"]["macs"] == {"value": 0.5, "source": "another"}
    assert "b" not in read["cost"]["constants"]
    with pytest.raises(BadTargetError, match="no block '# missing: begin'"):
        replace_block(path, "missing", "")
