"""How fast a device is now against its best: phases of seconds to minutes that no single sample can see.

Heat, or other work on a shared machine, slows a device for minutes; the threads of a virtual machine share
one core at times and have two at others. Halves of one sample then agree, and both are wrong. One network,
the anchor, is measured along with every batch. Where it was slow all the time, what came is called unstable;
where it turns out faster than before, what was measured until then is to be measured again. Of shorter phases
the anchor cannot tell, since it has its turns and a network its own: two batches are to agree (`Visits`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hw_profiles.devices.contract import KernelRecord, Sample, Work

#: The anchor's key among the works of a batch.
ANCHOR = "anchor"
#: Relative distance of the anchor from its best within which a device is as fast as it was, by clock.
WITHIN = {"cpu": 0.03, "wall": 0.06, "instructions": 0.001}


@dataclass
class Pace:
    """The anchor's times. Without a work, nothing is ever slow.

    `now` is its least run in the latest batch, in the device's unit; `best` the least of all.
    """

    work: Work | None = None
    now: float | None = None
    best: float | None = None
    _clock: str = "wall"
    _at: dict[str, float] = field(default_factory=dict)

    def works(self) -> list[Work]:
        """What is to be measured first in a batch."""
        return [] if self.work is None else [replace(self.work, key=ANCHOR, kernels=False)]

    def begin(self) -> None:
        """A batch is about to be measured: the anchor's time in it is not known yet."""
        self.now = None

    def tell(self, sample: Sample) -> None:
        """The anchor's sample of this batch; one of processor time that is unsteady says nothing."""
        if sample.error or self.work is None or not (sample.clock == "wall" or sample.verdict()[0]):
            return
        self.now, self._clock = sample.best, sample.clock
        self.best = self.now if self.best is None else min(self.best, self.now)

    def slow(self) -> str:
        """Why what is measured now does not count, "" where it does."""
        if self.now is None or self.best is None or not self._apart(self.now):
            return ""
        return (
            f"unstable, because the device is {self.now / self.best - 1:.1%} slower than it was "
            f"({WITHIN[self._clock]:.1%})"
        )

    def took(self, key: str) -> None:
        """A work's measurement was kept at today's pace."""
        if self.now is not None:
            self._at[key] = self.now

    def outdated(self) -> list[str]:
        """Keys of works that were measured at a pace since found to be slow; each is told once."""
        found = [key for key, at in self._at.items() if self._apart(at)]
        for key in found:
            del self._at[key]
        return found

    def _apart(self, time: float) -> bool:
        return self.best is not None and time > self.best * (1.0 + WITHIN[self._clock])


@dataclass
class Visits:
    """A work's samples, one of each batch that measured it.

    The threads of a virtual machine change between one core and two within milliseconds; runs on one take 1.6
    to 1.8 times as long, and all of a batch can be such. What others do on the same chip makes processor time
    longer too, by 10 to 30 % for seconds. No run is faster than the network is: a time counts when two
    batches have seen it.
    """

    seen: list[Sample] = field(default_factory=list)

    def tell(self, sample: Sample) -> None:
        """Another batch's sample."""
        self.seen = sorted([*self.seen, sample], key=lambda one: one.best)

    @property
    def agreed(self) -> bool:
        """Whether two batches have seen the least time."""
        if len(self.seen) < 2:
            return False
        return self.seen[1].best <= self.seen[0].best * (1.0 + WITHIN[self.seen[0].clock])

    @property
    def least(self) -> Sample:
        """The fastest, with the kernels of all that told of them and ran the same graph."""
        return replace(self.seen[0], record=self._record)

    @property
    def sample(self) -> Sample:
        """The two fastest together, with those kernels."""
        both = self.seen[:2]
        wall, cpu = tuple(t for one in both for t in one.wall), tuple(t for one in both for t in one.cpu)
        return replace(self.least, wall=wall, cpu=cpu)

    @property
    def _record(self) -> KernelRecord | None:
        records = [one.record for one in self.seen if one.record is not None]
        if not records:
            return None
        same = [r for r in records if r.optimised == records[0].optimised]
        events = tuple(event for r in same for event in r.events)
        return KernelRecord(same[0].optimised, events, sum(r.runs for r in same))


__all__ = ["ANCHOR", "WITHIN", "Pace", "Visits"]
