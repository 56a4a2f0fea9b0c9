"""A problem's coordinates as numbers that mean the same for other networks and targets.

Nothing here carries a unit of time, of the metric or of the loss: costs are shares of the uncompressed
network's, losses are relative to the problem's own, sizes are logarithms. What AMC (He et al. 2018, eq. 1)
calls the state of a layer, generalised to every kind of choice and to what was measured beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressors.graph import Layer, Structure
from compressors.space import Choice

from .contract import LIMITS, Budget
from .pricing import Indices, Pricer
from .reference import losses_near

Floats = NDArray[np.float64]

#: Raised with every change to a feature's meaning: what was learned from others then no longer counts.
VERSION = 1
KINDS = ("keep", "rank", "weight_bits", "act_bits", "removed")
COSTS = tuple(LIMITS.values())
_SHARED = ("latency_ms", "size_bytes", "macs")
#: Logarithms of ratios beyond a thousand are all the same.
_FAR = 3.0

#: Columns of `Features.coordinates`. "log2" of channels, groups and positions is divided by 10, of kernel
#: areas by 5, of strides by 2, of numbers of values by 5; "log10" of ratios by 3; all others are 0..1, or
#: -1..1 where costs may rise. A coordinate that changes several layers has the mean of their shapes.
COORDINATE = (
    *KINDS,
    "depth",  # position of its layers in the network: 0 the first, 1 the last
    "first",
    "last",
    "log2 cin",
    "log2 cout",
    "log2 kernel",
    "log2 stride",
    "log2 positions",
    "depthwise",
    "linear",
    "log2 group",  # units that can be removed; channels of the layer for other kinds
    "log2 values",
    "layers",  # share of the network's layers it changes
    "weights",  # share of its weights in them
    "multiplications",  # and of its MACs
    *(f"saves {c}" for c in _SHARED),  # signed roots of `Pricer.savings`
    "rank of saving",  # of latency, among coordinates of its kind
    "log10 loss",  # from last to first value, over the median coordinate's
    "share of loss",
    "rank of loss",
    "loss at half",  # over the whole: 0.25 where it is quadratic
    "first loss",  # of the first step down over the whole, per step: 0 where it is flat at first, 1 linear
    "measured",
    "log10 price",  # loss per latency saved, over the median
    "rank of price",
)

#: Columns of `Features.network`.
NETWORK = (
    "log10 weights",  # divided by 7
    "log10 multiplications",  # by 9
    "log2 layers",  # by 6
    "log2 coordinates",  # by 7
    *(f"share of {k}" for k in KINDS),
    *(f"{k} save" for k in KINDS),  # latency, all together: what the target makes of each kind
    "log2 latency at lowest bits",  # over the uncompressed network's, divided by 3; so the next two
    "log2 latency of the smallest",
    "log2 size at lowest bits",
)

#: Columns of `budget_features`: log2 of each limit's share, divided by 3; whether it is set; the tightest.
BUDGET = (*(f"log2 {c}" for c in COSTS), *(f"limits {c}" for c in COSTS), "log2 tightest")


@dataclass(frozen=True)
class Features:
    """``coordinates`` (d, len(COORDINATE)) and ``network`` (len(NETWORK),), both scale-free."""

    coordinates: Floats
    network: Floats


def features(pricer: Pricer) -> Features:
    """The features of a problem's coordinates and of the problem as a whole, without its budget.

    Prices some 4 d policies and measures losses where the problem can; depends on nothing else.
    """
    structure, choices = pricer.space.structure, pricer.space.choices
    rows = np.zeros((len(choices), len(COORDINATE)))
    at = {name: k for k, name in enumerate(COORDINATE)}
    kinds = np.array([c.kind for c in choices], dtype=np.str_)
    for k, kind in enumerate(KINDS):
        rows[:, k] = kinds == kind
    shapes = _layer_table(structure)
    for i, choice in enumerate(choices):
        rows[i, at["depth"] : at["saves latency_ms"]] = _shape_row(structure, choice, shapes)
    _fill_savings(rows, at, pricer, kinds)
    _fill_losses(rows, at, pricer, kinds)
    return Features(rows, _network_row(pricer, kinds))


def layers_of(structure: Structure, choice: Choice) -> list[int]:
    """Positions of the layers that a coordinate changes: those of tensors are what writes or reads them."""
    if choice.kind == "keep":
        names: set[str] = set(structure.group[choice.subject].layers)
    elif choice.kind == "removed":
        names = set(structure.block[choice.subject].layers)
    elif choice.kind == "act_bits":
        group = next(g for g in structure.tensor_groups if g.name == choice.subject)
        graph, layer = structure.graph, structure.layer_of_node
        near = [n for t in group.tensors for n in graph.consumers.get(t, ())]
        near += [graph.producer[t] for t in group.tensors if t in graph.producer]
        names = {layer[n.name].name for n in near if n.name in layer}
    else:
        names = {choice.subject}
    return [i for i, x in enumerate(structure.layers) if x.name in names]


def budget_shares(budget: Budget, costs: Mapping[str, float]) -> dict[str, float]:
    """Each limit over ``costs``, those of the uncompressed network, by cost name; a risk bound as latency."""
    found = {}
    for cost, limit in budget.limits.items():
        name = "latency_ms" if cost == budget.latency_key else cost
        found[name] = limit / max(costs[cost], 1e-300)
    return found


def budget_features(shares: Mapping[str, float]) -> Floats:
    """Features of a budget given as shares of the uncompressed network's costs, (len(BUDGET),)."""
    logs = {c: _log(math.log2(max(s, 1e-300)), 3.0, 3.0) for c, s in shares.items()}
    found = [logs.get(c, 0.0) for c in COSTS]
    found += [float(c in logs) for c in COSTS]
    return np.array([*found, min(logs.values(), default=0.0)])


# -- shapes


def _layer_table(structure: Structure) -> Floats:
    """Per layer: depth, first, last, the shape columns, and cout for "log2 group"; then weights and MACs."""
    layers = structure.layers
    last = max(len(layers) - 1, 1)
    rows = []
    for i, x in enumerate(layers):
        weights = math.prod(x.weight_shape)
        positions = x.macs / max(weights, 1)
        rows.append(
            [
                i / last,
                i == 0,
                i == len(layers) - 1,
                _log2(x.cin, 10),
                _log2(x.cout, 10),
                _log2(math.prod(x.kernel), 5),
                _log2(_stride(structure, x), 2),
                _log2(positions, 10),
                x.depthwise,
                x.op == "linear",
                weights,
                x.macs,
            ]
        )
    table = np.array(rows, dtype=float).reshape(len(layers), 12)
    table[:, 10:] /= np.maximum(table[:, 10:].sum(0), 1.0)
    return table


def _shape_row(structure: Structure, choice: Choice, table: Floats) -> list[float]:
    """The columns from "depth" to "multiplications" of one coordinate."""
    own = table[layers_of(structure, choice)]
    mean = own.mean(0) if len(own) else np.zeros(table.shape[1])
    touches = own[:, 1:3].max(0) if len(own) else np.zeros(2)
    group = _log2(structure.group[choice.subject].size, 10) if choice.kind == "keep" else mean[4]
    values, share = _log2(len(choice.values), 5), len(own) / max(len(table), 1)
    return [mean[0], *touches, *mean[3:10], group, values, share, *own[:, 10:].sum(0)]


def _stride(structure: Structure, layer: Layer) -> int:
    node = structure.graph.by_name.get(layer.nodes[0])
    stride = node.attrs.get("stride", ()) if node is not None else ()
    return math.prod(stride) if isinstance(stride, tuple) else int(stride)


# -- what it saves, what it loses


def _fill_savings(rows: Floats, at: Mapping[str, int], pricer: Pricer, kinds: NDArray[np.str_]) -> None:
    for cost in _SHARED:
        saving = _saving(pricer, cost)
        rows[:, at[f"saves {cost}"]] = np.sign(saving) * np.sqrt(np.minimum(np.abs(saving), 1.0))
    rows[:, at["rank of saving"]] = _ranks(_saving(pricer, "latency_ms"), kinds)


def _saving(pricer: Pricer, cost: str) -> Floats:
    key = pricer.budget.latency_key if cost == "latency_ms" else cost
    return pricer.savings.get(key, np.zeros(len(pricer.top)))


def _fill_losses(rows: Floats, at: Mapping[str, int], pricer: Pricer, kinds: NDArray[np.str_]) -> None:
    losses = losses_near(pricer)
    tables = [row[: n + 1] for row, n in zip(losses.loss, pricer.top, strict=True)]
    whole = np.array([float(t[0]) for t in tables])
    saving = np.maximum(_saving(pricer, "latency_ms"), 1e-4)
    measured = [bool(row[: n + 1].all()) for row, n in zip(losses.measured, pricer.top, strict=True)]
    rows[:, at["log10 loss"]] = _relative(whole)
    rows[:, at["share of loss"]] = whole / max(float(whole.sum()), 1e-300)
    rows[:, at["rank of loss"]] = _ranks(whole, kinds)
    rows[:, at["loss at half"]] = [_over(float(np.interp(0.5, _far(t), t)), t) for t in tables]
    rows[:, at["first loss"]] = [_over(float(t[-2]) * (len(t) - 1), t) if len(t) > 1 else 0.0 for t in tables]
    rows[:, at["measured"]] = measured
    rows[:, at["log10 price"]] = _relative(whole / saving)
    rows[:, at["rank of price"]] = _ranks(whole / saving, kinds)


def _far(table: Floats) -> Floats:
    return np.linspace(0.0, 1.0, len(table))


def _over(loss: float, table: Floats) -> float:
    """A loss over the whole one, at most 2: losses need not rise monotonically."""
    return min(loss / max(float(table[0]), 1e-300), 2.0)


def _relative(values: Floats) -> Floats:
    """log10 over the median, -1..1 for a thousandth to a thousand times."""
    if not len(values):
        return values
    floor = max(float(np.median(values)), 1e-300)
    found: Floats = np.clip(np.log10(np.maximum(values / floor, 1e-300)), -_FAR, _FAR) / _FAR
    return found


def _ranks(values: Floats, kinds: NDArray[np.str_]) -> Floats:
    """Rank among the values of the same kind, 0 the smallest and 1 the largest; one alone 0.5."""
    found = np.full(len(values), 0.5)
    for kind in np.unique(kinds):
        own = values[kinds == kind]
        below = (own[None] < own[:, None]).sum(1) + 0.5 * ((own[None] == own[:, None]).sum(1) - 1)
        if len(own) > 1:
            found[kinds == kind] = below / (len(own) - 1)
    return found


# -- the network as a whole


def _network_row(pricer: Pricer, kinds: NDArray[np.str_]) -> Floats:
    structure = pricer.space.structure
    weights = sum(math.prod(x.weight_shape) for x in structure.layers)
    macs, saving = sum(x.macs for x in structure.layers), _saving(pricer, "latency_ms")
    d = max(len(kinds), 1)
    smallest = np.zeros_like(pricer.top)
    return np.array(
        [
            math.log10(max(weights, 1)) / 7,
            math.log10(max(macs, 1)) / 9,
            _log2(len(structure.layers), 6),
            _log2(d, 7),
            *(float((kinds == k).sum()) / d for k in KINDS),
            *(float(np.clip(saving[kinds == k].sum(), -2.0, 2.0)) for k in KINDS),
            *_shares(pricer, pricer.budget.latency_key, (pricer.quantised, smallest)),
            *_shares(pricer, "size_bytes", (pricer.quantised,)),
        ]
    )


def _shares(pricer: Pricer, cost: str, points: Sequence[Indices]) -> list[float]:
    """log2 of a cost at some points over that of the uncompressed network; 0 where it is not known."""
    costs = pricer.price(np.stack([pricer.top, *points]))
    if cost not in costs:
        return [0.0] * len(points)
    values = np.maximum(np.nan_to_num(costs[cost], nan=0.0), 1e-300)
    return [_log(math.log2(v / values[0]), 3.0, 3.0) for v in values[1:]]


def _log2(value: float, unit: float) -> float:
    return math.log2(max(float(value), 1.0)) / unit


def _log(value: float, unit: float, most: float) -> float:
    return max(-most, min(most, value / unit))


__all__ = [
    "BUDGET",
    "COORDINATE",
    "COSTS",
    "KINDS",
    "NETWORK",
    "VERSION",
    "Features",
    "budget_features",
    "budget_shares",
    "features",
    "layers_of",
]
