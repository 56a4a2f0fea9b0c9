"""Runs that are cut, stopped or killed, and resumed: the end is that of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from search import engine
from search.cli import main
from search.config import load_config, resumed_config
from search.errors import InputError, StoppedError
from search.journal import Journal
from search.runfolder import CONFIG, JOURNAL, MODEL, POLICY, RESULTS
from tests.search.own_task import flags

ROOT = Path(__file__).parents[2]
EVALUATIONS = 9


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    home = tmp_path_factory.mktemp("standard")
    code = main([*flags(home, f"--evaluations={EVALUATIONS}", f"--out={home / 'run'}"), "--quiet"])
    assert code == 0
    return home / "run"


def ending(folder: Path) -> tuple[list[object], str, bytes]:
    """What was evaluated in order with its accuracies, the delivered policy, the delivered file."""
    done = [r.data for r in Journal.read(folder / JOURNAL) if r.kind == "evaluated"]
    evaluated = [[d["number"], d["outcome"]["policy"], d["outcome"]["accuracy"]] for d in done]
    return evaluated, (folder / POLICY).read_text(), (folder / MODEL).read_bytes()


def cut_copy(standard: Path, folder: Path, keep: int, torn: int = 0) -> Path:
    """A run whose journal ends after ``keep`` records and ``torn`` bytes of the next."""
    lines = (standard / JOURNAL).read_bytes().splitlines(keepends=True)
    folder.mkdir()
    (folder / JOURNAL).write_bytes(b"".join(lines[:keep]) + lines[keep][:torn])
    return folder


def kinds(standard: Path) -> list[str]:
    return [r.kind for r in Journal.read(standard / JOURNAL)]


@pytest.mark.parametrize("where", ["header", "suggested", "evaluated", "torn", "all evaluated", "exported"])
def test_a_journal_cut_anywhere_is_resumed_to_the_same_end(
    where: str, standard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = kinds(standard)
    last = len(found) - 1 - found[::-1].index("evaluated")
    keep = {
        "header": 1,
        "suggested": found.index("suggested") + 5,
        "evaluated": found.index("evaluated") + 5,
        "torn": found.index("evaluated") + 6,
        "all evaluated": last + 1,
        "exported": len(found) - 1,
    }[where]
    folder = cut_copy(standard, tmp_path / "run", keep, torn=40 if where == "torn" else 0)
    (folder / f".{RESULTS}.1.tmp").write_text("half a file of a killed process")
    before = (folder / JOURNAL).read_bytes()[: 40 if where == "torn" else None]
    assert main(["--resume", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"]["state"] == "complete"
    assert ending(folder) == ending(standard)
    assert (folder / JOURNAL).read_bytes().startswith(before)
    assert (folder / CONFIG).is_file()
    assert not list(folder.glob(".*.tmp"))


def test_the_same_seed_gives_the_same_run_in_another_process(standard: Path, tmp_path: Path) -> None:
    words = [*flags(tmp_path, f"--evaluations={EVALUATIONS}", "--out=again"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "search.cli", *words],
        cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"]["seed"] == 0
    assert ending(tmp_path / "again") == ending(standard)


def test_a_finished_run_goes_on_with_more_evaluations(standard: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(standard, folder)
    assert main(["--resume", str(folder), f"--evaluations={EVALUATIONS + 2}", "--quiet"]) == 0
    assert ending(folder)[0][:EVALUATIONS] == ending(standard)[0]
    assert len(ending(folder)[0]) == EVALUATIONS + 2
    assert resumed_config({"resume": str(folder)}).evaluations == EVALUATIONS + 2
    assert main(["--resume", str(folder), "--quiet"]) == 0
    assert len(ending(folder)[0]) == EVALUATIONS + 2


class Stopper:
    """A Progress that stops the run at some moment."""

    def __init__(self, stop: object, moment: str, after: int = 0) -> None:
        self.stop, self.moment, self.after, self.updates = stop, moment, after, 0
        self.notes: list[str] = []

    def header(self, lines: object) -> None:
        self._at("header")

    def start(self, total: int, done: int = 0, unit: str = "%") -> None: ...

    def update(self, *_: object) -> None:
        self.updates += 1
        if self.updates == self.after:
            self._at("search")

    def note(self, text: str) -> None:
        self.notes.append(text)
        self._at(text.split()[0])

    def close(self) -> None: ...

    def _at(self, moment: str) -> None:
        if moment == self.moment:
            self.stop.set()  # type: ignore[attr-defined]


@pytest.mark.parametrize(("moment", "evaluated"), [("header", 0), ("search", 4), ("recover", EVALUATIONS)])
def test_a_stop_in_any_phase_is_noticed_and_resumed(
    moment: str, evaluated: int, standard: Path, tmp_path: Path
) -> None:
    import threading

    words = flags(tmp_path)
    stop = threading.Event()
    progress = Stopper(stop, moment, after=4)
    given = {"target": "raspberry-pi", "task": words[1].removeprefix("--task="), "max_latency": "0.9x"}
    config = load_config(
        {**given, "evaluations": EVALUATIONS, "recover": "60s", "out": str(tmp_path / "run")}
    )
    started = time.monotonic()
    result = engine.run(config, progress, stop)
    assert time.monotonic() - started < 45  # recovery alone would take longer
    assert not result.complete
    assert result.best is None
    assert result.results["search"]["evaluated"] == evaluated
    assert (tmp_path / "run" / RESULTS).is_file()
    assert main(["--resume", str(tmp_path / "run"), "--recover=0", "--quiet"]) == 0
    assert ending(tmp_path / "run") == ending(standard)


def test_a_stop_in_set_up_leaves_nothing(tmp_path: Path) -> None:
    import threading

    stop = threading.Event()
    stop.set()
    words = flags(tmp_path)
    given = {"target": "raspberry-pi", "task": words[1].removeprefix("--task="), "out": str(tmp_path / "run")}
    with pytest.raises(StoppedError, match="nothing new was evaluated") as caught:
        engine.run(load_config(given), None, stop)
    assert caught.value.exit_code == 130
    assert not (tmp_path / "run").exists()


class Filler(Stopper):
    """A Progress after whose n-th evaluation files may not grow any more: a full disk."""

    def _at(self, moment: str) -> None:
        if moment == self.moment:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))


def test_a_full_disk_loses_nothing(standard: Path, tmp_path: Path) -> None:
    words = flags(tmp_path)
    given = {"target": "raspberry-pi", "task": words[1].removeprefix("--task="), "max_latency": "0.9x"}
    config = load_config({**given, "evaluations": EVALUATIONS, "recover": "0", "out": str(tmp_path / "run")})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(InputError) as caught:
            engine.run(config, Filler(None, "search", after=4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "Make room" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2
    assert main(["--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert ending(tmp_path / "run") == ending(standard)


def start(words: list[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "search.cli", *words],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], journal: Path, records: int) -> None:
    """Until a journal holds so many records; the process does not outlive a failure."""
    for _ in range(6000):
        if journal.is_file() and journal.read_bytes().count(b"\n") >= records:
            return
        if process.poll() is not None:
            break
        time.sleep(0.02)
    process.kill()
    raise TimeoutError(f"{journal}: {process.communicate()}")


@pytest.mark.slow
@pytest.mark.parametrize("records", [1, 6, 13])
def test_kill_9(records: int, standard: Path, tmp_path: Path) -> None:
    words = flags(tmp_path, f"--evaluations={EVALUATIONS}", "--out=run")
    process = start(words, tmp_path)
    wait_for(process, tmp_path / "run" / JOURNAL, records)
    time.sleep(random.Random(records).random() * 0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = [r for r in Journal.read(tmp_path / "run" / JOURNAL) if r.kind == "evaluated"]
    assert main(["--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert ending(tmp_path / "run") == ending(standard)
    assert len(before) <= EVALUATIONS


@pytest.mark.slow
def test_two_workers_lose_and_double_nothing(tmp_path: Path) -> None:
    process = start(flags(tmp_path, f"--evaluations={EVALUATIONS}", "--workers=2", "--out=run"), tmp_path)
    wait_for(process, tmp_path / "run" / JOURNAL, 8)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    done = [r for r in Journal.read(tmp_path / "run" / JOURNAL) if r.kind == "evaluated"]
    assert 0 < len(done) < EVALUATIONS
    process = start(["--resume=run", "--json"], tmp_path)
    out, err = process.communicate(timeout=120)
    assert json.loads(out)["run"]["state"] == "complete", err
    evaluated = ending(tmp_path / "run")[0]
    assert sorted(e[0] for e in evaluated) == list(range(EVALUATIONS))  # type: ignore[index]
    assert len({json.dumps(e[1]) for e in evaluated}) == EVALUATIONS  # type: ignore[index]


@pytest.mark.slow
def test_ctrl_c_once_and_twice(standard: Path, tmp_path: Path) -> None:
    words = flags(tmp_path, f"--evaluations={EVALUATIONS}", "--out=run")
    process = start(words, tmp_path)
    wait_for(process, tmp_path / "run" / JOURNAL, 5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert "state saved in run" in err.splitlines()[-2]
    assert err.splitlines()[-1].strip() == "Go on with `search --resume run`."
    assert "Traceback" not in err
    process = start(["--resume=run", "--json"], tmp_path)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode in (0, 130)
    assert json.loads(out)
    assert "Traceback" not in err
    assert main(["--resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert ending(tmp_path / "run") == ending(standard)
