"""From ratios to integers: the one place where a proposal becomes the policy that counts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .factors.base import FACTORISATIONS, Factorisation, factor_costs
from .graph import FUSED_ACTIVATIONS, ChannelGroup, Graph, Layer, Node, Structure
from .policy import DYNAMIC, FLOAT, Factor, Policy, ResolvedPolicy

if TYPE_CHECKING:
    from .space import Abilities


@dataclass(frozen=True)
class Numerics:
    """How a runtime rounds. An accuracy belongs to a resolved policy *and* its numerics.

    activations: "u8-affine" (asymmetric, unsigned), "s8-symmetric", "power-of-two" (symmetric with
    scales that are powers of two). ``weight_reserve`` bits are left unused in the weight range (1 on
    x86 without VNNI, whose u8*s8 pairs saturate). ``quantises_between``: the runtime silently
    quantises float layers that stand between integer tensors, so they are integer in the policy too.
    ``float_output``: operations whose integer kernels can leave a float result;
    ``fuses_before_integers``: not where an activation is fused into a product of matrices.
    ``at_reads``: activations are rounded only where an integer layer reads them, everything between layers
    stays float (ncnn). ``narrow``: symmetric codes leave the lowest one out (-127 to 127 of 8 bits).
    """

    activations: str = "u8-affine"
    weight_reserve: int = 0
    bias_bits: int = 32
    quantises_between: bool = True
    fuses_before_integers: bool = True
    float_output: frozenset[str] = frozenset({"linear"})
    at_reads: bool = False
    narrow: bool = False

    def under(self, ranges: str) -> Numerics:
        """As a policy with these ranges of activations is executed.

        Dynamic ones are found where an integer layer reads, and its result is float.
        """
        if ranges != DYNAMIC:
            return self
        return replace(self, at_reads=True, quantises_between=False, fuses_before_integers=False)

    @property
    def key(self) -> str:
        """Short text that identifies the numerics in stores and journals."""
        more = ("/reads" if self.at_reads else "") + ("/narrow" if self.narrow else "")
        return f"{self.activations}/w-{self.weight_reserve}/b{self.bias_bits}{more}"


def fused_output(graph: Graph, node: Node) -> str:
    """The tensor a runtime's fused kernel for ``node`` writes: past batch-norm and fused activations."""
    tensor = node.outputs[0]
    follow = {"batch_norm", *FUSED_ACTIVATIONS}
    while tensor not in graph.outputs:
        readers = graph.consumers.get(tensor, ())
        if len(readers) != 1 or readers[0].op not in follow:
            break
        if readers[0].op in FUSED_ACTIVATIONS:
            return readers[0].outputs[0]
        tensor = readers[0].outputs[0]
    return tensor


def resolve(structure: Structure, abilities: Abilities, policy: Policy) -> ResolvedPolicy:
    """Round a policy to what will be done: blocks, channels, then ranks, then bits.

    Layers and groups that vanish with a removed block are not named in the result; ranks that save
    neither weights nor MACs resolve to dense; bits resolve to the nearest pair the target executes.
    """
    removed = tuple(sorted(b for b in policy.removed if b in structure.block))
    dead = {x for b in removed for x in structure.block[b].layers}
    alive = [x for x in structure.layers if x.name not in dead]
    kept = resolved_keep(structure, abilities, policy, dead)
    factors: dict[str, Factor] = {}
    for layer in alive:
        wanted = policy.rank.get(layer.name)
        if wanted is not None:
            factor = resolved_rank(structure, layer, kept, wanted)
            if factor is not None:
                factors[layer.name] = factor
    weight_bits, act_bits = resolved_bits(structure, abilities, policy, removed)
    return ResolvedPolicy(
        structure.graph.digest,
        kept,
        factors,
        weight_bits,
        act_bits,
        removed,
        policy.criterion,
        policy.ranges,
        policy.scales,
    )


def resolved_bits(
    structure: Structure, abilities: Abilities, policy: Policy, removed: tuple[str, ...]
) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Bits of weights and of activations; remembered, since most policies differ in their channels alone."""
    known: dict[Any, tuple[Mapping[str, int], Mapping[str, int]]]
    known = structure.__dict__.setdefault("_resolved_bits", {})
    asked = frozenset(policy.act_bits.items()), frozenset(policy.weight_bits.items())
    key = (abilities, removed, *asked)
    if key not in known:
        dead = {x for b in removed for x in structure.block[b].layers}
        alive = [x for x in structure.layers if x.name not in dead]
        act_bits = _resolve_act_bits(structure, abilities, policy, dead)
        weight_bits = {x.name: resolved_weight_bits(structure, abilities, policy, x, act_bits) for x in alive}
        if abilities.float_kernels:
            act_bits = _without_idle(structure, alive, weight_bits, act_bits, abilities.rounding.at_reads)
        if len(known) > 16_384:
            known.clear()
        known[key] = weight_bits, act_bits
    return known[key]


def resolved_keep(
    structure: Structure, abilities: Abilities, policy: Policy, dead: set[str]
) -> dict[str, int]:
    """Channels of every group that has a layer left, rounded to the target's granularity."""
    kept: dict[str, int] = {}
    for g in structure.groups:
        if g.layers and all(x in dead for x in g.layers):
            continue
        ratio = policy.keep.get(g.name, 1.0)
        step = keep_step(structure, abilities, g)
        rounded = max(1, round(ratio * g.size / step)) * step
        kept[g.name] = g.size if ratio >= 1.0 or rounded >= g.size else rounded
    return kept


def keep_step(structure: Structure, abilities: Abilities, group: ChannelGroup) -> int:
    """In steps of how many units a group is pruned, so that the layers' channels come in the target's steps.

    A unit may be several channels of every layer it touches: an attention head is as many as it is wide.
    """
    channels = abilities.depthwise_granularity if group.depthwise else abilities.granularity
    step = channels // math.gcd(channels, _unit_width(structure, group))
    return step if group.size >= 2 * step else max(1, group.size // 4)


def _unit_width(structure: Structure, group: ChannelGroup) -> int:
    """Channels that one unit of a group is at least, over the layer weights it cuts; 1 with convolutions.

    The channels of grouped convolutions count group by group, and a unit is one in each.
    """
    known: dict[str, int] = structure.__dict__.setdefault("_unit_widths", {})
    if group.name not in known:
        weights = {x.weight: x.op for x in structure.layers}
        cut = [units for (name, _), units in group.slices.items() if name in weights]
        linear = all(weights.get(name, "linear") == "linear" for name, _ in group.slices)
        width = min((sum(u >= 0 for u in units) // group.size for units in cut), default=1)
        known[group.name] = max(1, width) if linear else 1
    return known[group.name]


def weight_shape(structure: Structure, layer: Layer, kept: Mapping[str, int]) -> tuple[int, ...]:
    """The layer's weight shape once each group keeps ``kept[group]`` channels (absent: all)."""
    sizes = structure.sizes[layer.weight]
    full = {g: kept.get(g, structure.group[g].size) for d in sizes for g, _ in d.mult}
    return tuple(d.at(full) for d in sizes)


def resolved_rank(
    structure: Structure, layer: Layer, kept: Mapping[str, int], wanted: tuple[str, float]
) -> Factor | None:
    """The factorisation of a layer at a ratio of its full rank, once each group keeps ``kept[group]``
    channels; None where the scheme does not take the layer or saves nothing."""
    method, ratio = wanted
    scheme = FACTORISATIONS.find(method)
    if not scheme.takes(layer):
        return None
    shape = weight_shape(structure, layer, kept)
    known: dict[Any, Factor | None] = structure.__dict__.setdefault("_resolved_ranks", {})
    key = (layer.name, scheme, ratio, shape)
    if key not in known:
        if len(known) > 65_536:
            known.clear()
        known[key] = _factor_of(structure, layer, scheme, ratio, shape)
    return known[key]


def _factor_of(
    structure: Structure, layer: Layer, scheme: Factorisation, ratio: float, shape: tuple[int, ...]
) -> Factor | None:
    """A layer of this shape factorised at a ratio; None when that saves neither weights nor MACs."""
    rank = scheme.within(shape, tuple(_rank(ratio, r) for r in scheme.full_rank(shape)))
    factor = Factor(scheme.name, rank)
    dense = math.prod(shape)
    stride = tuple(structure.graph.by_name[layer.nodes[0]].attrs.get("stride", ()))
    weights, macs = factor_costs(layer, shape, factor, stride)
    return factor if weights < dense and macs < dense else None


def _rank(ratio: float, full: int) -> int:
    """Rank at a ratio, rounded to a multiple of 4 where that is possible."""
    exact = max(1.0, ratio * full)
    return int(min(full, max(4, round(exact / 4) * 4))) if full >= 8 else round(exact)


def _resolve_act_bits(
    structure: Structure, abilities: Abilities, policy: Policy, dead: set[str]
) -> dict[str, int]:
    alive_tensors = _alive_tensors(structure, policy.removed)
    bits: dict[str, int] = {}
    for g in structure.tensor_groups:
        if not any(t in alive_tensors for t in g.tensors):
            continue
        want = policy.act_bits.get(g.name, FLOAT)
        offered = abilities.offered(abilities.act_bits)
        bits[g.name] = min((b for b in offered if b >= want), default=max(offered, default=FLOAT))
    return bits


def _alive_tensors(structure: Structure, removed: frozenset[str]) -> frozenset[str]:
    known: dict[frozenset[str], frozenset[str]] = structure.__dict__.setdefault("_alive_tensors", {})
    found = known.get(removed)
    if found is None:
        if len(known) > 4096:
            known.clear()
        graph = without_blocks(structure, removed)
        found = known[removed] = frozenset((*graph.inputs, *(t for n in graph.nodes for t in n.outputs)))
    return found


def without_blocks(structure: Structure, removed: frozenset[str] | tuple[str, ...]) -> Graph:
    """The graph with the given residual branches replaced by their shortcuts."""
    graph = structure.graph
    if not removed:
        return graph
    alias = {structure.block[b].output: structure.block[b].shortcut for b in removed}

    def final(t: str) -> str:
        while t in alias:
            t = alias[t]
        return t

    nodes = [
        n.with_(inputs=tuple(final(t) for t in n.inputs))
        for n in graph.nodes
        if not any(t in alias for t in n.outputs)
    ]
    return graph.rebuilt(nodes, outputs=[final(t) for t in graph.outputs])


def resolved_weight_bits(
    structure: Structure, abilities: Abilities, policy: Policy, layer: Layer, act_bits: Mapping[str, int]
) -> int:
    """Bits of a layer's weights: what was asked for, made executable with the tensors around it."""
    if "bits" in layer.fixed or not abilities.has_integer_kernel(layer):
        return FLOAT
    wanted: int | None = policy.weight_bits.get(layer.name)
    around = [_bits_around(structure, n, act_bits) for n in layer.nodes]
    a_in = max(a for a, _ in around)
    a_out = max(b for _, b in around)
    must = not abilities.float_kernels
    integer_out = must or a_out != FLOAT or _leaves_float(structure, abilities.rounding, layer)
    if a_in == FLOAT or not integer_out:
        alone = sorted(w for w, a in abilities.precisions if a == FLOAT)
        if wanted is None or wanted == FLOAT or not alone:
            return FLOAT
        target: int = wanted
        return min(alone, key=lambda w: (abs(w - target), w))
    paired = sorted(w for w, a in abilities.precisions if a == a_in)
    if not paired:
        return FLOAT
    several = len(abilities.weight_bits) > 1
    if wanted is None:
        wanted = FLOAT if several else paired[-1]
    if wanted == FLOAT:
        between = abilities.rounding.quantises_between and a_out != FLOAT
        return paired[-1] if must or between else FLOAT
    return min((w for w in paired if w >= wanted), default=paired[-1])


def _leaves_float(structure: Structure, numerics: Numerics, layer: Layer) -> bool:
    """Whether a runtime has an integer kernel for the layer that leaves a float result.

    onnxruntime fuses an activation into the product of two matrices before it looks for integers, so a
    linear layer on (batch, features) that is followed by one stays float unless what follows is integer.
    """
    if layer.op not in numerics.float_output:
        return False
    graph = structure.graph
    nodes = [graph.by_name[n] for n in layer.nodes]
    return not numerics.fuses_before_integers or not any(
        len(graph.tensors[n.outputs[0]].shape) == 2 and fused_output(graph, n) != n.outputs[0] for n in nodes
    )


def _without_idle(
    structure: Structure,
    alive: list[Layer],
    weight_bits: Mapping[str, int],
    act_bits: dict[str, int],
    at_reads: bool,
) -> dict[str, int]:
    """Bits of the tensor groups; float where no integer layer reads or writes: rounding buys nothing."""
    used: set[str] = set()
    for layer in alive:
        if weight_bits[layer.name] != FLOAT:
            for node in layer.nodes:
                used.update(_groups_around(structure, node)[: 1 if at_reads else 2])
    return {name: bits if name in used else FLOAT for name, bits in act_bits.items()}


def _groups_around(structure: Structure, node_name: str) -> tuple[str, str]:
    """Tensor groups of what a layer's call reads and of what its fused kernel writes, "" for none."""
    known: dict[str, tuple[str, str]] = structure.__dict__.setdefault("_groups_around", {})
    groups = known.get(node_name)
    if groups is None:
        node = structure.graph.by_name[node_name]
        group_of = structure.tensor_group_of
        ends = (node.inputs[0], fused_output(structure.graph, node))
        groups = known[node_name] = (group_of.get(ends[0], ""), group_of.get(ends[1], ""))
    return groups


def _bits_around(structure: Structure, node_name: str, act_bits: Mapping[str, int]) -> tuple[int, int]:
    """Bits of the tensor a layer's call reads and of the one its fused kernel writes."""
    groups = _groups_around(structure, node_name)
    return act_bits.get(groups[0], FLOAT), act_bits.get(groups[1], FLOAT)
