"""Numbers with units, in both directions: what a user writes, and what a table shows.

Internal units are fixed and named: ms, bytes, mJ, MACs, seconds, points (0.01 of the metric's unit).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from search.errors import UsageError

_NUMBER = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*")

_LATENCY_MS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3}
_SIZE_BYTES = {
    "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 1024.0, "mib": 1024.0**2, "gib": 1024.0**3,
}  # fmt: skip
_ENERGY_MJ = {"nJ": 1e-6, "uJ": 1e-3, "µJ": 1e-3, "μJ": 1e-3, "mJ": 1.0, "J": 1e3}
_MACS = {
    "macs": 1.0, "kmacs": 1e3, "mmacs": 1e6, "gmacs": 1e9, "mac": 1.0, "kmac": 1e3, "mmac": 1e6, "gmac": 1e9,
}  # fmt: skip
_DURATION_S = {"ms": 1e-3, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Kind:
    """One kind of quantity: how it is called, its units, and an example of each way to write it."""

    name: str
    units: Mapping[str, float]
    examples: str
    ignore_case: bool = True
    relative: bool = True


LATENCY = Kind("latency", _LATENCY_MS, "3ms, 250us, 1.2s, or 0.5x of the uncompressed network")
SIZE = Kind("size", _SIZE_BYTES, "200kB, 1MB, 1MiB, or 0.25x of the uncompressed network")
ENERGY = Kind("energy", _ENERGY_MJ, "5mJ, 800uJ, or 0.5x of the uncompressed network", ignore_case=False)
MACS = Kind("MACs", _MACS, "40MMACs, 1.2GMACs, or 0.5x of the uncompressed network")
DURATION = Kind("time", _DURATION_S, "45s, 3m, 1h", relative=False)

#: Cost name to the kind of quantity that limits it.
COST_KINDS: Mapping[str, Kind] = {
    "latency_ms": LATENCY,
    "size_bytes": SIZE,
    "memory_bytes": SIZE,
    "energy_mj": ENERGY,
    "macs": MACS,
}


@dataclass(frozen=True)
class Limit:
    """A budget as written.

    Attributes:
        written: the text, without blanks around it.
        value: in the kind's internal unit, or a factor of the uncompressed network's cost.
        relative: which of the two.
    """

    written: str
    value: float
    relative: bool

    def resolve(self, base: float) -> float:
        """The limit in the internal unit, `base` being the uncompressed network's cost in that unit."""
        return self.value * base if self.relative else self.value


def parse_limit(text: object, kind: Kind, name: str) -> Limit:
    """Reads `3ms`, `0.5x` and the like. `name` is the flag's, for the message. Raises UsageError."""
    written = str(text).strip()
    match = _NUMBER.fullmatch(written)
    if match is None:
        raise UsageError(f"{name} {written!r} is not a number with a unit.", f"Write {kind.examples}.")
    number, unit = float(match[1]), match[2]
    if not unit:
        raise UsageError(f"{name} {written} has no unit.", f"Write {kind.examples}.")
    if not 0 < number < float("inf"):
        raise UsageError(f"{name} {written} must be larger than 0.", f"Write {kind.examples}.")
    if unit in ("x", "X", "×"):
        if not kind.relative:
            raise UsageError(f"{name} {written} cannot be relative.", f"Write {kind.examples}.")
        return Limit(written, number, relative=True)
    factor = kind.units.get(unit.lower() if kind.ignore_case else unit)
    if factor is None:
        raise UsageError(f"{name} {written}: {unit!r} is no unit of {kind.name}.", f"Write {kind.examples}.")
    return Limit(written, number * factor, relative=False)


def parse_seconds(text: object, name: str) -> float:
    """Reads `45s`, `3m`, `1h`; `0` and `0s` are nothing. Seconds. Raises UsageError."""
    written = str(text).strip()
    if re.fullmatch(r"0+(\.0*)?\s*[a-z]*", written) and written.lstrip("0. ") in ("", *_DURATION_S):
        return 0.0
    return parse_limit(written, DURATION, name).value


def parse_points(text: object, name: str) -> float:
    """Reads a drop in points, `1.0` or `1pt`; 0 or more. Raises UsageError."""
    written = str(text).strip()
    match = _NUMBER.fullmatch(written)
    if match is None or match[2] not in ("", "pt", "points", "point"):
        raise UsageError(f"{name} {written!r} is not a number of points.", "Write 1.0 for one point.")
    value = float(match[1])
    if not 0 <= value < float("inf"):
        raise UsageError(f"{name} {written} must be 0 or more.", "Write 1.0 for one point.")
    return value


def significant(value: float, digits: int = 2) -> str:
    """`value` with so many significant digits, never in exponent form: 4.2, 12, 0.53, 1094."""
    if value == 0 or value != value or value in (float("inf"), float("-inf")):
        return f"{value:.0f}"
    shown = float(f"{value:.{digits - 1}e}")
    exponent = int(f"{shown:e}".split("e")[1])
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


def format_ms(value_ms: float) -> str:
    """`3.02 ms`, `12.4 ms`, `0.183 ms`; from 10 s on in seconds, below 0.01 ms in µs."""
    if abs(value_ms) >= 10_000:
        return f"{significant(value_ms / 1e3, 3)} s"
    if 0 < abs(value_ms) < 0.01:
        return f"{significant(value_ms * 1e3, 3)} µs"
    return f"{significant(value_ms, 3 if abs(value_ms) >= 0.1 else 2)} ms"


def format_interval(low: float, high: float) -> str:
    """`4.2-9.5`: two numbers of one unit, as precise as the narrower needs."""
    digits = 2
    while digits < 4 and low != high and significant(low, digits) == significant(high, digits):
        digits += 1
    return f"{significant(low, digits)}-{significant(high, digits)}"


def format_bytes(value: float) -> str:
    """`812 B`, `212 kB`, `23.4 MB`; kB = 1000 bytes."""
    if abs(value) < 1000:
        return f"{value:.0f} B"
    if abs(value) < 10e6:
        return f"{value / 1e3:.0f} kB" if abs(value) >= 10e3 else f"{value / 1e3:.1f} kB"
    if abs(value) < 10e9:
        return f"{significant(value / 1e6, 3)} MB"
    return f"{significant(value / 1e9, 3)} GB"


def format_macs(value: float) -> str:
    """`40.8 MMACs`, `1.20 GMACs`, `950 kMACs`."""
    for factor, unit in ((1e9, "GMACs"), (1e6, "MMACs"), (1e3, "kMACs")):
        if abs(value) >= factor:
            return f"{significant(value / factor, 3)} {unit}"
    return f"{value:.0f} MACs"


def format_mj(value: float) -> str:
    """`5.00 mJ`, `812 µJ`, `1.20 J`."""
    if abs(value) >= 1000:
        return f"{significant(value / 1e3, 3)} J"
    return f"{significant(value * 1e3, 3)} µJ" if abs(value) < 1 else f"{significant(value, 3)} mJ"


def format_cost(name: str, value: float) -> str:
    """A cost by its name (`latency_ms`, `size_bytes`, ...) with its unit."""
    formats = {
        "latency_ms": format_ms,
        "latency_high_ms": format_ms,
        "energy_mj": format_mj,
        "macs": format_macs,
    }
    return formats.get(name, format_bytes)(value)


def format_count(value: float) -> str:
    """`0.27 M`, `4.65 M`, `12.3 k`, `640`."""
    if abs(value) >= 1e5:
        return f"{value / 1e6:.2f} M"
    return f"{value / 1e3:.1f} k" if abs(value) >= 1e3 else f"{value:.0f}"


def format_points(value: float) -> str:
    """A drop in points, `0.4 pt`; better than the base is negative."""
    return f"{value + 0.0:.1f} pt" if abs(value) >= 0.05 else "0.0 pt"


def format_metric(value: float, unit: str) -> str:
    """A metric's value: `98.6 %` where the unit is %, else four digits and the unit."""
    return f"{100 * value:.1f} %" if unit == "%" else f"{value:.4g} {unit}".rstrip()


def format_seconds(seconds: float) -> str:
    """A time a person waits: `0:59`, `12:05`, `1:02:03`."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
