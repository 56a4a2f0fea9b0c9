"""`search --target A,B,C`: several targets in one search."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from search.cli_support import (
    Interrupted,
    answer,
    exit_code_of,
    say,
    session,
    stop_on_interrupt,
    way_on,
    words_of,
)

if TYPE_CHECKING:
    from search.config import RunConfig


def run_together(config: RunConfig, header: bool) -> None:
    """Searches all targets together; prints each result, then the matrix.

    Raises Interrupted after Ctrl-C and, once all is printed, the error of a target that was left out.

    ``header``: whether stdout needs the header lines.
    """
    from search import together
    from search.cli_progress import make_progress
    from search.console import render
    from search.matrix_text import matrix_lines

    together.check(config)
    before = _group_of(config)
    progress = make_progress(session.quiet or session.json, session.verbose)
    with stop_on_interrupt(progress.note) as stop:
        try:
            found = together.run(config, progress, stop, command=("search", *sys.argv[1:]))
        except KeyboardInterrupt:
            session.resume_hint = way_on(config, before, _group_of(config))
            raise
        finally:
            progress.close()
    documents = [r.results for r in found.results]
    if any(d["run"]["state"] == "interrupted" for d in documents):
        done = sum(d["search"]["evaluated"] for d in documents)
        raise Interrupted(
            f"interrupted after {done} evaluations for {len(documents)} targets, "
            f"state saved in {found.folder}",
            f"Go on with `search --resume {found.folder}`.",
        )
    if session.json:
        failed = [{"message": words_of(e, True)[0], "exit_code": exit_code_of(e)} for e in found.failed]
        answer({"runs": documents, "matrix": found.matrix, "failed": failed}, str)
    else:
        for result in found.results:
            say(render(result.results, result.folder, header=header))
        if found.matrix is not None:
            task = documents[0]["task"]
            say("\n".join(matrix_lines(found.matrix, task["metric"], task["metric_unit"])))
    if found.failed:
        raise found.failed[0]


def _group_of(config: RunConfig) -> Path | None:
    """The group that a search of this config goes on with or makes, if it is there."""
    from search.group import find_group

    found = find_group(config.resume or config.out or "latest")
    return None if found is None else found.resolve()


__all__ = ["run_together"]
