"""The policy space: the choices a policy may take, i.e. what the layers allow and a target can exploit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import PolicyError, near
from .factors.base import FACTORISATIONS, Factorisation, factor_shapes
from .graph import Layer, Structure, TensorGroup
from .policy import DYNAMIC, FLOAT, Factor, Policy, ResolvedPolicy
from .resolve import Numerics, keep_step, resolve, weight_shape

if TYPE_CHECKING:
    from .points import Points


@dataclass(frozen=True)
class Abilities:
    """What the policy space needs to know of a target: a plain value, filled from the target by search.

    ``granularity``: channel counts offered are multiples of it. ``precisions``: pairs of (weight bits,
    activation bits) that execute as such, besides float; (w, 32) means weights alone.
    ``float_kernels``: False where nothing executes in float (arrays); what is not asked for then takes the
    most bits there are. ``integer_ops``: operations that have integer kernels, save for the kinds of layer
    (`Layer.kind`) in ``float_kinds``; ``dynamic_ops``: those that have them where ranges are dynamic.
    ``methods``: which knobs are searched: "prune", "quantize", "depth", "factorize" for the default
    factorisation schemes, and any scheme by its name. ``criterion``, ``ranges``, ``scales``: of every policy
    of the space.
    """

    granularity: int = 4
    depthwise_granularity: int = 4
    precisions: tuple[tuple[int, int], ...] = ((8, 8),)
    float_kernels: bool = True
    integer_ops: frozenset[str] = frozenset({"conv", "linear"})
    dynamic_ops: frozenset[str] = frozenset()
    float_kinds: frozenset[str] = frozenset()
    methods: frozenset[str] = frozenset({"prune", "quantize", "factorize", "depth"})
    min_keep: float = 0.125
    skip: tuple[str, ...] = ()
    numerics: Numerics = field(default_factory=Numerics)
    criterion: str = "obs"
    ranges: str = "mse"
    scales: str = "mse"

    def has_integer_kernel(self, layer: Layer) -> bool:
        """Whether the target executes the layer on integers at all."""
        ops = self.dynamic_ops if self.ranges == DYNAMIC else self.integer_ops
        return layer.op in ops and layer.kind not in self.float_kinds

    @property
    def rounding(self) -> Numerics:
        """The numerics as policies of the space, with its ranges of activations, are executed."""
        return self.numerics.under(self.ranges)

    def offered(self, bits: tuple[int, ...]) -> tuple[int, ...]:
        """Bits a choice is offered, ascending: those with kernels, then float where it executes."""
        return (*bits, FLOAT) if self.float_kernels else bits

    @property
    def schemes(self) -> tuple[Factorisation, ...]:
        """Factorisation schemes that are searched, in order of registration."""
        every = "factorize" in self.methods
        return tuple(f for f in FACTORISATIONS.values() if f.name in self.methods or (every and f.default))

    @property
    def weight_bits(self) -> tuple[int, ...]:
        """Weight bits that have kernels, ascending."""
        return tuple(sorted({w for w, _ in self.precisions}))

    @property
    def act_bits(self) -> tuple[int, ...]:
        """Activation bits that have kernels, ascending, float left out."""
        return tuple(sorted({a for _, a in self.precisions if a != FLOAT}))


@dataclass(frozen=True)
class Choice:
    """One coordinate of the space: ordered ``values``, the last one leaves the network as it is.

    kind "keep": channels kept of group ``subject``; "rank": (method, ratio) of a layer or None for
    dense; "weight_bits": of a layer; "act_bits": of a tensor group; "removed": True/False of a block.
    """

    kind: str
    subject: str
    values: tuple[object, ...]

    @property
    def name(self) -> str:
        """Unique name, e.g. ``keep:layer1``."""
        return f"{self.kind}:{self.subject}"


class PolicySpace:
    """All policies for one network on one kind of target; encodes them to and from [0, 1]^d.

    Coordinate i of a point picks ``values[round(x[i] * (len(values) - 1))]`` of ``choices[i]``:
    1 leaves the network as it is, 0 is the smallest.
    """

    def __init__(self, structure: Structure, abilities: Abilities) -> None:
        self.structure = structure
        self.abilities = abilities
        self.choices: tuple[Choice, ...] = tuple(_choices(structure, abilities))
        self._index = {c.name: i for i, c in enumerate(self.choices)}

    @property
    def dimension(self) -> int:
        """Number of coordinates d."""
        return len(self.choices)

    @cached_property
    def cardinalities(self) -> NDArray[np.int64]:
        """Number of values of each coordinate, shape (d,)."""
        return np.array([len(c.values) for c in self.choices], dtype=np.int64)

    @property
    def log10_size(self) -> float:
        """log10 of the number of policies."""
        return float(np.log10(self.cardinalities.astype(float)).sum()) if self.choices else 0.0

    def indices(self, x: Sequence[float] | NDArray[np.float64]) -> NDArray[np.int64]:
        """Value index of every coordinate for a point in [0, 1]^d, shape (d,)."""
        point = np.clip(np.asarray(x, dtype=float), 0.0, 1.0)
        if point.shape != (self.dimension,):
            raise PolicyError(f"a point of this space has {self.dimension} coordinates, got {point.shape}")
        if not np.isfinite(point).all():
            raise PolicyError("a point of the policy space holds NaN")
        picked: NDArray[np.int64] = np.rint(point * (self.cardinalities - 1)).astype(np.int64)
        return picked

    def decode(self, x: Sequence[float] | NDArray[np.float64]) -> Policy:
        """The policy at a point of [0, 1]^d."""
        return self.at(self.indices(x))

    def at(self, indices: Sequence[int] | NDArray[np.int64]) -> Policy:
        """The policy with the given value index per coordinate."""
        keep: dict[str, float] = {}
        rank: dict[str, tuple[str, float]] = {}
        weight_bits: dict[str, int] = {}
        act_bits: dict[str, int] = {}
        removed: set[str] = set()
        for choice, i in zip(self.choices, indices, strict=True):
            value = choice.values[int(i)]
            if choice.kind == "keep" and isinstance(value, int):
                keep[choice.subject] = value / self.structure.group[choice.subject].size
            elif choice.kind == "rank" and isinstance(value, tuple):
                rank[choice.subject] = value
            elif choice.kind == "weight_bits" and isinstance(value, int):
                weight_bits[choice.subject] = value
            elif choice.kind == "act_bits" and isinstance(value, int):
                act_bits[choice.subject] = value
            elif choice.kind == "removed" and value is True:
                removed.add(choice.subject)
        able = self.abilities
        return Policy(
            keep,
            rank,
            weight_bits,
            act_bits,
            frozenset(removed),
            able.criterion,
            able.ranges,
            able.scales,
        )

    def encode(self, policy: Policy) -> NDArray[np.float64]:
        """A point that decodes to the policy, or to the nearest one of this space; shape (d,)."""
        x = np.ones(self.dimension)
        for i, choice in enumerate(self.choices):
            n = len(choice.values)
            x[i] = self._position(choice, policy) / (n - 1) if n > 1 else 1.0
        return x

    def _position(self, choice: Choice, policy: Policy) -> int:
        last = len(choice.values) - 1
        if choice.kind == "keep":
            size = self.structure.group[choice.subject].size
            want = policy.keep.get(choice.subject, 1.0) * size
            return int(np.argmin([abs(float(v) - want) for v in choice.values if isinstance(v, int)]))
        if choice.kind == "rank":
            wanted = policy.rank.get(choice.subject)
            if wanted is None:
                return last
            return min(range(last), default=last, key=lambda i: _rank_distance(choice.values[i], wanted))
        if choice.kind == "removed":
            return 0 if choice.subject in policy.removed else last
        bits = policy.weight_bits if choice.kind == "weight_bits" else policy.act_bits
        want_bits = bits.get(choice.subject, FLOAT)
        return int(np.argmin([abs(v - want_bits) for v in choice.values if isinstance(v, int)]))

    def resolve(self, policy: Policy) -> ResolvedPolicy:
        """The policy in integers, as it will be hashed, priced and exported."""
        return resolve(self.structure, self.abilities, policy)

    def resolve_at(self, indices: NDArray[np.int64]) -> ResolvedPolicy:
        """As ``resolve(at(indices))``, several times faster where neighbouring points were asked for."""
        return self._points(indices)

    @cached_property
    def _points(self) -> Points:
        from .points import Points

        return Points(self)

    @property
    def dense(self) -> Policy:
        """Nothing compressed."""
        found = self.abilities
        return Policy(criterion=found.criterion, ranges=found.ranges, scales=found.scales)

    @cached_property
    def smallest(self) -> NDArray[np.float64]:
        """The point with every coordinate at its cheapest value."""
        return np.zeros(self.dimension)

    def uniform(self, keep: float, act_bits: int | None = None, weight_bits: int | None = None) -> Policy:
        """Every group scaled to the same ratio and, if given, every tensor and layer to the same bits.

        Without ``act_bits`` nothing is quantised. This is plain uniform scaling, the usual baseline.
        """
        x = np.ones(self.dimension)
        for i, c in enumerate(self.choices):
            n = len(c.values)
            if c.kind == "keep":
                x[i] = self._position(c, Policy(keep={c.subject: keep})) / max(n - 1, 1)
            elif c.kind in ("act_bits", "weight_bits"):
                want = act_bits if c.kind == "act_bits" else (weight_bits or act_bits)
                if want is not None:
                    gaps = [abs(v - want) for v in c.values if isinstance(v, int)]
                    x[i] = int(np.argmin(gaps)) / max(n - 1, 1)
        return self.decode(x)

    def check(self, policy: ResolvedPolicy) -> None:
        """Raise PolicyError when the policy is for another network or names unknown subjects."""
        if policy.network != self.structure.graph.digest:
            raise PolicyError(
                f"the policy is for network {policy.network}, this one is {self.structure.graph.digest}. "
                "Give the task the policy was searched on."
            )
        known: list[tuple[str, Mapping[str, object], Mapping[str, object]]] = [
            ("group", policy.kept, self.structure.group),
            ("layer", policy.weight_bits, self.structure.layer),
            ("tensor group", policy.act_bits, {g.name: g for g in self.structure.tensor_groups}),
            ("block", dict.fromkeys(policy.removed), self.structure.block),
        ]
        for what, named, exist in known:
            for name in named:
                if name not in exist:
                    raise PolicyError(f"the policy names an unknown {what} {name!r}.{near(name, exist)}")
        for name, kept in policy.kept.items():
            if kept > self.structure.group[name].size:
                raise PolicyError(
                    f"the policy keeps {kept} channels of group {name!r}, "
                    f"which has {self.structure.group[name].size}."
                )
        for name, factor in policy.factors.items():
            self._check_factor(policy, self.structure.layer[name], factor)

    def _check_factor(self, policy: ResolvedPolicy, layer: Layer, factor: Factor) -> None:
        scheme = FACTORISATIONS.find(factor.method)
        if not scheme.takes(layer):
            methods = [f.name for f in FACTORISATIONS.values() if f.takes(layer)]
            offered = (
                f"it takes {', '.join(methods)}" if methods else layer.fixed.get("rank", "it takes none")
            )
            raise PolicyError(f"layer {layer.name!r} cannot be factorised by {factor.method!r}: {offered}.")
        if len(factor.rank) != scheme.ranks:
            raise PolicyError(
                f"the policy gives layer {layer.name!r} rank {list(factor.rank)}; "
                f"{factor.method!r} takes {scheme.ranks} of them."
            )
        most = scheme.full_rank(weight_shape(self.structure, layer, policy.kept))
        if any(r > m for r, m in zip(factor.rank, most, strict=True)):
            raise PolicyError(
                f"the policy gives layer {layer.name!r} rank {list(factor.rank)}; "
                f"with the channels it keeps at most {list(most)} is possible."
            )
        together = scheme.within(weight_shape(self.structure, layer, policy.kept), factor.rank)
        if together != tuple(factor.rank):
            raise PolicyError(
                f"the policy gives layer {layer.name!r} rank {list(factor.rank)}; "
                f"together at most {list(together)} is possible."
            )


def _rank_distance(value: object, wanted: tuple[str, float]) -> float:
    if not isinstance(value, tuple):
        return float("inf")
    return abs(float(value[1]) - wanted[1]) + (0.0 if value[0] == wanted[0] else 1.0)


def _choices(structure: Structure, abilities: Abilities) -> list[Choice]:
    found: list[Choice] = []
    if "depth" in abilities.methods:
        found += [
            Choice("removed", b.name, (True, False))
            for b in structure.blocks
            if not _skipped(b.layers, abilities)
        ]
    if "prune" in abilities.methods:
        for g in structure.groups:
            values = _keep_values(g.size, keep_step(structure, abilities, g), abilities.min_keep)
            if len(values) > 1 and not _skipped(g.layers, abilities):
                found.append(Choice("keep", g.name, values))
    schemes = abilities.schemes
    for layer in structure.layers if schemes else ():
        options = _rank_values(layer, schemes)
        if options and not _skipped((layer.name,), abilities):
            found.append(Choice("rank", layer.name, (*options, None)))
    if "quantize" in abilities.methods and abilities.precisions:
        found += _bit_choices(structure, abilities)
    return found


def _bit_choices(structure: Structure, abilities: Abilities) -> list[Choice]:
    """Weight bits are a choice only where more than one has kernels; otherwise activations decide."""
    found: list[Choice] = []
    if len(abilities.weight_bits) > 1:
        found += [
            Choice("weight_bits", x.name, abilities.offered(abilities.weight_bits))
            for x in structure.layers
            if "bits" not in x.fixed
            and abilities.has_integer_kernel(x)
            and not _skipped((x.name,), abilities)
        ]
    if len(abilities.offered(abilities.act_bits)) > 1:
        groups = structure.tensor_groups
        if abilities.ranges == DYNAMIC:
            groups = _dynamic_groups(structure, abilities)
        found += [Choice("act_bits", g.name, abilities.offered(abilities.act_bits)) for g in groups]
    return found


def _dynamic_groups(structure: Structure, abilities: Abilities) -> tuple[TensorGroup, ...]:
    """What layers with kernels for dynamic ranges read: nothing else is rounded."""
    layers = [x for x in structure.layers if "bits" not in x.fixed and abilities.has_integer_kernel(x)]
    read = {structure.graph.by_name[n].inputs[0] for x in layers for n in x.nodes}
    return tuple(g for g in structure.tensor_groups if not read.isdisjoint(g.tensors))


def _skipped(layers: Sequence[str], abilities: Abilities) -> bool:
    from fnmatch import fnmatchcase

    return any(fnmatchcase(x, pattern) for x in layers for pattern in abilities.skip)


def _keep_values(size: int, step: int, min_keep: float) -> tuple[int, ...]:
    least = max(1, int(np.ceil(min_keep * size)))
    return (*(k for k in range(step, size, step) if k >= least), size)


def _rank_values(layer: Layer, schemes: Sequence[Factorisation]) -> tuple[tuple[str, float], ...]:
    """Options of a layer, cheapest first; which of them save anything is decided when resolving.

    Ratios of schemes that offer the same ones compare; else the number of weights at this ratio decides.
    """
    taking = [f for f in schemes if f.takes(layer)]
    alike = len({f.ratios for f in taking}) <= 1

    def price(ratio: float, scheme: Factorisation) -> float:
        if alike:
            return ratio
        shape = layer.weight_shape
        rank = tuple(max(1, round(ratio * r)) for r in scheme.full_rank(shape))
        return sum(map(math.prod, factor_shapes(layer, shape, Factor(scheme.name, rank))))

    options = [(price(r, f), -i, f.name, r) for i, f in enumerate(taking) for r in f.ratios]
    return tuple((name, ratio) for _, _, name, ratio in sorted(options))


__all__ = ["Abilities", "Choice", "Factor", "Numerics", "PolicySpace"]
