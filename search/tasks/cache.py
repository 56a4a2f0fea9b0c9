"""Weights that are trained on first use and kept under the user's cache folder."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import safetensors
import safetensors.torch
from torch import nn

from search.errors import InputError
from search.tasks.training import save_weights

Progress = Callable[[float], None]
NOTE_SECONDS = 15


def weights_folder() -> Path:
    """Where trained weights are kept: `tailorbird/tasks` under the XDG cache folder."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("tailorbird")) / "tasks"


def trained_once(
    key: str, make: Callable[[], nn.Module], train: Callable[[Progress], nn.Module]
) -> nn.Module:
    """The network with weights from `KEY.safetensors`; trained and written there first where that is missing.

    Processes that ask at once wait for one of them, and all read the same file.

    Args:
        key: names the network, its data and the version of its recipe.
        make: the network without weights.
        train: the trained network; it is given a function to tell its progress to.
    """
    path = weights_folder() / f"{key}.safetensors"
    network = make()
    if _load(network, path):
        return network
    with _locked(path.with_suffix(".lock")):
        if not _load(network, path):
            with _progress(f"training {key} (once; kept in {path.parent})") as tell:
                trained = train(tell)
            try:
                save_weights(trained, path)
            except OSError as error:
                raise InputError(_unwritable(path.parent, error)) from error
            _load(network, path)
    return network


def _load(network: nn.Module, path: Path) -> bool:
    """Whether `path` has the network's weights, which are then loaded; a spoilt file counts as none."""
    try:
        network.load_state_dict(safetensors.torch.load_file(path))
    except (FileNotFoundError, safetensors.SafetensorError, RuntimeError):
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(_unwritable(path.parent, error)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _unwritable(folder: Path, error: OSError) -> str:
    return f"cannot keep trained weights in {folder}: {error.strerror}. Set XDG_CACHE_HOME to another folder"


@contextmanager
def _progress(title: str) -> Iterator[Progress]:
    """A bar on stderr, or where that is no terminal a line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield _lines(title)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda done: bar.update(task, completed=done)


def _lines(title: str) -> Progress:
    print(title, file=sys.stderr, flush=True)  # noqa: T201 - progress belongs on stderr
    last = time.monotonic()

    def tell(done: float) -> None:
        nonlocal last
        if time.monotonic() - last >= NOTE_SECONDS:
            last = time.monotonic()
            print(f"  {100 * done:3.0f} %", file=sys.stderr, flush=True)  # noqa: T201

    return tell
