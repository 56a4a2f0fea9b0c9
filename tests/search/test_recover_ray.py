"""Recovery on Ray Tune: as good as in one process, and what is lost when workers or drivers die: nothing."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from search import cluster
from search.errors import InputError
from search.journal import Journal
from search.private import claimed, place_of
from search.recover_ray import NAME, Plan, recover_all
from search.runfolder import JOURNAL, RESULTS, RunFolder
from search.score import Scorer, interval, score_compressed
from search.task import Task
from tests.search.recovery_task import deadly, make_scorer, plan_of_three, policies_of

pytestmark = pytest.mark.slow  # a cluster takes ten seconds
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    cluster.connect(cpus=2)
    yield
    cluster.disconnect()


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return make_scorer()


def value(task: Task, compressed: object) -> float:
    return interval(score_compressed(compressed, task.validation, task.metric))[0]  # type: ignore[arg-type]


def test_two_candidates_get_better_at_once(
    scorer: Scorer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task = scorer.task
    plan = Plan(policies_of(scorer, 0.5, 0.375), 4.0, halving=False)
    told: list[str] = []
    found = recover_all(
        task, scorer.network, scorer.numerics, plan, tmp_path / "place", workers=2, tell=told.append
    )
    assert told == []
    for policy, one in zip(plan.policies, found, strict=True):
        assert one is not None
        assert one.compressed.policy == policy
        assert one.after > one.before
        assert one.after == pytest.approx(value(task, one.compressed))
        assert one.steps > 20
        assert one.seconds >= 4.0
    assert capfd.readouterr().out == ""
    assert not list((tmp_path / "place" / NAME).rglob("*.pt"))


def test_a_worker_that_dies_goes_on_from_its_checkpoint(scorer: Scorer, tmp_path: Path) -> None:
    once = tmp_path / "once"
    once.touch()
    task = replace(scorer.task, metric=deadly(once, 9))
    plan = Plan(policies_of(scorer, 0.5), 4.0)
    told: list[str] = []
    (found,) = recover_all(
        task, scorer.network, scorer.numerics, plan, tmp_path / "place", workers=2, tell=told.append
    )
    assert not once.exists()  # somebody died
    assert len(told) == 1
    assert "a worker died" in told[0]
    assert int(told[0].split("from ")[1].split()[0]) >= 20
    assert found is not None
    assert found.after > found.before


def test_what_falls_behind_is_given_up(scorer: Scorer, tmp_path: Path) -> None:
    for seed in range(3):  # ASHA compares with those before: who is always first is never behind
        plan = Plan(policies_of(scorer, 0.75, 0.5, 0.125), 6.0, seed)
        told: list[str] = []
        found = recover_all(
            scorer.task, scorer.network, scorer.numerics, plan, tmp_path / f"place{seed}", workers=2,
            tell=told.append,
        )  # fmt: skip
        if any("trial 3/3 is behind the others" in t for t in told):
            break
    else:
        pytest.fail("the hopeless one was never given up")
    assert found[0] is not None
    assert found[2] is not None
    assert found[2].steps < found[0].steps
    assert found[2].after >= found[2].before


def test_ctrl_c_ends_the_trials_and_a_second_run_goes_on_with_them(scorer: Scorer, tmp_path: Path) -> None:
    plan = Plan(policies_of(scorer, 0.5, 0.375), 8.0, halving=False)
    place, stop, told = tmp_path / "place", threading.Event(), []
    threading.Timer(4.0, stop.set).start()
    arguments = (scorer.task, scorer.network, scorer.numerics, plan, place)
    first = recover_all(*arguments, workers=2, stop=stop, tell=told.append)
    assert told == []
    second = recover_all(*arguments, workers=2, again=True, tell=told.append)
    assert told == []
    for before, after in zip(first, second, strict=True):
        assert before is not None
        assert after is not None
        assert after.steps > before.steps
        assert after.after >= before.after
        assert after.before == before.before
    third = recover_all(*arguments, workers=2, again=True, tell=told.append)
    assert told == ["2 of 2 trials had ended before"]
    assert [x and x.steps for x in third] == [x and x.steps for x in second]


class Innocent:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.file}",)


def test_a_foreign_run_is_not_unpickled(scorer: Scorer, tmp_path: Path) -> None:
    """What somebody else put into a run's folder, or into a folder that others may write, is not read."""
    owned, plan = tmp_path / "owned", Plan(policies_of(scorer, 0.5), 1.0)
    code = pickle.dumps(Innocent(owned))
    run = RunFolder(tmp_path / "run")
    for folder in (run.path, run.path / NAME, run.path / ".tune" / NAME, run.path / "recovery" / NAME):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tuner.pkl").write_bytes(code)
    told: list[str] = []
    arguments = (scorer.task, scorer.network, scorer.numerics, plan)
    with Journal.create(run.path / JOURNAL, {"seed": 0}) as journal:
        journal.append("event", {"kind": "recovery", "trials": plan.key, "folder": str(run.path)})
        place = place_of(run, journal)
        (found,) = recover_all(*arguments, place, workers=2, again=True, tell=told.append)
    assert found is not None
    assert not owned.exists()
    assert told == []
    theirs = tmp_path / "theirs" / "abc"
    claimed(theirs, again=False)
    (theirs / NAME).mkdir()
    (theirs / NAME / "tuner.pkl").write_bytes(code)
    theirs.chmod(0o770)
    with pytest.raises(InputError, match="not this user's alone"):
        recover_all(*arguments, theirs, workers=2, again=True, tell=told.append)
    assert not owned.exists()
    theirs.chmod(0o700)  # one's own state is believed: what is tested above is not in vain
    recover_all(*arguments, theirs, workers=2, again=True, tell=told.append)
    assert owned.exists()
    assert "begin anew" in told[0]


def test_what_had_ended_when_the_driver_was_killed_is_not_done_again(scorer: Scorer, tmp_path: Path) -> None:
    place = tmp_path / "recovery" / "abc"
    code = "import sys; from tests.search.recovery_task import drive; drive(sys.argv[1])"
    driver = subprocess.Popen(
        [sys.executable, "-c", code, str(place)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert driver.stdout is not None
    line = driver.stdout.readline()
    assert "is behind the others" in line
    ended = place / NAME / f"{int(line.split()[1].split('/')[0]) - 1}-0"
    time.sleep(2.0)  # its state is on disk after half a second
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    before = {p.name: p.stat().st_mtime for p in ended.glob("checkpoint_*")}
    told: list[str] = []
    found = recover_all(
        scorer.task, scorer.network, scorer.numerics, plan_of_three(scorer), place, workers=2, again=True,
        tell=told.append,
    )  # fmt: skip
    assert any("of 3 trials had ended before" in t for t in told)
    assert not any("anew" in t or "bad end" in t for t in told)
    assert len(before) == 2
    assert before == {p.name: p.stat().st_mtime for p in ended.glob("checkpoint_*")}
    assert all(one is not None and one.after >= one.before and one.steps > 0 for one in found)


def test_a_search_that_is_killed_while_it_recovers_goes_on_there(tmp_path: Path) -> None:
    out = tmp_path / "run"
    task = f"{Path(__file__).parent / 'recovery_task.py'}:make_task"
    words = [sys.executable, "-m", "search.cli"]
    new = [
        *words, "--task", task, "--target", "x86-avx512-vnni", "--evaluations", "6", "--workers", "2",
        "--recover", "20s", "--max-latency", "0.6x", "--out", str(out), "--agent", "random",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(
        new, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    recovery = tmp_path / "cache" / "tailorbird" / "recovery"
    while process.poll() is None and len(list(recovery.glob("*/*/*/checkpoint_00000[3-9]"))) < 2:
        time.sleep(0.2)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = max(int(p.name[-6:]) for p in recovery.glob("*/*/*/checkpoint_*"))
    done = subprocess.run(
        [*words, "--resume", str(out)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((out / RESULTS).read_text(encoding="utf-8"))
    assert results["run"]["state"] == "complete"
    records = Journal.read(out / JOURNAL)
    assert sum(r.data.get("kind") == "recovery" for r in records) == 1
    assert all(r.data["steps"] > 0 for r in records if r.kind == "recovered")
    assert before >= 3
    assert not list(recovery.iterdir())
    assert "networks at once" in done.stderr
    assert "anew" not in done.stderr
