"""Measuring on the machine at hand and correcting prices by what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from compressors.apply import compress
from compressors.policy import ResolvedPolicy
from hw_profiles.kernel import KernelBatch
from hw_profiles.predictor import Predictor

from .export_onnx import export_model
from .journal import Journal
from .setup import Setup

if TYPE_CHECKING:
    from hw_profiles.measure import Measurement

#: A measured latency may be this much over its budget and still count as holding it.
TOLERANCE = 0.02


def is_here(setup: Setup) -> bool:
    """Whether the target is this machine, so that its networks can be timed."""
    return setup.target.name == "local"


@dataclass
class Stopwatch:
    """Times policies' networks in onnxruntime and keeps a predictor corrected by all that was timed."""

    setup: Setup
    journal: Journal | None
    seen: dict[str, tuple[ResolvedPolicy, float]] = field(default_factory=dict)
    uncorrected: Predictor | None = None

    def restore(self) -> None:
        """Take up measurements a journal holds, so that a resumed run sees the same prices."""
        for r in self.journal.records if self.journal is not None else ():
            if r.kind == "event" and r.data.get("kind") == "measured":
                for row in r.data["networks"]:
                    policy = ResolvedPolicy.from_dict(row["policy"])
                    self.seen[policy.digest] = (policy, float(row["latency_ms"]))
        self._correct()

    def time(self, policies: Sequence[ResolvedPolicy]) -> list[float]:
        """Measured milliseconds of each policy's network (minimum, interleaved); corrects the prices."""
        missing = [p for p in policies if p.digest not in self.seen]
        if missing:
            network, numerics = self.setup.scorer.network, self.setup.scorer.numerics
            models = [export_model(compress(network, p, numerics)) for p in missing]
            base = self.setup.base_policy
            anchored = base.digest in self.seen
            if anchored:
                models.append(export_model(compress(network, base, numerics)))
            found = measure_models(self.setup, models)
            scale = self.seen[base.digest][1] / found[-1].latency_ms if anchored else 1.0
            rows = [(p, m.latency_ms * scale) for p, m in zip(missing, found, strict=False)]
            self.seen.update({p.digest: (p, ms) for p, ms in rows})
            if self.journal is not None:
                networks = [{"policy": p.to_dict(), "latency_ms": ms} for p, ms in rows]
                self.journal.append("event", {"kind": "measured", "networks": networks})
            self._correct()
        return [self.seen[p.digest][1] for p in policies]

    def _correct(self) -> None:
        if not self.seen:
            return
        if self.uncorrected is None:
            self.uncorrected = self.setup.lowering.predictor
        rows: list[tuple[KernelBatch, float]] = [
            (self.setup.lowering.kernels([p])[0][1], ms) for p, ms in self.seen.values()
        ]
        self.setup.corrected(self.uncorrected.corrected(rows))

    def holds(self, policy: ResolvedPolicy) -> bool:
        """Whether a timed policy's measured latency is within the latency budget."""
        limit = self.setup.budget.max_latency_ms
        latency = self.seen[policy.digest][1]
        return limit is None or latency <= self.limit_ms * (1 + TOLERANCE)

    @property
    def limit_ms(self) -> float:
        """The latency budget; a relative one is relative to the measured uncompressed network."""
        limit = self.setup.config.limits.get("latency_ms")
        if limit is None:
            return float("inf")
        base = self.seen.get(self.setup.base_policy.digest)
        return limit.resolve(base[1] if base is not None else self.setup.base_costs["latency_ms"])


def measure_models(setup: Setup, models: Sequence[bytes]) -> list[Measurement]:
    """Time ONNX files interleaved on this machine at the run's threads and batch."""
    from hw_profiles.measure import measure_latency

    feed = {
        name: x[:1].expand(setup.lowering.batch, *x.shape[1:]).contiguous().numpy()
        for name, x in zip(setup.space.structure.graph.inputs, setup.task.example, strict=True)
    }
    threads = setup.lowering.predictor.threads or 1
    return measure_latency(models, [feed] * len(models), threads=threads, repeats=200, rounds=8)


def first_policies(setup: Setup) -> list[ResolvedPolicy]:
    """Networks timed before a search: the base, all-integer, and uniform ones of several widths."""
    space = setup.space
    bits = max(space.abilities.act_bits, default=None)
    wanted = [
        setup.base_policy,
        *(space.resolve(space.uniform(k, bits)) for k in (1.0, 0.75, 0.5, 0.25)),
        *(space.resolve(space.uniform(k)) for k in (0.75, 0.5)),
    ]
    seen: set[str] = set()
    return [p for p in wanted if not (p.digest in seen or seen.add(p.digest))]  # type: ignore[func-returns-value]
