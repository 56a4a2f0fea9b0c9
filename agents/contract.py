"""The agents' contract: what a problem is, what an agent suggests and what it is told.

Pure values and one abstract class. Agents know policies, the policy space, outcomes and budgets; what
a policy costs on a target is injected (`Problem.costs`), so that no agent imports a predictor.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from compressors.policy import ResolvedPolicy
from compressors.space import PolicySpace

from .errors import BudgetError, HistoryError

if TYPE_CHECKING:
    from .past import PastStudy

#: Cost name to its values, one per policy, shape (P,). Names: latency_ms, latency_high_ms, energy_mj,
#: size_bytes, memory_bytes, macs; lower is better for all of them.
Costs = Mapping[str, NDArray[np.float64]]
Objective = Literal["accuracy", "latency"]
#: Coordinate name to the loss of each of its values, shape (values,), everything else left as it is: KL
#: divergence from the uncompressed network's answers on calibration data, nats a sample, 0 at the last value.
#: NaN where it was not measured.
Losses = Mapping[str, NDArray[np.float64]]
#: Per coordinate the weight of each of its values, shape (values,), 0 or more, sum 1.
Gates = Sequence[NDArray[np.float64]]

#: Field of `Budget` to the cost it limits.
LIMITS: Mapping[str, str] = {
    "max_latency_ms": "latency_ms",
    "max_size_bytes": "size_bytes",
    "max_memory_bytes": "memory_bytes",
    "max_energy_mj": "energy_mj",
    "max_macs": "macs",
}


class Relaxation(Protocol):
    """The network with a mixture of its values at every coordinate, differentiable in the mixture."""

    def step(self, gates: Gates, batch: int) -> tuple[float, list[NDArray[np.float64]]]:
        """Loss in nats a sample on training batch ``batch``, and its gradient, shaped as ``gates``.

        A one-hot gate is that value; the same gates and batch give the same numbers.
        """
        ...


@dataclass(frozen=True)
class Outcome:
    """What one policy scored. ``accuracy`` is None when it was not evaluated.

    ``accuracy`` is the task's metric in its own unit (0..1 for top-1); ``accuracy_low`` and
    ``accuracy_high`` bound it with the study's confidence, ``accuracy_std`` is its standard error.
    ``stopped_early``: the evaluation was given up as hopeless, ``accuracy`` is then what was known.
    ``feasible`` is False when a limit does not hold or when it could not be evaluated; ``why`` says why.
    ``disagreed``: the runtime answered otherwise than the simulation, by which the policy was scored.
    """

    policy: ResolvedPolicy
    accuracy: float | None
    costs: Mapping[str, float]
    accuracy_std: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    feasible: bool = True
    why: str = ""
    stopped_early: bool = False
    seconds: float = 0.0
    disagreed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON document; ``from_dict`` reads it back."""
        doc = {f.name: getattr(self, f.name) for f in fields(self)}
        doc["policy"] = self.policy.to_dict()
        doc["costs"] = {k: float(v) for k, v in sorted(self.costs.items())}
        return doc

    @classmethod
    def from_dict(cls, doc: Mapping[str, Any]) -> Outcome:
        """Read what ``to_dict`` wrote; unknown keys are left out. Raises PolicyError or HistoryError."""
        known = {f.name for f in fields(cls)}
        values = {k: v for k, v in doc.items() if k in known}
        missing = [k for k in ("policy", "accuracy", "costs") if k not in values]
        if missing:
            raise HistoryError(f"not an outcome: {', '.join(missing)} missing.")
        values["policy"] = ResolvedPolicy.from_dict(values["policy"])
        values["costs"] = {str(k): float(v) for k, v in values["costs"].items()}
        return cls(**values)


@dataclass(frozen=True)
class Budget:
    """Limits; what is None is not limited. All but ``max_drop`` are known before an evaluation.

    ``max_drop``: largest loss against the uncompressed network, in points (0.01 of the metric's unit).
    ``risk``: None judges ``latency_ms``; a number, the confidence the study's ``latency_high_ms`` was
    computed with, judges that upper bound instead.
    """

    max_latency_ms: float | None = None
    max_size_bytes: float | None = None
    max_memory_bytes: float | None = None
    max_energy_mj: float | None = None
    max_macs: float | None = None
    max_drop: float | None = None
    risk: float | None = None

    def __post_init__(self) -> None:
        for name in LIMITS:
            limit = getattr(self, name)
            if limit is not None and not (math.isfinite(limit) and limit > 0):
                raise BudgetError(f"{name} = {limit!r} is not a positive number.")
        if self.max_drop is not None and not (math.isfinite(self.max_drop) and self.max_drop >= 0):
            raise BudgetError(f"max_drop = {self.max_drop!r} is not a number of points, 0 or more.")
        if self.risk is not None and not 0 < self.risk < 1:
            raise BudgetError(f"risk = {self.risk!r} is not between 0 and 1. Use 0.9, for example.")

    @property
    def latency_key(self) -> str:
        """The cost that the latency limit judges."""
        return "latency_ms" if self.risk is None else "latency_high_ms"

    @property
    def limits(self) -> dict[str, float]:
        """Cost name to limit, of the limits that are set; B entries."""
        found: dict[str, float] = {}
        for name, cost in LIMITS.items():
            limit = getattr(self, name)
            if limit is not None:
                found[self.latency_key if cost == "latency_ms" else cost] = float(limit)
        return found

    def violations(self, costs: Costs) -> NDArray[np.float64]:
        """Relative excess ``cost / limit - 1``, shape (P, B): feasible where 0 or less. NaN counts as inf."""
        columns = []
        for cost, limit in self.limits.items():
            if cost not in costs:
                raise BudgetError(
                    f"the budget limits {cost}, which this target does not give. "
                    f"It gives: {', '.join(sorted(costs))}."
                )
            columns.append(np.asarray(costs[cost], dtype=float) / limit - 1.0)
        if not columns:
            size = len(next(iter(costs.values()))) if costs else 0
            return np.zeros((size, 0))
        return np.nan_to_num(np.stack(columns, axis=1), nan=np.inf, posinf=np.inf, neginf=-np.inf)

    def feasible(self, costs: Costs) -> NDArray[np.bool_]:
        """Which policies hold every limit, shape (P,)."""
        return np.asarray((self.violations(costs) <= 0).all(axis=1), dtype=bool)

    def why_not(self, costs: Mapping[str, float]) -> str:
        """One line for one policy: which limits do not hold, "" when all do."""
        arrays = {k: np.array([v]) for k, v in costs.items()}
        excess = self.violations(arrays)[0]
        return "; ".join(
            f"{cost} {costs[cost]:.6g} > {limit:.6g}"
            for (cost, limit), e in zip(self.limits.items(), excess, strict=True)
            if e > 0
        )

    def to_dict(self) -> dict[str, float]:
        """The limits that are set, by field name."""
        return {k: v for k, v in asdict(self).items() if v is not None}


@dataclass(frozen=True)
class Problem:
    """One search: the space, the budget, and what things cost.

    ``costs`` prices many resolved policies at once: about 10 ms the first time a structural signature
    appears, microseconds after that. ``estimates``, where given, are the same names nearly right and always
    quick: agents propose by them and check what they suggest by ``costs``.
    ``objective`` "accuracy": best metric inside the budget; "latency": least latency whose drop is at most
    ``budget.max_drop``.
    ``evaluations`` is how many are planned; agents may spread their exploration over it.
    ``losses`` measures what each change alone loses (seconds, the first time it is called); ``losses_around``
    the same with the other coordinates as in a policy, given as value indices (d,); ``relaxation`` makes the
    network differentiable in the choices. They are None where nothing can measure.
    ``past`` gives earlier studies, of this or other networks and targets, always the same ones during a run.
    """

    space: PolicySpace
    budget: Budget
    costs: Callable[[Sequence[ResolvedPolicy]], Costs]
    base_accuracy: float
    higher_is_better: bool = True
    objective: Objective = "accuracy"
    losses: Callable[[], Losses] | None = field(default=None, compare=False)
    evaluations: int = 100
    estimates: Callable[[Sequence[ResolvedPolicy]], Costs] | None = field(default=None, compare=False)
    relaxation: Callable[[], Relaxation] | None = field(default=None, compare=False)
    losses_around: Callable[[Sequence[int]], Losses] | None = field(default=None, compare=False)
    past: Callable[[], Sequence[PastStudy]] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.objective not in ("accuracy", "latency"):
            raise BudgetError(f"objective {self.objective!r} is neither 'accuracy' nor 'latency'.")
        if self.objective == "latency" and self.budget.max_drop is None:
            raise BudgetError("least latency needs a largest drop. Give max_drop, in points.")
        if not math.isfinite(self.base_accuracy):
            raise BudgetError(f"the uncompressed network's metric is {self.base_accuracy!r}.")

    def gain(self, accuracy: float) -> float:
        """The metric turned so that higher is better."""
        return accuracy if self.higher_is_better else -accuracy

    def drop(self, accuracy: float) -> float:
        """Loss against the uncompressed network in points (0.01 of the metric's unit); negative: better."""
        return 100.0 * (self.gain(self.base_accuracy) - self.gain(accuracy))

    def holds_drop(self, accuracy: float) -> bool:
        """Whether a metric value is within ``budget.max_drop``; True when there is no such limit."""
        return self.budget.max_drop is None or self.drop(accuracy) <= self.budget.max_drop + 1e-9


@dataclass(frozen=True)
class Suggestion:
    """A policy to evaluate. ``point`` in [0, 1]^d decodes and resolves to ``policy``.

    ``number`` counts an agent's suggestions from 0; outcomes known beforehand carry negative numbers.
    ``origin`` is one line: why it was proposed.
    """

    number: int
    point: tuple[float, ...]
    policy: ResolvedPolicy
    origin: str

    def to_dict(self) -> dict[str, Any]:
        """JSON document; ``from_dict`` reads it back."""
        return {
            "number": self.number,
            "point": list(self.point),
            "policy": self.policy.to_dict(),
            "origin": self.origin,
        }

    @classmethod
    def from_dict(cls, doc: Mapping[str, Any]) -> Suggestion:
        """Read what ``to_dict`` wrote. Raises PolicyError or HistoryError."""
        missing = [k for k in ("number", "point", "policy", "origin") if k not in doc]
        if missing:
            raise HistoryError(f"not a suggestion: {', '.join(missing)} missing.")
        return cls(
            int(doc["number"]),
            tuple(float(v) for v in doc["point"]),
            ResolvedPolicy.from_dict(doc["policy"]),
            str(doc["origin"]),
        )


class Agent(ABC):
    """Proposes policies and learns from their outcomes.

    Promises, tested by `agents.testing.check_agent`: no policy is suggested twice; every suggestion
    holds the budget's limits by exact costs; the same seed and calls give the same suggestions; after
    ``replay`` of a journal an agent goes on as the undisturbed one would have.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def __init__(self, problem: Problem, seed: int) -> None: ...

    @abstractmethod
    def suggest(self, n: int = 1) -> list[Suggestion]:
        """Up to ``n`` policies to evaluate; fewer, or none, once there is nothing new to suggest."""

    @abstractmethod
    def update(self, suggestion: Suggestion, outcome: Outcome) -> None:
        """Learn an outcome. Suggestions may be answered in any order, each once.

        A suggestion that this agent did not make (negative number) is learned as known beforehand.
        """

    @abstractmethod
    def replay(self, history: Iterable[tuple[Suggestion, Outcome | None]]) -> None:
        """Bring a fresh agent to where the journal ends.

        An entry with an outcome is an update, in the order of the updates; an entry with None is a
        suggestion that was out. `outstanding` then names what is to be evaluated again.
        """

    @property
    @abstractmethod
    def outstanding(self) -> tuple[Suggestion, ...]:
        """Suggestions without an outcome, by number."""
