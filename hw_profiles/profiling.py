"""Filling a profile: measures what it does not hold yet, saves each sample as it comes, can be resumed."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from hw_profiles.devices.contract import Condition, Device, DeviceFacts, Sample, Work
from hw_profiles.errors import DeviceError, StoreError
from hw_profiles.pace import ANCHOR, Pace, Visits
from hw_profiles.profile_rows import row_of
from hw_profiles.profiles import ProfileStore

#: Seconds before a device that was lost is tried again.
PAUSES = (1.0, 5.0, 15.0)
#: Seconds that a device which throttled is left alone before its networks are repeated.
COOL_SECONDS = 20.0
#: Seconds that a device which became slower is given to be as fast as it was; looked at after every pause.
SLOW_SECONDS, SLOW_PAUSE = 60.0, 1.0
#: Batches that measure a time at most, until two agree; two at least.
MOST_VISITS = 6
#: Works that are kept at hand, to be measured again should the device turn out to have been slow.
LATEST = 256


@dataclass(frozen=True)
class Progress:
    """Where profiling stands: networks measured now, held before, that fail there, refused as unsteady."""

    measured: int
    held: int
    failed: int
    refused: int
    seconds: float
    key: str = ""


@dataclass
class ProfilingReport:
    """What one call of `profile` did. `failed` and `refused` give the reason by key."""

    facts: DeviceFacts
    measured: int = 0
    held: int = 0
    unstable_kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    advice: list[str] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    seconds: float = 0.0
    ended: Literal["done", "budget", "stopped"] = "done"


def profile(
    device: Device,
    works: Iterable[Work],
    store: ProfileStore,
    *,
    budget_seconds: float | None = None,
    batch: int = 8,
    repeats: int = 2,
    accept_unstable: bool = False,
    anchor: Work | None = None,
    twice: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    pauses: tuple[float, ...] = PAUSES,
    cool_seconds: float = COOL_SECONDS,
    slow_seconds: float = SLOW_SECONDS,
) -> ProfilingReport:
    """Measure, interleaved in batches, the works that the store does not hold for this device.

    A wall time counts when two batches agree on it (`pace.Visits`), processor time too where `twice` asks for
    it; what the first saw is stored meanwhile.
    A work is held if its file was measured, or failed, with the same threads by the same runtime version and
    clock. `works` may be lazy: the next batch is drawn when the one before is stored, so a planner can look
    at the store in between. An unstable sample is repeated up to `repeats` times, then kept with its verdict
    if `accept_unstable`, else refused. An `anchor` is measured along with every batch and stored nowhere:
    what is measured while it is slower than it was is unstable; what was measured before it was faster than
    ever is measured again, with the batches that follow. After a slow batch the anchor alone is measured,
    until it is as fast as it was or `slow_seconds` are over. A lost device is tried again after each of
    `pauses`.

    Raises DeviceError (exit 5) for a device that stays lost, or on which nothing is steady, and StoreError
    (exit 5) when the disk is full; what was measured until then is stored, and the same call goes on there.
    """
    return _Profiling(
        device, store, budget_seconds, batch, repeats, accept_unstable, progress, stop, pauses, cool_seconds,
        slow_seconds, Pace(anchor), twice,
    ).run(works)  # fmt: skip


def advice(facts: DeviceFacts, state: Condition) -> list[str]:
    """What would make measurements on a device steadier, a sentence each."""
    found = []
    if state.governor and state.governor != "performance":
        found.append(
            f"the governor is {state.governor!r}: clocks change under load; `performance` measures steadier"
        )
    if state.throttled:
        found.append("the device throttles right now: cool it, or give it a stronger power supply")
    if state.load is not None and state.load > facts.cores / 2:
        found.append(f"the load is {state.load:.1f} on {facts.cores} cores: other programs disturb")
    return found


def model_hash(work: Work) -> str:
    """SHA-256 of its ONNX file, by which profiles know it."""
    return hashlib.sha256(work.model).hexdigest()


@dataclass
class _Profiling:
    device: Device
    store: ProfileStore
    budget_seconds: float | None
    batch: int
    repeats: int
    accept_unstable: bool
    progress: Callable[[Progress], None] | None
    stop: threading.Event | None
    pauses: tuple[float, ...]
    cool_seconds: float
    slow_seconds: float
    pace: Pace
    twice: bool

    def run(self, works: Iterable[Work]) -> ProfilingReport:
        self.start = time.monotonic()
        facts = self.device.facts()
        self.report = ProfilingReport(facts, advice=advice(facts, self.device.condition()))
        self.known: dict[int, set[str]] = {}
        self.kept: set[str] = set()
        self.latest: dict[str, Work] = {}
        self.again: dict[str, Work] = {}
        self.tries: dict[str, tuple[Work, list[tuple[Sample, str]]]] = {}
        self.visits: dict[str, Visits] = {}
        longest = 0.0
        for together in self._batches(iter(works)):
            begun = time.monotonic()
            if self._over(longest) or not self._batch(together):
                self.report.ended = "budget"
                break
            longest = max(longest, time.monotonic() - begun)
            if self._stopped():
                break
        if self._stopped():
            self.report.ended = "stopped"
        if self.accept_unstable:
            for key in list(self.tries):
                self._give_up(key)
        self.report.seconds = time.monotonic() - self.start
        if self.report.refused and not self.report.measured:
            refused = self.report.refused
            key, why = next(iter(refused.items()))
            raise DeviceError(
                f"{facts.device} is too unsteady: {len(refused)} networks refused, {key!r} is {why}.\n"
                "Free it of other work, cool it, or keep such samples with --accept-unstable."
            )
        return self.report

    def _batches(self, works: Iterator[Work]) -> Iterator[dict[str, Work]]:
        """Works that are not held, by a key of their own, as many together as make a batch."""
        together: dict[str, Work] = {}
        for work in works:
            if self._stopped():
                return
            model = model_hash(work)
            known = self._known(work.threads)
            if model in known:
                self.report.held += 1
                continue
            known.add(model)
            together[f"{model}/{work.threads}"] = work
            if len(together) == self.batch:
                yield self._with_repeats(together)
                together = {}
        while together or self.again:
            yield self._with_repeats(together)
            together = {}

    def _with_repeats(self, together: dict[str, Work]) -> dict[str, Work]:
        """The next works and, of those measured at a slow pace, as many again as make a batch."""
        repeats = list(self.again.items())[: self.batch]
        for key, _ in repeats:
            del self.again[key]
        return {**together, **dict(repeats)}

    def _known(self, threads: int) -> set[str]:
        if threads not in self.known:
            held = self.store.open(self.report.facts, threads, self.device.unit)
            self.known[threads] = held.measured.keys() | held.failures.keys()
            self.report.paths.append(self.store.path(self.report.facts, threads))
        return self.known[threads]

    def _batch(self, works: dict[str, Work]) -> bool:
        """Measure until every work is stored or refused; False where the budget ends repeating."""
        waiting, unsteady, lost = dict(works), dict[str, Work](), 0
        while waiting and not self._stopped():
            if unsteady and self._over(0.0):
                return False
            asked = [replace(work, key=key, kernels=key not in self.visits) for key, work in waiting.items()]
            throttled = False
            self.pace.begin()
            try:
                for sample in self.device.measure([*self.pace.works(), *asked]):
                    throttled |= bool(sample.after.throttled)
                    if sample.key == ANCHOR:
                        self.pace.tell(sample)
                        continue
                    if self._settled(sample, works[sample.key], unsteady):
                        del waiting[sample.key]
                        lost = 0
                    if self._stopped():
                        return True
            except StoreError:
                raise
            except DeviceError as error:
                if lost == len(self.pauses):
                    raise self._gone(error) from error
                self._wait(self.pauses[lost])
                lost += 1
            if waiting and throttled:
                self._wait(self.cool_seconds)
        self.again |= {key: self.latest[key] for key in self.pace.outdated() if key in self.latest}
        self._until_fast()
        return True

    def _until_fast(self) -> None:
        """While the device is slower than it was, look at its pace alone: what else came would not count."""
        until = time.monotonic() + self.slow_seconds
        while self.pace.slow() and time.monotonic() < until and not self._stopped() and not self._over(0.0):
            self._wait(SLOW_PAUSE)
            self.pace.begin()
            try:
                for sample in self.device.measure(self.pace.works()):
                    self.pace.tell(sample)
            except StoreError:
                raise
            except DeviceError:
                return  # the next batch tries again, and says so

    def _settled(self, sample: Sample, work: Work, unsteady: dict[str, Work]) -> bool:
        """Store a sample, or remember it as unsteady; whether this batch is done with its work.

        What is unsteady by itself is repeated at once; what came while the device was slow, with the batches
        that follow.
        """
        stable, why = sample.verdict()
        visits = sample.clock == "wall" or (self.twice and sample.clock == "cpu")
        visits &= not sample.error
        slow = self.pace.slow() if stable or visits else ""
        if visits and not slow and not sample.disturbed:
            return self._visited(sample, work)
        if sample.error or (stable and not slow):
            self._keep(sample, work)
            return True
        _, tries = self.tries.setdefault(sample.key, (work, []))
        tries.append((sample, slow or why))
        if len(tries) <= self.repeats:
            (self.again.update if slow else unsteady.update)({sample.key: work})
            return bool(slow)
        self._give_up(sample.key)
        return True

    def _visited(self, sample: Sample, work: Work) -> bool:
        """Store what a work's batches have seen so far; True, since only a later batch can say more."""
        key = sample.key
        visits = self.visits.setdefault(key, Visits())
        visits.tell(sample)
        over = visits.agreed or len(visits.seen) == MOST_VISITS
        if over:
            del self.visits[key]
        else:
            self.again[key] = work
        best = visits.sample if over else visits.least
        stable, why = best.verdict()
        if stable:
            self._keep(best, work)
        else:
            self.tries[key] = work, [(best, why)]
            if over:
                self._give_up(key)
        return True

    def _give_up(self, key: str) -> None:
        """Keep the least of the unsteady samples with its verdict, or refuse the work."""
        work, tries = self.tries.pop(key)
        sample, why = min(tries, key=lambda tried: tried[0].best)
        if key in self.kept:
            return  # it was measured steadily before, if at a slower pace
        if self.accept_unstable:
            self.report.unstable_kept += 1
            self._keep(sample, work, why)
        else:
            self.report.refused[work.key] = why
            self._tell(work.key)

    def _keep(self, sample: Sample, work: Work, unstable: str = "") -> None:
        """Store a sample."""
        self.tries.pop(sample.key, None)
        model = sample.key.partition("/")[0]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        row = row_of(replace(sample, key=work.key), model, now, unstable)
        self.store.append(self.report.facts, work.threads, [row], self.device.unit)
        if sample.error:
            self.report.failed[work.key] = sample.error
        else:
            self.report.measured += sample.key not in self.kept
            self.kept.add(sample.key)
            if not unstable:
                self._remember(sample.key, work)
        self._tell(work.key)

    def _remember(self, key: str, work: Work) -> None:
        """A work of late, should it turn out that the device was slow."""
        self.pace.took(key)
        self.latest[key] = work
        if len(self.latest) > LATEST:
            del self.latest[next(iter(self.latest))]

    def _gone(self, error: DeviceError) -> DeviceError:
        kept = f"{self.report.measured} networks measured now and {self.report.held} before are kept"
        return DeviceError(f"{error}\n{kept}; run the same again to go on.")

    def _tell(self, key: str) -> None:
        if self.progress is not None:
            r = self.report
            seconds = time.monotonic() - self.start
            self.progress(Progress(r.measured, r.held, len(r.failed), len(r.refused), seconds, key))

    def _over(self, more: float) -> bool:
        """Whether so many seconds more are too many."""
        taken = time.monotonic() - self.start
        return self.budget_seconds is not None and taken + more > self.budget_seconds

    def _stopped(self) -> bool:
        return self.stop is not None and self.stop.is_set()

    def _wait(self, seconds: float) -> None:
        (self.stop or threading.Event()).wait(seconds)


__all__ = ["ProfilingReport", "Progress", "advice", "model_hash", "profile"]
