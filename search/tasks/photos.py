"""Photos that come with packages, and crops of them. A photo's crops all stand in one part of the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from search.errors import InputError
from search.tasks.packages import package_file

if TYPE_CHECKING:
    from search.task import Batch

INSTALL = {
    "sklearn": "pip install scikit-learn",
    "matplotlib": "pip install matplotlib",
    "skimage": "pip install --no-deps scikit-image",
    "foolbox": "pip install --no-deps foolbox",
}
#: Sides of random crops, as shares of a photo's shorter side.
ZOOM = (0.25, 1.0)
#: Share of fresh training crops that are blended with another one, which makes more of few photos.
BLENDED = 0.5


@dataclass(frozen=True)
class Photo:
    """One photo: the package and the file inside it, that file's sha256, and its class where one is known."""

    package: str
    inside: str
    sha256: str
    label: int | None = None

    def load(self) -> Tensor:
        """(3, H, W) float32 in 0..255. Raises InputError where the file is missing or another."""
        from PIL import Image, UnidentifiedImageError

        path = package_file(self.package, self.inside, self.sha256, INSTALL[self.package])
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"{self.package}'s photo {self.inside} cannot be read: {error}") from error
        return torch.tensor(pixels).permute(2, 0, 1).float()


TRAIN = (
    Photo(
        "sklearn",
        "datasets/images/china.jpg",
        "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
    ),
    Photo(
        "skimage",
        "data/astronaut.png",
        "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
    ),
    Photo(
        "skimage",
        "data/motorcycle_left.png",
        "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
    ),
    Photo(
        "skimage",
        "data/grass.png",
        "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
    ),
    Photo(
        "skimage",
        "data/gravel.png",
        "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
    ),
    Photo(
        "skimage",
        "data/camera.png",
        "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    ),
    Photo(
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        "a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130",
    ),
)
VALIDATION = (
    Photo(
        "sklearn",
        "datasets/images/flower.jpg",
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
    ),
    Photo(
        "skimage",
        "data/rocket.jpg",
        "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
    ),
)
TEST = (
    Photo(
        "skimage",
        "data/chelsea.png",
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
    ),
    Photo(
        "skimage",
        "data/coffee.png",
        "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
    ),
)
#: foolbox's photos of ImageNet: the class stands in the file's name.
_LABELLED = (
    ("00_243", "28b7b933c8028c6e20bf74a86a709eda42ce99f14c8742cb657cb386f08a4c9d"),
    ("01_559", "5f03b0c74dff01b5b4195d0beabcae2a625a406e6917957ab9c455b5b7dea6d6"),
    ("02_438", "ccef0734c1a65549c6cb5adb0f5d9b1c0b2e2104aba50a9e5f9202dc6d4532ed"),
    ("03_990", "c7f0b2f1e9ee39d8f900759e8983afa2e4a2d7de090060e8bb947f6e90cace5f"),
    ("04_949", "a7f62f3c1d214de4718c7253871ab38209283249e131faf65b8f2b7fdc970669"),
    ("05_853", "8a449436c61da867528b1f4efaf8ae832ab9c9201705eae0d3af1353fbdac131"),
    ("06_609", "fb061102a4e58b3ed942bb2a4f9542e1e1acdc8f225ef95498e93889290e192f"),
    ("07_609", "2c297ad1e5c4804a647e9b34bc02ee2fc348b05a4d49050d170fb61c948efa5c"),
    ("08_915", "c6a3411a3987799f0de45adc142f00ca412c3e14073c635e2adfae1f3913180c"),
    ("09_455", "ace3716b60ac5843269b270e17020e4f8138440cd30ef3487f7d6e54da9745a4"),
    ("10_541", "f325c71d9f4290ee45e99bd7ad42f4bffe513b1450ad21e7bd61c7cb137395d9"),
    ("11_630", "892dff58fc528fe63d2df0c783aa3eca2342637798578ce01763fbc0553eda01"),
    ("12_741", "6c256e17545b25bbf2e06cf6513ff48d049583569515ac4d4c3a52aea804a529"),
    ("13_471", "52ed0e738b90d27afcabc3e92c81ae637f160c2d9f75b93a65211005ab5dcd81"),
    ("14_129", "ad9371d813bf24b0365ee2f78f28c08718ee7c5975f060caa16c3f264e828139"),
    ("15_99", "4b588649cd835d4c65521727ebee03d9621baff1f54d3e8a53a26b53d983ec2e"),
    ("16_251", "ce3440a3b7beb6ca3009817504c44d39fa789e7c2f70a2eef7e2f9cc9a87b129"),
    ("17_22", "b432341845620e9cfd67d848c4783c32dd6eaddad45513866b17180d2b09fcf5"),
    ("18_317", "b9412f92f0b1c3faede45b55a44940977daa744f2040118d0538cf597fca785d"),
    ("19_305", "e1f58f00e2e47ce930d7ecab0e46a78316054f68c10d0742e87c1cc092324556"),
)
LABELLED = tuple(
    Photo("foolbox", f"data/imagenet_{name}.jpg", sha, int(name.split("_")[1])) for name, sha in _LABELLED
)


def crop(photos: Sequence[Tensor], side: int, generator: torch.Generator) -> Tensor:
    """A random square of a random photo (3, H, W), mirrored half of the time, brought to (3, side, side)."""
    photo = photos[_random(0, len(photos), generator)]
    height, width = photo.shape[1:]
    low, high = (int(share * min(height, width)) for share in ZOOM)
    size = _random(low, high + 1, generator)
    top, left = _random(0, height - size + 1, generator), _random(0, width - size + 1, generator)
    part = resized(photo[:, top : top + size, left : left + size], side)
    return part.flip(2) if _random(0, 2, generator) else part


def resized(photo: Tensor, side: int) -> Tensor:
    """(3, H, W) brought to (3, side, side)."""
    wanted = (side, side)
    return functional.interpolate(photo[None], wanted, mode="bilinear", align_corners=False, antialias=True)[
        0
    ]


def centre(photo: Tensor, side: int, share: float) -> Tensor:
    """The middle square of a photo (3, H, W), ``share`` of its shorter side, brought to (3, side, side)."""
    height, width = photo.shape[1:]
    size = int(share * min(height, width))
    top, left = (height - size) // 2, (width - size) // 2
    return resized(photo[:, top : top + size, left : left + size], side)


def crops(photos: Sequence[Photo], count: int, side: int, seed: int) -> Tensor:
    """``count`` random crops (count, 3, side, side) in 0..255."""
    loaded = [p.load() for p in photos]
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([crop(loaded, side, generator) for _ in range(count)])


def crop_batches(photos: Sequence[Photo], side: int, seed: int, batch_size: int) -> Iterator[Batch]:
    """Endless batches (batch_size, 3, side, side) in 0..255 without labels, some blends of two crops."""
    loaded = [p.load() for p in photos]
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.stack([crop(loaded, side, generator) for _ in range(batch_size)])
        share = torch.rand(batch_size, 1, 1, 1, generator=generator)
        share = torch.where(torch.rand(share.shape, generator=generator) < BLENDED, share, 1.0)
        yield (share * x + (1 - share) * x.flip(0),), None


def _random(low: int, high: int, generator: torch.Generator) -> int:
    """A whole number from low to high - 1."""
    return int(torch.randint(low, high, (1,), generator=generator))
