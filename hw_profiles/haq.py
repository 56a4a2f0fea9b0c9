"""HAQ's published table of a bit-serial array, as kernels: 53 layers of MobileNetV2 at 1 to 8 bits."""

from __future__ import annotations

import json
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hw_profiles.costs.bitserial import TABLE_BATCH
from hw_profiles.kernel import Array, KernelBatch, KernelKind, make_batch
from hw_profiles.published import read_csv
from hw_profiles.target import DATA_FOLDER

#: Bits per layer, whole numbers, (53,).
Bits = NDArray[np.integer]

TABLE = "haq_bismo.csv.gz"
POLICY = "haq_policy.json"


@lru_cache(maxsize=1)
def haq_table() -> tuple[tuple[tuple[float, ...], ...], Array]:
    """(shapes, cycles): per layer (cin, cout, kernel, stride, out, groups); cycles (53, 8, 8) by bits - 1."""
    names = ("cin", "cout", "kernel", "stride", "out", "groups")
    shapes: dict[int, tuple[float, ...]] = {}
    cycles = np.zeros((53, 8, 8))
    for r in read_csv(TABLE):
        layer = int(r["layer"])
        shapes[layer] = tuple(float(r[n]) for n in names)
        cycles[layer, int(r["weight_bits"]) - 1, int(r["act_bits"]) - 1] = float(r["cycles"])
    return tuple(shapes[i] for i in sorted(shapes)), cycles


def mobilenet_v2(weight_bits: Array, act_bits: Array) -> KernelBatch:
    """The published network with bits per layer, (P, 53) each, as one batch of policies."""
    shapes, _ = haq_table()
    cin, cout, kernel, stride, out, groups = np.array(shapes).T
    kinds = tuple(
        KernelKind("Conv", precision="w8a8", layer=f"layer{i}", weight_bearing=True)
        for i in range(len(shapes))
    )
    return make_batch(
        kinds,
        {
            "batch": float(TABLE_BATCH), "cin": cin, "cout": cout, "groups": groups, "kernel_h": kernel,
            "kernel_w": kernel, "stride_h": stride, "stride_w": stride, "out_h": out, "out_w": out,
            "weight_bits": weight_bits, "act_bits": act_bits,
        },
    )  # fmt: skip


def published_policy() -> tuple[float, Bits, Bits]:
    """HAQ's policy of MobileNetV2: the share of the cost at 8/8 it was searched under, weight bits and
    activation bits (53,) each. First and last layer are pinned at 8/8.
    """
    document = json.loads((DATA_FOLDER / POLICY).read_text(encoding="utf-8"))
    return float(document["cost_share"]), np.array(document["weight_bits"]), np.array(document["act_bits"])


def cost_share(weight_bits: Bits, act_bits: Bits) -> float:
    """Cycles of bits per layer, (53,) each, over those of 8/8 everywhere."""
    _, cycles = haq_table()
    rows = np.arange(len(cycles))
    return float(cycles[rows, weight_bits - 1, act_bits - 1].sum() / cycles[:, -1, -1].sum())
