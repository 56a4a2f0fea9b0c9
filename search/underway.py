"""One run under way: what its steps share, and how they tell of what turned out otherwise."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from .console import Progress
from .journal import Journal
from .pool import Pool
from .results import Event, RunFacts
from .runfolder import RunFolder
from .setup import Setup
from .timing import Stopwatch


@dataclass
class Run:
    """One run under way."""

    setup: Setup
    folder: RunFolder
    journal: Journal
    progress: Progress
    stop: threading.Event | None
    facts: RunFacts
    watch: Stopwatch
    events: list[Event] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    pool: Pool | None = None

    def event(self, kind: str, text: str, **more: Any) -> None:
        """Journal something that turned out otherwise, and tell."""
        self.journal.append("event", {"kind": kind, "text": text, **more})
        event = Event(kind=kind, text=text)
        if event not in self.events:  # exported again after an interruption
            self.events.append(event)
        self.progress.note(f"event    {text}")

    @property
    def stopped(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self.stop is not None and self.stop.is_set()
