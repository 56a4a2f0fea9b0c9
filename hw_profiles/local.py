"""The target `local`: this machine, told from /proc/cpuinfo, with its closest relative's constants."""

from __future__ import annotations

import math
import os
import platform
from functools import lru_cache
from pathlib import Path

from hw_profiles.target import Constant, Cost, Interval, Target, Validation, load_target

_CPUINFO = Path("/proc/cpuinfo")


def cpu_flags(text: str) -> frozenset[str]:
    """Instruction-set flags of the first core in a /proc/cpuinfo text (x86 `flags`, Arm `Features`)."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return frozenset(value.split())
    return frozenset()


@lru_cache(maxsize=1)
def local_target() -> Target:
    """This machine. AVX512-VNNI gets the fitted constants; others get them scaled, with a wide interval."""
    text = _CPUINFO.read_text(encoding="utf-8", errors="replace") if _CPUINFO.exists() else ""
    return describe(cpu_flags(text), platform.machine(), len(os.sched_getaffinity(0)))


def describe(flags: frozenset[str], machine: str, cores: int) -> Target:
    """The local target for instruction-set flags, machine name ("x86_64", "aarch64") and usable cores."""
    base = load_target("x86-avx512-vnni")
    changes: dict[str, object] = {
        "name": "local",
        "aliases": (),
        "default_threads": 1,
        "device": base.device.model_copy(
            update={"cores": max(cores, 1), "chip": f"this machine ({machine})"}
        ),
    }
    if "avx512_vnni" in flags and machine in ("x86_64", "AMD64"):
        changes |= {
            "title": "this machine: x86-64, AVX-512 VNNI, onnxruntime",
            "cost": base.cost.model_copy(update={"interval": _another(base.cost.interval)}),
            "validation": Validation(status="unvalidated"),
            "backing": "constants of another processor of this kind; `search profile` measures this one",
        }
        return base.model_copy(update=changes)
    arm = machine in ("aarch64", "arm64")
    isa = "arm64" if arm else ("avx2" if "avx2" in flags else machine)
    factors = VECTOR_FACTORS.get(isa, VECTOR_FACTORS["other"])
    changes |= {
        "title": f"this machine: {isa}, onnxruntime",
        "isa": isa,
        "runtime": base.runtime.model_copy(update={"templates": "host"}),
        "numerics": base.numerics.model_copy(update={"reduced_range_weights": isa == "avx2"}),
        "cost": slower(base.cost, *factors),
        "validation": Validation(status="unvalidated"),
        "backing": f"constants of x86-avx512-vnni scaled by vector width for {isa}; measure to correct them",
    }
    return base.model_copy(update=changes)


#: 90 % factor between two machines of one instruction set. Measured: an AMD EPYC (Zen 5) takes 0.41 to
#: 0.75 of what the constants of an Intel server say, 30 compressed networks of six families.
_ANOTHER_MACHINE = 2.3


def _another(interval: Interval) -> Interval:
    """The interval of constants that were measured on another machine."""
    spread = math.hypot(math.log(interval.runtime_factor.value), math.log(_ANOTHER_MACHINE))
    source = f"{interval.runtime_factor.source}; another machine x{_ANOTHER_MACHINE:g}, measured on one"
    return interval.model_copy(update={"runtime_factor": Constant(value=math.exp(spread), source=source)})


_WIDTH = "vector width against 512-bit AVX-512 VNNI (Arm and Intel instruction-set references)"
#: Factors on (float, integer) arithmetic constants, and the 90 % factor that remains unknown.
VECTOR_FACTORS = {"avx2": (2.0, 4.0, 1.8), "arm64": (4.0, 4.0, 2.5), "other": (4.0, 8.0, 3.0)}
_ARITHMETIC = ("macs", "tiles", "broadcast", "accumulate", "taps", "left_taps", "row_taps", "edge", "depth")


def slower(cost: Cost, float_factor: float, int_factor: float, unknown: float) -> Cost:
    """A cost table with its arithmetic constants times a factor; `unknown` (a factor) widens it."""
    constants = {}
    for table, entries in cost.constants.items():
        factor = int_factor if "int8" in table else float_factor
        constants[table] = {
            name: Constant(value=c.value * factor, source=f"{c.source}; x{factor:g} for {_WIDTH}")
            if name in _ARITHMETIC
            else c
            for name, c in entries.items()
        }
    spread = math.hypot(math.log(cost.interval.runtime_factor.value), math.log(unknown))
    source = f"{cost.interval.runtime_factor.source}; unmeasured core x{unknown:g}"
    wide = Constant(value=math.exp(spread), source=source)
    interval = cost.interval.model_copy(update={"runtime_factor": wide})
    return cost.model_copy(update={"constants": constants, "interval": interval})
