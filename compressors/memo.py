"""Small results of linear algebra, remembered between policies."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Hashable, Sequence

from torch import Tensor

#: Bytes a memo may hold: the inverse covariances of a transformer of six layers, and what came of them.
LIMIT = 384 << 20
#: The share of this machine's memory that anything remembered may be at most.
_SHARE = 16


def within_memory(limit: int) -> int:
    """A limit in bytes, or this machine's share of its memory where that is less."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return limit
    return min(limit, memory // _SHARE)


def nbytes(values: Sequence[Tensor]) -> int:
    """Memory of some tensors."""
    return sum(v.numel() * v.element_size() for v in values)


class Memo:
    """Tuples of tensors by key; the least recently used is dropped first. Nobody may change what it holds."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = within_memory(LIMIT) if limit is None else limit
        self.used = 0
        self._held: OrderedDict[Hashable, tuple[Tensor, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable) -> tuple[Tensor, ...] | None:
        """What was put under a key, None when it is not held (any more)."""
        found = self._held.get(key)
        if found is not None:
            self._held.move_to_end(key)
        return found

    def put(self, key: Hashable, value: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Remember a value and return it."""
        if key in self._held:
            return self._held[key]
        self._held[key] = value
        self.used += nbytes(value)
        while self.used > self.limit and len(self._held) > 1:
            self.used -= nbytes(self._held.popitem(last=False)[1])
        return value
