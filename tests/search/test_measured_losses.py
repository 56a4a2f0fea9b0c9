"""Losses of single changes in a search: measured once, kept, journalled, and told in the results."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.repair import expected_losses
from compressors.sensitivity import measured_losses
from search import sensitivity
from search.cli import main
from search.config import load_config
from search.journal import Journal
from search.results import read_results
from search.runfolder import JOURNAL, RESULTS
from search.sensitivity import as_losses, class_axes, losses_folder, losses_key
from search.setup import Setup, load_setup
from search.task import Metric, Split, Task
from search.threads import torch_threads
from tests.search.own_task import flags

EVALUATIONS = 6


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with torch_threads(1):
        yield


def make_setup(folder: Path, target: str = "raspberry-pi") -> Setup:
    task = flags(folder)[1].removeprefix("--task=")
    return load_setup(load_config({"target": target, "task": task, "max_latency": "0.9x"}))


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("compressors.sensitivity.measured_losses", no)


def test_losses_are_measured_when_asked_for_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make_setup(tmp_path)
    problem = setup.problem
    assert "sensitivity" not in setup.timings
    assert not losses_folder().exists()
    assert problem.losses is not None
    found = problem.losses()
    assert found == problem.losses()
    assert setup.timings["sensitivity"] > 0
    assert [p.suffix for p in losses_folder().iterdir()] == [".json"]
    assert found.keys() == {c.name for c in setup.space.choices}
    assert all(found[c.name].shape == (len(c.values),) for c in setup.space.choices)
    fresh = measured_losses(setup.scorer.network, setup.space, classes=[1])
    forbid(monkeypatch)
    again = make_setup(tmp_path).losses()
    for name, values in found.items():
        np.testing.assert_array_equal(values, again[name])  # a hit, digit for digit
        np.testing.assert_array_equal(values, fresh[name])  # as a miss


def test_agents_are_given_measured_losses(tmp_path: Path) -> None:
    setup = make_setup(tmp_path)
    expected = expected_losses(setup.problem)
    assert expected.shape == (setup.space.dimension,)
    assert np.isfinite(expected).all()
    assert (expected > 0).all()
    measured = np.array([setup.losses()[c.name][0] for c in setup.space.choices])
    large = measured > np.median(measured)
    np.testing.assert_allclose(expected[large], measured[large])
    assert not np.allclose(expected, expected_losses(replace(setup.problem, losses=None)))


def test_a_spoilt_file_is_measured_again(tmp_path: Path) -> None:
    found = make_setup(tmp_path).losses()
    (path,) = losses_folder().iterdir()
    whole = path.read_text()
    document = json.loads(whole)
    name = next(iter(document))
    for text in (
        "", "[]", whole[: len(whole) // 2], json.dumps({**document, name: [1.0]}),
        json.dumps({**document, name: ["a"] * len(document[name])}), json.dumps({**document, "more": [0.0]}),
        json.dumps({**document, name: [float("nan")] * len(document[name])}),
    ):  # fmt: skip
        path.write_text(text)
        again = make_setup(tmp_path).losses()
        assert all((found[k] == again[k]).all() for k in found)
        assert path.read_text() == whole


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/self/nothing")
    assert make_setup(tmp_path).losses()


def test_what_losses_depend_on_is_in_their_key(tmp_path: Path) -> None:
    setup = make_setup(tmp_path)
    key = losses_key(setup.task, setup.space)
    assert key == losses_key(make_setup(tmp_path).task, setup.space)
    network = setup.task.network
    with torch.no_grad():
        next(network.parameters()).add_(0.5)
    assert losses_key(setup.task, setup.space) != key
    with torch.no_grad():
        next(network.parameters()).sub_(0.5)
    other = make_setup(tmp_path, "fpga-bitfusion")
    assert losses_key(other.task, other.space) != key


def test_labels_tell_where_classes_are(tmp_path: Path) -> None:
    setup = make_setup(tmp_path)
    task, space = setup.task, setup.space
    assert class_axes(task, space) == [1]
    images = task.validation.inputs

    def labelled(targets: torch.Tensor | None, against: str = "labels") -> Task:
        metric = Metric("own", True, "", lambda o, t: o[0][:, 0], against)  # type: ignore[arg-type]
        return replace(task, validation=Split(images, targets), metric=metric)

    count = len(task.validation)
    assert class_axes(labelled(torch.zeros(count, 4)), space) == [None]
    assert class_axes(labelled(None), space) is None
    assert class_axes(labelled(torch.zeros(count, 3, dtype=torch.long)), space) is None
    assert class_axes(labelled(torch.zeros(count, dtype=torch.long), "teacher"), space) is None


def journalled(folder: Path) -> list[Any]:
    return [
        r.data["losses"]
        for r in Journal.read(folder / JOURNAL)
        if r.kind == "event" and r.data.get("kind") == sensitivity.EVENT
    ]


def test_a_resumed_run_goes_on_with_the_losses_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = flags(tmp_path, f"--evaluations={EVALUATIONS}", f"--out={tmp_path / 'whole'}")
    assert main([*words, "--quiet"]) == 0
    whole = journalled(tmp_path / "whole")
    records = Journal.read(tmp_path / "whole" / JOURNAL)
    kinds = [r.kind for r in records]
    keep = kinds.index("evaluated") + 2
    lines = (tmp_path / "whole" / JOURNAL).read_bytes().splitlines(keepends=True)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / JOURNAL).write_bytes(b"".join(lines[:keep]))
    begun = journalled(tmp_path / "cut")
    assert begun == whole[: len(begun)]
    assert begun
    # neither the cache nor another measurement of what was known has a say any more
    shutil.rmtree(losses_folder())
    forbid(monkeypatch)
    measured: list[tuple[int, ...]] = []
    around = sensitivity.measured_around

    def noted(setup: Setup, at: tuple[int, ...]) -> Any:
        measured.append(tuple(at))
        return around(setup, at)

    monkeypatch.setattr(sensitivity, "measured_around", noted)
    assert main(["--resume", str(tmp_path / "cut"), "--quiet"]) == 0
    assert journalled(tmp_path / "cut") == whole
    assert len(measured) == len(whole) - len(begun)

    def evaluated(name: str) -> list[Any]:
        found = [r.data for r in Journal.read(tmp_path / name / JOURNAL) if r.kind == "evaluated"]
        return [[d["number"], d["outcome"]["policy"], d["outcome"]["accuracy"]] for d in found]

    assert evaluated("cut") == evaluated("whole")


def test_journalled_losses_of_another_space_are_not_taken(tmp_path: Path) -> None:
    space = make_setup(tmp_path).space
    right = {c.name: [0.5] * (len(c.values) - 1) + [0.0] for c in space.choices}
    assert as_losses(right, space) is not None
    name = space.choices[0].name
    assert as_losses({**right, name: [0.0]}, space) is None
    assert as_losses({k: v for k, v in right.items() if k != name}, space) is None
    assert as_losses(None, space) is None


def test_results_explain_the_picked_policy(tmp_path: Path) -> None:
    words = flags(tmp_path, f"--evaluations={EVALUATIONS}", f"--out={tmp_path / 'run'}")
    assert main([*words, "--quiet"]) == 0
    results = read_results(tmp_path / "run" / RESULTS)
    rows = results["explanation"]
    setup = make_setup(tmp_path)
    names = {r["name"] for r in rows if r["kind"] != "fixed"}
    assert names == {c.name for c in setup.space.choices}
    layers = [x.name for x in setup.space.structure.layers]
    at = [layers.index(r["layer"]) if r["layer"] else -1 for r in rows]
    assert at == sorted(at)
    assert all(r["why"] for r in rows)
    losses = journalled(tmp_path / "run")[-1]  # around the picked policy
    for row in rows:
        if row["kind"] != "fixed" and row["value"] != "gone":
            values = losses[row["name"]]  # nothing is free: `loss_table.FLOOR`
            assert min(abs(row["risk"] - v) for v in values) < 1e-5 + 1e-3 * max(values)
            step = row["step_up"]
            assert step is None or step["risk"] is not None
    point = next(p for p in results["points"] if p["picked"])
    kept = {r["subject"]: r["value"] for r in rows if r["kind"] == "keep"}
    for group, count in point["policy"]["groups"].items():
        if group in kept:
            assert kept[group].split(" ")[0] == str(count)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<h2>Why</h2>" in page
    assert "sensitivity" in results["timings"]


def test_losses_of_another_compressor_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make_setup(tmp_path)
    before = losses_key(setup.task, setup.space)
    monkeypatch.setattr(sensitivity, "COMPRESSOR_VERSION", sensitivity.COMPRESSOR_VERSION + 1)
    assert losses_key(setup.task, setup.space) != before
