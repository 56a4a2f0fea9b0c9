"""onnxruntime on processors that are not this one, asked under emulation: its graphs and its kernels.

A guest starts in about three seconds, answers in about a tenth of one, and is kept until the process ends.
Where the emulator is not set up, this machine's own runtime stands in, and templates say so by their key.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hw_profiles.errors import DeviceError

if TYPE_CHECKING:
    from hw_profiles.devices.emulated import EmulatedX86

#: Processors in qemu's words, by template method.
PROCESSORS: Mapping[str, str] = {"x86-avx2": "Haswell"}


def foreign(method: str) -> EmulatedX86 | None:
    """The emulated processor that a template method asks; None where this machine itself is asked."""
    processor = PROCESSORS.get(method)
    if processor is None or _is_native():
        return None
    return _opened(processor, os.getpid())


def _is_native() -> bool:
    """Whether this machine's onnxruntime makes the graphs of AVX2: blocks of 8, not of 16."""
    from hw_profiles.local import cpu_flags

    path = Path("/proc/cpuinfo")
    flags = cpu_flags(path.read_text(errors="replace")) if path.exists() else frozenset()
    return "avx2" in flags and "avx512f" not in flags


@lru_cache(maxsize=8)
def _opened(processor: str, process: int) -> EmulatedX86 | None:
    """One device a processor and process: a forked child must not share its parent's pipes."""
    from hw_profiles.devices.emulated import EmulatedX86

    device = EmulatedX86(processor)
    try:
        device.check()
    except DeviceError:
        return None
    atexit.register(device.close)
    return device


def executed(
    device: EmulatedX86, model: bytes, inputs: Mapping[str, Any]
) -> tuple[bytes, Sequence[Mapping[str, Any]]]:
    """(optimised graph, profiler events of one run) of a network there. Raises DeviceError."""
    from hw_profiles.devices.contract import Work

    work = Work("kernels", model, runs=1, rounds=1, kernels=True, inputs=inputs)
    sample = next(iter(device.measure([work])))
    if sample.record is None:
        raise DeviceError(sample.error or "no record of kernels")
    return sample.record.optimised, sample.record.events
