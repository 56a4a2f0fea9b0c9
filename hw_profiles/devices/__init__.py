"""Devices: where networks run and are measured. See `hw_profiles.devices.contract` and `open_device`."""

from __future__ import annotations

from hw_profiles.devices.contract import Condition, Device, DeviceFacts, KernelRecord, Sample, Work
from hw_profiles.devices.opening import open_device

__all__ = ["Condition", "Device", "DeviceFacts", "KernelRecord", "Sample", "Work", "open_device"]
