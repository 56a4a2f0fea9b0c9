"""The store of past studies, and runs that learn from it."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from agents.past import PastStudy
from agents.registry import make_agent
from agents.testing import run, score_of
from agents.toys import toy_problem, toy_space
from search import studies
from search.cli import main
from search.errors import InputError, ResumeError
from search.journal import Journal, Record, encode
from search.runfolder import JOURNAL
from search.studies import StudyStore, chosen
from tests.search.own_task import flags


@pytest.fixture(scope="module")
def study() -> PastStudy:
    from agents.past import past_study

    problem = toy_problem(toy_space(2), share=0.4)
    history = run(make_agent("random", problem, 0), problem, 8, score_of(problem))
    found = past_study(problem, history, run="a" * 16, task="t", target="toy", agent="random")
    assert found is not None
    return found


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of its own; the studies' folder in it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "tailorbird" / "studies"


def numbered(study: PastStudy, number: int) -> PastStudy:
    return replace(study, run=f"{number:016x}")


def test_what_was_added_is_read_the_latest_first(study: PastStudy, tmp_path: Path) -> None:
    store = StudyStore(tmp_path / "studies")
    assert store.read().studies == ()
    for number in range(3):
        os.utime(store.add(numbered(study, number)), (number, number))
    found = store.read()
    assert [s.run for s in found.studies] == [f"{k:016x}" for k in (2, 1, 0)]
    assert found.skipped == ()


def test_a_study_that_went_on_replaces_itself(study: PastStudy, tmp_path: Path) -> None:
    store = StudyStore(tmp_path)
    store.add(study)
    store.add(replace(study, evaluations=99))
    assert [s.evaluations for s in store.read().studies] == [99]
    assert store.add(study) == store.add(study)
    assert len(list(tmp_path.iterdir())) == 1


def test_only_the_latest_are_kept(study: PastStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studies, "MOST", 3)
    store = StudyStore(tmp_path)
    for number in range(5):
        os.utime(store.add(numbered(study, number)), (number, number))
    assert {s.run for s in store.read().studies} == {f"{k:016x}" for k in (2, 3, 4)}


def test_spoilt_files_are_skipped_and_named(study: PastStudy, tmp_path: Path) -> None:
    store = StudyStore(tmp_path)
    good, torn = store.add(study), store.add(numbered(study, 1))
    torn.write_text(torn.read_text()[:100])
    newer = json.dumps(study.to_dict() | {"schema_version": 99}).encode()
    import hashlib

    (tmp_path / f"x-{hashlib.sha256(newer).hexdigest()[:16]}.json").write_bytes(newer)
    deep = b"[" * 100_000
    (tmp_path / f"y-{hashlib.sha256(deep).hexdigest()[:16]}.json").write_bytes(deep)
    found = store.read()
    assert [s.digest for s in found.studies] == [study.digest]
    assert good.is_file()
    why = {name[:1]: text for name, text in found.skipped}
    assert "another version" in why["x"]
    assert "no JSON" in why["y"]
    assert "not what its name says" in why["0"]


def test_networks_and_targets_take_turns(study: PastStudy) -> None:
    often = [replace(study, run=str(k)) for k in range(9)]
    rare = [replace(study, network="other", run="x"), replace(study, target="other", run="y")]
    assert [s.run for s in chosen([*often, *rare], most=4)] == ["0", "x", "y", "1"]


def test_a_folder_that_cannot_be_made_is_an_input_error(study: PastStudy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot create"):
        StudyStore(tmp_path / "file" / "studies").add(study)


def evaluated(folder: Path) -> list[object]:
    done = [r.data for r in Journal.read(folder / JOURNAL) if r.kind == "evaluated"]
    return [[d["number"], d["outcome"]["policy"], d["outcome"]["accuracy"]] for d in done]


def test_runs_are_kept_learned_from_and_resumed_alike(
    home: Path, study: PastStudy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A first run leaves a study; a second learns from it; cut and resumed it goes the same way, although
    there are other studies by then.
    """
    assert main([*flags(tmp_path, "--evaluations=8", f"--out={tmp_path / 'first'}"), "--quiet"]) == 0
    first = StudyStore().read().studies
    assert [s.evaluations > 8 for s in first] == [True]
    assert first[0].target == "raspberry-pi-4"
    assert first[0].agent == "joint"
    more = ["--agent=hyper", "--seed=1", "--evaluations=8", f"--out={tmp_path / 'second'}"]
    assert main([*flags(tmp_path, *more), "--quiet"]) == 0
    records = Journal.read(tmp_path / "second" / JOURNAL)
    learned = next(r.data for r in records if r.data.get("kind") == "studies")
    assert [PastStudy.from_dict(d) for d in learned["studies"]] == list(first)
    origins = [r.data["suggestion"]["origin"] for r in records if r.kind == "suggested"]
    assert any(o.startswith("learned") for o in origins)
    assert len(StudyStore().read().studies) == 2

    StudyStore().add(study)
    cut = tmp_path / "cut"
    cut.mkdir()
    keep = 2 + [r.kind for r in records].index("suggested")
    lines = (tmp_path / "second" / JOURNAL).read_bytes().splitlines(keepends=True)
    (cut / JOURNAL).write_bytes(b"".join(lines[:keep]))
    assert main(["--resume", str(cut), "--quiet"]) == 0
    assert evaluated(cut) == evaluated(tmp_path / "second")
    assert len(StudyStore().read().studies) == 3  # the same run goes on: it replaced what it left


def test_a_resumed_run_whose_studies_cannot_be_read_says_so(study: PastStudy, tmp_path: Path) -> None:
    doc = study.to_dict() | {"features": -1}
    path = tmp_path / JOURNAL
    records = [
        Record(0, "header", {"schema_version": 1}, 0.0),
        Record(1, "event", {"kind": "studies", "studies": [doc]}, 0.0),
    ]
    path.write_bytes(b"".join(encode(r) for r in records))
    with Journal.open(path) as journal, pytest.raises(ResumeError, match="learned from"):
        studies._journalled(journal)


def test_a_dry_run_leaves_no_study_and_a_full_disk_spoils_nothing(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags(tmp_path, "--dry-run", f"--out={tmp_path / 'dry'}"), "--quiet"]) == 0
    assert not home.exists()
    home.parent.mkdir(parents=True)
    home.write_text("")  # no folder can be made there
    assert main([*flags(tmp_path, "--evaluations=2", f"--out={tmp_path / 'run'}"), "--quiet"]) == 0
    assert (tmp_path / "run" / "results.json").is_file()
    shutil.rmtree(tmp_path / "run")
