"""Errors of hw_profiles: one root, one class per cause, each with its exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HwProfilesError(Exception):
    """Root of the package's errors; `exit_code` is what the command line returns."""

    exit_code: int = 3


class UnknownTargetError(HwProfilesError):
    """A target name that no YAML file answers to."""

    exit_code = 2

    def __init__(self, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.4)
        hint = f"Did you mean {close[0]!r}?" if close else f"Known targets: {', '.join(names)}."
        super().__init__(
            f"unknown target {name!r}. {hint}\nList them with `search targets`, or give a YAML file's path."
        )


class BadTargetError(HwProfilesError):
    """A target file that cannot be read or does not follow the schema."""

    exit_code = 3


class BadKernelsError(HwProfilesError):
    """Kernel columns of the wrong shape, name or value."""

    exit_code = 3


class UnsupportedSettingError(HwProfilesError):
    """A setting the target does not offer, such as more threads than cores."""

    exit_code = 2


class ResourceError(HwProfilesError):
    """A budget of the chip's resources that no build of the device fits into."""

    exit_code = 4


class MeasurementError(HwProfilesError):
    """A network that the runtime could not load or run."""

    exit_code = 3


class DeviceError(HwProfilesError):
    """A device that cannot be reached, refuses, answers nonsense, or measures too unsteadily."""

    exit_code = 5


class StoreError(DeviceError):
    """A profile that cannot be written: no space, no permission. What was measured before is kept."""

    exit_code = 5


class BadProfileError(HwProfilesError):
    """A profile that is damaged, does not follow the schema, or cannot be merged."""

    exit_code = 3
