"""Which channels stay: importance criteria, one registered function each.

A criterion returns one score a unit of a group, shape (size,), higher is more important. Scores are
compared inside a group only (how many channels each group keeps is the agent's decision).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .elimination import elimination_order
from .graph import ChannelGroup, Graph, Structure
from .registry import Registry


@dataclass(frozen=True)
class Evidence:
    """What criteria may look at: weights, and what calibration data says: gradients, covariances."""

    structure: Structure
    weights: Mapping[str, Tensor]
    gradients: Callable[[], Mapping[str, Tensor]] = field(default=dict)
    covariances: Callable[[], Mapping[str, Tensor]] = field(default=dict)
    orders: dict[tuple[str, str], Tensor] = field(default_factory=dict)


Criterion = Callable[[Evidence, ChannelGroup], Tensor]
CRITERIA: Registry[Criterion] = Registry("importance criterion", ("compressors.importance",))


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Register an importance criterion under a name."""

    def register(function: Criterion) -> Criterion:
        CRITERIA.register(name, function)
        return function

    return register


def scores(evidence: Evidence, group: ChannelGroup, name: str) -> Tensor:
    """Importance of every unit of a group, shape (size,)."""
    return CRITERIA.find(name)(evidence, group)


def kept_units(evidence: Evidence, group: ChannelGroup, name: str, count: int) -> Tensor:
    """Indices of the ``count`` most important units, ascending; ties go to the lower index.

    The ranking does not depend on ``count`` and is remembered in ``evidence.orders``.
    """
    order = evidence.orders.get((name, group.name))
    if order is None:
        order = torch.argsort(scores(evidence, group, name).double(), descending=True, stable=True)
        evidence.orders[name, group.name] = order
    return order[:count].sort().values


def _layer_places(
    graph: Graph, structure: Structure, group: ChannelGroup
) -> Iterator[tuple[str, int, Tensor]]:
    """(weight, dimension, unit index per position) of all layer weights a group cuts."""
    weights = {x.weight for x in structure.layers}
    for (name, dim), units in group.slices.items():
        if name in weights and name in graph.params:
            yield name, dim, torch.tensor(units)


def _sum_by_unit(values: Tensor, units: Tensor, size: int) -> Tensor:
    inside = units >= 0
    return torch.zeros(size, dtype=torch.float64).index_add_(0, units[inside], values[inside].double())


def _norm(evidence: Evidence, group: ChannelGroup, power: int) -> Tensor:
    """Mean over the weights a group cuts of the p-norm per unit, each weight scaled to mean 1."""
    total = torch.zeros(group.size, dtype=torch.float64)
    for name, dim, units in _layer_places(evidence.structure.graph, evidence.structure, group):
        weight = evidence.weights[name].detach()
        other = [d for d in range(weight.dim()) if d != dim]
        mass = weight.abs().double().pow(power).sum(other) if other else weight.abs().double().pow(power)
        per_unit = _sum_by_unit(mass, units, group.size).pow(1.0 / power)
        total += per_unit / per_unit.mean().clamp_min(1e-12)
    return total


@criterion("l1")
def l1(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Sum of absolute weights (Li et al. 2017, section 3.1), over all weights the unit cuts."""
    return _norm(evidence, group, 1)


@criterion("l2")
def l2(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Group l2 norm (Fang et al. 2023, eq. 5), over all weights the unit cuts."""
    return _norm(evidence, group, 2)


@criterion("bn-scale")
def bn_scale(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Absolute batch-norm scale (Liu et al. 2017, network slimming); l2 where a group has none."""
    total = torch.zeros(group.size, dtype=torch.float64)
    found = False
    for n in evidence.structure.graph.nodes:
        units = group.slices.get((n.inputs[1], 0)) if n.op == "batch_norm" else None
        if units is not None:
            found = True
            total += _sum_by_unit(
                evidence.weights[n.inputs[1]].detach().abs(), torch.tensor(units), group.size
            )
    return total if found else l2(evidence, group)


@criterion("taylor")
def taylor(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Squared first-order loss change (Molchanov et al. 2019, eq. 8) of the weights that make the unit."""
    gradients = evidence.gradients()
    total = torch.zeros(group.size, dtype=torch.float64)
    for name, dim, units in _layer_places(evidence.structure.graph, evidence.structure, group):
        if name not in gradients:
            continue
        change = (evidence.weights[name].detach() * gradients[name]).double()
        other = [d for d in range(change.dim()) if d != dim]
        total += _sum_by_unit(change.sum(other) if other else change, units, group.size).pow(2)
    return total


@criterion("obs")
def obs(evidence: Evidence, group: ChannelGroup) -> Tensor:
    """Place in a greedy elimination by what reconstruction cannot make good: `elimination_order`."""
    covariances = evidence.covariances()
    order = elimination_order(evidence.structure, evidence.weights, covariances, group)
    if order is None:
        return l2(evidence, group)
    places = torch.zeros(group.size, dtype=torch.float64)
    places[order] = torch.arange(1, group.size + 1, dtype=torch.float64)
    return places
