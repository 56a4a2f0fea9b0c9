"""Whether a task can be used: every way in which it can't has a one-line InputError."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from search.errors import InputError
from search.task import Metric, Split, Task, as_outputs, run_network

PROBE_SAMPLES = 8


def check_task(task: Task) -> None:
    """Raises InputError with the first thing that is wrong with `task`; runs it on a few samples."""
    _check_weights(task.network)
    _check_inputs("example", task.example)
    if len(task.example[0]) != 1:
        raise InputError(f"task {task.name}: the example has {len(task.example[0])} samples, it must have 1")
    _check_inputs("calibration data", task.calibration)
    for name, split in _splits(task):
        _check_inputs(f"{name} data", split.inputs)
        _check_targets(name, split)
        _check_like_example(f"{name} data", split.inputs, task.example)
    _check_like_example("calibration data", task.calibration, task.example)
    outputs = _probe(task)
    _check_labels(task, outputs)
    _check_scores(task, outputs)
    for name, split in _splits(task):
        if name != "train" and task.train is not None:
            _check_not_train(name, split, task.train)


def with_teacher_targets(task: Task) -> Task:
    """The task with the uncompressed network's answers as targets, where its metric compares with them."""
    if task.metric.against != "teacher":
        return task
    changed = {
        name: Split(split.inputs, _teacher(task.network, split))
        for name, split in _splits(task)
        if name in ("validation", "test")
    }
    return dataclasses.replace(task, **changed)  # type: ignore[arg-type]


def _teacher(network: nn.Module, split: Split) -> Tensor:
    with one_thread():
        return run_network(network, split.inputs)[0]


@contextmanager
def one_thread() -> Iterator[None]:
    """torch on one thread: the order of additions, and so the last bits, depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _splits(task: Task) -> list[tuple[str, Split]]:
    named = (("train", task.train), ("validation", task.validation), ("test", task.test))
    return [(name, split) for name, split in named if split is not None]


def _check_weights(network: nn.Module) -> None:
    state = network.state_dict()
    if not state:
        raise InputError(f"the network ({type(network).__name__}) has no weights to compress")
    for name, tensor in state.items():
        if tensor.device.type != "cpu":
            raise InputError(f"weight {name} is on {tensor.device}; return the network on the CPU")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            raise InputError(f"weight {name} has {bad} of {tensor.numel()} values that are NaN or infinite")


def _check_inputs(what: str, inputs: tuple[Tensor, ...]) -> None:
    if not isinstance(inputs, tuple) or not inputs or not all(isinstance(x, Tensor) for x in inputs):
        raise InputError(
            f"the {what} must be a tuple of tensors, one per argument; it is {type(inputs).__name__}"
        )
    for x in inputs:
        if x.ndim == 0 or len(x) == 0:
            raise InputError(f"the {what} is empty (shape {tuple(x.shape)})")
        if len(x) != len(inputs[0]):
            raise InputError(f"the {what} has {len(inputs[0])} samples in one input and {len(x)} in another")
        if x.is_floating_point() and not bool(torch.isfinite(x).all()):
            raise InputError(f"the {what} has values that are NaN or infinite")


def _check_targets(name: str, split: Split) -> None:
    if split.targets is not None and len(split.targets) != len(split):
        raise InputError(f"the {name} data has {len(split)} samples and {len(split.targets)} targets")


def _check_like_example(what: str, inputs: tuple[Tensor, ...], example: tuple[Tensor, ...]) -> None:
    if len(inputs) != len(example):
        raise InputError(f"the {what} has {len(inputs)} inputs and the example {len(example)}")
    for x, e in zip(inputs, example, strict=True):
        if x.shape[1:] != e.shape[1:] or x.dtype != e.dtype:
            raise InputError(
                f"the {what} has samples of shape {tuple(x.shape[1:])} {x.dtype}, "
                f"the example {tuple(e.shape[1:])} {e.dtype}"
            )


def _probe(task: Task) -> tuple[Tensor, ...]:
    """The network's outputs on the first validation samples, after the example went through too."""
    few = task.validation[:PROBE_SAMPLES]
    for what, inputs in (("the example", task.example), ("validation data", few.inputs)):
        try:
            with torch.no_grad():
                outputs = as_outputs(task.network(*inputs))
        except InputError:
            raise
        except Exception as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
            raise InputError(
                f"the network fails on {what} of shape {shapes}: {_first_line(error)}"
            ) from error
        if any(len(y) != len(inputs[0]) for y in outputs):
            shapes = ", ".join(str(tuple(y.shape)) for y in outputs)
            raise InputError(
                f"{len(inputs[0])} samples give outputs of shape {shapes}; the first dimension must match"
            )
        if not all(bool(torch.isfinite(y).all()) for y in outputs if y.is_floating_point()):
            raise InputError(f"the network's answer to {what} is NaN or infinite")
    return outputs


def _check_labels(task: Task, outputs: tuple[Tensor, ...]) -> None:
    """Class labels that the network has no output for; for the metrics that take class labels."""
    if task.metric.name not in ("top1", "top5"):
        return
    if outputs[0].ndim < 2:
        raise InputError(
            f"{task.metric.name} needs logits (N, classes), the network gives {tuple(outputs[0].shape)}"
        )
    classes = outputs[0].shape[1]
    for name, split in _splits(task):
        labels = split.targets
        if labels is None:
            if name == "validation":
                raise InputError(
                    f"{task.metric.name} needs labels; without them try the metric teacher_agreement"
                )
            continue
        if labels.is_floating_point() or labels.shape[1:] != outputs[0].shape[2:]:
            raise InputError(
                f"{task.metric.name} needs {name} labels as integers of shape (N,); "
                f"they are {labels.dtype} of shape {tuple(labels.shape)}"
            )
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            bad = low if low < 0 else high
            raise InputError(
                f"{name} label {bad} is out of range: the network has {classes} classes (0-{classes - 1})"
            )


def _check_scores(task: Task, outputs: tuple[Tensor, ...]) -> None:
    """The metric runs and gives one finite number per sample."""
    metric: Metric = task.metric
    targets = outputs[0] if metric.against == "teacher" else task.validation[:PROBE_SAMPLES].targets
    try:
        scores = metric.score(outputs, targets)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"metric {metric.name} fails: {_first_line(error)}") from error
    if not isinstance(scores, Tensor) or scores.shape != (len(outputs[0]),):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(
            f"metric {metric.name} must give one score a sample, shape ({len(outputs[0])},); it gave {got}"
        )
    if not bool(torch.isfinite(scores.double()).all()):
        raise InputError(f"metric {metric.name} gives scores that are NaN or infinite")


def _check_not_train(name: str, split: Split, train: Split) -> None:
    """Validation or test data that is wholly training data says nothing."""
    seen = {_sample_hash(train, i) for i in range(len(train))}
    if all(_sample_hash(split, i) in seen for i in range(len(split))):
        raise InputError(f"all {len(split)} {name} samples are training samples too; keep them apart")


def _sample_hash(split: Split, index: int) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for x in split.inputs:
        digest.update(x[index].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
