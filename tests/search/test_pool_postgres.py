"""The pool on a PostgreSQL server: the embedded store's suite, writers at once, and trouble of every kind."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from search.cli import main
from search.pool import Pool, StoreError, open_pool
from search.pool_address import without_password
from search.pool_testing import CONTEXT, HALF, LOOKED, POLICY, WHOLE, check_store
from search.score import Scorer
from search.task import load_task
from tests.search.own_task import flags
from tests.search.postgres_server import MISSING, Server, binaries, running
from tests.search.test_evaluate import SPEC
from tests.search.test_pool import numbered, without_time
from tests.search.test_score import ABILITIES, policies_of

psycopg = pytest.importorskip("psycopg", reason="pip install 'tailorbird[postgres]'")
pytestmark = pytest.mark.skipif(binaries() is None, reason=MISSING)

from search.pool_postgres import PostgresStore  # noqa: E402


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as found:
        yield found


_numbers = itertools.count()


@pytest.fixture
def place(server: Server) -> str:
    """A database of the test's own."""
    name = f"pool{next(_numbers)}"
    server.execute(f"CREATE DATABASE {name}")
    return server.address(name)


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.of(load_task(SPEC), ABILITIES.numerics)


def test_the_store_on_a_server_conforms(place: str) -> None:
    check_store(lambda: PostgresStore(place))


def _puts(place: str, start: threading.Barrier, times: int, turn: int) -> None:
    start.wait()
    store = PostgresStore(place)
    parts = [LOOKED, HALF, WHOLE]
    for k in range(times):
        for i in range(3):
            store.put(CONTEXT, numbered(1000 * k + 1 + i), parts[(i + turn) % 3])
    store.close()


def test_three_that_make_the_tables_and_write_the_same_rows_lose_nothing(place: str) -> None:
    start = threading.Barrier(3)
    with ThreadPoolExecutor(3) as others:
        for done in [others.submit(_puts, place, start, 20, turn) for turn in range(3)]:
            done.result()
    store = PostgresStore(place)
    known = {numbered(1000 * k + 1 + i) for k in range(20) for i in range(3)}
    found = {e.policy: e.evidence for e in store.entries()}
    assert set(found) == known
    assert set(found.values()) == {replace(WHOLE, look=LOOKED.look)}
    store.close()


def test_damaged_rows_count_as_not_there(place: str, server: Server) -> None:
    store = PostgresStore(place)
    for i in range(1, 5):
        store.put(CONTEXT, numbered(i), WHOLE)
    database = place.rpartition("/")[2]
    changes = {
        2: "set_byte(evidence, length(evidence) - 2, get_byte(evidence, length(evidence) - 2) # 1)",
        3: "'text'",
        4: "convert_to(repeat('x', 5000000), 'UTF8')",
    }
    for i, change in changes.items():
        server.execute(
            f"UPDATE tailorbird_evidence SET evidence = {change} WHERE policy = '{numbered(i).digest}'",
            database,
        )
    assert [store.get(CONTEXT, numbered(i)) for i in range(1, 5)] == [WHOLE, None, None, None]
    assert [e.policy for e in store.entries()] == [numbered(1)]
    for i in changes:
        store.put(CONTEXT, numbered(i), HALF)
        assert store.get(CONTEXT, numbered(i)) == HALF
    store.close()


def test_a_database_of_a_later_version_is_left_alone(place: str, server: Server, scorer: Scorer) -> None:
    PostgresStore(place).close()
    server.execute("UPDATE tailorbird_pool SET version = 99", place.rpartition("/")[2])
    with pytest.raises(StoreError, match="version 99"):
        PostgresStore(place)
    told: list[str] = []
    pool = open_pool(place, scorer, told.append)
    assert pool.score(policies_of(scorer)[0]).samples == 400
    assert len(told) == 1
    assert "goes on without" in told[0]


def test_a_line_that_was_cut_is_opened_again(place: str, server: Server) -> None:
    store = PostgresStore(place)
    store.put(CONTEXT, POLICY, WHOLE)
    others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tailorbird'"
    assert server.execute(others) == [(True,)]
    assert store.get(CONTEXT, POLICY) == WHOLE
    assert server.execute(others) == [(True,)]
    store.put(CONTEXT, POLICY, LOOKED)
    assert store.get(CONTEXT, POLICY) == replace(WHOLE, look=LOOKED.look)
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.get(CONTEXT, POLICY)


def test_a_server_that_goes_is_told_of_once_and_the_search_goes_on(scorer: Scorer) -> None:
    told: list[str] = []
    first, *_, last = policies_of(scorer)
    with running() as own:
        pool = Pool(PostgresStore(own.address()), scorer, told.append)
        pool.score(first)
        assert pool.known(first) is not None
        own.stop()
        assert without_time(pool.score(last)) == without_time(scorer.score(last))
        assert pool.known(first) is None
        assert len(told) == 1
        assert "goes on without" in told[0]
        assert own.password not in told[0]
        pool.close()
        own.start()
        store = PostgresStore(own.address())
        assert store.get(pool.context, first) is not None
        store.close()


def test_a_row_that_somebody_holds_is_waited_for_and_not_for_ever(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.pool_postgres.ANSWER_SECONDS", 1)
    store = PostgresStore(place)
    store.put(CONTEXT, POLICY, HALF)
    with psycopg.connect(place) as other:
        other.execute("SELECT * FROM tailorbird_evidence FOR UPDATE")
        start = time.monotonic()
        with pytest.raises(StoreError, match=r"cannot write the pool .*timeout"):
            store.put(CONTEXT, POLICY, WHOLE)
        assert time.monotonic() - start < 15
        assert store.get(CONTEXT, POLICY) == HALF  # who reads does not wait
    store.put(CONTEXT, POLICY, WHOLE)
    assert store.get(CONTEXT, POLICY) == WHOLE
    store.close()


def _refused(server: Server) -> dict[str, tuple[str, str]]:
    return {
        "a wrong password": (server.address(password="s3cret of another"), "password authentication failed"),
        "no such database": (server.address("nowhere"), 'database "nowhere" does not exist'),
        "nobody listens": (f"postgresql://me:s3cret@127.0.0.1:{_closed_port()}/db", "refused"),
        "no such host": ("postgresql://me:s3cret@no-such-host.invalid/db", "host"),
        "no address": ("postgresql://me:s3cret/x@host:port:0/db", "cannot be read"),
        "no option": ("postgresql://me@host/db?password=s3cret&colour=red", "cannot be read"),
    }


def _closed_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def test_what_cannot_be_opened_is_one_line_without_the_password(server: Server) -> None:
    for name, (address, part) in _refused(server).items():
        with pytest.raises(StoreError) as caught:
            PostgresStore(address)
        assert part in caught.value.message, name
        assert "s3cret" not in str(caught.value), name
        assert "\n" not in caught.value.message, name


def test_a_user_who_may_not_make_tables_is_told_so(place: str, server: Server) -> None:
    database = place.rpartition("/")[2]
    server.execute("DROP ROLE IF EXISTS guest")
    server.execute("CREATE ROLE guest LOGIN PASSWORD 'guest'")
    with pytest.raises(StoreError, match="permission denied"):
        PostgresStore(f"postgresql://guest:guest@127.0.0.1:{server.port}/{database}")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://a:b@h/d", "postgresql://a@h/d"),
        ("postgres://a:b@h:1/d?sslmode=require", "postgres://a@h:1/d?sslmode=require"),
        ("postgresql://a:b@c@h/d", "postgresql://a@h/d"),
        ("postgresql://a:b/c@h/d", "postgresql://a@h/d"),
        ("postgresql://h:5432/d", "postgresql://h:5432/d"),
        ("postgresql://a@[::1]:5432/d", "postgresql://a@[::1]:5432/d"),
        ("postgresql://h/d?user=a&password=b&x=1", "postgresql://h/d?user=a&password=...&x=1"),
        ("postgresql://h/d?sslpassword=b", "postgresql://h/d?sslpassword=..."),
        ("--pool=POSTGRESQL://a:b@h/d", "--pool=POSTGRESQL://a@h/d"),
        ("data/pool:1@2.sqlite", "data/pool:1@2.sqlite"),
    ],
)
def test_passwords_are_left_out(text: str, shown: str) -> None:
    assert without_password(text) == shown


def test_a_search_leaves_the_password_nowhere(
    place: str,
    server: Server,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither in the run's folder nor on the terminal; and a second search finds what the first evaluated."""
    own = flags(tmp_path)
    seen = []
    for out, given in (("one", ["--pool", place]), ("two", ["--set", f"pool={place}"]), ("three", [])):
        if not given:
            monkeypatch.setenv("TAILORBIRD_POOL", place)
        arguments = [*own, "--evaluations=3", "--recover=0", *given, f"--out={tmp_path / out}"]
        monkeypatch.setattr("sys.argv", ["search", *arguments])
        assert main(arguments) == 0
        seen.append(capfd.readouterr())
        for path in (tmp_path / out).rglob("*"):
            if path.is_file():
                assert b"s3cret" not in path.read_bytes(), path
    assert all("s3cret" not in s.out + s.err for s in seen)
    assert "were known" in seen[1].err
    assert "were known" in seen[2].err
    results = json.loads((tmp_path / "one" / "results.json").read_text(encoding="utf-8"))
    assert without_password(place) in results["run"]["command"]
