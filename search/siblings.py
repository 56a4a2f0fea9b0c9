"""Which runtime of the same device would be faster: a network priced on the device's other targets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from compressors.policy import DYNAMIC, FLOAT, ResolvedPolicy
from hw_profiles.errors import HwProfilesError
from hw_profiles.target import Target, load_target, siblings

from .errors import TailorbirdError
from .lowering import Lowering
from .results import Number, Sibling

if TYPE_CHECKING:
    from .setup import Setup


def other_runtimes(setup: Setup, policy: ResolvedPolicy | None) -> list[Sibling]:
    """The predicted latency of a network on every other target of the device; of the base without policy.

    Bits that the other runtime has no kernels for are left out: the network is then priced in float.
    """
    network = "the picked network" if policy is not None else "the base network"
    chosen = policy if policy is not None else setup.base_policy
    own = setup.priced(chosen)
    found = []
    for name in siblings(setup.target):
        target = load_target(name)
        told, form = in_precisions_of(target, chosen)
        entry = Sibling(target=name, network=network + form, runtime=target.runtime.name)
        try:
            costs = _priced(setup, target, told)
        except (TailorbirdError, HwProfilesError) as problem:
            entry["why"] = str(problem).splitlines()[0]
        else:
            entry["latency_ms"] = _number(costs)
            entry["verdict"] = verdict(own, costs)
        found.append(entry)
    return found


def in_precisions_of(target: Target, policy: ResolvedPolicy) -> tuple[ResolvedPolicy, str]:
    """(the policy as the target can execute it, " in float" where that took its bits away)."""
    weights = {w for w, _ in target.abilities.integer_precisions} | {FLOAT}
    acts = {a for _, a in target.abilities.integer_precisions} | {FLOAT}
    runs = policy.ranges != DYNAMIC or bool(target.abilities.dynamic_ops)
    if runs and set(policy.weight_bits.values()) <= weights and set(policy.act_bits.values()) <= acts:
        return policy, ""
    plain = replace(
        policy,
        weight_bits=dict.fromkeys(policy.weight_bits, FLOAT),
        act_bits=dict.fromkeys(policy.act_bits, FLOAT),
    )
    return plain, " in float"


def _priced(setup: Setup, target: Target, policy: ResolvedPolicy) -> dict[str, float]:
    lowering = Lowering(
        setup.space.structure,
        target,
        setup.lowering.batch,
        setup.lowering.predictor.threads,
        setup.scorer.network.weights,
    )
    return {name: float(values[0]) for name, values in lowering.costs([policy]).items()}


def verdict(own: Mapping[str, float], other: Mapping[str, float]) -> str:
    """`0.61x, faster`: "faster" or "slower" where the 90 % interval of the ratio excludes 1.

    Both intervals are taken as log-normal and their errors as independent.
    """
    ratio = math.log(other["latency_ms"] / own["latency_ms"])
    widths = [math.log(c["latency_high_ms"] / c["latency_ms"]) for c in (own, other)]
    if abs(ratio) <= math.hypot(*widths):
        return f"{math.exp(ratio):.2f}x, too close to tell"
    return f"{math.exp(ratio):.2f}x, {'faster' if ratio < 0 else 'slower'}"


def _number(costs: Mapping[str, float]) -> Number:
    return Number(
        value=costs["latency_ms"],
        source="predicted",
        low=costs["latency_low_ms"],
        high=costs["latency_high_ms"],
    )
