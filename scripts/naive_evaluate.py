"""The naive way to score one policy, in eager modules; `scripts/bench_evaluate.py` measures ours against it.

deepcopy, prune with torch-pruning, batch-norm recalibration in training mode, fold, fake-quantise with
torch's own operation, score the whole validation set. The arithmetic is ours (same channels, whose ranking
it is given for nothing, same reconstruction and factorisation, same range search, same bias correction), so
that both sides get the same number of right answers and differ in speed alone. Nothing is remembered from one
policy to the next.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from compressors.apply import shrunk
from compressors.compressed import ActivationCode
from compressors.network import RANGE_SAMPLES, Network
from compressors.policy import ResolvedPolicy
from compressors.prune import kept_indices
from compressors.quantize import find_code, quantize_weight
from compressors.resolve import Numerics
from compressors.skeleton import placement
from search.task import Task

LAYERS = (nn.Conv2d, nn.Linear)
_KINDS: dict[str, str] = {
    "Conv2d": "conv", "Linear": "linear", "ReLU": "relu", "MaxPool2d": "max_pool",
    "relu": "relu", "add": "add", "adaptive_avg_pool2d": "mean",
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """How the naive side runs: samples a batch, torch threads, memory format."""

    batch: int = 128
    threads: int = 1
    channels_last: bool = True

    def laid_out(self, x: Tensor) -> Tensor:
        """The tensor in the chosen memory format."""
        form = torch.channels_last if self.channels_last else torch.contiguous_format
        return x.contiguous(memory_format=form) if x.dim() == 4 else x


class FakeQuantise(nn.Module):
    """Finds its range at the first call, then rounds."""

    def __init__(self, bits: int, numerics: Numerics, method: str) -> None:
        super().__init__()
        self.bits, self.numerics, self.method = bits, numerics, method
        self.code: ActivationCode | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, same shape."""
        if self.code is None:
            self.code = find_code(x, self.bits, self.numerics, self.method)
        c = self.code
        return torch.fake_quantize_per_tensor_affine(x, c.scale, c.zero_point, c.low, c.high)


@dataclass
class Naive:
    """The naive evaluator of one task. ``phases`` adds up process seconds by what they went into."""

    task: Task
    network: Network
    numerics: Numerics
    choice: Choice = Choice()
    phases: dict[str, float] = field(default_factory=dict)

    @torch.no_grad()
    def right(self, policy: ResolvedPolicy) -> tuple[int, float, float]:
        """(right answers, process seconds, wall seconds) of one policy."""
        torch.set_num_threads(self.choice.threads)
        cpu, wall = time.process_time(), time.perf_counter()
        forgetful = replace(self.network)  # a copy with empty memories
        weights = self._timed("reconstruct, factorise", lambda: shrunk(forgetful, policy))
        net = self._timed("deepcopy, prune", lambda: self._pruned(policy, weights))
        self._timed("recalibrate 512", lambda: self._recalibrated(net, policy))
        traced = self._timed("fold, weights", lambda: self._quantised(net, policy))
        self._timed("ranges 128", lambda: traced(self._inputs(self.task.calibration, 0, RANGE_SAMPLES)))
        total = self._timed("validation", lambda: self._scored(traced))
        return total, time.process_time() - cpu, time.perf_counter() - wall

    def _timed(self, phase: str, call: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = call()
        self.phases[phase] = self.phases.get(phase, 0.0) + time.process_time() - start
        return result

    def _inputs(self, inputs: tuple[Tensor, ...], start: int, end: int) -> Tensor:
        return self.choice.laid_out(inputs[0][start:end])

    def _pruned(self, policy: ResolvedPolicy, weights: dict[str, Tensor]) -> nn.Module:
        import torch_pruning as tp

        net = copy.deepcopy(self.task.network)
        kept = kept_indices(self.network.evidence, policy.kept, policy.criterion)
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            if kept:
                graph = tp.DependencyGraph().build_dependency(net, self.task.example, verbose=False)
                for name, units in kept.items():
                    root: Any = net.get_submodule(name)
                    pruner = graph.get_pruner_of_module(root)
                    size = self.network.structure.group[name].size
                    gone = sorted(set(range(size)) - set(units.tolist()))
                    graph.get_pruning_group(root, pruner.prune_out_channels, idxs=gone).prune()
        for block in policy.removed:
            _replace(net, block, nn.ReLU())
        self._weighted(net, policy, weights)
        net = net.eval()
        moved: Any = net  # torch's stubs lack memory_format
        return moved.to(memory_format=torch.channels_last) if self.choice.channels_last else net

    def _weighted(self, net: nn.Module, policy: ResolvedPolicy, weights: dict[str, Tensor]) -> None:
        skeleton = self.network.skeletons.of(policy)
        for name, module in list(net.named_modules()):
            if not isinstance(module, LAYERS):
                continue
            if name not in policy.factors:
                module.weight = nn.Parameter(weights[f"{name}.weight"].clone())
                continue
            nodes = [n for n in skeleton.unfolded.nodes if skeleton.layer_of.get(n.name) == name]
            parts = [_layer(n, weights, module) for n in nodes]
            parts[-1].bias = module.bias
            _replace(net, name, nn.Sequential(*parts))

    def _recalibrated(self, net: nn.Module, policy: ResolvedPolicy) -> None:
        """Batch-norms in training mode, cumulative average; biases take up the change of their means."""
        if not (policy.factors or policy.removed or kept_indices(self.network.evidence, policy.kept, "l1")):
            return
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
        for m in norms:
            m.reset_running_stats()
            m.momentum = None
            m.train()
        handles = self._bias_hooks(net, policy)
        samples = len(self.task.calibration[0])
        for i in range(0, samples, self.choice.batch):
            net(self._inputs(self.task.calibration, i, i + self.choice.batch))
        for handle in handles:
            handle()
        for m in norms:
            m.eval()

    def _bias_hooks(self, net: nn.Module, policy: ResolvedPolicy) -> list[Callable[[], None]]:
        """Batch by batch a bias is moved so that its channels keep their mean; at the end by the average."""
        from compressors.recalibrate import _kept_of, shifted

        skeleton = self.network.skeletons.of(policy)
        kept = kept_indices(self.network.evidence, policy.kept, policy.criterion)
        done: list[Callable[[], None]] = []
        for node in shifted(skeleton.unfolded, self.network.structure):
            module: Any = net.get_submodule(self.network.structure.layer_of_node[node.name].name)
            module = module[-1] if isinstance(module, nn.Sequential) else module
            wanted = _kept_of(self.network, node, kept)
            seen: list[Tensor] = []

            def hook(m: Any, _: Any, y: Tensor, wanted: Tensor = wanted, seen: list[Tensor] = seen) -> Tensor:
                axes = [d for d in range(y.dim()) if d != 1]
                delta = wanted - y.mean(axes)
                seen.append(delta)
                return y + delta.reshape([-1 if d == 1 else 1 for d in range(y.dim())])

            handle = module.register_forward_hook(hook)

            def finish(m: Any = module, handle: Any = handle, seen: list[Tensor] = seen) -> None:
                handle.remove()
                m.bias = nn.Parameter(m.bias + torch.stack(seen).mean(0))

            done.append(finish)
        return done

    def _quantised(self, net: nn.Module, policy: ResolvedPolicy) -> fx.GraphModule:
        """Fold batch-norms, round weights per channel, insert fake-quantise as prepare_fx would."""
        traced = _folded(fx.symbolic_trace(net))
        skeleton = self.network.skeletons.of(policy)
        where = placement(self.network.structure, skeleton, policy)
        kinds = {"conv", "linear", "relu", "add", "max_pool", "mean"}
        ours = [n for n in skeleton.graph.nodes if n.op in kinds]
        theirs = [n for n in traced.graph.nodes if _kind(traced, n) in kinds]
        if [n.op for n in ours] != [_kind(traced, n) for n in theirs]:
            raise RuntimeError("the naive network's operations are not those of the policy's")
        outputs = {n.outputs[0]: t for n, t in zip(ours, theirs, strict=True)}
        outputs[skeleton.graph.inputs[0]] = next(n for n in traced.graph.nodes if n.op == "placeholder")
        for mine, node in zip(ours, theirs, strict=True):
            if mine.op in ("conv", "linear") and mine.inputs[1] in where.params:
                module: Any = traced.get_submodule(str(node.target))
                self._rounded(module, where.params[mine.inputs[1]], policy.scales)
        for name, bits in where.tensors.items():
            if name in outputs:
                _insert(traced, outputs[name], FakeQuantise(bits, self.numerics, policy.ranges))
        traced.recompile()
        return traced

    def _rounded(self, module: Any, bits: int, scales: str) -> None:
        exact = module.weight.detach()
        rounded, _ = quantize_weight(exact, bits, 0, self.numerics, scales)
        change = rounded - exact
        error = change.sum((2, 3)) if change.dim() == 4 else change
        module.weight = nn.Parameter(rounded)

        def correct(m: Any, inputs: Any, y: Tensor) -> Tensor:
            handle.remove()
            x = inputs[0]
            delta = error @ x.mean([d for d in range(x.dim()) if d != 1])
            m.bias = nn.Parameter(m.bias - delta)
            found: Tensor = y - delta.reshape([-1 if d == 1 else 1 for d in range(y.dim())])
            return found

        if module.bias is not None:
            handle = module.register_forward_hook(correct)

    def _scored(self, net: nn.Module) -> int:
        split, step = self.task.validation, self.choice.batch
        total = 0.0
        for i in range(0, len(split), step):
            part = split[slice(i, i + step)]
            total += float(
                self.task.metric.score((net(self._inputs(part.inputs, 0, step)),), part.targets).sum()
            )
        return round(total)


def _replace(net: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, module)


def _layer(node: Any, weights: dict[str, Tensor], like: nn.Module) -> Any:
    weight = weights[node.inputs[1]]
    made: Any
    if isinstance(like, nn.Linear):
        made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    else:
        a = node.attrs
        made = nn.Conv2d(
            weight.shape[1],
            weight.shape[0],
            (weight.shape[2], weight.shape[3]),
            a["stride"],
            a["padding"],
            bias=False,
        )
    made.weight = nn.Parameter(weight.clone())
    return made


def _folded(traced: fx.GraphModule) -> fx.GraphModule:
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or not isinstance(modules[str(node.target)], nn.BatchNorm2d):
            continue
        before: Any = node.args[0]
        conv, norm = modules[str(before.target)], modules[str(node.target)]
        _replace(traced, str(before.target), fuse_conv_bn_eval(conv, norm))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.recompile()
    return traced


def _kind(traced: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        return _KINDS.get(type(traced.get_submodule(str(node.target))).__name__, "")
    return _KINDS.get(getattr(node.target, "__name__", ""), "") if node.op == "call_function" else ""


def _insert(traced: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    name = f"rounded_{node.name}"
    traced.add_submodule(name, module)
    with traced.graph.inserting_after(node):
        made = traced.graph.call_module(name, (node,))
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
