"""What was learned of a profile, as a plain file beside it: an .npz whose head is JSON; no pickle."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hw_profiles.conformal import Calibration
from hw_profiles.errors import BadProfileError
from hw_profiles.learned import Learned, Observation, learn, loops_of
from hw_profiles.refit import with_constants
from hw_profiles.residual import Cell, Residual
from hw_profiles.target import Target

if TYPE_CHECKING:
    from hw_profiles.devices.contract import DeviceFacts
    from hw_profiles.profiles import Profile

#: Raised with every change to what is learned or how it is kept.
VERSION = 5
_ARRAYS = ("points", "whiten", "weights", "root")


def learned_of(
    profile: Profile,
    target: Target,
    threads: int,
    facts: DeviceFacts | None = None,
    seed: int = 0,
    beside: Path | None = None,
    single: tuple[Profile, Path] | None = None,
) -> Learned | None:
    """What a profile teaches of a target; None where it is empty. See `Predictor.profiled`."""
    _check(profile, target, threads, facts)
    rows = observations(profile)
    if not rows:
        return None
    alone = None if single is None else learned_of(single[0], target, 1, facts, seed, single[1])
    key = _key(profile, target, threads, seed) + (single[0].digest if alone and single else "")
    path = None if beside is None else beside.with_name(f"{beside.name}.learned.npz")
    if path is not None and (found := load(path, loops_of(target), key, alone)) is not None:
        return found
    learned = learn(rows, target, threads, seed, _origin(profile), single=alone)
    if path is not None:
        save(learned, path, key)
    return learned


def observations(profile: Profile) -> list[Observation]:
    """Measured networks of a profile whose kernels are known, in the order of their models' hashes."""
    rows = [profile.measured[model] for model in sorted(profile.measured)]
    return [
        Observation(row.batch(), row.best, row.sigma, np.array(row.kernel_us)) for row in rows if row.kinds
    ]


def _check(profile: Profile, target: Target, threads: int, facts: DeviceFacts | None) -> None:
    """Raise BadProfileError where the profile does not speak for the target."""
    if profile.unit != "ms":
        raise BadProfileError(
            f"the profile of {profile.facts.device} counts {profile.unit}, not milliseconds"
        )
    why = profile.stale(facts or profile.facts, threads)
    version = target.runtime.version
    if not why and profile.facts.runtime != target.runtime.name:
        why = (
            f"the profile is of {profile.facts.runtime}, the target {target.name} runs {target.runtime.name}"
        )
    if (
        not why
        and facts is None
        and version
        and not f"{profile.facts.runtime_version}.".startswith(f"{version}.")
    ):
        why = (
            f"the profile of {profile.facts.device} is stale: it was measured with {profile.facts.runtime} "
            f"{profile.facts.runtime_version}, and {target.name} has {version}"
        )
    if why:
        raise BadProfileError(f"{why}. Profile again: search profile --target {target.name}")


def _origin(profile: Profile) -> dict[str, str]:
    dates = sorted(row.measured_at[:10] for row in profile.measured.values() if row.measured_at)
    return {
        "device": profile.facts.device,
        "runtime": f"{profile.facts.runtime} {profile.facts.runtime_version}",
        "date": dates[-1] if dates else "",
    }


def _key(profile: Profile, target: Target, threads: int, seed: int) -> str:
    text = "/".join((str(VERSION), profile.digest, target.model_dump_json(), str(threads), str(seed)))
    return hashlib.sha256(text.encode()).hexdigest()


def save(learned: Learned, path: Path, key: str = "") -> None:
    """Write under another name, then move."""
    constants = {
        table: {name: constant.value for name, constant in entries.items()}
        for table, entries in learned.target.cost.constants.items()
    }
    cells = learned.residual.cells
    head = {
        "version": VERSION,
        "key": key,
        "threads": learned.threads,
        "constants": constants,
        "fixed": learned.residual.fixed,
        "shape_sigma": learned.residual.shape_sigma,
        "numbers": dict(learned.numbers),
        "calibration": asdict(learned.calibration),
        "networks": learned.networks,
        "kernels": learned.kernels,
        "error": learned.error if np.isfinite(learned.error) else None,
        "origin": dict(learned.origin),
        "cells": [{"name": name, "nugget": cell.nugget, "count": cell.count} for name, cell in cells.items()],
    }
    arrays: dict[str, Any] = {
        f"{i}/{name}": getattr(cell, name) for i, cell in enumerate(cells.values()) for name in _ARRAYS
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        np.savez_compressed(file, head=np.array(json.dumps(head)), **arrays)
    os.replace(file.name, path)


def load(path: Path, target: Target, key: str = "", single: Learned | None = None) -> Learned | None:
    """What `save` wrote; None where there is no such file, or one of another profile, target or version.

    `single`: what it rested on, which is kept in a file of its own.
    """
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as data:
            head = json.loads(str(data["head"]))
            if head["version"] != VERSION or (key and head["key"] != key):
                return None
            cells = {
                cell["name"]: Cell(
                    **{name: data[f"{i}/{name}"] for name in _ARRAYS},
                    nugget=cell["nugget"],
                    count=cell["count"],
                )
                for i, cell in enumerate(head["cells"])
            }
            if bool(head["numbers"]) != (single is not None):
                return None
            found = _of(target, head, cells, single)
    except Exception:  # a parser of whatever a damaged file holds: it is learned again
        return None
    return found


def _of(target: Target, head: dict[str, Any], cells: dict[str, Cell], single: Learned | None) -> Learned:
    values = {(table, name): v for table, entries in head["constants"].items() for name, v in entries.items()}
    stored = dict(head["calibration"])
    stored["quantiles"] = tuple(stored["quantiles"])
    return Learned(
        with_constants(target, values, f"refitted to {head['networks']} networks measured on the device"),
        head["threads"],
        Residual(cells, head["fixed"], head["shape_sigma"]),
        Calibration(**stored),
        head["networks"],
        head["kernels"],
        float("nan") if head["error"] is None else head["error"],
        head["origin"],
        single,
        head["numbers"],
    )


__all__ = ["learned_of", "load", "observations", "save"]
