"""Learning from a profile: better with every measurement, intervals that hold, the same every time."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hw_profiles.devices.contract import DeviceFacts
from hw_profiles.errors import BadProfileError, UnsupportedSettingError
from hw_profiles.kernel import COLUMNS, KernelBatch, concat
from hw_profiles.learned import Learned, Observation, learn
from hw_profiles.learned_store import load, observations, save
from hw_profiles.predictor import Predictor
from hw_profiles.profile_rows import Kind, NetworkRow
from hw_profiles.profiles import Profile
from hw_profiles.residual import FEATURES, SHAPE_SIGMA, Cell
from hw_profiles.target import load_target
from tests.hw_profiles.synthetic import PRIOR, measured, networks, real_us, truth

FACTS = DeviceFacts("synthetic", "synthetic chip", 2, "avx512-vnni", "onnxruntime", "1.32.0", 2.0)


@cache
def _learned(count: int, seed: int = 0, calibrated: bool = True) -> Learned:
    return learn(measured(networks(count, 100 + seed), truth(seed)), PRIOR, calibrated=calibrated)


def _errors(learned: Learned | None, seed: int = 0, count: int = 80) -> np.ndarray:
    predictor = Predictor(PRIOR) if learned is None else replace(Predictor(PRIOR), learned=learned)
    batches = networks(count, 9000 + seed)
    real = np.array([real_us(b, truth(seed))[1] * 1e-3 for b in batches])
    predicted = np.array([float(predictor.predict(b).latency_ms[0]) for b in batches])
    return np.asarray(np.abs(np.log(predicted / real)))


def _profile(rows: list[Observation], threads: int = 1, facts: DeviceFacts = FACTS) -> Profile:
    return Profile(facts, threads, "ms", tuple(_row(i, o) for i, o in enumerate(rows)))


def _row(i: int, seen: Observation) -> NetworkRow:
    kinds = [Kind(**{n: getattr(k, n) for n in Kind.model_fields}) for k in seen.batch.kinds]
    assert seen.kernel_us is not None
    return NetworkRow(
        model=f"{i:064x}", key=f"probe#{i}", measured_at="2026-11-20T10:00:00", clock="cpu",
        runs=[seen.ms * f for f in (1.0, 1.01, 1.0, 1.02)], stable=True, why="halves agree", kinds=kinds,
        columns={n: seen.batch[n][0].tolist() for n in COLUMNS}, kernel_us=seen.kernel_us.tolist(),
    ).addressed()  # fmt: skip


def test_nothing_measured_changes_nothing() -> None:
    batch = networks(1, 3)[0]
    prior = Predictor(PRIOR).predict(batch)
    found = replace(Predictor(PRIOR), learned=learn((), PRIOR)).predict(batch)
    assert float(found.latency_ms[0]) == pytest.approx(float(prior.latency_ms[0]), rel=1e-3)
    assert float(found.high_ms[0] / found.latency_ms[0]) == pytest.approx(
        float(prior.high_ms[0] / prior.latency_ms[0])
    )
    assert Predictor(PRIOR).profiled(_profile([])).learned is None


def test_the_error_falls_with_measurements() -> None:
    """In expectation: the mean over three devices of the median error of networks nobody measured."""
    counts = (0, 4, 16, 64, 160)
    medians = [
        np.mean([np.median(_errors(_learned(n, s, False) if n else None, s, 40)) for s in range(3)])
        for n in counts
    ]
    assert all(later < earlier for earlier, later in pairwise(medians)), medians
    assert medians[0] > 0.3
    assert medians[-1] < 0.04


def test_intervals_cover_and_narrow() -> None:
    batches = networks(200, 5000)
    real = np.array([real_us(b, truth())[1] * 1e-3 for b in batches])
    widths = []
    for count in (24, 160):
        predictor = replace(Predictor(PRIOR), learned=_learned(count))
        found = [predictor.predict(b) for b in batches]
        low, high = (np.array([float(getattr(f, n)[0]) for f in found]) for n in ("low_ms", "high_ms"))
        covered = float(np.mean((low <= real) & (real <= high)))
        assert covered >= 0.85
        widths.append(float(np.median(high / low)))
    assert covered <= 0.995  # of 24 networks little is known, and an interval may be too wide
    assert widths[1] < widths[0]


def test_a_harder_network_has_a_wider_interval() -> None:
    predictor = replace(Predictor(PRIOR), learned=_learned(64))
    batch = networks(1, 12)[0]
    strange = {name: np.array(column) for name, column in batch.columns.items()}
    strange["out_h"] = strange["out_h"] * 40.0
    odd = KernelBatch(batch.kinds, strange)
    known, unknown = predictor.predict(batch), predictor.predict(odd)
    assert float(unknown.high_ms[0] / unknown.low_ms[0]) > float(known.high_ms[0] / known.low_ms[0])
    assert predictor.quantile_factor(0.95) > predictor.quantile_factor(0.8) > 1.0
    assert predictor.quantile_factor(0.5) == pytest.approx(1.0)
    assert predictor.quantile_factor(0.2) == pytest.approx(1.0 / predictor.quantile_factor(0.8))


def test_policies_are_priced_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many array operations for one policy as for sixty-four, and the same prices as one by one."""
    learned, calls = _learned(64), list[int]()
    factor = Cell.factor

    def counted(cell: Cell, x: np.ndarray, sigma: float | None) -> tuple[np.ndarray, np.ndarray]:
        calls.append(len(x))
        return factor(cell, x, sigma)

    monkeypatch.setattr(Cell, "factor", counted)
    one = networks(1, 12)[0]
    columns = {name: np.repeat(one[name], 64, axis=0) for name in COLUMNS}
    columns["cin"] = columns["cin"] * np.linspace(1.0, 1.3, 64)[:, None].round(1)
    batch = KernelBatch(one.kinds, columns)
    predictor = replace(Predictor(PRIOR), learned=learned)
    together = predictor.predict(batch)
    many = len(calls)
    calls.clear()
    alone = [predictor.predict(batch.row(i)) for i in range(64)]
    assert 0 < many <= 2 * len(calls) // 64
    assert np.allclose(together.latency_ms, [float(p.latency_ms[0]) for p in alone], rtol=1e-5)
    assert np.allclose(together.high_ms, [float(p.high_ms[0]) for p in alone], rtol=1e-4)
    assert np.allclose(
        predictor.predict(concat([one] * 3)).latency_ms, float(predictor.predict(one).latency_ms[0])
    )


def test_one_product_gives_the_spread_of_two() -> None:
    """`Cell.factor` against the basis times its weights, its covariance's root, and what is left."""
    checked = 0
    for cell in _learned(64).residual.cells.values():
        x = np.random.default_rng(0).uniform(0.0, 1.5, (5000, len(FEATURES))).astype(np.float32)
        x = np.concatenate([cell.points, x])
        mean, variance = cell.factor(x, SHAPE_SIGMA)
        basis = cell.basis(x).astype(np.float64)
        left = np.maximum(0.0, 1.0 - ((basis[:, 1:] / SHAPE_SIGMA) ** 2).sum(axis=1))
        wanted = ((basis @ cell.root) ** 2).sum(axis=1) + SHAPE_SIGMA**2 * left
        assert np.allclose(mean, basis @ cell.weights, atol=2e-4)
        assert np.allclose(np.sqrt(variance), np.sqrt(wanted), rtol=0.02, atol=2e-3)
        assert np.array_equal(cell.factor(x[:9])[0], cell.factor(x[:9], SHAPE_SIGMA)[0])
        checked += len(cell.points) > 4
    assert checked > 2


def test_the_same_measurements_teach_the_same() -> None:
    rows = measured(networks(30, 100), truth())
    first, second = (learn(rows, PRIOR, seed=3) for _ in range(2))
    assert first.calibration == second.calibration
    assert first.target == second.target
    for name, cell in first.residual.cells.items():
        assert np.array_equal(cell.weights, second.residual.cells[name].weights)


def test_round_trip(tmp_path: Path) -> None:
    learned, path = _learned(64), tmp_path / "profile.learned.npz"
    save(learned, path, "key")
    found = load(path, PRIOR, "key")
    assert found is not None
    batch = networks(1, 12)[0]
    here, there = (replace(Predictor(PRIOR), learned=x).predict(batch) for x in (learned, found))
    assert np.array_equal(here.latency_ms, there.latency_ms)
    assert np.array_equal(here.high_ms, there.high_ms)
    assert here.backing == there.backing
    assert load(path, PRIOR, "another key") is None
    path.write_bytes(path.read_bytes()[:200])
    assert load(path, PRIOR, "key") is None
    assert b"pickle" not in path.read_bytes()


def test_profiled_says_what_it_rests_on(tmp_path: Path) -> None:
    rows = measured(networks(20, 100), truth())
    profile = _profile(rows)
    beside = tmp_path / "p.jsonl"
    predictor = Predictor(PRIOR).profiled(profile, FACTS, beside=beside)
    batch = networks(1, 12)[0]
    found = predictor.predict(batch)
    assert "20 networks and" in found.backing
    assert "synthetic on 2026-11-20 with onnxruntime 1.32.0, 1 thread, held-out median error" in found.backing
    assert math.isclose(sum(predictor.explain(batch).values()), float(found.latency_ms[0]), rel_tol=1e-9)
    assert found.kernel_ms.shape == batch.shape
    written = tmp_path / "p.jsonl.learned.npz"
    stamp = written.stat().st_mtime_ns
    again = Predictor(PRIOR).profiled(profile, FACTS, beside=beside)
    assert written.stat().st_mtime_ns == stamp
    assert np.array_equal(again.predict(batch).latency_ms, found.latency_ms)
    more = Predictor(PRIOR).profiled(_profile(rows[:19]), FACTS, beside=beside)
    assert "19 networks and" in more.predict(batch).backing
    assert len(observations(profile)) == 20


def test_profiles_of_something_else_are_refused() -> None:
    rows = measured(networks(3, 100), truth())
    with pytest.raises(BadProfileError, match=r"with 2 threads, not 1") as caught:
        Predictor(PRIOR).profiled(_profile(rows, threads=2))
    assert caught.value.exit_code == 3
    old = replace(FACTS, runtime_version="1.20.1")
    with pytest.raises(BadProfileError, match=r"1\.20\.1, and x86-avx512-vnni has 1\.32"):
        Predictor(PRIOR).profiled(_profile(rows, facts=old))
    with pytest.raises(BadProfileError, match=r"1\.20\.1, and the device now has 1\.32\.0"):
        Predictor(PRIOR).profiled(_profile(rows, facts=old), FACTS)
    with pytest.raises(BadProfileError, match=r"at 2\.00 GHz, and the clock now is 1\.50"):
        Predictor(PRIOR).profiled(_profile(rows), replace(FACTS, clock_ghz=1.5))
    counted = Profile(FACTS, 1, "instructions", _profile(rows).rows)
    with pytest.raises(BadProfileError, match="counts instructions"):
        Predictor(PRIOR).profiled(counted)
    with pytest.raises(UnsupportedSettingError, match="cost model 'gpu'"):
        learn(rows, load_target("gpu-t4"))


def test_whole_networks_of_the_user_correct_on_top() -> None:
    predictor = replace(Predictor(PRIOR), learned=_learned(24))
    batch, other = networks(2, 40)
    before = predictor.predict(batch)
    wanted = 1.25 * float(before.latency_ms[0])
    after = predictor.corrected([(batch, wanted)] * 4).predict(batch)
    assert float(after.latency_ms[0]) == pytest.approx(wanted, rel=0.03)
    assert "corrected by 4 networks" in after.backing
    assert float(after.low_ms[0]) < wanted < float(after.high_ms[0])
    assert predictor.corrected([]) is predictor
    moved = predictor.corrected([(batch, wanted)] * 4).predict(other)
    assert float(moved.latency_ms[0]) > float(predictor.predict(other).latency_ms[0])
