"""Build the arm64 sysroot of the emulated ARM device: Debian's Python, and numpy and onnxruntime as here.

    python scripts/arm_sysroot.py [--folder DIR] [--again]

Takes a minute or two, once. Nothing runs as arm64 while it is built: packages are only unpacked. The folder
appears whole or not at all. Needs, from Debian: qemu-user, debootstrap, gcc (and fakeroot, unless root).
onnxruntime and numpy get the versions installed here; where there is no arm64 wheel of one, pip's choice,
and the script says so.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from hw_profiles.devices.sysroot import (  # noqa: E402
    APT_COMMAND,
    CORES,
    SYSROOT_VERSION,
    compile_counter,
    default_sysroot,
    emulator,
    emulator_version,
    make_view,
)
from hw_profiles.errors import DeviceError  # noqa: E402

SUITE, PYTHON = "bookworm", "3.11"
PACKAGES = (
    "python3-minimal", f"libpython{PYTHON}-stdlib", f"python{PYTHON}-minimal",
    "libstdc++6", "zlib1g", "libexpat1",
)  # fmt: skip
#: Platforms that wheels for Debian 12 (glibc 2.36) on arm64 are labelled with.
PLATFORMS = (
    *(f"manylinux_2_{n}_aarch64" for n in (35, 34, 31, 28, 27, 24, 17)),
    "manylinux2014_aarch64",
)
#: Parts of Debian that no network needs.
LEFT_OUT = (
    "var", "boot", "home", "media", "mnt", "srv",
    "usr/share/doc", "usr/share/locale", "usr/share/man",
)  # fmt: skip


def run(command: list[str], what: str) -> None:
    """Run a program; on failure its last words."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise DeviceError(f"{what} failed: {lines[-1][:300]}")


def missing_programs() -> list[str]:
    """Debian packages to be installed first."""
    needed = {"qemu-aarch64": "qemu-user", "debootstrap": "debootstrap", "gcc": "gcc", "dpkg": "dpkg"}
    if os.geteuid():
        needed["fakeroot"] = "fakeroot"
    search = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"
    return [package for program, package in needed.items() if shutil.which(program, path=search) is None]


def debian(root: Path) -> None:
    """A lean Debian for arm64: packages unpacked, none configured."""
    program = shutil.which("debootstrap") or "/usr/sbin/debootstrap"
    command = [program, "--arch=arm64", "--foreign", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    run([*(["fakeroot"] if os.geteuid() else []), *command, SUITE, str(root)], "debootstrap")
    for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
        run(["dpkg", "-x", str(package), str(root)], f"unpacking {package.name}")
    for name in LEFT_OUT:
        shutil.rmtree(root / name, ignore_errors=True)


def wheels(root: Path) -> dict[str, str]:
    """Install onnxruntime and numpy for arm64; returns their versions."""
    target = root / "opt" / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(target)]
    pip += ["--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    pip += [part for platform in PLATFORMS for part in ("--platform", platform)]
    pinned = {name: metadata.version(name) for name in ("onnxruntime", "numpy")}
    choices = (
        [f"{name}=={version}" for name, version in pinned.items()],
        [f"onnxruntime=={pinned['onnxruntime']}", "numpy"],
        list(pinned),
    )
    for wanted in choices:
        try:
            run([*pip, *wanted], f"pip install {' '.join(wanted)}")
            break
        except DeviceError as problem:
            print(f"{problem}", file=sys.stderr)
            shutil.rmtree(target, ignore_errors=True)
    found = {d.metadata["Name"]: d.version for d in metadata.distributions(path=[str(target)])}
    if not {"onnxruntime", "numpy"} <= set(found):
        raise DeviceError("pip found no arm64 wheels of onnxruntime and numpy; the lines above say why")
    for name, version in pinned.items():
        if found[name] != version:
            print(
                f"note: {name} {found[name]} there, {version} here: no arm64 wheel of that", file=sys.stderr
            )
    return {name: found[name] for name in pinned}


def build(folder: Path) -> dict[str, object]:
    """Build a sysroot beside `folder`, then move it there; returns its manifest."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        part = Path(scratch) / "sysroot"
        print(f"Debian {SUITE} for arm64 ...", file=sys.stderr)
        debian(part / "root")
        print("onnxruntime and numpy for arm64 ...", file=sys.stderr)
        versions = wheels(part / "root")
        for core in CORES.values():
            make_view(part, core)
        compile_counter(part)
        manifest = {
            "sysroot_version": SYSROOT_VERSION,
            "debian": SUITE,
            "python": PYTHON,
            **versions,
            "qemu_user": emulator_version(emulator("aarch64")),
        }
        (part / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        part.rename(folder)
    return manifest


def main() -> int:
    """Build, unless it is there; prints the folder on stdout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=default_sysroot())
    parser.add_argument("--again", action="store_true", help="even if there is one of these versions")
    given = parser.parse_args()
    packages = missing_programs()
    if not given.again and up_to_date(given.folder):
        print("the sysroot is there already; --again builds it anew", file=sys.stderr)
    elif packages:
        print(f"missing on this machine: {', '.join(packages)}. Install with: {APT_COMMAND}", file=sys.stderr)
        return 3
    else:
        try:
            print(json.dumps(build(given.folder.absolute())), file=sys.stderr)
        except (DeviceError, OSError) as problem:
            print(f"error: {problem}", file=sys.stderr)
            return 3
    print(given.folder.absolute())
    return 0


def up_to_date(folder: Path) -> bool:
    """Whether a sysroot of this version with this machine's onnxruntime is there."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return (manifest["sysroot_version"], manifest["onnxruntime"]) == (
            SYSROOT_VERSION,
            metadata.version("onnxruntime"),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


if __name__ == "__main__":
    sys.exit(main())
