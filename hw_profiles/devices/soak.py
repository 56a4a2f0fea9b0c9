"""How networks run once a device is warm: latency after a soak, and the share of it that was throttled."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hw_profiles.devices.contract import Device, Sample, Work
from hw_profiles.errors import DeviceError

#: One call of `measure` lasts about so long while soaking: signs of throttling are read after each.
_STRETCH_SECONDS = 5.0
_FEWEST_RUNS = 8


@dataclass(frozen=True)
class Soaked:
    """One network after `seconds` of soak: wall milliseconds (lower is better), memory in bytes.

    `throttled_share` is the share of stretches in which the device throttled, None where it does not tell.
    """

    key: str
    threads: int
    load_ms: float | None
    p50_ms: float
    p95_ms: float
    best_ms: float
    peak_memory_bytes: int | None
    throttled_share: float | None
    seconds: float
    stable: bool
    why: str


def soak(device: Device, works: Sequence[Work], seconds: float = 60.0) -> list[Soaked]:
    """Keep the device busy with the works for `seconds`, then measure them; one entry a work, in order.

    Raises DeviceError where the device is lost, or where a network does not run there.
    """
    start = time.monotonic()
    first = _samples(device, [replace(work, memory=True) for work in works])
    busy = [replace(work, runs=_runs(first[work.key], len(works)), rounds=1) for work in works]
    told = [sample.after.throttled for sample in first.values()]
    last = first
    while time.monotonic() - start < seconds:
        last = _samples(device, busy)
        told += [sample.after.throttled for sample in last.values()]
    last = _samples(
        device, [replace(work, rounds=4, runs=max(work.runs, 4 * _FEWEST_RUNS)) for work in works]
    )
    told += [sample.after.throttled for sample in last.values()]
    known = [bool(value) for value in told if value is not None]
    share = sum(known) / len(known) if known else None
    taken = time.monotonic() - start
    return [_soaked(work, first[work.key], last[work.key], share, taken) for work in works]


def _soaked(work: Work, first: Sample, last: Sample, share: float | None, seconds: float) -> Soaked:
    stable, why = last.verdict()
    p50, p95 = (float(np.quantile(last.wall, q)) for q in (0.5, 0.95))
    return Soaked(
        work.key, work.threads, first.load_ms, p50, p95, last.best, first.peak_memory_bytes, share, seconds,
        stable, why,
    )  # fmt: skip


def _runs(sample: Sample, works: int) -> int:
    """As many runs as fill a network's part of a stretch."""
    return max(_FEWEST_RUNS, int(_STRETCH_SECONDS / works / (sample.median * 1e-3)))


def _samples(device: Device, works: Sequence[Work]) -> dict[str, Sample]:
    found = {sample.key: sample for sample in device.measure(works)}
    for sample in found.values():
        if sample.error:
            raise DeviceError(f"{sample.key!r} does not run on {device.facts().device}: {sample.error}")
    return found


__all__ = ["Soaked", "soak"]
