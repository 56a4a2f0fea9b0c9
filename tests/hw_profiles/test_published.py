"""Published rows and tables: what they are known to say, and what the models fitted to them must say too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hw_profiles import Predictor, load_target
from hw_profiles.boards import all_boards, fit_boards
from hw_profiles.haq import haq_table, mobilenet_v2
from hw_profiles.kernel import Array, KernelBatch, KernelKind, make_batch
from hw_profiles.published import NAMES, ncnn_networks, ncnn_rows, paddle_rows

PIS = ("raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-zero-2-w")


def _bits(weight: Array, act: Array) -> Array:
    found = Predictor(load_target("fpga-haq-bismo")).predict(mobilenet_v2(weight, act))
    return np.asarray(found.latency_ms * load_target("fpga-haq-bismo").device.clock_ghz.value * 1e6)


def test_haq_table_sums_to_the_published_cost() -> None:
    eight = np.full((1, 53), 8.0)
    _, table = haq_table()
    assert int(table[:, 7, 7].sum()) == 39_624_933
    assert float(_bits(eight, eight)[0]) == pytest.approx(39_624_933, abs=0.5)
    found = Predictor(load_target("haq")).predict(mobilenet_v2(eight, eight))
    assert "53 of 53 kernels read from the table" in found.backing


def test_haq_floor_with_the_ends_pinned() -> None:
    _, table = haq_table()
    least = table[1:-1, 1:, 1:].reshape(51, -1).min(axis=1).sum() + table[[0, -1], 7, 7].sum()
    assert least / table[:, 7, 7].sum() == pytest.approx(0.2098, abs=5e-5)
    low = np.full((1, 53), 2.0)
    low[0, [0, -1]] = 8.0
    full = np.full((1, 53), 8.0)
    assert float(_bits(low, low)[0] / _bits(full, full)[0]) == pytest.approx(0.2098, abs=5e-5)


def test_every_entry_of_haqs_table_is_used_as_it_stands() -> None:
    _, table = haq_table()
    rng = np.random.default_rng(0)
    weight, act = rng.integers(1, 9, (2, 20, 53)).astype(np.float64)
    wanted = table[np.arange(53), weight.astype(int) - 1, act.astype(int) - 1].sum(axis=1)
    np.testing.assert_allclose(_bits(weight, act), wanted, rtol=1e-9)
    assert len(np.unique(wanted)) == 20


def test_published_rows_are_complete_and_known() -> None:
    rows, networks = ncnn_rows(), ncnn_networks()
    assert len(rows) == 3588
    assert len(paddle_rows()) == 80
    assert {r.model for r in (*rows, *paddle_rows())} <= set(networks)
    assert all(r.ms > 0.0 for r in rows)
    assert networks["resnet18"].macs == pytest.approx(1.82692e9, rel=0.01)
    assert networks["mobilenet"].macs == pytest.approx(0.56874e9, rel=0.01)
    assert networks["vgg16"].counts[NAMES.index("weights_row")] == pytest.approx(123.6e6, rel=0.01)


@pytest.mark.parametrize("name", PIS)
def test_four_threads_are_worth_about_two_on_raspberry_pis(name: str) -> None:
    target = load_target(name)
    batches = [n.batch for n in ncnn_networks().values() if n.name in ("mobilenet", "squeezenet", "resnet18")]
    gains = [
        float(Predictor(target, 1).predict(b).latency_ms[0] / Predictor(target, 4).predict(b).latency_ms[0])
        for b in batches
    ]
    assert min(gains) > 1.4
    assert max(gains) < 3.0
    two = float(Predictor(target, 2).predict(batches[0]).latency_ms[0])
    assert Predictor(target, 4).predict(batches[0]).latency_ms[0] < two
    assert two < Predictor(target, 1).predict(batches[0]).latency_ms[0]


@pytest.mark.parametrize("name", PIS[:2])
def test_integers_gain_a_little_on_cores_without_dot_products(name: str) -> None:
    """Published: int8 in ncnn is 1.1 to 1.5 times float on Raspberry Pi 3 and 4, never four times."""
    target = load_target(name)
    target = target.model_copy(update={"runtime": target.runtime.model_copy(update={"name": "ncnn"})})
    gains = []
    for model in ("mobilenet", "resnet18", "squeezenet", "vgg16"):
        batch = ncnn_networks()[model].batch
        integer = KernelBatch(tuple(replace(k, precision="int8") for k in batch.kinds), batch.columns)
        one, other = (float(Predictor(target, 1).predict(b).latency_ms[0]) for b in (batch, integer))
        gains.append(one / other)
    assert min(gains) > 1.0
    assert max(gains) < 1.6
    assert 1.1 < np.median(gains) < 1.5


@pytest.mark.slow
def test_left_out_networks_are_predicted_on_raspberry_pis() -> None:
    """Three networks, each hidden on all boards; the whole table is in scripts/bench_predictor.py."""
    boards, errors = all_boards(), []
    for name in ("mobilenet", "squeezenet", "mnasnet"):
        predicted = fit_boards(boards.without_network(name), integers=False).log_ms("floats")
        n = boards.networks.index(name)
        errors += [
            predicted[i, n] - np.log(b.ms[n]) for i, b in enumerate(boards.floats) if "Pi" in b.device[:12]
        ]
    measured = np.abs(np.array(errors))
    assert np.isfinite(measured).sum() >= 22
    assert np.nanmedian(measured) < 0.1
    assert np.nanmax(measured) < 0.35


def test_latency_is_sublinear_in_macs() -> None:
    """Halving the width of a network quarters its MACs and saves less: MACs^0.78 on a phone, published."""
    kinds = [KernelKind("Conv", weight_bearing=True)] * 4
    width = np.array([[32.0], [64.0], [128.0], [256.0]]) * np.array([[0.5, 1.0, 2.0, 4.0]])
    batch = make_batch(
        kinds, {"cin": width, "cout": width, "out_h": [[56, 28, 14, 7]], "out_w": [[56, 28, 14, 7]]}
    )
    for name in (*PIS, "pixel-3", "rk3588"):
        latency = Predictor(load_target(name), 1).predict(batch).latency_ms
        slope = np.polyfit(np.log(batch.macs().sum(axis=1)), np.log(latency), 1)[0]
        assert 0.3 < slope < 0.98
        assert (np.diff(latency) > 0.0).all()
