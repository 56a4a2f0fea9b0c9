"""What the commands share: output as text or one JSON document, errors as one or two lines, Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.errors import TailorbirdError, did_you_mean

if TYPE_CHECKING:
    from search.config import RunConfig

INTERRUPTED = 130
#: Characters of one line of an error.
LONGEST_LINE = 400
#: Stands for a secret in what is stored.
HIDDEN = "..."


class Interrupted(TailorbirdError):
    """The user stopped the run; its state is saved."""

    exit_code = INTERRUPTED


@dataclass
class Session:
    """How this call of the command line wants to be answered; set before flags are parsed."""

    json: bool = False
    debug: bool = False
    quiet: bool = False
    verbose: bool = False
    resume_hint: str | None = None
    answered: bool = False


session = Session()


def configure(arguments: list[str]) -> None:
    """Reads the flags that shape every answer, an error of the parser's included."""
    before_dashes = arguments[: arguments.index("--")] if "--" in arguments else arguments
    session.json = "--json" in before_dashes
    session.debug = "--debug" in before_dashes
    session.quiet = session.verbose = False
    session.resume_hint = None
    session.answered = False


def say(text: str) -> None:
    """The result, on stdout."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Everything else, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def answer(document: Any, text: Callable[[], str]) -> None:
    """One JSON document with `--json`, else text."""
    session.answered = True
    say(json.dumps(_finite(document), indent=1, ensure_ascii=False) if session.json else text())


def _finite(value: Any) -> Any:
    """The document with null for what JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def exit_code_of(error: BaseException) -> int | None:
    """The exit code an error of ours carries, 2 for the parser's; None for one that nobody foresaw."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if hasattr(error, "format_message"):
        return 2
    code = getattr(error, "exit_code", None)
    return code if isinstance(code, int) else None


def report_error(error: BaseException) -> int:
    """Tells of an error the way the flags ask for; the exit code. Stdout has one JSON document at most."""
    known = exit_code_of(error)
    if session.debug:
        import traceback

        traceback.print_exception(error)
    message, hint = words_of(error, known is not None)
    code = 1 if known is None else known
    if session.json and not session.answered:
        fields = {"type": type(error).__name__, "message": message, "hint": hint, "exit_code": code}
        say(json.dumps({"error": fields}, indent=1, ensure_ascii=False))
    else:
        note(f"search: {message}" + (f"\n        {hint}" if hint else ""))
    return code


def end_on_interrupt() -> None:
    """Ctrl-C ends the program at once, until a run begins that has something to save.

    An exception instead would be raised inside whatever is being imported, which may swallow or mangle it.
    """

    def end(number: int, frame: object) -> None:
        be_left_alone()
        report_error(KeyboardInterrupt())
        os._exit(INTERRUPTED)

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, end)


def be_left_alone() -> None:
    """One more Ctrl-C would only spoil the last words of a program that is ending anyway."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def words_of(error: BaseException, known: bool) -> tuple[str, str | None]:
    """(what is wrong, what to do) of an error, a line each. What it repeats of somebody's file is shortened,
    and steers no terminal."""
    message, hint = _words(error, known)
    return _plain(message), None if hint is None else _plain(hint)


def _plain(text: str) -> str:
    shown = text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE - 60]} ... {text[-50:]}"
    return "".join(c if c.isprintable() else "?" for c in shown)


def _words(error: BaseException, known: bool) -> tuple[str, str | None]:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", session.resume_hint
    if hasattr(error, "format_message"):
        return _parser_words(error), "`search --help` lists commands and flags."
    if known:
        first, _, rest = str(error).partition("\n")
        return first, rest.replace("\n", " ").strip() or None
    if isinstance(error, MemoryError):
        return "out of memory", "Use fewer --workers or a smaller --batch."
    text = " ".join(str(error).split())
    return f"internal error: {type(error).__name__}: {text}"[
        :400
    ], "Run it again with --debug for the traceback."


def _parser_words(error: Any) -> str:
    option, near = getattr(error, "option_name", None), getattr(error, "possibilities", None)
    if option and near:
        return f"no such option: {option}. {did_you_mean(option, near)}".rstrip()
    return str(error.format_message()).replace("\n", " ")


@contextlib.contextmanager
def stop_on_interrupt(notice: Callable[[str], None], what: str = "evaluation") -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second raises KeyboardInterrupt where the program stands.

    `what` is in flight and ends first, as the notice says.
    """
    stop = threading.Event()

    def first(number: int, frame: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        notice(f"stopping after the {what} in flight; Ctrl-C again aborts it")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, first)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def way_on(config: RunConfig, before: Path | None, after: Path | None) -> str | None:
    """What to do after an abort; nothing where no journal (or group of them) began. ``before``, ``after``:
    the one that a run of this config appends to, as it was found then and now."""
    if after is None or (after == before and config.resume is None):
        return None
    name = config.resume or config.out or "latest"
    return f"What was finished is saved; go on with `search --resume {name}`."


def as_typed(arguments: Sequence[str]) -> tuple[str, ...]:
    """The command for a person to read again, without the secrets that were in it."""
    from search.pool_address import without_password

    shown = ["search"]
    for before, text in zip(["", *arguments], arguments, strict=False):
        if before == "--token":
            text = HIDDEN
        for start in ("--token=", "token=", "--set=token="):
            if text.startswith(start):
                text = start + HIDDEN
        shown.append(without_password(text))
    return tuple(shown)


def leave_quietly() -> None:
    """Whoever read stdout is gone; nothing may be said at exit either."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def merged(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flags that were given: what is None, False or empty was not."""
    return {k: v for k, v in values.items() if not (v is None or v is False or v in ([], ()))}
