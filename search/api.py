"""`search.run`: the search from Python, the same engine as the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .config import RunConfig, load_config, resumed_config
from .errors import UsageError, did_you_mean
from .group import find_group, resumed_group
from .result import RunResult
from .task import Task, TaskSpec

if TYPE_CHECKING:
    import threading

    from .console import Progress


def run(
    task: Task | TaskSpec | str | None,
    target: str | Sequence[str] | None,
    progress: Progress | None,
    stop: threading.Event | None,
    options: Mapping[str, Any],
) -> list[RunResult]:
    """One result a target. See `search.run`."""
    from . import engine, together

    if isinstance(target, str) and "," in target:
        raise UsageError(f"{target=} names several.", "Give a tuple: one result each comes back.")
    given = {**_fields(task), "target": target, **options}
    own = task if isinstance(task, Task) else None
    config = _config(given)
    if len(config.target) > 1 and not config.dry_run:
        together.check(config)
        found = together.run(config, progress, stop, own)
        if found.failed:
            raise found.failed[0]
        return list(found.results)
    engine.check(config)
    return [engine.run(one, progress, stop, own) for one in config.for_each_target()]


def _config(given: Mapping[str, Any]) -> RunConfig:
    values = {key: value for key, value in given.items() if value is not None}
    for key in values:
        if key not in RunConfig.model_fields:
            near = did_you_mean(key, RunConfig.model_fields)
            raise UsageError(f"search.run has no argument {key!r}. {near}".rstrip())
    if "resume" in values:
        group = find_group(values["resume"])
        return resumed_config(values) if group is None else resumed_group(group, values)
    return load_config(values, text="target")


def _fields(task: Task | TaskSpec | str | None) -> dict[str, Any]:
    """A task as fields of the config."""
    if task is None or isinstance(task, str):
        return {"task": task}
    spec = task.spec if isinstance(task, Task) else task
    if isinstance(task, Task) and spec is None:
        return {"task": RunConfig.in_process(task.name)}
    if not isinstance(spec, TaskSpec):
        raise UsageError(f"a {type(task).__name__} is no task.", "Give a Task, a TaskSpec, or a name.")
    fields = spec.to_dict()
    fields.pop("folder", None)
    name = fields.pop("name", None)
    return fields if spec.model is not None else {"task": name, **fields}
