"""Quick estimates of costs for any policy, composed of kernels that exact templates were seen to have.

A new structural signature costs a question to the runtime (some 10 ms). An agent weighs hundreds of
policies for one suggestion, so it proposes by these estimates and checks what it suggests by exact costs.
A site is a layer or a tensor of the uncompressed network. Which kernels run there depends on little: the
bits around it, its factorisation, the alignment of its channels, the layout of its neighbours. From the
templates of a fixed set of policies the estimator learns, site by site, which kernels go with which
of these local keys; a policy is then the sum of its sites. Deterministic: the same space, target and
predictor give the same estimates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressors.factors import FACTORISATIONS, factor_shapes
from compressors.graph import Layer, Node, Structure
from compressors.policy import FLOAT, ResolvedPolicy
from compressors.resolve import fused_output
from compressors.space import PolicySpace
from hw_profiles.kernel import COLUMNS, KernelBatch, KernelKind
from hw_profiles.predictor import Predictor

from .lowering import Lowering
from .lowering_template import Formulas, SymbolicKernel, cell
from .templates import BLOCKED, block_size

Array = NDArray[np.float64]
Key = tuple[Any, ...]

#: Policies whose templates are learned from, and how many more judge the estimates.
LEARNED, JUDGED = 72, 16
#: The same where templates come from rules, which cost next to nothing.
LEARNED_BY_RULES = 256
#: Combinations of precisions and methods whose kernels are remembered.
MOST_RUNS = 16_384


@dataclass
class _Seen:
    """Kernels seen at one site under one local key: the most frequent set, compiled over all value names.

    ``used`` are the positions of the values its sizes depend on; ``memo`` holds by these what is summed, to
    ten digits: an estimate then depends neither on the process nor on what was estimated with it.
    """

    text: tuple[str, ...]
    kinds: tuple[KernelKind, ...]
    columns: Formulas
    used: tuple[int, ...]
    memo: dict[tuple[float, ...], tuple[float, ...]] = field(default_factory=dict)

    @cached_property
    def take(self) -> Callable[[list[float]], tuple[float, ...]]:
        """Picks the values used out of a row of all."""
        if len(self.used) == 1:
            return lambda row, at=self.used[0]: (row[at],)  # type: ignore[misc]
        return itemgetter(*self.used) if self.used else lambda row: ()


@dataclass(frozen=True)
class _Site:
    """A place kernels belong to: its own layer if it is one, and the layers next to it."""

    name: str
    layer: Layer | None
    group: str
    neighbours: tuple[str, ...]


@dataclass
class Estimator:
    """Estimates latency (and energy) of policies of one space; sizes and MACs are computed.

    ``factor`` is the median of exact over estimated latency on policies not learned from, ``error`` the
    median relative error left after it.
    """

    space: PolicySpace
    lowering: Lowering
    factor: float = 1.0
    error: float = 0.0
    _sites: dict[str, _Site] = field(default_factory=dict, repr=False)
    _seen: dict[str, dict[Key, _Seen]] = field(default_factory=dict, repr=False)
    _constant: list[_Seen] = field(default_factory=list, repr=False)
    _fixed: float = field(default=0.0, repr=False)
    _has_energy: bool = field(default=True, repr=False)
    _priced_by: Predictor | None = field(default=None, repr=False)
    _nearest: dict[tuple[str, Key], _Seen | None] = field(default_factory=dict, repr=False)
    _runs: dict[Key, list[_Seen]] = field(default_factory=dict, repr=False)
    _aligned: dict[str, tuple[tuple[str, ...], dict[Key, tuple[int, ...]]]] = field(
        default_factory=dict, repr=False
    )
    _numbers: dict[Key, int] = field(default_factory=dict, repr=False)
    _held: dict[int, tuple[Mapping[str, int], int]] = field(default_factory=dict, repr=False)

    @classmethod
    def learned(cls, space: PolicySpace, lowering: Lowering) -> Estimator:
        """An estimator that has seen the templates of a fixed set of policies."""
        found = cls(space, lowering)
        rng = np.random.default_rng(20_240_229)
        by_rules = lowering.target.runtime.templates == "rules"
        policies = _training(space, rng, LEARNED_BY_RULES if by_rules else LEARNED)
        found._learn(policies)
        judged = _training(space, rng, JUDGED)
        found._judge(judged)
        return found

    def costs(self, policies: Sequence[ResolvedPolicy], names: Collection[str] = ()) -> dict[str, Array]:
        """latency_ms and those of size_bytes, macs, energy_mj in ``names`` (none given: all), each (P,)."""
        table = self._summed(policies)
        found = {"latency_ms": table[:, 0] * self.factor + self._fixed}
        if self._has_energy and (not names or "energy_mj" in names):
            found["energy_mj"] = table[:, 1]
        if not names or "macs" in names:
            found["macs"] = table[:, 2] / self.lowering.batch
        if not names or "size_bytes" in names:
            found["size_bytes"] = np.array([self._size(p) for p in policies])
        return found

    # -- learning

    def _learn(self, policies: Sequence[ResolvedPolicy]) -> None:
        names = self._names()
        votes: dict[tuple[str, Key], Counter[tuple[str, ...]]] = {}
        texts: dict[tuple[str, ...], tuple[SymbolicKernel, ...]] = {}
        for policy in policies:
            states = self._states(policy)
            by_site: dict[str, list[SymbolicKernel]] = {}
            for k in self.lowering.template(policy).kernels:
                by_site.setdefault(k.kind.layer, []).append(k)
            for name in dict.fromkeys((*by_site, *self._sites)):  # a set's order differs between processes
                site = self._site(name)
                kernels = by_site.get(name, [])
                text = tuple(repr((k.kind, sorted(k.cells.items()))) for k in kernels)
                texts.setdefault(text, tuple(kernels))
                votes.setdefault((name, self._key(site, states, policy)), Counter())[text] += 1
        for (name, key), counted in votes.items():
            self._seen.setdefault(name, {})[key] = _compiled(texts[counted.most_common(1)[0][0]], names)
        for name, seen in list(self._seen.items()):
            if len({x.text for x in seen.values()}) == 1:  # the same whatever stands around it
                self._constant.append(next(iter(seen.values())))
                del self._seen[name]

    def _judge(self, policies: Sequence[ResolvedPolicy]) -> None:
        exact = self.lowering.costs(policies)["latency_ms"]
        summed = self._summed(policies)[:, 0]  # first: it prices what is fixed as well
        ratio = (exact - self._fixed) / np.maximum(summed, 1e-12)
        self.factor = float(np.median(ratio))
        self.error = float(np.median(np.abs(ratio / self.factor - 1.0)))

    # -- local keys

    def _site(self, name: str) -> _Site:
        found = self._sites.get(name)
        if found is None:
            structure = self.space.structure
            layer = structure.layer.get(name)
            tensor = _tensor_of(structure, name)
            found = self._sites[name] = _Site(
                name, layer, structure.tensor_group_of.get(tensor, ""), _neighbours(structure, name, tensor)
            )
        return found

    def _states(self, policy: ResolvedPolicy) -> dict[str, Key]:
        """State of every layer: gone, or method, bits around it, alignment of its channels if float."""
        structure = self.space.structure
        around = structure.__dict__.setdefault("_groups_around", {})
        found: dict[str, Key] = {}
        for layer in structure.layers:
            bits = policy.weight_bits.get(layer.name)
            if bits is None:
                found[layer.name] = ("gone",)
                continue
            groups = around.get(layer.nodes[0])
            if groups is None:
                node = structure.graph.by_name[layer.nodes[0]]
                ends = (node.inputs[0], fused_output(structure.graph, node))
                groups = around[layer.nodes[0]] = tuple(structure.tensor_group_of.get(t, "") for t in ends)
            method = policy.factors[layer.name].method if layer.name in policy.factors else ""
            a_in, a_out = (policy.act_bits.get(g, FLOAT) for g in groups)
            if bits != FLOAT:
                found[layer.name] = ("int", method, bits, a_in, a_out)
            else:
                found[layer.name] = ("float", method, a_in, a_out, *self._alignment(layer, policy))
        return found

    def _alignment(self, layer: Layer, policy: ResolvedPolicy) -> tuple[int, ...]:
        if self.lowering.target.runtime.templates not in BLOCKED:
            return ()
        sizes = self.space.structure.sizes[layer.weight][:2]
        groups, memo = self._aligned.setdefault(
            layer.name, (tuple(dict.fromkeys(g for size in sizes for g, _ in size.mult)), {})
        )
        factor, kept = policy.factors.get(layer.name), policy.kept
        at = (tuple([kept.get(g, 0) for g in groups]), None if factor is None else factor.rank)
        if at not in memo:
            block = block_size(self.lowering.target.runtime.templates)
            counts = [size.const + sum(m * kept.get(g, 0) for g, m in size.mult) for size in sizes]
            counts += () if factor is None else factor.rank
            memo[at] = tuple(0 if n % block == 0 else 1 if n % 4 == 0 else 2 for n in counts)
        return memo[at]

    def _key(self, site: _Site, states: Mapping[str, Key], policy: ResolvedPolicy) -> Key:
        near = tuple(_layout(states[n]) for n in site.neighbours)
        if site.layer is not None:
            return (*states[site.layer.name], "|", *near)
        return (policy.act_bits.get(site.group, 0), "|", *near)

    def _known(self, name: str, key: Key) -> _Seen | None:
        """What was seen under a key, or under the most similar one (ties: the first in order of text)."""
        seen = self._seen.get(name)
        if not seen:
            return None
        if key in seen:
            return seen[key]
        asked = (name, key)
        if asked not in self._nearest:
            best = min(seen, key=lambda k: (_distance(k, key), repr(k)))
            self._nearest[asked] = seen[best]
        return self._nearest[asked]

    # -- summing

    @cached_property
    def _ranks(self) -> int:
        return max(f.ranks for f in FACTORISATIONS.values())

    def _names(self) -> list[str]:
        structure = self.space.structure
        ranks = [f"rank:{x.name}:{i}" for x in structure.layers for i in range(self._ranks)]
        return [*(g.name for g in structure.groups), *ranks]

    @cached_property
    def _sizes_at(self) -> tuple[list[tuple[str, int]], dict[str, int], list[float]]:
        """Groups with their sizes, where each layer's ranks begin, and a row of no ranks."""
        structure = self.space.structure
        groups = [(g.name, g.size) for g in structure.groups]
        begins = {x.name: len(groups) + i * self._ranks for i, x in enumerate(structure.layers)}
        return groups, begins, [0.0] * (self._ranks * len(structure.layers))

    def _row(self, policy: ResolvedPolicy) -> list[float]:
        """Values of all names (`_names`) under a policy."""
        groups, begins, none = self._sizes_at
        kept = policy.kept
        row: list[float] = [kept.get(name, size) for name, size in groups] + none
        for name, factor in policy.factors.items():
            row[begins[name] : begins[name] + len(factor.rank)] = factor.rank
        return row

    def _summed(self, policies: Sequence[ResolvedPolicy]) -> Array:
        """(P, 3): milliseconds of the kernels, millijoules, MACs.

        A kernel's weights are in the cache or not by what the whole network holds. Kernels are priced at the
        sizes between which that is linear, and their sums interpolated.
        """
        self._refresh()
        parts: list[list[tuple[_Seen, tuple[float, ...]]]] = []
        missing: dict[int, tuple[_Seen, dict[tuple[float, ...], list[float]]]] = {}
        for policy in policies:
            row = self._row(policy)
            one = [(seen, seen.take(row)) for seen in self._here(policy)]
            for seen, at in one:
                if at not in seen.memo:
                    missing.setdefault(id(seen), (seen, {}))[1].setdefault(at, row)
            parts.append(one)
        if missing:
            self._price_missing(missing)
        out = np.zeros((len(policies), 3))
        bends = self.lowering.predictor.bends
        for i, one in enumerate(parts):
            if not one:
                continue
            moved, mj, macs, weights, *ms = zip(*[s.memo[at] for s, at in one], strict=True)
            times = [sum(column) for column in ms]
            if bends:
                times[0] = float(np.interp(sum(weights) + max(moved), bends, times))
            out[i] = times[0], sum(mj), sum(macs)
        return out

    def _here(self, policy: ResolvedPolicy) -> list[_Seen]:
        """What runs at every site, remembered by what decides it: most policies differ in channels alone."""
        key = (
            self._number(policy.weight_bits),
            self._number(policy.act_bits),
            tuple([(n, f.method) for n, f in policy.factors.items()]),
            self._alignments(policy),
        )
        found = self._runs.get(key)
        if found is None:
            states = self._states(policy)
            sites = [self._known(n, self._key(self._sites[n], states, policy)) for n in self._seen]
            found = [x for x in (*self._constant, *sites) if x is not None and x.kinds]
            if len(self._runs) >= MOST_RUNS:
                self._runs.clear()
            self._runs[key] = found
        return found

    def _number(self, bits: Mapping[str, int]) -> int:
        """A number for what a mapping says, told by identity where the very mapping was seen before."""
        held = self._held.get(id(bits))
        if held is not None and held[0] is bits:
            return held[1]
        number = self._numbers.setdefault(tuple(bits.items()), len(self._numbers))
        if len(self._held) >= MOST_RUNS:
            self._held.clear()
        self._held[id(bits)] = bits, number
        return number

    def _alignments(self, policy: ResolvedPolicy) -> tuple[tuple[int, ...], ...]:
        """Alignment of every float layer's channels, where kernels depend on it."""
        if self.lowering.target.runtime.templates not in BLOCKED:
            return ()
        bits = policy.weight_bits
        layers = [x for x in self.space.structure.layers if bits.get(x.name) == FLOAT]
        return tuple([self._alignment(x, policy) for x in layers])

    def _price_missing(
        self, missing: Mapping[int, tuple[_Seen, dict[tuple[float, ...], list[float]]]]
    ) -> None:
        """Price what the memos lack, all of it at once, kind by kind."""
        wanted: list[tuple[_Seen, tuple[float, ...]]] = []
        buckets: dict[KernelKind, list[tuple[NDArray[np.intp], Array]]] = {}
        for seen, example in missing.values():
            rows = np.arange(len(wanted), len(wanted) + len(example))
            wanted += [(seen, at) for at in example]
            table = seen.columns(np.array(list(example.values()), dtype=np.float64))
            for j, kind in enumerate(seen.kinds):
                buckets.setdefault(kind, []).append((rows, table[:, j :: len(seen.kinds)]))
        predictor = self.lowering.predictor
        sums = np.zeros((len(wanted), 4 + max(1, len(predictor.bends))))
        for kind in sorted(buckets, key=repr):
            rows = np.concatenate([r for r, _ in buckets[kind]])
            table = np.concatenate([t for _, t in buckets[kind]])
            batch = KernelBatch((kind,), {c: table[:, [i]] for i, c in enumerate(COLUMNS)})
            for k, held in enumerate(predictor.bends or (None,)):
                within = None if held is None else np.full(len(rows), held)
                found = predictor.predict(replace(batch, held=within))
                np.add.at(sums[:, 4 + k], rows, found.kernel_ms[:, 0])
            np.maximum.at(sums[:, 0], rows, batch.moved_bytes()[:, 0])
            np.add.at(sums[:, 2], rows, batch.macs()[:, 0])
            np.add.at(sums[:, 3], rows, batch.weight_bytes()[:, 0])
            if found.energy_mj is None:
                self._has_energy = False
            else:
                np.add.at(sums[:, 1], rows, found.energy_mj)
            self._fixed = float(f"{found.latency_ms[0] - found.kernel_ms[0].sum():.9e}")
        for (seen, at), row in zip(wanted, sums, strict=True):
            seen.memo[at] = tuple(float(f"{x:.9e}") for x in row)

    def _refresh(self) -> None:
        """Forget prices when the predictor was corrected."""
        if self._priced_by is not self.lowering.predictor:
            self._priced_by = self.lowering.predictor
            for seen in (*self._constant, *(x for by_key in self._seen.values() for x in by_key.values())):
                seen.memo.clear()

    def _size(self, policy: ResolvedPolicy) -> float:
        """Bytes stored: weights at their bits with a scale a channel, everything else at four bytes."""
        structure = self.space.structure
        full = {g.name: policy.kept.get(g.name, g.size) for g in structure.groups}
        total = 0.0
        for layer in structure.layers:
            bits = policy.weight_bits.get(layer.name)
            if bits is None:
                continue
            shape = tuple(d.at(full) for d in structure.sizes[layer.weight])
            factor = policy.factors.get(layer.name)
            for s in [shape] if factor is None else factor_shapes(layer, shape, factor):
                total += float(np.prod(s)) * bits / 8 + (4.0 * s[0] if bits != FLOAT else 0.0)
            total += 4.0 * shape[0]
        return total


def _training(space: PolicySpace, rng: np.random.Generator, count: int) -> list[ResolvedPolicy]:
    """Policies that show every site in many states: uniform points, half of them mostly of one precision."""
    found = [space.resolve(space.dense)] if count > JUDGED else []
    kinds = np.array([c.kind for c in space.choices])
    while len(found) < count:
        x = rng.random(space.dimension)
        number = len(found) % 4
        if number:  # few blocks removed, few layers factorised: what searches look at
            x[kinds == "removed"] = rng.random(int((kinds == "removed").sum())) * 0.6 + 0.4
            rank = kinds == "rank"
            x[rank] = np.where(rng.random(int(rank.sum())) < 0.7, 1.0, x[rank])
        if number in (1, 2):
            bits = (kinds == "act_bits") | (kinds == "weight_bits")
            x[bits] = np.where(rng.random(int(bits.sum())) < 0.8, float(number == 1), x[bits])
        found.append(space.resolve(space.decode(x)))
    return found


def _compiled(kernels: Sequence[SymbolicKernel], names: Sequence[str]) -> _Seen:
    one = cell(1.0)
    known = set(names)
    usable = [
        k
        for k in kernels
        if all(n in known for c in k.cells.values() for term in c for d in term for n, _ in d.mult)
    ]
    columns = Formulas([k.cells.get(c, one) for c in COLUMNS for k in usable], names)
    index = {n: i for i, n in enumerate(names)}
    used = {index[n] for k in usable for c in k.cells.values() for t in c for d in t for n, _ in d.mult}
    text = tuple(repr((k.kind, sorted(k.cells.items()))) for k in usable)
    return _Seen(text, tuple(replace(k.kind, layer="") for k in usable), columns, tuple(sorted(used)))


def _layout(state: Key) -> str:
    if state[0] == "float":
        return "float" + "".join(map(str, state[4:6]))
    return str(state[0])


def _distance(a: Key, b: Key) -> int:
    """Number of places where two keys differ, the first ones counting more."""
    width = max(len(a), len(b))
    pairs = zip((*a, *[None] * (width - len(a))), (*b, *[None] * (width - len(b))), strict=True)
    return sum((8 if i == 0 else 4 if i == 1 else 1) for i, (x, y) in enumerate(pairs) if x != y)


def _tensor_of(structure: Structure, name: str) -> str:
    """The tensor a site stands for: a layer's fused output, a node's output, or the tensor of that name."""
    graph = structure.graph
    layer = structure.layer.get(name)
    if layer is not None:
        return fused_output(graph, graph.by_name[layer.nodes[0]])
    if name in graph.tensors:
        return name
    node = graph.by_name.get(name)
    return node.outputs[0] if node is not None else ""


def _neighbours(structure: Structure, name: str, tensor: str) -> tuple[str, ...]:
    """Nearest layers around a tensor site; for a layer, those its output is added to or read by."""
    graph = structure.graph
    if not tensor or tensor not in graph.tensors:
        return ()
    own = structure.layer.get(name)
    found: dict[str, None] = {}
    _walk(structure, tensor, True, 3, found)
    if own is None:
        _walk(structure, tensor, False, 3, found)
    found.pop(name, None)
    return tuple(sorted(found))[:4] if own is None else tuple(sorted(found))[:2]


def _walk(structure: Structure, tensor: str, forward: bool, depth: int, found: dict[str, None]) -> None:
    graph = structure.graph
    if depth == 0:
        return
    nodes: tuple[Node, ...] = (
        graph.consumers.get(tensor, ())
        if forward
        else tuple(n for n in (graph.producer.get(tensor),) if n is not None)
    )
    for n in nodes:
        layer = structure.layer_of_node.get(n.name)
        if layer is not None:
            found[layer.name] = None
            continue
        for t in n.outputs if forward else tuple(graph.activations_of(n)):
            _walk(structure, t, forward, depth - 1, found)
