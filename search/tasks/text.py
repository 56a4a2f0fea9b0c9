"""English sentences that are there wherever Tailorbird is: the docstrings of the packages it needs.

Read from the installed sources without importing them. Another version of a package has other docstrings, and
a task made of them another fingerprint: nothing that was found out with other text is mistaken for its own.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from search.errors import InputError

#: Packages whose docstrings are taken; the label of a text is the package's place here.
PACKAGES = ("numpy", "scipy", "sklearn", "torch", "matplotlib", "optuna", "ray", "gymnasium")
#: Characters that a docstring must have; bytes that a file may have, files of a package that are looked at.
SHORTEST, LARGEST, FILES = 120, 60_000, 120


@dataclass(frozen=True)
class Text:
    """One docstring.

    Attributes:
        text: with its line breaks made spaces.
        label: the package, as its place in `PACKAGES`.
        file: `package/inside.py`, by which parts of the data are told apart.
    """

    text: str
    label: int
    file: str


def docstrings(packages: Sequence[str] = PACKAGES, most: int = 400) -> list[Text]:
    """At most ``most`` different docstrings a package, in an order that depends on the sources alone.

    Raises InputError for a package that is not installed.
    """
    found: dict[str, Text] = {}
    for label, package in enumerate(packages):
        before = len(found)
        for path, name in _sources(package):
            for text in _documented(path):
                found.setdefault(text, Text(text, label, name))
            if len(found) - before >= most:
                break
        found = dict(list(found.items())[: before + most])
    return list(found.values())


def part_of(text: Text) -> float:
    """A number in 0..1 by which parts of data are split; the same for all docstrings of a file."""
    return int(_spread(f"part {text.file}")[:8], 16) / 2**32


def _spread(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _sources(package: str) -> list[tuple[Path, str]]:
    """(path, `package/inside.py`) of some of a package's files, tests left out, spread over all of it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"this task reads the docstrings of {package}, which is not installed.")
    root = Path(spec.submodule_search_locations[0])
    files = [p for p in root.rglob("*.py") if p.stat().st_size <= LARGEST]
    names = [p.relative_to(root.parent).as_posix() for p in files]
    names = sorted((n for n in names if "test" not in n), key=_spread)
    return [(root.parent / name, name) for name in names[:FILES]]


def _documented(path: Path) -> Iterator[str]:
    """Docstrings of a file's classes and functions; none where it cannot be read."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return
    for node in _statements(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = " ".join((ast.get_docstring(node) or "").split())
            if len(text) >= SHORTEST:
                yield text


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """As `ast.walk`, in its order, without looking into expressions: they define nothing."""
    waiting = deque([tree])
    while waiting:
        node = waiting.popleft()
        for part in ("body", "handlers", "orelse", "finalbody", "cases"):
            waiting.extend(getattr(node, part, ()))
        yield node
