"""The store of past studies, from which `--agent hyper` learns: one JSON file per study, content-addressed.

`<run>-<digest>.json` in the user's data folder (XDG); a study that goes on replaces what it left before. What
is not what its name says, or of another version, is skipped and named.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agents.errors import HistoryError
from agents.past import PastStudy, past_study

from .errors import InputError, ResumeError
from .journal import Journal
from .runfolder import atomic_write, told_clearly
from .task import fingerprint

if TYPE_CHECKING:
    from .study import Study
    from .underway import Run

#: Studies kept, the latest ones, and how many of them one search learns from.
MOST, LEARNED = 500, 120
#: Evaluations without which a stopped search taught nothing.
LEAST = 20
#: A file larger than this is none of ours.
MOST_BYTES = 20_000_000


@dataclass(frozen=True)
class Stored:
    """Studies of a store, the latest first, and of each file that was skipped its name and why."""

    studies: tuple[PastStudy, ...]
    skipped: tuple[tuple[str, str], ...] = ()


class StudyStore:
    """A folder of past studies; by default the user's data folder."""

    def __init__(self, folder: str | Path | None = None) -> None:
        if folder is None:
            import platformdirs

            folder = platformdirs.user_data_path("tailorbird") / "studies"
        self.folder = Path(folder)

    def add(self, study: PastStudy) -> Path:
        """Write a study in place of what the same run left before, and drop the oldest beyond `MOST`.

        Raises InputError where nothing can be written.
        """
        with told_clearly("create", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        path = atomic_write(self.folder / f"{study.run}-{study.digest}.json", study.to_json())
        earlier = [p for p in self.folder.glob(f"{study.run}-*.json") if p != path]
        for old in (*earlier, *self._files()[MOST:]):
            with contextlib.suppress(OSError):
                old.unlink(missing_ok=True)
        return path

    def read(self) -> Stored:
        """Every study that is sound."""
        studies: list[PastStudy] = []
        skipped: list[tuple[str, str]] = []
        for path in self._files():
            try:
                studies.append(_read(path))
            except (OSError, HistoryError) as e:
                skipped.append((path.name, getattr(e, "strerror", None) or str(e)))
        return Stored(tuple(studies), tuple(skipped))

    def _files(self) -> list[Path]:
        """The latest first."""
        dated: list[tuple[float, str, Path]] = []
        for path in self.folder.glob("*-*.json"):
            with contextlib.suppress(OSError):  # another process may drop it
                dated.append((path.stat().st_mtime, path.name, path))
        return [path for _, _, path in sorted(dated, reverse=True)]


def _read(path: Path) -> PastStudy:
    if path.stat().st_size > MOST_BYTES:
        raise HistoryError("too large for a study.")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest()[:16] != path.stem.rpartition("-")[2]:
        raise HistoryError("its content is not what its name says.")
    try:
        return PastStudy.from_dict(json.loads(content))
    except (ValueError, RecursionError) as e:
        raise HistoryError(f"no JSON: {e}.") from e


def chosen(studies: Sequence[PastStudy], most: int = LEARNED) -> tuple[PastStudy, ...]:
    """At most so many, networks and targets taking turns, each one's latest first."""
    by: dict[tuple[str, str], list[PastStudy]] = {}
    for s in studies:
        by.setdefault((s.network, s.target), []).append(s)
    longest = max((len(c) for c in by.values()), default=0)
    turns = [c[k] for k in range(longest) for c in by.values() if k < len(c)]
    return tuple(turns[:most])


def remembered(this: Run, store: StudyStore | None = None) -> Callable[[], Sequence[PastStudy]]:
    """What a run's agent may learn from: read when it first asks, and journalled, so that a resumed run
    learns from the same.
    """
    found: list[tuple[PastStudy, ...]] = []

    def past() -> Sequence[PastStudy]:
        if not found:
            known = _journalled(this.journal)
            found.append(_learned(this, store or StudyStore()) if known is None else known)
        return found[0]

    return past


def _journalled(journal: Journal) -> tuple[PastStudy, ...] | None:
    data = next((r.data for r in journal.records if r.data.get("kind") == "studies"), None)
    if data is None:
        return None
    try:
        return tuple(PastStudy.from_dict(doc) for doc in data["studies"])
    except HistoryError as e:
        raise ResumeError(f"the past studies that this run learned from cannot be read: {e}") from e


def _learned(this: Run, store: StudyStore) -> tuple[PastStudy, ...]:
    stored = store.read()
    studies = chosen(stored.studies)
    for name, why in stored.skipped[:3]:
        this.progress.note(f"studies  {name} is skipped: {why}")
    if len(stored.skipped) > 3:
        this.progress.note(f"studies  and {len(stored.skipped) - 3} more in {store.folder}")
    networks = len({s.network for s in studies})
    this.progress.note(
        f"studies  learning from {len(studies)} earlier searches of {networks} networks"
        if studies
        else "studies  there are no earlier searches to learn from yet: the agent begins as joint does"
    )
    digest = hashlib.sha256("".join(s.digest for s in studies).encode()).hexdigest()
    documents = [s.to_dict() for s in studies]
    this.journal.append("event", {"kind": "studies", "digest": digest, "studies": documents})
    return studies


def keep(this: Run, study: Study, store: StudyStore | None = None) -> Path | None:
    """Keep a finished study for later ones to learn from; None where there is nothing worth it.

    A folder that cannot be written is told of and spoils nothing.
    """
    setup = this.setup
    if setup.config.dry_run or not study.entries or (this.stopped and len(study.entries) < LEAST):
        return None
    found = past_study(
        setup.problem,
        [(e.suggestion, e.outcome) for e in (*study.known, *study.entries)],
        run=_run_key(this.journal),
        task=fingerprint(setup.task),
        target=setup.target.name,
        agent=setup.config.agent,
    )
    if found is None:
        return None
    try:
        return (store or StudyStore()).add(found)
    except InputError as e:
        this.progress.note(f"studies  this search is not kept for later ones: {e.message}")
        return None


def _run_key(journal: Journal) -> str:
    """The same for a run however often it is resumed, another for every other run."""
    first = journal.records[0]
    text = json.dumps([first.at, first.data], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


__all__ = ["Stored", "StudyStore", "chosen", "keep", "remembered"]
