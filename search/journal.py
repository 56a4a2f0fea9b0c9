"""The journal: an append-only file of JSON lines that is the state of a run.

One line is one record: `{"crc":"<crc32>","n":<number>,"at":<seconds>,"kind":<kind>,"data":{...}}`. The
checksum covers everything behind it; numbers count from 0 without gaps. A line reaches the file in one write
and is fsynced before `append` returns: what was appended survives kill -9. A line that was cut short can only
be the last one; it is taken off and reported. Anything else that does not check out is an error, since
silently going on would lose results.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from search.errors import InputError, ResumeError

SCHEMA_VERSION = 1

#: header: config, env, seed, network digest; suggested: a policy given out; evaluated: its full outcome;
#: rejected: a policy that was not evaluated, and why; event: a kernel difference, a measurement, a
#: correction, losses of single changes, outcomes known beforehand;
#: recovered: a point after recovery; exported: files written; interrupted: the run was stopped on purpose.
Kind = Literal[
    "header", "suggested", "evaluated", "rejected", "event", "recovered", "exported", "interrupted"
]
KINDS: tuple[str, ...] = get_args(Kind)

#: Bytes of a journal that are read: a hundred thousand evaluations of a large network.
MOST_BYTES = 2 << 30
#: Never through a link: it could lead out of the run's folder.
_APPEND = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW
_PREFIX = b'{"crc":"'
_BODY_AT = len(_PREFIX) + 8 + 2  # behind the checksum and its `",`
_locked_here: set[tuple[int, int]] = set()


@dataclass(frozen=True)
class Record:
    """One line.

    Attributes:
        number: position in the journal, from 0.
        kind: see `Kind`.
        data: what the kind holds; plain JSON values.
        at: when it was appended, in seconds since the epoch.
    """

    number: int
    kind: str
    data: Mapping[str, Any]
    at: float


@dataclass(frozen=True)
class Contents:
    """What a journal file holds.

    Attributes:
        records: the whole records, in order.
        good_bytes: length of the file up to the end of the last whole record.
        torn_bytes: length of the tail that was cut short; 0 in a sound file.
    """

    records: tuple[Record, ...]
    good_bytes: int
    torn_bytes: int


def encode(record: Record) -> bytes:
    """The record's line, newline included."""
    fields = {"n": record.number, "at": record.at, "kind": record.kind, "data": record.data}
    text = json.dumps(fields, separators=(",", ":"), default=_plain)
    body = text[1:].encode()
    return b'%s%08x",%s\n' % (_PREFIX, zlib.crc32(body), body)


def decode(line: bytes) -> Record | None:
    """The record of a line without its newline; None where the checksum or the form is wrong."""
    body = line[_BODY_AT:]
    if line[:_BODY_AT] != b'%s%08x",' % (_PREFIX, zlib.crc32(body)):
        return None
    try:
        fields = json.loads(b"{" + body)
        number, data = fields["n"], fields["data"]
        if not isinstance(number, int) or not isinstance(data, dict):
            return None
        return Record(number, str(fields["kind"]), data, float(fields["at"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def parse(content: bytes, name: str = "the journal") -> Contents:
    """Reads a journal's bytes. Raises ResumeError, naming the line, where more than the tail is damaged."""
    lines = content.split(b"\n")
    rest = lines.pop()  # what stands behind the last newline: empty, or a line cut short
    records: list[Record] = []
    good = 0
    for index, line in enumerate(lines):
        record = decode(line)
        if record is None:
            if index == len(lines) - 1 and not rest:
                break  # the right length, the wrong content: a page that never reached the disk
            raise _damaged(name, index, "its checksum does not match")
        if record.number != index:
            raise _damaged(name, index, f"it is record {record.number}, expected {index}")
        records.append(record)
        good += len(line) + 1
    return Contents(tuple(records), good, len(content) - good)


@contextlib.contextmanager
def making_sense_of(record: Record) -> Iterator[None]:
    """Reading what a record holds. Raises ResumeError where it is not what its kind says: a checksum tells
    of damage, not of who wrote it."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as problem:
        raise ResumeError(
            f"record {record.number} of the journal makes no sense as {record.kind!r}: {problem!r:.120}.",
            "No version of this program wrote it; start anew.",
        ) from problem


def _damaged(name: str, index: int, what: str) -> ResumeError:
    return ResumeError(
        f"{name} is damaged in line {index + 1}: {what}.",
        "Restore the file, or start anew; --warm-start takes over what a sound journal holds.",
    )


class Journal:
    """A run's journal, open for appending; one process at a time.

    Attributes:
        path: the file.
        records: all records, those just appended included.
        torn_bytes: what was cut off the tail when it was opened; 0 in a sound file.
    """

    def __init__(self, path: Path, contents: Contents, descriptor: int, lock: _Lock) -> None:
        self.path = path
        self.torn_bytes = contents.torn_bytes
        self._records = list(contents.records)
        self._size = contents.good_bytes
        self._descriptor = descriptor
        self._lock = lock

    @property
    def records(self) -> tuple[Record, ...]:
        return tuple(self._records)

    @classmethod
    def create(cls, path: Path, header: Mapping[str, Any]) -> Self:
        """A new journal that starts with `header`; there is none before the header is on the disk.

        Raises InputError where there is a journal already, or none can be written.
        """
        lock = _Lock(path)
        record = Record(0, "header", {"schema_version": SCHEMA_VERSION, **header}, round(time.time(), 3))
        line = encode(record)
        try:
            with _told("write", path):
                if path.exists():
                    raise FileExistsError(path)
                draft = path.with_name(path.name + ".tmp")
                draft.unlink(missing_ok=True)  # what was left behind might be a link
                with draft.open("wb") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
                _sync_folder(path.parent)
                descriptor = os.open(path, _APPEND)
        except BaseException:
            lock.release()
            raise
        return cls(path, Contents((record,), len(line), 0), descriptor, lock)

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing journal, to go on with. A torn tail is cut off. Raises ResumeError."""
        if not path.is_file():
            raise ResumeError(
                f"there is no journal {str(path)!r}.", "A run is resumed by its folder or its id."
            )
        lock = _Lock(path)
        try:
            with _told("open", path):
                contents = _checked(path)
                descriptor = os.open(path, _APPEND)
                if contents.torn_bytes:
                    os.ftruncate(descriptor, contents.good_bytes)
                    os.fsync(descriptor)
        except BaseException:
            lock.release()
            raise
        return cls(path, contents, descriptor, lock)

    @staticmethod
    def read(path: Path) -> list[Record]:
        """The whole records of a journal, without changing or locking it. Raises ResumeError."""
        if not path.is_file():
            raise ResumeError(f"there is no journal {str(path)!r}.")
        with _told("read", path):
            return list(_checked(path).records)

    @property
    def header(self) -> Mapping[str, Any]:
        """What the run started with."""
        return self._records[0].data

    def append(self, kind: Kind, data: Mapping[str, Any]) -> Record:
        """Appends one record and waits until it is on the disk.

        Raises InputError where the disk is full or gone; the file then holds what it held before.
        """
        if kind not in KINDS:
            raise ValueError(f"{kind=} is none of {', '.join(KINDS)}")
        record = Record(len(self._records), kind, data, round(time.time(), 3))
        line = encode(record)
        with _told("write", self.path):
            self._write(line)
        self._size += len(line)
        self._records.append(record)
        return record

    def _write(self, line: bytes) -> None:
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._descriptor)
        except OSError:
            # Part of a line may be there. Taking it off makes a later append possible; reading does without.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise

    def close(self) -> None:
        """Gives the file and its lock free; more than once does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Lock:
    """Held by the one process that appends.

    It belongs to the process, so that workers which outlive it hold nothing, and is on a file of its own,
    since closing any descriptor of a file gives up all of a process's locks on it.
    """

    def __init__(self, journal: Path) -> None:
        path = journal.with_name(f".{journal.name}.lock")
        self._descriptor = -1
        with _told("lock", path):
            # Before it is opened: closing a second descriptor would give up the lock that this process holds.
            if path.exists() and _identity(path.stat()) in _locked_here:
                raise _in_use(journal)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(descriptor)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise _in_use(journal) from None
                raise
        self._descriptor = descriptor
        self._key = _identity(os.fstat(descriptor))
        _locked_here.add(self._key)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            _locked_here.discard(self._key)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _in_use(journal: Path) -> ResumeError:
    return ResumeError(
        f"another search is running in {str(journal.parent)!r}.",
        "Wait until it ends, stop it with Ctrl-C, or choose another folder with --out.",
    )


def _checked(path: Path) -> Contents:
    if path.stat().st_size > MOST_BYTES:
        raise ResumeError(f"{str(path)!r} is larger than {MOST_BYTES >> 30} GB.", "It is no run's journal.")
    contents = parse(path.read_bytes(), repr(str(path)))
    if not contents.records or contents.records[0].kind != "header":
        raise ResumeError(
            f"{str(path)!r} does not begin with a header.", "There is nothing to resume; start anew."
        )
    version = contents.records[0].data.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ResumeError(
            f"{str(path)!r} has schema version {version}; this version reads {SCHEMA_VERSION}.",
            "Resume it with the version of Tailorbird that wrote it.",
        )
    return contents


@contextlib.contextmanager
def _told(action: str, path: Path) -> Iterator[None]:
    """Turns what the operating system says into one clear error."""
    try:
        yield
    except FileExistsError:
        raise InputError(
            f"{str(path.parent)!r} holds a run already.",
            f"Go on with --resume {path.parent}, or choose another --out.",
        ) from None
    except OSError as error:
        what = error.strerror or type(error).__name__
        hint = "Everything finished so far is saved. Make room, then go on with --resume."
        raise InputError(
            f"cannot {action} {str(path)!r}: {what}.",
            hint if _is_full(error) else "Choose another folder with --out.",
        ) from error


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: Any) -> Any:
    """numpy's numbers and arrays as Python's."""
    for name in ("tolist", "item"):
        convert: Callable[[], Any] | None = getattr(value, name, None)
        if convert is not None:
            return convert()
    raise TypeError(f"a {type(value).__name__} cannot stand in a journal")
