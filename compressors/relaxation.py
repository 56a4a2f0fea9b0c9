"""The network relaxed: a mixture of every coordinate's values, differentiable in the mixture's weights.

What ProxylessNAS (Cai et al. 2019, section 3.1) calls an over-parameterised network, made of a trained one.
Gates are one weight a value and coordinate, 0 or more, of sum 1; one-hot gates are a policy.

| coordinate | how its values are mixed |
|---|---|
| keep | masks of input channels, in the order in which compression removes channels; `mixed_weights` |
| rank, weight bits | sums of weights; `mixed_weights`, `mixed_bits` |
| activation bits | the tensor plus shares of its rounding errors; ranges of the uncompressed network |
| removed | ``gate * shortcut + (1 - gate) * block`` |

Recalibration is part of it: batch-norms take the batch's own statistics, layers with a bias and no batch-norm
keep their channels' means. Both count relative to what the uncompressed network has on the same batch, so
that it gives exactly its own answers. What is left out, beside what `mixed_weights` says: ranges of
activations follow neither pruning nor the rounding before them, tensors inside factorised layers are not
rounded, and recalibration also takes up what rounding does to variances.

Gradients pass straight through the rounding of activations (Bengio et al. 2013).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .compressed import ActivationCode, Code
from .errors import PolicyError
from .execute import compute, run, schedule
from .graph import VIEW_OPS, Node
from .mixed_bits import MixedBits
from .mixed_weights import Mask, MixedWeights
from .network import RANGE_SAMPLES, Network, fast_layout
from .quantize import code_of, fake_quantize
from .recalibrate import channel_axis, channel_mean, fitted, shifted
from .resolve import Numerics
from .space import PolicySpace

#: Codes of one tensor by bits.
Codes = dict[int, Code]


@dataclass(frozen=True)
class _Batch:
    """One batch and what the uncompressed network says of it.

    ``norms``: per batch-norm the (scale, shift) behind its own normalisation at which it is the stored one;
    ``means``: channel means of outputs that recalibration keeps.
    """

    inputs: tuple[Tensor, ...]
    answers: tuple[Tensor, ...]
    norms: Mapping[str, tuple[Tensor, Tensor]]
    means: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Mixture:
    """Everything that one setting of the gates determines before data flows."""

    weights: Mapping[str, Tensor]
    tied: Mapping[str, Tensor]
    rounding: Mapping[str, Mapping[int, Tensor]]
    reading: Mapping[str, Mapping[int, Tensor]]
    removed: Mapping[str, Tensor]
    gates: Sequence[Tensor]


class RelaxedNetwork:
    """A `Network` whose policy is a mixture; implements `agents.contract.Relaxation`.

    ``batches`` are inputs as the network takes them; step ``k`` uses batch ``k`` modulo their number.
    ``corrected`` False leaves recalibration and reconstruction out: what remains is the bare arithmetic.
    """

    def __init__(
        self,
        network: Network,
        space: PolicySpace,
        numerics: Numerics,
        batches: Sequence[tuple[Tensor, ...]],
        corrected: bool = True,
    ) -> None:
        self.network = network
        self.space = space
        self.numerics = numerics.under(space.abilities.ranges)
        self.corrected = corrected
        self.graph = network.structure.graph
        self.batches = [tuple(fast_layout(x) for x in b) for b in batches]
        dtype = next(w.dtype for w in network.weights.values() if w.is_floating_point())
        self.bits = MixedBits(space, dtype)
        self.mixed = MixedWeights(network, space, numerics, self.bits, corrected)
        self.codes = self._codes()
        self._dtype = dtype
        self._shifted = {n.outputs[0]: n for n in shifted(self.graph, network.structure)}
        self._blocks = {b.output: b for b in network.structure.blocks if f"removed:{b.name}" in self.bits.at}
        self._known: dict[int, _Batch] = {}

    def step(
        self, gates: Sequence[NDArray[np.float64]], batch: int
    ) -> tuple[float, list[NDArray[np.float64]]]:
        """Loss in nats a sample (`divergence`) on batch ``batch``, and its gradient, shaped as ``gates``."""
        leaves = self._leaves(gates)
        with torch.enable_grad():
            data = self._batch(batch % len(self.batches))
            loss = divergence(self._answers(leaves, data), data.answers)
            found = (
                torch.autograd.grad(loss, leaves, allow_unused=True)
                if loss.requires_grad
                else [None] * len(leaves)
            )
        zeros = (np.zeros(len(g)) for g in gates)
        return float(loss.detach()), [
            z if g is None else g.double().numpy() for g, z in zip(found, zeros, strict=True)
        ]

    @torch.no_grad()
    def answers(self, gates: Sequence[NDArray[np.float64]], batch: int) -> tuple[Tensor, ...]:
        """Outputs for one batch."""
        return self._answers(self._leaves(gates), self._batch(batch % len(self.batches)))

    def _leaves(self, gates: Sequence[NDArray[np.float64]]) -> list[Tensor]:
        if [len(g) for g in gates] != [len(c.values) for c in self.space.choices]:
            raise PolicyError("gates are one array a coordinate, with one number a value")
        return [torch.tensor(np.asarray(g), dtype=self._dtype, requires_grad=True) for g in gates]

    # -- the forward pass

    def _answers(self, gates: Sequence[Tensor], data: _Batch) -> tuple[Tensor, ...]:
        mixture = self._mixture(gates)
        values = dict(zip(self.graph.inputs, data.inputs, strict=True))
        for name in self.graph.inputs:
            values[name] = self._settled(name, values, mixture, data)
        for node, dead in schedule(self.graph):
            for name, value in zip(node.outputs, self._computed(node, values, mixture, data), strict=False):
                values[name] = value
                values[name] = self._settled(name, values, mixture, data)
            for name in dead:
                del values[name]
        return tuple(values[t] for t in self.graph.outputs)

    def _mixture(self, gates: Sequence[Tensor]) -> _Mixture:
        structure, reads = self.network.structure, self.numerics.at_reads
        shares = (
            {g.name: self.bits.tensors(gates, g.name) for g in structure.tensor_groups} if not reads else {}
        )
        group_of = structure.tensor_group_of
        at_layers = {
            n: self.bits.reads(gates, group_of[t], layer.name)
            for n, layer in structure.layer_of_node.items()
            if reads and (t := self.graph.by_name[n].inputs[0]) in self.codes
        }
        removed = {}
        for block in self._blocks.values():
            i = self.bits.at[f"removed:{block.name}"]
            removed[block.output] = gates[i][self.space.choices[i].values.index(True)]
        rounding = {t: shares[group_of[t]] for t in self.codes} if not reads else {}
        mixed, tied = self.mixed.of(gates)
        weights = {**self.network.weights, **mixed}
        return _Mixture(weights, {**weights, **tied}, rounding, at_layers, removed, gates)

    def _computed(
        self, node: Node, values: dict[str, Tensor], mixture: _Mixture, data: _Batch
    ) -> Sequence[Tensor]:
        x = node.inputs[0]
        if node.name in data.norms:
            scale, shift = data.norms[node.name]
            return (F.batch_norm(values[x], None, None, scale, shift, True, 0.0, node.attrs["eps"]),)
        if node.op in ("layer_norm", "group_norm"):
            found = self._normalised(node, values[x], mixture)
            if found is not None:
                return (found,)
        read: Mapping[str, Tensor] = values
        if node.op in ("matmul", "sdpa") and x in values:
            mask = self._mask(x, len(self.graph.tensors[x].shape) - 1, mixture)
            read = values if mask is None else {**values, x: values[x] * mask}
        elif node.name in mixture.reading:
            read = {**values, x: rounded(values[x], self.codes[x], mixture.reading[node.name])}
        weights = mixture.weights if node.name in self.network.structure.layer_of_node else mixture.tied
        return compute(self.graph, node, read, weights, data.inputs[0].shape[0])

    def _settled(self, name: str, values: Mapping[str, Tensor], mixture: _Mixture, data: _Batch) -> Tensor:
        """A tensor as others read it: its channels' means kept, rounded, and the shortcut's share."""
        value = values[name]
        if name in data.means:
            axis = channel_axis(self._shifted[name]) % value.dim()
            shift = data.means[name] - channel_mean(value, axis)
            value = value + shift.reshape([-1 if d == axis else 1 for d in range(value.dim())])
        if name in mixture.rounding:
            value = rounded(value, self.codes[name], mixture.rounding[name])
        if name in mixture.removed:
            value = torch.lerp(value, values[self._blocks[name].shortcut], mixture.removed[name])
        return value

    # -- channels that are masked

    def _mask(self, tensor: str, dim: int, mixture: _Mixture) -> Tensor | None:
        """Share that keeps each position of a dimension, (positions,); None where no choice removes any."""
        masks: Sequence[Mask] = self.mixed.masks.get((tensor, dim), ())
        found: Tensor | None = None
        for mask in masks:
            own = mask.of(mixture.gates)
            found = own if found is None else found * own
        return found

    def _normalised(self, node: Node, x: Tensor, mixture: _Mixture) -> Tensor | None:
        """Layer or group norm with every position weighed by its mask; None where nothing is masked."""
        groups = node.attrs["groups"] if node.op == "group_norm" else None
        dims = [1] if groups is not None else [x.dim() - 1 - d for d in range(node.attrs["dims"])]
        weigh = x.new_ones(())
        masked = False
        for d in dims:
            mask = self._mask(node.inputs[0], d, mixture)
            if mask is not None:
                masked = True
                weigh = weigh * mask.reshape([-1 if k == d else 1 for k in range(x.dim())])
        if not masked:
            return None
        wide = x if groups is None else x.unflatten(1, (groups, -1))
        weigh = weigh.expand_as(x) if groups is None else weigh.expand_as(x).unflatten(1, (groups, -1))
        over = dims if groups is None else list(range(2, wide.dim()))
        total = weigh.sum(over, keepdim=True)
        mean = (wide * weigh).sum(over, keepdim=True) / total
        var = ((wide - mean).square() * weigh).sum(over, keepdim=True) / total
        even = ((wide - mean) * torch.rsqrt(var + node.attrs["eps"])).reshape(x.shape)
        scale, shift = (mixture.weights[t] if t else None for t in node.inputs[1:3])
        if groups is not None:
            shape = [-1 if d == 1 else 1 for d in range(x.dim())]
            scale, shift = (None if p is None else p.reshape(shape) for p in (scale, shift))
        even = even if scale is None else even * scale
        return even if shift is None else even + shift

    # -- what the uncompressed network says

    def _batch(self, k: int) -> _Batch:
        if k not in self._known:
            self._known[k] = self._reference(self.batches[k])
        return self._known[k]

    @torch.no_grad()
    def _reference(self, inputs: tuple[Tensor, ...]) -> _Batch:
        normed: dict[str, list[Node]] = {}
        for n in self.graph.nodes:
            if n.op == "batch_norm" and self.corrected:
                normed.setdefault(n.inputs[0], []).append(n)
        means: dict[str, Tensor] = {}
        norms: dict[str, tuple[Tensor, Tensor]] = {}

        def look(name: str, value: Tensor) -> Tensor:
            for node in normed.get(name, ()):
                if value.numel() > value.shape[1]:  # one value a channel has no variance
                    norms[node.name] = self._affine(node, value)
            if name in self._shifted and self.corrected:
                means[name] = channel_mean(value, channel_axis(self._shifted[name]))
            return value

        hooked = frozenset((*normed, *self._shifted))
        answers = run(self.graph, self.network.weights, inputs, look, hooked=hooked)
        return _Batch(inputs, answers, norms, means)

    def _affine(self, node: Node, value: Tensor) -> tuple[Tensor, Tensor]:
        """(scale, shift) that make of the batch's own normalisation the stored one."""
        scale, offset, mean, var = (self.network.weights[t] for t in node.inputs[1:])
        eps = node.attrs["eps"]
        own_var, own_mean = torch.var_mean(value, [d for d in range(value.dim()) if d != 1], correction=0)
        factor = scale / torch.sqrt(var + eps)
        return factor * torch.sqrt(own_var + eps), offset + (own_mean - mean) * factor

    @torch.no_grad()
    def _codes(self) -> dict[str, Codes]:
        """Quantisers of every tensor that is rounded anywhere, as found on calibration data."""
        structure = self.network.structure
        wanted = {
            t: bits for g in structure.tensor_groups if (bits := self.bits.offered(g.name)) for t in g.tensors
        }
        if self.numerics.at_reads:
            read = {self.graph.by_name[n].inputs[0] for n in structure.layer_of_node}
            wanted = {t: bits for t, bits in wanted.items() if t in read}
        found: dict[str, Codes] = {}
        known: dict[str, Codes] = {}

        def look(name: str, value: Tensor) -> Tensor:
            method = self.space.abilities.ranges
            if self._inherits(name, known):
                known[name] = known[self.graph.producer[name].inputs[0]]
            else:
                codes = {b: code_of(value, b, self.numerics, method, self.graph, name) for b in wanted[name]}
                found[name] = known[name] = codes
            return value

        if wanted:
            inputs = tuple(x[:RANGE_SAMPLES] for x in fitted(self.graph, self.network.calibration))
            run(self.graph, self.network.weights, inputs, look, hooked=frozenset(wanted))
        return found

    def _inherits(self, name: str, known: Mapping[str, Codes]) -> bool:
        """Whether a tensor holds nothing but rounded values of the one before it: rounding it is idle."""
        node = self.graph.producer.get(name)
        if node is None or self.numerics.at_reads or node.inputs[0] not in known:
            return False
        moves = node.op in VIEW_OPS or node.op == "max_pool"
        moves = moves or (node.op == "upsample" and node.attrs["mode"] == "nearest")
        return moves or (
            node.op == "relu" and all(_starts_at_zero(c) for c in known[node.inputs[0]].values())
        )


def _starts_at_zero(code: Code) -> bool:
    return isinstance(code, ActivationCode) and code.low == code.zero_point


class _Rounded(torch.autograd.Function):
    """``x + sum_b share_b (round_b(x) - x)``; straight through to x, exact in the shares."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shares: Tensor, codes: Sequence[Code]) -> Tensor:
        out = x
        errors = []
        for k, code in enumerate(codes):
            error = fake_quantize(x, code).sub_(x)
            errors.append(error)
            out = torch.add(out, error * shares[k]) if k else torch.addcmul(out, error, shares[k])
        ctx.save_for_backward(*errors)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads
        shares = torch.stack([(grad * error).sum() for error in ctx.saved_tensors])
        return grad, shares, None


def rounded(x: Tensor, codes: Codes, shares: Mapping[int, Tensor]) -> Tensor:
    """A tensor of which ``shares[bits]`` is rounded to so many bits."""
    bits = [b for b in codes if b in shares]
    if not bits:
        return x
    apply: Any = _Rounded.apply  # untyped in torch
    found: Tensor = apply(x, torch.stack([shares[b] for b in bits]), [codes[b] for b in bits])
    return found


def divergence(outputs: Sequence[Tensor], answers: Sequence[Tensor]) -> Tensor:
    """Distance from the uncompressed network's ``answers``, a scalar, summed over outputs.

    Of (batch, classes): KL divergence of the softmaxes in nats a sample. Of any other float output: mean
    squared error over the answers' variance. Integer outputs do not count.
    """
    total = torch.zeros(())
    for ours, theirs in zip(outputs, answers, strict=True):
        if not theirs.is_floating_point():
            continue
        if theirs.dim() == 2 and theirs.shape[1] > 1:
            log_p, log_q = F.log_softmax(theirs, 1), F.log_softmax(ours, 1)
            total = total + (log_p.exp() * (log_p - log_q)).sum(1).mean()
        else:
            total = total + F.mse_loss(ours, theirs) / theirs.var(correction=0).clamp_min(1e-12)
    return total


__all__ = ["RelaxedNetwork", "divergence", "rounded"]
