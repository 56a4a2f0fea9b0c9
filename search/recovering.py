"""A recovery under way, as it is put on disk: safetensors and JSON, so that another process can go on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from safetensors.torch import save
from torch import Tensor

from compressors.compressed import Compressed

from .errors import InputError
from .stored import from_file, read_parts, to_bytes

if TYPE_CHECKING:
    import torch

    from compressors.network import Network
    from compressors.policy import ResolvedPolicy
    from compressors.resolve import Numerics

    from .distil import Stage

SCHEMA_VERSION = 1
#: What is trained, the best network, and the one whose quantisers are trained for.
TRAINED, BEST, REFERENCE = "trained.safetensors", "best.safetensors", "reference.safetensors"
_COUNTS = ("part", "checks", "steps")
_NUMBERS = ("before", "cycle_before", "spent", "earlier", "rate", "best", "reference")
#: What Adam knows of a parameter.
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True)
class Best:
    """A network and its validation metric."""

    compressed: Compressed
    value: float


@dataclass
class State:
    """Where a recovery stands.

    Attributes:
        floats: the float network's weights that the present cycle began with, or learned.
        reference: the best network of this cycle, whose quantisers rounding in the loop trains for.
        best: the best network of all.
        before: validation metric at the very start.
        part, spent, checks: which part of the training is under way, seconds spent in it, comparisons made.
        steps: in all parts.
        earlier: wall seconds of other processes.
        cycle_before: validation metric at the start of the present cycle.
        rate: the peak learning rate; NaN until some have been tried.
        leaves: what the present part trains, by name; None at its start.
        moments: what the optimiser knows of it, `MOMENTS` by name, as "exp_avg/NAME"; empty at its start.
    """

    floats: dict[str, Tensor]
    reference: Best
    best: Best
    before: float
    part: int = 0
    spent: float = 0.0
    checks: int = 0
    steps: int = 0
    earlier: float = 0.0
    cycle_before: float = math.nan
    rate: float = math.nan
    leaves: Mapping[str, Tensor] | None = None
    moments: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if math.isnan(self.cycle_before):
            self.cycle_before = self.reference.value

    def at(self, stage: Stage | None, adam: torch.optim.Adam | None, seconds: float) -> State:
        """A copy with what a stage and its optimiser hold now, after so many wall seconds."""
        moments: dict[str, Tensor] = {}
        if stage is not None and adam is not None:
            for name, leaf in stage.trained.items():
                known = adam.state.get(leaf, {})
                moments.update({f"{k}/{name}": known[k].detach().cpu() for k in MOMENTS if k in known})
        leaves = None if stage is None else stage.weights()
        return replace(self, leaves=leaves, moments=moments, earlier=seconds)

    def write(self, folder: Path, policy: ResolvedPolicy) -> None:
        """Into an empty folder."""
        document: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "policy": policy.digest}
        document.update({k: getattr(self, k) for k in _COUNTS})
        numbers = {k: getattr(self, k) for k in _NUMBERS if k not in ("best", "reference")}
        numbers.update(best=self.best.value, reference=self.reference.value)
        document.update({k: v if math.isfinite(v) else None for k, v in numbers.items()})
        tensors = {f"floats/{k}": v for k, v in self.floats.items()}
        tensors.update({f"leaf/{k}": v for k, v in (self.leaves or {}).items()})
        tensors.update({f"moments/{k}": v for k, v in self.moments.items()})
        whole = {k: v.contiguous().clone() for k, v in tensors.items()}
        (folder / BEST).write_bytes(to_bytes(self.best.compressed))
        document["apart"] = self.reference.compressed is not self.best.compressed
        if document["apart"]:
            (folder / REFERENCE).write_bytes(to_bytes(self.reference.compressed))
        (folder / TRAINED).write_bytes(save(whole, {"tailorbird": json.dumps(document)}))

    @classmethod
    def read(cls, folder: Path, network: Network, policy: ResolvedPolicy, numerics: Numerics) -> Self:
        """What `write` wrote, of the same policy. Raises InputError."""
        from compressors.network import fast_layout

        document, tensors = read_parts(folder / TRAINED)
        if document.get("policy") != policy.digest:
            raise InputError(f"{str(folder)!r} holds the recovery of another policy.")
        counts = {k: document.get(k) for k in _COUNTS}
        numbers = {k: math.nan if (v := document.get(k)) is None else v for k in _NUMBERS}
        if not all(type(v) is int and v >= 0 for v in counts.values()) or not all(
            isinstance(v, float | int) for v in numbers.values()
        ):
            raise InputError(f"{str(folder)!r} does not say where the recovery stands.")
        best = Best(from_file(folder / BEST, network, numerics), numbers.pop("best"))
        value, apart = numbers.pop("reference"), document.get("apart")
        reference = Best(from_file(folder / REFERENCE, network, numerics), value) if apart else best
        named: dict[str, dict[str, Tensor]] = {"floats": {}, "leaf": {}, "moments": {}}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            named.setdefault(kind, {})[name] = fast_layout(tensor)
        found: dict[str, Any] = {**counts, **numbers}
        leaves = named["leaf"] or None
        return cls(named["floats"], reference, best, leaves=leaves, moments=named["moments"], **found)


__all__ = ["BEST", "MOMENTS", "REFERENCE", "TRAINED", "Best", "State"]
