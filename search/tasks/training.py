"""Training of the built-in tasks' networks, and weights files."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from search.errors import InputError
from search.task import as_outputs

if TYPE_CHECKING:
    from search.task import LossFunction, TrainBatches


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov momentum 0.9 and a one-cycle learning rate.

    Attributes:
        epochs: passes over the data.
        learning_rate: the peak.
        batch_size: samples.
        weight_decay: on everything.
        smoothing: of labels.
        seed: of initial weights and batches.
    """

    epochs: int
    learning_rate: float
    batch_size: int = 64
    weight_decay: float = 5e-4
    smoothing: float = 0.0
    seed: int = 0


def cross_entropy(outputs: tuple[Tensor, ...], targets: Tensor | None) -> Tensor:
    """`Task.loss` of classification: logits (N, classes) and labels (N,) -> scalar."""
    if targets is None:
        raise InputError("cross entropy needs labels")
    return functional.cross_entropy(outputs[0], targets)


def train(
    make: Callable[[], nn.Module],
    batches: TrainBatches,
    samples: int,
    recipe: Recipe,
    progress: Callable[[float], None] = lambda done: None,
    loss: LossFunction | None = None,
) -> nn.Module:
    """A newly initialised and trained network, in eval mode; the global random state stays as it was.

    Args:
        make: the untrained network.
        batches: (seed, batch size) -> endless batches.
        samples: in an epoch.
        recipe: how.
        progress: told the share that is done, in 0..1, after every step.
        loss: of the network's outputs; cross entropy with the recipe's smoothing by default.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = make()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.train()
    steps = recipe.epochs * (samples // recipe.batch_size)
    optimizer = torch.optim.SGD(
        network.parameters(),
        recipe.learning_rate,
        momentum=0.9,
        weight_decay=recipe.weight_decay,
        nesterov=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps)
    stream: Iterator[tuple[tuple[Tensor, ...], Tensor | None]] = batches(recipe.seed, recipe.batch_size)
    for step, (inputs, labels) in enumerate(itertools.islice(stream, steps)):
        optimizer.zero_grad()
        images = (x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs)
        answer = network(*images)
        if loss is not None:
            error = loss(as_outputs(answer), labels)
        else:
            error = functional.cross_entropy(answer, labels, label_smoothing=recipe.smoothing)  # type: ignore[arg-type]
        error.backward()
        optimizer.step()
        schedule.step()
        progress((step + 1) / steps)
    return network.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload,no-any-return]


def save_weights(network: nn.Module, path: Path) -> None:
    """Writes the network's state as safetensors, under a temporary name first."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    state = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    try:
        safetensors.torch.save_file(state, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The file's sha256 in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
