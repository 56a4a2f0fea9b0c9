"""What single changes lose, for one run: measured when somebody asks, kept, and the same when resumed.

The journal comes first: a resumed run goes on with the losses it began with. Else a file under the user's
cache folder is taken, or they are measured and written there. What is kept is what was measured, digit for
digit, so that a hit changes nothing but the time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressors.space import PolicySpace
from compressors.version import COMPRESSOR_VERSION

from .errors import InputError
from .memory import give_back
from .runfolder import atomic_write
from .safe_json import read_json
from .task import Task, fingerprint

if TYPE_CHECKING:
    from agents.contract import Losses

    from .journal import Journal
    from .setup import Setup

#: Part of every file's key; raised with every change to how losses are measured.
VERSION = 2
#: Kind of the journal's event that holds a run's losses.
EVENT = "losses"


def losses_folder() -> Path:
    """Where measured losses are kept: `tailorbird/sensitivity` under the XDG cache folder."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("tailorbird")) / "sensitivity"


def measured_once(setup: Setup) -> Losses:
    """Losses by coordinate name, (values,) each, nats a sample; from the cache folder if they are there."""
    from compressors.sensitivity import measured_losses

    def measure() -> Losses:
        classes = class_axes(setup.task, setup.space)
        return measured_losses(setup.scorer.network, setup.space, classes=classes)

    return _cached(setup, None, measure)


def measured_around(setup: Setup, at: Sequence[int]) -> Losses:
    """As `measured_once`, with the other coordinates at the value indices ``at`` (d,)."""
    from compressors.sensitivity import losses_around

    def measure() -> Losses:
        classes = class_axes(setup.task, setup.space)
        return losses_around(setup.scorer.network, setup.space, at, classes=classes)

    return _cached(setup, at, measure)


def _cached(setup: Setup, at: Sequence[int] | None, measure: Callable[[], Losses]) -> Losses:
    path = losses_folder() / f"{losses_key(setup.task, setup.space, at)}.json"
    found = read_losses(path, setup.space)
    if found is None:
        found = measure()
        give_back()
        with contextlib.suppress(OSError):  # only a cache
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, json.dumps(_plain(found)))
    return found


def losses_key(task: Task, space: PolicySpace, at: Sequence[int] | None = None) -> str:
    """What measured losses depend on, as a file's name: task, space, numerics, and the code that measures."""
    from importlib import metadata

    import torch

    able = space.abilities
    parts = [
        [VERSION, COMPRESSOR_VERSION],
        None if at is None else [int(v) for v in at],
        metadata.version("tailorbird"),
        torch.__version__,
        torch.get_num_threads(),
        fingerprint(task),
        space.structure.graph.digest,
        [[c.kind, c.subject, repr(c.values)] for c in space.choices],
        [able.precisions, able.float_kernels, sorted(able.integer_ops), sorted(able.float_kinds)],
        [able.numerics.key, able.criterion, able.ranges, able.scales],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def class_axes(task: Task, space: PolicySpace) -> Sequence[int | None] | None:
    """The axis of the first output's class scores, as the labels tell; None where they tell nothing.

    Labels that are integers, one where the output has several numbers along one axis, are classes along it;
    labels that are real numbers are none.
    """
    targets, graph = task.validation.targets, space.structure.graph
    if targets is None or task.metric.against != "labels":
        return None
    shape = graph.tensors[graph.outputs[0]].shape
    if targets.is_floating_point():
        return [None]
    for axis in range(1, len(shape)):
        rest = (*shape[1:axis], *shape[axis + 1 :])
        if shape[axis] > 1 and rest == tuple(targets.shape[1:]):
            return [axis]
    return None


def read_losses(path: Path, space: PolicySpace) -> Losses | None:
    """Losses as kept; None where there is no such file, or one that is spoilt or of another space."""
    try:
        document = read_json(path)
    except InputError:
        return None
    return as_losses(document, space)


def as_losses(document: Any, space: PolicySpace) -> Losses | None:
    """Losses from plain values; None unless every coordinate of the space has one number a value."""
    if not isinstance(document, Mapping) or set(document) != {c.name for c in space.choices}:
        return None
    try:
        found = {c.name: np.array(document[c.name], dtype=float) for c in space.choices}
    except (TypeError, ValueError):
        return None
    fits = all(found[c.name].shape == (len(c.values),) for c in space.choices)
    return found if fits and all(np.isfinite(v).all() for v in found.values()) else None


def journalled(setup: Setup, journal: Journal) -> None:
    """Take a run's losses from its journal, and have those written there that somebody asks for."""
    for r in journal.records:
        if r.kind != "event" or r.data.get("kind") != EVENT:
            continue
        losses, at = as_losses(r.data.get(EVENT), setup.space), r.data.get("around")
        if losses is not None and at is None:
            setup.known_losses = losses
        elif losses is not None and isinstance(at, list):
            setup.known_around[tuple(int(v) for v in at)] = losses

    def tell(losses: Losses, at: tuple[int, ...] | None) -> None:
        where = {} if at is None else {"around": list(at)}
        journal.append("event", {"kind": EVENT, **where, EVENT: _plain(losses)})

    setup.tell_losses = tell


def _plain(losses: Losses) -> dict[str, list[float]]:
    return {name: [float(v) for v in values] for name, values in losses.items()}


__all__ = ["class_axes", "journalled", "losses_folder", "losses_key", "measured_around", "measured_once"]
