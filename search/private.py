"""Folders that are this user's alone: what libraries pickle of their own state lies there and nowhere else.

Ray Tune unpickles its own state to go on with it. A run's folder may come from anybody, so that state is not
kept there but in the user's cache folder, under a name that follows from the run's journal and place. It is
read only where no one else may write, and only as long as the run is under way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import time
from pathlib import Path

from .errors import InputError
from .journal import Journal
from .runfolder import RunFolder, told_clearly

#: Seconds after which what an abandoned run left is dropped.
OLD = 30 * 24 * 3600.0
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def place_of(folder: RunFolder, journal: Journal) -> Path:
    """Where the state of a run that is under way is kept; another for each copy of the run's folder."""
    first = journal.records[0]
    text = json.dumps([first.at, first.data, str(folder.path.resolve())], sort_keys=True, default=str)
    return _root() / hashlib.sha256(text.encode()).hexdigest()[:32]


def claimed(place: Path, again: bool) -> bool:
    """Make a place of `place_of` this user's own and empty, or (``again``) leave in it what is there.

    Whether anything is there to go on with. Raises InputError where others may write.
    """
    root = place.parent
    with told_clearly("create", root):
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_private(root)
    _drop_old(root)
    if not again:
        forget(place)
    with told_clearly("create", place):
        place.mkdir(exist_ok=True, mode=0o700)
    check_private(place)
    return any(place.iterdir())


def forget(place: Path) -> None:
    """Drop what was kept; nothing to do where nothing was."""
    if place.is_symlink():
        place.unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)


def check_private(path: Path) -> None:
    """Raises InputError unless ``path`` is a folder, no link, of this user, where nobody else may write."""
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_WRITE:
        return
    raise InputError(
        f"{str(path)!r} is not this user's alone: what lies there could be code of somebody else.",
        "Remove it, or make it yours: chmod 700.",
    )


def _root() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("tailorbird") / "recovery"


def _drop_old(root: Path) -> None:
    for path in root.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > OLD:
                forget(path)


__all__ = ["check_private", "claimed", "forget", "place_of"]
