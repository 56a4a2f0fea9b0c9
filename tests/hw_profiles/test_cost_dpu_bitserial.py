"""DPU and bit-serial array: counted cycles by hand, host round trips, stages, both sorts of bits."""

from __future__ import annotations

import numpy as np
import pytest

from hw_profiles import KernelKind, Predictor, load_target, make_batch
from hw_profiles.costs.base import Shapes
from hw_profiles.costs.bitserial import combine, stages
from hw_profiles.costs.dpu import engine_features, runs_on_host
from hw_profiles.kernel import KernelBatch

DPU, SERIAL = load_target("fpga-zcu104-dpu"), load_target("fpga-haq-bismo")
ARRAY = KernelKind("Conv", precision="w8a8", weight_bearing=True)


def _shapes(batch: KernelBatch) -> Shapes:
    return Shapes(
        batch, list(range(len(batch.kinds))), (np.zeros((len(batch), 1)), np.zeros((len(batch), 1)))
    )


def test_engine_cycles_by_hand_and_channels_in_sixteens() -> None:
    batch = make_batch(
        (ARRAY,) * 3,
        {
            "cin": [64, 17, 48], "cout": [64, 33, 48], "groups": [1, 1, 48], "kernel_h": [3, 1, 3],
            "kernel_w": [3, 1, 3], "out_h": [28, 28, 14], "out_w": [28, 28, 14],
        },
    )  # fmt: skip
    found = engine_features(_shapes(batch))
    assert found["cycles"][0].tolist() == [28 * 4 * 9 * 4 * 4, 28 * 4 * 2 * 3, 0]
    assert found["cycles_depthwise"][0].tolist() == [0, 0, 14 * 2 * 9 * 3]
    columns = {"cin": 256.0, "kernel_h": 3, "kernel_w": 3, "out_h": 28, "out_w": 28}
    width = np.array([[240.0], [241.0], [256.0]])
    low, odd, high = Predictor(DPU).predict(make_batch((ARRAY,), {**columns, "cout": width})).latency_ms
    assert odd - low == pytest.approx(28 * 4 * 9 * 16 / 300e3, rel=0.1)  # one more block of output channels
    assert high == pytest.approx(odd, rel=0.02)
    assert high > 256 * 256 * 9 * 28 * 28 / (2048 * 300e3)  # not beyond the peak


def test_what_the_dpu_lacks_goes_to_the_host_and_back() -> None:
    relu, soft, product = KernelKind("Relu"), KernelKind("Softmax"), KernelKind("MatMul")
    assert not runs_on_host(relu)
    assert runs_on_host(soft)
    assert runs_on_host(product)
    assert not runs_on_host(KernelKind("Gemm", weight_bearing=True))
    batch = make_batch((ARRAY, relu, soft), {"cin": 64, "out_h": 28, "out_w": 28})
    conv, light, host = Predictor(DPU).predict(batch).kernel_ms[0]
    assert host > 3.0 * light
    assert host > 0.05
    assert conv > light


def test_stages_by_hand_and_their_overlap() -> None:
    batch = make_batch(
        (ARRAY,) * 3,
        {
            "batch": 16, "cin": [384, 30, 32], "cout": [64, 40, 32], "groups": [1, 1, 32],
            "kernel_h": [1, 3, 3],
            "kernel_w": [1, 3, 3], "out_h": 14, "out_w": 14, "weight_bits": [2, 4, 8], "act_bits": [3, 8, 4],
        },
    )  # fmt: skip
    found = stages(_shapes(batch))
    pixels = 16 * 196
    assert found["serial"][0].tolist() == [3 * pixels * 2, 8 * pixels * 2, 4 * pixels * 2]
    assert found["results"][0].tolist() == [6 * pixels * 128 / 256, 32 * pixels * 80 / 256, 0]
    assert found["fetched"][0].tolist() == [2 * 24576, 4 * 10944, 8 * 288]
    overlapped = combine({"a": np.array([3.0]), "b": np.array([4.0])}, {"a": 1.0, "b": 1.0, "sharpness": 2.0})
    assert overlapped.tolist() == pytest.approx([5.0])


def test_weight_bits_and_activation_bits_count_separately() -> None:
    bits = np.array([[8.0], [4.0], [8.0], [4.0]])
    acts = np.array([[8.0], [8.0], [4.0], [4.0]])
    columns = {
        "batch": 16,
        "cin": 100,
        "cout": 512,
        "out_h": 10,
        "out_w": 10,
        "weight_bits": bits,
        "act_bits": acts,
    }
    found = Predictor(SERIAL).predict(make_batch((ARRAY,), columns))
    both, weight, act, low = found.latency_ms
    assert both > weight > low
    assert both > act > low
    assert 2.5 < both / low < 4.5
    assert "0 of 4 kernels read from the table" in found.backing
