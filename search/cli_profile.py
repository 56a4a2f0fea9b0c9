"""`search profile`: a bar while a device is measured, then what predictions rest on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.cli_support import INTERRUPTED, answer, note, session, stop_on_interrupt

if TYPE_CHECKING:
    from hw_profiles.profiling import Progress
    from search.profile import Profiled

#: Seconds between lines where there is no terminal.
_BETWEEN = 10.0


def run_profile(
    target: str,
    host: str | None,
    token: str | None,
    time: str,
    task: str | None,
    threads: int | None,
    accept_unstable: bool,
    add: Path | None,
    share: Path | None,
    quiet: bool,
) -> None:
    """Measure (or merge, or share) and print. Exits with 130 after Ctrl-C; what was measured is kept."""
    from search.config import make_config
    from search.profile import profile_target, share_profile
    from search.units import parse_seconds

    if add is not None or share is not None:
        found = share_profile(target, threads, add, share)
        answer(found, lambda: f"{found['text']}\n")
        return
    seconds = parse_seconds(time, "--time")
    config = None if task is None else make_config({"target": target, "task": task, "measure": "never"})
    with stop_on_interrupt(note, "measurement") as stop, _bar(seconds, quiet or session.json) as told:
        done = profile_target(
            target, host, token, minutes=seconds / 60, threads=threads, config=config,
            accept_unstable=accept_unstable, progress=told, stop=stop,
        )  # fmt: skip
    answer(done, lambda: render_profiled(done))
    if done["ended"] == "stopped":
        raise SystemExit(INTERRUPTED)


def render_profiled(found: Profiled) -> str:
    """What the command prints: the device, what was measured, what predictions rest on now."""
    threads = f"{found['threads']} thread{'s' * (found['threads'] > 1)}"
    lines = [
        f"device   {found['device']}: {found['chip']}, {found['runtime']}, {threads}",
        f"measured {found['measured']} networks in {found['seconds']:.0f} s, {found['held']} held before, "
        f"{len(found['failed'])} failed, {len(found['refused'])} refused as unsteady",
        f"profile  {found['networks']} networks in {found['file']}",
        f"cost     {found['backing']}"
        if found["unit"] == "ms"
        else f"counted  {found['unit']}, not time: predictions of {found['target']} do not rest on them",
    ]
    lines += [f"advice   {text}" for text in found["advice"]]
    if found["emulated"] and found["unit"] == "ms":
        lines.append(
            f"emulated by {found['emulated']}: for searches with this --host, not for "
            f"{found['target']} itself"
        )
    if found["ended"] == "stopped":
        lines.append("stopped  what was measured is kept; the same command goes on")
    if found["unit"] == "ms":
        host = " --host ..." if found["emulated"] else ""
        lines.append(f"next     search --target {found['target']} --threads {found['threads']}{host}")
    return "\n".join(lines) + "\n"


@contextmanager
def _bar(seconds: float, silent: bool) -> Iterator[Any]:
    """A callback for progress: a bar on a terminal, a line now and then elsewhere."""
    if silent:
        yield None
        return
    if not sys.stderr.isatty():
        last = [0.0]

        def line(p: Progress) -> None:
            if p.seconds - last[0] >= _BETWEEN:
                last[0] = p.seconds
                note(f"profile  {_status(p)}   {max(0.0, seconds - p.seconds):.0f} s left")

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("profile"), BarColumn(), TextColumn("{task.fields[what]}", markup=False))
    with RichProgress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task("profile", total=seconds, what="")
        yield lambda p: bar.update(shown, completed=min(p.seconds, seconds), what=_status(p))


def _status(p: Progress) -> str:
    parts = [f"{p.measured} networks measured"]
    parts += [f"{p.held} held"] if p.held else []
    parts += [f"{p.refused} unsteady"] if p.refused else []
    return ", ".join(parts)
