"""Predictions: interval, risk, threads, unknown operations, correction by measurements."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hw_profiles import KernelBatch, KernelKind, Predictor, load_target, make_batch
from hw_profiles.errors import BadKernelsError, MeasurementError, UnsupportedSettingError
from hw_profiles.testing import sample_batch

PI = load_target("raspberry-pi-4")


def _networks(count: int, seed: int = 0) -> list[KernelBatch]:
    batch = sample_batch(PI, count, seed)
    rng = np.random.default_rng(seed)
    columns = {name: np.array(column) for name, column in batch.columns.items()}
    side = rng.choice([7.0, 14.0, 28.0], (count, 1))
    for name in ("out_h", "in_h"):
        columns[name] = np.where(columns[name] > 1.0, side, 1.0)
    return [KernelBatch(batch.kinds, columns).row(i) for i in range(count)]


def test_kernels_sum_to_the_latency_and_explain_adds_up() -> None:
    batch, predictor = sample_batch(PI), Predictor(PI)
    found = predictor.predict(batch)
    fixed = found.latency_ms - found.kernel_ms.sum(axis=1)
    assert np.allclose(fixed, fixed[0])
    assert fixed[0] >= 0.0
    assert math.isclose(sum(predictor.explain(batch).values()), float(found.latency_ms[0]), rel_tol=1e-9)
    assert found.source == "predicted"
    assert "ncnn" in found.backing


def test_the_interval_covers_model_and_runtime() -> None:
    found = Predictor(PI).predict(sample_batch(PI))
    interval = PI.cost.interval
    ratio = found.high_ms / found.latency_ms
    assert np.allclose(ratio, found.latency_ms / found.low_ms)
    assert ratio[0] > interval.runtime_factor.value
    assert ratio[0] > math.exp(1.64 * interval.log_sigma.value)


def test_risk_is_a_quantile_of_the_same_spread() -> None:
    predictor = Predictor(PI)
    found = predictor.predict(sample_batch(PI))
    assert math.isclose(predictor.quantile_factor(0.5), 1.0)
    assert math.isclose(predictor.quantile_factor(0.95), float(found.high_ms[0] / found.latency_ms[0]))
    assert predictor.quantile_factor(0.9) > predictor.quantile_factor(0.6) > 1.0
    with pytest.raises(UnsupportedSettingError, match=r"risk=1\.5"):
        predictor.quantile_factor(1.5)


def test_more_threads_help_less_than_in_proportion() -> None:
    batch = make_batch(
        (KernelKind("Conv", weight_bearing=True),),
        {"cin": 256, "cout": 256, "kernel_h": 3, "kernel_w": 3, "out_h": 28, "out_w": 28},
    )
    one, four = (float(Predictor(PI, threads).predict(batch).latency_ms[0]) for threads in (1, 4))
    assert 1.2 < one / four < 4.0
    assert Predictor(PI).threads == 4
    with pytest.raises(UnsupportedSettingError, match=r"threads=9 on raspberry-pi-4, which has 4 cores"):
        Predictor(PI, 9)


def test_unknown_operations_are_named_and_priced_by_their_traffic() -> None:
    kinds = (KernelKind("Zeta"), KernelKind("Zeta"), KernelKind("Flatten"))
    batch = make_batch(kinds, {"cin": [8, 64, 64], "out_h": 28})
    found = Predictor(PI).predict(batch)
    assert found.unknown == ("Zeta",)
    assert "no model for Zeta" in found.backing
    assert 0.0 < found.kernel_ms[0, 0] < found.kernel_ms[0, 1]


def test_one_measurement_scales_everything() -> None:
    network, other = _networks(2)
    base = Predictor(PI)
    before = [float(base.predict(n).latency_ms[0]) for n in (network, other)]
    moved = base.corrected([(network, 2.0 * before[0])])
    after = [float(moved.predict(n).latency_ms[0]) for n in (network, other)]
    assert after[0] == pytest.approx(2.0 * before[0], rel=0.1)
    assert after[1] == pytest.approx(2.0 * before[1], rel=0.25)
    assert moved.quantile_factor(0.9) < base.quantile_factor(0.9)
    assert "corrected by 1 network measured" in moved.predict(network).backing
    assert base.correction.measurements == 0


def test_many_measurements_find_a_class_and_narrow_the_interval() -> None:
    base, networks = Predictor(PI), _networks(16)
    truth = {"conv_int": 0.5, "conv_float": 1.3}

    def real(batch: KernelBatch) -> float:
        return sum(truth.get(name, 1.0) * ms for name, ms in base.explain(batch).items())

    learned = base.corrected([(n, real(n)) for n in networks[:12]])
    errors = [abs(math.log(float(learned.predict(n).latency_ms[0]) / real(n))) for n in networks[12:]]
    assert max(errors) < 0.08
    assert max(errors) < max(
        abs(math.log(float(base.predict(n).latency_ms[0]) / real(n))) for n in networks[12:]
    )
    assert learned.correction.log_sigma < PI.cost.interval.log_sigma.value
    assert learned.corrected([]) is learned


def test_impossible_measurements_are_refused() -> None:
    network = _networks(1)[0]
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(MeasurementError, match="positive"):
            Predictor(PI).corrected([(network, value)])


def test_nothing_to_price_is_said_so() -> None:
    batch = sample_batch(PI)
    with pytest.raises(BadKernelsError, match="0 policies of 12 kernels") as caught:
        Predictor(PI).predict(batch.take([]))
    assert caught.value.exit_code == 3
    assert len(Predictor(PI).predict(batch.take([3])).latency_ms) == 1


def test_energy_counts_macs_and_bytes() -> None:
    batch = make_batch(
        (KernelKind("Conv", weight_bearing=True),),
        {"cin": 8, "cout": 16, "kernel_h": 3, "kernel_w": 3, "out_h": 4},
    )
    found = Predictor(PI).predict(batch).energy_mj
    assert PI.energy is not None
    assert found is not None
    moved = float((batch.in_bytes() + batch.out_bytes()).sum()) * PI.energy.cache_pj_per_byte.value
    weights = 8 * 16 * 9 * 4 * PI.energy.memory_pj_per_byte.value
    expected = (4 * 16 * 8 * 9 * PI.energy.mac_pj["fp32"].value + moved + weights) * 1e-9
    assert float(found[0]) == pytest.approx(expected)
    silent = PI.model_copy(update={"energy": None})
    assert Predictor(silent).predict(batch).energy_mj is None
