"""Kernels: MACs and bytes against closed forms, columns checked, batches joined and taken apart."""

from __future__ import annotations

import numpy as np
import pytest

from hw_profiles.errors import BadKernelsError
from hw_profiles.kernel import (
    COLUMNS,
    KernelBatch,
    KernelKind,
    concat,
    default_bits,
    make_batch,
    rename_layers,
)

CONV = KernelKind("Conv", weight_bearing=True)
QCONV = KernelKind("QLinearConv", "com.microsoft", "int8", weight_bearing=True)


def test_macs_of_convolutions_follow_the_closed_form() -> None:
    batch = make_batch(
        (CONV, CONV, CONV),
        {
            "batch": 2, "cin": [3, 16, 32], "cout": [16, 16, 8], "groups": [1, 16, 4],
            "kernel_h": [3, 5, 1], "kernel_w": [3, 5, 1], "out_h": [8, 8, 4], "out_w": [8, 8, 4],
        },
    )  # fmt: skip
    expected = [2 * 64 * 16 * 3 * 9, 2 * 64 * 16 * 25, 2 * 16 * 8 * 8]
    assert batch.macs().tolist() == [expected]
    assert batch["weight_elements"][0].tolist() == [3 * 16 * 9, 16 * 25, 32 * 8 / 4]
    assert batch.shape == (1, 3)


def test_macs_of_products_transposed_convolutions_and_views() -> None:
    kinds = (
        KernelKind("Gemm", weight_bearing=True),
        KernelKind("MatMul"),  # attention: 4 heads of 10 x 16 times 16 x 10
        KernelKind("ConvTranspose", weight_bearing=True),
        KernelKind("Flatten"),
    )
    batch = make_batch(
        kinds,
        {
            "cin": [64, 16, 8, 8], "cout": [10, 10, 4, 8], "groups": [1, 4, 1, 1], "out_h": [5, 10, 8, 1],
            "out_w": [1, 1, 8, 1], "in_h": [5, 10, 4, 1], "in_w": [1, 1, 4, 1],
            "kernel_h": [1, 1, 2, 1], "kernel_w": [1, 1, 2, 1],
        },
    )  # fmt: skip
    assert batch.macs()[0].tolist() == [5 * 64 * 10, 4 * 10 * 16 * 10, 16 * 8 * 4 * 4, 0]
    assert batch["weight_elements"][0].tolist() == [640, 0, 8 * 4 * 4, 0]


def test_bytes_follow_the_precision() -> None:
    kinds = (
        CONV,
        KernelKind("Conv", precision="fp16", weight_bearing=True),
        QCONV,
        KernelKind("Conv", precision="w4a6", weight_bearing=True),
        KernelKind("QuantizeLinear", precision="int8"),
        KernelKind("DequantizeLinear", precision="int8"),
    )
    batch = make_batch(kinds, {"cin": 8, "cout": 8, "out_h": 10})
    assert batch.in_bytes()[0].tolist() == [320, 160, 80, 60, 320, 80]
    assert batch.out_bytes()[0].tolist() == [320, 160, 80, 60, 80, 320]
    assert batch.weight_bytes()[0].tolist() == [256, 128, 64, 32, 0, 0]


def test_array_bits_come_from_the_columns_policy_by_policy() -> None:
    kind = KernelKind("Conv", precision="w8a8", weight_bearing=True)
    batch = make_batch(
        (kind,), {"cin": 4, "cout": 4, "weight_bits": [[4.0], [8.0]], "act_bits": [[8.0], [4.0]]}
    )
    assert batch.weight_bytes()[:, 0].tolist() == [8, 16]
    assert batch.in_bytes()[:, 0].tolist() == [4, 2]
    assert default_bits(kind) == (8.0, 8.0)


def test_batches_are_joined_and_taken_apart() -> None:
    wide = make_batch((CONV,), {"cin": [[4.0], [8.0]], "cout": 8})
    more = make_batch((CONV,), {"cin": 16, "cout": 8})
    joined = concat([wide, more])
    assert joined["cin"][:, 0].tolist() == [4, 8, 16]
    assert joined.row(1)["cin"].tolist() == [[8]]
    assert joined.take([2, 0])["cin"][:, 0].tolist() == [16, 4]
    assert rename_layers(joined, ["stem"]).kinds[0].layer == "stem"


def test_wrong_columns_are_refused() -> None:
    good = make_batch((CONV,), {"cin": 4})
    with pytest.raises(BadKernelsError, match="unknown kernel columns channels"):
        make_batch((CONV,), {"channels": 4})
    with pytest.raises(BadKernelsError, match="lacks cin"):
        KernelBatch((CONV,), {n: good[n] for n in COLUMNS if n != "cin"})
    with pytest.raises(BadKernelsError, match="wrong: cout"):
        KernelBatch((CONV,), {**good.columns, "cout": np.ones((2, 1))})
    with pytest.raises(BadKernelsError, match="different templates"):
        concat([good, make_batch((QCONV,), {"cin": 4})])
    with pytest.raises(BadKernelsError, match="nothing"):
        concat([])
