"""Toy problems with the shape of real ones: residual networks as hand-written structures, analytic costs.

For conformance tests and benchmarks of agents: nothing is trained, an evaluation takes microseconds.
Costs have a staircase in the channels and, optionally, conversions between precisions that make
quantising one tensor between float ones slower: the traits that break agents which assume monotone costs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from compressors.graph import (
    Block,
    ChannelGroup,
    DimSize,
    Graph,
    Layer,
    Node,
    Structure,
    TensorGroup,
    TensorType,
)
from compressors.policy import FLOAT, ResolvedPolicy
from compressors.space import Abilities, PolicySpace

from .contract import Budget, Costs, Losses, Objective, Outcome, Problem

POSITIONS = 64


def toy_structure(blocks: int = 3, width: int = 32) -> Structure:
    """A stem and ``blocks`` residual blocks of two 3x3 convolutions on 8x8 maps, as a pure value."""
    nodes = [Node("conv", "stem", ("x", "stem.w"), ("t0",))]
    layers = [_layer("stem", width, 3)]
    trunk: dict[tuple[str, int], tuple[int, ...]] = {("stem.w", 0): _units(width)}
    sizes = {"stem.w": _weight(DimSize(0, (("trunk", 1),)), DimSize(3))}
    groups, residual, tensors = [], ["t0"], [TensorGroup("x", ("x",))]
    found: list[Block] = []
    for k in range(blocks):
        a, b, inner = f"b{k}a", f"b{k}b", f"g{k}"
        nodes += [
            Node("conv", a, (f"t{k}", f"{a}.w"), (f"h{k}",)),
            Node("conv", b, (f"h{k}", f"{b}.w"), (f"r{k}",)),
            Node("add", f"add{k}", (f"t{k}", f"r{k}"), (f"t{k + 1}",)),
        ]
        layers += [_layer(a, width, width), _layer(b, width, width)]
        groups.append(
            ChannelGroup(inner, width, {(f"{a}.w", 0): _units(width), (f"{b}.w", 1): _units(width)}, (a, b))
        )
        trunk |= {(f"{a}.w", 1): _units(width), (f"{b}.w", 0): _units(width)}
        sizes[f"{a}.w"] = _weight(DimSize(0, ((inner, 1),)), DimSize(0, (("trunk", 1),)))
        sizes[f"{b}.w"] = _weight(DimSize(0, (("trunk", 1),)), DimSize(0, ((inner, 1),)))
        residual += [f"r{k}", f"t{k + 1}"]
        tensors.append(TensorGroup(f"h{k}", (f"h{k}",)))
        found.append(Block(f"block{k}", f"t{k + 1}", f"t{k}", (a, b)))
    tensors.append(TensorGroup("trunk", tuple(residual)))
    groups.append(ChannelGroup("trunk", width, trunk, tuple(x.name for x in layers)))
    names = ["x", *(t for n in nodes for t in n.outputs)]
    graph = Graph(
        tuple(nodes),
        ("x",),
        (f"t{blocks}",),
        {t: TensorType((-1, 3 if t == "x" else width, 8, 8)) for t in names},
        {x.weight: TensorType(x.weight_shape) for x in layers},
    )
    return Structure(graph, tuple(layers), tuple(groups), tuple(tensors), tuple(found), sizes)


def _layer(name: str, cout: int, cin: int) -> Layer:
    return Layer(name, "conv", f"{name}.w", "", (name,), (cout, cin, 3, 3), 1, 9 * cout * cin * POSITIONS)


def _units(width: int) -> tuple[int, ...]:
    return tuple(range(width))


def _weight(cout: DimSize, cin: DimSize) -> tuple[DimSize, ...]:
    return (cout, cin, DimSize(3), DimSize(3))


@dataclass(frozen=True)
class ToyCosts:
    """Analytic costs: per layer, staircase MACs over a speed that depends on the weight bits, plus overhead.

    ``step``: channels that cost the same; ``conversion``: ms for each layer whose input and output
    precisions differ (non-monotone when positive); ``upper``: latency_high_ms / latency_ms.
    """

    structure: Structure
    step: int = 4
    conversion: float = 0.0
    overhead: float = 0.002
    upper: float = 1.2

    def __call__(self, policies: Sequence[ResolvedPolicy]) -> Costs:
        rows = np.array([self._row(p) for p in policies]).reshape(len(policies), 5)
        latency, energy, size, memory, macs = rows.T
        return {
            "latency_ms": latency,
            "latency_high_ms": latency * self.upper,
            "energy_mj": energy,
            "size_bytes": size,
            "memory_bytes": memory,
            "macs": macs,
        }

    def _row(self, policy: ResolvedPolicy) -> tuple[float, float, float, float, float]:
        latency = energy = size = memory = total = 0.0
        trunk = policy.kept["trunk"]
        for layer in self.structure.layers:
            if layer.name not in policy.weight_bits:
                continue
            bits = policy.weight_bits[layer.name]
            inner = policy.kept.get(f"g{layer.name[1:-1]}", 3)
            cout, cin = (inner, trunk) if layer.name.endswith("a") else (trunk, inner)
            rank = policy.factors[layer.name].rank if layer.name in policy.factors else None
            share = 1.0 if rank is None else min(1.0, sum(rank) / (2.0 * min(cout, cin)))
            macs = 9.0 * cout * cin * POSITIONS * share
            stairs = 9.0 * self._up(cout) * self._up(cin) * POSITIONS * share
            speed = 4e6 * (1.0 if bits == FLOAT else 3.0 if bits == 8 else 4.0)
            latency += stairs / speed + self.overhead * (1 if rank is None else 2)
            h = policy.act_bits.get(f"h{layer.name[1:-1]}", FLOAT)
            latency += self.conversion * (h != policy.act_bits.get("trunk", FLOAT))
            energy += macs * bits * 1e-9
            size += 9.0 * cout * cin * share * bits / 8
            memory = max(memory, (cout + cin) * POSITIONS * min(bits, h) / 8)
            total += macs
        return latency, energy, size, memory, total

    def _up(self, channels: int) -> int:
        return -(-channels // self.step) * self.step


@dataclass(frozen=True)
class ToyAccuracy:
    """Metric of a policy: 0.95 less a convex loss per coordinate; ``interaction`` couples neighbours.

    Losses per subject are drawn from ``seed`` over two orders of magnitude, so that layers differ.
    """

    structure: Structure
    seed: int = 0
    interaction: float = 0.0
    constant: bool = False
    _weights: dict[str, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        names = [
            *(g.name for g in self.structure.groups),
            *(x.name for x in self.structure.layers),
            *(t.name for t in self.structure.tensor_groups),
            *(b.name for b in self.structure.blocks),
        ]
        draws = np.exp(rng.uniform(np.log(0.02), np.log(1.0), size=len(names)))
        self._weights.update(zip(names, draws, strict=True))
        # The trunk is read by every block: pruning it hurts all of them.
        self._weights["trunk"] = 0.6 * len(self.structure.blocks)

    def __call__(self, policy: ResolvedPolicy) -> float:
        """Accuracy in 0..1, higher is better."""
        if self.constant:
            return 0.5
        w, n = self._weights, max(1, len(self.structure.blocks))
        loss = {
            g.name: w[g.name] * (1 - policy.kept[g.name] / g.size) ** 2
            for g in self.structure.groups
            if g.name in policy.kept
        }
        total = 2.0 * sum(loss.values()) + sum(w[b] * 0.8 for b in policy.removed)
        total += sum(w[x] * 0.5 / (1.0 + sum(f.rank) / 8.0) for x, f in policy.factors.items())
        total += sum(w[x] * 0.3 * 4.0 ** (3 - b) for x, b in policy.weight_bits.items() if b <= 8)
        total += sum(w[t] * 0.01 for t, b in policy.act_bits.items() if b != FLOAT)
        hard = [loss.get(f"g{k}", 0.0) + w[f"block{k}"] * (f"block{k}" in policy.removed) for k in range(n)]
        total += self.interaction * sum(float(np.sqrt(a * b)) for a, b in pairwise(hard))
        return float(0.1 + 0.85 * np.exp(-1.5 * total / n))


def toy_space(
    blocks: int = 3,
    width: int = 32,
    *,
    bits: Sequence[tuple[int, int]] = ((8, 8),),
    methods: Sequence[str] = ("prune", "quantize", "factorize", "depth"),
    granularity: int = 4,
) -> PolicySpace:
    """The policy space of `toy_structure`."""
    return PolicySpace(
        toy_structure(blocks, width),
        Abilities(granularity=granularity, precisions=tuple(bits), methods=frozenset(methods)),
    )


def toy_problem(
    space: PolicySpace | None = None,
    *,
    budget: Budget | None = None,
    share: float = 0.4,
    conversion: float = 0.0,
    objective: Objective = "accuracy",
    evaluations: int = 60,
    higher_is_better: bool = True,
    measured: ToyAccuracy | None = None,
) -> Problem:
    """A problem whose latency budget is ``share`` of the uncompressed network's, unless one is given.

    ``measured``: the metric that the problem's losses are measured with; without it there are none.
    """
    own = space if space is not None else toy_space()
    costs = ToyCosts(own.structure, conversion=conversion)
    base = costs([own.resolve(own.dense)])["latency_ms"][0]
    limit = budget if budget is not None else Budget(max_latency_ms=float(share * base))
    accuracy = 0.95 if higher_is_better else -0.95
    losses = None if measured is None else lambda: toy_losses(own, measured)
    return Problem(own, limit, costs, accuracy, higher_is_better, objective, losses, evaluations)


def toy_losses(space: PolicySpace, accuracy: ToyAccuracy) -> Losses:
    """What each change alone loses, nats: log of the metric over chance, uncompressed less changed.

    Bits are changed in the resolved policy, one layer or tensor at a time, as a simulation can; NaN where a
    value resolves to no change at all.
    """
    dense = space.resolve(space.dense)
    found: dict[str, NDArray[np.float64]] = {}
    for i, choice in enumerate(space.choices):
        row = np.zeros(len(choice.values))
        for k, value in enumerate(choice.values[:-1]):
            at = space.cardinalities - 1
            at[i] = k
            policy = space.resolve(space.at(at))
            if choice.kind == "weight_bits":
                policy = replace(dense, weight_bits={**dense.weight_bits, choice.subject: int(str(value))})
            elif choice.kind == "act_bits":
                policy = replace(dense, act_bits={**dense.act_bits, choice.subject: int(str(value))})
            if policy == dense:
                row[k] = np.nan
            else:
                row[k] = max(0.0, float(np.log((accuracy(dense) - 0.1) / (accuracy(policy) - 0.1))))
        found[choice.name] = row
    return found


def toy_outcome(problem: Problem, policy: ResolvedPolicy, accuracy: float | None) -> Outcome:
    """The outcome a study would report for one policy."""
    costs: dict[str, NDArray[np.float64]] = dict(problem.costs([policy]))
    single = {k: float(v[0]) for k, v in costs.items()}
    why = problem.budget.why_not(single)
    if not why and accuracy is not None and not problem.holds_drop(accuracy):
        why = f"drop {problem.drop(accuracy):.3g} points"
    return Outcome(policy, accuracy, single, feasible=not why, why=why)
