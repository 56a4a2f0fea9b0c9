"""Rewards at the end of an episode, as published; the controller copies them to every step of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from .contract import Problem

#: HAQ's scale, per point of the metric: ``reward = 0.1 (accuracy - accuracy before)``.
HAQ_SCALE = 0.1
NS_PER_MS = 1e6


def accuracy(problem: Problem, gain: float, latency_ms: float) -> float:
    """AMC, resource-constrained: the metric, higher is better (He et al. 2018: R_err = -error)."""
    return gain


def accuracy_guaranteed(problem: Problem, gain: float, latency_ms: float) -> float:
    """AMC, accuracy-guaranteed: ``-error log(cost)`` (He et al. 2018: R_FLOPs), the cost being latency.

    Error is 1 minus the metric, or the metric where lower is better. Latency is in nanoseconds, where the
    logarithm is positive and as large as that of FLOPs in the paper; in ms it would change sign.
    """
    error = max(0.0, 1.0 - gain if problem.higher_is_better else -gain)
    return -error * math.log(max(latency_ms * NS_PER_MS, math.e))


def haq(problem: Problem, gain: float, latency_ms: float) -> float:
    """HAQ: what the metric lost, in points, times `HAQ_SCALE` (Wang et al. 2019)."""
    return HAQ_SCALE * 100.0 * (gain - problem.gain(problem.base_accuracy))


#: Name to reward: (problem, metric turned so that higher is better, latency in ms) to a number.
REWARDS: Mapping[str, Callable[[Problem, float, float], float]] = {
    "accuracy": accuracy,
    "accuracy-guaranteed": accuracy_guaranteed,
    "haq": haq,
}
