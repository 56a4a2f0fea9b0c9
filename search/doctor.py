"""`search doctor`: is this machine fit to search? One line a check."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from search.runfolder import cpu_model
from search.units import format_bytes

#: Package, why it is needed, the version that is known bad and the one to take instead.
NEEDED = (
    ("torch", "networks", None, None),
    ("onnxruntime", "kernels and verification", None, None),
    ("onnx", "export", None, None),
    ("optuna", "agents tpe, gp, nsga2", None, None),
    ("cmaes", "agent cmaes", None, None),
    ("ray", "several workers", None, None),
    ("apache-tvm-ffi", "cross-check", "0.1.15.post2", "0.1.14.post1"),
)
LEAST_DISK_BYTES = 500e6
_SATURATES = (
    "products of 8 bits saturate in onnxruntime here: what is made for this machine has weights of 7 bits, "
    "what is made for others is verified with weights shifted to unsigned ones"
)
_ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm")


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: what was checked.
        good: whether a search can rely on it.
        text: the fact, and where it is bad, what to do.
    """

    name: str
    good: bool
    text: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def examine() -> list[Finding]:
    """All checks. A check that fails unexpectedly is a finding, not a crash."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _packages, _imports, _processor, _cache, _disk, _clock, _emulation,
    )  # fmt: skip
    found: list[Finding] = []
    for check in checks:
        try:
            found += check()
        except Exception as error:
            found.append(Finding(check.__name__.strip("_"), False, f"{type(error).__name__}: {error}"))
    return found


def cache_folder() -> Path:
    """Where templates and trained weights are kept between runs."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("tailorbird", appauthor=False))


def check_version(package: str, version: str | None, bad: str | None, better: str | None) -> Finding:
    """Judges one package's version; None where it is not installed."""
    again = "Run scripts/search once more, or"
    if version is None:
        return Finding(package, False, f"is missing. {again} pip install {package}.")
    if bad is not None and version == bad:
        return Finding(
            package, False, f"{version} is known to crash. {again} pip install {package}=={better}."
        )
    return Finding(package, True, version)


def _packages() -> Iterator[Finding]:
    for package, _, bad, better in NEEDED:
        version: str | None = None
        with contextlib.suppress(metadata.PackageNotFoundError):
            version = metadata.version(package)
        yield check_version(package, version, bad, better)


def _imports() -> Iterator[Finding]:
    """That what is installed also loads: a wheel for another processor fails only here."""
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    good = "CPUExecutionProvider" in providers
    yield Finding("runtime", good, f"onnxruntime offers {', '.join(providers)}")


def _processor() -> Iterator[Finding]:
    from .integers import saturates

    flags = processor_flags()
    known = [flag for flag in _ISA_FLAGS if flag in flags]
    cores = os.cpu_count() or 1
    yield Finding(
        "processor", True, f"{cpu_model()}, {cores} cores, {' '.join(known) or 'no vector units known'}"
    )
    yield Finding("integers", True, _SATURATES if saturates() else "products of 8 bits are exact")


def processor_flags() -> frozenset[str]:
    """Instruction sets as the kernel names them; empty where it does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return frozenset(value.split())
    return frozenset()


def _cache() -> Iterator[Finding]:
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield Finding(
            "cache", False, f"{folder}: {error.strerror}. Set XDG_CACHE_HOME to a folder you may write to."
        )
    else:
        yield Finding("cache", True, f"{folder} is writable")


def _disk() -> Iterator[Finding]:
    for name, folder in (("disk here", Path.cwd()), ("disk cache", cache_folder())):
        existing = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(existing).free
        advice = (
            "" if free >= LEAST_DISK_BYTES else f". Make room: {format_bytes(LEAST_DISK_BYTES)} are needed."
        )
        yield Finding(name, free >= LEAST_DISK_BYTES, f"{format_bytes(free)} free{advice}")


def _clock() -> Iterator[Finding]:
    """Kernels take microseconds: a coarse or running-away clock makes measurements worthless."""
    resolution = time.get_clock_info("perf_counter").resolution
    steps = [time.perf_counter_ns() for _ in range(2000)]
    forward = all(b >= a for a, b in itertools.pairwise(steps))
    good = forward and resolution <= 1e-6
    text = f"resolution {resolution * 1e9:.0f} ns"
    yield Finding("clock", good, text if good else f"{text}; measurements on this machine cannot be trusted")


def _emulation() -> Iterator[Finding]:
    """Other processors, which nothing depends on: where they are missing, how to get them."""
    from hw_profiles.devices.sysroot import APT_COMMAND, BUILD_COMMAND, Sysroot, emulator
    from hw_profiles.errors import DeviceError

    try:
        emulator("aarch64")
        sysroot = Sysroot.find()
    except DeviceError:
        yield Finding("emulation", True, f"no emulated Arm (optional): {APT_COMMAND}; {BUILD_COMMAND}")
    else:
        version = sysroot.manifest.get("onnxruntime", "?")
        yield Finding("emulation", True, f"arm64 onnxruntime {version} under qemu-user")
