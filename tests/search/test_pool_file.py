"""The pool as a file: out and in again between stores, and files that are not what they say."""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search import pool_file
from search.cli import main
from search.errors import InputError
from search.pool import Entry, Store
from search.pool_file import check_of, export_pool, import_pool, read_pool
from search.pool_sqlite import SqliteStore
from search.pool_testing import CONTEXT, FRACTIONS, HALF, LOOKED, POLICY, WHOLE
from tests.search.postgres_server import MISSING, binaries, running

OTHER = replace(CONTEXT, task="another")


def numbered(i: int) -> Any:
    return replace(POLICY, kept={"a": 1 + i})


def entries() -> list[Entry]:
    found = [
        Entry(c, numbered(i), e) for c in (CONTEXT, OTHER) for i, e in enumerate((LOOKED, HALF, FRACTIONS))
    ]
    return sorted(found, key=lambda e: (e.context.digest, e.policy.digest))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    found = SqliteStore(tmp_path / "from.sqlite")
    found.put_all(entries())
    yield found
    found.close()


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[SqliteStore]:
    found = SqliteStore(tmp_path / "to.sqlite")
    yield found
    found.close()


@pytest.mark.parametrize("name", ["pool.jsonl", "pool.jsonl.gz"])
def test_out_and_in_again(store: SqliteStore, empty: SqliteStore, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    moved = export_pool(store, path)
    assert (moved.contexts, moved.policies) == (2, 6)
    assert import_pool(empty, path) == moved
    assert list(empty.entries()) == entries()
    again = tmp_path / f"again-{name}"
    export_pool(empty, again)
    assert again.read_bytes() == path.read_bytes()
    assert path.read_bytes().startswith(b"\x1f\x8b") == name.endswith("gz")


@pytest.mark.skipif(binaries() is None, reason=MISSING)
def test_from_the_embedded_store_to_a_server_and_back(
    store: SqliteStore, empty: SqliteStore, tmp_path: Path
) -> None:
    from search.pool_postgres import PostgresStore

    there, back = tmp_path / "there.jsonl.gz", tmp_path / "back.jsonl.gz"
    export_pool(store, there)
    with running() as server:
        other: Store = PostgresStore(server.address())
        import_pool(other, there)
        export_pool(other, back)
        other.close()
    import_pool(empty, back)
    assert list(empty.entries()) == entries()
    assert back.read_bytes() == there.read_bytes()


def test_what_is_known_is_added_to(store: SqliteStore, empty: SqliteStore, tmp_path: Path) -> None:
    empty.put(CONTEXT, numbered(0), WHOLE)
    empty.put(CONTEXT, numbered(1), LOOKED)
    empty.put(CONTEXT, numbered(9), WHOLE)
    export_pool(store, tmp_path / "pool.jsonl")
    for _ in range(2):
        import_pool(empty, tmp_path / "pool.jsonl")
        assert empty.get(CONTEXT, numbered(0)) == replace(WHOLE, look=LOOKED.look)
        assert empty.get(CONTEXT, numbered(1)) == replace(HALF, look=LOOKED.look)
        assert empty.get(CONTEXT, numbered(9)) == WHOLE


Rows = list[Any]


def _changed(key: str, value: object, at: int = 2) -> Callable[[Rows], Rows]:
    return lambda rows: [{**r, key: value} if i == at else r for i, r in enumerate(rows)]


def _inside(part: str, key: str, value: object, at: int = 2) -> Callable[[Rows], Rows]:
    """A value inside a document changed, with the digests made right again where that is possible."""

    def change(rows: Rows) -> Rows:
        row = {**rows[at], part: {**rows[at][part], key: value}}
        if part == "evidence":
            row["check"] = check_of(row[part])
        return [*rows[:at], row, *rows[at + 1 :]]

    return change


HOSTILE: dict[str, tuple[str, Callable[[Rows], Rows]]] = {
    "another format": ("no pool of evaluations", lambda rows: [{"format": "x"}, *rows[1:]]),
    "a list first": ("no pool of evaluations", lambda rows: [[1], *rows[1:]]),
    "a later version": ("schema version 2", _changed("schema_version", 2, 0)),
    "a version that is true": ("schema version True", _changed("schema_version", True, 0)),
    "cut short": ("its last line is missing", lambda rows: rows[:-1]),
    "one left out": ("it counts 2 contexts and 6", lambda rows: [*rows[:3], *rows[4:]]),
    "more behind the end": ("behind the end", lambda rows: [*rows, rows[1]]),
    "policy first": ("before any context", lambda rows: [rows[0], *rows[2:]]),
    "an unknown key": ("neither a context", _changed("exec", "rm", 2)),
    "a number for a row": ("neither a context", lambda rows: [*rows[:2], 7, *rows[2:]]),
    "another policy's digest": ("not the one that its digest", _changed("policy", "0" * 16)),
    "a digest that is a list": ("not the one that its digest", _changed("policy", [])),
    "another context's digest": ("not the one that its digest", _changed("context", "0" * 32, 1)),
    "another check": ("not what its check says", _changed("check", "0" * 32)),
    "a changed policy": ("not the one that its digest", _inside("document", "groups", {"a": 99})),
    "no policy": ("not a policy", _inside("document", "groups", 7)),
    "a policy of none": ("not a policy", _changed("document", None)),
    "no evidence": ("not evidence", _changed("evidence", {"version": 1})),
    "a list for evidence": ("not evidence", _changed("evidence", [])),
    "a count that is a bomb": (
        "not evidence", _inside("evidence", "scores", {"count": 10**12, "bits": "0"})),
    "a context with a number": ("no text", _inside("document", "task", 5, 1)),
    "a context with a novel": ("no text", _inside("document", "task", "x" * 10_000, 1)),
    "a context of less": ("not a context", lambda rows: [
        rows[0], {**rows[1], "document": {"task": "t"}}, *rows[2:]]),
}  # fmt: skip


def _refused(path: Path, part: str, empty: SqliteStore, capsys: pytest.CaptureFixture[str]) -> None:
    """The command says so in one or two lines, with exit code 3, and nothing was added."""
    place = f"--pool={empty.path}"
    assert main(["pool", "import", str(path), place]) == 3
    shown = capsys.readouterr()
    assert part in shown.err
    assert (shown.out, len(shown.err.splitlines()) <= 2, len(shown.err) < 600) == ("", True, True)
    assert main(["pool", "import", str(path), place, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 3
    assert list(empty.entries()) == []


@pytest.mark.parametrize("name", HOSTILE)
def test_one_wrong_line_and_nothing_is_added(
    name: str, store: SqliteStore, empty: SqliteStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part, change = HOSTILE[name]
    path = tmp_path / "pool.jsonl"
    export_pool(store, path)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    path.write_text("".join(json.dumps(r) + "\n" for r in change(rows)), encoding="utf-8")
    _refused(path, part, empty, capsys)


HEAD = b'{"format": "tailorbird-pool", "schema_version": 1}\n'
TEXTS: dict[str, tuple[str, str, bytes]] = {
    "nothing": ("pool.jsonl", "is empty", b""),
    "no JSON": ("pool.jsonl", "line 1", b"PK\x03\x04 and so on\n"),
    "no text": ("pool.jsonl", "line 2", HEAD + b"\xff\xfe\x00\n"),
    "NaN": ("pool.jsonl", "NaN is no number", HEAD + b'{"contexts": NaN, "policies": 0}\n'),
    "Infinity": ("pool.jsonl", "is no number", HEAD + b'{"contexts": -Infinity, "policies": 0}\n'),
    "infinite": ("pool.jsonl", "no finite number", HEAD + b'{"contexts": 1e999, "policies": 0}\n'),
    "huge number": ("pool.jsonl", "line 2", HEAD + b'{"contexts": ' + b"9" * 100_000 + b"}\n"),
    "deep": ("pool.jsonl", "nested too deeply", HEAD + b"[" * 200_000 + b"\n"),
    "long line": ("pool.jsonl", "a line of more than 8 MB", HEAD + b" " * (9 << 20)),
    "not packed": ("pool.jsonl.gz", "its last line is missing", HEAD),
    "packed under another name": ("pool.jsonl", "its last line is missing", gzip.compress(HEAD)),
    "packed and cut": ("pool.jsonl.gz", "no whole gzip file", gzip.compress(HEAD)[:-9]),
    "packed, damaged": ("pool.jsonl.gz", "no whole gzip file", gzip.compress(HEAD)[:-6] + b"junked"),
    "bomb of one line": (
        "pool.jsonl.gz", "a line of more than 8 MB", gzip.compress(HEAD + b"x" * (64 << 20))),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_pool_file_is_one_line(
    name: str, empty: SqliteStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, part, content = TEXTS[name]
    (tmp_path / file).write_bytes(content)
    _refused(tmp_path / file, part, empty, capsys)


def test_a_bomb_of_many_lines_is_not_unpacked(
    store: SqliteStore, empty: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    export_pool(store, tmp_path / "pool.jsonl")
    lines = (tmp_path / "pool.jsonl").read_bytes().splitlines(keepends=True)
    bomb = tmp_path / "bomb.jsonl.gz"
    bomb.write_bytes(gzip.compress(b"".join([*lines[:2], *lines[2:3] * 4_000])))
    monkeypatch.setattr(pool_file, "LINE_BYTES", 1 << 16)
    _refused(bomb, "unpacks to more than", empty, capsys)


def test_a_large_pool_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    """Eleven MB of policies, read with room for the program and half of it besides."""
    script = textwrap.dedent("""
        import resource, sys
        from dataclasses import replace
        from pathlib import Path
        from search.pool import Entry
        from search.pool_file import export_pool, import_pool
        from search.pool_sqlite import SqliteStore
        from search.pool_testing import CONTEXT, HALF, POLICY

        class Many(SqliteStore):
            count = 500

            def entries(self):
                names = {f"layer{i}.weight": 8 for i in range(400)}
                for i in range(self.count):
                    yield Entry(CONTEXT, replace(POLICY, kept={"a": 1 + i}, weight_bits=names), HALF)

        folder = Path(sys.argv[1])
        store = Many(folder / "pool.sqlite")
        export_pool(store, folder / "some.jsonl")
        import_pool(store, folder / "some.jsonl")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        store.count = 1100
        export_pool(store, folder / "many.jsonl")
        import_pool(store, folder / "many.jsonl")
        size = (folder / "many.jsonl").stat().st_size
        sys.stdout.write(f"{size} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before}")
    """)
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size, more_kb = map(int, done.stdout.split())
    assert size > 10e6
    assert more_kb * 1024 < size / 2


def test_an_export_is_there_whole_or_not_at_all(store: SqliteStore, tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    path.write_text("what was there before", encoding="utf-8")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(InputError, match="cannot write"):
            export_pool(store, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text(encoding="utf-8") == "what was there before"
    assert not list(tmp_path.glob(".*tmp"))


def test_the_commands(store: SqliteStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, place, other = (
        tmp_path / "pool.jsonl.gz",
        f"--pool={store.path}",
        f"--pool={tmp_path / 'other.sqlite'}",
    )
    assert main(["pool", "export", str(file), place, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"file": str(file), "pool": str(store.path), "contexts": 2, "policies": 6}
    assert main(["pool", "import", str(file), other]) == 0
    assert capsys.readouterr().out == f"took     6 policies in 2 contexts from {file}\n"
    assert main(["pool", "info", other, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [c["policies"] for c in told["contexts"]] == [3, 3]
    assert {c["task"] for c in told["contexts"]} == {"task", "another"}
    assert told["policies"] == 6
    assert told["size_bytes"] >= (tmp_path / "other.sqlite").stat().st_size
    assert main(["pool", "info", other]) == 0
    assert "6 policies in 2 contexts" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["info", "--pool=none.sqlite"], 3, "there is no pool 'none.sqlite'"),
        (["info", "--pool=notes.txt"], 3, "is not a pool of evaluations"),
        (["export", "x.jsonl", "--pool=notes.txt"], 3, "is not a pool"),
        (["import", "none.jsonl", "--pool=notes.txt"], 3, "is not a pool"),
        (["import", "none.jsonl", "--pool=p.sqlite"], 3, "does not exist"),
        (["import", ".", "--pool=p.sqlite"], 3, "is not a file"),
        (["info", "--pool=off"], 2, "names no pool"),
        (["info", "--pool=."], 3, "cannot read the pool"),
        (["info", "--pool=postgresql://me:s3cret@127.0.0.1:1/db"], 3, "cannot open the pool"),
        (["export"], 2, "FILE"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: list[str], code: int, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert main(["pool", *arguments]) == code
    shown = capsys.readouterr()
    assert part in shown.err
    assert "s3cret" not in shown.err
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "none.sqlite").exists()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pool.jsonl")
    with pytest.raises(InputError, match="is not a file"):
        next(read_pool(tmp_path / "pool.jsonl"))
