"""Real servers on loopback: the agent over HTTP, SSH with its own keys, one that answers as it likes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh

from hw_profiles.devices.agent import read_frame, serve

TOKEN = "a token of the tests"


@contextlib.contextmanager
def http_agent(**options: Any) -> Iterator[str]:
    """The agent's own server; gives its address."""
    with serve(TOKEN, **options) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def raw_server(answer: Callable[[socket.socket, dict[str, Any]], None]) -> Iterator[str]:
    """A server that reads each request, then does as it likes with the connection and the head it read."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def run() -> None:
            while True:
                try:
                    line, _ = listener.accept()
                except OSError:
                    return
                with line, contextlib.suppress(OSError):
                    line.settimeout(5)
                    with line.makefile("rb") as stream:
                        while stream.readline() not in (b"\r\n", b""):
                            pass
                        asked = read_frame(stream)
                    answer(line, asked[0] if asked else {})

        threading.Thread(target=run, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def restless_line(port: int, cuts: int, *, reset: bool) -> Iterator[int]:
    """A port that ends (or resets) its first `cuts` connections after their first words, then leads on."""
    with socket.create_server(("127.0.0.1", 0)) as listener, contextlib.ExitStack() as ends:

        def pump(source: socket.socket, sink: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while part := source.recv(65536):
                    sink.sendall(part)
                sink.shutdown(socket.SHUT_WR)

        def run() -> None:
            left = cuts
            with contextlib.suppress(OSError):
                while True:
                    line, _ = listener.accept()
                    if left:
                        left -= 1
                        line.recv(65536)
                        if reset:
                            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        line.close()
                        continue
                    there = socket.create_connection(("127.0.0.1", port))
                    for end in (line, there):
                        ends.callback(end.close)
                    for pair in ((line, there), (there, line)):
                        threading.Thread(target=pump, args=pair, daemon=True).start()

        threading.Thread(target=run, daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)


@dataclass
class SshServer:
    """Address and keys of a running server; `cut` drops all its connections."""

    address: str
    known_hosts: Path
    client_key: Path
    host_key: asyncssh.SSHKey
    cut: Callable[[], None]


@contextlib.contextmanager
def ssh_server(folder: Path, host_key: asyncssh.SSHKey | None = None) -> Iterator[SshServer]:
    """A real SSH server that runs commands with this machine's shell."""
    key = host_key or asyncssh.generate_private_key("ssh-ed25519")
    user = asyncssh.generate_private_key("ssh-ed25519")
    client, known, allowed = folder / "id", folder / "known_hosts", folder / "authorized"
    user.write_private_key(str(client))
    allowed.write_bytes(user.export_public_key())
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    lines: list[asyncssh.SSHServerConnection] = []

    class Server(asyncssh.SSHServer):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            lines.append(conn)

    async def start() -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=Server,
            server_host_keys=[key],
            authorized_client_keys=str(allowed),
            process_factory=_run,
            encoding=None,
        )

    async def cut() -> None:
        for line in lines:
            line.abort()

    async def stop(acceptor: asyncssh.SSHAcceptor) -> None:
        acceptor.close()
        await cut()
        await acceptor.wait_closed()
        await asyncio.sleep(0.05)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await asyncio.sleep(0)

    def here(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(20)

    acceptor = here(start())
    port = acceptor.get_port()
    known.write_text(f"[127.0.0.1]:{port} {key.export_public_key().decode()}", encoding="utf-8")
    try:
        yield SshServer(f"me@127.0.0.1:{port}", known, client, key, lambda: here(cut()))
    finally:
        here(stop(acceptor))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _run(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Run the command; when the line is cut its input ends, as with any SSH server."""
    pipe = asyncio.subprocess.PIPE
    ran = await asyncio.create_subprocess_shell(process.command or "", stdin=pipe, stdout=pipe, stderr=pipe)
    assert ran.stdin is not None
    assert ran.stdout is not None
    assert ran.stderr is not None
    pumps = [
        asyncio.create_task(_pump(process.stdin, ran.stdin)),
        asyncio.create_task(_pump(ran.stdout, process.stdout)),
        asyncio.create_task(_pump(ran.stderr, process.stderr)),
    ]
    code = await ran.wait()
    await asyncio.gather(*pumps[1:], return_exceptions=True)
    pumps[0].cancel()
    process.exit(code if code >= 0 else 128 - code)


async def _pump(source: Any, sink: Any) -> None:
    try:
        while part := await source.read(65536):
            sink.write(part)
            await sink.drain()
    except (OSError, asyncssh.Error):
        pass
    finally:
        with contextlib.suppress(OSError, asyncssh.Error):
            if isinstance(sink, asyncio.StreamWriter):
                sink.close()
