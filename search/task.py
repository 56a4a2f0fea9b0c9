"""What is compressed and how it is judged: a trained network with its data and its metric.

`load_task(spec)` builds a task from a small picklable value, bit for bit the same one in every process.
torch is imported by the functions that need it: the command line reads this module early.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from search.errors import InputError, UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor, nn

    Batch = tuple[tuple[Tensor, ...], Tensor | None]
    TrainBatches = Callable[[int, int], Iterator[Batch]]
    ScoreFunction = Callable[[tuple[Tensor, ...], Tensor | None], Tensor]
    LossFunction = Callable[[tuple[Tensor, ...], Tensor | None], Tensor]

CALIBRATION_SAMPLES = 512


@dataclass(frozen=True, eq=False)
class Split:
    """One part of the data.

    Attributes:
        inputs: the network's arguments, each a tensor with N samples along its first dimension.
        targets: what the metric compares answers with, N along the first dimension; None without labels.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs[0]) if self.inputs else 0

    def __getitem__(self, index: slice | Tensor) -> Split:
        return Split(
            tuple(x[index] for x in self.inputs), None if self.targets is None else self.targets[index]
        )


@dataclass(frozen=True)
class Metric:
    """How answers are scored; the metric's value is the mean of the samples' scores.

    Attributes:
        name: as shown and stored.
        higher_is_better: the polarity of the value.
        unit: `%` where scores are fractions that a person reads as percent, else what stands behind a number.
        score: (outputs, targets) -> float tensor of shape (N,), one score per sample. `outputs` is the tuple
            of the network's output tensors, N along the first dimension.
        against: `labels`, or `teacher` where the targets are the uncompressed network's own first output.
    """

    name: str
    higher_is_better: bool
    unit: str
    score: ScoreFunction
    against: Literal["labels", "teacher"] = "labels"

    def value(self, scores: Tensor) -> float:
        """The mean of per-sample `scores` (N,), summed in double precision."""
        return float(scores.double().mean())

    def show(self, value: float) -> str:
        """The value as a person reads it, such as `98.6 %`."""
        return f"{100 * value:.1f} %" if self.unit == "%" else f"{value:.4g} {self.unit}".rstrip()


@dataclass(frozen=True)
class TaskSpec:
    """All that is needed to build a task again, in plain values.

    Attributes:
        name: a built-in task's name, or `file.py:function` or `package.module:function` that returns a Task.
            Empty where `model` is given.
        model: `package.module:callable` or `file.py:callable` that returns the network.
        checkpoint: its weights, a safetensors file or a torch file of tensors.
        data: an .npz file or an image folder.
        metric: a built-in metric's name, or `module:function`; None takes the one that suits the data.
        data_size: (height, width) that images of a folder are brought to; None where all have one size.
        mean, std: per channel, subtracted from and divided into inputs after 8-bit images became [0, 1].
        folder: where modules of the user's own are looked for too; `load_task` enters the working folder.
    """

    name: str = "digits32"
    model: str | None = None
    checkpoint: str | None = None
    data: str | None = None
    metric: str | None = None
    data_size: tuple[int, int] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    folder: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a config file, without those that say nothing; `from_dict` takes them back."""
        defaults = TaskSpec(name="")
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}
        return {key: v for key, v in plain.items() if getattr(self, key) != getattr(defaults, key)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TaskSpec:
        """The spec that `to_dict` wrote."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise InputError(f"a task has no {key!r}. {did_you_mean(key, known)}".rstrip())
        tuples = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        arguments: dict[str, Any] = {"name": "", **tuples}
        return cls(**arguments)


@dataclass(frozen=True, eq=False)
class Task:
    """A trained network, its data and its metric. What is optional is None.

    Attributes:
        name: short, for tables and file names.
        network: in eval mode, on the CPU. Nobody changes it: copy it first.
        example: the network's arguments with one sample each (first dimension 1).
        calibration: the network's arguments, N samples, without labels.
        validation: what the search judges policies by.
        metric: how.
        train: for recovery; `batches` serves it.
        train_batches: (seed, batch size) -> endless stream of (inputs, targets or None), where the task has a
            better one, with fresh augmentation, than `train` shuffled.
        test: scored once by the final report; the search never reads it.
        loss: (outputs, targets) -> scalar tensor, for recovery; None takes distillation alone.
        spec: from which `load_task` builds this task again; None for one that only lives in this process.
    """

    name: str
    network: nn.Module
    example: tuple[Tensor, ...]
    calibration: tuple[Tensor, ...]
    validation: Split
    metric: Metric
    train: Split | None = None
    train_batches: TrainBatches | None = field(default=None, repr=False)
    test: Split | None = None
    loss: LossFunction | None = field(default=None, repr=False)
    spec: TaskSpec | None = None

    def batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        """Endless training batches, the same for the same seed.

        From `train_batches` where there are any, else `train` shuffled anew every epoch, else the calibration
        data without labels. A batch is full unless the data is smaller than one.
        """
        if self.train_batches is not None:
            return self.train_batches(seed, batch_size)
        return shuffled_batches(self.train or Split(self.calibration), seed, batch_size)


def shuffled_batches(split: Split, seed: int, batch_size: int) -> Iterator[Batch]:
    """Endless full batches of `split`, in a new order every epoch."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, len(split))
    while True:
        order = torch.randperm(len(split), generator=generator)
        for start in range(0, len(split) - size + 1, size):
            part = split[order[start : start + size]]
            yield part.inputs, part.targets


def as_outputs(answer: Any) -> tuple[Tensor, ...]:
    """A network's answer as the tuple of tensors that metrics and losses take."""
    import torch

    if isinstance(answer, torch.Tensor):
        return (answer,)
    if isinstance(answer, Mapping):
        answer = tuple(answer.values())
    if isinstance(answer, tuple | list) and answer and all(isinstance(x, torch.Tensor) for x in answer):
        return tuple(answer)
    raise InputError(
        f"the network returned {type(answer).__name__}; tensors, or a tuple or dict of them, can be scored"
    )


def run_network(network: nn.Module, inputs: tuple[Tensor, ...], batch_size: int = 256) -> tuple[Tensor, ...]:
    """The network's outputs for all N samples, in batches, without gradients."""
    import torch

    from .memory import keep_freed_memory

    keep_freed_memory()
    with torch.no_grad():
        # of one column, the layout of images makes some of torch's convolutions wrong: `execute.misread`
        inputs = tuple(x.contiguous() if x.dim() == 4 and x.shape[3] == 1 else x for x in inputs)
        parts = [
            as_outputs(network(*(x[start : start + batch_size] for x in inputs)))
            for start in range(0, len(inputs[0]), batch_size)
        ]
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def score_network(task: Task, network: nn.Module, split: Split, batch_size: int = 256) -> Tensor:
    """Per-sample scores (N,) of `network` on `split` by the task's metric; `metric.value` is their mean."""
    return task.metric.score(run_network(network, split.inputs, batch_size), split.targets)


def load_task(spec: TaskSpec | str) -> Task:
    """Builds the task that `spec` describes and checks it.

    Args:
        spec: a TaskSpec, or a name as in `--task`.
    Raises:
        InputError: the task, a file or a function is missing, or what they hold cannot be used.
    """
    from search.tasks.check import check_task, with_teacher_targets

    if isinstance(spec, str):
        spec = TaskSpec(name=spec)
    task, spec = _build(spec)
    task = dataclasses.replace(task, spec=spec)
    task.network.eval()
    check_task(task)
    return with_teacher_targets(task)


def prepared(task: Task) -> Task:
    """A task made by the caller, checked like every other; one that `load_task` built is left as it is.

    Raises InputError with the first thing that is wrong with it.
    """
    from search.tasks.check import check_task, with_teacher_targets

    if task.spec is not None:
        return task
    task.network.eval()
    check_task(task)
    return with_teacher_targets(task)


def _build(spec: TaskSpec) -> tuple[Task, TaskSpec]:
    """The unchecked task, and `spec` with the names and paths that hold in any process."""
    from search.tasks import builtin, custom

    spec = custom.anchored(spec)
    own = [key for key in ("checkpoint", "data", "data_size", "mean", "std") if getattr(spec, key)]
    if spec.model is not None:
        if spec.name and spec.name != TaskSpec.name:
            raise UsageError(f"--task {spec.name} and --model {spec.model} exclude each other")
        spec = dataclasses.replace(spec, name="")
        return custom.from_parts(spec), spec
    if own:
        raise UsageError(f"--{own[0].replace('_', '-')} needs --model package.module:callable")
    if ":" in spec.name:
        task, name = custom.from_function(spec), spec.name
    else:
        task, name = builtin(spec.name)
    if spec.metric is not None:
        task = dataclasses.replace(task, metric=custom.find_metric(spec.metric, spec.folder))
    return task, dataclasses.replace(spec, name=name)


def list_tasks() -> dict[str, str]:
    """The built-in tasks' names, each with one line."""
    from search.tasks import BUILTINS

    return {name: entry.summary for name, entry in BUILTINS.items()}


def fingerprint(task: Task) -> str:
    """sha256 (hex) over structure, weights, calibration and validation data and the metric's name.

    Two tasks with the same fingerprint give every policy the same accuracy; their names do not count.
    """
    digest = hashlib.sha256(f"{task.metric.name}\n{task.metric.against}\n{task.network}\n".encode())
    for name, tensor in sorted(task.network.state_dict().items()):
        _hash_tensor(digest, name, tensor)
    parts: dict[str, tuple[Tensor, ...]] = {
        "example": task.example,
        "calibration": task.calibration,
        "validation": task.validation.inputs,
    }
    # A teacher's answers follow from weights and inputs, but their last bits from the number of threads.
    if task.validation.targets is not None and task.metric.against == "labels":
        parts["targets"] = (task.validation.targets,)
    for name, tensors in parts.items():
        for tensor in tensors:
            _hash_tensor(digest, name, tensor)
    return digest.hexdigest()


def _hash_tensor(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    import torch

    data = tensor.detach().contiguous()
    digest.update(f"{name} {data.dtype} {tuple(data.shape)}\n".encode())
    digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
