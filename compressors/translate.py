"""A policy of one space in another: what the other target can execute that is nearest to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .factors.base import FACTORISATIONS
from .graph import Structure
from .policy import Factor, Policy, ResolvedPolicy
from .resolve import resolved_rank, weight_shape
from .space import PolicySpace


@dataclass(frozen=True)
class Translation:
    """A policy in a space. ``point`` (d,) in [0, 1] resolves to ``policy``; ``exact``: it is the same one."""

    point: tuple[float, ...]
    policy: ResolvedPolicy
    exact: bool


def proposal_of(
    structure: Structure, policy: ResolvedPolicy, options: Mapping[str, Sequence[object]] | None = None
) -> Policy:
    """A resolved policy in ratios again, to be resolved for another target.

    ``options``: of a layer, the (method, ratio) that are offered; one of them that gives this very rank is
    taken. Else the first rank's ratio stands for all of a layer's.
    """
    rank = {}
    for name, factor in policy.factors.items():
        shape = weight_shape(structure, structure.layer[name], policy.kept)
        full = FACTORISATIONS.find(factor.method).full_rank(shape)
        rank[name] = (factor.method, factor.rank[0] / full[0])
        for value in (options or {}).get(name, ()):
            if isinstance(value, tuple) and _rank_of(structure, name, policy, value) == factor:
                rank[name] = value
                break
    return Policy(
        {g.name: policy.kept.get(g.name, g.size) / g.size for g in structure.groups},
        rank,
        dict(policy.weight_bits),
        dict(policy.act_bits),
        frozenset(policy.removed),
        policy.criterion,
        policy.ranges,
        policy.scales,
    )


def _rank_of(
    structure: Structure, layer: str, policy: ResolvedPolicy, wanted: tuple[str, float]
) -> Factor | None:
    return resolved_rank(structure, structure.layer[layer], policy.kept, wanted)


def translated(policy: ResolvedPolicy, space: PolicySpace) -> Translation:
    """The nearest policy of a space, choice by choice; the same one where it is one of its.

    Raises PolicyError for a policy of another network.
    """
    space.check(policy)
    options = {c.subject: c.values for c in space.choices if c.kind == "rank"}
    point = tuple(float(x) for x in space.encode(proposal_of(space.structure, policy, options)))
    found = space.resolve(space.decode(point))
    return Translation(point, found, found == policy)


__all__ = ["Translation", "proposal_of", "translated"]
