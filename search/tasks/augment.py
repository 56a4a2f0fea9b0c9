"""Random distortions of small images, and endless batches of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from search.task import Split, shuffled_batches

if TYPE_CHECKING:
    from search.task import Batch


@dataclass(frozen=True)
class Distortion:
    """Ranges of a random affine map and of noise; each image draws its own.

    Attributes:
        rotation: largest angle to either side, in radians.
        scale: largest change of size to either side, as a fraction of it.
        shift: largest shift to either side, in half image widths (as in torch's affine_grid).
        noise: standard deviation of normal noise on pixels in [0, 1].
    """

    rotation: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    noise: float = 0.0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(N, C, H, W) with background 0 -> the same shape."""
        count = len(images)

        def spread(width: float, *shape: int) -> Tensor:
            return (torch.rand(count, *shape, generator=generator) * 2 - 1) * width

        angle, scale, shift = spread(self.rotation), 1 + spread(self.scale), spread(self.shift, 2)
        cos, sin = angle.cos() / scale, angle.sin() / scale
        theta = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
        theta = torch.cat([theta, shift.unsqueeze(2)], 2)
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        moved = functional.grid_sample(images, grid, align_corners=False)
        if self.noise:
            moved = moved + self.noise * torch.randn(moved.shape, generator=generator)
        return moved


def distorted_batches(
    images: Tensor, labels: Tensor, distortion: Distortion, normalise: Callable[[Tensor], Tensor]
) -> Callable[[int, int], Iterator[Batch]]:
    """`Task.train_batches` of images (N, C, H, W) in [0, 1], each distorted anew whenever it comes."""

    def batches(seed: int, batch_size: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        for (x,), y in shuffled_batches(Split((images,), labels), seed, batch_size):
            yield (normalise(distortion(x, generator)),), y

    return batches
