"""Latency after a soak."""

from __future__ import annotations

import pytest

from hw_profiles.devices import Work
from hw_profiles.devices.simulated import SimulatedDevice, by_size
from hw_profiles.devices.soak import soak
from hw_profiles.errors import DeviceError
from hw_profiles.probes import probe

WORKS = [Work(f"lenet {i}", probe("lenet", i), runs=8) for i in (0, 1)]


def test_what_counts_comes_after_the_soak() -> None:
    device = SimulatedDevice(trouble={2: "throttled", 3: "throttled"}, drift=0.1)
    found = soak(device, WORKS, seconds=0.0)
    assert [entry.key for entry in found] == ["lenet 0", "lenet 1"]
    for number, (entry, work) in enumerate(zip(found, WORKS, strict=True), 2):
        warm = by_size(work) * (1.0 + 0.1 * number) * 2.0
        assert warm <= entry.best_ms <= entry.p50_ms <= entry.p95_ms < 1.05 * warm
        assert entry.peak_memory_bytes == 2 * len(work.model)
        assert entry.load_ms == 5.0
        assert entry.throttled_share == 0.5
        assert (entry.stable, entry.why) == (False, "unstable, because the device throttled")


def test_a_soak_lasts_and_names_what_does_not_run() -> None:
    device = SimulatedDevice()
    found = soak(device, WORKS[:1], seconds=0.2)
    assert found[0].seconds >= 0.2
    assert device.given >= 3
    assert found[0].throttled_share == 0.0
    with pytest.raises(DeviceError, match="'bad' does not run on simulated: no model"):
        soak(device, [Work("bad", b"junk")], seconds=0.0)
