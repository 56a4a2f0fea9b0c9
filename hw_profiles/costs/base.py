"""What every cost model answers, and the view of shapes it works on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hw_profiles.kernel import Array, KernelBatch, KernelKind
from hw_profiles.target import Constant, Target

#: Classes of cost that a measurement may correct separately.
CLASSES = ("conv_float", "conv_int", "depthwise", "gemm", "memory", "reorder", "overhead")

Index = NDArray[np.intp]


@dataclass(frozen=True)
class Costs:
    """Time of kernels. `busy_us` (P, K) without and `overhead_us` (K,) with what a launch costs;
    `network_us` once per run; `classes` (K,) indexes CLASSES; `unknown` names operations without a model;
    `exact` (P, K) is true where a value was read from a table instead of modelled."""

    busy_us: Array
    overhead_us: Array
    network_us: float
    classes: Index
    unknown: tuple[str, ...] = ()
    exact: NDArray[np.bool_] | None = None


class CostModel(ABC):
    """Prices kernels on one target. Subclasses are final."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.constants = target.cost.constants

    @property
    def bends(self) -> tuple[float, ...]:
        """Bytes held by a network (`KernelBatch.held_bytes`) between which a kernel's time is linear in them.

        Rising; none where it does not depend on them. Before the first and beyond the last it is constant.
        """
        return ()

    @abstractmethod
    def price(self, batch: KernelBatch, threads: int) -> Costs:
        """Time of every kernel of every policy, in microseconds."""

    def energy_mj(self, batch: KernelBatch) -> Array | None:
        """(P,) millijoules of one run, or None where the target has no sourced constants."""
        energy = self.target.energy
        if energy is None:
            return None
        widths = np.array([_mac_pj(energy.mac_pj, kind.precision) for kind in batch.kinds])
        picojoules = batch.macs() * widths + batch.moved_bytes() * energy.cache_pj_per_byte.value
        picojoules += batch.weight_bytes() * energy.memory_pj_per_byte.value
        return np.asarray(picojoules.sum(axis=1) * 1e-9)

    def value(self, table: str, name: str, default: float | None = None) -> float:
        """One constant; a missing one without default is an error of the target file."""
        found = self.constants.get(table, {}).get(name)
        if found is not None:
            return found.value
        if default is None:
            raise KeyError(f"target {self.target.name}: cost constant {table}.{name} is missing")
        return default


def _mac_pj(table: dict[str, Constant], precision: str) -> float:
    return table[precision].value if precision in table else max(c.value for c in table.values())


class Shapes:
    """Columns of some kernels of a batch, (P, k) each, taken on first use."""

    def __init__(self, batch: KernelBatch, index: Sequence[int] | Index, cold: tuple[Array, Array]) -> None:
        self._columns = batch.columns
        self._index = np.asarray(index, dtype=np.intp)
        self._all = len(self._index) == len(batch.kinds)
        self.cold_core, self.cold_last = cold

    def __getattr__(self, name: str) -> Array:
        try:
            column = self._columns[name]
        except KeyError:
            raise AttributeError(name) from None
        taken = column if self._all else column[:, self._index]
        self.__dict__[name] = taken
        return taken


Features = dict[str, Array]
FeatureFunction = Callable[[Shapes], Features]


def ceil_to(x: Array, step: float) -> Array:
    """x rounded up to a multiple of step."""
    return np.asarray(np.ceil(x / step) * step)


def cost_model(target: Target) -> CostModel:
    """The cost model that a target names."""
    if target.cost.model == "cpu":
        from hw_profiles.costs.cpu import CpuCost

        return CpuCost(target)
    if target.cost.model == "gpu":
        from hw_profiles.costs.gpu import GpuCost

        return GpuCost(target)
    if target.cost.model == "arm":
        from hw_profiles.costs.arm import ArmCost

        return ArmCost(target)
    if target.cost.model == "dpu":
        from hw_profiles.costs.dpu import DpuCost

        return DpuCost(target)
    if target.cost.model == "bitserial":
        from hw_profiles.costs.bitserial import BitSerialCost

        return BitSerialCost(target)
    from hw_profiles.costs.fpga import BitFusionCost

    return BitFusionCost(target)


def kinds_of(batch: KernelBatch) -> tuple[KernelKind, ...]:
    """The template of a batch (a name for readability in cost models)."""
    return batch.kinds
