"""Measuring on the device at hand and correcting prices by what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from agents.contract import Outcome
from agents.pareto import front
from compressors.apply import compress
from compressors.policy import ResolvedPolicy
from hw_profiles.kernel import KernelBatch
from hw_profiles.predictor import Predictor

from .errors import DeviceError
from .export_onnx import export_model
from .journal import Journal, making_sense_of
from .setup import Setup

if TYPE_CHECKING:
    from hw_profiles.measure import Measurement

#: A measured latency may be this much over its budget and still count as holding it.
TOLERANCE = 0.02
#: Runs of one network and rounds over all of them; an unsteady measurement is repeated so often.
RUNS, ROUNDS, TRIES = 200, 8, 3


def measures(setup: Setup) -> bool:
    """Whether there is a device at hand on which networks are to be timed."""
    return setup.device is not None and setup.config.measure != "never"


@dataclass
class Stopwatch:
    """Times policies' networks on the device and keeps a predictor corrected by all that was timed."""

    setup: Setup
    journal: Journal | None
    seen: dict[str, tuple[ResolvedPolicy, float]] = field(default_factory=dict)
    uncorrected: Predictor | None = None
    unstable: str = ""

    def restore(self) -> None:
        """Take up measurements a journal holds, so that a resumed run sees the same prices."""
        for r in self.journal.records if self.journal is not None else ():
            if r.kind == "event" and r.data.get("kind") == "measured":
                with making_sense_of(r):
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
            self.unstable = next((m.why for m in found if not m.stable), self.unstable)
            scale = self.seen[base.digest][1] / found[-1].latency_ms if anchored else 1.0
            rows = [(p, m.latency_ms * scale) for p, m in zip(missing, found, strict=False)]
            self.seen.update({p.digest: (p, ms) for p, ms in rows})
            if self.journal is not None:
                networks = [{"policy": p.to_dict(), "latency_ms": ms} for p, ms in rows]
                self.journal.append("event", {"kind": "measured", "networks": networks})
            self._correct()
        return [self.seen[p.digest][1] for p in policies]

    def untimed(self, outcomes: Sequence[Outcome], most: int) -> list[ResolvedPolicy]:
        """Policies on the front under today's prices that were not timed yet, most accurate first."""
        at = front(outcomes, self.setup.problem)
        chosen = {outcomes[i].policy.digest: outcomes[i].policy for i in at}
        return [p for digest, p in chosen.items() if digest not in self.seen][:most]

    def _correct(self) -> None:
        if not self.seen:
            return
        if self.uncorrected is None:
            self.uncorrected = self.setup.lowering.predictor
        rows: list[tuple[KernelBatch, float]] = [
            (self.setup.lowering.kernels([p])[0][1], ms) for p, ms in self.seen.values()
        ]
        measured = {digest: ms for digest, (_, ms) in self.seen.items()}
        self.setup.corrected(self.uncorrected.corrected(rows), measured)

    def holds(self, policy: ResolvedPolicy) -> bool:
        """Whether a timed policy's measured latency is within the latency budget."""
        return self.within(self.seen[policy.digest][1])

    def within(self, latency_ms: float) -> bool:
        """Whether a measured latency is within the latency budget."""
        limit = self.setup.budget.max_latency_ms
        return limit is None or latency_ms <= self.limit_ms * (1 + TOLERANCE)

    @property
    def limit_ms(self) -> float:
        """The latency budget; a relative one is relative to the measured uncompressed network."""
        limit = self.setup.config.limits.get("latency_ms")
        if limit is None:
            return float("inf")
        base = self.seen.get(self.setup.base_policy.digest)
        return limit.resolve(base[1] if base is not None else self.setup.base_costs["latency_ms"])


def measure_models(setup: Setup, models: Sequence[bytes]) -> list[Measurement]:
    """Time ONNX files interleaved on the device at the run's threads and batch.

    Unsteady measurements are repeated; where some stay so on another machine, DeviceError (exit 5) unless
    `--accept-unstable`. Here they are kept with their verdict: the search goes on, the interval widens.
    """
    from hw_profiles.devices.contract import Work
    from hw_profiles.measure import measurement_of

    if setup.device is None:
        raise DeviceError(f"no device at hand for target {setup.target.name!r}.", "Give its address: --host.")
    feed = {
        name: x[:1].expand(setup.lowering.batch, *x.shape[1:]).contiguous().numpy()
        for name, x in zip(setup.space.structure.graph.inputs, setup.task.example, strict=True)
    }
    threads = setup.lowering.predictor.threads or 1
    best: dict[int, Measurement] = {}
    waiting = list(range(len(models)))
    for _ in range(TRIES):
        works = [Work(str(i), models[i], threads, RUNS, ROUNDS, inputs=feed) for i in waiting]
        for sample in setup.device.measure(works):
            if sample.error:
                raise DeviceError(f"the device cannot run a network: {sample.error}")
            found, i = measurement_of(sample), int(sample.key)
            if i not in best or found.latency_ms < best[i].latency_ms or found.stable:
                best[i] = found
        waiting = [i for i in waiting if not best[i].stable]
        if not waiting:
            break
    if waiting and setup.config.host is not None and not setup.config.accept_unstable:
        raise DeviceError(
            f"{setup.config.host} measures too unsteadily: {best[waiting[0]].why}.",
            "Free it of other work, cool it, or keep such measurements with --accept-unstable.",
        )
    return [best[i] for i in range(len(models))]


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
