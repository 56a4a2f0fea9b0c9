"""Accuracy of one resolved policy: compress, simulate, score the validation samples that matter.

A policy is accepted when it beats the bar: the metric already reached at no more latency. What cannot beat
it will not join the front, and is given up as soon as that is certain enough:

1. a look (`search.look`): few calibration samples, the validation samples the dense network is least sure of;
2. after the full recalibration: the same samples first, until the rest cannot save the policy (exact).

Both depend on the policy and the bar alone, so that a resumed search decides as an undisturbed one. What the
stages find depends on the policy only (`search.evidence`): what was found out before is not found out again.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from compressors.policy import ResolvedPolicy
from compressors.resolve import Numerics

from .evidence import BATCH, Clock, Evidence, Score, Stage, batch_of, interval, is_binary, judge
from .look import Terms

if TYPE_CHECKING:
    from torch import Tensor

    from compressors.compressed import Compressed
    from compressors.network import Network
    from search.answers import Answers
    from search.look import Look
    from search.task import Metric, Split, Task


class Scorer:
    """Scores policies of one task under one kind of numerics; holds the traced network.

    ``runtime``: let onnxruntime compute validation answers where it agrees with the simulation.
    """

    def __init__(self, task: Task, network: Network, numerics: Numerics, runtime: bool = True) -> None:
        from compressors.network import fast_layout

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
        from compressors.network import Network

        network = Network.from_module(task.network, task.example, task.calibration)
        network.rank_channels(criterion)
        return cls(task, network, numerics)

    def score(self, policy: ResolvedPolicy, bar: float | None = None) -> Score:
        """Score a policy on the whole validation set, or give it up early when ``bar`` is out of reach.

        ``bar``: metric value to beat. Without one every sample is scored.
        """
        return self.examined(policy, bar)[0]

    def examined(
        self, policy: ResolvedPolicy, bar: float | None = None, known: Evidence | None = None
    ) -> tuple[Score, Evidence]:
        """As `score`, with all that is now known of the policy.

        ``known``: what was found out before, here or elsewhere. It changes the time this takes and nothing
        else: the score is the one that would be found without it, its ``seconds`` included.
        """
        found = Evidence() if known is None else known
        examination = Examination(self, policy)
        while not isinstance(verdict := judge(found, self.terms, bar), Score):
            found = examination.further(found, verdict)
        return verdict, found

    def for_workers(self) -> Scorer:
        """The same scorer as it is sent to other processes.

        It leaves the network's module and what only training needs behind, and caches that fill themselves;
        what each process would work out again goes along: the order of the samples, statistics, gradients.
        """
        from torch import nn

        self.network.covariances()
        network = replace(self.network)  # its caches are empty
        task = replace(
            self.task, network=nn.Identity(), train=None, train_batches=None, test=None, loss=None, spec=None,
            validation=self._validation,
        )  # fmt: skip
        found = Scorer(task, network, self.numerics, self.runtime)
        for name in ("terms", "_order", "_ordered", "_dense"):
            found.__dict__[name] = getattr(self, name)
        return found

    @cached_property
    def terms(self) -> Terms:
        """What the policies of this task are judged by."""
        return Terms(
            len(self._validation),
            self._dense_is_binary,
            self.task.metric.higher_is_better,
            self.network.structure.graph.fixed_batch is None,
        )

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


class Examination:
    """One policy on its way through the stages; what one stage computed serves the next."""

    def __init__(self, scorer: Scorer, policy: ResolvedPolicy) -> None:
        self.scorer = scorer
        self.policy = policy
        self._weights: dict[str, Tensor] | None = None
        self._answers: Answers | None = None

    def further(self, known: Evidence, stage: Stage) -> Evidence:
        """What is known after one more stage. Times that are known already stay: they were undisturbed."""
        from compressors.apply import shrunk

        if self._weights is None:
            clock = Clock()
            self._weights = shrunk(self.scorer.network, self.policy)
            if known.shrunk_seconds is None:
                known = replace(known, shrunk_seconds=clock.spent())
        return self._looked(known, self._weights) if stage == "look" else self._scored(known, self._weights)

    def _looked(self, known: Evidence, weights: dict[str, Tensor]) -> Evidence:
        look = self.scorer._look
        look.prepare()
        clock = Clock()
        seen = look.at(self.policy, weights)
        return replace(known, look=replace(seen, seconds=clock.spent()))

    def _scored(self, known: Evidence, weights: dict[str, Tensor]) -> Evidence:
        """One more batch."""
        from .answers import CHECKED

        ordered, done = self.scorer._ordered, len(known.scores)
        if self._answers is None:
            clock = Clock()
            self._answers = self._compressed(weights)
            if known.compressed_seconds is None:
                known = replace(known, compressed_seconds=clock.spent())
            if done:  # elsewhere the runtime was believed, or not, after these samples
                self._answers.scores(ordered[slice(0, CHECKED)])
        clock = Clock()
        part = ordered[slice(done, done + batch_of(self.scorer.terms))]
        scores = self._answers.scores(part).double().tolist()
        return replace(
            known,
            scores=(*known.scores, *scores),
            batch_seconds=(*known.batch_seconds, clock.spent()),
            disagreed=known.disagreed or self._answers.disagreed,
        )

    def _compressed(self, weights: dict[str, Tensor]) -> Answers:
        from compressors.apply import compress

        scorer = self.scorer
        return scorer._answers(compress(scorer.network, self.policy, scorer.numerics, weights))


def score_compressed(compressed: Compressed, split: Split, metric: Metric) -> Tensor:
    """Per-sample scores (N,) of a compressed network's simulated answers."""
    from compressors.simulate import answers

    return metric.score(answers(compressed, split.inputs), split.targets)


__all__ = [
    "BATCH",
    "Evidence",
    "Examination",
    "Score",
    "Scorer",
    "interval",
    "is_binary",
    "score_compressed",
]
