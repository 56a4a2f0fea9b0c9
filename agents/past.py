"""What is kept of a finished study, so that later studies of any network can learn from it: a pure value.

Policies are kept as fractions of each coordinate's range (0 its smallest value, 1 as it was), costs as shares
of the uncompressed network's: both mean the same for other networks, targets and budgets.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressors.policy import ResolvedPolicy

from .contract import LIMITS, Outcome, Problem, Suggestion
from .errors import HistoryError
from .features import COORDINATE, NETWORK, VERSION, budget_shares, features
from .pareto import best, front, reference_gain
from .pricing import Indices, Pricer

Floats = NDArray[np.float64]

SCHEMA_VERSION = 1
#: Policies kept of one study: members of its front, and runners-up at the budget.
FRONT, RUNNERS_UP = 12, 3
#: Largest number of coordinates that is believed.
MOST_COORDINATES = 100_000
_DIGITS = 4


@dataclass(frozen=True)
class Elite:
    """A policy that a study found good at what it costs.

    ``fractions``: per coordinate value index over the last one, 0..1; None where it means nothing, its block
    being removed. ``gain``: metric less the uncompressed network's, in the metric's unit, higher is
    better. ``shares``: each cost over the uncompressed network's.
    """

    fractions: tuple[float | None, ...]
    gain: float
    shares: Mapping[str, float]


@dataclass(frozen=True)
class PastStudy:
    """One finished study.

    ``run`` tells studies apart, ``network`` is the structure's digest, ``task`` the fingerprint of weights
    and data. ``budget``: limits as shares. ``coordinates``: names, ``kind:subject``. ``rows`` (d, F) and
    ``overall`` (G,): `features.Features`. ``elites``: best first, then along the front.
    """

    run: str
    network: str
    task: str
    target: str
    agent: str
    objective: str
    evaluations: int
    budget: Mapping[str, float]
    coordinates: tuple[str, ...]
    rows: tuple[tuple[float, ...], ...]
    overall: tuple[float, ...]
    elites: tuple[Elite, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON document; ``from_dict`` reads it back."""
        return {
            "schema_version": SCHEMA_VERSION,
            "features": VERSION,
            "run": self.run,
            "network": self.network,
            "task": self.task,
            "target": self.target,
            "agent": self.agent,
            "objective": self.objective,
            "evaluations": self.evaluations,
            "budget": dict(sorted(self.budget.items())),
            "coordinates": list(self.coordinates),
            "rows": [list(r) for r in self.rows],
            "overall": list(self.overall),
            "elites": [
                {"fractions": list(e.fractions), "gain": e.gain, "shares": dict(sorted(e.shares.items()))}
                for e in self.elites
            ],
        }

    def to_json(self) -> str:
        """Canonical JSON text."""
        return json.dumps(self.to_dict(), separators=(",", ":"), sort_keys=True, allow_nan=False)

    @cached_property
    def digest(self) -> str:
        """sha256 (first 16 hex digits) of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    @classmethod
    def from_dict(cls, doc: Any) -> PastStudy:
        """Read what ``to_dict`` wrote. Raises HistoryError naming what is wrong."""
        if not isinstance(doc, Mapping):
            raise HistoryError("not a study: no JSON object.")
        for key, version in (("schema_version", SCHEMA_VERSION), ("features", VERSION)):
            if doc.get(key) != version:
                raise HistoryError(f"a study of another version: {key} {doc.get(key)!r}, not {version}.")
        try:
            names = tuple(_text(doc, "coordinates", n) for n in _items(doc, "coordinates"))
            if len(names) > MOST_COORDINATES or len(set(names)) < len(names):
                raise HistoryError(f"not a study: {len(names)} coordinates, {len(set(names))} names.")
            return cls(
                **{k: _text(doc, k, doc[k]) for k in ("run", "network", "task", "target", "agent")},
                objective=_text(doc, "objective", doc["objective"]),
                evaluations=int(_number("evaluations", doc["evaluations"], 0.0)),
                budget=_shares("budget", doc["budget"]),
                coordinates=names,
                rows=tuple(_row("rows", r, len(COORDINATE)) for r in _sized(doc, "rows", len(names))),
                overall=_row("overall", doc["overall"], len(NETWORK)),
                elites=tuple(_elite(e, len(names)) for e in _items(doc, "elites")),
            )
        except KeyError as e:
            raise HistoryError(f"not a study: {e.args[0]} missing.") from e


def _items(doc: Mapping[str, Any], key: str) -> list[Any]:
    if not isinstance(doc[key], list):
        raise HistoryError(f"not a study: {key} is no list.")
    return list(doc[key])


def _sized(doc: Mapping[str, Any], key: str, size: int) -> list[Any]:
    found = _items(doc, key)
    if len(found) != size:
        raise HistoryError(f"not a study: {len(found)} {key} for {size} coordinates.")
    return found


def _text(doc: Mapping[str, Any], key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise HistoryError(f"not a study: {key} is no text.")
    return value


def _number(key: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # an integer of a thousand digits
        number = math.inf
    if not (math.isfinite(number) and low <= number <= high):
        raise HistoryError(f"not a study: {key} holds {value!r:.80}.")
    return number


def _row(key: str, values: Any, size: int) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) != size:
        raise HistoryError(f"not a study: {key} has not {size} numbers.")
    return tuple(_number(key, v) for v in values)


def _shares(key: str, values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping):
        raise HistoryError(f"not a study: {key} is no object.")
    return {str(k): _number(key, v, 0.0) for k, v in values.items() if k in LIMITS.values()}


def _elite(doc: Any, size: int) -> Elite:
    if not isinstance(doc, Mapping):
        raise HistoryError("not a study: an elite is no object.")
    fractions = tuple(
        None if f is None else _number("fractions", f, 0.0, 1.0) for f in _sized(doc, "fractions", size)
    )
    return Elite(fractions, _number("gain", doc["gain"]), _shares("shares", doc["shares"]))


# -- made of a study that has ended


def past_study(
    problem: Problem,
    told: Sequence[tuple[Suggestion, Outcome]],
    *,
    run: str,
    task: str,
    target: str,
    agent: str,
) -> PastStudy | None:
    """What is to be kept of a study; None where it found nothing that works."""
    outcomes = [o for _, o in told]
    chosen = _chosen(problem, outcomes)
    if not chosen:
        return None
    pricer = Pricer(problem)
    base = pricer.exact(pricer.top)
    found = features(pricer)
    base_gain = problem.gain(problem.base_accuracy)
    elites = [
        Elite(
            fractions(problem, problem.space.indices(told[k][0].point), outcomes[k].policy),
            round(problem.gain(_accuracy(outcomes[k])) - base_gain, 6),
            _cost_shares(problem, outcomes[k].costs, base),
        )
        for k in chosen
    ]
    return PastStudy(
        run=run,
        network=problem.space.structure.graph.digest,
        task=task,
        target=target,
        agent=agent,
        objective=problem.objective,
        evaluations=len(told),
        budget={k: round(v, 6) for k, v in budget_shares(problem.budget, base).items()},
        coordinates=tuple(c.name for c in problem.space.choices),
        rows=tuple(tuple(round(float(v), _DIGITS) for v in row) for row in found.coordinates),
        overall=tuple(round(float(v), _DIGITS) for v in found.network),
        elites=tuple(elites),
    )


def fractions(problem: Problem, indices: Indices, policy: ResolvedPolicy) -> tuple[float | None, ...]:
    """Where in its range each coordinate of a policy is, 0..1 (d,); None where it means nothing.

    A rank that saves nothing was left out in resolving: such a layer counts as not factorised.
    """
    alive: Mapping[str, Mapping[str, object]] = {
        "keep": policy.kept,
        "rank": policy.weight_bits,
        "weight_bits": policy.weight_bits,
        "act_bits": policy.act_bits,
    }
    found: list[float | None] = []
    for choice, index in zip(problem.space.choices, indices, strict=True):
        last = len(choice.values) - 1
        if choice.kind in alive and choice.subject not in alive[choice.kind]:
            found.append(None)
        elif last == 0 or (choice.kind == "rank" and choice.subject not in policy.factors):
            found.append(1.0)
        else:
            found.append(round(int(index) / last, _DIGITS))
    return tuple(found)


def _chosen(problem: Problem, outcomes: Sequence[Outcome]) -> list[int]:
    """Positions of the outcomes to keep: the best, the front (thinned out by cost), runners-up at the budget.

    Collapsed networks at the front's low end teach nothing: what is a fifth of the metric below is left out.
    """
    key = problem.budget.latency_key
    floor = reference_gain(problem)
    on = [k for k in front(outcomes, problem, key) if problem.gain(_accuracy(outcomes[k])) >= floor]
    if len(on) > FRONT:
        on = [on[i] for i in np.unique(np.linspace(0, len(on) - 1, FRONT).round().astype(int))]
    first = best(outcomes, problem)
    others = [
        k for k, o in enumerate(outcomes) if k not in on and k != first and o.feasible and not o.stopped_early
    ]
    others = [k for k in others if (a := outcomes[k].accuracy) is not None and problem.gain(a) >= floor]
    others.sort(key=lambda k: -problem.gain(_accuracy(outcomes[k])))
    return list(dict.fromkeys([*([] if first is None else [first]), *on, *others[:RUNNERS_UP]]))


def _accuracy(outcome: Outcome) -> float:
    return math.nan if outcome.accuracy is None else outcome.accuracy


def _cost_shares(problem: Problem, costs: Mapping[str, float], base: Mapping[str, float]) -> dict[str, float]:
    """Each cost that a budget may limit over the uncompressed network's; a risk bound counts as latency."""
    found = {}
    for name in LIMITS.values():
        key = problem.budget.latency_key if name == "latency_ms" else name
        if key in costs and key in base and base[key] > 0 and math.isfinite(costs[key]):
            found[name] = round(costs[key] / base[key], 6)
    return found


__all__ = ["Elite", "PastStudy", "fractions", "past_study"]
