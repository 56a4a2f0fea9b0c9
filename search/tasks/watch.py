"""`seglearn-watch`: seven shoulder exercises told apart by a smartwatch's motion sensors (Conv1d).

Burns et al. 2018 (arXiv 1802.01489): 140 recordings of ten people at 50 Hz, three accelerations and three
rates of rotation. Split by person, as a stranger's wrist is what counts: six train, two are validation, two
test. Windows of two seconds, one second apart, where they are scored; cut anywhere where they train.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from search.errors import InputError
from search.task import CALIBRATION_SAMPLES, Split, Task
from search.tasks.cache import trained_once
from search.tasks.metrics import METRICS
from search.tasks.networks import watch_net
from search.tasks.packages import package_file
from search.tasks.training import Recipe, cross_entropy, train

if TYPE_CHECKING:
    from search.task import Batch

INSTALL = "pip install 'tailorbird[examples]'"
DATA = "data/watch_dataset.npy"
DATA_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
PEOPLE = {"train": range(1, 7), "validation": range(7, 9), "test": range(9, 11)}
WINDOW, STEP = 100, 50
#: Goes into the cached file's name; to be raised with every change that gives other weights.
VERSION = 1
RECIPE = Recipe(epochs=30, learning_rate=0.05, smoothing=0.1)
#: Training noise in standard deviations, and by how much a wrist's movement is made larger or smaller.
NOISE, SCALE = 0.1, 0.2


@dataclass(frozen=True)
class Recordings:
    """Some people's recordings.

    Attributes:
        signals: float32 (channels, samples) each, normalised.
        labels: the exercise, of each.
    """

    signals: Sequence[Tensor]
    labels: Sequence[int]

    def windows(self) -> Split:
        """Windows (N, channels, WINDOW), STEP apart, with their labels."""
        cut = [s.unfold(1, WINDOW, STEP).permute(1, 0, 2) for s in self.signals]
        labels = [torch.full((len(c),), label) for c, label in zip(cut, self.labels, strict=True)]
        return Split((torch.cat(cut).contiguous(),), torch.cat(labels))

    def batches(self) -> Callable[[int, int], Iterator[Batch]]:
        """`Task.train_batches`: windows cut at random, every recording as often as it is long."""
        lengths = torch.tensor([s.shape[1] - WINDOW + 1 for s in self.signals], dtype=torch.float64)
        classes = torch.tensor(self.labels)

        def batches(seed: int, batch_size: int) -> Iterator[Batch]:
            generator = torch.Generator().manual_seed(seed)
            while True:
                chosen = torch.multinomial(lengths, batch_size, replacement=True, generator=generator)
                at = (torch.rand(batch_size, generator=generator) * lengths[chosen]).long()
                x = torch.stack(
                    [
                        self.signals[i][:, k : k + WINDOW]
                        for i, k in zip(chosen.tolist(), at.tolist(), strict=True)
                    ]
                )
                scale = 1 + SCALE * (2 * torch.rand(batch_size, 1, 1, generator=generator) - 1)
                yield (x * scale + NOISE * torch.randn(x.shape, generator=generator),), classes[chosen]

        return batches


def recordings() -> dict[str, Recordings]:
    """The recordings of each part, normalised by the training part's mean and deviation a channel."""
    path = package_file("seglearn", DATA, DATA_SHA256, INSTALL)
    try:
        data = np.load(path, allow_pickle=True).item()  # the content was checked
        signals = [torch.from_numpy(np.ascontiguousarray(x.T)) for x in data["X"]]
        people, labels = data["subject"].astype(int), data["y"].astype(int)
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"seglearn's data cannot be read: {error}; {INSTALL}") from error
    trained = torch.cat([s for s, p in zip(signals, people, strict=True) if p in PEOPLE["train"]], 1)
    mean, std = trained.mean(1, keepdim=True), trained.std(1, keepdim=True)
    found = {}
    for part, who in PEOPLE.items():
        chosen = [i for i, p in enumerate(people) if p in who]
        found[part] = Recordings(
            [((signals[i] - mean) / std).float() for i in chosen], [int(labels[i]) for i in chosen]
        )
    return found


def watch_task() -> Task:
    """The task; its network is trained on first use."""
    parts = recordings()
    fixed = parts["train"].windows()
    batches = parts["train"].batches()
    network = trained_once(
        f"seglearn-watch-v{VERSION}",
        watch_net,
        lambda progress: train(watch_net, batches, len(fixed), RECIPE, progress),
    )
    x = fixed.inputs[0]
    calibration = x[torch.linspace(0, len(x) - 1, CALIBRATION_SAMPLES).long()]
    return Task(
        name="seglearn-watch",
        network=network.eval(),
        example=(calibration[:1],),
        calibration=(calibration,),
        validation=parts["validation"].windows(),
        metric=METRICS["top1"],
        train=fixed,
        train_batches=batches,
        test=parts["test"].windows(),
        loss=cross_entropy,
    )
