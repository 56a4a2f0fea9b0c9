"""Where compressors are registered: one table a kind, each entry with a name and one line about it.

A third party adds to a table by the decorator of its kind (`factorisation`, `criterion`, `range_method`,
`weight_scale`) in a module that is imported in every process that compresses: the file of a task is one, and
so is any module that an installed package names under the entry point group ``tailorbird.compressors``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from .errors import CompressorError, PolicyError, near

#: Entry point group; each entry names a module that registers compressors when it is imported.
GROUP = "tailorbird.compressors"

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Name to compressor, in order of registration; read-only but for `register`.

    ``modules`` hold the built-in ones and are imported at the first look; ``function_of`` gives the
    function whose docstring says in its first line what a compressor is.
    """

    def __init__(
        self, kind: str, modules: tuple[str, ...] = (), function_of: Callable[[T], Any] = lambda x: x
    ) -> None:
        self.kind = kind
        self._modules = modules
        self._function_of = function_of
        self._held: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str, item: T) -> None:
        """Add a compressor. Raises CompressorError when another one has the name.

        The same function may come again, as when a task's file is executed twice.
        """
        held = self._held.get(name)
        if held is not None and self._origin(held) != self._origin(item):
            raise CompressorError(f"a {self.kind} {name!r} is registered already. Choose another name.")
        self._held[name] = item

    def find(self, name: str) -> T:
        """The compressor of that name. Raises PolicyError with the near match."""
        found = self._held.get(name)
        if found is not None:
            return found
        self._load()
        if name not in self._held:
            near_match = near(name, self) or f" There are {', '.join(self)}."
            raise PolicyError(f"unknown {self.kind} {name!r}.{near_match}")
        return self._held[name]

    def summary(self, name: str) -> str:
        """One line about a compressor."""
        text = self._function_of(self.find(name)).__doc__ or ""
        return text.strip().splitlines()[0].strip() if text.strip() else ""

    def summaries(self) -> dict[str, str]:
        """Name to one line."""
        return {name: self.summary(name) for name in self}

    @contextmanager
    def having(self, name: str, item: T) -> Iterator[str]:
        """For tests: inside the block ``name`` means ``item``, whatever it meant before."""
        self._load()
        before = dict(self._held)
        self._held[name] = item
        try:
            yield name
        finally:
            self._held = before

    def __getitem__(self, name: str) -> T:
        self._load()
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._held)

    def __len__(self) -> int:
        self._load()
        return len(self._held)

    def _origin(self, item: T) -> tuple[str, str]:
        function = self._function_of(item)
        code = getattr(function, "__code__", None)
        return str(getattr(code, "co_filename", id(function))), str(getattr(function, "__qualname__", ""))

    def _load(self) -> None:
        if not self._loaded:
            self._loaded = True
            for module in self._modules:
                import_module(module)
            load_plugins()


_plugins_loaded = False


def load_plugins() -> None:
    """Import what installed packages name under `GROUP`, once a process.

    Raises CompressorError for one that cannot be imported.
    """
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    for point in sorted(entry_points(group=GROUP), key=lambda p: (p.name, p.value)):
        try:
            point.load()
        except Exception as problem:
            raise CompressorError(
                f"the compressors {point.name!r} ({point.value}) cannot be loaded: {problem}. "
                "Repair or uninstall the package they come with."
            ) from problem


__all__ = ["GROUP", "Registry", "load_plugins"]
