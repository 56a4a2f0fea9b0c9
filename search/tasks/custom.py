"""The user's own tasks: a function that makes one, or a network, weights, data and a metric given apart.

What the user's code prints goes to stderr; what it raises becomes one InputError that says where.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib
import importlib.util
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from search.errors import InputError, UsageError, did_you_mean
from search.task import Metric, Task, TaskSpec
from search.tasks.checkpoint import load_checkpoint
from search.tasks.data import read_data
from search.tasks.metrics import METRICS, metric_by_name
from search.tasks.training import cross_entropy

if TYPE_CHECKING:
    from search.task import LossFunction


def anchored(spec: TaskSpec) -> TaskSpec:
    """`spec` with absolute paths, so that it means the same in a process that works in another folder."""

    def path(text: str | None) -> str | None:
        return None if text is None else str(Path(text).expanduser().absolute())

    def reference(text: str) -> str:
        before, colon, after = text.rpartition(":")
        return f"{path(before)}:{after}" if colon and before.endswith(".py") else text

    names = [name for name in (spec.name, spec.model, spec.metric) if name and ":" in name]
    modules = any(not name.rpartition(":")[0].endswith(".py") for name in names)
    return dataclasses.replace(
        spec,
        name=reference(spec.name),
        model=None if spec.model is None else reference(spec.model),
        metric=None if spec.metric is None else reference(spec.metric),
        checkpoint=path(spec.checkpoint),
        data=path(spec.data),
        folder=spec.folder or (str(Path.cwd()) if modules else None),
    )


def from_function(spec: TaskSpec) -> Task:
    """The Task that the function named by `spec.name` returns."""
    made = _call(spec.name, find_object(spec.name, "task", spec.folder))
    if not isinstance(made, Task):
        raise InputError(
            f"{_short(spec.name)} returned {type(made).__name__}; it must return a search.task.Task"
        )
    return made


def from_parts(spec: TaskSpec) -> Task:
    """The task of `--model`, `--checkpoint`, `--data` and `--metric`."""
    if spec.model is None or spec.data is None:
        raise UsageError("--model needs --data FILE.npz or an image folder")
    network = find_object(spec.model, "model", spec.folder)
    if not isinstance(network, nn.Module):
        network = _call(spec.model, network)
    if not isinstance(network, nn.Module):
        raise InputError(
            f"{_short(spec.model)} returned {type(network).__name__}; it must return a torch.nn.Module"
        )
    if spec.checkpoint is not None:
        load_checkpoint(network, Path(spec.checkpoint))
    data = read_data(Path(spec.data), spec.data_size, spec.mean, spec.std)
    metric = default_metric(data.validation.targets)
    if spec.metric is not None:
        metric = find_metric(spec.metric, spec.folder)
    return Task(
        name=spec.model.rpartition(":")[2],
        network=network.eval(),
        example=(data.calibration[:1],),
        calibration=(data.calibration,),
        validation=data.validation,
        metric=metric,
        train=data.train,
        test=data.test,
        loss=_loss(data.train.targets if data.train is not None else None),
    )


def default_metric(targets: Tensor | None) -> Metric:
    """Integer targets are class labels, others are values; without any, the network's own answers count."""
    if targets is None:
        return METRICS["teacher_agreement"]
    return METRICS["mse" if targets.is_floating_point() else "top1"]


def find_metric(name: str, folder: str | None = None) -> Metric:
    """A built-in metric, or `module:function` or `file.py:function`.

    The latter names a Metric, or a function (outputs, targets) -> scores (N,), whose attributes
    `higher_is_better` (True unless said otherwise) and `unit` ("" unless said otherwise) are read too.
    """
    if ":" not in name:
        return metric_by_name(name)
    found = find_object(name, "metric", folder)
    if isinstance(found, Metric):
        return found
    polarity = bool(getattr(found, "higher_is_better", True))
    return Metric(name.rpartition(":")[2], polarity, str(getattr(found, "unit", "")), found)


def find_object(reference: str, what: str, folder: str | None = None) -> Any:
    """What `file.py:name` or `package.module:name` names.

    Args:
        reference: file or module, colon, name.
        what: the flag it came from, for messages.
        folder: is searched for modules after everything else.
    """
    place, colon, name = reference.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(f"--{what} {reference!r} is not file.py:name or package.module:name")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place, what, folder)
    found = getattr(module, name, None)
    if found is None:
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = did_you_mean(name, own) or f"It has {', '.join(own[:8]) or 'no functions'}."
        raise InputError(f"{Path(place).name} has no {name!r}. {near}")
    if not callable(found) and not isinstance(found, Metric):
        raise InputError(f"{_short(reference)} is {type(found).__name__}, not a function")
    return found


def _load_module(name: str, what: str, folder: str | None) -> ModuleType:
    with _search_also(folder or str(Path.cwd())), _blame(name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
                raise  # the module is there, one that it imports is not
            raise InputError(
                f"--{what}: there is no module {name!r}; a file goes as {name.split('.')[-1]}.py:name"
            ) from error


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise InputError(f"there is no file {path}. {did_you_mean(path.name, siblings)}".rstrip())
    key = hashlib.sha256(f"{path.resolve()} {path.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    name = f"_tailorbird_{key}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _search_also(str(path.parent)), _blame(path.name):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _call(reference: str, function: Callable[[], Any]) -> Any:
    """What the user's function returns; random numbers that it draws are the same in every process."""
    with _blame(_short(reference)), _seeded():
        return function()


@contextlib.contextmanager
def _blame(what: str) -> Iterator[None]:
    """The user's prints on stderr, and the user's exceptions as an InputError."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (InputError, UsageError):
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        where = next(
            (f"{Path(f.filename).name} line {f.lineno}" for f in reversed(frames) if _is_users(f)), ""
        )
        if isinstance(error, SyntaxError):
            where = f"{Path(error.filename or what).name} line {error.lineno}"
        text = (str(error).strip().splitlines() or [""])[0][:200]
        place = f" ({where})" if where else ""
        raise InputError(
            f"{what} raised {type(error).__name__}: {text}{place}. --debug shows where"
        ) from error


def _is_users(frame: traceback.FrameSummary) -> bool:
    outside = ("site-packages", "importlib", "<frozen", str(Path(__file__).parent))
    return not any(part in frame.filename for part in outside)


@contextlib.contextmanager
def _search_also(folder: str) -> Iterator[None]:
    """`folder` as the last place where modules are looked for."""
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Python's, NumPy's and torch's random numbers begun at 0, and afterwards as they were."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's code may draw from it
    with torch.random.fork_rng(devices=[]):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


def _loss(targets: Tensor | None) -> LossFunction | None:
    if targets is None:
        return None
    return _squared_error if targets.is_floating_point() else cross_entropy


def _squared_error(outputs: tuple[Tensor, ...], targets: Tensor | None) -> Tensor:
    if targets is None:
        raise InputError("squared error needs targets")
    return functional.mse_loss(outputs[0], targets.reshape(outputs[0].shape))


def _short(reference: str) -> str:
    place, _, name = reference.rpartition(":")
    return f"{Path(place).name}:{name}"
