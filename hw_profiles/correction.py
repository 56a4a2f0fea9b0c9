"""Correcting a cost model by whole networks measured on the device: one factor per class of cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hw_profiles.costs.base import CLASSES
from hw_profiles.errors import MeasurementError
from hw_profiles.kernel import Array

#: How far a class may stray from the common factor, and the common factor from 1, as log standard deviations.
_CLASS_SPREAD = 0.3
_COMMON_SPREAD = 1.5
#: Weight of the prior spread, in measurements, when residuals narrow the interval.
_PRIOR_WEIGHT = 4.0
#: Two measurements of one network differ by this much: the minimum of CPU time repeats within 1.1 %.
_REPEAT_SIGMA = 0.011
_ITERATIONS = 50


@dataclass(frozen=True)
class Correction:
    """Factors by class (in the order of CLASSES), the spread left, and how many networks were seen."""

    scales: tuple[float, ...] = (1.0,) * len(CLASSES)
    log_sigma: float = 0.0
    measurements: int = 0


def fit_correction(parts: Array, measured_ms: Array, prior_sigma: float) -> Correction:
    """Factors s minimising sum (log measured - log(parts @ s))^2 / prior_sigma^2 + ridge on log s.

    `parts`: (n, C) predicted milliseconds by class; `measured_ms`: (n,). The ridge holds every log factor
    to a common one (spread 0.3) and that to 0 (spread 1.5), so that one measurement moves all classes alike.
    """
    if not np.all(np.isfinite(measured_ms)) or np.any(measured_ms <= 0.0):
        raise MeasurementError(f"measured latencies must be positive numbers, got {measured_ms.tolist()}")
    sigma = max(prior_sigma, _REPEAT_SIGMA)
    logs = _solve(parts, measured_ms, sigma)
    residuals = _left_out_residuals(parts, measured_ms, sigma)
    count = len(measured_ms)
    spread = (_PRIOR_WEIGHT * sigma**2 + float(np.sum(residuals**2))) / (_PRIOR_WEIGHT + len(residuals))
    return Correction(tuple(map(float, np.exp(logs))), max(math.sqrt(spread), _REPEAT_SIGMA), count)


def class_scales(parts: Array, measured_ms: Array, sigma: float) -> Array:
    """(C,) factors on the classes of cost, as `fit_correction` finds them; no spread, so no leaving out."""
    return np.asarray(np.exp(_solve(parts, measured_ms, sigma)))


def _solve(parts: Array, measured: Array, sigma: float) -> Array:
    """(C,) log factors by damped Gauss-Newton; the common factor is part of the ridge's covariance."""
    classes = parts.shape[1]
    covariance = _CLASS_SPREAD**2 * np.eye(classes) + _COMMON_SPREAD**2
    precision = np.linalg.inv(covariance)
    target = np.log(measured)

    def loss(logs: Array) -> float:
        residual = target - np.log(parts @ np.exp(logs))
        return float(residual @ residual / sigma**2 + logs @ precision @ logs)

    logs = np.full(classes, float(np.median(target - np.log(parts.sum(axis=1)))))
    best = loss(logs)
    for _ in range(_ITERATIONS):
        terms = parts * np.exp(logs)
        total = terms.sum(axis=1)
        slopes = terms / total[:, None]
        residual = target - np.log(total)
        curvature = slopes.T @ slopes / sigma**2 + precision
        step = np.linalg.solve(curvature, slopes.T @ residual / sigma**2 - precision @ logs)
        while (after := loss(logs + step)) > best and float(np.abs(step).max()) > 1e-9:
            step = step / 2.0
        if best - after < 1e-10:
            break
        logs, best = logs + step, after
    return np.asarray(logs)


def _left_out_residuals(parts: Array, measured: Array, sigma: float) -> Array:
    """Log residual of every network under factors fitted without it; none for a single network."""
    count = len(measured)
    if count < 2:
        return np.zeros(0)
    kept = [np.delete(np.arange(count), i) for i in range(count)]
    logs = [_solve(parts[rows], measured[rows], sigma) for rows in kept]
    totals = np.array([float(parts[i] @ np.exp(logs[i])) for i in range(count)])
    return np.asarray(np.log(measured) - np.log(totals))
