"""Work shared by policies that begin alike: activations remembered where the network is one tensor wide.

Policies of one search differ in a few layers; up to the first of them every activation is the same. A prefix
is named by a digest over its operations and the very bytes of their weights, so that a hit is exact and
nothing needs to know what made the weights.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .execute import schedule
from .graph import Graph, Node

#: Bytes one cache may hold, and the share of this machine's memory it may be at most.
LIMIT = 512 << 20
_SHARE = 16


def _limit() -> int:
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return LIMIT
    return min(LIMIT, memory // _SHARE)


class PrefixCache:
    """What was computed for the beginnings of networks; the least recently used is dropped first."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = _limit() if limit is None else limit
        self.used = 0
        self.hits = 0
        self.misses = 0
        self._held: OrderedDict[bytes, tuple[int, Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: bytes) -> bool:
        return key in self._held

    def longest(self, keys: Sequence[bytes | None]) -> tuple[int, Any] | None:
        """Position and value of the last key that is held; all held keys on the way count as used."""
        found: tuple[int, Any] | None = None
        for i, key in enumerate(keys):
            if key is not None and key in self._held:
                self._held.move_to_end(key)
                found = (i, self._held[key][1])
        if found is None:
            self.misses += 1
        else:
            self.hits += 1
        return found

    def put(self, key: bytes, value: Any, size: int) -> None:
        """Remember a value of ``size`` bytes; one larger than an eighth of the cache is not kept."""
        if key in self._held or size > self.limit // 8:
            return
        self._held[key] = (size, value)
        self.used += size
        while self.used > self.limit:
            self.used -= self._held.popitem(last=False)[1][0]


def narrow_points(graph: Graph) -> dict[int, str]:
    """Positions in `schedule` after which one activation alone is alive, with its name.

    Of a run of such positions only the last counts: what follows the others is cheap.
    """
    cached: dict[int, str] | None = graph.topology.get("narrow")
    if cached is not None:
        return cached
    alive = set(graph.inputs)
    points: dict[int, str] = {}
    steps = list(schedule(graph))
    for i, (node, dead) in enumerate(steps):
        alive = (alive | set(node.outputs)) - set(dead)
        if len(alive) == 1 and i + 1 < len(steps) and alive <= set(node.outputs):
            points.pop(i - 1, None)
            points[i] = next(iter(alive))
    graph.topology["narrow"] = points
    return points


def prefix_keys(
    graph: Graph, root: bytes, weights: Mapping[str, Tensor], more: Callable[[Node], object] = lambda _: None
) -> list[bytes | None]:
    """For every position of `schedule` the prefix's digest, None where the network is not narrow.

    ``root`` tells what data flows in; ``more`` adds what else a node's result depends on: a plain value with
    a full repr, or bytes.
    """
    points = narrow_points(graph)
    digest = hashlib.blake2b(root, digest_size=16)
    keys: list[bytes | None] = []
    for i, (node, _) in enumerate(schedule(graph)):
        attrs = sorted(node.attrs.items())
        digest.update(repr((node.op, node.inputs, node.outputs, attrs, more(node))).encode())
        for name in node.inputs:
            if name in weights:
                digest.update(content(weights[name]))
        keys.append(digest.digest() if i in points else None)
    return keys


def content(value: Tensor) -> bytes:
    """Shape and raw bytes of a tensor, whatever its layout."""
    value = value.detach()
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
        value = value.permute(0, 2, 3, 1)
    value = value.contiguous()
    return repr(tuple(value.shape)).encode() + value.reshape(-1).view(torch.uint8).numpy().tobytes()


__all__ = ["PrefixCache", "content", "narrow_points", "prefix_keys"]
