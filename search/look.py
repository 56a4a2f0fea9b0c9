"""A first look at a policy: few calibration samples, few validation samples, no ranges of activations.

It answers one question: can the policy still beat the bar once it is recalibrated on all samples? Batch-norm
statistics of few samples move every answer, but mostly alike for all policies, and recalibration takes off
what they do to the *uncompressed* network. What is left is noise, no more than a share of what those few do
to the uncompressed network's margins where nothing is taken off; so every wrong answer has a probability of
being put right, and the number of them the Poisson binomial distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from compressors.policy import ResolvedPolicy
from compressors.resolve import Numerics

if TYPE_CHECKING:
    from torch import Tensor

    from compressors.graph import Graph
    from compressors.network import Network
    from search.task import Metric, Split

#: Calibration samples of the look.
CALIBRATION = 32
#: Validation samples: those the dense network is least sure of, and some evenly spaced others.
HARDEST = 32
OTHERS = 8
SAMPLES = HARDEST + OTHERS
#: Chance at which a policy still counts as hopeful.
HOPE = 0.05
#: Noise left in a margin, in units of the uncompressed network's own change; and what rounding adds, in
#: standard deviations of the outputs.
LEFT = 0.7
ROUNDING = 0.02
#: Chance that a wrong answer is put right where answers have no margins.
SAVED = 0.02
#: One-sided confidence for metrics that are not right or wrong, in standard errors.
_Z_STOP = 2.8
#: Bits from which on rounding is part of the noise rather than of the look.
_FINE = 8


@dataclass(frozen=True)
class Seen:
    """What a look saw: scores (SAMPLES,), and every answer's chance of being wrong at last, where known.

    ``seconds``: what it took, the policy's pruning and factorisation aside.
    """

    scores: tuple[float, ...]
    wrong: tuple[float, ...] | None
    seconds: float = 0.0


@dataclass(frozen=True)
class Terms:
    """On which terms the policies of one task are given up: facts of its validation data and metric.

    ``count`` validation samples; ``binary``: the uncompressed network's scores are all 0 or 1, 1 being right;
    ``stoppable``: the network takes any number of samples, so that some may be scored without the others.
    """

    count: int
    binary: bool
    higher_is_better: bool
    stoppable: bool = True

    @property
    def looks(self) -> bool:
        """Whether a look is worth its time before all samples are scored."""
        return self.stoppable and self.count > 2 * SAMPLES


class Look:
    """Looks at policies of one task. ``ordered`` holds the validation samples, least certain first."""

    def __init__(
        self, metric: Metric, network: Network, numerics: Numerics, ordered: Split, binary: bool
    ) -> None:
        import torch

        self.metric = metric
        self.network = network
        self.numerics = numerics
        self.binary = binary
        self.count = len(ordered)
        step = max(1, (self.count - HARDEST) // OTHERS)
        rest = torch.arange(HARDEST, self.count, step)[:OTHERS]
        self.part = ordered[torch.cat([torch.arange(HARDEST), rest])]
        # means of the same samples as the look's, so that chance cancels; covariances of all
        self._small = network.on_other_calibration(tuple(x[:CALIBRATION] for x in network.calibration))

    def at(self, policy: ResolvedPolicy, weights: dict[str, Tensor]) -> Seen:
        """Look at a policy whose weights, pruned and factorised, are known."""
        from compressors.apply import is_reduced

        outputs = self._outputs(policy, weights)
        scores = self.metric.score(outputs, self.part.targets).double()
        found = self._margins(outputs, scores)
        if found is None:
            return Seen(tuple(scores.tolist()), None)
        noise = ROUNDING
        if is_reduced(self.network, policy):
            noise = math.hypot(LEFT * self._spread, ROUNDING)
        wrong = tuple(0.5 * math.erfc(m / noise / math.sqrt(2.0)) for m in found.tolist())
        return Seen(tuple(scores.tolist()), wrong)

    def prepare(self) -> None:
        """Work out now what is the same for all policies, rather than within the first one's look."""
        _ = self._spread

    def hopeless(self, seen: Seen, bar: float) -> bool:
        """Whether a policy is all but certain not to beat the bar."""
        return hopeless(seen, Terms(self.count, self.binary, self.metric.higher_is_better), bar)

    def _outputs(self, policy: ResolvedPolicy, weights: dict[str, Tensor]) -> tuple[Tensor, ...]:
        from compressors.apply import compress, folded_network
        from compressors.simulate import answers

        bits = [*policy.weight_bits.values(), *policy.act_bits.values()]
        if all(b >= _FINE for b in bits):
            return _run(*folded_network(self._small, policy, weights), self.part.inputs)
        return answers(compress(self._small, policy, self.numerics, weights), self.part.inputs)

    def _margins(self, outputs: tuple[Tensor, ...], scores: Tensor) -> Tensor | None:
        """Output of the right class less the best other one, in standard deviations; None without classes."""
        import torch

        first, targets = outputs[0], self.part.targets
        if targets is None or first.dim() != 2 or first.shape[1] < 2 or not first.is_floating_point():
            return None
        if targets.is_floating_point() or targets.dim() != 1 or int(targets.max()) >= first.shape[1]:
            return None
        rows = targets.long()[:, None]
        others = first.scatter(1, rows, -torch.inf).max(1).values
        margins = (first.gather(1, rows).squeeze(1) - others) / first.std().clamp_min(1e-12)
        # a metric that counts otherwise than by the largest output has other margins
        return margins if bool(((margins > 0) == (scores == 1)).all()) else None

    @cached_property
    def _spread(self) -> float:
        """What all calibration samples in place of few do to the uncompressed network's margins: RMS."""
        import torch

        from compressors.recalibrate import recalibrate

        graph, margins = self.network.structure.graph, []
        with torch.no_grad():
            for network in (self._small, self.network):
                weights = recalibrate(graph, dict(network.weights), network, {}, absolute=True)
                outputs = _run(graph, weights, self.part.inputs)
                margins.append(self._margins(outputs, self.metric.score(outputs, self.part.targets)))
        few, every = margins
        if few is None or every is None:
            return 0.0
        return float((every - few).square().mean().sqrt())


def hopeless(seen: Seen, terms: Terms, bar: float) -> bool:
    """Whether a policy is all but certain not to beat the bar."""
    if not (terms.binary and all(s in (0.0, 1.0) for s in seen.scores)):
        mean, std = estimate(seen, terms.count)
        return mean + _Z_STOP * std < bar if terms.higher_is_better else mean - _Z_STOP * std > bar
    wrong = seen.wrong
    if wrong is None:
        wrong = (1.0 - SAVED,) * sum(s == 0.0 for s in seen.scores)
    return at_most(wrong_allowed(terms.count, bar), wrong) < HOPE


def estimate(seen: Seen, count: int) -> tuple[float, float]:
    """Mean and standard error over all ``count`` validation samples: two strata."""
    hard, rest = seen.scores[:HARDEST], seen.scores[HARDEST:]
    share = HARDEST / count
    middle = math.fsum(rest) / len(rest)
    mean = share * math.fsum(hard) / len(hard) + (1 - share) * middle
    spread = math.sqrt(math.fsum((s - middle) ** 2 for s in rest) / (len(rest) - 1))
    spread = max(spread, 0.5 / math.sqrt(len(rest)))
    return mean, (1 - share) * spread / math.sqrt(len(rest))


def wrong_allowed(count: int, bar: float) -> int:
    """Wrong answers of ``count`` with which a policy still beats the bar."""
    return math.ceil(count * (1.0 - bar) - 1e-6) - 1


def at_most(count: int, chances: Sequence[float]) -> float:
    """Probability of at most ``count`` successes of independent trials (Poisson binomial, by recursion)."""
    if count < 0:
        return 0.0
    if count >= len(chances):
        return 1.0
    left = [1.0] + [0.0] * count  # probability of so many successes; more are dropped
    for p in chances:
        for k in range(count, 0, -1):
            left[k] += p * (left[k - 1] - left[k])
        left[0] *= 1.0 - p
    return min(1.0, sum(left))


def _run(graph: Graph, weights: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    import torch

    from compressors.execute import run

    with torch.no_grad():
        return run(graph, weights, inputs)


__all__ = ["Look", "Seen", "Terms", "at_most", "estimate", "hopeless", "wrong_allowed"]
