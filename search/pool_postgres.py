"""The store of evaluations on a PostgreSQL server, for teams: `--pool postgresql://user@host/database`.

The database must exist, and the user may make tables in it; the tables are made on first use. A password is
best left to `PGPASSWORD` or `~/.pgpass`, where no other process sees it; one in the address is shown and kept
nowhere. `?sslmode=verify-full` and all else that libpq knows goes behind the address.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from compressors.policy import ResolvedPolicy

from .evidence import Evidence
from .pool import Context, Entry, StoreError
from .pool_address import without_password
from .pool_rows import LARGEST, TOGETHER, Row, RowStore, pack, unpacked_evidence

if TYPE_CHECKING:
    import psycopg

R = TypeVar("R")
Connection = Any  # psycopg.Connection[Any], whose queries only take literals

#: Raised with every change of the tables; a database of another version is left alone.
SCHEMA_VERSION = 1
#: Seconds until a server that does not answer counts as gone.
CONNECT_SECONDS, ANSWER_SECONDS = 10, 20
#: A transaction that the server gave up for another's sake is tried again so often.
TRIES = 5
#: Any number: who makes the tables holds the lock of this name.
_MAKING = 7_461_177_015

_TABLES = """
CREATE TABLE IF NOT EXISTS tailorbird_pool (version integer NOT NULL);
CREATE TABLE IF NOT EXISTS tailorbird_contexts (digest text COLLATE "C" PRIMARY KEY, document text NOT NULL);
CREATE TABLE IF NOT EXISTS tailorbird_evidence (
    context text COLLATE "C" NOT NULL REFERENCES tailorbird_contexts, policy text COLLATE "C" NOT NULL,
    document bytea NOT NULL, evidence bytea NOT NULL, PRIMARY KEY (context, policy));
"""
_GET = """
SELECT evidence FROM tailorbird_evidence
WHERE context = %s AND policy = %s AND octet_length(evidence) <= %s
"""
_ADD_CONTEXT = "INSERT INTO tailorbird_contexts VALUES (%s, %s) ON CONFLICT DO NOTHING"
_ADD = "INSERT INTO tailorbird_evidence VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING"
_HELD = """
SELECT CASE WHEN octet_length(evidence) <= %s THEN evidence END FROM tailorbird_evidence
WHERE context = %s AND policy = %s FOR UPDATE
"""
_SET = "UPDATE tailorbird_evidence SET document = %s, evidence = %s WHERE context = %s AND policy = %s"
_COUNTS = """
SELECT digest, tailorbird_contexts.document, count(policy)
FROM tailorbird_contexts LEFT JOIN tailorbird_evidence ON digest = context
GROUP BY digest ORDER BY digest
"""
_PAGE = """
SELECT context, c.document, policy, e.document, evidence
FROM tailorbird_evidence e JOIN tailorbird_contexts c ON c.digest = e.context
WHERE (context, policy) > (%s, %s) AND octet_length(e.document) <= %s AND octet_length(evidence) <= %s
ORDER BY context, policy LIMIT %s
"""
_SIZE = """
SELECT pg_total_relation_size('tailorbird_evidence') + pg_total_relation_size('tailorbird_contexts')
"""


class PostgresStore(RowStore):
    """Evidence on a server. Rows are locked while they are added to, so that writers lose nothing of each
    other's. A line that was cut is opened once more; after that the server counts as gone."""

    def __init__(self, address: str) -> None:
        self.place = without_password(address)
        self.notes: list[str] = []
        self._address = address
        self._closed = False
        self._connection: Connection | None = None
        self._safely("open", lambda connection: None)

    def get(self, context: Context, policy: ResolvedPolicy) -> Evidence | None:
        def read(connection: Connection) -> Evidence | None:
            row = connection.execute(_GET, (context.digest, policy.digest, LARGEST)).fetchone()
            return None if row is None else unpacked_evidence(row[0])

        return self._safely("read", read)

    def _merge(self, entries: list[Entry]) -> None:
        # All take their locks in one order, so that no two wait for each other.
        entries = sorted(entries, key=lambda e: (e.context.digest, e.policy.digest))
        self._safely("write", lambda connection: _merge(connection, entries))

    def _page(self, after: tuple[str, str]) -> list[Row]:
        return self._safely("read", lambda connection: _page(connection, after))

    def _counted(self) -> list[tuple[str, str, int]]:
        rows: list[tuple[str, str, int]]
        rows = self._safely("read", lambda connection: connection.execute(_COUNTS).fetchall())
        return rows

    def size_bytes(self) -> int:
        return int(self._safely("read", lambda connection: connection.execute(_SIZE).fetchone()[0]))

    def close(self) -> None:
        self._closed = True
        self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.close()
            self._connection = None

    # -- when something is wrong

    def _safely(self, action: str, do: Callable[[Connection], R]) -> R:
        """Do something over the line; once more over a new one where it was cut."""
        psycopg = _driver()
        for attempt in range(TRIES):
            had = self._connection is not None and not self._connection.closed
            try:
                if self._closed:
                    raise psycopg.OperationalError("it is closed")
                if not had:
                    self._drop()
                    self._connection = _opened(self._address)
                return do(self._connection)
            except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure) as problem:
                if attempt == TRIES - 1:
                    raise self._error(action, problem) from None
            except psycopg.Error as problem:
                cut = had and self._connection is not None and self._connection.closed
                if not cut or attempt:
                    raise self._error(action, problem) from None
        raise AssertionError("the last try returns or raises")

    def _error(self, action: str, problem: psycopg.Error) -> StoreError:
        """One clear line. libpq's own words may hold parts of the address, so the password is taken out."""
        first = (str(problem).splitlines() or [type(problem).__name__])[0]
        what = problem.diag.message_primary or first.rpartition("failed: ")[2].removeprefix("FATAL:").strip()
        for secret in _secrets(self._address):
            what = what.replace(secret, "...")
        return StoreError(
            f"cannot {action} the pool of evaluations {self.place!r}: {what[:200].rstrip('.')}."
        )


def _driver() -> Any:
    try:
        import psycopg
    except ImportError as problem:
        raise StoreError(
            "a pool on a PostgreSQL server needs psycopg: pip install 'tailorbird[postgres]'."
        ) from problem
    return psycopg


def _options(address: str) -> dict[str, Any]:
    """What is asked of libpq. Raises StoreError, without libpq's words, which repeat the address."""
    psycopg = _driver()
    try:
        given = psycopg.conninfo.conninfo_to_dict(address)
        if without_password(address) != address and not {"password", "sslpassword"} & set(given):
            raise psycopg.ProgrammingError("a password that was taken for something else")
    except psycopg.Error:
        raise StoreError(
            f"the pool's address {without_password(address)!r} cannot be read.",
            "Write postgresql://user@host:5432/database, with %40 for an @ and %2F for a / inside a word.",
        ) from None
    patience = {
        "connect_timeout": CONNECT_SECONDS,
        "tcp_user_timeout": 1000 * ANSWER_SECONDS,
        "keepalives_idle": ANSWER_SECONDS,
        "application_name": "tailorbird",
    }
    limits = f"-c statement_timeout={ANSWER_SECONDS}s -c lock_timeout={ANSWER_SECONDS}s"
    own = given.pop("options", None)
    return {**patience, **given, "options": f"{limits} {own}" if own else limits}


def _secrets(address: str) -> list[str]:
    """Every text that must not be shown."""
    try:
        inside = _options(address).get("password")
    except StoreError:
        inside = None
    return [str(s) for s in (inside, os.environ.get("PGPASSWORD")) if s]


def _opened(address: str) -> Connection:
    """A connection to a database with our tables. Raises psycopg.Error, StoreError."""
    psycopg = _driver()
    connection = psycopg.connect(autocommit=True, **_options(address))
    try:
        version = _version(connection)
        if version is None:
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))
                if _version(connection) is None:
                    connection.execute(_TABLES)
                    connection.execute("INSERT INTO tailorbird_pool VALUES (%s)", (SCHEMA_VERSION,))
            version = _version(connection)
        if version != SCHEMA_VERSION:
            raise psycopg.OperationalError(f"it is of version {version}, this program's is {SCHEMA_VERSION}")
    except BaseException:
        connection.close()
        raise
    return connection


def _version(connection: Connection) -> int | None:
    """Of the tables that are there; None where there are none."""
    if connection.execute("SELECT to_regclass('tailorbird_pool')").fetchone()[0] is None:
        return None
    row = connection.execute("SELECT max(version) FROM tailorbird_pool").fetchone()
    return None if row[0] is None else int(row[0])


def _merge(connection: Connection, entries: list[Entry]) -> None:
    """Add to what is known, in one transaction. Entries are in the order of their digests."""
    with connection.transaction():
        for context in {e.context.digest: e.context for e in entries}.values():
            connection.execute(_ADD_CONTEXT, (context.digest, context.to_json()))
        for e in entries:
            key = (e.context.digest, e.policy.digest)
            document = pack(e.policy.to_dict())
            # Waits for who is adding the same row, and then does not add it.
            if connection.execute(_ADD, (*key, document, pack(e.evidence.to_dict()))).rowcount:
                continue
            row = connection.execute(_HELD, (LARGEST, *key)).fetchone()
            before = None if row is None else unpacked_evidence(row[0])
            after = e.evidence if before is None else before.merged(e.evidence)
            if after != before:
                connection.execute(_SET, (document, pack(after.to_dict()), *key))


def _page(connection: Connection, after: tuple[str, str]) -> list[Row]:
    found: list[tuple[str, str, str, bytes, bytes]] = connection.execute(
        _PAGE, (*after, LARGEST, LARGEST, TOGETHER)
    ).fetchall()
    return found


__all__ = ["PostgresStore"]
