"""A user's data: an .npz file or an image folder, brought to tensors and split.

.npz: `x` and `y`, split here; or `x_train`, `y_train`, `x_validation`, `y_validation`, `x_test`, `y_test` and
`x_calibration`, as many of them as there are. Image folder: `CLASS/*.png`, or the same under `train`,
`validation` and `test`; or images without classes.
"""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from search.errors import InputError, did_you_mean
from search.task import CALIBRATION_SAMPLES, Split

PARTS = ("train", "validation", "test")
KEYS = ("x", "y", "x_calibration", *(f"{axis}_{part}" for part in PARTS for axis in "xy"))
SPELLINGS = {
    "x_val": "x_validation",
    "y_val": "y_validation",
    "x_valid": "x_validation",
    "y_valid": "y_validation",
}
#: Bytes of all arrays of a file, unpacked; what a zip file says of a member is what is read of it at most.
LARGEST_BYTES = 4 << 30
#: What numpy and zipfile raise for a file that is damaged, or made to be. SyntaxError: of an array's header;
#: MemoryError: of a shape that no file could fill; NotImplementedError, RuntimeError: of odd kinds of zip.
NPZ_ERRORS = (
    ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
    tokenize.TokenError, MemoryError, SyntaxError, TypeError, KeyError, OverflowError, NotImplementedError,
    RuntimeError,
)  # fmt: skip
# Of every twenty samples, dealt out class by class, three go to validation and three to test.
VALIDATION_TURNS, TEST_TURNS = (1, 8, 15), (3, 10, 17)


@dataclass(frozen=True, eq=False)
class Data:
    """Data as a task has it; one input.

    Attributes:
        calibration: float or int64 (N, ...).
        validation, train, test: with targets or without.
    """

    calibration: Tensor
    validation: Split
    train: Split | None
    test: Split | None


def read_data(
    path: Path, size: tuple[int, int] | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> Data:
    """Reads, splits and normalises what is at `path`.

    Args:
        path: an .npz file or an image folder.
        size: (height, width) of images from a folder.
        mean, std: per channel or one for all.
    """
    if not path.exists():
        near = (
            did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        )
        raise InputError(f"there is no data at {path}. {near}".rstrip())
    if path.is_dir():
        from search.tasks.images import read_images

        found = read_images(path, size)
    elif size is not None:
        raise InputError("--data-size is for image folders; the arrays of an .npz file have their size")
    else:
        found = read_npz(path)
    ready = {
        key: _inputs(key, x, mean, std) if key.startswith("x") else _targets(key, x)
        for key, x in found.items()
    }
    return _arrange(ready, path.name)


def read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    """The arrays of an .npz file under their canonical names; nothing pickled is loaded."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(
                    f"{path.name} holds a single array; save several with np.savez(FILE, x=..., y=...)"
                )
            members = [] if archive.zip is None else archive.zip.infolist()
            size = sum(int(member.file_size) for member in members)
            if size > LARGEST_BYTES:
                raise InputError(
                    f"{path.name} unpacks to {size / 1e9:.1f} GB, more than {LARGEST_BYTES >> 30} GiB; "
                    "write a --task function that takes fewer samples"
                )
            arrays = {SPELLINGS.get(key.lower(), key.lower()): archive[key] for key in archive.files}
    except InputError:
        raise
    except NPZ_ERRORS as error:
        if "allow_pickle" in str(error):
            raise InputError(
                f"{path.name} has arrays of Python objects (or is no .npz file), which are not loaded; "
                "save arrays of numbers with np.savez"
            ) from error
        raise InputError(f"{path.name} is no .npz file that can be read: {_first_line(error)}") from error
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy hands out bytes where a member is no array
            raise InputError(f"{path.name} has a member {key!r} that is no array; save with np.savez")
        if key not in KEYS:
            near = did_you_mean(key, KEYS) or f"Known are {', '.join(KEYS)}."
            raise InputError(f"{path.name} has an array {key!r}. {near}")
    return arrays


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _inputs(key: str, array: NDArray[np.generic], mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """8-bit numbers become [0, 1], other floats float32, other integers int64 (tokens); then normalised."""
    if array.ndim < 2:
        raise InputError(
            f"{key} has shape {array.shape}; samples go along its first dimension, each with at least one"
        )
    if array.dtype.kind not in "fiub":
        raise InputError(f"{key} has {array.dtype} values; numbers are needed")
    if array.dtype == np.uint8:
        x = torch.from_numpy(array.astype(np.float32)) / 255
    elif array.dtype.kind in "iu" and not mean and not std:
        return torch.from_numpy(array.astype(np.int64))
    else:
        x = torch.from_numpy(array.astype(np.float32))
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (0, 1, x.shape[1]):
            raise InputError(f"--{name} has {len(values)} values and {key} {x.shape[1]} channels")
    if any(value <= 0 for value in std):
        raise InputError(f"--std {', '.join(f'{v:g}' for v in std)}: every value must be positive")
    shape = (1, -1) + (1,) * (x.ndim - 2)
    return (x - torch.tensor(mean or (0.0,)).reshape(shape)) / torch.tensor(std or (1.0,)).reshape(shape)


def _targets(key: str, array: NDArray[np.generic]) -> Tensor:
    """Integers become int64 labels, floats float32 values."""
    if array.dtype.kind not in "fiub":
        raise InputError(
            f"{key} has {array.dtype} values; class labels go as integers from 0, values as floats"
        )
    kind = np.float32 if array.dtype.kind == "f" else np.int64
    targets = torch.from_numpy(array.astype(kind))
    # (N, 1) labels are a common way to write (N,)
    return targets.squeeze(1) if targets.ndim == 2 and targets.shape[1] == 1 and kind == np.int64 else targets


def _arrange(found: dict[str, Tensor], name: str) -> Data:
    """Brings what was found into the task's parts."""
    for key, x in found.items():
        if key.startswith("y") and f"x{key[1:]}" not in found:
            raise InputError(f"{name} has {key} but no x{key[1:]}")
        if len(x) == 0:
            raise InputError(f"{name}: {key} is empty")
        if key.startswith("y") and len(x) != len(found[f"x{key[1:]}"]):
            raise InputError(
                f"{name}: {key} has {len(x)} entries and x{key[1:]} {len(found[f'x{key[1:]}'])} samples"
            )
    parts = {
        part: Split((found[f"x_{part}"],), found.get(f"y_{part}")) for part in PARTS if f"x_{part}" in found
    }
    if "x" in found:
        if parts:
            raise InputError(f"{name} has x as well as x_{next(iter(parts))}; keep either")
        parts = _deal(Split((found["x"],), found.get("y")), test=True, name=name)
    elif "validation" not in parts:
        if "train" not in parts:
            raise InputError(f"{name} has neither x, x_train nor x_validation")
        parts |= _deal(parts["train"], test=False, name=name)
    labelled = [part for part, split in parts.items() if split.targets is not None]
    bare = [part for part in parts if part not in labelled]
    if labelled and bare:
        raise InputError(f"{name} has labels for {labelled[0]} (y_{labelled[0]}) and none for {bare[0]}")
    calibration = found.get("x_calibration")
    if calibration is None:
        if "train" not in parts:
            raise InputError(f"{name} has neither x_train nor x_calibration; quantisation needs one of them")
        x = parts["train"].inputs[0]
        # Not the first ones: data is often sorted by class.
        calibration = x[
            torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:CALIBRATION_SAMPLES]
        ]
    return Data(calibration, parts["validation"], parts.get("train"), parts.get("test"))


def _deal(split: Split, test: bool, name: str) -> dict[str, Split]:
    """Splits 70:15:15 (85:15 without `test`), every class alike, always in the same way."""
    if len(split) < 4:
        raise InputError(f"{name} has {len(split)} samples, too few to split")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    targets = split.targets
    if targets is not None and targets.ndim == 1 and not targets.is_floating_point():
        order = order[torch.argsort(targets[order], stable=True)]
    turn = torch.empty_like(order)
    turn[order] = torch.arange(len(order)) % 20
    chosen = {"validation": torch.isin(turn, torch.tensor(VALIDATION_TURNS))}
    if test:
        chosen["test"] = torch.isin(turn, torch.tensor(TEST_TURNS))
    chosen["train"] = ~torch.stack(list(chosen.values())).any(0)
    return {part: split[torch.nonzero(mask).flatten()] for part, mask in chosen.items()}
