"""CPU kernels: time = sum of constant x feature, the features being the loops which the kernels run.

A feature is a count (padded MACs, rows, bytes), a constant nanoseconds per count, fitted with
non-negative least squares by scripts/fit_x86.py and scripts/fit_arm.py. The staircase is in the
counts: channels are rounded up as the kernel rounds them. Every function returns (P, k) arrays.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from hw_profiles.costs.base import (
    CLASSES,
    CostModel,
    Costs,
    Features,
    Index,
    Shapes,
)
from hw_profiles.costs.cpu_loops import LANES, MODELS
from hw_profiles.kernel import (
    ASYMMETRIC,
    CONV_OPS,
    MATMUL_OPS,
    VIEW_OPS,
    WEIGHTS,
    Array,
    KernelBatch,
    KernelKind,
    activation_width,
)
from hw_profiles.target import Target

_CLASS = {name: i for i, name in enumerate(CLASSES)}
_VARIANTS = (
    "dense", "pointwise", "depthwise", "first", "grouped",
    "gathered", "pointwise_gathered", "depthwise_gathered",
    "wide",
)  # fmt: skip
_DEPTHWISE = (2, 7)
#: Variant without a direct kernel for each variant that may have one.
_GATHERED = np.array([5, 6, 7, 3, 4, 5, 6, 7, 8])

#: Operations priced by elements in, elements out and window taps; the name is the table of constants.
SIMPLE: dict[str, str] = {
    "MaxPool": "pool", "AveragePool": "pool", "GlobalAveragePool": "reduce", "GlobalMaxPool": "reduce",
    "ReduceMean": "reduce_axis", "ReduceMax": "reduce_axis", "ReduceSum": "reduce_axis", "LpPool": "pool",
    "NhwcMaxPool": "pool_nhwc", "QLinearAveragePool": "qavg", "QLinearGlobalAveragePool": "qreduce",
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
    "QuantizeLinear": "quantise", "DequantizeLinear": "dequantise",
    "DynamicQuantizeLinear": "quantise_dynamic",
    "Sigmoid": "special", "Tanh": "special", "Exp": "special", "Silu": "special", "QuickGelu": "special",
    "Mish": "special", "Softplus": "special", "Elu": "special", "Pow": "special",
    "Softmax": "softmax", "LogSoftmax": "softmax",
    "Erf": "erf", "Gelu": "gelu", "FastGelu": "gelu", "BiasGelu": "gelu",
    "LayerNormalization": "norm", "SkipLayerNormalization": "skipnorm", "InstanceNormalization": "norm",
    "GroupNormalization": "norm", "GroupNorm": "norm", "SimplifiedLayerNormalization": "norm",
    "QLinearSoftmax": "qtable", "QLinearSigmoid": "qtable",
    # ncnn's names, as far as they are others
    "Pooling": "pool", "Pooling1D": "pool", "Reduction": "reduce", "BinaryOp": "add", "UnaryOp": "special",
    "ReLU": "map", "PReLU": "map", "BatchNorm": "map", "Interp": "concat", "Padding": "concat",
    "Crop": "concat", "Embed": "concat", "Permute": "transpose", "TanH": "special", "Swish": "special",
    "ELU": "special", "GELU": "special", "LayerNorm": "norm",
}  # fmt: skip
_REORDER_TABLES = frozenset(
    {
        "reorder_in",
        "reorder_out",
        "quantise",
        "quantise_dynamic",
        "dequantise",
        "dequantise_weights",
        "transpose",
        "qtranspose",
    }
)


def simple_table(kind: KernelKind) -> str:
    """Table of constants for an operation without MACs: "" for free views, "unknown" without a model."""
    if kind.op in VIEW_OPS:
        return ""
    table = SIMPLE.get(kind.op, "unknown")
    if table == "dequantise" and WEIGHTS in kind.fused:
        return "dequantise_weights"
    if table == "pool" and "nchwc" in kind.domain:
        return "pool_nchwc"
    if table == "reduce" and "nchwc" in kind.domain:
        return "reduce_nchwc"
    # u8 goes through the MaxPool and Transpose names as well.
    integer = {"pool": "qpool", "pool_nhwc": "qpool_nhwc", "transpose": "qtranspose", "concat": "qconcat"}
    return integer.get(table, table) if kind.precision == "int8" else table


def simple_features(s: Shapes, width_in: Array | float, width_out: Array | float) -> Features:
    """Bytes in and out and window taps of an operation without MACs."""
    taps = s.out_elements * s.kernel_h * s.kernel_w
    return {"read": s.in_elements * width_in, "written": s.out_elements * width_out, "taps": taps}


def family(kind: KernelKind) -> str:
    """Kernel family of a kind: nchwc, plain or int8 convolution, gemm.float, one of gemm.int8, or simple."""
    integer = kind.precision == "int8" or kind.op.startswith("Q")
    if kind.op in CONV_OPS:
        if ASYMMETRIC in kind.fused:
            return "int8/asymmetric"
        return "int8" if integer else ("nchwc" if "nchwc" in kind.domain else "plain")
    if kind.op in MATMUL_OPS:
        if kind.op == "DynamicQuantizeMatMul":  # the range is found and the input rounded inside it
            return "gemm.int8_dynamic"
        return "gemm.int8" if integer else "gemm.float"
    return "simple"


def variants(name: str, s: Shapes) -> Index:
    """(P, k) index into the variants of a family, told from shapes."""
    kind = np.where(s.kernel_h * s.kernel_w == 1.0, 1, 0)
    if name == "nchwc":
        kind = np.where(s.cin < LANES, 3, np.where(s.kernel_h * s.kernel_w > 9.0, 8, kind))
    thin = (s.groups > 1.0) & (s.groups == s.cin) & (s.cin == s.cout)
    kind = np.where(thin, 2, np.where(s.groups > 1.0, 4, kind))
    if name.startswith("int8"):
        kind = np.where(has_direct_kernel(s) & (name == "int8"), kind, _GATHERED[kind])
    return np.asarray(kind, dtype=np.intp)


def has_direct_kernel(s: Shapes) -> NDArray[np.bool_]:
    """Whether an integer convolution reads pixels in place instead of gathering them into a matrix first.

    Told from measurements on AVX512-VNNI: input channels in fours, output channels in fours and at least
    sixteen; depthwise in sixteens; and symmetric weights. Without, it is up to twice as slow.
    """
    dense = (np.mod(s.cin, 4.0) == 0.0) & (np.mod(s.cout, 4.0) == 0.0) & (s.cout >= LANES)
    return np.asarray(np.where(s.groups > 1.0, np.mod(s.cout, LANES) == 0.0, dense))


def variant_table(name: str, variant: int) -> str:
    """Table of constants of a convolution family's variant."""
    name = name.split("/")[0]
    table = f"{name}.{_VARIANTS[variant]}"
    return table if table in MODELS else f"{name}.dense"


def variant_tables(name: str) -> tuple[str, ...]:
    """Table of every variant of a convolution family, in the order of `variants`."""
    return tuple(variant_table(name, i) for i in range(len(_VARIANTS)))


def classes_of(batch: KernelBatch, tables: NDArray[np.object_]) -> Index:
    """(K,) index into CLASSES of kernels priced by the given tables, (K,)."""
    found = []
    for kind, table in zip(batch.kinds, tables, strict=True):
        name = family(kind)
        if name == "simple":
            found.append(_CLASS["reorder" if table in _REORDER_TABLES else "memory"])
        elif name.startswith("gemm"):
            found.append(_CLASS["gemm"])
        elif "depthwise" in table:
            found.append(_CLASS["depthwise"])
        else:
            found.append(_CLASS["conv_int" if name.startswith("int8") else "conv_float"])
    return np.array(found, dtype=np.intp)


def class_of_table(table: str) -> int:
    """Index into CLASSES of what a table of constants prices."""
    if table.startswith("gemm"):
        return _CLASS["gemm"]
    if "depthwise" in table:
        return _CLASS["depthwise"]
    if table.startswith("int8"):
        return _CLASS["conv_int"]
    if table.startswith(("nchwc.", "plain.")):
        return _CLASS["conv_float"]
    return _CLASS["reorder" if table in _REORDER_TABLES else "memory"]


def resolved(target: Target, table: str) -> str:
    """The table itself, or the nearest one that the target has constants for ("unknown" at last)."""
    while table not in target.cost.constants and table in _FALLBACK:
        table = _FALLBACK[table]
    return table if table in target.cost.constants or table in MODELS else "unknown"


def cache_bytes(target: Target) -> tuple[float, float]:
    """(a core's cache, the last cache) in bytes, infinite where unknown."""
    device = target.device
    core = device.core_cache_bytes.value if device.core_cache_bytes else float("inf")
    return core, device.last_cache_bytes.value if device.last_cache_bytes else core


def cold_shares(batch: KernelBatch, core_bytes: float, last_bytes: float) -> tuple[Array, Array]:
    """(P, 1) share of the weights that no longer is in a core's cache / the last cache on the next run.

    A network walks its weights once per run; what exceeds the cache has been evicted when it is wanted again.
    """
    held = batch.held_bytes()[:, None]
    return np.clip(held / core_bytes - 0.5, 0.0, 1.0), np.clip(held / last_bytes - 0.5, 0.0, 1.0)


@lru_cache(maxsize=256)
def families(kinds: tuple[KernelKind, ...]) -> dict[str, list[int]]:
    """Positions of the kernels of every family."""
    groups: dict[str, list[int]] = {}
    for i, kind in enumerate(kinds):
        groups.setdefault(family(kind), []).append(i)
    return groups


class CpuCost(CostModel):
    """Linear loop-count model of a CPU runtime, with fitted thread scaling."""

    @property
    def bends(self) -> tuple[float, ...]:
        """See `CostModel.bends`."""
        sizes = {size for size in cache_bytes(self.target) if np.isfinite(size)}
        return tuple(sorted({share * size for size in sizes for share in (0.5, 1.5)}))

    def price(self, batch: KernelBatch, threads: int) -> Costs:
        """See `CostModel.price`."""
        cold = cold_shares(batch, *cache_bytes(self.target))
        count = len(batch.kinds)
        busy = np.zeros(batch.shape)
        overhead = np.zeros(count)
        classes = np.full(count, _CLASS["memory"], dtype=np.intp)
        for name, members in families(batch.kinds).items():
            index = np.asarray(members, dtype=np.intp)
            if name == "simple":
                self._simple(batch, index, cold, busy, overhead, classes)
            elif name.startswith("gemm"):
                s = Shapes(batch, index, cold)
                busy[:, index] = self._weigh(name, s)
                overhead[index] = self.value(self._resolve(name), "overhead")
                classes[index] = _CLASS["gemm"]
            else:
                self._convolutions(name, batch, index, cold, busy, overhead, classes)
        unknown = tuple(dict.fromkeys(k.op for k in batch.kinds if _is_unknown(k)))
        network = self.value("network", "overhead") * 1e-3
        if threads > 1:
            busy = self._divided(batch, busy, classes, threads)
        return Costs(busy * 1e-3, overhead * 1e-3, network, classes, unknown)

    def _divided(self, batch: KernelBatch, busy: Array, classes: Index, threads: int) -> Array:
        """Time of kernels whose longest part counts, and the wait for it where there is more than one."""
        from hw_profiles.costs.threads import longest_part

        part = longest_part(batch, threads)
        shares = np.array([self.value("parallel", name, 0.0) for name in CLASSES])[classes]
        wait = self.value("parallel", "wait", 0.0)
        return np.asarray(busy * (1.0 - shares + shares * part) + np.where(part < 1.0, wait, 0.0))

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
        dense = _CLASS["conv_int" if name.startswith("int8") else "conv_float"]
        classes[index] = np.where(np.isin(first, _DEPTHWISE), _CLASS["depthwise"], dense)

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
        table = self._resolve(table)
        known = table if table in self.constants else "unknown"
        width_in, width_out = activation_width(kind)
        rates = [self.value(known, feature, 0.0) for feature in ("read", "written", "taps")]
        return (rates[0], rates[1], rates[2], self.value(known, "overhead"), width_in, width_out)


#: Where a target has no constants of its own for a variant: that of the nearest one.
_FALLBACK = {
    "nchwc.dense": "plain.dense", "nchwc.pointwise": "nchwc.dense", "nchwc.first": "nchwc.dense",
    "nchwc.wide": "nchwc.dense",
    "nchwc.depthwise": "plain.depthwise", "plain.pointwise": "plain.dense", "plain.depthwise": "plain.dense",
    "int8.pointwise": "int8.dense", "int8.depthwise": "int8.dense",
    "int8.gathered": "int8.dense", "int8.pointwise_gathered": "int8.pointwise",
    "int8.depthwise_gathered": "int8.depthwise", "int8.grouped": "int8.dense", "plain.grouped": "plain.dense",
    "gemm.int8": "gemm.float", "gemm.int8_dynamic": "gemm.int8",
    "quantise_dynamic": "quantise",
    "qavg": "qpool", "softmax": "special", "erf": "special", "norm": "special",
    "skipnorm": "norm", "dequantise_weights": "dequantise", "qpool_nhwc": "qpool", "pool_nhwc": "pool",
    "reduce_axis": "reduce", "gelu": "erf",
}  # fmt: skip


def _is_unknown(kind: KernelKind) -> bool:
    return family(kind) == "simple" and simple_table(kind) == "unknown"
