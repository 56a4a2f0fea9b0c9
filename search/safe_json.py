"""JSON from outside: no more than expected, no deeper than Python can go, and numbers that are numbers.

Python's reader takes `NaN`, `Infinity` and `1e999`, which JSON lacks and comparisons go wrong with; it knows
no largest size, and raises three kinds of errors. Here there is one.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from .errors import InputError

#: Bytes of a policy or a config, at most: a network of 10,000 layers has one of 1 MB.
DOCUMENT_BYTES = 16 << 20


def parse_json(text: str | bytes, most: int = DOCUMENT_BYTES) -> Any:
    """The value of a JSON text of at most ``most`` bytes (or characters). Raises ValueError, one line."""
    if len(text) > most:
        raise ValueError(f"it is larger than {most >> 20 or most} {'MB' if most >> 20 else 'bytes'}")
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, most: int = DOCUMENT_BYTES, hint: str | None = None) -> Any:
    """The value of a JSON file. Raises InputError; ``hint`` says what to do where it cannot be read."""
    content = read_limited(path, most, hint)
    try:
        return parse_json(content, most)
    except ValueError as problem:
        raise InputError(f"{str(path)!r} is not JSON: {problem}.") from problem


def read_limited(path: Path, most: int, hint: str | None = None) -> bytes:
    """The bytes of a regular file of at most ``most``. Raises InputError."""
    try:
        if path.exists() and not path.is_file():  # a pipe or a device would never end
            raise InputError(f"{str(path)!r} is not a file.", hint)
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as problem:
        raise InputError(f"cannot read {str(path)!r}: {problem.strerror}.", hint) from problem
    if len(content) > most:
        raise InputError(f"{str(path)!r} is larger than {most >> 20} MB.", hint)
    return content


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no finite number")
    return value


__all__ = ["DOCUMENT_BYTES", "parse_json", "read_json", "read_limited"]
