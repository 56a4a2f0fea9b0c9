"""Where a pool of evaluations is: a file's path, or `postgresql://user@host/database`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pool import Store

#: What `--pool` says where nothing is to be kept, and the variable that names another default place.
OFF = "off"
VARIABLE = "TAILORBIRD_POOL"

_SERVER = re.compile(r"postgres(?:ql)?://", re.IGNORECASE)
#: `user:password@` of an address, and a `password=...` behind its question mark. A password may hold any
#: character, be it one that should have been escaped: all up to the last @ is hidden.
_IN_USER = re.compile(r"(postgres(?:ql)?://[^:@/?#]*):.*@", re.IGNORECASE | re.DOTALL)
_IN_QUERY = re.compile(r"([?&][^=&#\s]*password=)[^&#\s]*", re.IGNORECASE)


def usual_place() -> str:
    """Where the pool is: what TAILORBIRD_POOL names, else `tailorbird/pool.sqlite` under the user's data."""
    import platformdirs

    own = os.environ.get(VARIABLE)
    return own if own else str(Path(platformdirs.user_data_dir("tailorbird")) / "pool.sqlite")


def is_server(place: str) -> bool:
    """Whether a place is a PostgreSQL server's, not a file's."""
    return _SERVER.match(place) is not None


def without_password(text: str) -> str:
    """The same text with every password of a server's address left out."""
    if _SERVER.search(text) is None:
        return text
    return _IN_QUERY.sub(r"\1...", _IN_USER.sub(r"\1@", text))


def open_store(place: str | None = None) -> Store:
    """The store at a place, by default at the usual one. Raises StoreError."""
    where = usual_place() if place is None else place
    own = os.environ.get(VARIABLE, "")
    if where == without_password(own):  # a stored place, and the variable still knows the password
        where = own
    if is_server(where):
        from .pool_postgres import PostgresStore

        return PostgresStore(where)
    from .pool_sqlite import SqliteStore

    return SqliteStore(where)


__all__ = ["OFF", "VARIABLE", "is_server", "open_store", "usual_place", "without_password"]
