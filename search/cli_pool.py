"""`search pool`: what the pool of evaluations holds, and moving it between machines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search import cli_run as flags
from search.cli_support import answer

if TYPE_CHECKING:
    from search.pool import Store

#: How the embedded store's file begins (https://www.sqlite.org/fileformat.html, 1.3.1).
SQLITE = b"SQLite format 3\0"

Place = Annotated[
    str | None,
    typer.Option(
        "--pool", help="A file, or postgresql://user@host/db; the usual one by default.", metavar="PATH"
    ),
]


def info(pool: Place = None, json_: flags.Json = False, debug: flags.Debug = False) -> None:
    """Show tasks, numbers of policies, and size."""
    with _opened(pool) as store:
        counts, size, place = store.counts(), store.size_bytes(), store.place
    rows = [{"digest": c.digest, **json.loads(c.to_json()), "policies": n} for c, n in counts]
    known = sum(n for _, n in counts)
    found = {"pool": place, "size_bytes": size, "policies": known, "contexts": rows}

    def text() -> str:
        from search.console import table
        from search.units import format_bytes

        cells = [["task", "network", "numerics", "compressor", "recovery", "policies"]]
        for r in rows:
            short = [str(r[k])[:12] for k in ("task", "network")]
            cells.append([*short, *(str(r[k]) for k in ("numerics", "compressor", "recovery", "policies"))])
        total = f"{counted(known, 'policy')} in {counted(len(rows), 'context')}, {format_bytes(size)}"
        return "\n".join([f"pool     {place}: {total}", *(table(cells, left=range(5)) if rows else [])])

    answer(found, text)


def export(
    file: Annotated[Path, typer.Argument(help="Write this file: .jsonl or .jsonl.gz.", metavar="FILE")],
    pool: Place = None,
    json_: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Write all of it to a file of JSON lines."""
    from search.pool_file import export_pool

    with _opened(pool) as store:
        moved = export_pool(store, file)
    _tell("wrote", "into", moved, file, store.place)


def import_(
    file: Annotated[Path, typer.Argument(help="What `search pool export` wrote.", metavar="FILE")],
    pool: Place = None,
    json_: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Add a file's evaluations; one wrong line, and nothing is added."""
    from search.pool_file import import_pool

    with _opened(pool, there=False) as store:
        moved = import_pool(store, file)
    _tell("took", "from", moved, file, store.place)


def _tell(did: str, way: str, moved: Any, file: Path, place: str) -> None:
    found = {"file": str(file), "pool": place, "contexts": moved.contexts, "policies": moved.policies}
    what = f"{counted(moved.policies, 'policy')} in {counted(moved.contexts, 'context')}"
    answer(found, lambda: f"{did:<8} {what} {way} {file}")


def counted(number: int, what: str) -> str:
    """`1 policy`, `2 policies`."""
    many = what[:-1] + "ies" if what.endswith("y") else what + "s"
    return f"{number} {what if number == 1 else many}"


@contextmanager
def _opened(place: str | None, there: bool = True) -> Iterator[Store]:
    """The pool, closed at the end. ``there``: it must be there already. Raises InputError, UsageError."""
    from search.errors import InputError, UsageError
    from search.pool import StoreError
    from search.pool_address import OFF, is_server, open_store, usual_place

    where = usual_place() if place is None else place
    if where in (OFF, ""):
        raise UsageError("--pool off names no pool.", "Give a file, or leave it out for the usual one.")
    if not is_server(where):
        _check_file(Path(where), there)
    try:
        store = open_store(where)
        try:
            yield store
        finally:
            store.close()
    except StoreError as problem:
        raise InputError(problem.message, problem.hint) from problem


def _check_file(path: Path, there: bool) -> None:
    """Refuse what a search would make, or move aside: nobody asked for that here. Raises InputError."""
    from search.errors import InputError

    try:
        with path.open("rb") as file:
            head = file.read(len(SQLITE))
    except FileNotFoundError:
        if there:
            raise InputError(
                f"there is no pool {str(path)!r}.", "A search makes one, or an import."
            ) from None
        return
    except OSError as problem:
        raise InputError(f"cannot read the pool {str(path)!r}: {problem.strerror}.") from problem
    if head != SQLITE:
        raise InputError(f"{str(path)!r} is not a pool of evaluations.", "Exported files are imported.")


#: Name -> command, in the order that the help shows them.
POOL_COMMANDS: dict[str, Callable[..., None]] = {"info": info, "export": export, "import": import_}
