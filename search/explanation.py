"""Why the picked policy is what it is, choice by choice, as `results.json` has it (`agents.explain`)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agents.contract import Suggestion
from compressors.graph import Structure

from .results import Change, Explained

if TYPE_CHECKING:
    from agents.explain import Explanation, Step

    from .setup import Setup
    from .study import Study


def explanation(setup: Setup, study: Study, digest: str) -> list[Explained]:
    """The choices of an evaluated policy, in the order of the network's layers.

    [] where no suggestion led to the policy, so that its coordinates are not known.
    """
    from agents.explain import explain
    from agents.pricing import Pricer

    entries = (*study.known, *study.entries)
    found = next((e.suggestion for e in entries if e.suggestion.policy.digest == digest), None)
    indices = None if found is None else indices_of(setup, found)
    if indices is None:
        return []
    structure = setup.space.structure
    losses = setup.losses_around([int(v) for v in indices])
    rows = [_row(structure, e) for e in explain(Pricer(setup.problem), indices, losses)]
    order = {x.name: i for i, x in enumerate(structure.layers)}
    return sorted(rows, key=lambda r: order.get(r["layer"], -1))


def indices_of(setup: Setup, suggestion: Suggestion) -> NDArray[np.int64] | None:
    """Value indices (d,) of a suggestion, unless its point is of another space (an earlier run's)."""
    space = setup.space
    if len(suggestion.point) != space.dimension:
        return None
    indices = space.indices(suggestion.point)
    same = space.resolve(space.at(indices)).digest == suggestion.policy.digest
    return indices if same else None


def _row(structure: Structure, e: Explanation) -> Explained:
    return Explained(
        name=e.name,
        kind=e.kind,
        subject=e.subject,
        layer=first_layer(structure, e.kind, e.subject),
        value=e.value,
        latency_ms=e.latency_ms,
        risk=_finite(e.risk),
        step_down=_change(e.step_down),
        step_up=_change(e.step_up),
        why=e.why,
    )


def first_layer(structure: Structure, kind: str, subject: str) -> str:
    """The first layer that a choice concerns, "" for what lies before all of them."""
    if kind == "keep":
        named = structure.group[subject].layers
    elif kind == "removed":
        named = structure.block[subject].layers
    else:
        named = (subject,)
    return next((x.name for x in structure.layers if x.name in named), "")


def _change(step: Step | None) -> Change | None:
    return None if step is None else Change(latency_ms=step[0], risk=_finite(step[1]))


def _finite(value: float) -> float | None:
    """What was not measured is NaN, which JSON lacks."""
    return value if math.isfinite(value) else None


__all__ = ["explanation", "first_layer", "indices_of"]
