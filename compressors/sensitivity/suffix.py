"""Answers of networks that differ from a reference in few places: only what follows a difference is computed.

The reference's activations on a chunk of samples are kept. A node of the changed network is computed when it
is another node, reads another weight, or reads a tensor that came out differently; everything else is what it
was. A tensor that comes out equal in spite of the change ends it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..execute import compute, schedule
from ..graph import VIEW_OPS, WEIGHT_OPS, Graph, Node, Structure
from ..recalibrate import Moments, channel_axis, channel_mean, moments
from ..resolve import Numerics
from ..rounding import Quantizing
from .changes import Change

#: Added to variances when they are compared, in units of their mean: channels that are dead stay dead.
_EPSILON = 1e-5


class Reference:
    """The uncompressed network on one chunk of samples: activations, moments per channel, answers.

    ``change``: the network itself, as a change of nothing. ``reuse`` False keeps no activations: every answer
    is then computed from the inputs on, with the same result.
    """

    @torch.no_grad()
    def __init__(
        self,
        structure: Structure,
        change: Change,
        inputs: Sequence[Tensor],
        numerics: Numerics,
        reuse: bool = True,
    ) -> None:
        self.structure = structure
        self.graph = change.graph
        self.weights = change.weights
        self.numerics = numerics
        self.reuse = reuse
        self.batch = inputs[0].shape[0]
        self.inputs = dict(zip(self.graph.inputs, inputs, strict=True))
        self.values: dict[str, Tensor] = dict(self.inputs)
        self.moments: dict[str, Moments] = {}
        kept = kept_tensors(self.graph) if reuse else frozenset(self.graph.inputs)
        local = dict(self.inputs)
        for node, dead in schedule(self.graph):
            found = compute(self.graph, node, local, self.weights, self.batch)
            for name, value in zip(node.outputs, found, strict=False):
                local[name] = value
                if name in kept:
                    self.values[name] = value
                if node.op in WEIGHT_OPS or node.op == "batch_norm":
                    self.moments[name] = moments(value, channel_axis(node))
            for name in dead:
                local.pop(name, None)
        self.outputs = tuple(local[t] for t in self.graph.outputs)

    @torch.no_grad()
    def answers(self, change: Change) -> tuple[Tensor, ...] | None:
        """Outputs of a changed network on the chunk, (batch, ...) each; None where none of them differs."""
        return _Suffix(self, change).run()


class _Suffix:
    """One pass over a changed network. ``changed``, ``dirty``: weights and tensors that are not as before."""

    def __init__(self, reference: Reference, change: Change) -> None:
        self.reference = reference
        self.change = change
        self.graph = change.graph
        self.weights = change.weights
        self.local: dict[str, Tensor] = {}
        self.dirty: set[str] = set()
        self.rounding: Quantizing | None = None
        if change.where.tensors or change.where.params:
            numerics = reference.numerics
            self.rounding = Quantizing(
                self.graph, dict(change.weights), change.where, change.policy, numerics
            )
            self.rounding.weights_first()
            self.weights = self.rounding.weights
        theirs = reference.weights
        self.changed = {n for n, w in self.weights.items() if w is not theirs.get(n)}

    def run(self) -> tuple[Tensor, ...] | None:
        for name in self.graph.inputs:
            self._take(name, self.reference.inputs[name], False)
        for node, dead in schedule(self.graph):
            self._step(node)
            for name in dead:
                self.local.pop(name, None)
        same = self.graph.outputs == self.reference.graph.outputs
        if same and not any(t in self.dirty for t in self.graph.outputs):
            return None
        return tuple(self._value(t) for t in self.graph.outputs)

    def _step(self, node: Node) -> None:
        changed = not self._as_before(node) or not self.dirty.isdisjoint(node.inputs)
        watched = self.rounding is not None and any(t in self.rounding.watched for t in node.outputs)
        if not (changed or watched) and self.reference.reuse:
            return
        if changed or not self.reference.reuse:
            operands = {t: self._value(t) for t in self.graph.activations_of(node)}
            found = compute(self.graph, node, operands, self.weights, self.reference.batch)
        else:
            found = [self._value(t) for t in node.outputs]
        for name, value in zip(node.outputs, found, strict=False):
            self._take(name, self._calibrated(node, name, value) if changed else value, changed)

    def _as_before(self, node: Node) -> bool:
        before = self.reference.graph.by_name.get(node.name)
        return (before is node or before == node) and self.changed.isdisjoint(node.inputs)

    def _take(self, name: str, value: Tensor, changed: bool) -> None:
        """Round a tensor where that is due, and note whether it is still the reference's."""
        if self.rounding is not None and name in self.rounding.watched:
            before, value = value, self.rounding.seen(name, value)
            changed = changed or value is not before
        was = self.reference.values.get(name)
        if changed and not (self.reference.reuse and was is not None and _equal(value, was)):
            self.dirty.add(name)
            self.local[name] = value
        elif not self.reference.reuse:
            self.local[name] = value

    def _value(self, name: str) -> Tensor:
        """A tensor of the changed network, the reference's where it is clean."""
        found = self.local.get(name)
        if found is None:
            found = self.reference.values.get(name)
        if found is None:  # the reference did not keep what is quickly computed again
            node = self.graph.producer[name]
            operands = {t: self._value(t) for t in self.graph.activations_of(node)}
            outputs = compute(self.graph, node, operands, self.weights, self.reference.batch)
            self.local.update(zip(node.outputs, outputs, strict=False))
            found = self.local[name]
        return found

    def _calibrated(self, node: Node, name: str, value: Tensor) -> Tensor:
        """Bring the channels' means, and variances where a batch-norm does, to the reference's.

        So far as calibration on all samples brings them to the statistics of training, calibration on these
        samples brings them to the uncompressed network's on these samples, and a change of nothing is none.
        """
        kind, wanted = self.change.statistics.get(node.name), self.reference.moments.get(name)
        if kind is None or wanted is None:
            return value
        axis = channel_axis(node) % value.dim()
        mean, var = (self._surviving(name, axis, m) for m in wanted)
        shape = [-1 if d == axis else 1 for d in range(value.dim())]
        if kind == "mean":
            return value.add_((mean - channel_mean(value, axis)).reshape(shape))
        small = float(_EPSILON * var.mean()) + 1e-12
        wide = torch.sqrt(var + small)
        if axis == 1 and value.numel() > value.shape[1]:
            return F.batch_norm(value, None, None, wide, mean, True, 0.0, small)
        own, spread = moments(value, axis)
        factor = wide / torch.sqrt(spread + small)
        return torch.addcmul((mean - own * factor).reshape(shape), value, factor.reshape(shape), out=value)

    def _surviving(self, name: str, axis: int, values: Tensor) -> Tensor:
        mask = surviving(self.reference.structure, self.change, name, axis, len(values))
        return values if mask is None else values[mask]


def surviving(structure: Structure, change: Change, name: str, dim: int, size: int) -> Tensor | None:
    """Which positions along a dimension of a tensor or parameter a change leaves, (size,) bool; None: all."""
    mask = None
    for group, units in change.kept.items():
        marks = structure.group[group].slices.get((name, dim))
        if marks is not None and len(marks) == size:
            chosen = torch.zeros(structure.group[group].size + 1, dtype=torch.bool)
            chosen[units] = True
            chosen[-1] = True  # positions marked -1 are not of this group
            one = chosen[torch.tensor(marks)]
            mask = one if mask is None else mask & one
    return mask


def kept_tensors(graph: Graph) -> frozenset[str]:
    """Activations worth keeping: all but those that one cheap operation reads, and nobody else."""
    found = {*graph.inputs, *graph.outputs}
    for tensor in graph.tensors:
        readers = graph.consumers.get(tensor, ())
        cheap = len(readers) == 1 and readers[0].op not in WEIGHT_OPS
        if not cheap or len(list(graph.activations_of(readers[0]))) > 1:
            found.add(tensor)
    return frozenset(found)


def kept_bytes(graph: Graph) -> int:
    """Memory of the kept activations, bytes a sample; views cost nothing."""
    views = {t for n in graph.nodes if n.op in VIEW_OPS for t in n.outputs}
    kinds = [graph.tensors[t] for t in kept_tensors(graph) - views]
    return 4 * sum(k.elements(2) - k.elements(1) for k in kinds)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a[:1], b[:1]) and torch.equal(a, b)


__all__ = ["Reference", "kept_bytes", "surviving"]
