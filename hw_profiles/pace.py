"""How fast a device is now against its best: phases of minutes that no single measurement can see.

Heat, or other work on a shared machine, slows a device for minutes. Halves of one sample then agree, and
both are wrong. One network, the anchor, is measured along with every batch: what comes while it is slower
than it was is called unstable; where it turns out faster than before, what was measured until then is to be
measured again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hw_profiles.devices.contract import STABLE_WITHIN, Sample, Work

#: The anchor's key among the works of a batch.
ANCHOR = "anchor"


@dataclass
class Pace:
    """The anchor's times. Without a work, nothing is ever slow.

    `now` is its least run in the latest batch, in the device's unit; `best` the least of all steady ones.
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
        """The anchor's sample of this batch; an unsteady one says nothing."""
        if not sample.error and sample.verdict()[0]:
            self.now, self._clock = sample.best, sample.clock
            self.best = self.now if self.best is None else min(self.best, self.now)

    def slow(self) -> str:
        """Why what is measured now does not count, "" where it does."""
        if self.now is None or self.best is None or not self._apart(self.now):
            return ""
        return (
            f"unstable, because the device is {self.now / self.best - 1:.1%} slower than it was "
            f"({STABLE_WITHIN[self._clock]:.1%})"
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
        return self.best is not None and time > self.best * (1.0 + STABLE_WITHIN[self._clock])


__all__ = ["ANCHOR", "Pace"]
