"""How the ranges of integer activations are found, where nobody says it: dynamic ones where they win twice.

Dynamic ranges are found in every run, for what integer layers read; all else stays float. That costs a pass
over each such tensor and saves the rounding of everything between. Convolutions have no such kernels that
are worth it and would stay float. Which is better is told by the network with all that it can have in 8 bits:
dynamic ranges are taken where they are predicted to be no slower *and* lose less on calibration data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from compressors.policy import DYNAMIC, FLOAT, Policy, ResolvedPolicy
from compressors.space import Abilities, PolicySpace

from .errors import UsageError
from .lowering import Lowering

if TYPE_CHECKING:
    from compressors.graph import Graph
    from compressors.network import Network
    from hw_profiles.target import Target

#: Not the name of a way to find ranges: the better one of `STATIC` and dynamic ones.
AUTO = "auto"
STATIC = Policy().ranges
#: Calibration samples on which the two are compared.
SAMPLES = 32


@dataclass(frozen=True)
class Trial:
    """The network with all in 8 bits that can be: predicted milliseconds, nats lost a sample."""

    ranges: str
    latency_ms: float
    loss: float


def chosen_ranges(
    asked: str, abilities: Abilities, target: Target, network: Network, batch: int
) -> tuple[str, str]:
    """(the way to find ranges, a sentence that says why or ""). ``abilities``: whatever their ranges.

    Raises UsageError where dynamic ranges are asked for and the target has no kernels, or several samples
    are run at once: they would share one range, and no sample's answer would be its own.
    """
    graph = network.structure.graph
    if asked == DYNAMIC:
        _check(abilities, target, graph, batch)
    if asked != AUTO:
        return asked, ""
    dynamic = replace(abilities, ranges=DYNAMIC)
    if "quantize" not in abilities.methods or not _alone(graph, batch):
        return STATIC, ""
    if not any(dynamic.has_integer_kernel(x) and "bits" not in x.fixed for x in network.structure.layers):
        return STATIC, ""
    lowering = Lowering(network.structure, target, batch, weights=network.weights)
    policies = {name: _all_integer(network, abilities, name) for name in (STATIC, DYNAMIC)}
    times = lowering.costs(list(policies.values()))["latency_ms"]
    if times[1] > times[0] or not policies[DYNAMIC].act_bits:
        return STATIC, ""
    trials = [
        Trial(name, float(ms), _loss(network, policy, abilities))
        for (name, policy), ms in zip(policies.items(), times, strict=True)
    ]
    static, other = trials
    if other.loss >= static.loss:
        return STATIC, ""
    return DYNAMIC, (
        f"ranges of activations are found in every run: all in 8 bits {other.latency_ms:.3g} ms and "
        f"{other.loss:.3g} nats, against {static.latency_ms:.3g} ms and {static.loss:.3g} with fixed ones"
    )


def _alone(graph: Graph, batch: int) -> bool:
    """Whether a run's ranges are those of what is simulated: one sample, or the network's fixed batch."""
    return batch == 1 or graph.fixed_batch is not None


def _check(abilities: Abilities, target: Target, graph: Graph, batch: int) -> None:
    if not abilities.dynamic_ops:
        raise UsageError(
            f"{target.name} has no kernels that find ranges of activations as they run.",
            f"Leave --set ranges={DYNAMIC} out.",
        )
    if not _alone(graph, batch):
        raise UsageError(
            f"with {batch=} all samples of a run would share one range of activations.",
            f"Use --batch 1, or leave --set ranges={DYNAMIC} out.",
        )


def _all_integer(network: Network, abilities: Abilities, ranges: str) -> ResolvedPolicy:
    space = PolicySpace(network.structure, replace(abilities, ranges=ranges))
    return space.resolve(space.uniform(1.0, max(abilities.act_bits, default=FLOAT)))


def _loss(network: Network, policy: ResolvedPolicy, abilities: Abilities) -> float:
    """Nats that a policy loses a sample, on calibration samples that are evenly spaced."""
    import torch

    from compressors.apply import compress
    from compressors.network import batched
    from compressors.sensitivity.divergence import divergence, outputs_of
    from compressors.simulate import answers

    graph, total = network.structure.graph, network.calibration[0].shape[0]
    count = min(total, SAMPLES)
    if graph.fixed_batch is not None:
        count = max(1, count // graph.fixed_batch) * graph.fixed_batch
    at = torch.linspace(0, total - 1, count).long()
    inputs = tuple(x[at] for x in network.calibration)
    with torch.no_grad():
        before = batched(graph, network.weights, inputs)
        after = answers(compress(network, policy, abilities.numerics), inputs)
    return divergence(outputs_of(graph, before), before, after) / count


__all__ = ["AUTO", "STATIC", "Trial", "chosen_ranges"]
