"""ncnn programs against torch, operation by operation, in ncnn itself."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressors.trace import trace
from search.emit_ncnn import UnsupportedOperationError, emit_ncnn
from search.exporters import Files, NcnnExporter
from search.exporters.ncnn_files import BIN, PARAM

pytest.importorskip("ncnn", reason="the extra ncnn is not installed: pip install 'tailorbird[ncnn]'")


class Fn(nn.Module):
    """A function of activations as a network, with a parameter for those that want one."""

    def __init__(self, function: Callable[..., object], *shape: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(*shape)) if shape else None

    def forward(self, x: Tensor) -> object:
        return self.function(x) if self.weight is None else self.function(x, self.weight)


def files_of(network: nn.Module, x: Tensor) -> tuple[Files, object]:
    """The ncnn files of an uncompressed network, and its graph."""
    traced = trace(network.eval(), (x,))
    program = emit_ncnn(traced.graph, traced.weights)
    return {PARAM: program.text.encode(), BIN: program.binary}, traced.graph


def largest_difference(network: nn.Module, x: Tensor) -> float:
    """Between torch and ncnn, relative to the largest output; shapes have to be the same."""
    files, graph = files_of(network, x)
    with torch.no_grad():
        wanted = network(x)
    wanted = wanted if isinstance(wanted, tuple | list) else (wanted,)
    (found,) = NcnnExporter().answers(files, [(x,)], graph)  # type: ignore[arg-type]
    assert [w.shape for w in wanted] == [torch.Size(f.shape) for f in found]
    assert all(np.isfinite(f).all() for f in found)
    return max(
        float((w - torch.from_numpy(f)).abs().max() / w.abs().max().clamp_min(1e-6))
        for w, f in zip(wanted, found, strict=True)
    )


def maps(*shape: int) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(7))


IMAGE, SERIES, ROWS, VECTOR = (6, 9, 12), (6, 20), (5, 8), (10,)

WEIGHTED = [
    (nn.Conv2d(6, 8, 3, padding=1), IMAGE),
    (nn.Conv2d(6, 8, (3, 5), stride=(1, 2), padding=(0, 2), bias=False), IMAGE),
    (nn.Conv2d(6, 9, 3, dilation=2, groups=3, padding=2), IMAGE),
    (nn.Conv2d(6, 12, 3, groups=6), IMAGE),
    (nn.Conv1d(6, 8, 5, stride=2, padding=2), SERIES),
    (nn.Sequential(nn.ZeroPad2d((0, 1, 2, 3)), nn.Conv2d(6, 8, 3, stride=2, padding=(0, 1))), IMAGE),
    (nn.Sequential(nn.ConstantPad1d((3, 0), 0.0), nn.Conv1d(6, 8, 4)), SERIES),
    (nn.Conv1d(6, 6, 3, groups=6, dilation=2), SERIES),
    (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1), IMAGE),
    (nn.ConvTranspose2d(6, 9, (2, 3), stride=(2, 1), groups=3), IMAGE),
    (nn.ConvTranspose1d(6, 4, 4, stride=2, padding=1), SERIES),
    (nn.Sequential(nn.Linear(10, 7), nn.Hardswish()), VECTOR),
    (nn.Linear(8, 7, bias=False), ROWS),
    (nn.Linear(8, 7), (1, 8)),
    (nn.Linear(12, 7), IMAGE),
    (nn.Embedding(30, 8), None),
]
ACTIVATIONS = [
    nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.2), nn.Sigmoid(), nn.Mish(), nn.Hardswish(), nn.Tanh(), nn.SiLU(),
    nn.GELU(), nn.ELU(0.7), nn.Hardsigmoid(), nn.Softplus(), nn.PReLU(8), nn.Hardtanh(-0.3, math.inf),
]  # fmt: skip
PLAIN = [
    (nn.MaxPool2d(3, 2, 1), IMAGE), (nn.MaxPool2d(2, ceil_mode=True), IMAGE), (nn.MaxPool1d(3, 2), SERIES),
    (nn.AvgPool2d(3, 2, 1), IMAGE), (nn.AvgPool2d(3, 1, 1, count_include_pad=False), IMAGE),
    (nn.AvgPool2d(2, ceil_mode=True), IMAGE), (nn.AvgPool1d(3, ceil_mode=True), SERIES),
    (nn.AvgPool1d(4), SERIES), (nn.AdaptiveAvgPool2d(1), IMAGE),
    (Fn(lambda x: x.mean((2, 3))), IMAGE), (Fn(lambda x: x.mean(1)), ROWS),
    (Fn(lambda x: x.mean(1, True)), IMAGE), (nn.LayerNorm(8), ROWS),
    (nn.LayerNorm((9, 12)), IMAGE), (nn.LayerNorm(8, elementwise_affine=False), ROWS),
    (nn.GroupNorm(3, 6), IMAGE), (nn.BatchNorm2d(6), IMAGE), (nn.BatchNorm1d(6), SERIES),
    (nn.Softmax(-1), ROWS), (nn.Softmax(1), IMAGE), (nn.LogSoftmax(1), VECTOR),
    (nn.Upsample(scale_factor=2, mode="nearest"), IMAGE),
    (nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE),
    (nn.Upsample(scale_factor=(2, 3), mode="bilinear", align_corners=True), IMAGE),
    (Fn(lambda x: F.pad(x, (1, 2, 3, 0), value=0.5)), IMAGE), (nn.ReflectionPad2d(2), IMAGE),
    (nn.ReplicationPad2d((1, 0, 2, 1)), IMAGE), (nn.ConstantPad1d(2, 0.0), SERIES),
    (Fn(lambda x: x.flatten(1)), IMAGE), (Fn(lambda x: x.unflatten(1, (2, 3)).transpose(1, 2)), IMAGE),
    (Fn(lambda x: x[:, 1:4]), IMAGE), (Fn(lambda x: x[:, :, -3:]), IMAGE), (Fn(lambda x: x[:, 2]), IMAGE),
    (Fn(lambda x: torch.cat([x, x * 2.0, x.relu()], 1)), IMAGE), (Fn(lambda x: torch.cat([x, x], -1)), ROWS),
    (Fn(lambda x: torch.split(x, [1, 3, 2], 1)), IMAGE), (Fn(lambda x: tuple(x.chunk(2, 2))), SERIES),
    (Fn(lambda x: x @ x.transpose(1, 2)), ROWS), (Fn(lambda x: x.matmul(x.transpose(2, 3))), IMAGE),
    (Fn(lambda x, w: x + w, 8), ROWS), (Fn(lambda x, w: w - x, 6, 1, 1), IMAGE),
    (Fn(lambda x, w: x * w, 12), IMAGE),
    (Fn(lambda x, w: w / (x.abs() + 1.0), 5, 8), ROWS), (Fn(lambda x, w: torch.maximum(x, w), 1, 5, 8), ROWS),
    (Fn(lambda x: 1.5 / (x.abs() + 1.0)), ROWS), (Fn(lambda x: x.abs() ** 1.5), ROWS),
    (Fn(lambda x: x * x.mean((2, 3), keepdim=True)), IMAGE),
    (Fn(lambda x: torch.minimum(x, x.mean(1, True))), ROWS),
    (Fn(lambda x: torch.exp(-x.abs())), ROWS), (Fn(lambda x: (x.abs() + 1.0).log().sqrt()), ROWS),
    (Fn(lambda x: (x.abs() + 0.5).rsqrt() + x.sin() * x.cos()), ROWS),
    (Fn(lambda x: x.floor() + x.erf()), ROWS),
    (Fn(lambda x: x.mean(1, keepdim=True).expand(-1, 5, -1) + x), ROWS),
    (Fn(lambda x: F.scaled_dot_product_attention(x, x, x)), IMAGE), (Fn(lambda x: (x, x.relu())), ROWS),
]  # fmt: skip


@pytest.mark.parametrize(("module", "shape"), WEIGHTED, ids=lambda v: str(v))
def test_weight_bearing_operations_answer_as_in_torch(
    module: nn.Module, shape: tuple[int, ...] | None
) -> None:
    torch.manual_seed(0)
    x = maps(*shape) if shape is not None else torch.randint(0, 30, (3, 5))
    assert largest_difference(module, x) < 1e-5


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
@pytest.mark.parametrize("before", ["convolution", "nothing"])
def test_activations_fused_or_not(activation: nn.Module, before: str) -> None:
    torch.manual_seed(0)
    layer, shape = {
        "convolution": (nn.Conv2d(6, 8, 3), IMAGE),
        "nothing": (nn.Identity(), (8, 4, 4)),
    }[before]
    assert largest_difference(nn.Sequential(layer, activation), maps(*shape)) < 1e-4


@pytest.mark.parametrize(("module", "shape"), PLAIN, ids=lambda v: None)
def test_other_operations_answer_as_in_torch(module: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    assert largest_difference(module, maps(*shape)) < 1e-4


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_every_permutation(rank: int) -> None:
    x = maps(*(2, 3, 4, 5)[:rank])
    for order in itertools.permutations(range(1, rank + 1)):
        assert largest_difference(Fn(lambda t, o=order: t.permute(0, *o) * 1.0), x) == 0.0, order


@pytest.mark.parametrize(
    ("module", "shape", "why"),
    [
        (nn.MaxPool2d(2, dilation=2), IMAGE, "dilated"),
        (nn.AvgPool2d(2, padding=1, ceil_mode=True), IMAGE, "hangs over"),
        (nn.Conv3d(2, 2, 2), (2, 4, 4, 4), "one or two dimensions"),
        (Fn(lambda x: x[:, :, ::2]), ROWS, "step 2"),
        (Fn(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)), IMAGE, "causal"),
        (nn.CircularPad2d(1), IMAGE, "no ncnn form"),
        (Fn(lambda x: torch.cumsum(x, 1)), ROWS, "no ncnn form"),
    ],
)
def test_what_ncnn_cannot_do_is_refused(module: nn.Module, shape: tuple[int, ...], why: str) -> None:
    with pytest.raises(UnsupportedOperationError, match=why):
        files_of(module, maps(*shape))


def test_every_blob_has_one_reader() -> None:
    files, _ = files_of(Fn(lambda x: (x, x.relu() + x, x.relu())), maps(*ROWS))
    rows = [row.split() for row in files[PARAM].decode().splitlines()[2:]]
    reads = [t for r in rows for t in r[4 : 4 + int(r[2])]]
    writes = [t for r in rows for t in r[4 + int(r[2]) : 4 + int(r[2]) + int(r[3])]]
    assert len(reads) == len(set(reads))
    assert len(writes) == len(set(writes))
    assert {"out0", "out1", "out2"} <= set(writes) - set(reads)
    header = files[PARAM].decode().splitlines()[1].split()
    assert [int(h) for h in header] == [len(rows), len(writes)]
