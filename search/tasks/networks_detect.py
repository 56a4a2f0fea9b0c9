"""A small single-shot detector (SSD, Liu et al. 2016) with four outputs: classes and boxes at two scales."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Classes of shapes; a detector's scores have one more, for none of them, at place 0.
SHAPES = ("circle", "square", "triangle")
#: Cells along the image's side at which boxes are predicted, and the sides of their prior boxes.
GRIDS = (8, 4)
SIZES = ((0.18, 0.27), (0.38, 0.52))


def _block(cin: int, cout: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(cin, cout, 3, stride, 1, bias=False), nn.BatchNorm2d(cout), nn.ReLU())


class Detector(nn.Module):
    """A convolutional trunk of 64x64 images with a head on its 8x8 and one on its 4x4 maps."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _block(3, width, 2), _block(width, 2 * width, 2), _block(2 * width, 2 * width, 1),
            _block(2 * width, 4 * width, 2), _block(4 * width, 4 * width, 1),
        )  # fmt: skip
        self.coarse = nn.Sequential(_block(4 * width, 6 * width, 2), _block(6 * width, 6 * width, 1))
        self.classes = nn.ModuleList(
            nn.Conv2d(cin, len(sizes) * (len(SHAPES) + 1), 3, 1, 1)
            for cin, sizes in zip((4 * width, 6 * width), SIZES, strict=True)
        )
        self.boxes = nn.ModuleList(
            nn.Conv2d(cin, len(sizes) * 4, 3, 1, 1)
            for cin, sizes in zip((4 * width, 6 * width), SIZES, strict=True)
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, 3, 64, 64) -> class scores and box codes, (N, 8, 8, 8) each, then (N, 8, 4, 4) each."""
        fine = self.trunk(images)
        coarse = self.coarse(fine)
        return self.classes[0](fine), self.boxes[0](fine), self.classes[1](coarse), self.boxes[1](coarse)


def flattened(outputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Four outputs as class scores (N, P, 4) and box codes (N, P, 4), in the prior boxes' order."""

    def rows(x: Tensor, size: int) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(len(x), -1, size)

    count = len(SHAPES) + 1
    scores = torch.cat([rows(outputs[0], count), rows(outputs[2], count)], 1)
    return scores, torch.cat([rows(outputs[1], 4), rows(outputs[3], 4)], 1)
