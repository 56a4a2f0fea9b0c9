"""Devices: where networks run and are measured. See `hw_profiles.devices.contract`."""

from __future__ import annotations

from hw_profiles.devices.contract import Condition, Device, DeviceFacts, KernelRecord, Sample, Work

__all__ = ["Condition", "Device", "DeviceFacts", "KernelRecord", "Sample", "Work"]
