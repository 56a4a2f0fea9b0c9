"""How fast a device is now against its best: phases of seconds to minutes that no single sample can see.

Heat, or other work on a shared machine, slows a device for minutes; the threads of a virtual machine share
one core at times and have two at others. Halves of one sample then agree, and both are wrong. One network,
the anchor, is measured along with every batch, round by round: of a sample in wall time those rounds count
in which the anchor was about as fast as ever. Where it was slow in all of them, what came is called unstable;
where it turns out faster than before, what was measured until then is to be measured again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from hw_profiles.devices.contract import Sample, Work

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
    _rounds: tuple[float, ...] = ()
    _at: dict[str, float] = field(default_factory=dict)

    def works(self) -> list[Work]:
        """What is to be measured first in a batch."""
        return [] if self.work is None else [replace(self.work, key=ANCHOR, kernels=False)]

    def begin(self) -> None:
        """A batch is about to be measured: the anchor's time in it is not known yet."""
        self.now, self._rounds = None, ()

    def tell(self, sample: Sample) -> None:
        """The anchor's sample of this batch; one of processor time that is unsteady says nothing."""
        if sample.error or self.work is None or not (sample.clock == "wall" or sample.verdict()[0]):
            return
        self.now, self._clock = sample.best, sample.clock
        self._rounds = tuple(min(runs) for runs in _rounds(sample.runs, self.work.rounds))
        self.best = self.now if self.best is None else min(self.best, self.now)

    def calm(self, sample: Sample, rounds: int) -> Sample:
        """A sample of this batch with the runs that count: all of them where the anchor tells nothing.

        A round counts if the anchor, which is first in each, was fast in it and in the next one.
        """
        parts = _rounds(sample.wall, rounds)
        if sample.clock != "wall" or not parts or len(parts) != len(self._rounds):
            return sample
        fast = [not self._apart(time) for time in self._rounds]
        kept = [runs for k, runs in enumerate(parts) if all(fast[k : k + 2])]
        return replace(sample, wall=tuple(t for runs in kept for t in runs)) if kept else sample

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


def _rounds(runs: Sequence[float], rounds: int) -> list[Sequence[float]]:
    """Runs in order, by the round they belong to; none where they do not divide into so many."""
    each = len(runs) // rounds
    return [runs[k * each : (k + 1) * each] for k in range(rounds)] if each * rounds == len(runs) > 0 else []


__all__ = ["ANCHOR", "WITHIN", "Pace"]
