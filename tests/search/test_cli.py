from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from search import doctor
from search.cli import main
from search.cli_run import estimate
from search.cli_support import merged, stop_on_interrupt
from search.config import make_config
from search.journal import Journal
from search.runfolder import JOURNAL, RESULTS
from tests.search.results_example import example

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "onnxruntime", "onnx", "ray", "optuna", "numpy", "pydantic", "rich", "tvm", "scipy", "yaml")


def search(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "search.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )


def run_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    config = make_config({"target": "raspberry-pi-4", "max_latency": "0.5x"}).model_dump(mode="json")
    Journal.create(folder / JOURNAL, {"config": config}).close()
    (folder / RESULTS).write_text(json.dumps(example()))
    return folder


def test_help_imports_nothing_heavy() -> None:
    found = f"print(*[m for m in {HEAVY} if m in sys.modules])"
    script = f"import sys; from search.cli import main; main(['--help']); {found}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == ""
    for words in (
        "Usage: search",
        "Budget:",
        "--max-latency",
        "Policy space:",
        "predict",
        "doctor",
        "--resume",
    ):
        assert words in done.stdout


def test_exit_codes_in_a_process(tmp_path: Path) -> None:
    done = search("--target", "local", "--max-latency", "3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[0] == "search: --max-latency 3 has no unit."
    assert len(done.stderr.splitlines()) == 2
    done = search("report", "nothing", cwd=tmp_path)
    assert done.returncode == 6
    assert "There are none yet" in done.stderr
    done = search("--target=local", "--config", "missing.yaml", "--json", cwd=tmp_path)
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["exit_code"] == 3
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


BAD: list[tuple[list[str], int, str]] = [
    (["--max-latncy=3ms"], 2, "Did you mean '--max-latency'"),
    (["pedict"], 2, "predict"),
    (["predict"], 2, "--onnx"),
    (["export", "latest"], 2, "--point"),
    (["export", "latest", "--point", "0"], 2, "point"),
    (["--seed=1"], 2, "which device"),
    (["--target=local", "--seed=-1"], 2, "--seed -1"),
    (["--target=local", "--evaluations=many"], 2, "many"),
    (["--target=local", "--evaluations=0"], 2, "--evaluations 0"),
    (["--target=local", "--methods=prun"], 2, "Did you mean 'prune'"),
    (["--target=local", "--set", "sed=3"], 2, "Did you mean 'seed'"),
    (["--target=local", "--data=x.npz"], 2, "--data needs a network"),
    (["--target=local", "report", "x"], 2, "stands before the command"),
    (["--resume=latest", "--config=x"], 2, "exclude each other"),
    (["--resume=nothing"], 6, "no run 'nothing'"),
    (["report"], 2, "RUN"),
]


@pytest.mark.parametrize(("arguments", "code", "part"), BAD, ids=[" ".join(b[0]) for b in BAD])
def test_bad_calls_say_one_clear_thing(
    arguments: list[str],
    code: int,
    part: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: Any,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    shown = capsys.readouterr()
    assert part in shown.err
    assert shown.out == ""
    assert 1 <= len(shown.err.splitlines()) <= 2
    assert main([*arguments, "--json"]) == code
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert error["exit_code"] == code
    assert part in f"{error['message']} {error['hint']}"
    assert shown.err == ""


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    for command, key, name in (
        ("targets", "targets", "raspberry-pi-4"),
        ("tasks", "tasks", "digits32"),
        ("agents", "agents", "random"),
        ("methods", "methods", "tucker2"),
    ):
        assert main([command]) == 0
        assert name in capsys.readouterr().out
        assert main([command, "--json"]) == 0
        listed = json.loads(capsys.readouterr().out)[key]
        assert name in [entry["name"] for entry in listed]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tailorbird ")
    assert main([]) == 0
    assert "Usage: search" in capsys.readouterr().out


def test_report_prints_what_the_run_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = run_folder(tmp_path / "runs" / "20261122-203114-raspberry-pi-4")
    (tmp_path / "runs" / "latest").symlink_to(folder.name)
    monkeypatch.chdir(tmp_path)
    assert main(["report", "latest"]) == 0
    text = capsys.readouterr().out
    assert "Pareto front (5 of 96 feasible)" in text
    assert "report.html" in text.splitlines()[-1]
    assert (folder / "report.html").is_file()
    assert main(["report", folder.name, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["results"] == example()
    (folder / RESULTS).write_text("{}")
    assert main(["report", "latest"]) == 3
    assert "schema version None" in capsys.readouterr().err


def test_resuming_with_another_goal_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_folder(tmp_path / "runs" / "a")
    monkeypatch.chdir(tmp_path)
    assert main(["--resume=a", "--max-latency=0.4x"]) == 6
    err = capsys.readouterr().err
    assert "--max-latency 0.4x changes the goal of this run, which has 0.5x" in err
    assert "--warm-start" in err
    assert main(["--resume=a", "--set", "seed=9"]) == 6
    assert "--seed 9 changes the goal" in capsys.readouterr().err
    with (tmp_path / "runs" / "a" / JOURNAL).open("r+b") as file:
        file.write(b"x")
        file.seek(0, 2)
        file.write(b"more\n")
    assert main(["--resume=a"]) == 6
    assert "is damaged in line 1" in capsys.readouterr().err


def test_unforeseen_errors_have_no_traceback_unless_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[doctor.Finding]:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(doctor, "examine", broken)
    assert main(["doctor"]) == 1
    err = capsys.readouterr().err
    assert "internal error: ZeroDivisionError: by zero" in err
    assert "Traceback" not in err
    assert main(["doctor", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["good"] is True
    names = {f["name"] for f in document["findings"]}
    assert {"torch", "onnxruntime", "apache-tvm-ffi", "processor", "cache", "disk here", "clock"} <= names
    assert str(tmp_path / "cache") in str(document["findings"])
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self/nothing")
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert ["BAD", "cache"] in [line.split()[:2] for line in out.splitlines()]
    assert "XDG_CACHE_HOME" in out


def test_doctor_knows_bad_versions() -> None:
    bad = doctor.check_version("apache-tvm-ffi", "0.1.15.post2", "0.1.15.post2", "0.1.14.post1")
    assert not bad.good
    assert "apache-tvm-ffi==0.1.14.post1" in bad.text
    assert not doctor.check_version("ray", None, None, None).good
    assert doctor.check_version("ray", "2.60.0", None, None).text == "2.60.0"


def interrupt_twice(said: list[str]) -> None:
    with stop_on_interrupt(said.append, "measurement") as stop:
        assert not stop.is_set()
        signal.raise_signal(signal.SIGINT)
        assert stop.is_set()
        signal.raise_signal(signal.SIGINT)


def test_first_interrupt_stops_softly_and_the_second_aborts() -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupt_twice(said)
    assert [text.partition(";")[0] for text in said] == ["stopping after the measurement in flight"]
    assert signal.getsignal(signal.SIGINT) is before
    seen: list[bool] = []

    def elsewhere() -> None:
        with stop_on_interrupt(said.append) as stop:
            seen.append(stop.is_set())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [False]


def test_zero_is_given_and_false_is_not() -> None:
    values = {"seed": 0, "risk": 0.0, "strict": False, "skip": [], "task": None, "data": ""}
    assert merged(values) == {"seed": 0, "risk": 0.0, "data": ""}


def test_dry_run_estimates_the_time() -> None:
    results = example(timings={"search": 0.5, "baselines": 10.0})
    results["search"]["evaluated"] = 1
    config = make_config({"target": "local", "evaluations": 100, "workers": 2, "recover": "30s"})
    assert estimate(config, results).startswith("estimate  about 1:06 in all")  # 10.5 + 0.5 * 100 / 2 + 30
    short = config.model_copy(update={"timeout": "5s"})
    assert "about 0:46 in all" in estimate(short, results)
    assert "100 evaluations of 0.50 s" in estimate(config, results)


def test_a_reader_that_leaves_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m search.cli --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() in ("0", "1")
    assert "Error" not in done.stderr
    assert "Exception" not in done.stderr
