"""Where hw_profiles and compressors meet: a target's facts as the policy space's `Abilities`."""

from __future__ import annotations

from collections.abc import Iterable

from compressors.policy import ResolvedPolicy
from compressors.resolve import Numerics
from compressors.space import Abilities, PolicySpace
from hw_profiles.target import Target

from .errors import UsageError
from .methods import METHODS, check_methods


def numerics_of(target: Target) -> Numerics:
    """How the target's runtime rounds, as compression simulates it."""
    facts = target.numerics
    activations = "s8-symmetric" if facts.activations == "float" else facts.activations
    floats = frozenset({"linear"}) if target.runtime.name == "onnxruntime" else frozenset({"linear", "conv"})
    return Numerics(
        activations=activations,
        weight_reserve=1 if facts.reduced_range_weights else 0,
        bias_bits=facts.bias_bits,
        quantises_between=facts.quantises_between,
        float_output=floats,
        fuses_before_integers=target.runtime.name == "onnxruntime",
        at_reads=facts.at_reads,
        narrow=facts.narrow_codes,
    )


def abilities_of(
    target: Target,
    methods: Iterable[str] | None = None,
    bits: Iterable[int] | None = None,
    min_keep: float | None = None,
    skip: Iterable[str] = (),
) -> Abilities:
    """What a policy may choose on a target, narrowed by the user's flags.

    Raises UsageError for an unknown method, and for bits the target has no kernels for.
    """
    chosen = tuple(methods) if methods is not None else METHODS
    check_methods(chosen)
    facts = target.abilities
    precisions = facts.integer_precisions
    if bits is not None:
        wanted = set(bits)
        precisions = tuple(p for p in precisions if p[0] in wanted and (p[1] in wanted or p[1] >= 16))
        missing = wanted - {w for w, _ in facts.integer_precisions} - {16, 32}
        if missing:
            have = ", ".join(f"w{w}a{a}" for w, a in facts.integer_precisions)
            lacking = ", ".join(map(str, sorted(missing)))
            raise UsageError(f"{target.name} has no kernels for {lacking}-bit weights; it has {have}")
    return Abilities(
        granularity=min(facts.granularity.int8, facts.granularity.fp32),
        depthwise_granularity=facts.granularity.depthwise,
        precisions=precisions,
        float_kernels=target.base_precision != "w8a8",
        integer_ops=frozenset(_operations(facts.integer_ops)),
        float_kinds=frozenset(facts.float_kinds),
        dynamic_ops=frozenset(facts.dynamic_ops),
        methods=frozenset(chosen),
        min_keep=0.125 if min_keep is None else min_keep,
        skip=tuple(skip),
        numerics=numerics_of(target),
    )


def base_policy_of(space: PolicySpace, target: Target) -> ResolvedPolicy:
    """The uncompressed network at the target's base precision."""
    if target.base_precision == "w8a8":
        return space.resolve(space.uniform(1.0, act_bits=8, weight_bits=8))
    return space.resolve(space.dense)


def _operations(kinds: Iterable[str]) -> Iterable[str]:
    """Target files say "depthwise" where it has kernels of its own; for a layer that is a convolution."""
    return ("conv" if k == "depthwise" else k for k in kinds)
