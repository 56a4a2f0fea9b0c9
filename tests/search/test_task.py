"""The task contract: specs, splits, metrics, fingerprints and the checks on loading."""

import dataclasses
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from search.errors import InfeasibleError, InputError, TailorbirdError, UsageError, did_you_mean
from search.task import (
    Split,
    Task,
    TaskSpec,
    fingerprint,
    list_tasks,
    load_task,
    run_network,
    score_network,
    shuffled_batches,
)
from search.tasks.check import check_task, with_teacher_targets
from search.tasks.metrics import METRICS, metric_by_name


def small_task(seed: int = 0) -> Task:
    """A linear classifier of 5 features into 3 classes, with random data."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).eval()

    def split(count: int) -> Split:
        x = torch.randn(count, 5, generator=generator)
        return Split((x,), torch.randint(0, 3, (count,), generator=generator))

    train = split(40)
    return Task(
        name="small",
        network=network,
        example=(train.inputs[0][:1],),
        calibration=train.inputs,
        validation=split(20),
        metric=METRICS["top1"],
        train=train,
        test=split(20),
    )


def test_errors_have_exit_codes_and_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(InfeasibleError("too tight", "smallest is 3 ms")))  # noqa: S301
    assert isinstance(error, TailorbirdError)
    assert (error.exit_code, error.hint) == (4, "smallest is 3 ms")
    assert str(error).splitlines() == ["too tight", "smallest is 3 ms"]
    assert did_you_mean("Raspbery-pi", ["gpu-t4", "raspberry-pi"]) == "Did you mean 'raspberry-pi'?"
    assert did_you_mean("zzz", ["gpu-t4"]) == ""


def test_the_digits_task_is_what_it_says() -> None:
    task = load_task("digits32")
    assert (len(task.train), len(task.validation), len(task.test)) == (1079, 359, 359)
    assert task.calibration[0].shape == (512, 1, 32, 32)
    assert sum(p.numel() for p in task.network.parameters()) == 272186
    assert not task.network.training
    accuracy = task.metric.value(score_network(task, task.network, task.validation))
    assert accuracy == 356 / 359
    assert task.metric.show(accuracy) == "99.2 %"
    for split in (task.train, task.validation, task.test):
        counts = torch.bincount(split.targets) / len(split)
        assert float((counts - 0.1).abs().max()) < 0.01
    images = torch.cat([task.train.inputs[0], task.validation.inputs[0], task.test.inputs[0]])
    assert len(images) == 1797


def test_a_task_is_the_same_in_another_process() -> None:
    code = (
        "from search.task import *; print(fingerprint(load_task(TaskSpec.from_dict({'name': 'digits32'}))))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    task = load_task("digits32")
    assert other.stdout.strip() == fingerprint(task)
    assert other.stderr == ""
    assert pickle.loads(pickle.dumps(task.spec)) == task.spec == TaskSpec(name="digits32")  # noqa: S301


def test_listing_tasks_imports_no_torch() -> None:
    code = "import sys; from search.task import *; print(*list_tasks()); sys.exit('torch' in sys.modules)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert other.returncode == 0
    assert other.stdout.split() == list(list_tasks())
    assert {"digits32", "mnist5k-lenet5", "mnist5k-distorted"} <= set(list_tasks())


def test_spec_goes_to_plain_values_and_back() -> None:
    spec = TaskSpec(name="", model="net.py:make", data="d.npz", data_size=(8, 9), mean=(0.5,), std=(0.2,))
    plain = spec.to_dict()
    assert plain == {
        "model": "net.py:make",
        "data": "d.npz",
        "data_size": [8, 9],
        "mean": [0.5],
        "std": [0.2],
    }
    assert TaskSpec.from_dict(plain) == spec
    assert hash(spec) == hash(TaskSpec.from_dict(plain))
    with pytest.raises(InputError, match="Did you mean 'checkpoint'"):
        TaskSpec.from_dict({"chekpoint": "x"})


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        (TaskSpec(name="digit32"), InputError, "Did you mean 'digits32'"),
        (TaskSpec(name="mnist5k/lenet6"), InputError, "Did you mean 'mnist5k-lenet5'"),
        (TaskSpec(name="qqq"), InputError, "Built in are digits32"),
        (TaskSpec(name="digits32", data="x.npz"), UsageError, "--data needs --model"),
        (TaskSpec(name="my.py:f", model="net.py:make"), UsageError, "exclude each other"),
        (TaskSpec(metric="top_2"), InputError, "Did you mean 'top"),
    ],
)
def test_wrong_specs_get_one_clear_error(spec: TaskSpec, error: type[TailorbirdError], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        load_task(spec)
    assert len(str(caught.value).splitlines()) <= 2


def test_metrics_score_samples() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0, -2.0], [0.0, 1.0, 5.0, 2.0, 3.0, 4.0]])
    assert METRICS["top1"].score((logits,), torch.tensor([0, 1])).tolist() == [1.0, 0.0]
    assert METRICS["top5"].score((logits,), torch.tensor([5, 1])).tolist() == [0.0, 1.0]
    values, targets = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 4.0], [3.0, 4.0]])
    assert METRICS["mse"].score((values,), targets).tolist() == [2.0, 12.5]
    assert metric_by_name("neg-mse").score((values,), targets).tolist() == [-2.0, -12.5]
    assert METRICS["teacher_agreement"].score((logits,), logits * 2).tolist() == [1.0, 1.0]
    assert METRICS["cosine"].score((logits,), -logits).tolist() == pytest.approx([-1.0, -1.0])
    assert metric_by_name("Top-1") is METRICS["top1"]
    assert [name for name, metric in METRICS.items() if not metric.higher_is_better] == [
        "mse",
        "teacher_kl",
    ]
    segmentation = torch.zeros(2, 3, 4, 4)
    segmentation[:, 1] = 1
    labels = torch.ones(2, 4, 4, dtype=torch.long)
    labels[1, :2] = 0
    assert METRICS["top1"].score((segmentation,), labels).tolist() == [1.0, 0.5]


def test_a_teacher_metric_compares_with_the_uncompressed_network() -> None:
    task = load_task(TaskSpec(name="digits32", metric="teacher_agreement"))
    assert task.validation.targets.shape == (359, 10)
    assert float(score_network(task, task.network, task.validation).mean()) == 1.0
    cosine = with_teacher_targets(dataclasses.replace(small_task(), metric=METRICS["cosine"]))
    assert score_network(cosine, cosine.network, cosine.validation).tolist() == pytest.approx([1.0] * 20)
    assert cosine.spec is None


def test_outputs_do_not_depend_on_the_split_into_batches() -> None:
    task = small_task()
    whole = run_network(task.network, task.validation.inputs)
    parts = run_network(task.network, task.validation.inputs, batch_size=7)
    assert len(whole) == len(parts) == 1
    assert whole[0].shape == (20, 3)
    torch.testing.assert_close(whole[0], parts[0])
    tied = run_network(nn.Identity(), (torch.arange(6).reshape(3, 2),))
    assert tied[0].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_batches_are_endless_full_and_seeded() -> None:
    split = Split((torch.arange(10),), torch.arange(10) * 2)
    stream = shuffled_batches(split, seed=1, batch_size=4)
    batches = [next(stream) for _ in range(6)]
    again = shuffled_batches(split, seed=1, batch_size=4)
    assert all(len(x[0]) == 4 and bool((y == 2 * x[0]).all()) for x, y in batches)
    assert all(bool((x[0] == next(again)[0][0]).all()) for x, _ in batches)
    first_epoch = torch.cat([x[0] for x, _ in batches[:2]])
    assert len(set(first_epoch.tolist())) == 8
    inputs, labels = next(dataclasses.replace(small_task(), train=None).batches(0, 64))
    assert inputs[0].shape == (40, 5)
    assert labels is None


def test_augmented_batches_are_seeded_and_differ_from_the_data() -> None:
    task = load_task("digits32")
    one, other = task.batches(3, 16), task.batches(3, 16)
    for _ in range(2):
        (x,), y = next(one)
        (again,), same = next(other)
        assert torch.equal(x, again)
        assert torch.equal(y, same)
    assert x.shape == (16, 1, 32, 32)
    assert not any(bool((task.train.inputs[0] == image).all((1, 2, 3)).any()) for image in x)
    assert float(run_network(task.network, (x,))[0].argmax(1).eq(y).float().mean()) > 0.8


def test_fingerprint_tells_weights_data_and_metric_but_not_the_name() -> None:
    task = small_task()
    base = fingerprint(task)
    assert base == fingerprint(small_task()) == fingerprint(dataclasses.replace(task, name="other"))
    flipped = dataclasses.replace(task.validation, targets=(task.validation.targets + 1) % 3)
    others = {
        fingerprint(small_task(seed=1)),
        fingerprint(dataclasses.replace(task, validation=flipped)),
        fingerprint(dataclasses.replace(task, metric=METRICS["top5"])),
        fingerprint(dataclasses.replace(task, calibration=(task.calibration[0][:10],))),
    }
    assert len(others) == 4
    assert base not in others
    teacher = dataclasses.replace(task, metric=METRICS["cosine"])
    assert fingerprint(teacher) == fingerprint(with_teacher_targets(teacher))


def _with_nan(task: Task) -> Task:
    task.network[0].weight.data[0, 0] = float("nan")
    return task


def _with_targets(task: Task, targets: torch.Tensor) -> Task:
    return dataclasses.replace(task, validation=dataclasses.replace(task.validation, targets=targets))


SPOILT = {
    "NaN or infinite": _with_nan,
    "no weights": lambda t: dataclasses.replace(t, network=nn.ReLU()),
    "fails on the example of shape .1, 4.: RuntimeError": lambda t: dataclasses.replace(
        t,
        example=(torch.zeros(1, 4),),
        calibration=(torch.zeros(9, 4),),
        validation=Split((torch.zeros(9, 4),), torch.zeros(9, dtype=torch.long)),
        train=None,
        test=None,
    ),
    "example has 2 samples": lambda t: dataclasses.replace(t, example=(torch.zeros(2, 5),)),
    "calibration data is empty": lambda t: dataclasses.replace(t, calibration=(torch.zeros(0, 5),)),
    "validation data is empty": lambda t: dataclasses.replace(t, validation=Split((torch.zeros(0, 5),))),
    "validation data has samples of shape": lambda t: dataclasses.replace(
        t, validation=Split((torch.ones(3, 6),))
    ),
    "calibration data must be a tuple": lambda t: dataclasses.replace(t, calibration=torch.zeros(3, 5)),
    "20 samples and 7 targets": lambda t: _with_targets(t, torch.zeros(7, dtype=torch.long)),
    "label 3 is out of range: the network has 3": lambda t: _with_targets(t, torch.full((20,), 3)),
    "label -1 is out of range": lambda t: _with_targets(t, torch.full((20,), -1)),
    "labels as integers": lambda t: _with_targets(t, torch.zeros(20)),
    "needs labels": lambda t: dataclasses.replace(t, validation=Split(t.validation.inputs)),
    "training samples too": lambda t: dataclasses.replace(t, validation=t.train[:20]),
    "test samples are training samples": lambda t: dataclasses.replace(t, test=t.train),
    "metric mse fails|metric mse must": lambda t: dataclasses.replace(t, metric=METRICS["mse"]),
    "one score a sample": lambda t: dataclasses.replace(
        t, metric=dataclasses.replace(METRICS["mse"], name="own", score=lambda y, _: y[0].mean())
    ),
    "first dimension must match": lambda t: dataclasses.replace(
        t, network=nn.Sequential(nn.Linear(5, 3), nn.Flatten(0))
    ),
    "the network returned str|tensors": lambda t: dataclasses.replace(t, network=Odd()),
}


class Odd(nn.Module):
    """A network that answers with something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> str:
        return str(x)


@pytest.mark.parametrize("text", list(SPOILT))
def test_spoilt_tasks_are_refused_in_one_line(text: str) -> None:
    check_task(small_task())
    with pytest.raises(InputError, match=text) as caught:
        check_task(SPOILT[text](small_task()))
    assert caught.value.exit_code == 3
    assert len(str(caught.value).splitlines()) == 1
