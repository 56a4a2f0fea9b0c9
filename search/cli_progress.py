"""What a person sees while a study runs, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from search.units import format_metric, format_ms, format_seconds

if TYPE_CHECKING:
    from agents.contract import Outcome
    from search.console import Progress

SECONDS_BETWEEN_LINES = 15.0


def make_progress(quiet: bool = False, verbose: bool = False, stream: TextIO | None = None) -> Progress:
    """The kind of progress that suits where stderr goes."""
    stream = sys.stderr if stream is None else stream
    if quiet:
        from search.console import Silent

        return Silent()
    if verbose:
        return Lines(stream, every=True)
    if stream.isatty() and os.environ.get("TERM") != "dumb":
        return Bar(stream)
    return Lines(stream)


def status(best: Outcome | None, front_size: int, feasible_share: float, unit: str) -> str:
    """`best 98.2 % at 3.02 ms   front 7   feasible 48 %`."""
    found = "nothing feasible yet"
    if best is not None and best.accuracy is not None:
        found = f"best {format_metric(best.accuracy, unit)}"
        if "latency_ms" in best.costs:
            found += f" at {format_ms(best.costs['latency_ms'])}"
    return f"{found}   front {front_size}   feasible {100 * feasible_share:.0f} %"


def _tried(outcome: Outcome, unit: str) -> str:
    scored = "not evaluated" if outcome.accuracy is None else format_metric(outcome.accuracy, unit)
    latency = outcome.costs.get("latency_ms")
    parts = [outcome.policy.digest, scored, "" if latency is None else format_ms(latency), outcome.why]
    return "   ".join(part for part in parts if part)


class Pace:
    """How long is left, from the evaluations done by this process."""

    def __init__(self, total: int, done: int) -> None:
        self.total = total
        self.done = done
        self._first = done
        self._began = time.monotonic()

    def step(self) -> None:
        self.done += 1

    @property
    def left_seconds(self) -> float | None:
        """None until one evaluation ended."""
        ours = self.done - self._first
        if ours < 1:
            return None
        return (time.monotonic() - self._began) / ours * max(0, self.total - self.done)

    @property
    def left(self) -> str:
        seconds = self.left_seconds
        return "" if seconds is None else f"{format_seconds(seconds)} left"


class Lines:
    """A Progress for logs: a line at a tenth of the way or when a while has passed, or `every` time."""

    def __init__(self, stream: TextIO, every: bool = False) -> None:
        self._stream = stream
        self._every = every
        self._pace = Pace(0, 0)
        self._unit = "%"
        self._last = 0.0
        self._tenth = 0

    def header(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.note(line)

    def start(self, total: int, done: int = 0, unit: str = "%") -> None:
        self._pace, self._unit = Pace(total, done), unit
        self._last, self._tenth = time.monotonic(), 10 * done // max(1, total)

    def update(self, outcome: Outcome, best: Outcome | None, front_size: int, feasible_share: float) -> None:
        self._pace.step()
        pace, now = self._pace, time.monotonic()
        tenth = 10 * pace.done // max(1, pace.total)
        if self._every:
            self.note(f"tried    {_tried(outcome, self._unit)}")
        if self._every or tenth > self._tenth or now - self._last >= SECONDS_BETWEEN_LINES:
            self._tenth, self._last = tenth, now
            what = status(best, front_size, feasible_share, self._unit)
            self.note(f"search   {pace.done}/{pace.total}   {what}   {pace.left}".rstrip())

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self) -> None: ...


class Bar:
    """A Progress for terminals."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console

        # Colours follow NO_COLOR; highlighting of numbers would make the notes look unlike stdout.
        self._console = Console(file=stream, highlight=False, markup=False, soft_wrap=True)
        self._bar: Any = None
        self._task: Any = None
        self._pace = Pace(0, 0)
        self._unit = "%"

    def header(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.note(line)

    def start(self, total: int, done: int = 0, unit: str = "%") -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self.close()
        self._pace, self._unit = Pace(total, done), unit
        self._bar = RichProgress(
            TextColumn("search "),
            BarColumn(bar_width=max(4, min(28, self._console.width - 76))),
            MofNCompleteColumn(),
            TextColumn("{task.fields[what]}", markup=False),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task("search", total=total, completed=done, what="")
        self._bar.start()

    def update(self, outcome: Outcome, best: Outcome | None, front_size: int, feasible_share: float) -> None:
        self._pace.step()
        if self._bar is not None:
            what = status(best, front_size, feasible_share, self._unit)
            self._bar.update(
                self._task, completed=self._pace.done, what=f"{what}  {self._pace.left}".replace("   ", "  ")
            )

    def note(self, text: str) -> None:
        self._console.print(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
