"""The Arm model: counts by hand, Winograd's tiles, thread counts between the fitted ones, speed."""

from __future__ import annotations

import numpy as np
import pytest

from hw_profiles import KernelKind, Predictor, load_target, make_batch
from hw_profiles.costs.arm import (
    COUNTS,
    LAUNCH,
    ArmCost,
    conv_counts,
    counts_of,
    product_counts,
    winograd_tiles,
)
from hw_profiles.costs.base import Shapes
from hw_profiles.errors import BadTargetError
from hw_profiles.kernel import KernelBatch
from hw_profiles.target import Target

CONV = KernelKind("Conv", weight_bearing=True)
PI = load_target("raspberry-pi-4")


def _shapes(batch: KernelBatch) -> Shapes:
    return Shapes(
        batch, list(range(len(batch.kinds))), (np.zeros((len(batch), 1)), np.zeros((len(batch), 1)))
    )


def _as_ncnn(target: Target) -> Target:
    return target.model_copy(update={"runtime": target.runtime.model_copy(update={"name": "ncnn"})})


def test_counts_of_each_form_by_hand() -> None:
    batch = make_batch(
        (CONV,) * 5,
        {
            "cin": [30, 30, 64, 32, 128], "cout": [60, 60, 64, 32, 10], "groups": [1, 1, 64, 4, 1],
            "kernel_h": [1, 3, 3, 3, 1], "kernel_w": [1, 3, 3, 3, 1], "out_h": [7, 7, 14, 14, 1],
            "out_w": [7, 7, 14, 14, 1], "stride_h": [1, 2, 2, 1, 1], "stride_w": [1, 2, 2, 1, 1],
        },
    )  # fmt: skip
    found = {name: value[0].tolist() for name, value in conv_counts(_shapes(batch), winograd=True).items()}
    assert found["pointwise"] == [
        56 * 64 * 32,
        0,
        0,
        0,
        0,
    ]  # 49 pixels in eights, 60 outputs in eights, 30 in fours
    assert found["dense"] == [0, 56 * 64 * 32 * 9, 0, 0, 0]
    assert found["gather"] == [0, 49 * 30 * 9, 0, 0, 0]
    assert found["taps_strided"] == [0, 0, 196 * 64 * 9, 0, 0]
    assert found["grouped"] == [0, 0, 0, 196 * 32 * 8 * 9, 0]
    assert found["weights_row"] == [0, 0, 0, 0, 1280]
    assert set(found) <= set(COUNTS)


def test_winograd_takes_the_best_tile_and_belongs_to_ncnn() -> None:
    batch = make_batch(
        (CONV,) * 3,
        {
            "cin": [64, 64, 4],
            "cout": 64,
            "kernel_h": 3,
            "kernel_w": 3,
            "out_h": [7, 24, 24],
            "out_w": [7, 24, 24],
        },
    )
    mults, share = winograd_tiles(_shapes(batch))
    assert mults[0].tolist() == [4 * 36, 16 * 64, 16 * 64]  # F(4,3) pads 7x7 to 8x8; F(6,3) fits 24x24
    assert share[0].tolist() == [4.0, pytest.approx(64 / 9), pytest.approx(64 / 9)]
    fast = conv_counts(_shapes(batch), winograd=True)
    assert fast["winograd"][0].tolist() == [144 * 64 * 64, 1024 * 64 * 64, 0]
    assert not conv_counts(_shapes(batch), winograd=False)["winograd"].any()
    plain, ncnn = Predictor(PI).predict(batch), Predictor(_as_ncnn(PI)).predict(batch)
    assert (ncnn.kernel_ms[0, :2] < plain.kernel_ms[0, :2]).all()


def test_products_of_one_row_are_bound_by_weights() -> None:
    gemm = KernelKind("Gemm", weight_bearing=True)
    batch = make_batch((gemm, gemm), {"cin": 512, "cout": 1000, "out_h": [1, 10]})
    found = product_counts(_shapes(batch))
    assert found["weights_row"][0].tolist() == [512_000, 0]
    assert found["product"][0].tolist() == [0, 5_120_000]
    assert counts_of(batch, winograd=False).keys() == {("product", "float")}


def test_thread_counts_between_the_fitted_ones() -> None:
    batch = make_batch(
        (CONV,), {"cin": 64, "cout": 64, "kernel_h": 3, "kernel_w": 3, "out_h": 28, "out_w": 28}
    )
    one, two, three, four = (float(Predictor(PI, t).predict(batch).latency_ms[0]) for t in (1, 2, 3, 4))
    assert one > two > three > four
    assert two == pytest.approx(four + (one - four) * (1 / 2 - 1 / 4) / (1 - 1 / 4), rel=1e-9)
    without = PI.model_copy(update={"cost": PI.cost.model_copy(update={"constants": {}})})
    with pytest.raises(BadTargetError, match="lack the table float@1"):
        ArmCost(without)


def test_integers_pay_on_arm() -> None:
    columns = {"cin": 128, "cout": 128, "kernel_h": 3, "kernel_w": 3, "out_h": 28, "out_w": 28}
    for name in ("raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5"):
        target = load_target(name)
        plain = Predictor(target).predict(make_batch((CONV,), columns)).latency_ms[0]
        kind = KernelKind("QLinearConv", precision="int8", weight_bearing=True)
        integer = Predictor(target).predict(make_batch((kind,), columns)).latency_ms[0]
        assert 1.05 < plain / integer < 6.0


def test_many_policies_are_priced_as_each_alone() -> None:
    rng = np.random.default_rng(0)
    width = 8.0 * rng.integers(1, 32, (1_000, 50))
    batch = make_batch(
        (CONV,) * 50, {"cin": width, "cout": width, "kernel_h": 3, "kernel_w": 3, "out_h": 14, "out_w": 14}
    )
    predictor = Predictor(PI)
    found = predictor.predict(batch).latency_ms
    assert len(found) == 1_000
    for i in (0, 500, 999):
        assert predictor.predict(batch.row(i)).latency_ms[0] == pytest.approx(found[i])


def test_a_kernel_pays_no_more_overhead_than_its_own_work_and_its_launch() -> None:
    target = PI
    whole = target.cost.constants["float@1"]["overhead"].value * 1e-6
    rate = target.cost.constants["float@1"]["weights_row"].value * 1e-6
    wide = np.array([[8.0], [4096.0]])
    batch = make_batch([KernelKind("Gemm", weight_bearing=True)], {"cin": wide, "cout": wide})
    tiny, large = Predictor(target, 1).predict(batch).latency_ms
    work = rate * wide[:, 0] ** 2
    assert tiny == pytest.approx(2 * work[0] + LAUNCH * whole, rel=0.05)
    assert large == pytest.approx(work[1] + whole, rel=0.05)
    assert tiny < 0.3 * whole
