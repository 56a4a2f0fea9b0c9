"""Several threads on top of one: numbers that networks tell, what rests on them, and the time each gets."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from hw_profiles.costs.threads import longest_part
from hw_profiles.devices.simulated import SimulatedDevice
from hw_profiles.filling import SINGLE_SHARE, fill, single_of
from hw_profiles.kernel import COLUMNS, KernelBatch, KernelKind
from hw_profiles.learned import Learned, Observation, learn
from hw_profiles.learned_store import load, save
from hw_profiles.predictor import Predictor
from hw_profiles.profiles import ProfileStore
from hw_profiles.profiling import Progress
from hw_profiles.refit import flatten
from hw_profiles.threaded import (
    START,
    Single,
    after_divided,
    fit_numbers,
    fixed_us,
    kernel_us,
    own_us,
    touching,
)
from tests.hw_profiles.synthetic import PRIOR, measured, networks, real_us, truth

REAL = START | {
    "fixed": 1.3, "serial": 1.05, "after": 0.8, "longest_conv_float": 1.15, "wait_conv_float": 1.0,
    "longest_conv_int": 1.25, "wait_conv_int": 0.5, "wait_memory": 0.3, "rest_memory": 0.1,
}  # fmt: skip

#: Microseconds that the profiler adds to a divided kernel and to another.
ADDED = (4.0, 1.5)


def _single(batch: KernelBatch) -> Single:
    from hw_profiles.costs import cost_model

    costs, us = cost_model(truth()).price(batch, 1), real_us(batch, truth())[0]
    part = longest_part(batch, 2)
    return Single(us[None], part, after_divided(part, touching(batch)), costs.classes, costs.network_us)


def _two_us(batch: KernelBatch) -> float:
    alone = _single(batch)
    return float(kernel_us(REAL, alone).sum()) + fixed_us(REAL, alone)


def _on_two(batches: list[KernelBatch], seed: int = 0, slow: float = 0.1) -> list[Observation]:
    """Measured with two threads; a tenth of them while the threads shared a core."""
    rng = np.random.default_rng(seed)
    factors = np.where(
        rng.random(len(batches)) < slow, 1.7, 1.0 + np.abs(rng.normal(0.0, 0.01, len(batches)))
    )
    return [
        Observation(b, _two_us(b) * 1e-3 * f, 0.02, np.floor(_profiled_us(b) * f))
        for b, f in zip(batches, factors, strict=True)
    ]


def _profiled_us(batch: KernelBatch) -> np.ndarray:
    """What the profiler says of kernels: it adds to each, more where the kernel is divided."""
    alone = _single(batch)
    return kernel_us(REAL, alone)[0] + np.where(alone.part[0] < 1.0, *ADDED)


@cache
def _alone() -> Learned:
    return learn(measured(networks(200, 100), truth()), PRIOR, calibrated=False)


def _errors(learned: Learned) -> np.ndarray:
    predictor = replace(Predictor(PRIOR, 2), learned=learned)
    batches = networks(60, 9000)
    predicted = [float(predictor.predict(b).latency_ms[0]) * 1e3 for b in batches]
    return np.abs(np.log(np.array(predicted) / np.array([_two_us(b) for b in batches])))


def test_where_nothing_was_measured_a_kernel_takes_its_longest_part() -> None:
    batch = networks(1, 3)[0]
    alone = _single(batch)
    assert (alone.part < 1.0).any()
    np.testing.assert_allclose(kernel_us(START, alone), alone.us * alone.part)
    assert fixed_us(START, alone) == alone.fixed_us


def test_networks_tell_the_numbers_though_some_were_slow() -> None:
    batches = networks(300, 5)
    singles, rows = [_single(b) for b in batches], _on_two(batches)
    flat = Single(
        *(np.concatenate([getattr(s, n)[0] for s in singles])[None] for n in ("us", "part", "after")),
        np.concatenate([s.classes for s in singles]),
        singles[0].fixed_us,
    )
    owner = np.repeat(np.arange(len(batches)), [len(b.kinds) for b in batches])
    found = fit_numbers(owner, np.array([r.ms * 1e3 for r in rows]), flat)
    error = [
        np.log((kernel_us(found, s).sum() + fixed_us(found, s)) / _two_us(b))
        for s, b in zip(singles, batches, strict=True)
    ]
    assert np.quantile(np.abs(error), 0.9) < 0.04
    assert abs(np.median(error)) < 0.02
    assert all(value >= 0.0 for value in found.values())


def test_two_threads_are_learned_better_on_top_of_one() -> None:
    rows = _on_two(networks(60, 200))
    on_top = learn(rows, PRIOR, 2, single=_alone())
    assert (on_top.kernels, on_top.networks) == (sum(len(r.batch.kinds) for r in rows), 60)
    assert "60 networks" in on_top.backing
    assert "2 threads, and 200 with one" in on_top.backing
    rows = [replace(row, kernel_us=None) for row in rows]
    on_top, without = (learn(rows, PRIOR, 2, calibrated=False, single=s) for s in (_alone(), None))
    assert on_top.kernels == 0
    assert np.median(_errors(on_top)) < 0.05
    assert np.median(_errors(on_top)) < 0.7 * np.median(_errors(without))
    # One thread rests on nothing else, and nothing rests on what was never measured.
    assert learn(measured(networks(5, 1), truth()), PRIOR, 1, single=_alone()).single is None
    assert learn(rows, PRIOR, 2, calibrated=False, single=learn((), PRIOR)).single is None


def test_policies_are_priced_together_as_alone() -> None:
    learned = learn(_on_two(networks(40, 200)), PRIOR, 2, calibrated=False, single=_alone())
    one = networks(1, 4)[0]
    wider = KernelBatch(one.kinds, {**one.columns, "cout": one["cout"] * 2.0, "cin": one["cin"] * 2.0})
    both = KernelBatch(one.kinds, {n: np.concatenate([one[n], wider[n]]) for n in one.columns})
    found = [learned.price(b)[0].busy_us for b in (one, wider, both)]
    np.testing.assert_allclose(found[2], np.concatenate(found[:2]), rtol=1e-6)


def test_kernels_under_the_profiler_tell_what_sums_do_not() -> None:
    """Some kernels gain less from two threads than others of their kind: sums leave open which."""

    def two_us(batch: KernelBatch) -> np.ndarray:
        return kernel_us(REAL, _single(batch))[0] * np.where(pointwise(batch), 1.5, 1.0)

    def pointwise(batch: KernelBatch) -> np.ndarray:
        return np.array([kind.op == "QLinearConv" for kind in batch.kinds]) & (batch["kernel_h"][0] == 1.0)

    def observed(batch: KernelBatch, told: bool) -> Observation:
        us, added = two_us(batch), np.where(longest_part(batch, 2)[0] < 1.0, *ADDED)
        whole = us.sum() + fixed_us(REAL, _single(batch))
        return Observation(batch, whole * 1e-3, 0.02, np.floor(us + added) if told else None)

    def error(told: bool) -> float:
        rows = [observed(b, told) for b in networks(40, 200)]
        learned = learn(rows, PRIOR, 2, calibrated=False, single=_alone())
        found = []
        for batch in networks(60, 9000):
            costs, real = learned.costs(batch), two_us(batch)
            chosen = (real > 10.0) & pointwise(batch)
            found += list(np.log((costs.busy_us + costs.overhead_us)[0] / real)[chosen])
        assert len(found) > 10
        return float(np.median(np.abs(found)))

    assert error(told=True) < 0.7 * error(told=False)


def test_what_the_profiler_adds_is_taken_off_again() -> None:
    batches = networks(30, 11)
    flat = flatten([(b, _two_us(b) * 1e-3, 0.02) for b in batches], [_profiled_us(b) for b in batches], PRIOR)
    fixed = fixed_us(REAL, _single(batches[0]))
    divided = longest_part(flat.batch, 2)[0] < 1.0
    excess = flat.sums(flat.kernel_us) + fixed - flat.network_us
    excess[3] = np.nan
    found = own_us(flat.owner, flat.kernel_us, excess, flat.network_us, divided, touching(flat.batch))
    real = np.concatenate([kernel_us(REAL, _single(b))[0] for b in batches])
    np.testing.assert_allclose(found[touching(flat.batch)], real[touching(flat.batch)], atol=0.05)
    nothing = np.full(len(batches), np.nan)
    assert np.isnan(own_us(flat.owner, real, nothing, flat.network_us, divided, touching(flat.batch))).all()


def _kernels(*rows: tuple[str, str, dict[str, float]]) -> KernelBatch:
    """Kernels of (operation, domain and so on, columns); what is not given is 1."""
    kinds = tuple(KernelKind(op, precision=precision) for op, precision, _ in rows)
    names = COLUMNS
    return KernelBatch(kinds, {n: np.array([[given.get(n, 1.0) for _, _, given in rows]]) for n in names})


def test_matrix_products_beside_those_of_heads_are_divided_as_alone() -> None:
    plain = ("MatMul", "fp32", {"in_h": 32.0, "out_h": 32.0, "cin": 256.0, "cout": 256.0})
    heads = ("MatMul", "fp32", {"in_h": 32.0, "out_h": 32.0, "cin": 32.0, "cout": 32.0, "groups": 4.0})
    alone = [longest_part(_kernels(row), 2)[0, 0] for row in (plain, heads)]
    np.testing.assert_array_equal(longest_part(_kernels(plain, heads), 2)[0], alone)
    assert alone[0] == 0.5


@pytest.mark.parametrize(
    ("row", "part"),
    [
        (("ReorderOutput", "fp32", {"out_h": 32.0, "out_w": 32.0, "out_elements": 16384.0}), 1.0),
        (("ReorderOutput", "fp32", {"out_h": 32.0, "out_w": 32.0, "out_elements": 49152.0}), 2 / 3),
        (("ReorderOutput", "fp32", {"out_h": 4.0, "out_w": 4.0, "out_elements": 512.0}), 1.0),
        (("SkipLayerNormalization", "fp32", {"cin": 64.0, "out_elements": 2048.0}), 0.5),
        (("LayerNormalization", "fp32", {"out_elements": 12288.0, "in_elements": 12288.0}), 1.0),
        (("LayerNormalization", "fp32", {"out_elements": 40960.0, "in_elements": 40960.0}), 0.5),
        (("NhwcMaxPool", "int8", {"kernel_h": 3.0, "kernel_w": 3.0, "out_elements": 1e5}), 1.0),
        (("MaxPool", "int8", {"kernel_h": 3.0, "kernel_w": 3.0, "out_elements": 17000.0}), 1.0),
        (("MaxPool", "int8", {"kernel_h": 3.0, "kernel_w": 3.0, "out_elements": 19000.0}), 0.5),
        (("DequantizeLinear", "int8", {"out_elements": 1e6, "in_elements": 1e6}), 1.0),
        (("QLinearAdd", "int8", {"out_elements": 1.3e5, "in_elements": 2.6e5}), 1.0),
        (("QLinearAdd", "int8", {"out_elements": 1.7e5, "in_elements": 3.4e5}), 0.5),
        (("Concat", "fp32", {"out_elements": 1.7e5}), 1.0),
        (("Concat", "fp32", {"out_elements": 3e5}), 0.5),
        (("Transpose", "int8", {"cin": 3.0, "out_elements": 1.5e5}), 1.0),
        (("Transpose", "int8", {"cin": 32.0, "out_elements": 1.5e5}), 0.5),
        (("ReduceMean", "fp32", {"in_elements": 12000.0, "out_elements": 96.0}), 1.0),
        (("ReduceMean", "fp32", {"in_elements": 40000.0, "out_elements": 320.0}), 0.5),
    ],
)
def test_kernels_are_divided_as_they_were_seen_to_be(
    row: tuple[str, str, dict[str, float]], part: float
) -> None:
    assert longest_part(_kernels(row), 2)[0, 0] == pytest.approx(part)
    assert longest_part(_kernels(row), 1)[0, 0] == 1.0


def test_what_changes_no_data_hands_on_who_wrote_it() -> None:
    parts = np.array([[0.5, 1.0, 1.0, 1.0, 0.5, 1.0]])
    data = np.array([True, False, True, True, True, True])
    np.testing.assert_array_equal(after_divided(parts, data), [[0, 0, 1, 0, 0, 1]])
    first = np.array([0, 0, 2, 2, 2, 2])
    np.testing.assert_array_equal(after_divided(parts, data, first), [[0, 0, 0, 0, 0, 1]])


def test_a_networks_first_kernel_comes_after_none() -> None:
    batches = networks(3, 7)
    flat = flatten([(b, 1.0, 0.02) for b in batches], [None] * 3, PRIOR)
    found = flat.after_divided(longest_part(flat.batch, 2))
    expected = np.concatenate([after_divided(longest_part(b, 2), touching(b))[0] for b in batches])
    np.testing.assert_array_equal(found[0], expected)


def test_round_trip_needs_what_it_rests_on(tmp_path: Path) -> None:
    learned, path = learn(_on_two(networks(40, 200)), PRIOR, 2, single=_alone()), tmp_path / "two.npz"
    save(learned, path, "key")
    again = load(path, PRIOR, "key", _alone())
    assert again is not None
    batch = networks(1, 8)[0]
    for one, other in zip(learned.price(batch)[0].busy_us, again.price(batch)[0].busy_us, strict=True):
        np.testing.assert_allclose(one, other)
    assert load(path, PRIOR, "key") is None
    save(_alone(), path, "key")
    assert load(path, PRIOR, "key", _alone()) is None


def test_a_share_of_the_time_goes_to_one_thread(tmp_path: Path) -> None:
    store, seen = ProfileStore(tmp_path), list[Progress]()
    device = SimulatedDevice(facts=replace(SimulatedDevice().facts(), runtime_version="1.32.0"))
    report = fill(device, PRIOR, store, 2, 6.0, progress=seen.append)
    one, two = (store.open(device.facts(), n) for n in (1, 2))
    assert report.measured == len(one.measured) + len(two.measured)
    assert len(one.measured) > 0 < len(two.measured)
    assert report.seconds < 12.0
    assert [p.measured for p in seen] == sorted(p.measured for p in seen)
    assert [p.seconds for p in seen] == sorted(p.seconds for p in seen)
    assert seen[-1].measured == report.measured
    assert [p.name.split("-")[2][:2] for p in report.paths] == ["1t", "2t"]
    assert single_of(store, device.facts(), 1) is None
    found = single_of(store, device.facts(), 2)
    assert found is not None
    predictor = Predictor(PRIOR, 2).profiled(two, beside=store.path(device.facts(), 2), single=found)
    assert predictor.learned is not None
    assert predictor.learned.single is not None
    assert single_of(ProfileStore(tmp_path / "empty"), device.facts(), 2) is None
    stop = threading.Event()
    stop.set()
    assert fill(SimulatedDevice(), PRIOR, ProfileStore(tmp_path / "b"), 2, 5.0, stop=stop).ended == "stopped"
    assert 0.0 < SINGLE_SHARE < 1.0


@pytest.mark.parametrize("threads", [2, 4])
def test_more_threads_never_cost_less_than_the_longest_part(threads: int) -> None:
    batch = networks(1, 11)[0]
    part = longest_part(batch, threads)
    assert (part >= 1.0 / threads - 1e-9).all()
    alone = replace(_single(batch), part=part, after=after_divided(part, touching(batch)))
    assert (kernel_us(REAL, alone) >= kernel_us(START, alone) - 1e-9).all()
