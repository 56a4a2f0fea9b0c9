"""Short recovery of a chosen policy: distillation from the uncompressed network, best checkpoint kept.

First the float network (pruned, factorised, with its batch-norms) learns the uncompressed network's
answers (Hinton et al. 2015); then, where bits are few, the folded network learns on with rounding in the
loop (straight-through estimator, Bengio et al. 2013). What comes out is quantised like any policy.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.apply import Network, finish, reduced, round_folded, weight_axis
from compressors.compressed import Compressed
from compressors.execute import run
from compressors.graph import Graph, Node
from compressors.policy import ResolvedPolicy
from compressors.quantize import fake_quantize, quantize_weight
from compressors.resolve import Numerics
from compressors.skeleton import concrete, unknowns

from .score import interval, score_compressed
from .threads import torch_threads

if TYPE_CHECKING:
    from search.task import Task

#: Peak learning rate of SGD with momentum 0.9 and one cycle; with rounding in the loop a tenth of it.
LEARNING_RATE = 0.03
BATCH = 64
TEMPERATURE = 2.0
#: Checkpoints compared on validation data over a recovery.
CHECKPOINTS = 6
_CLASSIFYING = frozenset({"top1", "top5", "teacher_agreement"})


@dataclass(frozen=True)
class Recovered:
    """The best checkpoint of a recovery; ``before`` and ``after`` are validation metric values.

    ``floats`` are the float network's weights it came from, to go on from there.
    """

    compressed: Compressed
    floats: Mapping[str, Tensor]
    before: float
    after: float
    steps: int
    seconds: float


@dataclass
class _Stage:
    """What one stage trains: leaves, how to run them, and how a checkpoint becomes a network."""

    leaves: dict[str, Tensor]
    forward: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
    network: Callable[[], Compressed]
    rate: float


def recover(
    task: Task,
    network: Network,
    policy: ResolvedPolicy,
    numerics: Numerics,
    seconds: float,
    seed: int = 0,
    stop: threading.Event | None = None,
    floats: Mapping[str, Tensor] | None = None,
) -> Recovered:
    """Train one policy's network for about ``seconds``; never returns worse than it started with.

    Batches come from ``task.batches(seed, 64)``; labels are used only where the task has a loss. With
    ``floats`` of an earlier recovery of the same policy it goes on from there.
    """
    start = time.perf_counter()
    weights = dict(floats) if floats is not None else reduced(network, policy)
    best = finish(network, policy, numerics, weights)
    before = after = _value(task, best)
    few_bits = any(b < 8 for b in (*policy.weight_bits.values(), *policy.act_bits.values()))
    trainer = _Trainer(task, network, seed, stop)
    first = _float_stage(network, policy, numerics, weights)
    steps, best, after = trainer.train(first, seconds * (0.6 if few_bits else 1.0), best, after)
    learned = {k: v.detach() for k, v in first.leaves.items()} if steps and after != before else weights
    if few_bits:
        second = _rounded_stage(network, policy, numerics, first.leaves, best)
        more, best, after = trainer.train(second, seconds * 0.4, best, after)
        steps += more
    return Recovered(best, learned, before, after, steps, time.perf_counter() - start)


def _value(task: Task, compressed: Compressed) -> float:
    return interval(score_compressed(compressed, task.validation, task.metric))[0]


class _Trainer:
    """Distils one stage after another from the same stream of batches."""

    def __init__(self, task: Task, network: Network, seed: int, stop: threading.Event | None) -> None:
        self.task = task
        self.network = network
        self.stop = stop
        self.stream = task.batches(seed, BATCH)

    def train(
        self, stage: _Stage, seconds: float, best: Compressed, value: float
    ) -> tuple[int, Compressed, float]:
        """(steps done, best network, its metric value) after about ``seconds``."""
        trained = [p for p in stage.leaves.values() if p.requires_grad]
        if seconds <= 0 or not trained:
            return 0, best, value
        optimiser = torch.optim.SGD(trained, lr=stage.rate, momentum=0.9, nesterov=True, weight_decay=1e-4)
        start, steps, checks = time.perf_counter(), 0, 0
        threads = self._fastest(stage, optimiser)
        while True:
            done = (time.perf_counter() - start) / seconds
            if done >= 1.0 or (self.stop is not None and self.stop.is_set()):
                break
            for group in optimiser.param_groups:
                group["lr"] = stage.rate * _one_cycle(done)
            with torch_threads(threads):
                finite = self._step(stage, optimiser)
            if not finite:
                break
            steps += 1
            if done * CHECKPOINTS > checks + 1:
                checks += 1
                best, value = self._keep(stage, best, value)
        return steps, *self._keep(stage, best, value)

    def _fastest(self, stage: _Stage, optimiser: torch.optim.Optimizer) -> int:
        """One thread or all of them, whichever takes a step in less time now: the machine may be busy."""
        for group in optimiser.param_groups:
            group["lr"] = stage.rate * _one_cycle(0.0)
        taken = {}
        for threads in {1, os.cpu_count() or 1}:
            with torch_threads(threads):
                self._step(stage, optimiser)  # the first step sets up what later ones reuse
                begin = time.perf_counter()
                self._step(stage, optimiser)
                taken[threads] = time.perf_counter() - begin
        return min(taken, key=taken.__getitem__)

    def _step(self, stage: _Stage, optimiser: torch.optim.Optimizer) -> bool:
        """One step; False when the loss is no longer finite (the best checkpoint stays)."""
        inputs, targets = next(self.stream)
        with torch.no_grad():
            teacher = run(self.network.structure.graph, self.network.weights, inputs)
        outputs = stage.forward(inputs)
        loss = self._distance(outputs, teacher)
        if self.task.loss is not None and targets is not None:
            loss = loss + 0.3 * self.task.loss(outputs, targets)
        if not bool(torch.isfinite(loss)):
            return False
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], 5.0)
        optimiser.step()
        return True

    def _distance(self, outputs: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
        """Temperature-2 cross entropy for classifiers, else squared error over the teacher's variance."""
        total = outputs[0].new_zeros(())
        for ours, theirs in zip(outputs, teacher, strict=True):
            if self.task.metric.name in _CLASSIFYING and ours.dim() == 2:
                wanted = F.softmax(theirs / TEMPERATURE, 1)
                total = total + TEMPERATURE**2 * F.cross_entropy(ours / TEMPERATURE, wanted)
            else:
                total = total + F.mse_loss(ours, theirs) / theirs.var().clamp_min(1e-6)
        return total

    def _keep(self, stage: _Stage, best: Compressed, value: float) -> tuple[Compressed, float]:
        candidate = stage.network()
        found = _value(self.task, candidate)
        better = found >= value if self.task.metric.higher_is_better else found <= value
        return (candidate, found) if better and math.isfinite(found) else (best, value)


def _one_cycle(done: float) -> float:
    """Learning rate over time, 0..1: up over the first 15 %, then down a cosine."""
    if done < 0.15:
        return 0.1 + 0.9 * done / 0.15
    return 0.5 * (1 + math.cos(math.pi * (done - 0.15) / 0.85)) + 0.002


def _leaves(graph: Graph, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies to be trained; statistics of batch-norms, the unfoldable ones' too, are followed instead."""
    statistics = {t for n in graph.nodes if n.op == "batch_norm" for t in n.inputs[3:5]}
    return {
        k: v.clone().requires_grad_(v.is_floating_point() and k not in statistics) for k, v in weights.items()
    }


def _float_stage(
    network: Network, policy: ResolvedPolicy, numerics: Numerics, weights: Mapping[str, Tensor]
) -> _Stage:
    """The unfolded float network, batch-norm in training mode."""
    skeleton = network.skeletons.of(policy)
    graph = concrete(skeleton.unfolded, skeleton, unknowns(policy, network.structure))
    leaves = _leaves(graph, weights)

    def normalise(node: Node, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        scale, shift, mean, var = (values[t] for t in node.inputs[1:])
        return F.batch_norm(x, mean, var, scale, shift, True, 0.1, node.attrs["eps"])

    def forward(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return run(graph, leaves, inputs, norm_hook=normalise)

    def built() -> Compressed:
        return finish(network, policy, numerics, {k: v.detach() for k, v in leaves.items()})

    return _Stage(leaves, forward, built, LEARNING_RATE)


def _rounded_stage(
    network: Network,
    policy: ResolvedPolicy,
    numerics: Numerics,
    floats: Mapping[str, Tensor],
    best: Compressed,
) -> _Stage:
    """The folded network with rounded weights and activations; gradients pass straight through."""
    from compressors.apply import fold

    skeleton = network.skeletons.of(policy)
    start = fold(skeleton, {k: v.detach() for k, v in floats.items()})
    graph = best.graph
    leaves = _leaves(graph, start)
    axes = {
        n.inputs[1]: weight_axis(graph, n)
        for n in graph.nodes
        if len(n.inputs) > 1 and n.inputs[1] in best.codes
    }

    def rounded(name: str, value: Tensor) -> Tensor:
        return fake_quantize(value, best.activations[name])

    def forward(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        weights = dict(leaves)
        for name, axis in axes.items():
            near, _ = quantize_weight(
                leaves[name].detach(), best.codes[name].bits, axis, numerics, policy.scales
            )
            weights[name] = leaves[name] + (near - leaves[name]).detach()
        return run(graph, weights, inputs, rounded, hooked=frozenset(best.activations))

    def built() -> Compressed:
        return round_folded(network, policy, numerics, {k: v.detach() for k, v in leaves.items()})

    return _Stage(leaves, forward, built, LEARNING_RATE / 10)
