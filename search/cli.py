"""The command line. Only what `--help` needs is imported here; torch and the like come with the work."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from search.cli_commands import COMMANDS
from search.cli_help import GroupedCommand, GroupedGroup
from search.cli_pool import POOL_COMMANDS
from search.cli_run import search_command
from search.cli_support import (
    INTERRUPTED,
    be_left_alone,
    configure,
    end_on_interrupt,
    leave_quietly,
    report_error,
)


def make_app() -> typer.Typer:
    """The application: `search` with its flags, and the commands below it."""
    app = typer.Typer(
        name="search",
        cls=GroupedGroup,
        rich_markup_mode=None,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(search_command)
    for command in COMMANDS:
        app.command(command.__name__, cls=GroupedCommand)(command)
    pool = typer.Typer(
        cls=GroupedGroup, rich_markup_mode=None, help="Show the pool of evaluations, or move it."
    )
    for name, about_pool in POOL_COMMANDS.items():
        pool.command(name, cls=GroupedCommand)(about_pool)
    app.add_typer(pool, name="pool")
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit code. Nothing escapes but through it."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    configure(given)
    if arguments is None:  # the program is this call
        end_on_interrupt()
    try:
        code = make_app()(args=given, prog_name="search", standalone_mode=False)
        if code == INTERRUPTED:  # typer's word for a KeyboardInterrupt
            raise KeyboardInterrupt
        sys.stdout.flush()
    except BrokenPipeError:
        leave_quietly()
        return 0
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException as error:
        if arguments is None:
            be_left_alone()
        return report_error(error)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
