"""Accuracy of one resolved policy: compress, simulate, score the validation samples that matter.

A policy is accepted when it beats the bar: the metric already reached at no more latency. What cannot beat
it will not join the front, and is given up as soon as that is certain enough:

1. a look (`search.look`): few calibration samples, the validation samples the dense network is least sure of;
2. after the full recalibration: the same samples first, until the rest cannot save the policy (exact).

Both depend on the policy and the bar alone, so that a resumed search decides as an undisturbed one.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from compressors.policy import ResolvedPolicy
from compressors.resolve import Numerics

if TYPE_CHECKING:
    from torch import Tensor

    from compressors.apply import Network
    from compressors.compressed import Compressed
    from search.answers import Answers
    from search.look import Look
    from search.task import Metric, Split, Task

#: Samples scored at a time behind the full recalibration.
BATCH = 64
_Z_95 = 1.959964


@dataclass(frozen=True)
class Score:
    """A metric's value on the validation data with a 95 % interval.

    ``stopped_early``: given up after ``samples`` samples because the bar was out of reach; ``value`` is then
    an estimate that does not beat the bar.
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
    if is_binary(values):
        centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
        return mean, math.sqrt(mean * (1 - mean) / n), centre - half, centre + half
    std = float(values.std()) / math.sqrt(n) if n > 1 else 0.0
    return mean, std, mean - z * std, mean + z * std


def is_binary(scores: Tensor) -> bool:
    """Whether every score is 0 or 1: wrong or right."""
    return bool(((scores == 0) | (scores == 1)).all())


class Scorer:
    """Scores policies of one task under one kind of numerics; holds the traced network.

    ``runtime``: let onnxruntime compute validation answers where it agrees with the simulation.
    """

    def __init__(self, task: Task, network: Network, numerics: Numerics, runtime: bool = True) -> None:
        from compressors.apply import fast_layout

        from .memory import keep_freed_memory

        keep_freed_memory()
        self.task = task
        self.network = network
        self.numerics = numerics
        self.runtime = runtime
        inputs = tuple(fast_layout(x) for x in task.validation.inputs)
        self._validation = replace(task.validation, inputs=inputs)

    @classmethod
    def of(cls, task: Task, numerics: Numerics, criterion: str = "obs") -> Scorer:
        """Trace the task's network and get ready to score: what all policies need is worked out once."""
        from compressors.apply import Network

        network = Network.from_module(task.network, task.example, task.calibration)
        network.rank_channels(criterion)
        return cls(task, network, numerics)

    def score(self, policy: ResolvedPolicy, bar: float | None = None) -> Score:
        """Score a policy on the whole validation set, or give it up early when ``bar`` is out of reach.

        ``bar``: metric value to beat. Without one every sample is scored.
        """
        from compressors.apply import compress, shrunk

        from .look import SAMPLES

        start = time.perf_counter()
        weights = shrunk(self.network, policy)
        stoppable = bar is not None and self.network.structure.graph.fixed_batch is None
        if bar is not None and stoppable and len(self._validation) > 2 * SAMPLES:
            look = self._look.at(policy, weights)
            if self._look.hopeless(look, bar):
                value, std = self._look.estimate(look)
                return self._below(value, std, bar, SAMPLES, time.perf_counter() - start)
        compressed = compress(self.network, policy, self.numerics, weights)
        if bar is not None and stoppable and self._dense_is_binary:
            return self._in_order(compressed, bar, start)
        scores = self._answers(compressed).scores(self._ordered)
        mean, std, low, high = interval(scores)
        return Score(mean, std, low, high, len(scores), time.perf_counter() - start)

    @cached_property
    def _look(self) -> Look:
        from .look import Look

        return Look(self.task.metric, self.network, self.numerics, self._ordered, self._dense_is_binary)

    # -- the validation samples, least certain first

    @cached_property
    def _order(self) -> Tensor:
        """Validation samples by how little the dense network is sure of them: wrong ones, then by margin."""
        import torch

        if self.network.structure.graph.fixed_batch is not None:
            return torch.arange(len(self._validation))
        scores, margin = self._dense
        worst_first = scores if self.task.metric.higher_is_better else -scores
        by_margin = torch.argsort(margin, stable=True)
        return by_margin[torch.argsort(worst_first[by_margin], stable=True)]

    @cached_property
    def _ordered(self) -> Split:
        return self._validation[self._order]

    @cached_property
    def _dense(self) -> tuple[Tensor, Tensor]:
        """Scores (N,) of the uncompressed network and the margins of its answers (zeros without classes)."""
        import torch

        from search.task import run_network

        outputs = run_network(self.task.network, self._validation.inputs, 64)
        scores = self.task.metric.score(outputs, self._validation.targets).double()
        first = outputs[0]
        if first.dim() == 2 and first.shape[1] > 1 and first.is_floating_point():
            top = first.topk(2, 1).values
            return scores, top[:, 0] - top[:, 1]
        return scores, torch.zeros(len(scores))

    @property
    def _dense_is_binary(self) -> bool:
        return self.task.metric.higher_is_better and is_binary(self._dense[0])

    def _answers(self, compressed: Compressed, checked: bool = False) -> Answers:
        from .answers import Answers

        return Answers(compressed, self.task.metric, self.runtime, checked)

    # -- giving up

    def _continued(self, seen: Tensor) -> tuple[float, float]:
        """Mean and standard error over all samples from the first so many, the hardest.

        Of the rest, which is easier, as many are taken to be right as of the last batch seen, plus half of
        what is missing: between the two extremes.
        """
        n = len(self._ordered)
        last = 0.5 + 0.5 * float(seen[-BATCH:].mean())
        mean = (float(seen.sum()) + last * (n - len(seen))) / n
        return mean, (1.0 - last) * (n - len(seen)) / n + 0.5 / n

    def _below(self, mean: float, std: float, bar: float, samples: int, seconds: float) -> Score:
        """An early end: the estimate, not better than the bar."""
        value = min(mean, bar) if self.task.metric.higher_is_better else max(mean, bar)
        return Score(value, std, value - _Z_95 * std, value + _Z_95 * std, samples, seconds, True)

    def _in_order(self, compressed: Compressed, bar: float, start: float) -> Score:
        """Score the least certain samples first; stop when even right answers to the rest are too little."""
        import torch

        from .look import wrong_allowed

        answers, n = self._answers(compressed), len(self._ordered)
        allowed = wrong_allowed(n, bar)
        parts: list[Tensor] = []
        for i in range(0, n, BATCH):
            parts.append(answers.scores(self._ordered[slice(i, i + BATCH)]).double())
            seen = torch.cat(parts)
            if is_binary(seen) and int((seen == 0).sum()) > allowed and len(seen) < n:
                mean, std = self._continued(seen)
                return self._below(mean, std, bar, len(seen), time.perf_counter() - start)
        mean, std, low, high = interval(torch.cat(parts))
        return Score(mean, std, low, high, n, time.perf_counter() - start)


def score_compressed(compressed: Compressed, split: Split, metric: Metric) -> Tensor:
    """Per-sample scores (N,) of a compressed network's simulated answers."""
    from compressors.simulate import answers

    return metric.score(answers(compressed, split.inputs), split.targets)
