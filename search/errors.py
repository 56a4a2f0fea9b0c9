"""What `search` raises on purpose: one root, one class per cause, each with the command's exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class TailorbirdError(Exception):
    """The root. The message is one or two lines: what, the value, the near match, what to do next.

    `hint` holds the last of these where it is known apart from the message; `str()` shows both.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"

    def __reduce__(self) -> tuple[type[TailorbirdError], tuple[str, str | None]]:
        # Workers send errors to the driver; Exception alone would forget the hint.
        return type(self), (self.message, self.hint)


class UsageError(TailorbirdError):
    """Flags or arguments that make no sense, or not together."""

    exit_code: ClassVar[int] = 2


class InputError(TailorbirdError):
    """A network, data, a file or a policy that cannot be used."""

    exit_code: ClassVar[int] = 3


class VerificationError(TailorbirdError):
    """An exported file that does not do what the searched network does. Nothing of it is called final."""

    exit_code: ClassVar[int] = 1


class InfeasibleError(TailorbirdError):
    """No policy holds the budget."""

    exit_code: ClassVar[int] = 4


class DeviceError(TailorbirdError):
    """A device that cannot be reached, or measures too unsteadily."""

    exit_code: ClassVar[int] = 5


class ResumeError(TailorbirdError):
    """A run that cannot be resumed."""

    exit_code: ClassVar[int] = 6


class StoppedError(TailorbirdError):
    """The user stopped a run before there was anything to save."""

    exit_code: ClassVar[int] = 130


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """`Did you mean 'x'?` for the choice nearest to `name`, or the empty string where none is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    return f"Did you mean {by_lower[close[0]]!r}?" if close else ""
