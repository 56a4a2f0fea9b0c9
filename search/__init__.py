"""Tailorbird from Python.

    import search

    result = search.run("digits32", target="raspberry-pi", max_latency="0.5x")
    result.best.policy, result.front, result.export("deploy")

What is named in `__all__` is public. torch and onnxruntime are imported by what needs them, not by this.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

# No telemetry: onnxruntime's wheels report their use, unless told not to before they load.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    import threading

    from .config import RunConfig
    from .console import Progress
    from .errors import TailorbirdError
    from .result import FrontPoint, RunResult
    from .task import Metric, Split, Task, TaskSpec, load_task

__all__ = [
    "FrontPoint",
    "Metric",
    "RunConfig",
    "RunResult",
    "Split",
    "TailorbirdError",
    "Task",
    "TaskSpec",
    "load_task",
    "run",
]

#: Where the public names live.
_HOMES = {
    "FrontPoint": "result",
    "Metric": "task",
    "RunConfig": "config",
    "RunResult": "result",
    "Split": "task",
    "TailorbirdError": "errors",
    "Task": "task",
    "TaskSpec": "task",
    "load_task": "task",
}


@overload
def run(
    task: Task | TaskSpec | str | None = None,
    target: str | None = None,
    *,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    **options: Any,
) -> RunResult: ...


@overload
def run(
    task: Task | TaskSpec | str | None = None,
    *,
    target: Sequence[str],
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    **options: Any,
) -> tuple[RunResult, ...]: ...


def run(
    task: Task | TaskSpec | str | None = None,
    target: str | Sequence[str] | None = None,
    *,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    **options: Any,
) -> RunResult | tuple[RunResult, ...]:
    """Search a compressed network for a device: what the command `search` does, with the same engine.

    Args:
        task: a Task, a TaskSpec, or a name as in `--task`; None is the built-in default.
        target: a device's name or the path of its YAML file; of several, a tuple.
        progress: is told what happens; nobody is by default.
        stop: set it from another thread, and the run ends after the evaluation in flight; resume it later.
        options: fields of RunConfig, spelled like the flags: `max_latency="0.5x"`, `evaluations=100`,
            `recover="30s"`, `out="folder"`, `resume="folder"`, `seed=1` and so on.
    Returns:
        The result; for a tuple of targets (or where they are resumed), one each in a tuple.
    Raises:
        Errors of this and the other packages; each has the `exit_code` of the command line.
    """
    from .api import run as run_all

    found = run_all(task, target, progress, stop, options)
    one = isinstance(target, str) or (target is None and len(found) == 1)
    return found[0] if one else tuple(found)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'search' has no attribute {name!r}")
    return getattr(importlib.import_module(f"search.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
