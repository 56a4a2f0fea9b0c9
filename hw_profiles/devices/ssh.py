"""A device reached over SSH: the agent is copied there, run, and gone afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import shlex
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

from hw_profiles.devices import agent
from hw_profiles.devices.agent import PATIENCE_SECONDS, Frame, FrameError, read_frame, write_frame
from hw_profiles.devices.agent_device import AgentDevice
from hw_profiles.devices.replies import plain
from hw_profiles.errors import DeviceError

if TYPE_CHECKING:
    import asyncssh

_Value = TypeVar("_Value")
_CONNECT_SECONDS = 20.0
_START_SECONDS = 60.0
_END_SECONDS = 10.0
_FOLDER = re.compile(r"/[\w./-]*/tailorbird-\d+-\w+")
#: Runs over there. The agent and all that its jobs write lie in one folder, which goes when the process ends,
#: however it ends; what a dead process of ours has left (kill -9, power) goes when the next one starts.
_BOOTSTRAP = """
import glob, os, runpy, shutil, signal, sys, tempfile
sys.path[:] = [p for p in sys.path if p]
for name in ("SIGTERM", "SIGHUP"):
    signal.signal(getattr(signal, name), lambda *_: sys.exit(1))
for old in glob.glob(os.path.join(tempfile.gettempdir(), "tailorbird-[0-9]*-*")):
    try:
        os.kill(int(os.path.basename(old).split("-")[1]), 0)
    except ProcessLookupError:
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, ValueError):
        pass
with tempfile.TemporaryDirectory(prefix="tailorbird-%d-" % os.getpid()) as folder:
    path, size = os.path.join(folder, "agent.py"), int(sys.argv[1])
    with open(path, "wb") as file:
        file.write(sys.stdin.buffer.read(size))
    tempfile.tempdir = folder
    sys.argv = [path, "stdio"]
    runpy.run_path(path, run_name="__main__")
"""


@final
class SshDevice(AgentDevice):
    """`user@host` or `user@host:port`, with Python 3.9, numpy and onnxruntime there.

    Keys, agents and `~/.ssh/config` are those of `ssh`. The host's key must be in `known_hosts` (None: the
    user's own file); one that is unknown or has changed is refused. `python` is the interpreter to use there.
    """

    def __init__(
        self,
        host: str,
        name: str | None = None,
        *,
        python: str = "python3",
        known_hosts: str | Path | None = None,
        client_keys: Sequence[str | Path] = (),
        patience: float = PATIENCE_SECONDS + 30.0,
    ) -> None:
        super().__init__(name)
        found = re.fullmatch(r"(?:([^@\s]+)@)?(\[[0-9a-fA-F:.]+\]|[^@:\s]+)(?::(\d{1,5}))?", host)
        if found is None or found[2].startswith("-"):
            raise DeviceError(f"{host!r} is no SSH address; it looks like pi@raspberrypi.local")
        self._user, self._host, self._port = found[1], found[2].strip("[]"), int(found[3] or 0)
        self._python, self._known_hosts, self._keys = python, known_hosts, list(map(str, client_keys))
        self._patience = patience
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._line: _Line | None = None

    @property
    def where(self) -> str:
        """user@host:port."""
        user, port = f"{self._user}@" if self._user else "", f":{self._port}" if self._port else ""
        return f"{user}{self._host}{port}"

    def _ask(self, head: Mapping[str, Any], blobs: Sequence[bytes]) -> Iterator[Frame]:
        line = self._connected()
        body = io.BytesIO()
        write_frame(body, head, blobs)
        finished = False
        try:
            try:
                self._run(line.send(body.getvalue()), self._patience)
            except OSError as error:
                raise DeviceError(f"{self.where} stopped answering: {self._last_words(line)}") from error
            while (frame := read_frame(_Stream(self, line))) is not None:
                finished = finished or bool({"done", "fault", str(head["do"])} & frame[0].keys())
                yield frame
            raise DeviceError(f"{self.where} stopped answering: {self._last_words(line)}")
        finally:
            if not finished:
                self._hang_up()  # mid-conversation: the next request starts a new one

    def _connected(self) -> _Line:
        if self._line is None:
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
                self._thread.start()
            self._line = self._run(self._open(), _CONNECT_SECONDS + _START_SECONDS)
            try:
                hello = read_frame(_Stream(self, self._line, _START_SECONDS), 4096)
            except (FrameError, OSError) as error:
                self._hang_up()
                raise DeviceError(f"{self.where} answers nonsense: {plain(str(error))}") from error
            if hello is None:
                words = self._last_words(self._line)
                self._hang_up()
                raise DeviceError(
                    f"the agent does not start on {self.where}: {words}. It needs {self._python} with numpy "
                    "and onnxruntime; another Python can be named"
                )
            folder = str(hello[0].get("hello"))
            self._line.folder = folder if _FOLDER.fullmatch(folder) and "/../" not in folder else None
        return self._line

    async def _open(self) -> _Line:
        try:
            import asyncssh
        except ImportError as error:
            raise DeviceError("SSH needs asyncssh: pip install 'tailorbird[device]'") from error
        options: dict[str, Any] = {"connect_timeout": _CONNECT_SECONDS, "keepalive_interval": 15}
        for key, value in (("username", self._user), ("port", self._port), ("client_keys", self._keys)):
            if value:
                options[key] = value
        if self._known_hosts is not None:
            there = Path(self._known_hosts).is_file()
            options["known_hosts"] = str(self._known_hosts) if there else b""
        try:
            line = await asyncssh.connect(self._host, **options)
        except (
            asyncssh.HostKeyNotVerifiable,
            asyncssh.KeyExchangeFailed,
            asyncssh.ConnectionLost,
            ConnectionResetError,
        ) as error:
            raise DeviceError(await self._about_the_key(error)) from error
        except asyncssh.PermissionDenied as error:
            raise DeviceError(
                f"{self.where} refuses the login; `ssh {self.where.partition(':')[0]}` must work without a "
                "password first"
            ) from error
        except (OSError, asyncssh.Error, ValueError) as error:
            why = plain(str(error)) or type(error).__name__
            raise DeviceError(f"cannot reach {self.where} over SSH: {why}") from error
        source = Path(agent.__file__).read_bytes()
        python = self._python if self._python.startswith("~/") else shlex.quote(self._python)
        command = f"{python} -c {shlex.quote(_BOOTSTRAP)} {len(source)}"
        try:
            process = await line.create_process(command, encoding=None)
            process.stdin.write(source)
        except (OSError, asyncssh.Error) as error:
            line.abort()
            raise DeviceError(f"{self.where} runs no command: {plain(str(error))}") from error
        return _Line(line, process)

    async def _about_the_key(self, error: Exception) -> str:
        """Whether the host is unknown or its key is another one than before."""
        import asyncssh

        path = Path(self._known_hosts or Path.home() / ".ssh" / "known_hosts")
        known: Sequence[asyncssh.SSHKey] = ()
        if path.is_file():
            known = asyncssh.read_known_hosts(str(path)).match(self._host, "", self._port or None)[0]
        lost = isinstance(error, (asyncssh.ConnectionLost, ConnectionResetError))
        if lost and known:
            # A host that hangs up on a key it lacks can cut the line before its reason arrives: ask it.
            with contextlib.suppress(OSError, asyncssh.Error, TimeoutError):
                asking = asyncssh.get_server_host_key(self._host, self._port or ())
                shown = await asyncio.wait_for(asking, _CONNECT_SECONDS)
                lost = shown is None or shown.public_data in {key.public_data for key in known}
        if known and not lost:
            entry = f"[{self._host}]:{self._port}" if self._port else self._host
            return (
                f"the host key of {self.where} has changed: it is not the one in {path.name}. Either it "
                f"was set up anew (`ssh-keygen -R '{entry}'`), or somebody stands in between; not connected"
            )
        if not isinstance(error, asyncssh.HostKeyNotVerifiable):
            return f"cannot reach {self.where} over SSH: {plain(str(error))}"
        return (
            f"{self.where} is not in {path.name}. Log in once with `ssh` and compare its fingerprint; "
            "not connected"
        )

    def _run(self, what: Coroutine[Any, Any, _Value], seconds: float) -> _Value:
        """Result of a coroutine, awaited from this thread."""
        future = asyncio.run_coroutine_threadsafe(what, self._loop)
        try:
            return future.result(seconds)
        except TimeoutError as error:
            future.cancel()
            raise DeviceError(f"{self.where} shows no sign of life for {seconds:g} s") from error

    def _last_words(self, line: _Line) -> str:
        lines = self._run(line.complaints(), _END_SECONDS).strip().splitlines()
        return plain(lines[-1]) if lines else "the connection was cut or the agent was killed"

    def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            self._run(line.end(), 3 * _END_SECONDS)

    def close(self) -> None:
        """End the agent there, remove its folder, hang up."""
        try:
            self._hang_up()
        finally:
            if self._thread is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._thread = None
            if not self._loop.is_closed():
                self._loop.close()


class _Line:
    """One connection with the agent at its end."""

    def __init__(
        self, connection: asyncssh.SSHClientConnection, process: asyncssh.SSHClientProcess[bytes]
    ) -> None:
        self.connection, self.process = connection, process
        self.folder: str | None = None

    async def send(self, body: bytes) -> None:
        self.process.stdin.write(body)
        await self.process.stdin.drain()

    async def complaints(self) -> str:
        """What the other side wrote on stderr, so far as it comes without waiting long."""
        try:
            told = await asyncio.wait_for(self.process.stderr.read(65536), 2.0)
        except (TimeoutError, OSError):
            return ""
        return told.decode(errors="replace")

    async def end(self) -> None:
        """Closing its input ends the agent, which removes its folder; if it cannot, we do."""
        import asyncssh

        try:
            self.process.stdin.write_eof()
            done = await self.process.wait(timeout=_END_SECONDS)
            clean = done.exit_status == 0
        except (OSError, asyncssh.Error, TimeoutError):
            clean = False
        try:
            if not clean and self.folder:
                await asyncio.wait_for(self.connection.run(f"rm -rf -- {shlex.quote(self.folder)}"), 10.0)
        except (OSError, asyncssh.Error, TimeoutError):
            pass  # no way to reach it: the next agent that starts there removes the folder
        self.connection.close()
        try:
            await asyncio.wait_for(self.connection.wait_closed(), 5.0)
        except (OSError, asyncssh.Error, TimeoutError):
            self.connection.abort()


class _Stream:
    """The agent's output for `read_frame`."""

    def __init__(self, device: SshDevice, line: _Line, seconds: float | None = None) -> None:
        self._device, self._line = device, line
        self._seconds = device._patience if seconds is None else seconds

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end."""
        import asyncssh

        try:
            return bytes(self._device._run(self._line.process.stdout.read(size), self._seconds))
        except asyncssh.Error as error:
            raise OSError(str(error)) from error


__all__ = ["SshDevice"]
