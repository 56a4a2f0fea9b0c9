"""AMD/Xilinx DPU (B4096): counted cycles of its convolution engine, traffic, and what goes to the host.

Inside one family of networks the published times are ``ms = a + b GOP`` within some percent; across families
`b` follows from how full the engine is: eight pixels of a row, 16 input and 16 output channels a cycle
(PG338, B4096: 8 x 16 x 16 x 2 = 4096 operations), so that channels count in steps of 16; other builds
(`hw_profiles.builds`) have other numbers. An operation that
the DPU lacks runs on the Arm cores of the chip, there and back through memory: a *host round trip*, priced as
on the Cortex-A53 of a Raspberry Pi 3 B+. Constants by scripts/fit_dpu.py, nanoseconds per count.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from hw_profiles.costs.arm import is_special
from hw_profiles.costs.base import CLASSES, CostModel, Costs, Features, Index, Shapes
from hw_profiles.costs.cpu import SIMPLE
from hw_profiles.kernel import CONV_OPS, MATMUL_OPS, VIEW_OPS, Array, KernelBatch, KernelKind

_CLASS = {name: i for i, name in enumerate(CLASSES)}
PIXELS, CHANNELS = 8.0, 16.0
#: Operations without MACs that the DPU runs itself (PG338, table of supported operators): pooling,
#: element-wise addition and multiplication, concatenation, ReLU and hard swish, resizing by whole factors.
ON_DPU = frozenset({
    "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "Add", "Mul", "Concat", "Relu", "Clip",
    "HardSwish",
    "HardSigmoid", "LeakyRelu", "Resize", "Upsample", "DepthToSpace", "Pad", "QLinearAdd", "QLinearConcat",
    "QLinearAveragePool", "QLinearGlobalAveragePool",
})  # fmt: skip


def engine_features(s: Shapes, pixels: float = PIXELS, channels: float = CHANNELS) -> Features:
    """Cycles of the convolution engine and bytes moved, (P, k) each; activations and weights are bytes.

    The engine takes so many pixels of a row, and so many input and output channels, a cycle.
    """
    thin = (s.groups > 1.0) & (s.groups == s.cin)
    rows = s.batch * s.out_h * np.ceil(s.out_w / pixels) * s.kernel_h * s.kernel_w
    depth, outputs = np.ceil(s.cin / s.groups / channels), np.ceil(s.cout / s.groups / channels)
    return {
        "cycles": np.where(thin, 0.0, rows * depth * outputs * s.groups),
        "cycles_depthwise": np.where(thin, rows * np.ceil(s.cout / channels), 0.0),
        "moved": s.in_elements + s.out_elements,
        "weights": s.weight_elements,
    }


def runs_on_host(kind: KernelKind) -> bool:
    """Whether an operation leaves the DPU: products of two activations, and what `ON_DPU` lacks."""
    if kind.op in CONV_OPS:
        return False
    if kind.op in MATMUL_OPS:
        return not kind.weight_bearing
    return kind.op not in ON_DPU


@lru_cache(maxsize=256)
def _forms(kinds: tuple[KernelKind, ...]) -> dict[str, tuple[int, ...]]:
    """Kernels by "engine", "moves" or "host"; views are left out."""
    found: dict[str, list[int]] = {}
    for i, kind in enumerate(kinds):
        if kind.op not in VIEW_OPS:
            weighted = kind.op in CONV_OPS or kind.op in MATMUL_OPS
            form = "host" if runs_on_host(kind) else ("engine" if weighted else "moves")
            found.setdefault(form, []).append(i)
    return {form: tuple(members) for form, members in found.items()}


class DpuCost(CostModel):
    """Engine cycles, traffic and host round trips. Threads mean nothing here."""

    def price(self, batch: KernelBatch, threads: int) -> Costs:
        """See `CostModel.price`."""
        busy, overhead = np.zeros(batch.shape), np.zeros(len(batch.kinds))
        classes = np.full(len(batch.kinds), _CLASS["memory"], dtype=np.intp)
        nothing = np.zeros((len(batch), 1))
        size = self.value("array", "pixels", PIXELS), self.value("array", "channels", CHANNELS)
        for form, members in _forms(batch.kinds).items():
            index: Index = np.asarray(members, dtype=np.intp)
            s = Shapes(batch, index, (nothing, nothing))
            kinds = [batch.kinds[i] for i in members]
            if form == "host":
                busy[:, index] = self._host(kinds, s)
                overhead[index] = self.value("host", "overhead")
                classes[index] = _CLASS["reorder"]
                continue
            features = engine_features(s, *size)
            names = ("cycles", "cycles_depthwise", "moved", "weights") if form == "engine" else ("moved",)
            table = self.constants["engine"]
            terms = [table[n].value * features[n] for n in names if n in table]
            busy[:, index] = np.asarray(sum(terms))
            overhead[index] = self.value("engine", "overhead", 0.0)
            if form == "engine":
                thin = (s.groups[0] > 1.0) & (s.groups[0] == s.cin[0])
                classes[index] = np.where(thin, _CLASS["depthwise"], _CLASS["conv_int"])
        # The host scales the image and hands it over: that is counted with the kernel that reads it.
        busy[:, 0] += self.value("network", "image", 0.0) * batch["in_elements"][:, 0]
        unknown = [k.op for k in batch.kinds if not _is_known(k)]
        network = self.value("network", "overhead") * 1e-3
        return Costs(busy * 1e-3, overhead * 1e-3, network, classes, tuple(dict.fromkeys(unknown)))

    def _host(self, kinds: list[KernelKind], s: Shapes) -> Array:
        """There and back through memory, and the operation itself on the Arm cores."""
        moved = s.in_elements + s.out_elements
        table = {name: c.value for name, c in self.constants["host"].items()}
        special = np.array([is_special(k) for k in kinds])
        matrix = np.array([k.op in MATMUL_OPS for k in kinds])
        work = np.where(special, s.out_elements * table["special"], moved * table["element"])
        products = s.batch * s.groups * s.out_h * s.out_w * s.cout * s.cin * table["product"]
        return np.asarray(moved * table["transfer"] + np.where(matrix, products, work))


def _is_known(kind: KernelKind) -> bool:
    return kind.op in CONV_OPS or kind.op in MATMUL_OPS or kind.op in VIEW_OPS or kind.op in SIMPLE
