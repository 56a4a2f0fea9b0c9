"""Errors of the compressors: one root, one class per cause."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CompressorError(Exception):
    """Root of this package's errors; ``exit_code`` is what the command line exits with."""

    exit_code: int = 3


class TraceError(CompressorError):
    """The network cannot be traced."""


class PolicyError(CompressorError):
    """A policy that does not fit its schema or this network."""


class NumericsError(CompressorError):
    """Weights or activations that cannot be quantised or factorised (NaN, infinite, empty)."""


def near(name: str, choices: Iterable[str]) -> str:
    """``" Did you mean 'x'?"`` for the nearest choice, "" when nothing is near."""
    found = difflib.get_close_matches(name, list(choices), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""
