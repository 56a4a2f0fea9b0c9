"""A guest under qemu-user, from the outside: start, ask, read its counts, notice when it dies.

The guest is `emulated_guest.py` under the Python of another processor. Its own folder holds what is passed
to and fro and is removed with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hw_profiles.devices.sysroot import Core, Sysroot, emulator, emulator_version
from hw_profiles.errors import DeviceError

GUEST = Path(__file__).parent / "emulated_guest.py"
#: Classes of instructions, in the order of a64_classes.h.
CLASSES = (
    "all", "load_store", "vector_memory", "simd", "fmla",
    "dot", "matrix", "multiply_wide", "branch", "integer",
)  # fmt: skip
#: The guest's interpreter and libraries start in 3 to 10 s; a busy machine gets more.
START_SECONDS = 180.0
_MARKS_AT = 8 * len(CLASSES)
_RING_AT = _MARKS_AT + 8
_RING = 65536
_ROW = 8 * (len(CLASSES) + 1)
#: Size of the file that the counter writes to.
COUNTER_BYTES = _RING_AT + _ROW * _RING
#: The main thread asking for the clock on the wall (CLOCK_REALTIME), as profilers of C++ do.
_WALL_CLOCK = 0
_REPLY_CHARS = 8_000_000


class GuestDied(DeviceError):
    """The guest ended or was ended while it worked on a request; the message says how."""


class GuestRefused(DeviceError):
    """The guest answered a request with a reason why not."""


@dataclass(frozen=True)
class Machine:
    """What is emulated: the command up to the guest's script, its environment, a few words on it.

    `plugin` is the counter of instructions; `{counts}` in the command stands for the file it writes.
    """

    name: str
    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    system: str


_QUIET = (
    ("OPENBLAS_NUM_THREADS", "1"), ("OMP_NUM_THREADS", "1"), ("PYTHONHASHSEED", "0"), ("LC_ALL", "C.UTF-8"),
)  # fmt: skip


def arm_machine(core: Core, sysroot: Sysroot, counted: bool = True) -> Machine:
    """An arm64 core with the sysroot's Python; its instructions are counted, unless only answers matter."""
    qemu, view = emulator("aarch64"), sysroot.view(core)
    python = view / "usr" / "bin" / f"python{sysroot.manifest.get('python', '3.11')}"
    plugin = ("-plugin", f"{sysroot.counter()},counts={{counts}}") if counted else ()
    command = (str(qemu), "-cpu", core.name, "-L", str(view), *plugin, str(python), "-s", "-B")
    environment = (("PATH", "/usr/bin:/bin"), ("PYTHONHOME", "/usr"), ("PYTHONPATH", "/opt/site"), *_QUIET)
    return Machine(core.name, command, environment, f"qemu-aarch64 {emulator_version(qemu)} -cpu {core.name}")


def x86_machine(model: str = "Haswell", counter: Path | None = None) -> Machine:
    """An x86-64 processor with this very Python: `Haswell` has AVX2 and FMA, neither AVX-512 nor VNNI."""
    qemu = emulator("x86_64")
    plugin = ("-plugin", f"{counter},counts={{counts}}") if counter is not None else ()
    paths = os.pathsep.join(p for p in sys.path if p and Path(p).is_dir())
    command = (str(qemu), "-cpu", model, *plugin, str(Path(sys.executable).resolve()), "-s", "-B")
    environment = (("PATH", "/usr/bin:/bin"), ("PYTHONPATH", paths), *_QUIET)
    return Machine(model, command, environment, f"qemu-x86_64 {emulator_version(qemu)} -cpu {model}")


class Guest:
    """A running guest. Not thread-safe; `close` ends it and removes its folder."""

    def __init__(self, machine: Machine, patience_s: float = 600.0) -> None:
        self.machine = machine
        self.patience_s = patience_s
        self._scratch = tempfile.TemporaryDirectory(prefix="tailorbird-guest-", ignore_cleanup_errors=True)
        self.folder = Path(self._scratch.name)
        self._counts = self.folder / "counts"
        self._counts.write_bytes(b"\0" * COUNTER_BYTES)
        command = [part.replace("{counts}", str(self._counts)) for part in machine.command]
        self._messages = (self.folder / "messages").open("w+b")
        try:
            self._process = subprocess.Popen(
                [*command, str(GUEST), str(self._counts)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._messages,
                env=dict(machine.environment),
                cwd=self.folder,
            )
        except OSError as problem:
            self._messages.close()
            self._scratch.cleanup()
            raise DeviceError(f"cannot start {command[0]!r}: {problem.strerror}") from problem
        self._replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self.facts = self.ask("hello", seconds=START_SECONDS)
        except DeviceError as problem:
            self.close()
            raise DeviceError(f"the emulated {machine.name} does not start: {problem}") from problem

    def ask(self, op: str, seconds: float | None = None, **request: Any) -> dict[str, Any]:
        """The guest's reply. Raises GuestRefused with its reason, GuestDied when there is no reply."""
        limit = self.patience_s if seconds is None else seconds
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps({"op": op, **request}).encode() + b"\n")
            self._process.stdin.flush()
            line = self._replies.get(timeout=limit)
        except queue.Empty:
            self._process.kill()
            raise GuestDied(f"no answer to {op!r} within {limit:.0f} s; the guest was ended") from None
        except (OSError, ValueError):
            line = b""
        if not line:
            raise GuestDied(self._last_words(op))
        try:
            reply = json.loads(line)
            refused = reply.get("error")
        except (ValueError, AttributeError) as problem:
            self._process.kill()
            raise GuestDied(f"the guest's answer to {op!r} is not JSON: {line[:80]!r}") from problem
        if refused is not None:
            raise GuestRefused(str(refused))
        return dict(reply)

    def marks(self, first: int, last: int) -> list[tuple[int, ...]]:
        """Counts by class at the looks at the clock on the wall, of marks `first` to before `last`."""
        if last - first > _RING:
            raise DeviceError(f"{last - first} marks in one run; the counter keeps {_RING}")
        found = []
        with self._counts.open("rb") as file:
            for i in range(first, last):
                file.seek(_RING_AT + (i % _RING) * _ROW)
                *counts, asked = struct.unpack(f"<{len(CLASSES) + 1}Q", file.read(_ROW))
                if asked == _WALL_CLOCK:
                    found.append(tuple(counts))
        return found

    def write(self, name: str, data: bytes) -> str:
        """Store bytes in the guest's folder; returns their path."""
        path = self.folder / name
        path.write_bytes(data)
        return str(path)

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the guest and leave nothing behind."""
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._messages.close()
        self._scratch.cleanup()

    def _listen(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        with stream:
            while line := stream.readline(_REPLY_CHARS):
                self._replies.put(line)
        self._replies.put(b"")

    def _last_words(self, op: str) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=5.0)
        status = self._process.poll()
        how = "still runs" if status is None else f"signal {-status}" if status < 0 else f"exit code {status}"
        self._messages.seek(0)
        lines = self._messages.read()[-4000:].decode(errors="replace").strip().splitlines()
        return f"the guest died at {op!r} ({how}): {lines[-1][:200] if lines else 'no message'}"


def stored_arrays(folder: Path, count: int) -> Sequence[Any]:
    """The arrays that the guest stored as 0.npy, 1.npy, ...; never pickles."""
    import numpy as np

    return [np.load(folder / f"{i}.npy", allow_pickle=False) for i in range(count)]
