"""What a device is measured for, in which order: the planner's works with the threads that are wanted.

Several threads rest on what one takes (`hw_profiles.threaded`), so that a share of the time goes to one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from hw_profiles.devices.contract import Device, DeviceFacts
from hw_profiles.kernel import KernelBatch
from hw_profiles.learned import Learned, learn
from hw_profiles.learned_store import observations
from hw_profiles.planner import Planner
from hw_profiles.profiles import Profile, ProfileStore
from hw_profiles.profiling import ProfilingReport, Progress, profile
from hw_profiles.target import Target

#: Share of the time that one thread is measured for where several are wanted, until so many networks are.
SINGLE_SHARE, SINGLE_ENOUGH = 0.4, 2000


def fill(
    device: Device,
    target: Target,
    store: ProfileStore,
    threads: int,
    seconds: float,
    *,
    interest: Sequence[KernelBatch] = (),
    seed: int = 0,
    accept_unstable: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> ProfilingReport:
    """Fill the device's profile for so long, what is of interest first. Raises DeviceError, StoreError.

    With several threads the report counts what was measured with one as well.
    """
    facts, timed = device.facts(), device.unit == "ms"
    first: ProfilingReport | None = None
    single: Learned | None = None
    if timed and threads > 1:
        if len(store.open(facts, 1).measured) < SINGLE_ENOUGH:
            first = fill(
                device, target, store, 1, SINGLE_SHARE * seconds, interest=interest, seed=seed,
                accept_unstable=accept_unstable, progress=progress, stop=stop,
            )  # fmt: skip
            if first.ended == "stopped":
                return first
            seconds = max(0.0, seconds - first.seconds)
        single = learn(observations(store.open(facts, 1)), target, 1, seed, calibrated=False)
    planner = Planner(
        target,
        threads,
        interest=tuple(interest),
        measured=lambda: observations(store.open(facts, threads)) if timed else (),
        seed=seed,
        single=single,
    )
    report = profile(
        device, planner.works(), store, budget_seconds=seconds, batch=planner.batch,
        accept_unstable=accept_unstable, anchor=planner.anchor() if timed else None, twice=timed,
        progress=_after(first, progress), stop=stop,
    )  # fmt: skip
    if first is not None:
        report.measured += first.measured
        report.held += first.held
        report.unstable_kept += first.unstable_kept
        report.failed |= first.failed
        report.refused |= first.refused
        report.seconds += first.seconds
        report.paths = [*first.paths, *report.paths]
    return report


def _after(
    first: ProfilingReport | None, progress: Callable[[Progress], None] | None
) -> Callable[[Progress], None] | None:
    """Progress that goes on where the measurements with one thread ended."""
    if first is None or progress is None:
        return progress
    tell, before = progress, first

    def told(now: Progress) -> None:
        tell(
            Progress(
                now.measured + before.measured,
                now.held + before.held,
                now.failed + len(before.failed),
                now.refused + len(before.refused),
                now.seconds + before.seconds,
                now.key,
            )
        )

    return told


def single_of(store: ProfileStore, facts: DeviceFacts, threads: int) -> tuple[Profile, Path] | None:
    """A device's profile with one thread and its file, where several are asked for and it is there."""
    if threads == 1:
        return None
    found = store.open(facts, 1)
    return (found, store.path(facts, 1)) if found.measured else None


__all__ = ["SINGLE_SHARE", "fill", "single_of"]
