"""A network under compression: structure, weights, and what it does on calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .execute import run
from .graph import Graph, Structure
from .importance import Evidence, kept_units
from .memo import Memo
from .prefix import PrefixCache
from .recalibrate import Moments, channel_axis, channel_mean, fitted, moments
from .reconstruct import covariance, inputs_of
from .skeleton import SkeletonCache
from .structure import structure_of
from .trace import trace

#: Calibration samples used to find activation ranges (batch-norm takes all that the network holds).
RANGE_SAMPLES = 128
#: Bytes of rounded activations remembered between policies.
ROUNDED_BYTES = 160 << 20
#: Median |log ratio| of calibration data's variances to the trained ones beyond which these data are strange:
#: 0.02 to 0.03 on data of the training's kind, 0.10 on synthesised tones, 0.19 on crops of a few photos.
STRANGE = 0.075


class _Seen(NamedTuple):
    """What the uncompressed network does on calibration data: see the methods of `Network`."""

    means: Mapping[str, Tensor]
    covariances: Mapping[str, Tensor]
    norms: Mapping[str, Moments]


@dataclass
class Network:
    """A traced network with what compression needs to know of it: structure, weights, calibration data."""

    structure: Structure
    weights: Mapping[str, Tensor]
    calibration: tuple[Tensor, ...]
    skeletons: SkeletonCache
    _gradients: dict[str, Tensor] | None = field(default=None, repr=False)
    _orders: dict[tuple[str, str], Tensor] = field(default_factory=dict, repr=False)
    _seen: _Seen | None = field(default=None, repr=False)
    #: Shared by all policies of these calibration data; a replaced network starts with an empty one.
    prefixes: PrefixCache = field(default_factory=PrefixCache, init=False, repr=False, compare=False)
    rounded: PrefixCache = field(
        default_factory=lambda: PrefixCache(ROUNDED_BYTES), init=False, repr=False, compare=False
    )
    predictors: Memo = field(default_factory=Memo, init=False, repr=False, compare=False)
    factors: Memo = field(default_factory=Memo, init=False, repr=False, compare=False)

    @classmethod
    def from_module(
        cls, module: nn.Module, example: Sequence[Tensor], calibration: Sequence[Tensor]
    ) -> Network:
        """Trace a module; ``calibration`` are inputs, shape (samples, ...) each."""
        traced = trace(module, example)
        structure = structure_of(traced.graph)
        weights = {k: fast_layout(v.detach().clone()) for k, v in traced.weights.items()}
        return cls(structure, weights, tuple(fast_layout(x) for x in calibration), SkeletonCache(structure))

    def rank_channels(self, criterion: str) -> None:
        """Order every group's channels by importance now, rather than when a policy first prunes it."""
        for group in self.structure.groups:
            kept_units(self.evidence, group, criterion, group.size)

    @property
    def evidence(self) -> Evidence:
        """What importance criteria may look at."""
        return Evidence(self.structure, self.weights, self.gradients, self.covariances, self._orders)

    @torch.enable_grad()
    def gradients(self) -> Mapping[str, Tensor]:
        """Gradients of the loss against the network's own answers on calibration data, computed once."""
        if self._gradients is None:
            names = [x.weight for x in self.structure.layers]
            leaves = {k: self.weights[k].clone().requires_grad_(True) for k in names}
            inputs = tuple(x[:RANGE_SAMPLES] for x in self.calibration)
            outputs = batched(self.structure.graph, {**self.weights, **leaves}, inputs)
            first = outputs[0]
            if first.dim() == 2 and first.shape[1] > 1:
                loss = F.cross_entropy(first, first.detach().argmax(1))
            else:
                loss = first.square().mean()
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            self._gradients = {k: g for k, g in zip(names, found, strict=True) if g is not None}
        return self._gradients

    def channel_means(self) -> Mapping[str, Tensor]:
        """Mean of every weight-bearing node's output per channel, uncompressed, computed once."""
        return self._statistics().means

    def covariances(self) -> Mapping[str, Tensor]:
        """Channel covariance (C, C) of the layers' inputs, uncompressed, computed once."""
        return self._statistics().covariances

    def norm_moments(self) -> Mapping[str, Moments]:
        """(mean, variance) per channel of what reaches every batch-norm, by its name, uncompressed."""
        return self._statistics().norms

    def on_other_calibration(self, inputs: tuple[Tensor, ...]) -> Network:
        """The same network with other calibration data, for all but the covariances."""
        found = replace(self, calibration=inputs, _seen=None)
        found._seen = found._statistics()._replace(covariances=self.covariances())
        return found

    @property
    def strange_data(self) -> bool:
        """Whether calibration data are unlike those of the training: batch-norms' variances are others."""
        apart = []
        for node in self.structure.graph.nodes:
            if node.name in self.norm_moments():
                stored, now = self.weights[node.inputs[4]], self.norm_moments()[node.name][1]
                alive = stored > 0
                apart.append((now[alive].clamp_min(1e-30) / stored[alive]).log().abs())
        return bool(apart) and float(torch.cat(apart).median()) > STRANGE

    @torch.no_grad()
    def _statistics(self) -> _Seen:
        if self._seen is None:
            means: dict[str, Tensor] = {}
            covariances: dict[str, Tensor] = {}
            found: dict[str, Moments] = {}
            nodes = [n for n in self.structure.graph.nodes if n.name in self.structure.layer_of_node]
            axis = {n.outputs[0]: channel_axis(n) for n in nodes}
            read = inputs_of(self.structure)
            normed: dict[str, list[str]] = {}
            for n in self.structure.graph.nodes:
                if n.op == "batch_norm":
                    normed.setdefault(n.inputs[0], []).append(n.name)

            def look(name: str, value: Tensor) -> Tensor:
                if name in normed:
                    found.update(dict.fromkeys(normed[name], moments(value, 1)))
                if name in axis:
                    means[name] = channel_mean(value, axis[name])
                if name in read:
                    covariances[name] = covariance(value[:RANGE_SAMPLES], read[name])
                return value

            inputs = fitted(self.structure.graph, self.calibration)
            for name, value in zip(self.structure.graph.inputs, inputs, strict=True):
                if name in normed:
                    look(name, value)
            run(self.structure.graph, self.weights, inputs, look, hooked=frozenset((*axis, *read, *normed)))
            self._seen = _Seen(means, covariances, found)
        return self._seen


def fast_layout(value: Tensor) -> Tensor:
    """Images and 2-d convolution weights with channels last, which CPU convolutions run fastest on."""
    if value.dim() != 4:
        return value
    if value.shape[1] == 1 and value.is_contiguous():
        # both layouts describe one channel; the strides tell torch which one the result is to have
        _, _, high, wide = value.shape
        return value.as_strided(value.shape, (high * wide, 1, wide, 1))
    return value.contiguous(memory_format=torch.channels_last)


def batched(graph: Graph, weights: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Outputs for any number of samples, also of a network that takes a fixed batch only."""
    if graph.fixed_batch is None:
        return run(graph, weights, inputs)
    step = graph.fixed_batch
    parts = [
        run(graph, weights, tuple(x[i : i + step] for x in inputs))
        for i in range(0, inputs[0].shape[0] - step + 1, step)
    ]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


__all__ = ["RANGE_SAMPLES", "ROUNDED_BYTES", "STRANGE", "Network", "batched", "fast_layout"]
