"""Losses estimated from gradients: no changed network is run.

first order: |<g, dW>|, g being the gradient of the loss against the network's own hard answers (as Molchanov
et al. 2019, eq. 6; against its soft answers the gradient is zero).

second order: 1/2 tr(H) / n ||dW||^2 for a weight with n elements (as HAWQ-V2, Dong et al. 2020, section 3.1:
the mean eigenvalue for all directions), H being the Fisher matrix: the Hessian of the divergence. Its
trace is the mean square of per-sample gradients against answers drawn from the network itself; gradients of a
batch are summed with random signs, which leaves their squares in expectation.

Both take changes of weights and of activations; what calibration sets right afterwards they do not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..execute import run
from ..graph import WEIGHT_OPS
from ..network import Network
from ..space import PolicySpace
from .changes import Change
from .deltas import activation_changes, weight_changes
from .divergence import Output
from .plan import POINTS, Losses, Plan

#: Draws of answers and signs by which a trace is estimated.
DRAWS = 8


def first_order_losses(
    network: Network,
    space: PolicySpace,
    samples: int | None = None,
    points: int = POINTS,
    classes: Sequence[int | None] | None = None,
) -> Losses:
    """Shape and unit as `measured_losses`: the absolute first-order term of every change."""
    plan = Plan(network, space, points, samples, classes)
    outputs = plan.outputs

    def lose(chunk: tuple[Tensor, ...]) -> Callable[[Change], float]:
        forward = _Forward.of(plan, chunk)
        slopes = forward.gradients(_hard(outputs, forward.answers).sum())

        def of(change: Change) -> float:
            moved = _moved(plan, change, forward)
            return abs(sum(float((d * slopes[n]).sum()) for n, d in moved.items() if n in slopes))

        return of

    return plan.run(lose)


def second_order_losses(
    network: Network,
    space: PolicySpace,
    samples: int | None = None,
    points: int = POINTS,
    classes: Sequence[int | None] | None = None,
) -> Losses:
    """Shape and unit as `measured_losses`: the isotropic second-order term of every change."""
    plan = Plan(network, space, points, samples, classes)
    outputs = plan.outputs

    def lose(chunk: tuple[Tensor, ...]) -> Callable[[Change], float]:
        forward, count = _Forward.of(plan, chunk), chunk[0].shape[0]
        traces = _traces(forward, outputs, count)

        def of(change: Change) -> float:
            total = 0.0
            for name, moved in _moved(plan, change, forward).items():
                each = count if name in forward.weights else 1  # an activation's change is by sample already
                square = float(moved.double().square().sum()) * each
                size = moved.numel() if name in forward.weights else moved.numel() // count
                total += 0.5 * traces.get(name, 0.0) / size * square
            return total

        return of

    return plan.run(lose)


@dataclass(frozen=True)
class _Forward:
    """One differentiable pass: answers, and what gradients are taken of, by name."""

    answers: tuple[Tensor, ...]
    weights: dict[str, Tensor]
    values: dict[str, Tensor]

    @classmethod
    @torch.enable_grad()
    def of(cls, plan: Plan, chunk: tuple[Tensor, ...]) -> _Forward:
        graph = plan.changes.graph
        groups = {t for g in plan.network.structure.tensor_groups for t in g.tensors if t in graph.tensors}
        names = {n.inputs[1] for n in graph.nodes if n.op in WEIGHT_OPS}
        weights = {n: plan.changes.weights[n].detach().clone().requires_grad_(True) for n in names}
        values: dict[str, Tensor] = {}

        def keep(name: str, value: Tensor) -> Tensor:
            values[name] = value if value.requires_grad else value.detach().clone().requires_grad_(True)
            return values[name]

        answers = run(graph, {**plan.changes.weights, **weights}, chunk, keep, hooked=frozenset(groups))
        return cls(answers, weights, values)

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """Gradients of a scalar by name; those it does not depend on are left out."""
        leaves = {**self.weights, **self.values}
        if not loss.requires_grad:
            return {}
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, retain_graph=True)
        return {n: g for n, g in zip(leaves, found, strict=True) if g is not None}


def _moved(plan: Plan, change: Change, forward: _Forward) -> dict[str, Tensor]:
    values = {n: v.detach() for n, v in forward.values.items()}
    return {
        **weight_changes(plan.changes, change),
        **activation_changes(plan.changes, change, values),
    }


def _traces(forward: _Forward, outputs: Sequence[Output], count: int) -> dict[str, float]:
    """Trace of the Fisher matrix of one sample, by name: its mean over the chunk's."""
    generator = torch.Generator().manual_seed(0)
    found: dict[str, float] = {}
    for _ in range(DRAWS):
        signs = torch.randint(0, 2, (count,), generator=generator).double() * 2 - 1
        loss = (_drawn(outputs, forward.answers, generator) * signs).sum()
        for name, slope in forward.gradients(loss).items():
            found[name] = found.get(name, 0.0) + float(slope.double().square().sum()) / (DRAWS * count)
    return found


def _hard(outputs: Sequence[Output], answers: Sequence[Tensor]) -> Tensor:
    """Loss of each sample against the network's own most likely answers, (N,)."""

    def against(output: Output, log: Tensor) -> Tensor:
        return log.detach().argmax(output.axis, keepdim=True)

    parts = []
    for output, value in zip(outputs, answers, strict=True):
        if output.kind == "values":
            each = 0.5 * value.double().square() / output.scale
        elif output.kind == "independent":
            each = _bernoulli(output, value, value.detach().round())
        else:
            each = _likelihood(output, value, against)
        parts.append(_by_sample(each))
    return torch.stack(parts).sum(0)


def _drawn(outputs: Sequence[Output], answers: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """Loss of each sample against answers drawn from the network's own distribution, (N,)."""

    def against(output: Output, log: Tensor) -> Tensor:
        noise = torch.rand(log.shape, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        gumbel = -(-noise.log()).log()
        return (log.detach() + gumbel).argmax(output.axis, keepdim=True)

    parts = []
    for output, value in zip(outputs, answers, strict=True):
        if output.kind == "values":
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
            each = value.double() * noise / (output.scale * max(1, value[0].numel())) ** 0.5
            parts.append(each.reshape(value.shape[0], -1).sum(1))
            continue
        if output.kind == "independent":
            drawn = torch.bernoulli(value.detach(), generator=generator)
            each = _bernoulli(output, value, drawn)
        else:
            each = _likelihood(output, value, against)
        parts.append(_by_sample(each))
    return torch.stack(parts).sum(0)


def _likelihood(output: Output, value: Tensor, against: Callable[[Output, Tensor], Tensor]) -> Tensor:
    """Negative log likelihood of chosen classes; zeros for outputs that are integers."""
    if output.kind == "labels":
        return torch.zeros(value.shape, dtype=torch.float64)
    log = value.double()
    if output.kind == "probabilities":
        log = log.clamp_min(1e-12).log()
    else:
        log = (log / output.scale).log_softmax(output.axis)
    return -log.gather(output.axis, against(output, log))


def _bernoulli(output: Output, value: Tensor, against: Tensor) -> Tensor:
    return F.binary_cross_entropy(value, against, reduction="none").double().sum(output.axis)


def _by_sample(each: Tensor) -> Tensor:
    return each.reshape(each.shape[0], -1).mean(1)


__all__ = ["first_order_losses", "second_order_losses"]
