"""A PostgreSQL server for tests: its own folder, its own port, gone afterwards."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER = "tailor"
MISSING = (
    "no PostgreSQL server here: install Debian's or Ubuntu's package postgresql, or pip install pgserver"
)


def binaries() -> Path | None:
    """The folder with initdb and postgres: the newest of the system's, on the path, or pgserver's."""
    found = [Path(p).parent for p in [shutil.which("initdb")] if p]
    found += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name), reverse=True
    )
    try:
        import pgserver  # type: ignore[import-not-found,unused-ignore]

        found.append(Path(pgserver.__file__).parent / "pginstall" / "bin")
    except ImportError:
        pass
    return next((p for p in found if (p / "postgres").exists() and (p / "initdb").exists()), None)


def _other_user() -> pwd.struct_passwd | None:
    """Whom the server runs as: it refuses to be root's."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("there is no user to run a server as")


class Server:
    """A running server. `address` gives what `--pool` takes."""

    def __init__(self, bin_: Path, folder: Path) -> None:
        self.password = "s3cret " + secrets.token_urlsafe(9)
        self.port = _free_port()
        self._bin, self._folder = bin_, folder
        self._user = _other_user()
        self._process: subprocess.Popen[bytes] | None = None
        if self._user is not None:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        word = folder / "word"
        word.write_text(self.password, encoding="utf-8")
        word.chmod(0o644)
        self._run("initdb", "-D", str(folder / "data"), "-U", USER, f"--pwfile={word}", "-A", "scram-sha-256",
                  "-E", "UTF8", "--locale=C", "--no-sync")  # fmt: skip

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            str(self._bin / "postgres"), "-D", str(self._folder / "data"), "-p", str(self.port),
            "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self._folder}",
            "-c", "shared_buffers=16MB", "-c", "fsync=off", "-c", "max_connections=20",
        ]  # fmt: skip
        log = (self._folder / "log").open("ab")
        self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._folder, **self._as_user())
        log.close()
        for _ in range(200):
            if self._process.poll() is not None:
                raise RuntimeError((self._folder / "log").read_text(encoding="utf-8")[-2000:])
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        ready = str(self._bin / "pg_isready")
        for _ in range(200):
            if not Path(ready).exists():
                time.sleep(1)
                return
            if (
                subprocess.run([ready, "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False).returncode
                == 0
            ):
                return
            time.sleep(0.05)
        raise RuntimeError("the server does not answer")

    def stop(self, kind: signal.Signals = signal.SIGQUIT) -> None:
        """End it at once, as a crash does."""
        if self._process is not None:
            self._process.send_signal(kind)
            self._process.wait(30)
            self._process = None

    def address(self, database: str = "postgres", password: str | None = None) -> str:
        """What `--pool` takes, password included."""
        from urllib.parse import quote

        word = quote(self.password if password is None else password, safe="")
        return f"postgresql://{USER}:{word}@127.0.0.1:{self.port}/{database}"

    def execute(self, query: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """A query of the administrator's; its rows."""
        import psycopg

        with psycopg.connect(self.address(database), autocommit=True) as connection:
            done = connection.execute(query)  # type: ignore[call-overload]
            return list(done.fetchall()) if done.description else []

    def _as_user(self) -> dict[str, object]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._bin / program), *arguments], capture_output=True, text=True, cwd=self._folder,
            check=False, **self._as_user(),
        )  # type: ignore[call-overload]  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])


@contextmanager
def running() -> Iterator[Server]:
    """A server that is there for as long as the block lasts. Only where `binaries` finds one."""
    found = binaries()
    assert found is not None
    folder = Path(tempfile.mkdtemp(prefix="tb-postgres-"))
    server = Server(found, folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
