"""Where the emulated ARM device lives on this machine: the arm64 sysroot, one view of it for each core, the
instruction counter. `scripts/arm_sysroot.py` builds the sysroot; nothing here needs the network.

A sysroot is a folder

    root/                   Debian arm64 with Python, and numpy and onnxruntime in /opt/site
    cores/cortex-a72/       links to all of root/, and /proc/cpuinfo and /sys/devices/system/cpu of that core
    manifest.json           versions of what is inside; written last

onnxruntime picks its kernels by what those two places say. Every core has its own, and they are never
rewritten, so guests of different cores can share a sysroot.

From Debian: `qemu-user` (the dynamic one: `qemu-user-static` loads no plugins), `debootstrap`, `gcc`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hw_profiles.errors import DeviceError

#: Raised when what is inside a sysroot changes.
SYSROOT_VERSION = 1
BUILD_COMMAND = "python scripts/arm_sysroot.py"
APT_COMMAND = "apt-get install qemu-user debootstrap gcc"
#: Overrides the folder in the user's cache.
SYSROOT_VARIABLE = "TAILORBIRD_ARM_SYSROOT"
_HERE = Path(__file__).parent
PLUGIN_SOURCES = (_HERE / "a64_counter.c", _HERE / "a64_classes.h")


@dataclass(frozen=True)
class Core:
    """An Arm core as Linux describes it. `part`, `variant`, `revision`: fields of MIDR_EL1; `features`: names
    of its hwcaps; clock in kHz of the board with the `chip`."""

    name: str
    chip: str
    part: int
    variant: int
    revision: int
    features: str
    max_khz: int
    isa: str


_V80 = "fp asimd evtstrm crc32 cpuid"
_V82 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
#: Part numbers: Arm's Technical Reference Manuals (MIDR_EL1). Features: as Raspberry Pi 3, 4, 5 show them.
CORES: Mapping[str, Core] = {
    core.name: core
    for core in (
        Core("cortex-a53", "BCM2837, 4x Cortex-A53", 0xD03, 0, 4, _V80, 1_400_000, "arm64-neon"),
        Core("cortex-a72", "BCM2711, 4x Cortex-A72", 0xD08, 0, 3, _V80, 1_800_000, "arm64-neon"),
        Core("cortex-a76", "BCM2712, 4x Cortex-A76", 0xD0B, 4, 1, _V82, 2_400_000, "arm64-dotprod"),
    )
}


def core_named(name: str) -> Core:
    """The core of a name. Raises DeviceError with the near match."""
    if name not in CORES:
        near = difflib.get_close_matches(name, CORES, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(CORES)}."
        raise DeviceError(f"no emulated core {name!r}. {hint}")
    return CORES[name]


def default_sysroot() -> Path:
    """The folder of the sysroot: $TAILORBIRD_ARM_SYSROOT, else one in the user's cache."""
    given = os.environ.get(SYSROOT_VARIABLE)
    if given:
        return Path(given)
    import platformdirs

    return Path(platformdirs.user_cache_dir("tailorbird")) / f"arm64-sysroot-{SYSROOT_VERSION}"


@dataclass(frozen=True)
class Sysroot:
    """A complete sysroot."""

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def find(cls, folder: Path | None = None) -> Sysroot:
        """The sysroot in a folder, by default the user's. Raises DeviceError, saying what builds it."""
        where = folder if folder is not None else default_sysroot()
        try:
            manifest = json.loads((where / "manifest.json").read_text(encoding="utf-8"))
            version = manifest["sysroot_version"]
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise DeviceError(
                f"no arm64 sysroot in {str(where)!r}. Build it with: {BUILD_COMMAND}"
            ) from problem
        if version != SYSROOT_VERSION:
            raise DeviceError(
                f"the arm64 sysroot in {str(where)!r} is of version {version}, not {SYSROOT_VERSION}. "
                f"Build it again with: {BUILD_COMMAND}"
            )
        return cls(where, manifest)

    def view(self, core: Core) -> Path:
        """The sysroot as a machine with this core sees it, made on first use."""
        place = self.folder / "cores" / core.name
        if not place.is_dir():
            make_view(self.folder, core)
        return place

    def counter(self) -> Path:
        """The counter of instructions, compiled on first use."""
        return compile_counter(self.folder)


def make_view(folder: Path, core: Core) -> Path:
    """A folder of links to root/ with /proc and /sys of one core; whole or not there at all."""
    place = folder / "cores" / core.name
    place.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{core.name}-", dir=place.parent))
    part.chmod(0o755)
    for entry in sorted((folder / "root").iterdir()):
        if entry.name not in ("proc", "sys", "dev", "tmp"):
            (part / entry.name).symlink_to(Path("../../root") / entry.name)
    describe_core(part, core)
    try:
        part.rename(place)
    except OSError:  # another process was first
        shutil.rmtree(part, ignore_errors=True)
        if not place.is_dir():
            raise
    return place


def describe_core(place: Path, core: Core, cores: int = 4) -> None:
    """Write /proc/cpuinfo and /sys/devices/system/cpu as Linux shows them on `cores` such cores."""
    lines = [
        f"processor\t: {i}\nBogoMIPS\t: 108.00\nFeatures\t: {core.features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: {core.variant:#x}\nCPU part\t: {core.part:#x}\n"
        f"CPU revision\t: {core.revision}\n"
        for i in range(cores)
    ]
    everyone = f"0-{cores - 1}\n"
    files = {"proc/cpuinfo": "\n".join(lines) + "\n"}
    system = "sys/devices/system/cpu"
    files |= {f"{system}/{name}": everyone for name in ("possible", "present", "online")}
    files[f"{system}/kernel_max"] = "255\n"
    for i in range(cores):
        at = f"{system}/cpu{i}"
        files[f"{at}/cpufreq/cpuinfo_max_freq"] = f"{core.max_khz}\n"
        files[f"{at}/cpufreq/cpuinfo_min_freq"] = "600000\n"
        files[f"{at}/topology/physical_package_id"] = "0\n"
        files[f"{at}/topology/core_id"] = f"{i}\n"
        for name in ("core_siblings_list", "cluster_cpus_list", "package_cpus_list"):
            files[f"{at}/topology/{name}"] = everyone
    for name, text in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")


def compile_counter(folder: Path) -> Path:
    """The counter as a shared library in a folder, by the digest of its source. Raises DeviceError."""
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in PLUGIN_SOURCES)).hexdigest()[:12]
    made = folder / f"a64_counter-{digest}.so"
    if made.exists():
        return made
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise DeviceError(f"no C compiler for the counter of instructions. Install it with: {APT_COMMAND}")
    part = folder / f".{made.name}.{os.getpid()}"
    command = [
        compiler,
        "-O2",
        "-Wall",
        "-Werror",
        "-shared",
        "-fPIC",
        str(PLUGIN_SOURCES[0]),
        "-o",
        str(part),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as problem:
        raise DeviceError(f"cannot run {compiler!r}: {problem.strerror}") from problem
    if done.returncode:
        raise DeviceError(f"the counter of instructions does not compile: {_last(done.stderr)}")
    part.replace(made)
    return made


def emulator(machine: str) -> Path:
    """Debian's dynamic qemu-user for a machine name ("aarch64", "x86_64"). Raises DeviceError."""
    found = shutil.which(f"qemu-{machine}")
    if found is None:
        raise DeviceError(f"no qemu-{machine} on this machine. Install it with: {APT_COMMAND}")
    return Path(found)


def emulator_version(path: Path) -> str:
    """Its own words, e.g. "7.2.17"; "" where it does not tell."""
    done = subprocess.run([str(path), "--version"], capture_output=True, text=True, check=False)
    words = done.stdout.split()
    return words[words.index("version") + 1] if "version" in words else ""


def _last(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no message"
