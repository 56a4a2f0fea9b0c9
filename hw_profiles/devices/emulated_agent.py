"""The agent on a core that is not here: the arm64 onnxruntime, emulated, behind the wire that boards have.

    with EmulatedAgent("cortex-a72") as agent:
        ...  # search --target raspberry-pi-4 --host {agent.address} --token {agent.token}

The whole flow of a board (profile, search, measure) runs against it, with that core's kernels and answers.
Its milliseconds are what the emulation takes: a slow device of its own, which calls itself emulated, and no
Raspberry Pi. For what says something of the core see `hw_profiles.devices.emulated`: instructions.

Set-up as there: `apt-get install qemu-user debootstrap gcc`, then `python scripts/arm_sysroot.py`.
"""

from __future__ import annotations

import queue
import secrets
import shlex
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

from hw_profiles.devices import agent
from hw_profiles.devices.emulation import START_SECONDS, Machine, arm_machine
from hw_profiles.devices.sysroot import Sysroot, core_named
from hw_profiles.errors import DeviceError

_READY = "agent: http://"
_END_SECONDS = 10.0


class EmulatedAgent:
    """`agent.py serve` under qemu-user on loopback, from entering the context until leaving it.

    Raises DeviceError where qemu-user or the sysroot is missing, or where the agent does not start.
    """

    def __init__(self, core: str = "cortex-a72", sysroot: Path | None = None, port: int = 0) -> None:
        self.core = core_named(core)
        self.token = secrets.token_urlsafe(24)
        self.address = ""
        self._sysroot, self._port = sysroot, port
        self._process: subprocess.Popen[str] | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._said: list[str] = []

    def __enter__(self) -> EmulatedAgent:
        machine = arm_machine(self.core, Sysroot.find(self._sysroot), counted=False)
        self._scratch = tempfile.TemporaryDirectory(prefix="tailorbird-emulated-", ignore_cleanup_errors=True)
        folder = Path(self._scratch.name)
        token = folder / "token"
        token.write_text(self.token, encoding="ascii")
        python = interpreter(machine, folder)
        command = [str(python), "-s", "-B", str(Path(agent.__file__).resolve()), "serve"]
        self._process = subprocess.Popen(
            [*command, "--port", str(self._port), "--token-file", str(token)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**dict(machine.environment), "TMPDIR": str(folder)},
            cwd=folder,
        )
        try:
            self.address = self._ready()
        except DeviceError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def wait(self) -> int:
        """Until the agent ends; its exit code."""
        return 0 if self._process is None else self._process.wait()

    def _ready(self) -> str:
        """The address that the agent prints once it listens."""
        process = self._process
        assert process is not None
        assert process.stderr is not None
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, args=(process.stderr, lines), daemon=True).start()
        while True:
            try:
                line = lines.get(timeout=START_SECONDS)
            except queue.Empty:
                raise DeviceError(
                    f"the emulated {self.core.name} did not start within {START_SECONDS:.0f} s"
                ) from None
            if line.startswith(_READY):
                return line.split()[1]
            if not line:
                last = self._said[-1][:200] if self._said else "no message"
                raise DeviceError(f"the agent on the emulated {self.core.name} does not start: {last}")

    def _listen(self, stream: IO[Any], lines: queue.SimpleQueue[str]) -> None:
        with stream:
            for line in stream:
                self._said = [*self._said[-9:], line.strip()]
                lines.put(line.strip() or "-")
        lines.put("")


def interpreter(machine: Machine, folder: Path) -> Path:
    """A script in `folder` that is the machine's Python, by which that Python knows itself as well.

    The kernel here starts no program of another processor, so that a process under the emulator could start
    none like itself: what it finds as `sys.executable` has to start the emulator again. qemu-user's `-0`
    makes the script's name argv[0], from which Python takes `sys.executable` (CPython, Modules/getpath.py).
    """
    qemu, *more = machine.command
    python = next(i for i, part in enumerate(more) if Path(part).name.startswith("python"))
    script = folder / "python"
    words = [qemu, "-0", str(script), *more[: python + 1]]
    script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return script


__all__ = ["EmulatedAgent", "interpreter"]
