"""Profiles: what was measured on one device with one runtime version, clock and number of threads.

A profile is a value; `ProfileStore` keeps profiles as plain files of JSON lines, one file a key, to which
every measurement is appended and synced as it comes. Every measurement is addressed by its content, so two
profiles merge into the union of their lines. Precision belongs to each kernel; `precisions` lists them.
"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from hw_profiles.devices.contract import STABLE_WITHIN, DeviceFacts, Unit
from hw_profiles.devices.replies import FactsReply
from hw_profiles.errors import BadProfileError, StoreError
from hw_profiles.kernel import COLUMNS, KernelBatch, KernelKind
from hw_profiles.profile_rows import FailureRow, Header, NetworkRow, Row, lines_of, read_lines

#: Clocks further apart than this make a profile stale; a data sheet's 1.5 GHz may read 1.4996.
CLOCK_WITHIN = 0.05
_SAME = ("device", "runtime", "runtime_version")
_ALIKE = ("chip", "isa", "cores")


@dataclass(frozen=True)
class KernelRow:
    """One kernel inside one network: its shapes by column, and its least microseconds under the profiler.

    Of an emulated device `microseconds` are executed instructions, as `Profile.unit` says.
    """

    kind: KernelKind
    columns: dict[str, float]
    microseconds: float
    model: str


@dataclass(frozen=True)
class Profile:
    """Measurements of one device, runtime version, clock and number of threads, in `unit`."""

    facts: DeviceFacts
    threads: int
    unit: Unit = "ms"
    rows: tuple[Row, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: str | Path) -> Profile:
        """Read a file, plain or `.gz`. Raises BadProfileError (exit 3)."""
        header, rows, notes = read_lines(Path(path))
        facts = DeviceFacts(**header.facts.model_dump())
        return cls(facts, header.threads, header.unit, tuple(rows), tuple(notes))

    def save(self, path: str | Path) -> None:
        """Write a file to share, packed where its name ends in `.gz`; under another name first, then moved.

        Rows stand in the order of their ids, so that equal profiles give equal files.
        """
        target = Path(path)
        content = lines_of([self.header, *sorted(self.rows, key=lambda row: row.id)])
        if target.suffix == ".gz":
            content = gzip.compress(content, mtime=0)
        try:
            with tempfile.NamedTemporaryFile(
                dir=target.parent, prefix=f".{target.name}.", delete=False
            ) as file:
                try:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                    os.chmod(file.name, 0o644)  # made to be shared
                    os.replace(file.name, target)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            raise StoreError(f"cannot write the profile {str(target)!r}: {error.strerror}") from error

    @property
    def header(self) -> Header:
        """First line of its file."""
        return Header(facts=FactsReply(**asdict(self.facts)), threads=self.threads, unit=self.unit)

    @cached_property
    def digest(self) -> str:
        """Address of the content: the same measurements, the same digest."""
        return hashlib.sha256("".join(sorted(row.id for row in self.rows)).encode()).hexdigest()[:32]

    @cached_property
    def measured(self) -> dict[str, NetworkRow]:
        """Model hash -> its measurement: a stable one before an unstable one, then the least, then of more
        runs."""
        found: dict[str, NetworkRow] = {}
        for row in self.rows:
            if isinstance(row, NetworkRow):
                other = found.get(row.model)
                if other is None or _rank(row) < _rank(other):
                    found[row.model] = row
        return found

    @property
    def failures(self) -> dict[str, str]:
        """Model hash -> why it does not run there."""
        return {row.model: row.error for row in self.rows if isinstance(row, FailureRow)}

    @property
    def networks(self) -> list[tuple[KernelBatch, float, float]]:
        """(kernels (1, K), ms, relative sigma of ms) of every network whose kernels are known.

        One that was never measured steadily has the sigma of an unstable sample: 3 % of CPU time or more.
        """
        return [(row.batch(), row.best, row.sigma) for row in self.measured.values() if row.kinds]

    @property
    def kernels(self) -> list[KernelRow]:
        """Every kernel of every network."""
        return [
            KernelRow(
                kind.value(), {name: row.columns[name][k] for name in COLUMNS}, row.kernel_us[k], row.model
            )
            for row in self.measured.values()
            for k, kind in enumerate(row.kinds)
        ]

    @property
    def precisions(self) -> frozenset[str]:
        """Precisions of the weight-bearing kernels that were measured."""
        kinds = (kind for row in self.measured.values() for kind in row.kinds)
        return frozenset(kind.precision for kind in kinds if kind.weight_bearing)

    def merge(self, other: Profile) -> Profile:
        """The union of both. Raises BadProfileError that names every fact in which they differ."""
        mine, theirs = asdict(self.facts), asdict(other.facts)
        names = [name for name in (*_SAME, *_ALIKE) if mine[name] != theirs[name]]
        apart = [f"{name} {mine[name]!r} against {theirs[name]!r}" for name in names]
        if _clocks_differ(self.facts.clock_ghz, other.facts.clock_ghz):
            apart.append(f"clock {self.facts.clock_ghz} against {other.facts.clock_ghz} GHz")
        for name in ("threads", "unit"):
            if getattr(self, name) != getattr(other, name):
                apart.append(f"{name} {getattr(self, name)} against {getattr(other, name)}")
        if apart:
            raise BadProfileError(f"profiles of different things cannot be merged: {'; '.join(apart)}")
        rows = {row.id: row for row in (*self.rows, *other.rows)}
        notes = dict.fromkeys((*self.notes, *other.notes, *_disagreements(self, other)))
        return Profile(self.facts, self.threads, self.unit, tuple(rows.values()), tuple(notes))

    def stale(self, facts: DeviceFacts, threads: int | None = None) -> str:
        """Why the profile does not speak for `facts` and `threads`: a sentence; empty where it does."""
        why = []
        if facts.runtime != self.facts.runtime:
            why.append(f"with {self.facts.runtime}, not {facts.runtime}")
        elif facts.runtime_version != self.facts.runtime_version:
            now = facts.runtime_version
            why.append(
                f"with {self.facts.runtime} {self.facts.runtime_version}, and the device now has {now}"
            )
        if _clocks_differ(self.facts.clock_ghz, facts.clock_ghz):
            why.append(f"at {self.facts.clock_ghz:.2f} GHz, and the clock now is {facts.clock_ghz:.2f}")
        if facts.chip != self.facts.chip:
            why.append(f"on {self.facts.chip!r}, not {facts.chip!r}")
        if threads is not None and threads != self.threads:
            why.append(f"with {self.threads} thread{'s' * (self.threads > 1)}, not {threads}")
        if not why:
            return ""
        return f"the profile of {self.facts.device} is stale: it was measured {'; '.join(why)}"


def _clocks_differ(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and abs(a - b) > CLOCK_WITHIN * max(a, b)


def _disagreements(a: Profile, b: Profile) -> Iterator[str]:
    """Networks that both call stable, further apart than a stable sample's halves may be."""
    for model in sorted(a.measured.keys() & b.measured.keys()):
        first, second = a.measured[model], b.measured[model]
        apart = abs(first.best - second.best) / min(first.best, second.best)
        if first.stable and second.stable and apart > STABLE_WITHIN[first.clock]:
            yield (
                f"{first.key}: {first.best:.4g} against {second.best:.4g} {a.unit}, {apart:.0%} apart; "
                "the lesser counts"
            )


@dataclass(frozen=True)
class Found:
    """A profile and, where it does not quite speak for what was asked, why."""

    profile: Profile
    stale: str = ""


def _rank(row: NetworkRow) -> tuple[bool, float, int]:
    return not row.stable, row.best, -len(row.runs)


class ProfileStore:
    """A folder of profiles: `<device>/<runtime>-<version>-<threads>t[-<clock>GHz].jsonl`.

    The default folder is the user's data folder (XDG). Appending is safe against crashes (a line is there
    whole or not at all) and against a second process that appends.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        if folder is None:
            import platformdirs

            folder = platformdirs.user_data_path("tailorbird") / "profiles"
        self.folder = Path(folder)

    def path(self, facts: DeviceFacts, threads: int) -> Path:
        """The file of a key. What devices call themselves cannot lead out of the folder."""
        clock = f"-{facts.clock_ghz:.1f}GHz" if facts.clock_ghz else ""
        name = f"{_slug(facts.runtime)}-{_slug(facts.runtime_version)}-{threads}t{clock}.jsonl"
        return self.folder / _slug(facts.device) / name

    def open(self, facts: DeviceFacts, threads: int, unit: Unit = "ms") -> Profile:
        """The profile of a key, empty where there is none yet."""
        path = self.path(facts, threads)
        if not path.exists() or not path.stat().st_size:
            return Profile(facts, threads, unit)
        found = Profile.load(path)
        return found.merge(Profile(facts, threads, unit))  # says so where the file is of something else

    def append(self, facts: DeviceFacts, threads: int, rows: Sequence[Row], unit: Unit = "ms") -> None:
        """Add rows to a profile's file; they are on the disk when this returns.

        Raises StoreError (exit 5) where they cannot be written; the file is then as it was before.
        """
        path = self.path(facts, threads)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a+b", buffering=0) as file, _locked(file):
                size = _whole_lines(file)
                content = lines_of(rows)
                if not size:
                    content = lines_of([Profile(facts, threads, unit).header]) + content
                try:
                    left = memoryview(content)
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
                except OSError:
                    with contextlib.suppress(OSError):
                        os.ftruncate(file.fileno(), size)
                    raise
        except OSError as error:
            raise StoreError(
                f"cannot write the profile {str(path)!r}: {error.strerror}. What was measured before is "
                "kept; make room or choose another folder and run again to go on"
            ) from error

    def add(self, profile: Profile) -> Profile:
        """Merge a profile that somebody shared into the store; returns what is there then."""
        known = self.open(profile.facts, profile.threads, profile.unit)
        both = known.merge(profile)
        there = {row.id for row in known.rows}
        new = [row for row in profile.rows if row.id not in there]
        if new or not known.rows:
            self.append(profile.facts, profile.threads, new, profile.unit)
        return both

    def all(self) -> list[Profile]:
        """Every profile in the folder."""
        return [Profile.load(path) for path in sorted(self.folder.glob("*/*.jsonl"))]

    def find(
        self,
        device: str | DeviceFacts,
        runtime_version: str | None = None,
        threads: int | None = None,
        *,
        runtime: str = "onnxruntime",
    ) -> Found | None:
        """The profile that speaks best for a device (its name, or its facts, which settle the rest as well).

        A current one before a stale one, then the one with the most networks. None where there is none.
        """
        facts = device if isinstance(device, DeviceFacts) else None
        name = facts.device if facts else str(device)
        found = []
        for path in sorted((self.folder / _slug(name)).glob("*.jsonl")):
            profile = Profile.load(path)
            asked = facts or _as_asked(profile.facts, runtime, runtime_version)
            if profile.facts.runtime == asked.runtime:
                found.append(Found(profile, profile.stale(asked, threads)))
        return max(found, key=lambda f: (not f.stale, len(f.profile.measured)), default=None)


def _as_asked(facts: DeviceFacts, runtime: str, version: str | None) -> DeviceFacts:
    changed = {**asdict(facts), "runtime": runtime, "runtime_version": version or facts.runtime_version}
    return DeviceFacts(**changed)


def _slug(name: str) -> str:
    """A name as a part of a path: no separators, no leading dot."""
    return re.sub(r"[^a-z0-9._]+", "-", name.lower())[:80].strip("-.") or "unnamed"


@contextlib.contextmanager
def _locked(file: io.FileIO) -> Iterator[None]:
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _whole_lines(file: io.FileIO) -> int:
    """Bytes of the file; a last line that was cut short is taken off first."""
    size = file.seek(0, os.SEEK_END)
    position, tail = size, b""
    while position and b"\n" not in tail:
        step = min(1 << 16, position)
        position -= step
        file.seek(position)
        tail = file.read(step) + tail
    keep = position + tail.rfind(b"\n") + 1
    if keep != size:
        os.ftruncate(file.fileno(), keep)
    file.seek(0, os.SEEK_END)
    return keep


__all__ = ["Found", "KernelRow", "Profile", "ProfileStore"]
