"""Folders of images as arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from search.errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
PART_FOLDERS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}
GREY_MODES = {"1", "L"}
LARGEST_BYTES = 4 << 30


def read_images(folder: Path, size: tuple[int, int] | None) -> dict[str, NDArray[np.generic]]:
    """Arrays as an .npz file has them: 8-bit `x...` (N, C, H, W); `y...`, the classes' alphabetical ranks.

    Args:
        folder: class folders, or part folders with class folders, or images.
        size: (height, width): the shorter side is scaled to fit and the rest cut off alike on both sides.
            None where all images have the same size.
    """
    parts = {
        child: PART_FOLDERS[child.name.lower()]
        for child in _folders(folder)
        if child.name.lower() in PART_FOLDERS
    }
    if not parts:
        found = {"": _listing(folder)}
    elif len(parts) < len(_folders(folder)):
        odd = next(child.name for child in _folders(folder) if child not in parts)
        raise InputError(f"{folder.name} has {odd!r} beside {', '.join(sorted(p.name for p in parts))}")
    else:
        found = {f"_{part}": _listing(child) for child, part in parts.items()}
    classes = sorted({name for files in found.values() for _, name in files if name is not None})
    files = [path for listed in found.values() for path, _ in listed]
    channels, size = _common_shape(files, size)
    if len(files) * channels * size[0] * size[1] * 4 > LARGEST_BYTES:
        raise InputError(
            f"{len(files)} images of {size[0]}x{size[1]} need more than 4 GiB as float32; "
            "choose a smaller --data-size, or write a --task function that takes fewer"
        )
    arrays: dict[str, NDArray[np.generic]] = {}
    for key, listed in found.items():
        arrays[f"x{key}"] = np.stack([_pixels(path, channels, size) for path, _ in listed])
        if classes:
            arrays[f"y{key}"] = np.array([classes.index(name) for _, name in listed if name is not None])
    return arrays


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))


def _listing(folder: Path) -> list[tuple[Path, str | None]]:
    """Every image with its class; None where the images lie in `folder` itself."""
    loose, classes = _images(folder), _folders(folder)
    if loose and classes:
        raise InputError(
            f"{folder.name} has images ({loose[0].name}) beside class folders ({classes[0].name})"
        )
    for child in classes:
        if not _images(child):
            raise InputError(
                f"class folder {folder.name}/{child.name} has no images ({', '.join(sorted(SUFFIXES))})"
            )
    if not loose and not classes:
        raise InputError(f"there are no images in {folder} ({', '.join(sorted(SUFFIXES))})")
    return [(path, None) for path in loose] or [
        (path, child.name) for child in classes for path in _images(child)
    ]


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"image {path.parent.name}/{path.name} cannot be read: {error}") from error


def _common_shape(files: list[Path], size: tuple[int, int] | None) -> tuple[int, tuple[int, int]]:
    """Channels (1 where all images are grey, else 3) and (height, width)."""
    grey, first = True, files[0]
    common = size
    for path in files:
        with _open(path) as image:
            grey = grey and image.mode in GREY_MODES
            own = (image.height, image.width)
        common = common or own
        if size is None and own != common:
            sizes = f"{first.name} is {common[0]}x{common[1]}, {path.name} {own[0]}x{own[1]}"
            raise InputError(f"images differ in size: {sizes}. Give --data-size HEIGHTxWIDTH")
    if common is None:
        raise InputError("there are no images")
    return (1 if grey else 3), common


def _pixels(path: Path, channels: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """One image as (C, H, W)."""
    height, width = size
    with _open(path) as opened:
        try:
            image = opened.convert("L" if channels == 1 else "RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise InputError(f"image {path.parent.name}/{path.name} cannot be read: {error}") from error
    if (image.height, image.width) != size:
        scale = max(height / image.height, width / image.width)
        scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
        image = image.resize(scaled, Image.Resampling.BILINEAR)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image, dtype=np.uint8)
    return pixels[np.newaxis] if channels == 1 else pixels.transpose(2, 0, 1)
