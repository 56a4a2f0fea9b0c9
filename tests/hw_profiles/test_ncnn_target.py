"""The ncnn target: found by its name with a slash, and priced by the loops ncnn runs."""

from __future__ import annotations

import pytest

from hw_profiles.costs.cpu import SIMPLE, family
from hw_profiles.kernel import KernelKind, make_batch
from hw_profiles.predictor import Predictor
from hw_profiles.target import list_targets, load_target, siblings

NCNN = "raspberry-pi-4/ncnn"


def kernel(op: str, **columns: float):
    return make_batch([KernelKind(op, "ncnn", weight_bearing=True)], {k: [v] for k, v in columns.items()})


def test_names_with_a_slash():
    target = load_target(NCNN)
    assert target.name == NCNN
    assert load_target("rpi4/ncnn") == target
    assert target.board == load_target("raspberry-pi").board == "raspberry-pi-4"
    assert NCNN in list_targets()
    assert siblings(target) == ["raspberry-pi-4"]
    assert siblings(load_target("raspberry-pi-4")) == [NCNN]
    assert siblings(load_target("gpu-t4")) == []


def test_the_runtime_was_measured():
    target, other = load_target(NCNN), load_target("raspberry-pi-4")
    assert target.cost.interval.runtime_factor.value == 1.0
    assert other.cost.interval.runtime_factor.value == 1.5
    batch = kernel("InnerProduct", cin=32, cout=32, out_h=20)
    width = [Predictor(t).predict(batch) for t in (target, other)]
    assert width[0].high_ms / width[0].latency_ms < width[1].high_ms / width[1].latency_ms


@pytest.mark.parametrize(
    ("op", "shape", "fast"),
    [
        ("Convolution", {"cin": 64, "cout": 64, "kernel_h": 3, "kernel_w": 3}, True),
        ("Convolution", {"cin": 64, "cout": 64, "kernel_h": 3, "kernel_w": 3, "stride_h": 2}, False),
        ("Convolution", {"cin": 32, "cout": 32, "kernel_h": 5, "kernel_w": 5}, False),
        ("Convolution", {"cin": 64, "cout": 64}, False),
        ("ConvolutionDepthWise", {"cin": 64, "cout": 64, "groups": 4, "kernel_h": 3, "kernel_w": 3}, False),
    ],
)
@pytest.mark.parametrize("threads", [1, 4])
def test_winograd_is_what_ncnn_has_and_onnxruntime_has_not(op, shape, fast, threads):
    batch = kernel(op, out_h=20, out_w=20, **shape)
    own, other = (Predictor(load_target(t), threads).predict(batch) for t in (NCNN, "raspberry-pi-4"))
    assert own.unknown == other.unknown == ()
    assert (own.latency_ms[0] < 0.9 * other.latency_ms[0]) == fast
    if not fast:
        assert own.latency_ms[0] == pytest.approx(other.latency_ms[0])


def test_every_layer_type_has_a_price():
    written = {
        "Pooling", "Pooling1D", "Reduction", "BinaryOp", "UnaryOp", "ReLU", "PReLU", "BatchNorm", "LayerNorm",
        "GroupNorm", "Interp", "Padding", "Crop", "Slice", "Concat", "Permute", "Tile", "Embed", "Softmax",
        "Sigmoid", "TanH", "Swish", "Mish", "ELU", "GELU", "HardSwish", "HardSigmoid", "Clip", "Softplus",
        "Erf",
    }  # fmt: skip
    assert written <= set(SIMPLE)
    assert family(KernelKind("InnerProduct", "ncnn")) == "gemm.float"
    odd = Predictor(load_target(NCNN)).predict(kernel("SomeNewLayer", cin=8, out_h=4, out_w=4))
    assert odd.unknown == ("SomeNewLayer",)
    assert odd.latency_ms[0] > 0.0
