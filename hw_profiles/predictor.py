"""Kernels in; latency with an interval, energy and what the numbers rest on out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import Literal

import numpy as np

from hw_profiles.correction import Correction, fit_correction
from hw_profiles.costs import CLASSES, CostModel, Costs, cost_model
from hw_profiles.errors import BadKernelsError, UnsupportedSettingError
from hw_profiles.kernel import Array, KernelBatch
from hw_profiles.target import Target

_Z90 = NormalDist().inv_cdf(0.95)


@dataclass(frozen=True, eq=False)
class Prediction:
    """Prices of P policies with K kernels. Milliseconds and millijoules of one run, lower is better.

    `low_ms` to `high_ms` is the 90 % interval. `kernel_ms` (P, K) sums to `latency_ms` less the fixed cost
    of a run. `unknown` names operations without a model: they are priced as memory traffic plus overhead.
    """

    latency_ms: Array
    low_ms: Array
    high_ms: Array
    energy_mj: Array | None
    kernel_ms: Array = field(repr=False)
    unknown: tuple[str, ...]
    backing: str
    source: Literal["predicted"] = "predicted"


@dataclass(frozen=True, eq=False)
class Predictor:
    """Prices kernels on one target with one number of threads. Immutable: `corrected` returns another.

    Example: ``Predictor(load_target("raspberry-pi-4")).predict(batch).latency_ms``.
    """

    target: Target
    threads: int | None = None
    correction: Correction = field(default_factory=Correction)
    _model: CostModel = field(init=False, repr=False)

    def __post_init__(self) -> None:
        threads = self.target.default_threads if self.threads is None else self.threads
        cores = self.target.device.cores
        if self.target.kind == "cpu" and not 1 <= threads <= cores:
            raise UnsupportedSettingError(
                f"{threads=} on {self.target.name}, which has {cores} core{'s' if cores > 1 else ''}. "
                f"Use --threads 1 to {cores}."
            )
        object.__setattr__(self, "threads", threads)
        object.__setattr__(self, "_model", cost_model(self.target))

    def predict(self, batch: KernelBatch) -> Prediction:
        """Price P policies at once; one row per policy, in the order of the batch."""
        costs = self._costs(batch)
        kernel_ms, network_ms = self._scaled(costs)
        latency = kernel_ms.sum(axis=1) + network_ms
        factor = math.exp(_Z90 * self._log_sigma())
        return Prediction(
            latency_ms=latency,
            low_ms=latency / factor,
            high_ms=latency * factor,
            energy_mj=self._model.energy_mj(batch),
            kernel_ms=kernel_ms,
            unknown=costs.unknown,
            backing=self._backing(costs),
        )

    def quantile_factor(self, risk: float) -> float:
        """Factor on the point estimate that latency stays below with probability `risk` (0.5: 1)."""
        if not 0.0 < risk < 1.0:
            raise UnsupportedSettingError(f"{risk=} is not a probability between 0 and 1, such as 0.9")
        return math.exp(NormalDist().inv_cdf(risk) * self._log_sigma())

    def corrected(self, measurements: Sequence[tuple[KernelBatch, float]]) -> Predictor:
        """A predictor that has seen whole networks on the device: (batch of one policy, measured ms) each.

        Scales every class of cost, held towards one common factor, which is held loosely towards 1;
        narrows the interval to the residuals that remain. No measurements: the predictor itself.
        """
        if not measurements:
            return self
        parts = np.array([self._class_ms(batch) for batch, _ in measurements])
        measured = np.array([ms for _, ms in measurements], dtype=np.float64)
        found = fit_correction(parts, measured, prior_sigma=self.target.cost.interval.log_sigma.value)
        return replace(self, correction=found)

    def explain(self, batch: KernelBatch) -> dict[str, float]:
        """Milliseconds of the first policy by class of cost; sums to its latency."""
        parts = self._class_ms(batch) * np.array(self.correction.scales)
        return dict(zip(CLASSES, map(float, parts), strict=True))

    def _costs(self, batch: KernelBatch) -> Costs:
        if not len(batch) or not batch.kinds:
            raise BadKernelsError(f"nothing to price: {len(batch)} policies of {len(batch.kinds)} kernels")
        return self._model.price(batch, self.threads or self.target.default_threads)

    def _scaled(self, costs: Costs) -> tuple[Array, float]:
        scales = np.array(self.correction.scales)
        launch = scales[CLASSES.index("overhead")]
        kernel = costs.busy_us * scales[costs.classes] + costs.overhead_us * launch
        return kernel * 1e-3, float(costs.network_us * launch * 1e-3)

    def _class_ms(self, batch: KernelBatch) -> Array:
        """(C,) uncorrected milliseconds of the first policy by class."""
        costs = self._costs(batch)
        parts = np.bincount(costs.classes, weights=costs.busy_us[0], minlength=len(CLASSES))
        parts[CLASSES.index("overhead")] += float(np.sum(costs.overhead_us)) + costs.network_us
        return np.asarray(parts * 1e-3)

    def _log_sigma(self) -> float:
        """Standard deviation of log(measured / predicted)."""
        if self.correction.measurements:
            return self.correction.log_sigma
        interval = self.target.cost.interval
        return math.hypot(interval.log_sigma.value, math.log(interval.runtime_factor.value) / _Z90)

    def _backing(self, costs: Costs) -> str:
        text = self.target.backing
        if self.correction.measurements:
            count = self.correction.measurements
            text += f"; corrected by {count} network{'s' if count > 1 else ''} measured on the device"
        if costs.exact is not None:
            text += f"; {int(costs.exact.sum())} of {costs.exact.size} kernels read from the table"
        if costs.unknown:
            text += f"; no model for {', '.join(costs.unknown)} (priced as memory traffic)"
        return text
