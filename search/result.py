"""What a run gives a Python program: `result.best.policy`, `result.front`, `result.export(folder)`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from compressors.policy import ResolvedPolicy

from .errors import ResumeError
from .results import Number, Point, Results

if TYPE_CHECKING:
    from .task import Task


@dataclass(frozen=True)
class FrontPoint:
    """One point of the Pareto front.

    Attributes:
        number: as in the table, from 1.
        policy: what is done to every layer.
        metric: the metric's value on the validation data, in its own unit, after recovery if there was one.
        drop: loss against the uncompressed network, points (0.01 of the metric's unit), lower is better.
        costs: latency_ms, size_bytes, memory_bytes, macs and, where the target has it, energy_mj; each
            with its source and, where predicted, its interval.
        picked: whether this is the network that the run delivered.
        feasible: whether it holds the budget.
    """

    number: int
    policy: ResolvedPolicy = field(repr=False)
    metric: float
    drop: float
    costs: Mapping[str, Number] = field(repr=False)
    picked: bool
    feasible: bool

    @classmethod
    def of(cls, point: Point) -> FrontPoint:
        """The point as the results document has it."""
        validation = point.get("validation")
        return cls(
            point["number"],
            ResolvedPolicy.from_dict(point.get("policy")),
            float("nan") if validation is None else validation["value"],
            point.get("drop") or 0.0,
            point["costs"],
            point["picked"],
            point.get("feasible", True),
        )

    @property
    def latency_ms(self) -> float:
        """Milliseconds of one inference."""
        return self.costs["latency_ms"]["value"]

    @property
    def size_bytes(self) -> float:
        """Bytes of the stored weights."""
        return self.costs["size_bytes"]["value"]


@dataclass(frozen=True)
class RunResult:
    """What a run found: its folder and the document everything is drawn from.

    ``task``: the one searched, where it lives in this process only.
    """

    folder: Path
    results: Results = field(repr=False)
    task: Task | None = field(default=None, repr=False)

    @property
    def complete(self) -> bool:
        """False where the run was interrupted and can be resumed."""
        return self.results["run"]["state"] == "complete"

    @cached_property
    def front(self) -> tuple[FrontPoint, ...]:
        """The Pareto front, from the slowest to the fastest point."""
        return tuple(FrontPoint.of(p) for p in self.results["points"])

    @property
    def best(self) -> FrontPoint | None:
        """The point that was picked; None when the search was interrupted before."""
        return next((p for p in self.front if p.picked), None)

    def export(self, folder: str | Path, point: int | None = None) -> Path:
        """Write a point's files (the picked one's by default) into a folder, verified; returns the folder.

        Raises ResumeError where nothing was picked, InputError where there is no such point.
        """
        from .commands import export_point

        number = point if point is not None else self.results.get("picked")
        if number is None:
            raise ResumeError(f"run {self.folder} has no point to export yet.", "Resume it first.")
        return export_point(self.folder, number, Path(folder), self.task)[1]
