"""GPU waves and BitFusion's array: counts by hand, the published table exactly, the model near it."""

from __future__ import annotations

import csv
import gzip

import numpy as np
import pytest

from hw_profiles import KernelKind, Predictor, load_target, make_batch
from hw_profiles.costs.base import Shapes
from hw_profiles.costs.fpga import BitFusionCost, compute_cycles, fused_bits, overlap, read_table
from hw_profiles.costs.gpu import matrix_features
from hw_profiles.kernel import KernelBatch
from hw_profiles.target import DATA_FOLDER

T4, FPGA = load_target("gpu-t4"), load_target("fpga-bitfusion")
ARRAY = KernelKind("Conv", precision="w8a8", weight_bearing=True)


def _shapes(batch: KernelBatch) -> Shapes:
    nothing = np.zeros((len(batch), 1))
    return Shapes(batch, list(range(len(batch.kinds))), (nothing, nothing))


def _records() -> list[dict[str, str]]:
    with gzip.open(DATA_FOLDER / "apq_bitfusion.csv.gz", "rt", encoding="utf-8") as file:
        file.readline()
        return list(csv.DictReader(file))


def _layer(r: dict[str, str]) -> KernelBatch:
    side, out = float(r["in_h"]), np.ceil(float(r["in_h"]) / float(r["stride_h"]))
    columns = {n: float(r[n]) for n in ("cin", "cout", "kernel_h", "stride_h", "weight_bits", "act_bits")}
    columns |= {"kernel_w": columns["kernel_h"], "stride_w": columns["stride_h"], "in_h": side, "in_w": side}
    columns |= {"out_h": out, "out_w": out, "groups": columns["cin"] if r["depthwise"] == "1" else 1.0}
    return make_batch((ARRAY,), columns)


def test_shapes_of_the_table_get_its_values_exactly() -> None:
    predictor = Predictor(FPGA)
    for r in _records()[::500]:
        found = predictor.predict(_layer(r))
        assert found.energy_mj is not None
        assert float(found.latency_ms[0]) == pytest.approx(float(r["cycles"]) * 2e-6)
        assert float(found.energy_mj[0]) == pytest.approx(float(r["mj"]))
        assert "1 of 1 kernels read from the table" in found.backing


def test_the_model_stays_near_the_table_and_is_used_off_it() -> None:
    model = BitFusionCost(FPGA)
    records = _records()[::37]
    errors = [
        np.log(float(model.model_cycles(_shapes(_layer(r)))[0, 0]) / float(r["cycles"])) for r in records
    ]
    assert np.median(np.abs(errors)) < 0.06
    assert np.max(np.abs(errors)) < 0.6
    off = Predictor(FPGA).predict(make_batch((ARRAY,), {"cin": 17, "cout": 23, "out_h": 9, "out_w": 9}))
    assert "0 of 1 kernels read from the table" in off.backing
    assert float(off.latency_ms[0]) > 0.0


def test_array_cycles_by_hand() -> None:
    batch = make_batch(
        (ARRAY,) * 4,
        {
            "cin": [65, 64, 32, 64], "cout": [9, 32, 32, 32], "groups": [1, 1, 32, 1], "out_h": 5, "out_w": 5,
            "kernel_h": [1, 1, 3, 1], "kernel_w": [1, 1, 3, 1],
            "weight_bits": [8, 4, 4, 6], "act_bits": [8, 4, 8, 8],
        },
    )  # fmt: skip
    assert compute_cycles(_shapes(batch))[0].tolist() == [25 * 2 * 2, 25, 25 * 9 * 2, 25 * 4]
    assert fused_bits(np.array([2.0, 3.0, 4.0, 6.0, 8.0, 12.0])).tolist() == [2, 4, 4, 8, 8, 16]
    assert len(read_table("apq_bitfusion.csv.gz")[0]) == 6567


def test_fewer_bits_are_worth_something_and_odd_shapes_are_modelled() -> None:
    bits = np.array([[8.0], [4.0]])
    batch = make_batch(
        (ARRAY,),
        {
            "cin": 64,
            "cout": 64,
            "kernel_h": 3,
            "kernel_w": 3,
            "out_h": 32,
            "out_w": 32,
            "weight_bits": bits,
            "act_bits": bits,
        },
    )
    eight, four = Predictor(FPGA).predict(batch).latency_ms
    assert 1.5 < eight / four < 4.5
    assert overlap(np.array([3.0]), np.array([4.0]), 2.0) == pytest.approx(5.0)
    assert overlap(np.array([3.0]), np.array([0.0]), 2.0) == pytest.approx(3.0)


def test_gpu_waves_by_hand_and_launch_dominates_small_kernels() -> None:
    kinds = (KernelKind("Conv", precision="fp32", weight_bearing=True),)
    batch = make_batch(kinds, {"batch": 32, "cin": 64, "cout": 128, "out_h": 28, "out_w": 28})
    found = matrix_features(_shapes(batch), "fp32", 40.0)
    assert float(found["macs"][0, 0]) == 32 * 784 * 128 * 64
    assert (
        float(found["waves"][0, 0]) == 5 * 128 * 128 * 64 * 40
    )  # 196 tiles on 40 multiprocessors: five waves
    small = make_batch(kinds, {"batch": 1, "cin": [[8.0], [16.0]], "cout": 8, "out_h": 7, "out_w": 7})
    one, two = Predictor(T4).predict(small).latency_ms
    assert two / one < 1.1


def test_tensor_cores_pay_when_large() -> None:
    columns = {"batch": 32, "cin": 256, "cout": 256, "kernel_h": 3, "kernel_w": 3, "out_h": 28, "out_w": 28}
    ms = {}
    for precision in ("fp32", "fp16", "int8"):
        kind = KernelKind("Conv", precision=precision, weight_bearing=True)
        ms[precision] = float(Predictor(T4).predict(make_batch((kind,), columns)).latency_ms[0])
    assert ms["fp32"] > 2.0 * ms["fp16"]
    assert ms["fp16"] > 1.3 * ms["int8"]
    assert ms["int8"] > 28 * 28 * 32 * 256 * 256 * 9 / 65e12 * 1e3  # not beyond the data sheet's peak
