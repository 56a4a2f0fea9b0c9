"""YAML from outside: plain values only, and no document that unfolds into more than it is.

`safe_load` makes no objects, but it follows aliases: a few lines of lists of lists of aliases are billions of
values for whoever walks through them, and an alias inside what it names has no end. Both are told from the
nodes, before any value is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

#: Bytes of a file, and values in it with every alias counted as what it stands for. The largest file that
#: comes with the program has 30 kB and 3,000 values.
FILE_BYTES = 4 << 20
MOST_VALUES = 200_000
#: Lists in lists.
DEEPEST = 100

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class UnsafeYamlError(yaml.YAMLError):
    """YAML that is too large, too deep, or unfolds without end."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML document. Raises yaml.YAMLError for all that is wrong with it."""
    if len(text) > FILE_BYTES:
        raise UnsafeYamlError(f"it is larger than {FILE_BYTES >> 20} MB")
    try:
        loader = _LOADER(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _Counter().check(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise UnsafeYamlError("it is nested too deeply") from None
    except yaml.YAMLError:
        raise
    except (ValueError, OverflowError, TypeError, AttributeError, KeyError, IndexError) as problem:
        # Of dates that are none, numbers of too many digits, and keys that cannot be keys.
        raise UnsafeYamlError(f"a value that cannot be read: {problem}") from problem


def read_yaml_file(path: Path) -> Any:
    """The value of a YAML file. Raises OSError, UnicodeDecodeError, yaml.YAMLError."""
    if path.exists() and not path.is_file():
        raise UnsafeYamlError("it is not a file")
    with path.open("rb") as file:
        content = file.read(FILE_BYTES + 1)
    if len(content) > FILE_BYTES:
        raise UnsafeYamlError(f"it is larger than {FILE_BYTES >> 20} MB")
    return parse_yaml(content.decode("utf-8"))


class _Counter:
    """Counts the values of a node with all aliases unfolded; every node is looked at once."""

    def __init__(self) -> None:
        self._sizes: dict[int, int] = {}
        self._inside: set[int] = set()

    def check(self, node: yaml.Node) -> None:
        if self._size(node, 0) > MOST_VALUES:
            raise UnsafeYamlError(f"it unfolds into more than {MOST_VALUES} values")

    def _size(self, node: yaml.Node, depth: int) -> int:
        key = id(node)
        if key in self._sizes:
            return self._sizes[key]
        if key in self._inside:
            raise UnsafeYamlError("an alias stands inside what it names")
        if depth > DEEPEST:
            raise UnsafeYamlError("it is nested too deeply")
        self._inside.add(key)
        children: list[yaml.Node] = []
        if isinstance(node, yaml.SequenceNode):
            children = node.value
        elif isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        self._sizes[key] = 1 + sum(self._size(child, depth + 1) for child in children)
        self._inside.discard(key)
        return self._sizes[key]


__all__ = ["UnsafeYamlError", "parse_yaml", "read_yaml_file"]
