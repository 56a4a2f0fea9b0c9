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
    ("op", "shape", "table"),
    [
        ("Convolution", {"cin": 64, "cout": 64, "kernel_h": 3, "kernel_w": 3}, "winograd"),
        ("Convolution", {"cin": 3, "cout": 64, "kernel_h": 3, "kernel_w": 3}, "dense"),
        ("Convolution", {"cin": 64, "cout": 64, "kernel_h": 3, "kernel_w": 3, "stride_h": 2}, "dense"),
        ("Convolution", {"cin": 32, "cout": 32, "kernel_h": 5, "kernel_w": 5}, "dense"),
        ("Convolution", {"cin": 64, "cout": 64}, "pointwise"),
        (
            "ConvolutionDepthWise",
            {"cin": 64, "cout": 64, "groups": 4, "kernel_h": 3, "kernel_w": 3},
            "grouped",
        ),
    ],
)
@pytest.mark.parametrize("threads", [1, 4])
def test_convolutions_by_the_constants_of_their_loop(op, shape, table, threads):
    target = load_target(NCNN)
    batch = kernel(op, out_h=20, out_w=20, **shape)
    c = {k: v.value for k, v in target.cost.constants[f"ncnn.{table}"].items()}
    shares = {k: v.value for k, v in target.cost.constants["ncnn/parallel"].items()}

    def left(feature: str) -> float:
        share = shares.get(f"{table}.{feature}", shares[feature])
        return 1 - share + share / threads

    groups = shape.get("groups", 1)
    columns = 400  # 20 x 20, a multiple of 16 already
    macs = (
        columns * shape["cin"] / groups * shape["cout"] * shape.get("kernel_h", 1) * shape.get("kernel_w", 1)
    )
    moved = 4 * (batch["in_elements"][0, 0] + batch["out_elements"][0, 0])
    wait = target.cost.constants["parallel"]["wait"].value if threads > 1 else 0.0
    wanted = c["macs"] * macs * left("macs") + c["moved"] * moved * left("moved") + c["overhead"] + wait
    found = Predictor(target, threads).predict(batch)
    assert found.latency_ms[0] * 1e6 == pytest.approx(wanted, rel=1e-6)
    assert found.unknown == ()


def test_every_layer_type_has_a_price():
    written = {
        "Pooling", "Pooling1D", "Reduction", "BinaryOp", "UnaryOp", "ReLU", "PReLU", "BatchNorm", "LayerNorm",
        "GroupNorm", "Interp", "Padding", "Crop", "Slice", "Concat", "Permute", "Tile", "Embed", "Softmax",
        "Sigmoid", "TanH", "Swish", "Mish", "ELU", "GELU", "HardSwish", "HardSigmoid", "Clip", "Softplus",
        "Erf",
    }  # fmt: skip
    assert written <= set(SIMPLE)
    assert family(KernelKind("InnerProduct", "ncnn")) == "gemm.float"
    assert family(KernelKind("Deconvolution1D", "ncnn")) == "ncnn"
    odd = Predictor(load_target(NCNN)).predict(kernel("SomeNewLayer", cin=8, out_h=4, out_w=4))
    assert odd.unknown == ("SomeNewLayer",)
    assert odd.latency_ms[0] > 0.015
