"""Simulated inference: the compressed network in torch, quantise/dequantise exactly where export puts it.

Where gradients are wanted everything is float arithmetic on rounded values. Answers are computed as integer
kernels compute them: sums of integer codes (exact in float32 below 2^24), one multiplication to the output's
scale, one rounding (Jacob et al. 2018, eq. 4), so that a runtime's codes are met and not only its values.
Dynamic ranges are each sample's own, whatever the batch: as of a runtime that is given one sample at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .compressed import ActivationCode, Compressed, DynamicCode, WeightCode
from .execute import compute, run, schedule
from .graph import WEIGHT_OPS, Node
from .quantize import dynamic_codes, fake_quantize
from .recalibrate import channel_axis
from .resolve import fused_output


def simulate(compressed: Compressed, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Outputs for a batch, shape (batch, ...) each; differentiable in the weights outside no_grad."""
    codes = compressed.activations
    if codes and compressed.codes and not torch.is_grad_enabled():
        return _Integers(compressed).run(inputs)

    def rounded(name: str, value: Tensor) -> Tensor:
        return fake_quantize(value, codes[name])

    return run(
        compressed.graph, compressed.weights, inputs, rounded if codes else None, hooked=frozenset(codes)
    )


@torch.no_grad()
def answers(compressed: Compressed, inputs: Sequence[Tensor], batch: int = 128) -> tuple[Tensor, ...]:
    """Outputs for any number of samples, computed ``batch`` at a time."""
    step = compressed.graph.fixed_batch or batch
    total = inputs[0].shape[0]
    parts = [simulate(compressed, tuple(x[i : i + step] for x in inputs)) for i in range(0, total, step)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


@dataclass
class _Integers:
    """One batch through the network, integer layers on integers.

    ``units``: scale of the tensors that are held in units of their code, not yet rounded. ``scales``: of the
    tensors whose ranges are dynamic, as they broadcast to them.
    """

    compressed: Compressed
    values: dict[str, Tensor] = field(default_factory=dict)
    units: dict[str, float] = field(default_factory=dict)
    scales: dict[str, Tensor] = field(default_factory=dict)

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        graph, batch = self.compressed.graph, inputs[0].shape[0]
        for name, value in zip(graph.inputs, inputs, strict=True):
            self.values[name] = self._rounded(name, value)
        for node, dead in schedule(graph):
            whole = self._integer(node, batch)
            several = (
                compute(graph, node, self.values, self.compressed.weights, batch)
                if whole is None
                else (whole,)
            )
            if node.op == "relu" and node.inputs[0] in self.units:
                self.units[node.outputs[0]] = self.units[node.inputs[0]]
            for name, value in zip(node.outputs, several, strict=False):
                self.values[name] = self._rounded(name, value)
            for name in dead:
                del self.values[name]
                self.scales.pop(name, None)
        return tuple(self.values[t] for t in graph.outputs)

    def _rounded(self, name: str, value: Tensor) -> Tensor:
        code = self.compressed.activations.get(name)
        if code is None:
            return value
        if isinstance(code, DynamicCode):
            codes, self.scales[name] = dynamic_codes(value, code)
            return codes.mul_(self.scales[name])
        if self.units.pop(name, None) is None:
            return fake_quantize(value, code)
        return value.round().clamp_(code.low - code.zero_point, code.high - code.zero_point).mul_(code.scale)

    def _integer(self, node: Node, batch: int) -> Tensor | None:
        """Result of a layer on integer codes; None where it is none."""
        c = self.compressed
        if node.op not in WEIGHT_OPS:
            return None
        x, weight, *rest = node.inputs
        code, weights = c.activations.get(x), c.codes.get(weight)
        if code is None or weights is None:
            return None
        if isinstance(code, DynamicCode):
            return self._dynamic(node, weights, batch)
        # as float32, like the runtime: its scales are
        scale = weights.scale.to(torch.float32) * torch.tensor(code.scale, dtype=torch.float32)
        operands: dict[str, Tensor] = {x: torch.div(self.values[x], code.scale).round_()}
        bias = rest[0] if rest else ""
        changed: Mapping[str, Tensor] = {weight: self._codes(weight)}
        if bias:
            exact = c.weights[bias].double() / (weights.scale.double() * code.scale)
            changed = {**changed, bias: exact.round().to(torch.float32)}
        found = compute(c.graph, node, operands, {**c.weights, **changed}, batch)[0]
        target = self._target(node)
        if target is not None:
            scale = scale / torch.tensor(target.scale, dtype=torch.float32)
            self.units[node.outputs[0]] = target.scale
        axis = channel_axis(node) % found.dim()
        return found.mul_(scale.reshape([-1 if d == axis else 1 for d in range(found.dim())]))

    def _dynamic(self, node: Node, weights: WeightCode, batch: int) -> Tensor:
        """A linear layer on codes of dynamic ranges: sums times both scales, plus a float bias."""
        c, (x, weight, *rest) = self.compressed, node.inputs
        bare = node.with_(inputs=(x, weight, ""))
        operands = {x: torch.div(self.values[x], self.scales[x]).round_()}
        found = compute(c.graph, bare, operands, {weight: self._codes(weight)}, batch)[0]
        found.mul_(self.scales[x] * weights.scale.to(torch.float32))
        return found.add_(c.weights[rest[0]]) if rest and rest[0] else found

    def _target(self, node: Node) -> ActivationCode | None:
        """The code that the layer's kernel writes, where nothing but ReLU comes before it."""
        out = node.outputs[0]
        last = fused_output(self.compressed.graph, node)
        code = self.compressed.activations.get(last)
        if not isinstance(code, ActivationCode):
            return None
        if last == out:
            return code
        made = self.compressed.graph.producer[last]
        alone = made.op == "relu" and made.inputs == (out,) and out not in self.compressed.activations
        return code if alone and len(self.compressed.graph.consumers[out]) == 1 else None

    def _codes(self, weight: str) -> Tensor:
        w, code = self.compressed.weights[weight], self.compressed.codes[weight]
        shape = [-1 if d == code.axis else 1 for d in range(w.dim())]
        return torch.div(w, code.scale.reshape(shape)).round_()
