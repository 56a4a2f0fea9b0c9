"""Work shared by policies that begin alike: activations remembered where the network is one tensor wide.

Policies of one search differ in a few layers; up to the first of them every activation is the same. A prefix
is named by a digest over its operations and the very bytes of their weights, so that a hit is exact and
nothing needs to know what made the weights.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .execute import run, schedule
from .graph import WEIGHT_OPS, Graph, Node
from .memo import nbytes, within_memory

#: Bytes one cache may hold.
LIMIT = 512 << 20
#: Elements below which a tensor stands for itself in a digest.
_SMALL = 4096
_digests = WeakIdKeyDictionary()


class PrefixCache:
    """What was computed for the beginnings of networks; the least recently used is dropped first."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = within_memory(LIMIT) if limit is None else limit
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


def narrow_points(graph: Graph) -> dict[int, tuple[str, ...]]:
    """Positions in `schedule` after which one activation is alive, besides what no layer had a part in.

    Its name comes first, then those of the others (a transformer's mask). Of a run of such positions only
    the last counts: what follows the others is cheap.
    """
    cached: dict[int, tuple[str, ...]] | None = graph.topology.get("narrow")
    if cached is not None:
        return cached
    light = _without_layers(graph)
    alive = dict.fromkeys(graph.inputs)
    points: dict[int, tuple[str, ...]] = {}
    steps = list(schedule(graph))
    for i, (node, dead) in enumerate(steps):
        alive.update(dict.fromkeys(node.outputs))
        for name in dead:
            alive.pop(name, None)
        heavy = [t for t in alive if t not in light] or list(alive)
        if len(heavy) == 1 and i + 1 < len(steps) and heavy[0] in node.outputs:
            points.pop(i - 1, None)
            points[i] = (heavy[0], *(t for t in alive if t != heavy[0]))
    graph.topology["narrow"] = points
    return points


def _without_layers(graph: Graph) -> frozenset[str]:
    """Inputs, and activations that inputs give without a layer's weights."""
    found = set(graph.inputs)
    for node in graph.nodes:
        if node.op not in WEIGHT_OPS and found.issuperset(graph.activations_of(node)):
            found.update(node.outputs)
    return frozenset(found)


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
                digest.update(content_digest(weights[name]))
        keys.append(digest.digest() if i in points else None)
    return keys


def run_shared(
    graph: Graph, weights: Mapping[str, Tensor], inputs: Sequence[Tensor], cache: PrefixCache, root: bytes
) -> tuple[Tensor, ...]:
    """As `execute.run`, from the end of the longest beginning in the cache; ``root`` as of `prefix_keys`."""
    keys = prefix_keys(graph, root, weights)
    points = {names[0]: (keys[i], names) for i, names in narrow_points(graph).items()}
    wanted = frozenset(t for _, names in points.values() for t in names)
    found = cache.longest(keys)
    alive: dict[str, Tensor] = {} if found is None else dict(found[1])

    def hook(name: str, value: Tensor) -> Tensor:
        alive[name] = value
        key, names = points.get(name, (None, ()))
        if key is not None:
            held = {t: alive[t] for t in names}
            cache.put(key, held, nbytes([*held.values()]))
        return value

    resume = None if found is None else (found[0] + 1, found[1])
    return run(graph, weights, inputs, hook, hooked=wanted, resume=resume)


def content_digest(value: Tensor) -> bytes:
    """Digest of `content`, remembered as long as the tensor lives and nobody writes to it."""
    if value.numel() < _SMALL:
        return content(value)
    held: tuple[int, bytes] | None = _digests.get(value)
    if held is None or held[0] != value._version:
        held = value._version, hashlib.blake2b(content(value), digest_size=16).digest()
        _digests[value] = held
    return held[1]


def content(value: Tensor) -> bytes:
    """Shape and raw bytes of a tensor, whatever its layout."""
    value = value.detach()
    if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
        value = value.permute(0, 2, 3, 1)
    value = value.contiguous()
    return repr(tuple(value.shape)).encode() + value.reshape(-1).view(torch.uint8).numpy().tobytes()


__all__ = ["PrefixCache", "content", "content_digest", "narrow_points", "prefix_keys", "run_shared"]
