"""Data and weights that come with packages: found without importing them, checked before they are read."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

from search.errors import InputError


def package_file(package: str, inside: str, sha256: str, install: str) -> Path:
    """A file of an installed package that is the very one a task was made with.

    Args:
        package: as it is imported; it is not, since what it depends on may be missing.
        inside: the file's path inside it.
        sha256: of the file's content, in hex.
        install: what brings the package, for the message.
    Raises:
        InputError: the package or the file is missing, or the content is another.
    """
    found = importlib.util.find_spec(package)
    folders = None if found is None else found.submodule_search_locations
    if not folders:
        raise InputError(f"this task needs a file of {package}, which is not installed: {install}")
    path = Path(folders[0]) / inside
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{package}'s file {inside} cannot be read: {error.strerror}; {install}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(f"{package}'s file {inside} is not the one this task was made with; {install}")
    return path
