"""A user's weights, loaded without running anything that a file may contain."""

from __future__ import annotations

import pickle  # for the name of its exception only
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from search.errors import InputError, did_you_mean

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "weights")
PREFIXES = ("module.", "_orig_mod.", "model.")


def load_checkpoint(network: nn.Module, path: Path) -> None:
    """Loads weights into `network` from a safetensors file or a torch file that holds nothing but tensors.

    A `state_dict` inside a larger dict and the prefixes of wrappers (`module.` and others) are seen through.
    Raises InputError, naming the first key that is missing, left over or of another shape.
    """
    state = _strip(_unwrap(_read(path), path), set(network.state_dict()))
    own = network.state_dict()
    tied = {tensor.data_ptr() for name, tensor in own.items() if name in state and tensor.numel()}
    missing = [
        name
        for name, tensor in own.items()
        if name not in state and not name.endswith("num_batches_tracked") and tensor.data_ptr() not in tied
    ]
    extra = [name for name in state if name not in own]
    if missing:
        near = did_you_mean(missing[0], extra).replace("Did you mean", "Is it what the file calls")
        raise InputError(f"{path.name} lacks {missing[0]!r}{_more(missing)}. {near}".rstrip())
    if extra:
        near = did_you_mean(extra[0], own)
        raise InputError(f"{path.name} has {extra[0]!r}{_more(extra)}, the network has not. {near}".rstrip())
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            theirs, ours = tuple(tensor.shape), tuple(own[name].shape)
            raise InputError(f"{path.name}: {name} has shape {theirs}, in the network it is {ours}")
    network.load_state_dict(state, strict=False)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    _check_packing(path)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file that is refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path.name} is no torch file of plain tensors. Save one with "
            "torch.save(network.state_dict(), FILE), or use safetensors"
        ) from error
    except Exception as error:  # a parser of whatever somebody's file holds raises whatever it likes
        text = (str(error).splitlines() or [""])[0][:200]
        raise InputError(f"checkpoint {path.name} cannot be read: {text}") from error


def _check_packing(path: Path) -> None:
    """Refuse a torch file with packed members, which torch never writes: a bomb. Raises InputError."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # zipfile's own, and what it does not foresee
        raise InputError(f"checkpoint {path.name} cannot be read: {error}") from error
    if any(m.compress_type != zipfile.ZIP_STORED for m in members):
        raise InputError(f"checkpoint {path.name} is a packed zip file; torch.save packs nothing")


def _unwrap(found: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what the file held."""
    if isinstance(found, Mapping):
        for key in WRAPPERS:
            if isinstance(found.get(key), Mapping):
                found = found[key]
                break
        if found and all(isinstance(x, Tensor) for x in found.values()):
            return {str(key): tensor for key, tensor in found.items()}
    raise InputError(f"{path.name} holds no state dict (names -> tensors); it is {type(found).__name__}")


def _strip(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """`state` without a wrapper's prefix that all its names have, where the network's names don't."""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state) and not all(
            name.startswith(prefix) for name in wanted
        ):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
