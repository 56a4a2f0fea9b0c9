"""How stores keep a row: documents as zlib streams, whose checksums tell when something went bad."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

from compressors.errors import PolicyError
from compressors.policy import ResolvedPolicy

from .errors import TailorbirdError
from .evidence import Evidence
from .pool import Context
from .safe_json import parse_json

#: Bytes a stored document may have, packed or unpacked: what is larger is not ours.
LARGEST = 4 << 20


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
