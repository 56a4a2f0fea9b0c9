"""Kernels in; latency with an interval, energy and what the numbers rest on out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal

import numpy as np

from hw_profiles.conformal import prior_sigma
from hw_profiles.correction import Correction, fit_correction
from hw_profiles.costs import CLASSES, CostModel, Costs, cost_model
from hw_profiles.errors import BadKernelsError, UnsupportedSettingError
from hw_profiles.kernel import Array, KernelBatch
from hw_profiles.target import Target

if TYPE_CHECKING:
    from hw_profiles.devices.contract import DeviceFacts
    from hw_profiles.learned import Learned
    from hw_profiles.profiles import Profile

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
    """Prices kernels on one target with one number of threads. Immutable: `corrected` and `profiled` return
    others.

    Example: ``Predictor(load_target("raspberry-pi-4")).predict(batch).latency_ms``.
    """

    target: Target
    threads: int | None = None
    correction: Correction = field(default_factory=Correction)
    learned: Learned | None = field(default=None, repr=False)
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
        costs, difficulty = self._priced(batch)
        kernel_ms, network_ms = self._scaled(costs)
        latency = kernel_ms.sum(axis=1) + network_ms
        factor = np.exp(self._half_width(difficulty))
        return Prediction(
            latency_ms=latency,
            low_ms=latency / factor,
            high_ms=latency * factor,
            energy_mj=self._model.energy_mj(batch),
            kernel_ms=kernel_ms,
            unknown=costs.unknown,
            backing=self._backing(costs),
        )

    @property
    def bends(self) -> tuple[float, ...]:
        """See `CostModel.bends`; with a learned residual it is linear between them only nearly."""
        return self._model.bends

    def quantile_factor(self, risk: float) -> float:
        """Factor on the point estimate that latency stays below with probability `risk` (0.5: 1)."""
        if not 0.0 < risk < 1.0:
            raise UnsupportedSettingError(f"{risk=} is not a probability between 0 and 1, such as 0.9")
        if self.learned is not None:
            typical = np.array([self.learned.calibration.typical])
            half = float(self._half_width(typical, abs(2.0 * risk - 1.0))[0])
            return math.exp(math.copysign(half, risk - 0.5))
        return math.exp(NormalDist().inv_cdf(risk) * self._log_sigma())

    def profiled(
        self,
        profile: Profile,
        facts: DeviceFacts | None = None,
        seed: int = 0,
        beside: Path | None = None,
        single: tuple[Profile, Path] | None = None,
    ) -> Predictor:
        """A predictor that rests on what was measured on the device: kernels and networks of a profile.

        Given `facts`, a profile that no longer speaks for the device is refused (BadProfileError, exit 3), as
        is one with another number of threads or runtime version. `beside`: the profile's file; what
        was learned is kept next to it and taken up again as long as neither changes. `single`: the device's
        profile with one thread and its file, on which several threads then rest. Empty: the predictor itself.
        """
        from hw_profiles.learned_store import learned_of

        threads = self.threads or self.target.default_threads
        found = learned_of(profile, self.target, threads, facts, seed, beside, single)
        return self if found is None else replace(self, learned=found, correction=Correction())

    def corrected(self, measurements: Sequence[tuple[KernelBatch, float]]) -> Predictor:
        """A predictor that has seen whole networks on the device: (batch of one policy, measured ms) each.

        Scales every class of cost, held towards one common factor, which is held loosely towards 1;
        narrows the interval to the residuals that remain. No measurements: the predictor itself.
        """
        if not measurements:
            return self
        parts = np.array([self._class_ms(batch) for batch, _ in measurements])
        measured = np.array([ms for _, ms in measurements], dtype=np.float64)
        found = fit_correction(parts, measured, prior_sigma=self._prior_sigma())
        return replace(self, correction=found)

    def explain(self, batch: KernelBatch) -> dict[str, float]:
        """Milliseconds of the first policy by class of cost; sums to its latency."""
        parts = self._class_ms(batch) * np.array(self.correction.scales)
        return dict(zip(CLASSES, map(float, parts), strict=True))

    def _costs(self, batch: KernelBatch) -> Costs:
        return self._priced(batch)[0]

    def _priced(self, batch: KernelBatch) -> tuple[Costs, Array]:
        """(costs, (P,) how hard the learned model finds each network; zeros without one)."""
        if not len(batch) or not batch.kinds:
            raise BadKernelsError(f"nothing to price: {len(batch)} policies of {len(batch.kinds)} kernels")
        if self.learned is not None:
            return self.learned.price(batch)
        return self._model.price(batch, self.threads or self.target.default_threads), np.zeros(len(batch))

    def _scaled(self, costs: Costs) -> tuple[Array, float]:
        scales = np.array(self.correction.scales)
        launch = scales[CLASSES.index("overhead")]
        kernel = costs.busy_us * scales[costs.classes] + costs.overhead_us * launch
        return kernel * 1e-3, float(costs.network_us * launch * 1e-3)

    def _class_ms(self, batch: KernelBatch) -> Array:
        """(C,) uncorrected milliseconds of the first policy by class."""
        costs = self._costs(batch)
        parts = np.bincount(costs.classes, weights=costs.busy_us[0], minlength=len(CLASSES))
        launches = np.broadcast_to(costs.overhead_us, costs.busy_us.shape)[0]
        parts[CLASSES.index("overhead")] += float(np.sum(launches)) + costs.network_us
        return np.asarray(parts * 1e-3)

    def _prior_sigma(self) -> float:
        """Spread of one prediction before any whole network of the user's was measured."""
        if self.learned is None:
            return self.target.cost.interval.log_sigma.value
        calibration = self.learned.calibration
        return float(calibration.half_width(np.array([calibration.typical]))[0]) / _Z90

    def _half_width(self, difficulty: Array, level: float = 0.9) -> Array:
        """(P,) log half-width of the interval that holds with probability `level`."""
        if self.learned is None:
            return np.full(len(difficulty), NormalDist().inv_cdf(0.5 + level / 2.0) * self._log_sigma())
        half = self.learned.calibration.half_width(difficulty, level)
        if self.correction.measurements:
            half = half * (self.correction.log_sigma / self._prior_sigma())
        return half

    def _log_sigma(self) -> float:
        """Standard deviation of log(measured / predicted)."""
        if self.correction.measurements:
            return self.correction.log_sigma
        return prior_sigma(self.target.cost, self.threads or self.target.default_threads)

    def _backing(self, costs: Costs) -> str:
        text = self.target.backing if self.learned is None else self.learned.backing
        if self.correction.measurements:
            count = self.correction.measurements
            text += f"; corrected by {count} network{'s' if count > 1 else ''} measured on the device"
        if costs.exact is not None:
            text += f"; {int(costs.exact.sum())} of {costs.exact.size} kernels read from the table"
        if costs.unknown:
            text += f"; no model for {', '.join(costs.unknown)} (priced as memory traffic)"
        return text
