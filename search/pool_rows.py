"""How stores keep a row: documents as zlib streams, whose checksums tell when something went bad."""

from __future__ import annotations

import itertools
import json
import zlib
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from compressors.errors import PolicyError
from compressors.policy import ResolvedPolicy

from .errors import TailorbirdError
from .evidence import Evidence
from .pool import Context, Entry, Store
from .safe_json import parse_json

#: Bytes a stored document may have, packed or unpacked: what is larger is not ours.
LARGEST = 4 << 20
#: Rows that are written, or read, at a time: others get their turn in between.
TOGETHER = 100

#: Of a policy: its context's digest and document, its digest, document and evidence.
Row = tuple[str, str, str, bytes, bytes]


class RowStore(Store):
    """A store whose policies are rows of a database, read and written some at a time. What is damaged counts
    as not there."""

    @abstractmethod
    def _merge(self, entries: list[Entry]) -> None:
        """Add entries to what is known, all or none. Raises StoreError."""

    @abstractmethod
    def _page(self, after: tuple[str, str]) -> Sequence[Row]:
        """Up to TOGETHER rows behind (context, policy), in their order. Raises StoreError."""

    @abstractmethod
    def _counted(self) -> Sequence[tuple[str, str, int]]:
        """Digest and document of every context, and how many policies it has. Raises StoreError."""

    def put(self, context: Context, policy: ResolvedPolicy, evidence: Evidence) -> None:
        self.put_all([Entry(context, policy, evidence)])

    def put_all(self, entries: Iterable[Entry]) -> None:
        waiting = iter(entries)
        while some := list(itertools.islice(waiting, TOGETHER)):
            self._merge(some)

    def entries(self) -> Iterator[Entry]:
        after = ("", "")
        while True:
            rows = self._page(after)
            for digest, text, name, policy, evidence in rows:
                context, known = unpacked_context(text, digest), unpacked_evidence(evidence)
                resolved = unpacked_policy(policy, name)
                if context is not None and resolved is not None and known is not None:
                    yield Entry(context, resolved, known)
            if len(rows) < TOGETHER:
                return
            after = (rows[-1][0], rows[-1][2])

    def counts(self) -> list[tuple[Context, int]]:
        found = [(unpacked_context(text, digest), int(count)) for digest, text, count in self._counted()]
        return [(context, count) for context, count in found if context is not None]


def pack(document: Mapping[str, Any]) -> bytes:
    """A JSON document as a zlib stream."""
    return zlib.compress(json.dumps(document, separators=(",", ":")).encode())


def unpacked_evidence(blob: object) -> Evidence | None:
    """Stored evidence; None where it is damaged or of another version."""
    try:
        return Evidence.from_dict(_document(blob))
    except (ValueError, TailorbirdError):
        return None


def unpacked_policy(blob: object, digest: object) -> ResolvedPolicy | None:
    """A stored policy; None where it is damaged or is not the one that its row says."""
    try:
        policy = ResolvedPolicy.from_dict(_document(blob))
    except (ValueError, TailorbirdError, PolicyError):
        return None
    return policy if policy.digest == digest else None


def unpacked_context(text: object, digest: object) -> Context | None:
    """A stored context; None where it is damaged or is not the one that its row says."""
    try:
        context = Context.from_dict(parse_json(text if isinstance(text, str) else "", LARGEST))
    except (ValueError, TailorbirdError):
        return None
    return context if context.digest == digest else None


def _document(blob: object) -> Any:
    """The document of a zlib stream. Raises ValueError."""
    if not isinstance(blob, bytes | memoryview):
        raise ValueError("no bytes")
    unpacking = zlib.decompressobj()
    try:
        text = unpacking.decompress(blob, LARGEST)
    except zlib.error as problem:
        raise ValueError(str(problem)) from problem
    if not unpacking.eof:
        raise ValueError("cut short, or too large")
    return parse_json(text, LARGEST)


__all__ = ["LARGEST", "pack", "unpacked_context", "unpacked_evidence", "unpacked_policy"]
