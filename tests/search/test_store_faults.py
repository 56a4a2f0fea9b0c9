"""Full disks, two runs on one store, clocks that jump: a search ends as it would have."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from search.cli import main
from search.journal import Journal
from search.pool import StoreError
from search.pool_sqlite import SqliteStore
from search.pool_testing import CONTEXT, HALF, POLICY, WHOLE
from search.runfolder import RunFolder
from tests.search.own_task import flags
from tests.search.postgres_server import MISSING, binaries, running


def outcomes(folder: Path) -> list[tuple[str, float | None]]:
    """What a run evaluated: policies and their metric."""
    found = []
    for record in Journal.read(folder / "journal.jsonl"):
        if record.kind == "evaluated":
            outcome = record.data["outcome"]
            found.append((json.dumps(outcome["policy"], sort_keys=True), outcome["accuracy"]))
    return found


def test_a_file_that_may_not_grow_keeps_what_it_has(tmp_path: Path) -> None:
    """The system refuses to write, as it does on a full disk; with room again all goes on."""
    script = textwrap.dedent("""
        import resource, sys
        from dataclasses import replace
        from search.pool import StoreError
        from search.pool_sqlite import SqliteStore
        from search.pool_testing import CONTEXT, HALF, POLICY, WHOLE

        store = SqliteStore(sys.argv[1])
        store.put(CONTEXT, POLICY, HALF)
        large = replace(WHOLE, scores=tuple(i / 7 for i in range(20_000)))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        failed = 0
        for i in range(20):
            try:
                store.put(CONTEXT, replace(POLICY, kept={"a": 2 + i}), large)
            except StoreError:
                failed += 1
        assert failed > 5, failed
        assert store.get(CONTEXT, POLICY) == HALF
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        store.put(CONTEXT, POLICY, WHOLE)
        assert store.notes == []
        store.close()
    """)
    place = tmp_path / "pool.sqlite"
    done = subprocess.run([sys.executable, "-c", script, str(place)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    store = SqliteStore(place)
    assert store.get(CONTEXT, POLICY) == HALF.merged(WHOLE)
    assert store.notes == []
    store.close()


@pytest.mark.skipif(binaries() is None, reason=MISSING)
def test_a_server_whose_disk_is_full_keeps_what_it_has() -> None:
    pytest.importorskip("psycopg")
    from search.pool_postgres import PostgresStore

    full = """
        CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full';
        END $$;
        CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON tailorbird_evidence EXECUTE FUNCTION full_disk()
    """
    with running() as server:
        store = PostgresStore(server.address())
        store.put(CONTEXT, POLICY, HALF)
        server.execute(full)
        with pytest.raises(StoreError, match="No space left on device"):
            store.put(CONTEXT, POLICY, WHOLE)
        assert store.get(CONTEXT, POLICY) == HALF
        server.execute("DROP TRIGGER full_disk ON tailorbird_evidence")
        store.put(CONTEXT, POLICY, WHOLE)
        assert store.get(CONTEXT, POLICY) == HALF.merged(WHOLE)
        store.close()


def test_two_runs_on_one_store_at_once(tmp_path: Path) -> None:
    """Neither waits for long, loses anything, or finds something else than alone."""
    words = flags(tmp_path, "--agent=random", "--evaluations=4")
    place = f"--pool={tmp_path / 'pool.sqlite'}"
    alone = tmp_path / "alone"
    assert main([*words, "--pool=off", f"--out={alone}"]) == 0
    command = [sys.executable, "-m", "search.cli", *words, place]
    runs = [
        subprocess.Popen(
            [*command, f"--out={tmp_path / name}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for name in ("one", "two")
    ]
    told = [run.communicate(timeout=200)[1].decode() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    assert outcomes(tmp_path / "one") == outcomes(tmp_path / "two") == outcomes(alone)
    assert not any("goes on without" in t or "damaged" in t for t in told)
    store = SqliteStore(tmp_path / "pool.sqlite")
    known = {json.dumps(e.policy.to_dict(), sort_keys=True) for e in store.entries()}
    store.close()
    assert {policy for policy, _ in outcomes(alone)} <= known


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Years back and forth between any two looks at it, in a run and in the one that goes on with it."""
    words = flags(tmp_path, "--agent=random", "--timeout=10m")
    steady, jumping = tmp_path / "steady", tmp_path / "jumping"
    assert main([*words, "--pool=off", "--evaluations=5", f"--out={steady}"]) == 0
    year = 365 * 86400.0
    jumps = itertools.cycle([0.0, -20 * year, 5 * year, -year, 30 * year])
    now = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: now() + next(jumps))
        place = f"--pool={tmp_path / 'pool.sqlite'}"
        assert main([*words, place, "--evaluations=3", f"--out={jumping}"]) == 0
        assert main([f"--resume={jumping}", "--evaluations=5"]) == 0
    times = [r.at for r in Journal.read(jumping / "journal.jsonl")]
    assert times != sorted(times)
    assert outcomes(jumping) == outcomes(steady)


def test_two_runs_that_begin_at_one_time_have_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a clock was set back."""
    strftime = time.strftime
    fixed = time.gmtime(0)
    monkeypatch.setattr(time, "strftime", lambda form, *_: strftime(form, fixed))
    made: list[Any] = [RunFolder.create("a-target", root=tmp_path).path for _ in range(3)]
    assert len(set(made)) == 3
