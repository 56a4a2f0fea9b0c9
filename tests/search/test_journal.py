from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search import journal as journal_module
from search.errors import InputError, ResumeError
from search.journal import Journal, Record, encode, parse

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
data = st.dictionaries(st.text(), values, max_size=4)
kinds = st.sampled_from(journal_module.KINDS)


def some_records(items: list[tuple[str, dict[str, Any]]]) -> list[Record]:
    return [Record(i, kind, content, float(i)) for i, (kind, content) in enumerate(items)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(kinds, data), min_size=1, max_size=4))
def test_truncation_at_every_byte_keeps_exactly_the_whole_records(items: list[tuple[str, Any]]) -> None:
    records = some_records(items)
    lines = [encode(r) for r in records]
    ends = np.cumsum([0] + [len(line) for line in lines])
    content = b"".join(lines)
    for length in range(len(content) + 1):
        found = parse(content[:length])
        whole = int(np.searchsorted(ends, length, side="right")) - 1
        assert found.records == tuple(records[:whole])
        assert found.good_bytes == ends[whole]
        assert found.torn_bytes == length - ends[whole]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(kinds, data), min_size=3, max_size=5), st.data())
def test_a_changed_byte_in_the_middle_is_an_error(items: list[tuple[str, Any]], draw: st.DataObject) -> None:
    lines = [encode(r) for r in some_records(items)]
    content = bytearray(b"".join(lines))
    place = draw.draw(st.integers(0, sum(map(len, lines[:-1])) - 2))
    change = draw.draw(st.integers(1, 255))
    content[place] ^= change
    with pytest.raises(ResumeError) as caught:
        parse(bytes(content))
    assert "damaged in line" in caught.value.message
    assert caught.value.exit_code == 6


def test_missing_and_repeated_lines_are_errors() -> None:
    lines = [encode(r) for r in some_records([("header", {}), ("suggested", {}), ("evaluated", {"x": 1})])]
    with pytest.raises(ResumeError, match="line 2: it is record 2, expected 1"):
        parse(lines[0] + lines[2])
    with pytest.raises(ResumeError, match="line 3: it is record 1, expected 2"):
        parse(lines[0] + lines[1] + lines[1] + lines[2])
    assert len(parse(b"".join(lines)).records) == 3


def test_append_read_and_reopen(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal.create(path, {"seed": 7}) as journal:
        journal.append("suggested", {"number": 0, "point": np.array([0.5, 1.0])})
        journal.append(
            "evaluated", {"number": 0, "accuracy": np.float64(0.25), "costs": {"macs": np.int64(3)}}
        )
        assert [r.number for r in Journal.read(path)] == [0, 1, 2]
    with Journal.open(path) as journal:
        assert journal.header == {"schema_version": 1, "seed": 7}
        assert journal.records[2].data == {"number": 0, "accuracy": 0.25, "costs": {"macs": 3}}
        journal.append("interrupted", {"evaluations": 1})
    assert [r.kind for r in Journal.read(path)] == ["header", "suggested", "evaluated", "interrupted"]
    assert all(isinstance(json.loads(line), dict) for line in path.read_text().splitlines())


def test_a_torn_tail_is_cut_off_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal.create(path, {}) as journal:
        journal.append("evaluated", {"number": 0})
        sound = path.stat().st_size
        journal.append("evaluated", {"number": 1})
    os.truncate(path, path.stat().st_size - 5)
    torn = path.stat().st_size - sound
    assert len(Journal.read(path)) == 2
    with Journal.open(path) as journal:
        assert journal.torn_bytes == torn
        assert path.stat().st_size == sound
        journal.append("evaluated", {"number": 2})
    assert [r.data.get("number") for r in Journal.read(path)] == [None, 0, 2]


def test_zeros_that_a_power_cut_leaves_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    Journal.create(path, {}).close()
    with path.open("ab") as file:
        file.write(b"\0" * 4096)
    with Journal.open(path) as journal:
        assert journal.torn_bytes == 4096
        assert len(journal.records) == 1


def test_two_writers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    script = "import sys, pathlib, search.journal as j; j.Journal.open(pathlib.Path(sys.argv[1]))"
    with Journal.create(path, {}):
        with pytest.raises(ResumeError, match="another search is running"):
            Journal.open(path)
        other = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
        assert other.returncode == 1
        assert "another search is running" in other.stderr
    assert subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True).returncode == 0
    Journal.open(path).close()


def test_create_and_open_say_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with pytest.raises(ResumeError, match="there is no journal"):
        Journal.open(path)
    Journal.create(path, {}).close()
    with pytest.raises(InputError, match="holds a run already"):
        Journal.create(path, {})
    with pytest.raises(InputError, match="No such file"):
        Journal.create(tmp_path / "missing" / "journal.jsonl", {})
    path.write_bytes(encode(Record(0, "evaluated", {}, 0.0)))
    with pytest.raises(ResumeError, match="does not begin with a header"):
        Journal.open(path)
    path.write_bytes(encode(Record(0, "header", {"schema_version": 99}, 0.0)))
    with pytest.raises(ResumeError, match="schema version 99"):
        Journal.read(path)
    with Journal.create(tmp_path / "other.jsonl", {}) as journal, pytest.raises(ValueError, match="kind="):
        journal.append("evaluatd", {})  # type: ignore[arg-type]


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from search.errors import InputError
        from search.journal import Journal

        journal = Journal.create(Path(sys.argv[1]), {})
        journal.append("evaluated", {"number": 0})
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, resource.RLIM_INFINITY))
        try:
            journal.append("evaluated", {"number": 1, "text": "x" * 400})
        except InputError as error:
            first = str(error)
        journal.append("evaluated", {"number": 2})
        sys.stdout.write(first)
    """)
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "cannot write" in done.stdout
    assert "--resume" in done.stdout
    assert len(done.stdout.splitlines()) == 2
    assert [r.data.get("number") for r in Journal.read(path)] == [None, 0, 2]


def test_killed_while_writing(tmp_path: Path) -> None:
    script = textwrap.dedent("""
        import sys
        from pathlib import Path
        from search.journal import Journal

        journal = Journal.create(Path(sys.argv[1]), {})
        for number in range(10**9):
            journal.append("evaluated", {"number": number, "text": "x" * (number % 700)})
            sys.stdout.write(f"{number}\\n")
            sys.stdout.flush()
    """)
    for run in range(3):
        path = tmp_path / f"journal{run}.jsonl"
        child = subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(20 + 7 * run):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split()
        child.stdout.close()
        child.wait()
        acknowledged = int(rest[-1]) if rest else 19 + 7 * run
        with Journal.open(path) as journal:
            numbers = [r.data["number"] for r in journal.records[1:]]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) - 1 in (acknowledged, acknowledged + 1)
