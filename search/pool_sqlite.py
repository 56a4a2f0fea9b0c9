"""The embedded store of evaluations: one SQLite file, shared by the processes of one machine."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from compressors.policy import ResolvedPolicy

from .evidence import Evidence
from .pool import Context, Entry, StoreError
from .pool_rows import LARGEST, TOGETHER, Row, RowStore, pack, unpacked_evidence

R = TypeVar("R")

#: Raised with every change of the tables; files of another version are left alone.
SCHEMA_VERSION = 1
#: Seconds to wait for another process that writes.
PATIENCE = 20.0

_TABLES = """
CREATE TABLE IF NOT EXISTS contexts (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, document TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS evidence (
    context INTEGER NOT NULL, policy TEXT NOT NULL, document BLOB NOT NULL, evidence BLOB NOT NULL,
    PRIMARY KEY (context, policy));
"""
_COUNTS = """
SELECT digest, contexts.document, count(policy) FROM contexts LEFT JOIN evidence ON contexts.id = context
GROUP BY contexts.id ORDER BY digest
"""
_PAGE = """
SELECT digest, contexts.document, policy, evidence.document, evidence
FROM contexts JOIN evidence ON contexts.id = context
WHERE (digest, policy) > (?, ?) AND length(evidence.document) <= ? AND length(evidence) <= ?
ORDER BY digest, policy LIMIT ?
"""


class SqliteStore(RowStore):
    """Evidence in a file, in write-ahead mode: readers and one writer do not wait for each other.

    Documents are zlib streams, whose checksums tell when a page went bad. A file that SQLite finds damaged
    is moved aside, and what can be read of it is taken over.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.place = str(path)
        self.notes: list[str] = []
        self._contexts: dict[str, int] = {}
        self._connection: sqlite3.Connection | None = None
        with self._told("open"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with _alone(self.path):  # SQLite does not wait its turn to turn a new file into a shared one
                    self._connection = _opened(self.path)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                self._recover()

    def get(self, context: Context, policy: ResolvedPolicy) -> Evidence | None:
        def read(connection: sqlite3.Connection) -> Evidence | None:
            row = connection.execute(
                "SELECT evidence FROM evidence JOIN contexts ON contexts.id = evidence.context "
                "WHERE contexts.digest = ? AND policy = ?",
                (context.digest, policy.digest),
            ).fetchone()
            return None if row is None else unpacked_evidence(row[0])

        return self._safely("read", read)

    def _merge(self, entries: list[Entry]) -> None:
        self._safely("write", lambda connection: _merge(connection, entries))

    def _page(self, after: tuple[str, str]) -> list[Row]:
        return self._safely("read", lambda connection: _page(connection, after))

    def _counted(self) -> list[tuple[str, str, int]]:
        return self._safely("read", lambda connection: connection.execute(_COUNTS).fetchall())

    def size_bytes(self) -> int:
        with self._told("read"):
            beside = (self.path.with_name(self.path.name + ending) for ending in ("-wal", "-shm"))
            return self.path.stat().st_size + sum(p.stat().st_size for p in beside if p.exists())

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    # -- when something is wrong

    def _safely(self, action: str, do: Callable[[sqlite3.Connection], R]) -> R:
        """Do something with the file; once more behind a recovery where the file is damaged."""
        with self._told(action):
            if self._connection is None:
                raise sqlite3.ProgrammingError("it is closed")
            try:
                return do(self._connection)
            except (sqlite3.OperationalError, sqlite3.IntegrityError, sqlite3.ProgrammingError):
                raise
            except sqlite3.DatabaseError:
                self._recover()
                return do(self._connection)

    @contextlib.contextmanager
    def _told(self, action: str) -> Iterator[None]:
        """Turns what SQLite and the system say into one clear error."""
        try:
            yield
        except (sqlite3.Error, OSError) as problem:
            what = problem.strerror if isinstance(problem, OSError) else str(problem)
            raise StoreError(
                f"cannot {action} the pool of evaluations {str(self.path)!r}: {what}."
            ) from problem

    def _recover(self) -> None:
        """Move the damaged file aside and take over what can be read of it."""
        self.close()
        with _alone(self.path):
            with contextlib.suppress(sqlite3.DatabaseError):
                self._connection = _opened(self.path, whole=True)
                return  # another process was quicker
            aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
            self.path.replace(aside)
            for ending in ("-wal", "-shm"):
                beside = self.path.with_name(self.path.name + ending)
                if beside.exists():
                    beside.replace(aside.with_name(aside.name + ending))
            self._connection = _opened(self.path)
            rows = _salvaged(aside, self._connection)
        self.notes.append(
            f"{str(self.path)!r} was damaged: {rows} evaluations could be read and were taken over, "
            f"the damaged file is {aside.name!r} now"
        )


def _merge(connection: sqlite3.Connection, entries: Iterable[Entry]) -> None:
    """Add to what is known, in one transaction."""
    with _transaction(connection):
        for e in entries:
            number = _context(connection, e.context)
            held = connection.execute(
                "SELECT evidence FROM evidence WHERE context = ? AND policy = ?", (number, e.policy.digest)
            ).fetchone()
            before = None if held is None else unpacked_evidence(held[0])
            after = e.evidence if before is None else before.merged(e.evidence)
            if after != before:
                connection.execute(
                    "INSERT OR REPLACE INTO evidence VALUES (?, ?, ?, ?)",
                    (number, e.policy.digest, pack(e.policy.to_dict()), pack(after.to_dict())),
                )


def _context(connection: sqlite3.Connection, context: Context) -> int:
    row = connection.execute("SELECT id FROM contexts WHERE digest = ?", (context.digest,)).fetchone()
    if row is None:
        added = connection.execute(
            "INSERT INTO contexts (digest, document) VALUES (?, ?)", (context.digest, context.to_json())
        )
        return int(added.lastrowid or 0)
    return int(row[0])


def _page(connection: sqlite3.Connection, after: tuple[str, str]) -> list[Row]:
    return connection.execute(_PAGE, (*after, LARGEST, LARGEST, TOGETHER)).fetchall()


def _opened(path: Path, whole: bool = False) -> sqlite3.Connection:
    """A connection to a file with our tables. ``whole``: check every page. Raises sqlite3.DatabaseError."""
    connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise sqlite3.OperationalError(f"it is of version {version}, this program's is {SCHEMA_VERSION}")
        if version == 0:
            with _transaction(connection):
                for statement in _TABLES.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("SELECT count(*) FROM contexts").fetchone()
        if whole and connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError("damaged pages")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Reading and writing as one: no other process writes in between."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time makes or recovers the file."""
    descriptor = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _salvaged(damaged: Path, into: sqlite3.Connection) -> int:
    """Copy every sound row that can still be read; returns how many."""
    rows = 0
    old = sqlite3.connect(damaged, isolation_level=None)
    try:
        with contextlib.suppress(sqlite3.DatabaseError), _transaction(into):
            for row in _readable(old, "SELECT id, digest, document FROM contexts"):
                into.execute("INSERT OR IGNORE INTO contexts VALUES (?, ?, ?)", row)
            for row in _readable(old, "SELECT context, policy, document, evidence FROM evidence"):
                if unpacked_evidence(row[3]) is not None:
                    into.execute("INSERT OR IGNORE INTO evidence VALUES (?, ?, ?, ?)", row)
                    rows += 1
    finally:
        old.close()
    return rows


def _readable(connection: sqlite3.Connection, query: str) -> Iterator[tuple[object, ...]]:
    """Rows up to the first that cannot be read."""
    with contextlib.suppress(sqlite3.DatabaseError):
        yield from connection.execute(query)


__all__ = ["SqliteStore"]
