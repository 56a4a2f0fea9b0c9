"""CPU cost model: staircase, variants told from shapes, caches, fallbacks; features re-derived by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hw_profiles import KernelKind, Predictor, load_target, make_batch
from hw_profiles.costs import cpu, cpu_loops
from hw_profiles.costs.base import CLASSES, Shapes
from hw_profiles.fitting import design_rows, predict_ns
from hw_profiles.kernel import ASYMMETRIC, Array, KernelBatch

X86 = load_target("x86-avx512-vnni")
NCHWC = KernelKind("Conv", "com.microsoft.nchwc", weight_bearing=True)
QCONV = KernelKind("QLinearConv", "com.microsoft", "int8", weight_bearing=True)


def _conv(kind: KernelKind, **columns: object) -> KernelBatch:
    return make_batch((kind,), {"kernel_h": 3, "kernel_w": 3, "out_h": 14, "out_w": 14, **columns})


def _latency(kind: KernelKind, **columns: object) -> Array:
    return Predictor(X86).predict(_conv(kind, **columns)).latency_ms


def test_float_convolutions_step_every_sixteen_output_channels() -> None:
    width = np.array([[33.0], [40.0], [48.0], [49.0]])
    latency = _latency(NCHWC, cin=32, cout=np.ceil(width / 16) * 16)
    assert latency[0] == latency[1] == latency[2] < latency[3]
    s = Shapes(_conv(NCHWC, cin=32, cout=width), [0], (np.zeros((4, 1)), np.zeros((4, 1))))
    padded = np.array([48, 48, 48, 64])
    assert cpu_loops.nchwc_dense(s)["macs"][:, 0].tolist() == (196 * padded * 32 * 9).tolist()


def test_integer_convolutions_are_dear_off_a_multiple_of_four() -> None:
    width = np.arange(12.0, 17.0)[:, None]
    latency = dict(zip(width[:, 0], _latency(QCONV, cin=32, cout=width), strict=True))
    assert latency[15.0] > latency[16.0]
    assert latency[13.0] > latency[12.0]
    assert latency[14.0] > latency[16.0]


def test_integer_dense_counts_rows_columns_and_depth() -> None:
    batch = _conv(QCONV, cin=3, cout=18)
    s = Shapes(batch, [0], (np.zeros((1, 1)), np.zeros((1, 1))))
    found = {name: float(v[0, 0]) for name, v in cpu_loops.int8_dense(s).items()}
    assert found["macs"] == 196 * 32 * 28  # 18 channels take 32 columns, 27 products take 28
    assert found["tiles"] == 33 * 32 * 28  # 196 pixels in rows of six
    assert (found["sixteens"], found["fours"], found["ones"]) == (196 * 16, 0, 196 * 2)
    assert found["gather"] == 196 * 9


def test_depthwise_gains_nothing_from_integers_and_is_told_from_its_shape() -> None:
    thin = {"cin": 96, "cout": 96, "groups": 96}
    assert float(_latency(NCHWC, **thin)[0]) < 1.5 * float(_latency(QCONV, **thin)[0])
    batch = make_batch((QCONV, QCONV, QCONV), {"cin": 8, "cout": [8, 8, 16], "groups": [8, 4, 8], "out_h": 9})
    nothing = (np.zeros((1, 1)), np.zeros((1, 1)))
    assert cpu.variants("int8", Shapes(batch, [0, 1, 2], nothing)).tolist() == [[7, 4, 4]]
    classes = Predictor(X86).explain(_conv(QCONV, **thin))
    assert classes["depthwise"] > 0.0
    assert classes["conv_int"] == 0.0


def test_weights_with_an_offset_lose_the_direct_kernel() -> None:
    offset = KernelKind("QLinearConv", "com.microsoft", "int8", fused=(ASYMMETRIC,), weight_bearing=True)
    for width in (16, 32, 64):
        plain, slow = (float(_latency(k, cin=width, cout=width)[0]) for k in (QCONV, offset))
        assert 1.1 < slow / plain < 2.5
    assert float(_latency(offset, cin=6, cout=6)[0]) == float(_latency(QCONV, cin=6, cout=6)[0])


def test_direct_integer_kernels_want_channels_in_fours_and_sixteen_of_them() -> None:
    batch = _conv(QCONV, cin=[[16.0], [15.0], [16.0], [16.0]], cout=[[20.0], [20.0], [18.0], [12.0]])
    nothing = (np.zeros((4, 1)), np.zeros((4, 1)))
    assert cpu.has_direct_kernel(Shapes(batch, [0], nothing))[:, 0].tolist() == [True, False, False, False]
    tables = [
        cpu.variant_table("int8", int(v)) for v in cpu.variants("int8", Shapes(batch, [0], nothing))[:, 0]
    ]
    assert tables == ["int8.dense", "int8.gathered", "int8.gathered", "int8.gathered"]


def test_weights_that_exceed_the_cache_are_cold() -> None:
    batch = _conv(NCHWC, cin=[[32.0], [512.0], [4096.0]], cout=512)
    core, last = cpu.cold_shares(batch, 2.0**20, 2.0**25)
    held = (32 * 512 * 9 + 196 * (32 + 512)) * 4  # weights and the largest activations, bytes
    assert core[:, 0].tolist() == [pytest.approx(held / 2**20 - 0.5), 1.0, 1.0]
    assert last[0, 0] == 0.0
    assert last[2, 0] == 1.0


def test_variants_that_change_from_policy_to_policy_cost_as_alone() -> None:
    together = _conv(NCHWC, cin=[[8.0], [16.0], [32.0]], cout=32, groups=[[1.0], [1.0], [32.0]])
    found = Predictor(X86).predict(together).latency_ms
    alone = [float(Predictor(X86).predict(together.row(i)).latency_ms[0]) for i in range(3)]
    assert np.allclose(found, alone)
    assert len(set(alone)) == 3


def test_price_is_the_sum_of_constants_times_counts() -> None:
    kinds = (
        NCHWC,
        QCONV,
        KernelKind("QLinearAdd", precision="int8"),
        KernelKind("Gemm", weight_bearing=True),
    )
    batch = make_batch(
        kinds, {"cin": 24, "cout": 24, "kernel_h": [3, 1, 1, 1], "kernel_w": [3, 1, 1, 1], "out_h": 7}
    )
    constants = {(t, n): c.value for t, entries in X86.cost.constants.items() for n, c in entries.items()}
    expected = [predict_ns(row, constants) * 1e-6 for row in design_rows(batch, 2.0**20, 2.0**25)]
    assert Predictor(X86).predict(batch).kernel_ms[0].tolist() == pytest.approx(expected)
    assert all(value > 0 for value in expected)


def test_kinds_find_family_table_and_class() -> None:
    assert cpu.family(KernelKind("FusedConv", "com.microsoft")) == "plain"
    assert cpu.family(KernelKind("QGemm", "com.microsoft", "int8")) == "gemm.int8"
    assert cpu.simple_table(KernelKind("MaxPool", precision="int8")) == "qpool"
    assert cpu.simple_table(KernelKind("MaxPool", "com.microsoft.nchwc")) == "pool_nchwc"
    assert cpu.simple_table(KernelKind("Reshape")) == ""
    assert cpu.simple_table(KernelKind("Nope")) == "unknown"
    assert len(CLASSES) == len(set(CLASSES))
