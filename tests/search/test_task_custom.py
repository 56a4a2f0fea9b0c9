"""The user's own tasks: a file with a function; a network with weights, an .npz or an image folder."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from search.errors import InputError, UsageError
from search.task import Split, TaskSpec, fingerprint, load_task, score_network

MY_TASK = """
import torch
from torch import nn
from search.task import Metric, Split, Task

def within(outputs, targets):
    return ((outputs[0] - targets).abs() < 0.5).float().flatten(1).mean(1)

within.unit = "%"

def make_net():
    print("building")
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))

def make_task():
    x = torch.rand(30, 3, 8, 8)
    y = torch.randint(0, 2, (30,))
    return Task(name="mine", network=make_net(), example=(x[:1],), calibration=(x[:10],),
                validation=Split((x[10:],), y[10:]), metric=Metric("right", True, "%", score))

def score(outputs, targets):
    return (outputs[0].argmax(1) == targets).float()

def not_a_task():
    return 7

def broken():
    return [][3]

def needs(argument):
    return argument
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's working folder with my_task.py, data.npz and photos/."""
    (tmp_path / "my_task.py").write_text(MY_TASK)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 255, (60, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x=images, y=np.arange(60) // 30)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            pixels = generator.integers(0, 255, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_function_makes_a_task(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = load_task("my_task.py:make_task")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "building\n")
    assert (task.name, len(task.validation), task.metric.name) == ("mine", 20, "right")
    assert not task.network.training
    assert task.spec == TaskSpec(name=f"{folder / 'my_task.py'}:make_task")
    assert 0 <= float(score_network(task, task.network, task.validation).mean()) <= 1


def test_own_tasks_are_rebuilt_in_a_process_elsewhere(folder: Path) -> None:
    specs = [
        TaskSpec(name="my_task.py:make_task"),
        TaskSpec(model="my_task:make_net", data="data.npz", metric="my_task.py:score"),
    ]
    code = "import sys; from search.task import *; print(fingerprint(load_task(eval(sys.argv[1]))))"
    for spec in specs:
        task = load_task(spec)
        command = [sys.executable, "-c", code, repr(task.spec)]
        other = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
        assert other.stdout.strip() == fingerprint(task), other.stderr
        assert other.returncode == 0


def test_a_network_with_an_npz(folder: Path) -> None:
    task = load_task(TaskSpec(model="my_task.py:make_net", data="data.npz", mean=(0.5,), std=(0.25,)))
    assert (len(task.train), len(task.validation), len(task.test)) == (42, 9, 9)
    assert (task.name, task.metric.name, task.calibration[0].shape) == ("make_net", "top1", (42, 3, 8, 8))
    assert float(task.train.inputs[0].min()) == pytest.approx(-2, abs=0.05)
    assert float(task.train.inputs[0].max()) == pytest.approx(2, abs=0.05)
    # sorted by class in the file, and yet every part has both
    assert all(
        0.4 < float(part.targets.double().mean()) < 0.6 for part in (task.train, task.validation, task.test)
    )
    inputs, labels = next(task.batches(0, 8))
    assert task.loss((task.network(*inputs),), labels).isfinite()
    everything = torch.cat([p.inputs[0] for p in (task.train, task.validation, task.test)])
    assert len(torch.unique(everything, dim=0)) == 60


def test_named_parts_of_an_npz(folder: Path) -> None:
    generator = np.random.default_rng(1)
    parts = {
        f"x_{part}": generator.normal(size=(n, 4)) for part, n in (("train", 20), ("val", 8), ("test", 6))
    }
    parts |= {
        f"y_{part}": generator.normal(size=(n, 2)) for part, n in (("train", 20), ("val", 8), ("test", 6))
    }
    np.savez("parts.npz", **parts, x_calibration=generator.normal(size=(5, 4)))
    (folder / "line.py").write_text("from torch import nn\ndef net():\n    return nn.Linear(4, 2)\n")
    task = load_task(TaskSpec(model="line.py:net", data="parts.npz"))
    assert (len(task.train), len(task.validation), len(task.test), len(task.calibration[0])) == (20, 8, 6, 5)
    assert (task.metric.name, task.metric.higher_is_better) == ("mse", False)
    np.testing.assert_array_equal(task.validation.inputs[0], parts["x_val"].astype(np.float32))
    assert task.loss((task.network(*task.validation.inputs),), task.validation.targets).ndim == 0
    named = load_task(TaskSpec(model="line.py:net", data="parts.npz", metric="my_task.py:within"))
    assert (named.metric.name, named.metric.unit) == ("within", "%")


def test_data_without_labels_is_judged_by_the_teacher(folder: Path) -> None:
    np.savez("bare.npz", x=np.random.default_rng(2).normal(size=(40, 3, 8, 8)))
    task = load_task(TaskSpec(model="my_task.py:make_net", data="bare.npz"))
    assert task.metric.name == "teacher_agreement"
    assert float(score_network(task, task.network, task.validation).mean()) == 1.0
    assert task.loss is None


def test_image_folders(folder: Path) -> None:
    task = load_task(TaskSpec(model="my_task.py:make_net", data="photos", data_size=(8, 8)))
    assert task.example[0].shape == (1, 3, 8, 8)
    assert len(task.train) + len(task.validation) + len(task.test) == 24
    assert set(task.validation.targets.tolist()) == {0, 1}
    with Image.open(folder / "photos" / "cat" / "0.png") as image:
        scaled = image.resize((10, 8), Image.Resampling.BILINEAR).crop((1, 0, 9, 8))
    wanted = torch.from_numpy(np.asarray(scaled).transpose(2, 0, 1).astype(np.float32)) / 255
    everything = torch.cat([p.inputs[0] for p in (task.train, task.validation, task.test)])
    assert int((everything == wanted).all((1, 2, 3)).sum()) == 1


def test_image_folders_in_parts_and_without_classes(folder: Path) -> None:
    grey = np.random.default_rng(3).integers(0, 255, (30, 8, 8), dtype=np.uint8)
    for i, (part, name) in enumerate((p, c) for p in ("train", "val") for c in ("a", "b")):
        (folder / "parts" / part / name).mkdir(parents=True)
        for j in range(5):
            Image.fromarray(grey[5 * i + j]).save(folder / "parts" / part / name / f"{j}.png")
    (folder / "loose").mkdir()
    for j in range(10):
        Image.fromarray(grey[20 + j]).save(folder / "loose" / f"{j}.png")
    (folder / "grey.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))\n"
    )
    task = load_task(TaskSpec(model="grey.py:net", data="parts"))
    assert (len(task.train), len(task.validation), task.test) == (10, 10, None)
    assert task.example[0].shape == (1, 1, 8, 8)
    loose = load_task(TaskSpec(model="grey.py:net", data="loose"))
    assert loose.metric.name == "teacher_agreement"
    assert len(loose.train) + len(loose.validation) + len(loose.test) == 10


@pytest.mark.parametrize("form", ["safetensors", "state_dict", "wrapped", "parallel"])
def test_checkpoints(folder: Path, form: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    state = net.state_dict()
    if form == "safetensors":
        safetensors.torch.save_file(state, "w.safetensors")
    elif form == "state_dict":
        torch.save(state, "w.pt")
    elif form == "wrapped":
        torch.save({"epoch": 3, "state_dict": state}, "w.pt")
    else:
        torch.save({f"module.{name}": x for name, x in state.items()}, "w.pt")
    path = "w.safetensors" if form == "safetensors" else "w.pt"
    task = load_task(TaskSpec(model="my_task.py:make_net", checkpoint=path, data="data.npz"))
    assert torch.equal(task.network[0].weight, net[0].weight)
    assert torch.equal(task.network[3].bias, net[3].bias)
    assert task.spec.checkpoint == str(folder / path)


def _own(**changes: object) -> TaskSpec:
    values = {"model": "my_task.py:make_net", "data": "data.npz", **changes}
    return TaskSpec(**values)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (TaskSpec(name="mytask.py:make_task"), "no file .*Did you mean 'my_task.py'"),
        (TaskSpec(name="my_task.py:make_taks"), "has no 'make_taks'. Did you mean 'make_task'"),
        (TaskSpec(name="my_task.py:not_a_task"), "returned int; it must return a search.task.Task"),
        (TaskSpec(name="my_task.py:broken"), r"IndexError: list index out of range \(my_task.py line 28\)"),
        (TaskSpec(name="my_task.py:needs"), "raised TypeError.*argument"),
        (TaskSpec(name="my_task.py:torch"), "is module, not a function"),
        (TaskSpec(name="no_such_module_x:f"), "no module 'no_such_module_x'"),
        (TaskSpec(name="syntax.py:f"), r"raised SyntaxError.*\(syntax.py line 2\)"),
        (TaskSpec(name="imports.py:f"), "raised ModuleNotFoundError.*no_such_package"),
        (_own(model="my_task.py:not_a_task"), "must return a torch.nn.Module"),
        (_own(data="dta.npz"), "no data at .*Did you mean 'data.npz'"),
        (_own(data="typo.npz"), "array 'x_trian'. Did you mean 'x_train'"),
        (_own(data="pickled.npz"), "Python objects"),
        (_own(data="my_task.py"), "Python objects|no .npz file"),
        (_own(data="cut.npz"), "no .npz file that can be read"),
        (_own(data="member.npz"), "member 'y' that is no array"),
        (_own(data="lengths.npz"), "y has 5 entries and x 9 samples"),
        (_own(data="few.npz"), "too few to split"),
        (_own(data="empty.npz"), "is empty"),
        (_own(data="text.npz"), "numbers are needed"),
        (_own(data="labels9.npz"), "label 9 is out of range: the network has 2 classes"),
        (_own(data="nan.npz"), "NaN or infinite"),
        (_own(data="narrow.npz"), "fails on the example of shape .1, 3, 4, 4."),
        (_own(mean=(0.1, 0.2)), "--mean has 2 values and x 3 channels"),
        (_own(std=(0.0,)), "must be positive"),
        (_own(data_size=(8, 8)), "--data-size is for image folders"),
        (_own(data="mixed"), "differ in size: .* Give --data-size"),
        (_own(data="bad_image"), "image a/x.png cannot be read"),
        (_own(data="no_images"), "there are no images"),
        (_own(data="empty_class"), "class folder empty_class/b has no images"),
        (_own(checkpoint="none.pt"), "no checkpoint"),
        (_own(checkpoint="missing.pt"), "lacks '3.bias'"),
        (_own(checkpoint="extra.safetensors"), "has 'more.weight', the network has not"),
        (
            _own(checkpoint="shape.pt"),
            r"0.weight has shape \(4, 3, 5, 5\), in the network it is \(4, 3, 3, 3\)",
        ),
        (_own(checkpoint="object.pt"), "no torch file of plain tensors"),
        (_own(checkpoint="garbage.safetensors"), "cannot be read"),
        (_own(checkpoint="list.pt"), "holds no state dict"),
        (_own(metric="my_task.py:wihtin"), "Did you mean 'within'"),
        (_own(metric="my_task.py:broken"), "metric broken fails: TypeError"),
    ],
)
def test_bad_inputs_get_one_clear_error(folder: Path, spec: TaskSpec, text: str) -> None:
    spoil(folder)
    with pytest.raises(InputError, match=text) as caught:
        load_task(spec)
    assert caught.value.exit_code == 3
    assert len(str(caught.value).splitlines()) <= 2


def test_a_network_without_data_is_a_usage_error(folder: Path) -> None:
    with pytest.raises(UsageError, match="needs --data"):
        load_task(TaskSpec(model="my_task.py:make_net"))
    with pytest.raises(UsageError, match=r"not file.py:name or package.module:name"):
        load_task(TaskSpec(model="my_task", data="data.npz"))
    assert UsageError.exit_code == 2


def test_labels_may_be_a_column(folder: Path) -> None:
    with np.load("data.npz") as data:
        np.savez("column.npz", x=data["x"], y=data["y"].reshape(-1, 1))
    column, flat = (load_task(_own(data=name)) for name in ("column.npz", "data.npz"))
    assert column.validation.targets.shape == (9,)
    assert torch.equal(column.validation.targets, flat.validation.targets)
    assert isinstance(column.test, Split)


def spoil(folder: Path) -> None:
    """Every file that is wrong in its own way."""
    x, y = np.random.default_rng(4).normal(size=(40, 3, 8, 8)), np.arange(40) % 2
    (folder / "syntax.py").write_text("import torch\ndef f(:\n")
    (folder / "imports.py").write_text("import no_such_package\n")
    np.savez("typo.npz", x_trian=x, y=y)
    np.savez("pickled.npz", x=np.array([{}, None], dtype=object))
    (folder / "cut.npz").write_bytes((folder / "data.npz").read_bytes()[:3000])
    with zipfile.ZipFile(folder / "member.npz", "w") as archive:
        archive.writestr("y.npy", b"no array")
    np.savez("lengths.npz", x=x[:9], y=y[:5])
    np.savez("few.npz", x=x[:3], y=y[:3])
    np.savez("empty.npz", x=x[:0], y=y[:0])
    np.savez("text.npz", x=np.array([["a"], ["b"]]))
    np.savez("labels9.npz", x=x, y=np.where(np.arange(40) == 7, 9, y))
    np.savez("nan.npz", x=np.where(np.arange(40).reshape(-1, 1, 1, 1) == 3, np.nan, x), y=y)
    np.savez("narrow.npz", x=x[:, :, :4, :4], y=y)
    for name in ("mixed/a", "bad_image/a", "no_images", "empty_class/a", "empty_class/b"):
        (folder / name).mkdir(parents=True)
    for i, size in enumerate(((8, 8), (9, 9))):
        Image.new("RGB", size).save(folder / "mixed" / "a" / f"{i}.png")
    (folder / "bad_image" / "a" / "x.png").write_bytes(b"no image")
    Image.new("RGB", (8, 8)).save(folder / "empty_class" / "a" / "x.png")
    state = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)).state_dict()
    torch.save({name: tensor for name, tensor in state.items() if name != "3.bias"}, "missing.pt")
    safetensors.torch.save_file({**state, "more.weight": torch.zeros(2)}, "extra.safetensors")
    torch.save({**state, "0.weight": torch.zeros(4, 3, 5, 5)}, "shape.pt")
    torch.save(nn.Linear(2, 2), "object.pt")
    (folder / "garbage.safetensors").write_bytes(b"garbage")
    torch.save([1, 2], "list.pt")
