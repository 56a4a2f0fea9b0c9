"""The pool: what is known stays known, for two processes too, and no trouble with it stops a search."""

import json
import multiprocessing
import os
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from compressors.policy import ResolvedPolicy
from search.cli import main
from search.config import read_yaml
from search.errors import TailorbirdError
from search.evaluate import InlineEvaluator, Job
from search.evaluate_ray import RayEvaluator
from search.evaluate_testing import check_evaluator, collected
from search.evidence import Evidence
from search.pool import OFF, Context, Entry, Pool, PooledEvaluator, Store, StoreError, open_pool
from search.pool_address import usual_place
from search.pool_sqlite import SqliteStore
from search.pool_testing import CONTEXT, HALF, LOOKED, POLICY, WHOLE, StoreConformanceError, check_store
from search.score import Score, Scorer
from search.task import load_task
from tests.search.own_task import flags
from tests.search.test_evaluate import SPEC, bad_of
from tests.search.test_score import ABILITIES, policies_of


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer.of(load_task(SPEC), ABILITIES.numerics)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "data" / "pool.sqlite"


@pytest.fixture
def told() -> list[str]:
    return []


def numbered(i: int) -> ResolvedPolicy:
    return replace(POLICY, kept={"a": i})


def test_the_embedded_store_conforms(place: Path) -> None:
    check_store(lambda: SqliteStore(place))
    assert place.exists()
    assert sorted(p.name for p in place.parent.iterdir()) == ["pool.sqlite", "pool.sqlite.lock"]


def test_the_suite_notices_a_store_that_forgets() -> None:
    class Last(Store):
        held: dict[tuple[str, str], Evidence] = {}  # noqa: RUF012 - shared by all who open it, as a file is

        def __init__(self) -> None:
            self.notes = []

        def get(self, context: Context, policy: ResolvedPolicy) -> Evidence | None:
            return self.held.get((context.digest, policy.digest))

        def put(self, context: Context, policy: ResolvedPolicy, evidence: Evidence) -> None:
            self.held[context.digest, policy.digest] = evidence

        def entries(self) -> Iterator[Entry]:
            return iter(())

        def counts(self) -> list[tuple[Context, int]]:
            return []

        def size_bytes(self) -> int:
            return 0

        def close(self) -> None: ...

    with pytest.raises(StoreConformanceError, match="add up"):
        check_store(Last)


def _puts(path: str, parts: list[tuple[int, Evidence]], start: object, times: int) -> None:
    store = SqliteStore(path)
    start.wait()  # type: ignore[attr-defined]
    for k in range(times):
        for i, evidence in parts:
            store.put(CONTEXT, numbered(1000 * k + i), evidence)
    store.close()


def test_two_processes_write_one_file(place: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    parts = [[(0, LOOKED), (1, HALF), (2, WHOLE)], [(0, WHOLE), (1, LOOKED), (2, HALF)]]
    others = [context.Process(target=_puts, args=(str(place), p, start, 30)) for p in parts]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
    assert [other.exitcode for other in others] == [0, 0]
    store = SqliteStore(place)
    for k in range(30):
        assert store.get(CONTEXT, numbered(1000 * k)) == replace(WHOLE, look=LOOKED.look)
        assert store.get(CONTEXT, numbered(1000 * k + 1)) == replace(HALF, look=LOOKED.look)
        assert store.get(CONTEXT, numbered(1000 * k + 2)) == WHOLE
    assert store.notes == []
    store.close()


def filled(place: Path, count: int) -> None:
    store = SqliteStore(place)
    for i in range(count):
        store.put(CONTEXT, numbered(i), WHOLE)
    store.close()


def test_a_damaged_file_is_moved_aside_and_what_is_sound_taken_over(place: Path) -> None:
    filled(place, 200)
    content = bytearray(place.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = os.urandom(4096)
    place.write_bytes(content)
    store = SqliteStore(place)
    known = [store.get(CONTEXT, numbered(i)) for i in range(200)]
    assert all(k in (None, WHOLE) for k in known)
    store.put(CONTEXT, numbered(500), HALF)
    assert store.get(CONTEXT, numbered(500)) == HALF
    store.close()
    again = SqliteStore(place)
    assert again.get(CONTEXT, numbered(500)) == HALF
    assert again.notes == []
    again.close()


@pytest.mark.parametrize(
    "content", [b"not a database, and long enough to be taken for one" * 100, b"\0" * 9000]
)
def test_a_file_that_is_no_database_is_moved_aside_and_told_of(place: Path, content: bytes) -> None:
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    store = SqliteStore(place)
    (note,) = store.notes
    assert "damaged" in note
    assert "0 evaluations" in note
    store.put(CONTEXT, POLICY, WHOLE)
    assert store.get(CONTEXT, POLICY) == WHOLE
    (aside,) = place.parent.glob("pool.sqlite.damaged-*")
    assert aside.read_bytes() == content
    store.close()


def test_a_damaged_row_counts_as_not_there(place: Path) -> None:
    filled(place, 3)
    with sqlite3.connect(place) as connection:
        (blob,) = connection.execute(
            "SELECT evidence FROM evidence WHERE policy = ?", (numbered(1).digest,)
        ).fetchone()
        flipped = bytes([*blob[:-2], blob[-2] ^ 1, blob[-1]])
        connection.execute("UPDATE evidence SET evidence = ? WHERE policy = ?", (flipped, numbered(1).digest))
        connection.execute("UPDATE evidence SET evidence = 'text' WHERE policy = ?", (numbered(2).digest,))
    connection.close()
    store = SqliteStore(place)
    assert [store.get(CONTEXT, numbered(i)) for i in range(3)] == [WHOLE, None, None]
    store.put(CONTEXT, numbered(1), HALF)
    assert store.get(CONTEXT, numbered(1)) == HALF
    store.close()


def test_a_file_of_a_later_version_is_left_alone(place: Path, scorer: Scorer, told: list[str]) -> None:
    filled(place, 1)
    with sqlite3.connect(place) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = place.read_bytes()
    with pytest.raises(StoreError, match="version 99"):
        SqliteStore(place)
    pool = open_pool(str(place), scorer, told.append)
    assert pool.score(policies_of(scorer)[0]).samples == 400
    assert len(told) == 1
    assert "goes on without" in told[0]
    assert place.read_bytes() == before


def test_a_full_disk_stops_keeping_and_nothing_else(place: Path, scorer: Scorer, told: list[str]) -> None:
    store = SqliteStore(place)
    pool = Pool(store, scorer, told.append)
    first, *_, last = policies_of(scorer)
    pool.score(first)
    assert store._connection is not None
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")  # as a full disk
    large = replace(WHOLE, scores=tuple(i / 7 for i in range(20_000)))
    with pytest.raises(StoreError, match="full"):
        store.put(CONTEXT, POLICY, large)
    pool.learn(last, large)
    assert without_time(pool.score(last)) == without_time(scorer.score(last))
    assert pool.known(first) is not None  # it is still read
    assert len(told) == 1
    assert "full" in told[0]
    pool.close()


def test_a_place_that_cannot_be_written_is_told_of(tmp_path: Path, scorer: Scorer, told: list[str]) -> None:
    (tmp_path / "file").write_text("")
    pool = open_pool(str(tmp_path / "file" / "pool.sqlite"), scorer, told.append)
    assert len(told) == 1
    assert "pool of evaluations" in told[0]
    policy = policies_of(scorer)[1]
    assert pool.known(policy) is None
    assert replace(pool.score(policy), seconds=0.0) == replace(scorer.score(policy), seconds=0.0)
    assert pool.summary == ""


def test_a_missing_extra_is_named_and_the_search_goes_on(
    scorer: Scorer, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    pool = open_pool("postgresql://me:s3cret@host/db", scorer, told.append)
    assert pool.known(policies_of(scorer)[1]) is None
    assert told == [
        "a pool on a PostgreSQL server needs psycopg: pip install 'tailorbird[postgres]'. "
        "The search goes on without it."
    ]


def test_a_pool_that_is_off_keeps_nothing(
    tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILORBIRD_POOL", str(tmp_path / "pool.sqlite"))
    assert usual_place() == str(tmp_path / "pool.sqlite")
    pool = open_pool(OFF, scorer)
    policy = policies_of(scorer)[0]
    pool.score(policy)
    assert pool.known(policy) is None
    assert list(tmp_path.iterdir()) == []
    monkeypatch.delenv("TAILORBIRD_POOL")
    assert usual_place().endswith("tailorbird/pool.sqlite")


def without_time(score: Score | None) -> Score | None:
    return None if score is None else replace(score, seconds=0.0)


def test_a_pooled_evaluator_conforms_cold_and_warm(place: Path, scorer: Scorer) -> None:
    policies = policies_of(scorer)

    def make() -> PooledEvaluator:
        return PooledEvaluator(InlineEvaluator(scorer), Pool(SqliteStore(place), scorer))

    for _ in range(2):
        check_evaluator(make, scorer, policies, bad_of(policies[3]))


def test_what_is_known_is_not_computed_and_equal_with_its_time(place: Path, scorer: Scorer) -> None:
    policies = policies_of(scorer)
    bars = (None, 0.95, 0.5, 0.9)
    jobs = [Job(10 * i + j, p, bar) for i, p in enumerate(policies) for j, bar in enumerate(bars)]
    found = []
    for _ in range(2):
        pool = Pool(SqliteStore(place), scorer)
        with PooledEvaluator(InlineEvaluator(scorer), pool) as evaluator:
            evaluator.submit(jobs)
            found.append(collected(evaluator, len(jobs)))
    first, second = found
    assert pool.found == len(jobs)
    assert pool.computed == 0
    for job in jobs:
        assert second[job.number].job == job
        assert without_time(second[job.number].score) == without_time(scorer.score(job.policy, job.bar))
    # of several times that one stage was timed in the first round, the pool keeps the first
    whole = {k: f.score for k, f in first.items() if k % 10 == 0}
    assert {k: second[k].score for k in whole} == whole
    assert "were known" in pool.summary


@pytest.mark.slow
def test_workers_are_sent_what_is_known_and_this_process_keeps_what_they_find(
    place: Path, scorer: Scorer
) -> None:
    policies = policies_of(scorer)
    pool = Pool(SqliteStore(place), scorer)
    pool.score(policies[0], 0.5)
    inner = RayEvaluator(scorer.for_workers(), 2, spec=SPEC)
    with PooledEvaluator(inner, pool) as evaluator:
        assert evaluator.workers == inner.workers
        evaluator.submit([Job(i, p, 0.9) for i, p in enumerate(policies)])
        found = collected(evaluator, len(policies))
        kept = [pool.known(p) for p in policies]
    assert pool.found + pool.computed == len(policies)
    for i, p in enumerate(policies):
        assert without_time(found[i].score) == without_time(scorer.score(p, 0.9))
        assert kept[i] is not None
        assert found[i].job == Job(i, p, 0.9)


def test_other_numerics_and_other_data_know_nothing(place: Path, scorer: Scorer) -> None:
    policy = policies_of(scorer)[1]
    pool = Pool(SqliteStore(place), scorer)
    pool.score(policy)
    other = Scorer(scorer.task, scorer.network, replace(ABILITIES.numerics, weight_reserve=2))
    few = Scorer.of(replace(scorer.task, calibration=(scorer.task.calibration[0][:100],)), ABILITIES.numerics)
    plain = Scorer(scorer.task, scorer.network, ABILITIES.numerics, runtime=False)
    for stranger in (other, few, plain):
        assert Pool(SqliteStore(place), stranger).known(policy) is None
    assert Pool(SqliteStore(place), scorer).known(policy) is not None


def test_a_closed_store_says_so(place: Path) -> None:
    store = SqliteStore(place)
    store.close()
    with pytest.raises(TailorbirdError, match="closed"):
        store.get(CONTEXT, POLICY)


def test_a_search_finds_the_same_with_and_without_a_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = flags(tmp_path, "--agent=random", "--evaluations=5", "--json")
    found = []
    for name, place in (("off", "off"), ("cold", "pool.sqlite"), ("warm", "pool.sqlite")):
        assert main([*words, f"--pool={place}", f"--out={name}"]) == 0
        results = json.loads(capsys.readouterr().out)
        journal = [json.loads(line) for line in (tmp_path / name / "journal.jsonl").read_text().splitlines()]
        outcomes = [r["data"]["outcome"] for r in journal if r["kind"] == "evaluated"]
        assert read_yaml(tmp_path / name / "config.yaml")["pool"] == place  # off is quoted
        found.append((results, outcomes))
    (off, _), (cold, first), (warm, second) = found
    for other in (cold, warm):
        assert [p["digest"] for p in other["points"]] == [p["digest"] for p in off["points"]]
        assert [p.get("validation") for p in other["points"]] == [p.get("validation") for p in off["points"]]
        assert [(s["accuracy"], s["origin"]) for s in other["steps"]] == [
            (s["accuracy"], s["origin"]) for s in off["steps"]
        ]
    assert first == second  # the pool's evaluations took what they took the first time
    picked = next(p for p in warm["points"] if p["picked"])
    assert picked["validation"]["samples"] == 400  # scored in full, whatever was known


def test_a_pooled_search_says_how_much_was_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = flags(tmp_path, "--agent=random", "--evaluations=3", "--pool=pool.sqlite")
    assert main([*words, "--out=first"]) == 0
    assert "were known" not in capsys.readouterr().err
    assert main([*words, "--out=second"]) == 0
    assert "pool     3 of 3 evaluations were known, 0 computed" in capsys.readouterr().err
    (tmp_path / "pool.sqlite").write_bytes(b"spoilt" * 3000)
    assert main([*words, "--out=third"]) == 0
    assert "was damaged" in capsys.readouterr().err
    assert main([*words, "--pool=/dev/null/pool", "--out=fourth"]) == 0
    assert "goes on without it" in capsys.readouterr().err
