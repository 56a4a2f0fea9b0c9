"""`search --target A,B,C`: a run each, one matrix; cut anywhere it goes on to the same end."""

from __future__ import annotations

import json
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from agents.joined import Exchange, Party
from agents.repair import smallest_reachable
from compressors.policy import ResolvedPolicy
from search import together
from search.cli import main
from search.config import load_config, make_config, read_yaml
from search.group import find_group, resumed_group, total_evaluations
from search.journal import Journal
from search.matrix import matrix_of
from search.matrix_text import matrix_cells, matrix_lines
from search.runfolder import CONFIG, JOURNAL, MODEL, POLICY, REPORT, RESULTS, TOGETHER, RunFolder
from search.setup import load_setup
from search.task import load_task
from tests.search.own_task import flags

#: Two that round alike, and an array that rounds otherwise.
TARGETS = ("raspberry-pi", "raspberry-pi-5", "fpga-zcu104-dpu")
EVALUATIONS = 14


def words(home: Path, *more: str) -> list[str]:
    given = flags(home, "--max-size=0.4x", "--pool=off", *more)
    given.remove("--max-latency=0.9x")
    return [f"--target={','.join(TARGETS)}", *given[1:]]


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed group."""
    home = tmp_path_factory.mktemp("standard")
    code = main([*words(home, f"--evaluations={EVALUATIONS}", f"--out={home / 'group'}"), "--quiet"])
    assert code == 0
    return home / "group"


def evaluated(folder: Path) -> dict[str, list[tuple[Any, str, Any]]]:
    """Of every run what was evaluated, in order."""
    found = {}
    for target in TARGETS:
        records = Journal.read(folder / target / JOURNAL)
        done = [r.data for r in records if r.kind == "evaluated"]
        found[target] = [
            (d["number"], json.dumps(d["outcome"]["policy"]), d["outcome"]["accuracy"]) for d in done
        ]
    return found


def ending(folder: Path) -> list[object]:
    files = [(folder / t / POLICY).read_text() for t in TARGETS]
    document = json.loads((folder / TOGETHER).read_text())
    return [evaluated(folder), files, [(folder / t / MODEL).is_file() for t in TARGETS], document["matrix"]]


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / t / RESULTS).read_text()) for t in TARGETS]


def origins(folder: Path, target: str) -> list[str]:
    records = Journal.read(folder / target / JOURNAL)
    return [r.data["suggestion"]["origin"] for r in records if r.kind == "suggested"]


def test_every_target_has_a_whole_run_of_its_own(standard: Path) -> None:
    assert read_yaml(standard / CONFIG)["target"] == list(TARGETS)
    for target in TARGETS:
        for name in (CONFIG, JOURNAL, POLICY, REPORT, RESULTS):
            assert (standard / target / name).is_file()
    names = [r["target"]["name"] for r in results(standard)]
    assert names == ["raspberry-pi-4", "raspberry-pi-5", "fpga-zcu104-dpu"]
    assert all(r["run"]["state"] == "complete" and r["picked"] for r in results(standard))


def test_the_evaluations_are_those_of_one_and_a_share_for_each_further_target(standard: Path) -> None:
    total = total_evaluations(make_config({"target": TARGETS, "evaluations": EVALUATIONS}), len(TARGETS))
    paid = sum(not o.startswith(together.FREE) for t in TARGETS for o in origins(standard, t))
    assert paid <= total < 2 * EVALUATIONS
    assert json.loads((standard / TOGETHER).read_text())["matrix"]["evaluations"] == paid
    hundred = make_config({"target": ("a", "b", "c"), "evaluations": 100})
    assert total_evaluations(hundred, 3) + 3 * 2 <= 130


def test_what_targets_of_the_same_numerics_evaluated_both_have(standard: Path) -> None:
    free = [o for t in TARGETS[:2] for o in origins(standard, t) if o.startswith(together.FREE)]
    assert free
    assert sum(r["search"]["reused"] for r in results(standard)[:2]) == len(free)
    assert results(standard)[2]["search"]["reused"] == 0
    both = [{(p, a) for _, p, a in evaluated(standard)[t]} for t in TARGETS[:2]]
    known: dict[str, Any] = {}
    for policy, accuracy in both[0] | both[1]:
        known.setdefault(str(policy), set()).add(accuracy)
    assert all(len(accuracies) == 1 for accuracies in known.values())


def test_no_policy_is_suggested_twice_and_every_suggestion_holds_the_budget(standard: Path) -> None:
    for target in TARGETS:
        rows = evaluated(standard)[target]
        assert max(Counter(p for _, p, _ in rows).values()) == 1
        assert [n for n, _, _ in rows] == list(range(len(rows)))
        records = Journal.read(standard / target / JOURNAL)
        assert all(r.data["outcome"]["feasible"] for r in records if r.kind == "evaluated")


def test_the_matrix_says_what_each_target_would_say_itself(standard: Path) -> None:
    found = results(standard)
    matrix = found[0]["matrix"]
    assert all(r["matrix"] == matrix for r in found)
    for i, target in enumerate(TARGETS):
        config = load_config({"target": target, "task": task_of(standard), "max_size": "0.4x"})
        setup = load_setup(config)
        for j, row in enumerate(matrix["rows"]):
            cell = row["cells"][i]
            assert cell["target"] == setup.target.name
            policy = ResolvedPolicy.from_dict(json.loads((standard / TARGETS[j] / POLICY).read_text()))
            if cell["same"]:
                assert policy.digest == cell["digest"]
                assert cell["costs"]["latency_ms"]["value"] == setup.priced(policy)["latency_ms"]
                assert cell["validation"]["value"] == pytest.approx(setup.scorer.score(policy).value)
                assert cell["feasible"] == (not setup.budget.why_not(setup.priced(policy)))
        assert matrix["rows"][i]["cells"][i]["same"]
        assert matrix["rows"][i]["cells"][i]["feasible"]


def task_of(standard: Path) -> str:
    return f"{standard.parent / 'stripes.py'}:make"


def test_the_common_policy_is_inside_all_budgets_and_the_same_everywhere(standard: Path) -> None:
    matrix = results(standard)[0]["matrix"]
    cells = matrix["common"]["cells"]
    assert len({c["digest"] for c in cells}) == 1
    assert all(c["same"] and c["feasible"] for c in cells)
    worst = min(c["validation"]["value"] for c in cells)
    for row in matrix["rows"]:
        if all(c["same"] and c["feasible"] for c in row["cells"]):
            assert worst >= min(c["validation"]["value"] for c in row["cells"])


def test_the_matrix_is_printed_and_in_the_report(standard: Path) -> None:
    matrix = results(standard)[0]["matrix"]
    cells = matrix_cells(matrix, "%")
    assert cells[0] == ["picked for", "raspberry-pi-4", "raspberry-pi-5", "fpga-zcu104-dpu"]
    assert len(cells) == 1 + len(TARGETS) + 1
    text = "\n".join(matrix_lines(matrix, "top1", "%"))
    assert matrix["common"]["cells"][0]["digest"] in text
    assert "Every target&#39;s policy" in (standard / TARGETS[0] / REPORT).read_text() or (
        "Every target's policy" in (standard / TARGETS[0] / REPORT).read_text()
    )


def cut(standard: Path, folder: Path, moment: float) -> Path:
    """The group as it was at a moment (a share of its records in the order of their times)."""
    shutil.copytree(standard, folder)
    times = sorted(r.at for t in TARGETS for r in Journal.read(standard / t / JOURNAL))
    until = times[int(moment * (len(times) - 1))]
    for target in TARGETS:
        records = Journal.read(standard / target / JOURNAL)
        lines = (standard / target / JOURNAL).read_bytes().splitlines(keepends=True)
        kept = [line for r, line in zip(records, lines, strict=True) if r.at <= until]
        shutil.rmtree(folder / target)
        (folder / target).mkdir()
        if kept:
            (folder / target / JOURNAL).write_bytes(b"".join(kept))
    return folder


@pytest.mark.parametrize("moment", [0.0, 0.3, 0.6, 0.8])
def test_a_group_that_was_killed_goes_on_to_the_same_end(
    moment: float, standard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cut(standard, tmp_path / "group", moment)
    where = folder if moment < 0.5 else folder / TARGETS[0]  # any of its runs means the group
    assert main(["--resume", str(where), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [r["run"]["state"] for r in document["runs"]] == ["complete"] * 3
    assert document["matrix"] == json.loads((folder / TOGETHER).read_text())["matrix"]
    assert ending(folder) == ending(standard)


def test_a_picked_policy_that_serves_all_best_is_the_common_one(standard: Path) -> None:
    task = load_task(make_config({"target": "raspberry-pi", "task": task_of(standard)}).task_spec())
    configs = [
        load_config({"target": t, "task": task_of(standard), "max_size": "0.4x", "pool": "off"})
        for t in TARGETS[1:]
    ]
    setups = [load_setup(c, task) for c in configs]
    coarse = setups[1].space
    picked = coarse.resolve(coarse.uniform(0.5, act_bits=8))
    parties = [Party(s.target.name, s.problem, s.scorer.numerics.key, list) for s in setups]
    matrix = matrix_of(setups, [picked, picked], Exchange(parties), 0)
    assert matrix["common"] is not None
    assert {c["digest"] for c in matrix["common"]["cells"]} == {picked.digest}
    assert matrix["further"] == 2


class Stopper:
    """A Progress that stops after so many evaluations."""

    def __init__(self, stop: threading.Event, after: int) -> None:
        self.stop, self.left = stop, after

    def header(self, lines: object) -> None: ...
    def start(self, total: int, done: int = 0, unit: str = "%") -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...

    def update(self, *_: object) -> None:
        self.left -= 1
        if self.left == 0:
            self.stop.set()


def test_a_stopped_group_says_so_and_is_resumed(standard: Path, tmp_path: Path) -> None:
    config = load_config(
        {
            "target": ",".join(TARGETS), "task": task_of(standard), "max_size": "0.4x", "recover": "0",
            "pool": "off", "evaluations": EVALUATIONS, "out": str(tmp_path / "group"),
        }
    )  # fmt: skip
    stop = threading.Event()
    found = together.run(config, Stopper(stop, 5), stop)
    assert [r.complete for r in found.results] == [False] * 3
    assert found.matrix is None
    assert sum(map(len, evaluated(found.folder).values())) == 5
    again = together.run(resumed_group(found.folder, {}))
    assert all(r.complete for r in again.results)
    assert ending(found.folder) == ending(standard)


def test_more_evaluations_are_searched_on(standard: Path, tmp_path: Path) -> None:
    shutil.copytree(standard, tmp_path / "group")
    assert main(["--resume", str(tmp_path / "group"), f"--evaluations={EVALUATIONS + 6}", "--quiet"]) == 0
    before, after = evaluated(standard), evaluated(tmp_path / "group")
    assert sum(map(len, after.values())) > sum(map(len, before.values()))
    assert all(after[t][: len(before[t])] == before[t] for t in TARGETS)


def test_a_group_is_found_by_its_folder_and_by_each_of_its_runs(standard: Path) -> None:
    assert find_group(standard) == standard
    assert find_group(standard / TARGETS[1]) == standard.resolve()
    assert find_group(standard.parent) is None
    found = RunFolder.find(standard / TARGETS[1])
    assert found.path == standard / TARGETS[1]
    assert found.id == f"group/{TARGETS[1]}"


@pytest.mark.parametrize(
    ("arguments", "code", "words_of_it"),
    [
        (["--target=raspberry-pi,rpi4"], 2, "names raspberry-pi-4 twice"),
        (["--target=raspberry-pi,jetson-orin-nano", "--measure=active"], 2, "one target at a time"),
        (["--target=raspberry-pi,toaster"], 2, "toaster"),
        (["report", "GROUP"], 6, "Name one"),
        (["--resume", "GROUP", "--seed=3"], 6, "changes the goal"),
        (["--target=raspberry-pi,jetson-orin-nano", "--out", "GROUP"], 3, "holds a run already"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    arguments: list[str], code: int, words_of_it: str, standard: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [a.replace("GROUP", str(standard)) for a in arguments]
    assert main(given) == code
    assert words_of_it in capsys.readouterr().err


def test_a_target_that_cannot_hold_its_budget_is_left_out_and_the_others_are_searched(
    standard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "group"
    names = "raspberry-pi-5,fpga-zcu104-dpu,raspberry-pi-zero-2-w"
    given = [f"--target={names}", f"--task={task_of(standard)}", f"--max-latency={between(standard)}ms"]
    given += ["--recover=0", "--pool=off", "--evaluations=10", f"--out={folder}", "--json"]
    assert main(given) == 4
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert [r["target"]["name"] for r in document["runs"]] == ["raspberry-pi-5", "fpga-zcu104-dpu"]
    assert all(r["run"]["state"] == "complete" and r["picked"] for r in document["runs"])
    assert [row["policy"] for row in document["matrix"]["rows"]] == ["raspberry-pi-5", "fpga-zcu104-dpu"]
    assert document["failed"][0]["exit_code"] == 4
    assert document["failed"][0]["message"].startswith("raspberry-pi-zero-2-w: nothing feasible")
    assert "search: raspberry-pi-zero-2-w: nothing feasible" in err
    assert document["matrix"]["evaluations"] <= total_evaluations(make_config({"target": names}), 2)
    assert main(["--resume", str(folder), "--quiet"]) == 4
    assert "top1" in capsys.readouterr().out


def between(standard: Path) -> float:
    """A latency that the fast ones of some targets hold easily and the slow one cannot."""
    found = {}
    for name in ("raspberry-pi-5", "fpga-zcu104-dpu", "raspberry-pi-zero-2-w"):
        setup = load_setup(load_config({"target": name, "task": task_of(standard), "max_size": "0.4x"}))
        found[name] = smallest_reachable(setup.problem)[0]["latency_ms"]
    least = found.pop("raspberry-pi-zero-2-w")
    most = max(found.values())
    assert most < 0.9 * least, found
    return 0.5 * (least + most)


def test_targets_that_all_cannot_hold_their_budget_are_named_before_anything_is_paid_for(
    standard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"--target={','.join(TARGETS[::2])}", f"--task={task_of(standard)}", "--max-latency=0.001ms"]
    given.append(f"--out={tmp_path / 'group'}")
    assert main(given) == 4
    told = capsys.readouterr().err
    assert "raspberry-pi-4: nothing feasible" in told or "fpga-zcu104-dpu: nothing feasible" in told
    assert not (tmp_path / "group").exists()


def test_a_damaged_file_is_named(standard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "group"
    folder.mkdir()
    for content in ("{", "[]", '{"schema_version": 1}', '{"schema_version": 9, "config": {}}'):
        (folder / TOGETHER).write_text(content)
        assert main(["--resume", str(folder)]) == 6
        assert TOGETHER in capsys.readouterr().err
