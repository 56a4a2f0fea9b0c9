"""A pool of evaluations as a file: `search pool export FILE`, `search pool import FILE`.

A text file of JSON lines, packed with gzip where its name ends in `.gz`:

    {"format": "tailorbird-pool", "schema_version": 1}
    {"context": "<digest>", "document": {"task": ..., "network": ..., "numerics": ..., ...}}
    {"policy": "<digest>", "document": {...}, "evidence": {...}, "check": "<digest>"}
    ...
    {"contexts": 1, "policies": 250}

A policy is known in the context that stands before it. `document` of a policy is what `policy.json` holds.
Digests are of the documents: the context's is the first 32 hexadecimal digits of the SHA-256 of its JSON text
with sorted keys, `check` the same of the evidence's; the policy's is the first 16 of its own. The last line
counts, so that a file that was cut short is known as such. Equal pools give equal files.

A file is read twice: once to check every line, then to take it over; what does not check out leaves the pool
as it was. What is held of it at a time is at most `LINE_BYTES` and one line, and no line is longer than that.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from compressors.errors import PolicyError
from compressors.policy import ResolvedPolicy

from .errors import InputError, TailorbirdError
from .evidence import Evidence
from .pool import Context, Entry, Store
from .runfolder import atomic_path
from .safe_json import parse_json

FORMAT = "tailorbird-pool"
SCHEMA_VERSION = 1
#: Bytes of one line, and of the whole file unpacked, at most: some ten million policies.
LINE_BYTES = 8 << 20
FILE_BYTES = 32 << 30
#: Of a packed file, unpacked bytes for each packed one; pools have some ten. Bombs have a thousand.
MOST_PACKED = 200
#: Policies that are handed to a store at a time.
TOGETHER = 500
#: How a gzip file begins (RFC 1952), whatever its name.
_GZIP = b"\x1f\x8b"
_HEADER = {"format": FORMAT, "schema_version": SCHEMA_VERSION}


@dataclass(frozen=True)
class Moved:
    """What was written to a file or taken from one."""

    contexts: int
    policies: int


def export_pool(store: Store, path: Path) -> Moved:
    """Write all that is sound in a store to a file; it is there whole or not at all.

    Raises StoreError, InputError.
    """
    contexts, policies = set[str](), 0
    with atomic_path(path) as draft, _writer(draft, path.suffix == ".gz") as file:
        file.write(_line(_HEADER))
        last = ""
        for e in store.entries():
            if e.context.digest != last:
                last = e.context.digest
                contexts.add(last)
                file.write(_line({"context": last, "document": json.loads(e.context.to_json())}))
            evidence = e.evidence.to_dict()
            row = {"policy": e.policy.digest, "document": e.policy.to_dict()}
            file.write(_line({**row, "evidence": evidence, "check": check_of(evidence)}))
            policies += 1
        file.write(_line({"contexts": len(contexts), "policies": policies}))
    return Moved(len(contexts), policies)


def import_pool(store: Store, path: Path) -> Moved:
    """Add what a file holds to a store. Raises InputError where any line is wrong, before anything is added;
    StoreError."""
    contexts: set[str] = set()
    policies = 0
    for e in read_pool(path):
        contexts.add(e.context.digest)
        policies += 1
    waiting: list[Entry] = []
    held = 0
    for entry, size in _sized(path):
        waiting.append(entry)
        held += size
        if held > LINE_BYTES or len(waiting) == TOGETHER:
            store.put_all(waiting)
            waiting, held = [], 0
    store.put_all(waiting)
    return Moved(len(contexts), policies)


def read_pool(path: Path) -> Iterator[Entry]:
    """The entries of a file, each checked, one at a time. Raises InputError naming the line."""
    return (entry for entry, _ in _sized(path))


def _sized(path: Path) -> Iterator[tuple[Entry, int]]:
    """Entries, each with the length of its line."""
    context: Context | None = None
    contexts = policies = number = 0
    ended = False
    for number, line in enumerate(_lines(path), 1):
        try:
            row = parse_json(line, LINE_BYTES)
            if number == 1:
                _check_header(row)
                continue
            kind = _kind(row)
            if ended:
                raise ValueError("it stands behind the end")
            if kind == "end":
                _check_end(row, contexts, policies)
                ended = True
                continue
            if kind == "context":
                context, contexts = _context(row), contexts + 1
                continue
            if context is None:
                raise ValueError("a policy before any context")
            entry, policies = _entry(row, context), policies + 1
        except (ValueError, TailorbirdError, PolicyError) as problem:
            text = " ".join(str(problem).split())
            raise InputError(f"pool file {str(path)!r}, line {number}: {text[:200]}.") from problem
        yield entry, len(line)
    if not ended:
        raise InputError(
            f"pool file {str(path)!r} is {'cut short: its last line is missing' if number else 'empty'}.",
            "Have it exported, or sent, once more.",
        )


def check_of(evidence: Mapping[str, Any]) -> str:
    """sha256 (first 32 hex digits) of the canonical JSON of evidence."""
    return hashlib.sha256(json.dumps(evidence, sort_keys=True).encode()).hexdigest()[:32]


# -- lines


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _check_header(row: Any) -> None:
    if not isinstance(row, dict) or row.get("format") != FORMAT:
        raise ValueError("it is no pool of evaluations; `search pool export` writes one")
    if row.get("schema_version") != SCHEMA_VERSION or isinstance(row["schema_version"], bool):
        raise ValueError(f"schema version {row.get('schema_version')!r}; this program reads {SCHEMA_VERSION}")


_KEYS = {
    frozenset({"context", "document"}): "context",
    frozenset({"policy", "document", "evidence", "check"}): "policy",
    frozenset({"contexts", "policies"}): "end",
}


def _kind(row: Any) -> str:
    kind = _KEYS.get(frozenset(row)) if isinstance(row, dict) else None
    if kind is None:
        raise ValueError("neither a context, a policy nor the end")
    return kind


def _context(row: Mapping[str, Any]) -> Context:
    context = Context.from_dict(row["document"])
    if context.digest != row["context"]:
        raise ValueError("the context is not the one that its digest says")
    return context


def _entry(row: Mapping[str, Any], context: Context) -> Entry:
    policy = ResolvedPolicy.from_dict(row["document"])
    if policy.digest != row["policy"]:
        raise ValueError("the policy is not the one that its digest says")
    evidence = Evidence.from_dict(row["evidence"])
    if check_of(evidence.to_dict()) != row["check"]:
        raise ValueError("the evidence is not what its check says")
    return Entry(context, policy, evidence)


def _check_end(row: Mapping[str, Any], contexts: int, policies: int) -> None:
    if (row["contexts"], row["policies"]) != (contexts, policies):
        raise ValueError(
            f"it counts {row['contexts']!r} contexts and {row['policies']!r} policies, "
            f"and {contexts} and {policies} stand before it"
        )


# -- bytes


@contextlib.contextmanager
def _writer(draft: Path, packed: bool) -> Iterator[IO[bytes]]:
    with draft.open("wb") as file:
        if not packed:
            yield file
            return
        # Without a name and a time, so that equal pools give equal files.
        with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packing:
            yield packing  # type: ignore[misc]


def _lines(path: Path) -> Iterator[bytes]:
    """Lines without their ends, of at most `LINE_BYTES`. Raises InputError."""
    name = f"pool file {str(path)!r}"
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{name} {what}.", "`search pool export FILE` writes one.")
    try:
        with path.open("rb") as start:
            packed = start.read(len(_GZIP)) == _GZIP
        most = min(FILE_BYTES, MOST_PACKED * path.stat().st_size + LINE_BYTES) if packed else FILE_BYTES
        read = 0
        with gzip.open(path) if packed else path.open("rb") as file:
            while line := file.readline(LINE_BYTES + 1):
                read += len(line)
                if len(line) > LINE_BYTES:
                    raise InputError(f"{name} has a line of more than {LINE_BYTES >> 20} MB.")
                if read > most:
                    raise InputError(f"{name} unpacks to more than {most >> 20} MB.", "It is not taken over.")
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise InputError(f"{name} is no whole gzip file: {problem}.") from problem
    except OSError as problem:
        raise InputError(f"cannot read {name}: {problem.strerror}.") from problem


__all__ = ["FORMAT", "SCHEMA_VERSION", "Moved", "export_pool", "import_pool", "read_pool"]
