"""Batch-norm statistics and biases of a compressed float network, from calibration data.

The data flows in chunks that fit the cache; only where a statistic of all samples is needed do the chunks
wait for one another. Their moments are combined exactly (Chan et al. 1983, eq. 2.1), in double precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .execute import compute, schedule
from .graph import Graph, Node, Structure
from .memo import nbytes
from .prefix import content_digest, narrow_points, prefix_keys
from .prune import prune

if TYPE_CHECKING:
    from .network import Network

#: Samples a chunk: a few megabytes of activations in small networks.
CHUNK = 64

#: Operations that write their result to new memory, and those that keep no reference to what they read.
_FRESH = frozenset({"conv", "conv_transpose", "linear", "batch_norm", "add"})
_READING = frozenset({*_FRESH, "relu", "mul", "mean", "max_pool", "avg_pool"})

#: (mean, variance) per channel.
Moments = tuple[Tensor, Tensor]
#: Share of the trained variance that a channel's is made up to before it is divided by: of a channel that
#: calibration data hardly move, they tell little.
_LEAST = 0.1
_Step = tuple[int, Node, tuple[str, ...]]


def channel_axis(node: Node) -> int:
    """The dimension of a weight-bearing node's output that holds its channels."""
    return -1 if node.op == "linear" else 1


def channel_mean(value: Tensor, axis: int) -> Tensor:
    """Mean per channel, (C,)."""
    axis %= value.dim()
    return value.mean([d for d in range(value.dim()) if d != axis])


def fitted(graph: Graph, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Inputs cut to the batch a fixed-batch network takes."""
    return inputs if graph.fixed_batch is None else tuple(x[: graph.fixed_batch] for x in inputs)


def recalibrate(
    graph: Graph,
    weights: dict[str, Tensor],
    network: Network,
    kept: Mapping[str, Tensor],
    changed: bool = True,
    *,
    absolute: bool = False,
) -> dict[str, Tensor]:
    """Batch-norm statistics and biases of layers without batch-norm, in one float pass over calibration data.

    Statistics follow what compression changes: the trained mean plus the difference that the calibration data
    show between compressed and uncompressed network, the trained variance times their ratio. So few data, or
    data unlike those of the training, do no harm: what is theirs stands on both sides (64 crops of photos in
    place of ImageNet alone cost half of efficientnet-lite0's answers). A bias takes up the difference between
    the mean its channel had in the uncompressed network and has now. A batch-norm called several times gets
    the statistics of all calls together; a bias called several times is set by the first call.

    ``absolute``: statistics of the calibration data themselves, whatever those of the training were.
    """
    if not changed:
        return weights
    wanted = {n.outputs[0]: _kept_of(network, n, kept) for n in shifted(graph, network.structure)}
    before = {} if absolute else _before(graph, network, kept)
    first = _Pass(graph, weights, network, wanted, before)
    first.run()
    found = {**weights, **first.updates}
    if first.deltas and any(len(calls) > 1 for calls in first.statistics.values()):
        # biases once more, behind the statistics that will be used
        settled = {k: v for k, v in found.items() if k not in first.deltas}
        settled.update({b: weights[b] for b in first.deltas})
        again = _Pass(graph, settled, network, wanted, before, stored=True)
        again.run()
        found.update(again.updates)
    return found


class _Pass:
    """One pass over the calibration data.

    ``before``: what reached the uncompressed network's batch-norms, by name; ``stored``: batch-norms use the
    statistics in ``weights`` instead of those of the data.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor],
        network: Network,
        wanted: Mapping[str, Tensor],
        before: Mapping[str, Moments],
        stored: bool = False,
    ) -> None:
        self.graph = graph
        self.before = before
        self.weights = weights
        self.network = network
        self.wanted = wanted
        self.stored = stored
        self.updates: dict[str, Tensor] = {}
        self.statistics: dict[str, list[tuple[Moments, Moments | None]]] = {}
        self.deltas: dict[str, Tensor] = {}
        self.moments: dict[str, Moments] = {}
        self.normalised: dict[str, list[Node]] = {}
        for n in graph.nodes:
            if n.op == "batch_norm" and not stored:
                self.normalised.setdefault(n.inputs[0], []).append(n)
        self.watched = {*self.normalised, *wanted}
        self.owned = _owned(graph)
        self.scratch: dict[object, Tensor] = {}
        self.values: dict[str, list[Tensor]] = {}
        self.sizes: list[int] = []

    def run(self) -> None:
        """Run every segment: nodes up to and including one whose output is watched."""
        inputs = fitted(self.graph, self.network.calibration)
        total = inputs[0].shape[0]
        step = CHUNK if self.graph.fixed_batch is None else total
        columns = [x.split(step) for x in inputs]
        self.sizes = [part.shape[0] for part in columns[0]]
        self.values = {t: list(c) for t, c in zip(self.graph.inputs, columns, strict=True)}
        for t in self.graph.inputs:
            if t in self.watched:
                self._finish(t, [moments(x, 1) for x in self.values[t]])
        keys = self._keys()
        start = self._resumed(keys)
        segment: list[_Step] = []
        for i, (node, dead) in enumerate(schedule(self.graph)):
            if i < start:
                continue
            segment.append((i, node, dead))
            if any(t in self.watched for t in node.outputs):
                self._segment(segment, keys)
                segment = []
        # what follows the last statistic is not needed

    def _segment(self, steps: Sequence[_Step], keys: Sequence[bytes | None]) -> None:
        points = narrow_points(self.graph)
        seen: dict[str, list[Moments]] = {}
        passed: dict[int, list[list[Tensor]]] = {}
        after: dict[str, list[Tensor]] = {}
        for c, batch in enumerate(self.sizes):
            local = {t: parts[c] for t, parts in self.values.items()}
            for i, node, dead in steps:
                for name, value in zip(node.outputs, self._computed(node, local, batch, dead), strict=False):
                    local[name] = value
                    if name in self.watched:
                        seen.setdefault(name, []).append(self._moments(node, name, value))
                for name in dead:
                    local.pop(name, None)
                if i in points and points[i][0] not in self.watched:
                    passed.setdefault(i, []).append([local[t] for t in points[i]])
            for t, value in local.items():
                after.setdefault(t, []).append(value)
        self.values = after
        for i, chunks in passed.items():
            columns = [list(column) for column in zip(*chunks, strict=True)]
            self._remember(keys[i], dict(zip(points[i], columns, strict=True)))
        for name, parts in seen.items():
            self._finish(name, parts)

    def _computed(
        self, node: Node, local: dict[str, Tensor], batch: int, dead: Sequence[str]
    ) -> Sequence[Tensor]:
        if node.op == "batch_norm" and not self.stored:
            _, scale, offset, _, _ = node.inputs
            mean, var = self.moments[node.name]
            first = node.inputs[0]
            x, eps = local[first], node.attrs["eps"]
            if first in dead and first in self.owned:  # one pass over memory that nobody reads again
                factor = self.weights[scale] / torch.sqrt(var + eps)
                shape = [-1 if d == 1 else 1 for d in range(x.dim())]
                shift = (self.weights[offset] - mean * factor).reshape(shape)
                return (torch.addcmul(shift, x, factor.reshape(shape), out=x),)
            return (F.batch_norm(x, mean, var, self.weights[scale], self.weights[offset], False, 0.0, eps),)
        first = node.inputs[0]
        if node.op in ("relu", "add") and first in dead and first in self.owned:
            # memory that nobody reads again: a fresh tensor of megabytes costs more than the operation
            x, others = local[first], [local[t] for t in node.inputs[1:] if t in local]
            if node.op == "relu":
                return (x.relu_(),)
            if others and others[0].shape == x.shape and others[0].dtype == x.dtype:
                return (x.add_(others[0]),)
        return compute(self.graph, node, local, self.weights, batch)

    def _moments(self, node: Node, tensor: str, value: Tensor) -> Moments:
        if tensor in self.normalised:
            key = (value.shape, value.stride())
            if key not in self.scratch:
                self.scratch[key] = torch.empty_like(value)
            return moments(value, 1, self.scratch[key])
        mean = channel_mean(value, channel_axis(node))  # a bias needs no more
        return mean, mean.new_zeros(mean.shape)

    def _finish(self, tensor: str, parts: Sequence[Moments]) -> None:
        """All samples of a watched tensor were seen: settle the bias before it and the norm behind it."""
        mean, var = combined(parts, self.sizes)
        if tensor in self.wanted:
            node = self.graph.producer[tensor]
            bias = node.inputs[2]
            if bias not in self.deltas:
                self.deltas[bias] = (self.wanted[tensor] - mean).to(mean.dtype)
                self.updates[bias] = self.weights[bias] + self.deltas[bias]
            delta, mean = self.deltas[bias], mean + self.deltas[bias]
            rank = len(self.graph.tensors[tensor].shape)
            shape = [-1 if d == channel_axis(node) % rank else 1 for d in range(rank)]
            for part in self.values.get(tensor, ()):
                part.add_(delta.reshape(shape))
        for norm in self.normalised.get(tensor, ()):
            stored_mean, stored_var = norm.inputs[3:5]
            was = self.before.get(norm.name)
            self.moments[norm.name] = self._relative(norm, (mean, var), was)
            calls = self.statistics.setdefault(stored_mean, [])
            calls.append(((mean, var), was))
            together = _pooled([now for now, _ in calls])
            once = [m for _, m in calls if m is not None]
            found = self._relative(norm, together, _pooled(once) if once else None)
            self.updates[stored_mean], self.updates[stored_var] = found

    def _relative(self, norm: Node, now: Moments, was: Moments | None) -> Moments:
        """The trained statistics, changed as far as compression changes what reaches a batch-norm."""
        if was is None:
            return now
        mean, var = (self.weights[t] for t in norm.inputs[3:5])
        lacking = (_LEAST * var - was[1]).clamp_min(torch.finfo(var.dtype).tiny)
        ratio = (now[1] + lacking) / (was[1] + lacking)
        return mean + (now[0] - was[0]), var * ratio

    # -- what other policies computed already

    def _keys(self) -> list[bytes | None]:
        def more(node: Node) -> object:
            if node.name in self.before:
                return [content_digest(x) for x in self.before[node.name]]
            found = self.wanted.get(node.outputs[0])
            return None if found is None else content_digest(found)

        kind = b"stored" if self.stored else b"recalibrated" if self.before else b"absolute"
        return prefix_keys(self.graph, kind, self.weights, more)

    def _resumed(self, keys: Sequence[bytes | None]) -> int:
        found = self.network.prefixes.longest(keys)
        if found is None:
            return 0
        position, (values, updates, statistics, deltas) = found
        self.values = dict(values)
        self.updates, self.deltas = dict(updates), dict(deltas)
        self.statistics = {k: list(v) for k, v in statistics.items()}
        return position + 1

    def _remember(self, key: bytes | None, values: dict[str, list[Tensor]]) -> None:
        if key is not None:
            statistics = {k: tuple(v) for k, v in self.statistics.items()}
            state: Any = (values, dict(self.updates), statistics, dict(self.deltas))
            self.network.prefixes.put(key, state, sum(map(nbytes, values.values())))


def moments(value: Tensor, axis: int, scratch: Tensor | None = None) -> Moments:
    """Mean and (biased) variance per channel of one chunk, in two passes as the data is in the cache.

    ``scratch``: memory like ``value`` that may be written.
    """
    axis %= value.dim()
    dims = [d for d in range(value.dim()) if d != axis]
    shape = [-1 if d == axis else 1 for d in range(value.dim())]
    mean = value.mean(dims)
    return mean, torch.sub(value, mean.reshape(shape), out=scratch).square_().mean(dims)


def combined(parts: Sequence[Moments], counts: Sequence[int]) -> Moments:
    """Moments of all samples from those of chunks with ``counts`` samples each."""
    if len(parts) == 1:
        return parts[0]
    means = torch.stack([m for m, _ in parts]).double()
    variances = torch.stack([v for _, v in parts]).double()
    share = torch.tensor(counts, dtype=torch.float64)[:, None] / sum(counts)
    mean = (means * share).sum(0)
    var = ((variances + (means - mean).square()) * share).sum(0)
    return mean.to(parts[0][0].dtype), var.to(parts[0][1].dtype)


def _pooled(calls: Sequence[Moments]) -> Moments:
    """Mean and variance over equally large samples with the given (mean, variance) each."""
    if len(calls) == 1:
        return calls[0]
    means, variances = (torch.stack(column) for column in zip(*calls, strict=True))
    mean = means.mean(0)
    return mean, (variances + (means - mean).square()).mean(0)


def shifted(graph: Graph, structure: Structure) -> list[Node]:
    """Layers with a bias of their own that no batch-norm makes redundant."""
    return [
        n
        for n in graph.nodes
        if n.name in structure.layer_of_node
        and len(n.inputs) > 2
        and n.inputs[2]
        and not _feeds_norm(graph, n)
    ]


def _owned(graph: Graph) -> frozenset[str]:
    """Activations in memory of their own, which no view shares and no cache keeps."""
    remembered = {t for names in narrow_points(graph).values() for t in names}
    kept = {*graph.inputs, *graph.outputs, *remembered}
    return frozenset(
        n.outputs[0]
        for n in graph.nodes
        if n.op in _FRESH
        and n.outputs[0] not in kept
        and not any(r.op not in _READING for r in graph.consumers.get(n.outputs[0], ()))
    )


def _feeds_norm(graph: Graph, node: Node) -> bool:
    readers = graph.consumers.get(node.outputs[0], ())
    return len(readers) == 1 and readers[0].op == "batch_norm"


def _before(graph: Graph, network: Network, kept: Mapping[str, Tensor]) -> dict[str, Moments]:
    """What reached the uncompressed network's batch-norms, by name, of the channels that survive."""
    found = {}
    for norm in graph.nodes:
        known = network.norm_moments().get(norm.name) if norm.op == "batch_norm" else None
        if known is not None:
            # sliced as its parameters are
            parts = (
                prune(network.structure, {t: value}, kept)[t]
                for t, value in zip(norm.inputs[3:5], known, strict=True)
            )
            mean, var = parts
            found[norm.name] = mean, var
    return found


def _kept_of(network: Network, node: Node, kept: Mapping[str, Tensor]) -> Tensor:
    """Uncompressed means of a layer's outputs, of the channels that survive."""
    structure = network.structure
    layer = structure.layer_of_node[node.name]
    value = network.channel_means()[structure.graph.by_name[node.name].outputs[0]]
    if len(value) == structure.graph.params[layer.bias].shape[0]:
        return prune(structure, {layer.bias: value}, kept)[layer.bias]
    return value


__all__ = ["channel_axis", "channel_mean", "combined", "fitted", "moments", "recalibrate", "shifted"]
