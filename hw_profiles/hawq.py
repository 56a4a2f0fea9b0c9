"""HAWQ-V3's published integer programs: 4 or 8 bits for every layer of ResNet-18 and -50 on a T4."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hw_profiles.kernel import Array
from hw_profiles.target import DATA_FOLDER

TABLES = "hawq_v3_ilp.json"
#: Bits of a layer's choices, in order.
BITS = (4, 8)


@dataclass(frozen=True)
class IntegerProgram:
    """One of the published programs: least summed loss (n, 2) of summed costs (n, 2) within ``limit``.

    ``constraint`` is "size" (MB), "bops" (billions) or "latency" (ms); the limit lies at ``share`` of the
    way from all layers at 4 bits to all at 8. ``ties``: layers that have the same bits. ``published``: the
    bits that HAWQ-V3 gives as the solution, (n,). The first and last layer are not among the n.
    """

    network: str
    constraint: str
    share: float
    loss: Array
    cost: Array
    limit: float
    ties: tuple[tuple[int, int], ...]
    published: tuple[int, ...]

    @property
    def name(self) -> str:
        """Network, what is limited, and how far."""
        return f"{self.network} {self.constraint} {self.share:g}"

    def of(self, bits: tuple[int, ...]) -> tuple[float, float]:
        """Summed loss and cost of bits for every layer."""
        rows, at = np.arange(len(bits)), np.array([BITS.index(b) for b in bits])
        return float(self.loss[rows, at].sum()), float(self.cost[rows, at].sum())


@lru_cache(maxsize=1)
def integer_programs() -> tuple[IntegerProgram, ...]:
    """The 18 programs: 2 networks x size, bops, latency x 0.25, 0.5, 0.75.

    Loss: Hessian trace times the squared perturbation of the weights (Yao et al., ICML 2021, eq. 4).
    """
    document = json.loads((DATA_FOLDER / TABLES).read_text(encoding="utf-8"))
    found = []
    for network, table in document["networks"].items():
        loss = (
            np.array(table["trace"])[:, None]
            * np.array([table[f"perturbation_{b}"] for b in BITS], dtype=float).T
        )
        costs = _costs(table)
        for key, published in table["published"].items():
            constraint, share = key.split()
            cost = costs[constraint]
            four, eight = cost.sum(axis=0)
            limit = float(four + float(share) * (eight - four))
            ties = tuple((int(a), int(b)) for a, b in table["ties"])
            bits = tuple(int(b) for b in published)
            found.append(IntegerProgram(network, constraint, float(share), loss, cost, limit, ties, bits))
    return tuple(found)


def _costs(table: dict[str, list[float]]) -> dict[str, Array]:
    """Costs at 4 and 8 bits, (n, 2): parameters by bits, MACs by the product of both bits, milliseconds."""
    bits = np.array(BITS, dtype=float)
    return {
        "size": np.outer(table["parameters"], bits / 8.0),
        "bops": np.outer(table["macs"], (bits / 32.0) ** 2),
        "latency": np.array([table[f"int{b}_ms"] for b in BITS]).T,
    }
