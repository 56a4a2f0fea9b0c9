"""`search.run`: a user's own task, several targets, refusals, export and resume from a program."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import search
from compressors.policy import ResolvedPolicy
from search.errors import InputError, ResumeError, UsageError
from search.tasks.metrics import metric_by_name

ROOT = Path(__file__).parents[2]
QUICK = {"evaluations": 4, "recover": "0"}


@pytest.fixture(scope="module")
def task() -> search.Task:
    """Stripes, lying or standing: a small network that learns to tell them apart in a few steps."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (240,), generator=generator)
    phase = torch.rand(240, 1, generator=generator) * 6
    wave = torch.sin(torch.arange(12.0)[None] + phase)
    images = torch.where(labels[:, None, None] == 0, wave[:, :, None], wave[:, None, :]).expand(-1, 12, 12)
    images = images[:, None] + 0.3 * torch.randn(240, 1, 12, 12, generator=generator)
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2),
    )  # fmt: skip
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(25):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images[:160]), labels[:160]).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return search.Task(
        name="stripes",
        network=network,
        example=(images[:1],),
        calibration=(images[:64],),
        validation=search.Split((images[160:],), labels[160:]),
        metric=metric_by_name("top1"),
    )


def test_own_task_is_searched_exported_and_resumed(task: search.Task, tmp_path: Path) -> None:
    result = search.run(task, target="raspberry-pi", max_latency="0.9x", out=str(tmp_path / "run"), **QUICK)
    assert result.complete
    best = result.best
    assert best is not None
    assert isinstance(best.policy, ResolvedPolicy)
    assert best in result.front
    assert best.feasible
    limit = result.results["budget"]["limits"]["latency_ms"]["limit"]
    assert 0 < best.latency_ms <= limit
    assert 0.0 <= best.metric <= 1.0
    assert best.size_bytes > 0
    assert (tmp_path / "run" / "model.onnx").is_file()
    where = result.export(tmp_path / "deploy", point=result.front[-1].number)
    written = json.loads((where / "policy.json").read_text())
    assert ResolvedPolicy.from_dict(written) == result.front[-1].policy
    assert (where / "model.onnx").is_file()
    more = search.run(task, resume=str(tmp_path / "run"), evaluations=6)
    assert more.results["search"]["evaluated"] == 6
    assert more.folder == result.folder
    with pytest.raises(InputError, match="made by a Python program"):
        search.run(resume=str(tmp_path / "run"))
    with pytest.raises(InputError, match="no point 99"):
        result.export(tmp_path / "other", point=99)


def test_several_targets_give_a_result_each(task: search.Task, tmp_path: Path) -> None:
    found = search.run(task, target=("raspberry-pi", "gpu-t4"), max_size="0.5x", out=str(tmp_path), **QUICK)
    assert [r.results["target"]["name"] for r in found] == ["raspberry-pi-4", "gpu-t4"]
    assert len({r.folder for r in found}) == 2
    assert all(r.best is not None and r.best.feasible for r in found)


def test_what_makes_no_sense_is_refused(task: search.Task, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'max_latency'"):
        search.run(task, target="raspberry-pi", max_latncy="0.5x")
    with pytest.raises(UsageError, match="tuple"):
        search.run(task, target="raspberry-pi,gpu-t4")
    with pytest.raises(UsageError, match="which device"):
        search.run(task)
    with pytest.raises(UsageError, match="is no task"):
        search.run(nn.Linear(2, 2), target="raspberry-pi")  # type: ignore[call-overload]
    with pytest.raises(ResumeError, match="no run"):
        search.run(task, resume=str(tmp_path / "none"))
    spoilt = dataclasses.replace(task, validation=search.Split((task.validation.inputs[0][:, :, :5],)))
    with pytest.raises(InputError):
        search.run(spoilt, target="raspberry-pi", **QUICK)
    assert list(tmp_path.iterdir()) == []


def test_import_is_light_and_names_are_there() -> None:
    script = (
        "import sys, search\n"
        "print(*[m for m in ('torch', 'onnxruntime', 'numpy', 'pydantic', 'ray') if m in sys.modules])\n"
        "names = search.__all__; print(all(hasattr(search, n) for n in names), {*names} <= {*dir(search)})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["", "True True"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        search.nothing  # noqa: B018
