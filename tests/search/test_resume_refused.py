"""A run's folder misused or damaged: one clear message, the right exit code, and the run is as it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from search.cli import main
from search.journal import Journal, Record
from search.runfolder import JOURNAL, MODEL, POLICY, RESULTS, WEIGHTS
from tests.search.own_task import flags

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run, called `run`, and the task's file beside it."""
    home = tmp_path_factory.mktemp("finished")
    assert main([*flags(home, "--evaluations=3", f"--out={home / 'run'}"), "--quiet"]) == 0
    return home


@pytest.fixture
def here(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to spoil, as the working folder."""
    shutil.copytree(finished, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def middle(content: bytes) -> bytes:
    """One byte of a line in the middle is another."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


def without_line(content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    return b"".join(lines[:2] + lines[3:])


def unfinished(here: Path) -> None:
    for name in (RESULTS, MODEL, POLICY, WEIGHTS):
        (here / "run" / name).unlink()


def nothing(here: Path) -> None: ...


def journal(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda here: edit(here / "run" / JOURNAL, change)


def policy_of_another(here: Path) -> None:
    document = json.loads((here / "run" / POLICY).read_text())
    document["layers"]["nowhere"] = {"weight_bits": 8}
    (here / "policy.json").write_text(json.dumps(document))


NEW = ["--task=stripes.py:make", "--target=raspberry-pi", "--evaluations=3", "--recover=0"]
CASES: dict[str, tuple[Callable[[Path], None], list[str], int, str]] = {
    "corrupt in the middle": (journal(middle), ["--resume=run"], 6, "is damaged in line"),
    "a line is gone": (journal(without_line), ["--resume=run"], 6, "is damaged in line 3"),
    "an empty journal": (journal(lambda _: b""), ["--resume=run"], 6, "does not begin with a header"),
    "no journal": (lambda h: (h / "run" / JOURNAL).unlink(), ["--resume=run"], 6, "no journal"),
    "another budget": (nothing, ["--resume=run", "--max-latency=0.7x"], 6, "changes the goal"),
    "another target": (nothing, ["--resume=run", "--target=gpu-t4"], 6, "changes the goal"),
    "another seed": (nothing, ["--resume=run", "--seed=3"], 6, "changes the goal"),
    "two runs in a folder": (nothing, [*NEW, "--out=run"], 3, "holds a run already"),
    "warm start of other numerics": (
        nothing, [*NEW, "--target=fpga-bitfusion", "--warm-start=run", "--out=x"], 6, "numerics"),
    "no such point": (nothing, ["export", "run", "--point=99", "--out=x"], 3, "has no point 99"),
    "no such point, no folder": (nothing, ["export", "rum", "--point=1"], 6, "no run 'rum'"),
    "export of an unfinished run": (unfinished, ["export", "run", "--point=1", "--out=x"], 3, RESULTS),
    "measure of an unfinished run": (unfinished, ["measure", "run"], 3, "resume it first"),
    "report of an unfinished run": (unfinished, ["report", "run"], 3, RESULTS),
    "results that are no JSON": (
        lambda h: (h / "run" / RESULTS).write_text("{"), ["report", "run"], 3, RESULTS),
    "unknown layer in a policy": (
        policy_of_another, ["apply", "--policy=policy.json", "--out=x", *NEW[:2]], 3, "nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spoil, words, code, part = CASES[name]
    spoil(here)
    before = {p.name: p.read_bytes() for p in (here / "run").iterdir() if p.is_file()}
    capfd.readouterr()
    found = main(words)
    shown = capfd.readouterr()
    assert (found, part in shown.err) == (code, True), shown.err
    assert shown.out == ""
    assert 1 <= len(shown.err.splitlines()) <= 2, shown.err
    after = {p.name: p.read_bytes() for p in (here / "run").iterdir() if p.is_file()}
    assert after == before
    assert not (here / "x").exists()


def test_a_task_that_changed_is_not_mixed_with_its_old_outcomes(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = flags(tmp_path, "--evaluations=3", f"--out={tmp_path / 'run'}", "--quiet")
    assert main(words) == 0
    edit(tmp_path / "stripes.py", lambda text: text.replace(b"range(30)", b"range(31)"))
    for module in [name for name in sys.modules if name.endswith("stripes")]:
        del sys.modules[module]
    capsys.readouterr()
    assert main(["--resume", str(tmp_path / "run")]) == 6
    assert "the task's weights or data changed since" in capsys.readouterr().err
    again = [*words[:-2], f"--out={tmp_path / 'x'}", "--warm-start", str(tmp_path / "run")]
    assert main(again) == 6
    assert "the task's weights or data is not the same" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_warm_start_knows_what_was_evaluated(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([*NEW, "--max-latency=0.9x", "--warm-start=run", "--out=warm", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["search"]["evaluated"] == 3
    old = {r.data["outcome"]["policy"].__repr__() for r in records(here / "run", "evaluated")}
    new = {r.data["outcome"]["policy"].__repr__() for r in records(here / "warm", "evaluated")}
    assert len(old) == len(new) == 3
    assert not old & new
    shutil.rmtree(here / "run")  # a resumed run does not need it any more
    assert main(["--resume=warm", "--evaluations=4", "--quiet"]) == 0
    assert len(records(here / "warm", "evaluated")) == 4


def records(folder: Path, kind: str) -> list[Record]:
    return [r for r in Journal.read(folder / JOURNAL) if r.kind == kind]


def test_a_running_search_keeps_its_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal.open(here / "run" / JOURNAL):
        assert main(["--resume=run"]) == 6
        shown = capsys.readouterr()
        assert "another search is running" in shown.err
        assert shown.out == ""
    assert main(["--resume=run", "--quiet"]) == 0


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlxtend.py").write_text(
        "raise ModuleNotFoundError('No module named mlxtend', name='mlxtend')"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "search.cli", "--target=raspberry-pi", "--task=mnist5k-lenet300"],
        capture_output=True, text=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.returncode == 3
    assert "mnist" in done.stderr
    assert "install" in done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_made(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for out in ("/proc/self/run", str(here / "stripes.py" / "run")):
        assert main([*NEW, f"--out={out}"]) == 3
        shown = capsys.readouterr()
        assert f"cannot create '{out}'" in shown.err or "is a file" in shown.err
        assert 1 <= len(shown.err.splitlines()) <= 2
