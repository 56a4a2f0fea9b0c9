"""Accuracy of one resolved policy: compress, simulate, score every validation sample."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from compressors.policy import ResolvedPolicy
from compressors.resolve import Numerics

if TYPE_CHECKING:
    from torch import Tensor

    from compressors.apply import Network
    from compressors.compressed import Compressed
    from search.task import Metric, Split, Task

#: Samples a hopeless policy is judged by before the full recalibration is paid for.
FIRST_CALIBRATION = 128
FIRST_VALIDATION = 160
#: One-sided confidence at which a policy counts as hopeless.
_Z_STOP = 2.8
_Z_95 = 1.959964


@dataclass(frozen=True)
class Score:
    """A metric's value on the validation data with a 95 % interval.

    ``stopped_early``: given up after ``samples`` samples because the upper bound was below the bar.
    """

    value: float
    std: float
    low: float
    high: float
    samples: int
    seconds: float
    stopped_early: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def interval(scores: Tensor, z: float = _Z_95) -> tuple[float, float, float, float]:
    """(mean, standard error, low, high) of per-sample scores (N,).

    Wilson's interval for scores that are all 0 or 1, otherwise the normal one.
    """
    values = scores.double()
    n = len(values)
    mean = float(values.mean())
    if bool(((values == 0) | (values == 1)).all()):
        centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
        return mean, math.sqrt(mean * (1 - mean) / n), centre - half, centre + half
    std = float(values.std()) / math.sqrt(n) if n > 1 else 0.0
    return mean, std, mean - z * std, mean + z * std


class Scorer:
    """Scores policies of one task under one kind of numerics; holds the traced network."""

    def __init__(self, task: Task, network: Network, numerics: Numerics) -> None:
        self.task = task
        self.network = network
        self.numerics = numerics
        network.channel_means()  # on all calibration data, before a smaller look shares them

    @classmethod
    def of(cls, task: Task, numerics: Numerics) -> Scorer:
        """Trace the task's network and get ready to score."""
        from compressors.apply import Network

        return cls(task, Network.from_module(task.network, task.example, task.calibration), numerics)

    def score(self, policy: ResolvedPolicy, bar: float | None = None) -> Score:
        """Score a policy on the whole validation set, or give it up early when ``bar`` is out of reach.

        ``bar``: metric value worth having. A policy whose bound after a first, cheap look (fewer
        calibration and validation samples) is on the wrong side of it is not evaluated further.
        """
        from compressors.apply import compress

        start = time.perf_counter()
        validation = self.task.validation
        if bar is not None and len(validation) > 2 * FIRST_VALIDATION:
            first = self._first_look(policy, bar)
            if first is not None:
                mean, std, low, high, n = first
                return Score(mean, std, low, high, n, time.perf_counter() - start, True)
        compressed = compress(self.network, policy, self.numerics)
        mean, std, low, high = interval(score_compressed(compressed, validation, self.task.metric))
        return Score(mean, std, low, high, len(validation), time.perf_counter() - start)

    def _first_look(
        self, policy: ResolvedPolicy, bar: float
    ) -> tuple[float, float, float, float, int] | None:
        from dataclasses import replace

        from compressors.apply import compress

        small = replace(
            self.network, calibration=tuple(x[:FIRST_CALIBRATION] for x in self.network.calibration)
        )
        compressed = compress(small, policy, self.numerics)
        step = max(1, len(self.task.validation) // FIRST_VALIDATION)
        part = self.task.validation[slice(None, None, step)]
        scores = score_compressed(compressed, part, self.task.metric)
        better = self.task.metric.higher_is_better
        _, _, low, high = interval(scores, _Z_STOP)
        if (better and high >= bar) or (not better and low <= bar):
            return None
        return (*interval(scores), len(part))


def score_compressed(compressed: Compressed, split: Split, metric: Metric) -> Tensor:
    """Per-sample scores (N,) of a compressed network's simulated answers."""
    from compressors.simulate import answers

    return metric.score(answers(compressed, split.inputs), split.targets)
