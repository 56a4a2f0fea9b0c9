"""Distillation from the uncompressed network, in stages: the float network, then with rounding in the loop.

The float network (pruned, factorised, with its batch-norms) learns the uncompressed network's answers (Hinton
et al. 2015); the folded network learns on with rounded weights and activations (straight-through estimator,
Bengio et al. 2013).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.apply import finish, fold, round_folded
from compressors.compressed import Compressed
from compressors.errors import NumericsError
from compressors.execute import run
from compressors.graph import Graph, Node
from compressors.network import Network
from compressors.policy import ResolvedPolicy
from compressors.quantize import fake_quantize, quantize_weight
from compressors.resolve import Numerics
from compressors.rounding import weight_axis
from compressors.skeleton import concrete, unknowns

from .threads import torch_threads

if TYPE_CHECKING:
    from search.task import Batch, Task

#: Peak learning rates that are tried of a network, each in a short cycle: what suits one ruins another.
RATES = (0.0003, 0.001, 0.003, 0.01)
#: Share of the time that trying them takes; steps of a cycle at least; batches on which they are compared.
TRYING, LEAST_STEPS, COMPARED_ON = 0.15, 6, 2
#: Samples of a batch; of a large network fewer, down to the second, so that a stage has so many steps.
BATCH, LEAST_BATCH, WANTED_STEPS = 64, 16, 200
#: With rounding in the loop, the learning rate's share.
ROUNDED_RATE = 0.1
TEMPERATURE = 2.0
CPU = torch.device("cpu")
_CLASSIFYING = frozenset({"top1", "top5", "teacher_agreement"})


@dataclass
class Stage:
    """What one stage trains: leaves, how to run them, how they become a network; its share of a rate."""

    leaves: dict[str, Tensor]
    forward: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]
    network: Callable[[], Compressed]
    rate: float

    @property
    def trained(self) -> dict[str, Tensor]:
        """The leaves that gradients reach."""
        return {k: v for k, v in self.leaves.items() if v.requires_grad}

    @property
    def finite(self) -> bool:
        """Whether training has not diverged."""
        return all(bool(torch.isfinite(v).all()) for v in self.leaves.values() if v.is_floating_point())

    def weights(self) -> dict[str, Tensor]:
        """The leaves as they are now, on the CPU, without gradients."""
        return {k: v.detach().cpu() for k, v in self.leaves.items()}

    def copied(self) -> dict[str, Tensor]:
        """Copies of the leaves, to be put back by `put`."""
        return {k: v.detach().clone() for k, v in self.leaves.items()}

    def put(self, values: Mapping[str, Tensor]) -> None:
        """Set every leaf."""
        with torch.no_grad():
            for name, leaf in self.leaves.items():
                leaf.copy_(values[name])


class Distiller:
    """Trains stages of one network step by step, on batches of its task.

    ``most_threads``: how many threads a step may take, 1 or as many, whichever is faster; all by default.
    """

    def __init__(
        self,
        task: Task,
        network: Network,
        seed: int,
        device: torch.device = CPU,
        most_threads: int | None = None,
    ) -> None:
        self.task = task
        self.device = device
        self._graph = network.structure.graph
        self._teacher = {k: v.to(device) for k, v in network.weights.items()}
        self._seed, self._batch = seed, BATCH
        self._stream = task.batches(seed, BATCH)
        self._most = most_threads or os.cpu_count() or 1
        self._threads = 1

    def optimiser(self, stage: Stage) -> torch.optim.Adam:
        """Adam (Kingma and Ba 2015) for what a stage trains: gradients of answers come in all sizes."""
        return torch.optim.Adam(list(stage.trained.values()), lr=RATES[0])

    def warm(self, stage: Stage, seconds: float) -> float:
        """Find out how many threads are fastest now, as the machine may be busy, and how large a batch may be
        for enough steps in so many seconds; returns seconds a step.
        """
        taken = self._timed(stage)
        samples = self._batch * seconds / (WANTED_STEPS * taken)
        size = min(BATCH, max(LEAST_BATCH, 2 ** math.floor(math.log2(max(samples, 1.0)))))
        if size == self._batch:
            return taken
        self._batch, self._stream = size, self.task.batches(self._seed, size)
        return self._timed(stage)

    def _timed(self, stage: Stage) -> float:
        """Seconds a step with the number of threads that is fastest, which is set."""
        start, taken = stage.copied(), {}
        for threads in {1, self._most}:
            self._threads = threads
            optimiser = self.optimiser(stage)
            self.step(stage, optimiser, RATES[0])  # the first step sets up what later ones reuse
            begin = time.perf_counter()
            self.step(stage, optimiser, RATES[0])
            taken[threads] = time.perf_counter() - begin
        stage.put(start)
        self._threads = min(taken, key=taken.__getitem__)
        return taken[self._threads]

    def tried_rate(self, stage: Stage, seconds: float, step_seconds: float) -> float:
        """The peak learning rate whose short cycle ends at the least loss on batches that none is trained on.

        Takes ``seconds``, up to twice that where steps are slow: the lower rates alone are tried then. The
        stage is left where the best cycle ended.
        """
        step = max(step_seconds, 1e-6)
        rates = RATES[: max(1, int(2 * seconds / (LEAST_STEPS * step)))]
        if len(rates) == 1:
            return rates[0]
        steps = max(LEAST_STEPS, int(seconds / len(rates) / step))
        judges = [next(self._stream) for _ in range(COMPARED_ON * BATCH // self._batch)]
        start = stage.copied()
        found, least, ended = rates[0], math.inf, start
        for rate in rates:
            stage.put(start)
            optimiser = self.optimiser(stage)
            if all(self.step(stage, optimiser, rate * one_cycle(k / steps)) for k in range(steps)):
                loss = self._judged(stage, judges)
                if loss < least:
                    found, least, ended = rate, loss, stage.copied()
        stage.put(ended)
        return found

    def _judged(self, stage: Stage, batches: Sequence[Batch]) -> float:
        """Mean loss; infinite where weights cannot be rounded or answers are no numbers."""
        with torch_threads(self._threads), torch.no_grad():
            try:
                loss = sum(float(self.loss(stage, *batch)) for batch in batches) / len(batches)
            except NumericsError:
                return math.inf
        return loss if math.isfinite(loss) else math.inf

    def step(self, stage: Stage, optimiser: torch.optim.Optimizer, rate: float) -> bool:
        """One step at a learning rate; False, and nothing done, when what is trained has diverged."""
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch_threads(self._threads):
            try:
                loss = self.loss(stage, *next(self._stream))
            except NumericsError:  # weights that cannot be rounded
                return False
            if not bool(torch.isfinite(loss)):
                return False
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for g in optimiser.param_groups for p in g["params"]], 5.0)
            optimiser.step()
        return True

    def loss(self, stage: Stage, inputs: tuple[Tensor, ...], targets: Tensor | None) -> Tensor:
        """Distance from the uncompressed network's answers, and the task's own loss where there is one."""
        inputs = tuple(x.to(self.device) for x in inputs)
        with torch.no_grad():
            teacher = run(self._graph, self._teacher, inputs)
        outputs = stage.forward(inputs)
        loss = self._distance(outputs, teacher)
        if self.task.loss is not None and targets is not None:
            loss = loss + 0.3 * self.task.loss(outputs, targets.to(self.device))
        return loss

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


def one_cycle(done: float) -> float:
    """Learning rate over time, 0..1: up over the first 15 %, then down a cosine."""
    if done < 0.15:
        return 0.1 + 0.9 * done / 0.15
    return 0.5 * (1 + math.cos(math.pi * (done - 0.15) / 0.85)) + 0.002


def float_stage(
    network: Network,
    policy: ResolvedPolicy,
    numerics: Numerics,
    weights: Mapping[str, Tensor],
    device: torch.device = CPU,
) -> Stage:
    """The unfolded float network; ``weights`` as of `reduced`.

    Batch-norms are in training mode, unless the data are unlike those of the training (`strange_data`): the
    uncompressed network keeps its statistics, and so does this one.
    """
    skeleton = network.skeletons.of(policy)
    graph = concrete(skeleton.unfolded, skeleton, unknowns(policy, network.structure))
    leaves = _leaves(graph, weights, device)
    followed = not network.strange_data

    def normalise(node: Node, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        scale, shift, mean, var = (values[t] for t in node.inputs[1:])
        return F.batch_norm(x, mean, var, scale, shift, followed, 0.1, node.attrs["eps"])

    def forward(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return run(graph, leaves, inputs, norm_hook=normalise)

    def built() -> Compressed:
        return finish(network, policy, numerics, {k: v.detach().cpu() for k, v in leaves.items()})

    return Stage(leaves, forward, built, 1.0)


def folded(network: Network, policy: ResolvedPolicy, floats: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the folded network, from which `rounded_stage` begins."""
    return fold(network.skeletons.of(policy), floats)


def rounded_stage(
    network: Network,
    policy: ResolvedPolicy,
    numerics: Numerics,
    weights: Mapping[str, Tensor],
    reference: Compressed,
    device: torch.device = CPU,
) -> Stage:
    """The folded network with rounded weights and activations; gradients pass straight through.

    ``weights`` as of `folded`; ``reference`` gives the graph and the quantisers of the activations.
    """
    graph = reference.graph
    leaves = _leaves(graph, weights, device)
    axes = {
        n.inputs[1]: weight_axis(graph, n)
        for n in graph.nodes
        if len(n.inputs) > 1 and n.inputs[1] in reference.codes
    }

    def rounded(name: str, value: Tensor) -> Tensor:
        return fake_quantize(value, reference.activations[name])

    def forward(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        values = dict(leaves)
        for name, axis in axes.items():
            bits = reference.codes[name].bits
            near, _ = quantize_weight(leaves[name].detach(), bits, axis, numerics, policy.scales)
            values[name] = leaves[name] + (near - leaves[name]).detach()
        return run(graph, values, inputs, rounded, hooked=frozenset(reference.activations))

    def built() -> Compressed:
        return round_folded(network, policy, numerics, {k: v.detach().cpu() for k, v in leaves.items()})

    return Stage(leaves, forward, built, ROUNDED_RATE)


def _leaves(graph: Graph, weights: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copies to be trained; statistics of batch-norms, the unfoldable ones' too, are followed instead."""
    statistics = {t for n in graph.nodes if n.op == "batch_norm" for t in n.inputs[3:5]}
    return {
        k: v.to(device, copy=True).requires_grad_(v.is_floating_point() and k not in statistics)
        for k, v in weights.items()
    }
