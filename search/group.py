"""The folder of a search for several targets: `together.json`, and below it one run's folder a target.

`together.json` is written before anything is evaluated and says what was asked for, so that the group can be
resumed whichever of its runs had begun; at the end it holds the matrix too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ResumeError, UsageError
from .runfolder import (
    CONFIG,
    JOURNAL,
    LATEST,
    RUNS,
    TOGETHER,
    RunFolder,
    atomic_write,
    latest_run,
    slug,
    told_clearly,
)

if TYPE_CHECKING:
    from .config import RunConfig
    from .results import Matrix

SCHEMA_VERSION = 1
#: Evaluations that each further target adds, as a share of those of one.
FURTHER = 0.12
#: Evaluations that every target has at least, where so many are asked for.
LEAST = 4
#: Targets that a group's name lists, at most.
NAMED = 4


@dataclass(frozen=True)
class Group:
    """A group of runs: its folder, and its config with all targets."""

    path: Path
    config: RunConfig

    @classmethod
    def create(cls, config: RunConfig) -> Group:
        """A new folder, as for a run. Raises InputError."""
        slugs = [slug(t) for t in config.target]
        name = "-".join(slugs) if len(slugs) <= NAMED else f"{len(slugs)}-targets"
        path = RunFolder.create(name, None if config.out is None else Path(config.out)).path
        found = cls(path, config)
        found.write(None)
        return found

    @property
    def configs(self) -> list[RunConfig]:
        """The config of each run: a begun one goes on, the others begin."""
        from .config import resumed_config

        count = len(self.config.target)
        share = ceil(total_evaluations(self.config, count) / count)
        changed = {name: getattr(self.config, name) for name in _KEPT_EQUAL}
        found = []
        for one in self.config.model_copy(update={"out": str(self.path), "resume": None}).for_each_target():
            assert one.out is not None
            if Path(one.out, JOURNAL).is_file():
                found.append(resumed_config({**changed, "resume": one.out, "evaluations": share}))
            else:
                found.append(one.model_copy(update={"evaluations": share}))
        return found

    def write(self, matrix: Matrix | None) -> None:
        """Write `together.json`, and the config as a person may use it again."""
        runs = {t: slug(t) for t in self.config.target}
        config = self.config.model_dump(mode="json", exclude={"out", "resume", "dry_run", "token"})
        document = {"schema_version": SCHEMA_VERSION, "runs": runs, "config": config}
        text = json.dumps(document if matrix is None else {**document, "matrix": matrix}, indent=1)
        atomic_write(self.path / TOGETHER, text + "\n")
        atomic_write(self.path / CONFIG, self.config.to_yaml())


#: What a resumed group may change of all its runs.
_KEPT_EQUAL = ("timeout", "recover", "workers", "pool", "accept_unstable")


def total_evaluations(config: RunConfig, count: int) -> int:
    """Evaluations of ``count`` targets together."""
    alone = config.evaluations
    return max(ceil(alone * (1.0 + FURTHER * (count - 1))), count * min(alone, LEAST))


def find_group(name: str | Path) -> Path | None:
    """The folder of the group that a path, an id or `latest` means, or one of its runs; None for none."""
    path = Path(name)
    if str(name) == LATEST and not path.exists():
        path = latest_run(RUNS)
    for candidate in (path, RUNS / path):
        for folder in (candidate, candidate.resolve().parent):
            if (folder / TOGETHER).is_file():
                return folder
    return None


def resumed_group(folder: Path, flags: Mapping[str, Any]) -> RunConfig:
    """The config of a group, to be resumed, changed where that is allowed.

    Raises ResumeError where the file is damaged or the goal would change.
    """
    from .config import make_config

    file = folder / TOGETHER
    with told_clearly("read", file):
        text = file.read_text(encoding="utf-8")
    try:
        document = json.loads(text)
        version, config = document["schema_version"], dict(document["config"])
    except (ValueError, KeyError, TypeError) as problem:
        raise ResumeError(f"{str(file)!r} is damaged: {problem}.", "Start anew.") from problem
    if version != SCHEMA_VERSION:
        raise ResumeError(
            f"{str(file)!r} has schema version {version!r}; this version reads {SCHEMA_VERSION}."
        )
    try:
        stored = make_config(config)
    except UsageError as problem:
        raise ResumeError(f"{str(file)!r} is damaged: {problem.message}", "Start anew.") from problem
    return stored.with_changes({**flags, "resume": str(folder)})


def refuse_doubles(config: RunConfig) -> None:
    """Raise UsageError where a target is named twice, or two would have one folder."""
    from hw_profiles.target import load_target

    names = [load_target(t).name for t in config.target]
    doubled = next((n for n in names if names.count(n) > 1), None)
    if doubled is not None:
        raise UsageError(f"--target names {doubled} twice.", "Name every target once.")
    folders = [slug(t) for t in config.target]
    if len(set(folders)) < len(folders):
        raise UsageError("two targets have the same name.", "Rename one of the YAML files.")


__all__ = ["Group", "find_group", "refuse_doubles", "resumed_group", "total_evaluations"]
