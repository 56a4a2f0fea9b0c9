"""Zeros around a convolution's data: as much at the end of a dimension as at its begin, or not.

Networks that came from TensorFlow pad in an operation of its own before the convolution. A runtime that fuses
the two in floats does not between quantisers: every such pair is dequantised, padded and quantised again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .graph import Graph, Node

Sizes = tuple[int, ...]


def begins_and_ends(attrs: Mapping[str, Any]) -> tuple[Sizes, Sizes]:
    """Zeros before and behind each spatial dimension; ``padding`` holds both, or one for both."""
    padding, n = tuple(attrs["padding"]), len(attrs["stride"])
    return padding[:n], padding[-n:]


def attribute(begins: Sequence[int], ends: Sequence[int]) -> Sizes:
    """The ``padding`` of a node: one number a dimension where that will do."""
    return tuple(begins) if tuple(begins) == tuple(ends) else (*begins, *ends)


def in_convolutions(graph: Graph) -> Graph:
    """A graph whose convolutions pad for themselves what was padded with zeros before them."""
    made = graph.producer
    return graph.rebuilt([_padding_itself(n, made) if n.op == "conv" else n for n in graph.nodes])


def _padding_itself(node: Node, made: Mapping[str, Node]) -> Node:
    before = made.get(node.inputs[0])
    n = len(node.attrs["stride"])
    if before is None or before.op != "pad" or before.attrs["mode"] != "constant":
        return node
    pads = before.attrs["pads"]
    if before.attrs["value"] != 0.0 or any(pads[2 * n :]) or min(pads) < 0:
        return node
    pads = (*pads, *(0,) * (2 * n - len(pads)))[: 2 * n]  # the last dimension comes first
    begins, ends = begins_and_ends(node.attrs)
    padding = attribute(
        [b + p for b, p in zip(begins, reversed(pads[::2]), strict=True)],
        [e + p for e, p in zip(ends, reversed(pads[1::2]), strict=True)],
    )
    return node.with_(inputs=(before.inputs[0], *node.inputs[1:]), attrs={**node.attrs, "padding": padding})


__all__ = ["attribute", "begins_and_ends", "in_convolutions"]
