"""CPU kernels: time = sum of constant x feature, the features being the loops which the kernels run.

A feature is a count (padded MACs, rows, bytes), a constant nanoseconds per count, fitted with
non-negative least squares by scripts/fit_x86.py and scripts/fit_arm.py. The staircase is in the
counts: channels are rounded up as the kernel rounds them. Every function returns (P, k) arrays.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from hw_profiles.costs.base import (
    CLASSES,
    CostModel,
    Costs,
    FeatureFunction,
    Features,
    Index,
    Shapes,
    ceil_to,
)
from hw_profiles.kernel import (
    CONV_OPS,
    MATMUL_OPS,
    PER_TENSOR,
    VIEW_OPS,
    Array,
    KernelBatch,
    KernelKind,
    activation_width,
)

_CLASS = {name: i for i, name in enumerate(CLASSES)}
_LANES = 16.0  # fp32 lanes of a 512-bit register; the int8 kernels pack 16 output channels too
_ROWS = 6.0  # output rows one pass of the matrix kernels keeps in registers


def _weights(s: Shapes, width: float) -> Features:
    held = s.weight_elements * width
    return {"weight": held, "weight_core": held * s.cold_core, "weight_last": held * s.cold_last}


def _pixels(s: Shapes) -> Array:
    return np.asarray(s.batch * s.out_h * s.out_w)


def _moved(s: Shapes, width: float) -> Features:
    return {"moved": (s.in_elements + s.out_elements) * width}


def nchwc_dense(s: Shapes) -> Features:
    """Blocked convolution: 16 output channels a block, four blocks and six pixels held in registers."""
    window = s.kernel_h * s.kernel_w
    blocks = np.ceil(s.cout / s.groups / _LANES) * s.groups
    cin = s.cin / s.groups
    cin = np.where(cin < _LANES, cin, ceil_to(cin, _LANES))
    passes = np.ceil(cin / _LANES)
    pixels = _pixels(s)
    quads = np.ceil(blocks / 4.0)
    rows = s.batch * s.out_h
    return {
        "macs": pixels * blocks * _LANES * cin * window,
        "broadcast": pixels * cin * window * quads,
        "accumulate": pixels * blocks * _LANES * passes,
        "edge": rows * blocks * _LANES * cin * window,
        "rows": rows * quads * passes,
        **_moved(s, 4.0),
        **_weights(s, 4.0),
    }


def nchwc_depthwise(s: Shapes) -> Features:
    """Blocked depthwise: one multiply per output and tap, channels in blocks of 16."""
    channels = ceil_to(s.cout, _LANES)
    taps = channels * s.kernel_h * s.kernel_w
    rows = s.batch * s.out_h
    return {
        "taps": _pixels(s) * taps,
        "edge": rows * taps,
        "rows": rows * channels / _LANES,
        **_moved(s, 4.0),
    }


def plain_dense(s: Shapes) -> Features:
    """im2col and a float matrix product per image and group."""
    window = s.kernel_h * s.kernel_w
    depth = s.cin / s.groups * window
    columns = ceil_to(s.out_h * s.out_w, _LANES)
    matrices = s.batch * s.groups
    direct = (window == 1.0) & (s.stride_h == 1.0)
    return {
        "macs": matrices * columns * depth * s.cout / s.groups,
        "tiles": matrices * columns * depth * np.ceil(s.cout / s.groups / 12.0),
        "gather": np.where(direct, 0.0, matrices * columns * depth),
        "gather_strided": np.where(s.stride_w > 1.0, matrices * columns * depth, 0.0),
        "gather_rows": np.where(direct, 0.0, matrices * s.out_h * depth),
        "matrices": matrices,
        **_moved(s, 4.0),
        **_weights(s, 4.0),
    }


def plain_depthwise(s: Shapes) -> Features:
    """Depthwise outside the blocked layout: a tiny product per channel."""
    taps = s.cout * s.kernel_h * s.kernel_w
    return {
        "taps": _pixels(s) * taps,
        "taps_strided": np.where(s.stride_w > 1.0, _pixels(s) * taps, 0.0),
        "row_taps": s.batch * s.out_h * taps,
        "rows": s.batch * s.out_h * s.cout,
        "matrices": s.batch * s.cout,
        **_moved(s, 4.0),
    }


def int8_dense(s: Shapes) -> Features:
    """Gather of pixels, then an integer product: depth in fours, columns in sixteens, rows in sixes.

    Rounding back to 8 bits goes by sixteen channels, then by four, then one by one.
    """
    window = s.kernel_h * s.kernel_w
    depth = ceil_to(s.cin / s.groups * window, 4.0)
    outputs = s.cout / s.groups
    columns = ceil_to(outputs, _LANES)
    pixels = _pixels(s) * s.groups
    direct = (window == 1.0) & (s.stride_h == 1.0)
    left = np.mod(outputs, _LANES)
    return {
        "macs": pixels * columns * depth,
        "tiles": np.ceil(pixels / _ROWS) * columns * depth,
        "broadcast": pixels * depth * np.ceil(columns / 48.0),
        "depth": pixels * depth,
        "ragged": np.where(np.mod(s.cin / s.groups, 4.0) == 0.0, 0.0, pixels * depth),
        "gather": np.where(direct, 0.0, pixels * window),
        "copies": np.where(direct, 0.0, pixels * s.kernel_h),
        "pixels": pixels,
        "sixteens": pixels * (outputs - left),
        "fours": pixels * np.floor(left / 4.0),
        "ones": pixels * np.mod(outputs, 4.0),
        "any_ones": np.where(np.mod(outputs, 4.0) == 0.0, 0.0, pixels),
        "narrow": np.where(outputs < _LANES, pixels, 0.0),
        **_moved(s, 1.0),
        **_weights(s, 1.0),
    }


def int8_depthwise(s: Shapes) -> Features:
    """Integer depthwise, channels last: 16 channels a step, what is left over one by one."""
    window = s.kernel_h * s.kernel_w
    pixels = _pixels(s)
    left = np.mod(s.cout, _LANES)
    return {
        "taps": pixels * (s.cout - left) * window,
        "left_taps": pixels * left * window,
        "left": np.where(left > 0.0, pixels * window, 0.0),
        "gather": pixels * window,
        "outputs": pixels * s.cout,
        "fours": pixels * np.floor(left / 4.0),
        "ones": pixels * np.mod(s.cout, 4.0),
        "any_ones": np.where(np.mod(s.cout, 4.0) == 0.0, 0.0, pixels),
        **_moved(s, 1.0),
    }


def float_gemm(s: Shapes) -> Features:
    """Float matrix product; a single row is bound by the weights."""
    rows = s.batch * s.out_h * s.out_w * s.groups
    columns = ceil_to(s.cout, _LANES)
    return {
        "macs": rows * columns * s.cin,
        "tiles": np.ceil(rows / 12.0) * columns * s.cin,
        "inputs": rows * s.cin,
        "outputs": rows * s.cout,
        "matrices": s.batch * s.groups,
        **_weights(s, 4.0),
    }


def int8_gemm(s: Shapes) -> Features:
    """Integer matrix product."""
    rows = s.batch * s.out_h * s.out_w * s.groups
    columns = ceil_to(s.cout, _LANES)
    depth = ceil_to(s.cin, 4.0)
    return {
        "macs": rows * columns * depth,
        "tiles": np.ceil(rows / _ROWS) * columns * depth,
        "inputs": rows * s.cin,
        "outputs": rows * s.cout,
        "matrices": s.batch * s.groups,
        **_weights(s, 1.0),
    }


#: Matrix work by family and variant. The variant is told from the shapes, see `_variant`.
MODELS: dict[str, FeatureFunction] = {
    "nchwc.dense": nchwc_dense,
    "nchwc.pointwise": nchwc_dense,
    "nchwc.first": nchwc_dense,
    "nchwc.depthwise": nchwc_depthwise,
    "plain.dense": plain_dense,
    "plain.pointwise": plain_dense,
    "plain.depthwise": plain_depthwise,
    "int8.dense": int8_dense,
    "int8.pointwise": int8_dense,
    "int8.depthwise": int8_depthwise,
    "int8.grouped": int8_dense,
    "plain.grouped": plain_dense,
    "gemm.float": float_gemm,
    "gemm.int8": int8_gemm,
}
#: What a convolution with one scale for all weights takes more, by element written.
PER_TENSOR_KEY = ("int8.per_tensor", "outputs")
_VARIANTS = ("dense", "pointwise", "depthwise", "first", "grouped")

#: Operations priced by elements in, elements out and window taps; the name is the table of constants.
SIMPLE: dict[str, str] = {
    "MaxPool": "pool", "AveragePool": "pool", "GlobalAveragePool": "reduce", "GlobalMaxPool": "reduce",
    "ReduceMean": "reduce", "ReduceMax": "reduce", "ReduceSum": "reduce", "LpPool": "pool",
    "NhwcMaxPool": "pool", "QLinearAveragePool": "qavg", "QLinearGlobalAveragePool": "qreduce",
    "QLinearReduceMean": "qreduce",
    "Add": "add", "Sub": "add", "Mul": "add", "Div": "add", "Max": "add", "Min": "add", "Sum": "add",
    "Relu": "map", "Clip": "map", "LeakyRelu": "map", "PRelu": "map", "HardSwish": "map", "Neg": "map",
    "HardSigmoid": "map", "Abs": "map", "Sqrt": "map", "Reciprocal": "map", "Where": "map",
    "BatchNormalization": "map",
    "QLinearAdd": "qadd", "QLinearMul": "qadd", "QLinearLeakyRelu": "qadd",
    "QLinearConcat": "concat", "Concat": "concat", "Split": "concat", "Slice": "concat", "Gather": "concat",
    "Pad": "concat", "Expand": "concat", "Tile": "concat", "Cast": "concat", "Upsample": "concat",
    "Resize": "concat",
    "DepthToSpace": "transpose", "Transpose": "transpose",
    "ReorderInput": "reorder_in", "ReorderOutput": "reorder_out",
    "QuantizeLinear": "quantise", "DynamicQuantizeLinear": "quantise", "DequantizeLinear": "dequantise",
    "Softmax": "special", "LogSoftmax": "special", "Sigmoid": "special", "Tanh": "special", "Erf": "special",
    "Gelu": "special", "FastGelu": "special", "BiasGelu": "special", "QuickGelu": "special", "Exp": "special",
    "Silu": "special", "Mish": "special", "Softplus": "special", "Elu": "special", "Pow": "special",
    "LayerNormalization": "special", "SkipLayerNormalization": "special", "InstanceNormalization": "special",
    "GroupNormalization": "special", "GroupNorm": "special", "SimplifiedLayerNormalization": "special",
    "QLinearSoftmax": "qtable", "QLinearSigmoid": "qtable",
}  # fmt: skip
_REORDER_TABLES = frozenset({"reorder_in", "reorder_out", "quantise", "dequantise", "transpose"})


def simple_table(kind: KernelKind) -> str:
    """Table of constants for an operation without MACs: "" for free views, "unknown" without a model."""
    if kind.op in VIEW_OPS:
        return ""
    table = SIMPLE.get(kind.op, "unknown")
    if table == "pool" and "nchwc" in kind.domain:
        return "pool_nchwc"
    if table == "reduce" and "nchwc" in kind.domain:
        return "reduce_nchwc"
    # u8 goes through the MaxPool and Transpose names as well.
    integer = {"pool": "qpool", "transpose": "qtranspose", "concat": "qconcat"}
    return integer.get(table, table) if kind.precision == "int8" else table


def simple_features(s: Shapes, width_in: Array | float, width_out: Array | float) -> Features:
    """Bytes in and out and window taps of an operation without MACs."""
    taps = s.out_elements * s.kernel_h * s.kernel_w
    return {"read": s.in_elements * width_in, "written": s.out_elements * width_out, "taps": taps}


def family(kind: KernelKind) -> str:
    """Kernel family of a kind: nchwc, plain or int8 convolution, gemm.float, gemm.int8, or simple."""
    integer = kind.precision == "int8" or kind.op.startswith("Q")
    if kind.op in CONV_OPS:
        if PER_TENSOR in kind.fused:
            return "int8/tensor"
        return "int8" if integer else ("nchwc" if "nchwc" in kind.domain else "plain")
    if kind.op in MATMUL_OPS:
        return "gemm.int8" if integer else "gemm.float"
    return "simple"


def variants(name: str, s: Shapes) -> Index:
    """(P, k) index into ("dense", "pointwise", "depthwise", "first"), told from shapes."""
    kind = np.where(s.kernel_h * s.kernel_w == 1.0, 1, 0)
    if name == "nchwc":
        kind = np.where(s.cin < _LANES, 3, kind)
    kind = np.where(s.groups > 1.0, 4, kind)
    return np.asarray(np.where((kind == 4) & (s.groups == s.cin) & (s.cin == s.cout), 2, kind), dtype=np.intp)


def variant_table(name: str, variant: int) -> str:
    """Table of constants of a convolution family's variant."""
    table = f"{name}.{_VARIANTS[variant]}"
    return table if table in MODELS else f"{name}.dense"


def cold_shares(batch: KernelBatch, core_bytes: float, last_bytes: float) -> tuple[Array, Array]:
    """(P, 1) share of the weights that no longer is in a core's cache / the last cache on the next run.

    A network walks its weights once per run; what exceeds the cache has been evicted when it is wanted again.
    """
    held = batch.weight_bytes().sum(axis=1) + (batch.in_bytes() + batch.out_bytes()).max(axis=1, initial=0.0)
    held = held[:, None]
    return np.clip(held / core_bytes - 0.5, 0.0, 1.0), np.clip(held / last_bytes - 0.5, 0.0, 1.0)


@lru_cache(maxsize=256)
def _families(kinds: tuple[KernelKind, ...]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i, kind in enumerate(kinds):
        groups.setdefault(family(kind), []).append(i)
    return groups


class CpuCost(CostModel):
    """Linear loop-count model of a CPU runtime, with fitted thread scaling."""

    def price(self, batch: KernelBatch, threads: int) -> Costs:
        """See `CostModel.price`."""
        device = self.target.device
        core = device.core_cache_bytes.value if device.core_cache_bytes else float("inf")
        last = device.last_cache_bytes.value if device.last_cache_bytes else core
        cold = cold_shares(batch, core, last)
        count = len(batch.kinds)
        busy = np.zeros(batch.shape)
        overhead = np.zeros(count)
        classes = np.full(count, _CLASS["memory"], dtype=np.intp)
        for name, members in _families(batch.kinds).items():
            index = np.asarray(members, dtype=np.intp)
            if name == "simple":
                self._simple(batch, index, cold, busy, overhead, classes)
            elif name.startswith("gemm"):
                s = Shapes(batch, index, cold)
                busy[:, index] = self._weigh(name, s)
                overhead[index] = self.value(self._resolve(name), "overhead")
                classes[index] = _CLASS["gemm"]
            else:
                self._convolutions(name.split("/")[0], batch, index, cold, busy, overhead, classes)
                if name == "int8/tensor":
                    busy[:, index] += batch["out_elements"][:, index] * self.value(*PER_TENSOR_KEY, 0.0)
        unknown = tuple(dict.fromkeys(k.op for k in batch.kinds if _is_unknown(k)))
        scaled = self._threads(busy, classes, threads)
        network = self.value("network", "overhead") * 1e-3
        if threads > 1:
            overhead += self.value("parallel", "wait", 0.0)
        return Costs(scaled * 1e-3, overhead * 1e-3, network, classes, unknown)

    def _threads(self, busy: Array, classes: Index, threads: int) -> Array:
        if threads == 1:
            return busy
        shares = np.array([self.value("parallel", name, 0.0) for name in CLASSES])[classes]
        return np.asarray(busy * (1.0 - shares + shares / threads))

    def _weigh(self, table: str, s: Shapes) -> Array:
        constants = self.constants[self._resolve(table)]
        total: Array | float = 0.0
        for feature, count in MODELS[table](s).items():
            if feature in constants and constants[feature].value:
                total = total + constants[feature].value * count
        return np.asarray(total)

    def _resolve(self, table: str) -> str:
        """The table itself, or the nearest one that the target has constants for."""
        while table not in self.constants and table in _FALLBACK:
            table = _FALLBACK[table]
        return table

    def _convolutions(
        self, name: str, batch: KernelBatch, index: Index, cold: tuple[Array, Array],
        busy: Array, overhead: Array, classes: Index,
    ) -> None:  # fmt: skip
        kinds = variants(name, Shapes(batch, index, cold))
        first = kinds[0]
        launches = np.zeros(len(_VARIANTS))
        mixed = bool((kinds != first).any())
        for variant in np.unique(kinds):
            table = variant_table(name, int(variant))
            launches[variant] = self.value(self._resolve(table), "overhead")
            mine = (kinds == variant).any(axis=0)
            chosen = index[mine]
            cost = self._weigh(table, Shapes(batch, chosen, cold))
            busy[:, chosen] = np.where(kinds[:, mine] == variant, cost, busy[:, chosen]) if mixed else cost
        overhead[index] = launches[first]
        if mixed:  # launches belong to kernels, not to policies: what a policy's variant differs by is busy
            busy[:, index] += launches[kinds] - launches[first]
        dense = _CLASS["conv_int" if name == "int8" else "conv_float"]
        classes[index] = np.where(first == _VARIANTS.index("depthwise"), _CLASS["depthwise"], dense)

    def _simple(
        self, batch: KernelBatch, index: Index, cold: tuple[Array, Array],
        busy: Array, overhead: Array, classes: Index,
    ) -> None:  # fmt: skip
        rates = np.array([self._simple_rates(batch.kinds[i]) for i in index])
        f = simple_features(Shapes(batch, index, cold), rates[:, 4], rates[:, 5])
        busy[:, index] = f["read"] * rates[:, 0] + f["written"] * rates[:, 1] + f["taps"] * rates[:, 2]
        overhead[index] = rates[:, 3]
        tables = [simple_table(batch.kinds[i]) for i in index]
        classes[index] = [_CLASS["reorder" if t in _REORDER_TABLES else "memory"] for t in tables]

    def _simple_rates(self, kind: KernelKind) -> tuple[float, float, float, float, float, float]:
        """(read, written, taps, overhead, bytes in, bytes out) of an operation without MACs."""
        table = simple_table(kind)
        if not table:
            return (0.0, 0.0, 0.0, self.value("view", "overhead", 0.0), 4.0, 4.0)
        known = table if table in self.constants else "unknown"
        width_in, width_out = activation_width(kind)
        rates = [self.value(known, feature, 0.0) for feature in ("read", "written", "taps")]
        return (rates[0], rates[1], rates[2], self.value(known, "overhead"), width_in, width_out)


#: Where a target has no constants of its own for a variant: that of the nearest one.
_FALLBACK = {
    "nchwc.dense": "plain.dense", "nchwc.pointwise": "nchwc.dense", "nchwc.first": "nchwc.dense",
    "nchwc.depthwise": "plain.depthwise", "plain.pointwise": "plain.dense", "plain.depthwise": "plain.dense",
    "int8.pointwise": "int8.dense", "int8.depthwise": "int8.dense",
    "int8.grouped": "int8.dense", "plain.grouped": "plain.dense", "qavg": "qpool", "gemm.int8": "gemm.float",
}  # fmt: skip


def _is_unknown(kind: KernelKind) -> bool:
    return family(kind) == "simple" and simple_table(kind) == "unknown"
