"""Doing a resolved policy to a network: prune, factorise, recalibrate, fold, quantise, correct biases.

The same policy on the same machine and thread count gives the same network, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .compressed import Compressed
from .factorize import factorize
from .graph import Graph
from .network import Network, fast_layout
from .policy import Factor, ResolvedPolicy
from .prefix import content_digest
from .prune import kept_indices, prune
from .recalibrate import recalibrate
from .reconstruct import reconstruct
from .resolve import Numerics
from .rounding import quantized
from .skeleton import Skeleton, concrete, placed, unknowns


@torch.no_grad()
def compress(
    network: Network, policy: ResolvedPolicy, numerics: Numerics, weights: dict[str, Tensor] | None = None
) -> Compressed:
    """The compressed network a resolved policy describes, ready to simulate and to export.

    ``weights``: what `shrunk` returned, where that is known already.
    """
    return finish(network, policy, numerics, reduced(network, policy, weights))


@torch.no_grad()
def shrunk(network: Network, policy: ResolvedPolicy) -> dict[str, Tensor]:
    """Weights after pruning and factorisation, before recalibration."""
    skeleton = network.skeletons.of(policy)
    kept = kept_indices(network.evidence, policy.kept, policy.criterion)
    weights = prune(network.structure, network.weights, kept)
    if kept:
        covariances = network.covariances()
        weights = reconstruct(
            network.structure, network.weights, weights, kept, covariances, network.predictors
        )
    for name, factor in policy.factors.items():
        layer = network.structure.layer[name]
        parts = _factorized(network, weights[layer.weight], factor, layer.op == "conv_transpose")
        weights.update(zip(skeleton.factor_weights[name], parts, strict=True))
    return {k: fast_layout(v) for k, v in weights.items() if k in skeleton.unfolded.params}


def _factorized(network: Network, weight: Tensor, factor: Factor, transposed: bool) -> list[Tensor]:
    key = (factor, transposed, content_digest(weight))
    held = network.factors.get(key)
    return list(held or network.factors.put(key, tuple(factorize(weight, factor, transposed))))


@torch.no_grad()
def reduced(
    network: Network, policy: ResolvedPolicy, weights: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Weights of the float network (`Skeleton.unfolded`) after pruning, factorisation and recalibration.

    ``weights``: as in `compress`.
    """
    return reduced_network(network, policy, weights)[1]


@torch.no_grad()
def reduced_network(
    network: Network, policy: ResolvedPolicy, weights: dict[str, Tensor] | None = None
) -> tuple[Graph, dict[str, Tensor]]:
    """The float network with its batch-norms, and the weights as of `reduced`."""
    skeleton = network.skeletons.of(policy)
    kept = kept_indices(network.evidence, policy.kept, policy.criterion)
    weights = shrunk(network, policy) if weights is None else dict(weights)
    unfolded = concrete(skeleton.unfolded, skeleton, unknowns(policy, network.structure))
    found = recalibrate(unfolded, weights, network, kept, changed=is_reduced(network, policy))
    return unfolded, found


@torch.no_grad()
def finish(
    network: Network, policy: ResolvedPolicy, numerics: Numerics, weights: Mapping[str, Tensor]
) -> Compressed:
    """Fold the float network's batch-norms and quantise what the policy says."""
    skeleton = network.skeletons.of(policy)
    return round_folded(network, policy, numerics, fold(skeleton, weights))


@torch.no_grad()
def round_folded(
    network: Network, policy: ResolvedPolicy, numerics: Numerics, weights: Mapping[str, Tensor]
) -> Compressed:
    """Quantise a folded network's weights, find activation ranges, correct and round biases."""
    skeleton = network.skeletons.of(policy)
    graph = concrete(skeleton.graph, skeleton, unknowns(policy, network.structure))
    graph, where = placed(graph, network.structure, skeleton, policy, numerics)
    return quantized(graph, weights, where, network.calibration, policy, numerics, skeleton, network.rounded)


@torch.no_grad()
def folded_network(
    network: Network, policy: ResolvedPolicy, weights: dict[str, Tensor] | None = None
) -> tuple[Graph, dict[str, Tensor]]:
    """The float network, its batch-norms folded into the weights. ``weights``: as in `compress`."""
    skeleton = network.skeletons.of(policy)
    found = fold(skeleton, reduced(network, policy, weights))
    graph = concrete(skeleton.graph, skeleton, unknowns(policy, network.structure))
    return graph, {name: fast_layout(value) for name, value in found.items()}


def is_reduced(network: Network, policy: ResolvedPolicy) -> bool:
    """Whether a policy prunes, factorises or removes anything, so that statistics must be found anew."""
    cut = any(policy.kept.get(g.name, g.size) < g.size for g in network.structure.groups)
    return cut or bool(policy.factors) or bool(policy.removed)


def fold(skeleton: Skeleton, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold batch-norm into the weights before it: w * g / s and (b - m) * g / s + beta, s = sqrt(v + eps)."""
    found = dict(weights)
    by_name = skeleton.unfolded.by_name
    for folding in skeleton.foldings:
        node = by_name[folding.into[0]]
        _, scale, offset, mean, var = folding.norm.inputs
        factor = weights[scale] / torch.sqrt(weights[var] + folding.norm.attrs["eps"])
        axis = 1 if node.op == "conv_transpose" else 0
        shape = [1] * weights[node.inputs[1]].dim()
        shape[axis] = -1
        bias = weights[node.inputs[2]] if node.inputs[2] else torch.zeros_like(weights[mean])
        found[node.inputs[1]] = weights[node.inputs[1]] * factor.reshape(shape)
        found[f"{node.inputs[1]}.folded_bias"] = (bias - weights[mean]) * factor + weights[offset]
    found.update({own: found[bias] for own, bias in skeleton.bias_copies.items()})
    return {k: v for k, v in found.items() if k in skeleton.graph.params}


__all__ = [
    "compress",
    "finish",
    "fold",
    "folded_network",
    "is_reduced",
    "reduced",
    "reduced_network",
    "round_folded",
    "shrunk",
]
