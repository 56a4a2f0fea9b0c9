"""Small results of linear algebra, remembered between policies."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from torch import Tensor

#: Bytes a memo may hold.
LIMIT = 128 << 20


def nbytes(values: Sequence[Tensor]) -> int:
    """Memory of some tensors."""
    return sum(v.numel() * v.element_size() for v in values)


class Memo:
    """Tuples of tensors by key; the least recently used is dropped first. Nobody may change what it holds."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
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
