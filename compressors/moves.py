"""Handlers (see `compressors.handlers`) of operations that only move values: reshapes, slices, concats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .graph import Node, TensorType

if TYPE_CHECKING:
    from .trace import Builder


def tensor_type(value: torch.Tensor) -> TensorType:
    """Type of a concrete tensor."""
    return TensorType(tuple(value.shape), str(value.dtype).removeprefix("torch."))


def reshape_call(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    x = b.tensor(next(iter(a.values())))
    if b.shape(node.meta["val"].shape) == (b.tensors.get(x) or tensor_type(b.weights[x])).shape:
        b.env[node] = x
    else:
        b.emit("reshape", node, (x,))
    return True


def permute_call(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    rank = len(node.meta["val"].shape)
    perm = list(range(rank))
    if "dims" in a:
        perm = [int(d) % rank for d in a["dims"]]
    elif "dim0" in a:
        i, j = int(a["dim0"]) % rank, int(a["dim1"]) % rank
        perm[i], perm[j] = perm[j], perm[i]
    else:
        perm.reverse()
    b.emit("permute", node, (b.tensor(next(iter(a.values()))),), {"perm": tuple(perm)})
    return True


def cat_call(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    rank = len(node.meta["val"].shape)
    b.emit("cat", node, tuple(b.tensor(x) for x in a["tensors"]), {"axis": int(a["dim"]) % rank})
    return True


def stack_call(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    kind = b._type_of(node)
    axis = int(a["dim"]) % len(kind.shape)
    one = TensorType((*kind.shape[:axis], 1, *kind.shape[axis + 1 :]), kind.dtype)
    parts = [
        b.emit_as("reshape", f"{node.name}_part{i}", (b.tensor(x),), one, {})
        for i, x in enumerate(a["tensors"])
    ]
    b.emit("cat", node, parts, {"axis": axis})
    return True


def split_call(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    values = node.meta["val"]
    axis = int(a["dim"]) % len(values[0].shape)
    names = [f"{node.name}_{i}" for i in range(len(values))]
    for name, v in zip(names, values, strict=True):
        b.tensors[name] = TensorType(b.shape(v.shape), str(v.dtype).removeprefix("torch."))
    b.nodes.append(
        Node("split", node.name, (b.tensor(next(iter(a.values()))),), tuple(names), {"axis": axis})
    )
    b.env[node] = names
    return True


def unbind_call(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    values = node.meta["val"]
    axis = int(a["dim"]) % (len(values[0].shape) + 1)
    x = b.tensor(next(iter(a.values())))
    kind = TensorType(b.shape(values[0].shape), str(values[0].dtype).removeprefix("torch."))
    b.env[node] = [
        b.emit_as("select", f"{node.name}_{i}", (x,), kind, {"axis": axis, "index": i})
        for i in range(len(values))
    ]
    return True


def slice_call(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    x = b.tensor(next(iter(a.values())))
    kind = b.tensors.get(x) or tensor_type(b.weights[x])
    axis = int(a["dim"] or 0) % len(kind.shape)
    size = kind.shape[axis]
    start, end = a["start"], a["end"]
    whole = start in (None, 0) and (end is None or (isinstance(end, int) and end > 1 << 40))
    if isinstance(start, torch.fx.Node) or isinstance(end, torch.fx.Node):
        return False
    if whole and a["step"] == 1:
        b.env[node] = x
        return True
    if size < 0:
        return False
    begin, stop, _ = slice(start, end, a["step"]).indices(size)
    b.emit("slice", node, (x,), {"axis": axis, "start": begin, "end": stop, "step": int(a["step"])})
    return True


def select_call(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    x = b.tensor(next(iter(a.values())))
    kind = b.tensors.get(x) or tensor_type(b.weights[x])
    axis = int(a["dim"]) % len(kind.shape)
    if kind.shape[axis] < 0 or isinstance(a["index"], torch.fx.Node):
        return False
    b.emit("select", node, (x,), {"axis": axis, "index": int(a["index"]) % kind.shape[axis]})
    return True


def pad_call(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    value = a.get("value")
    if any(not isinstance(p, int) for p in a["pad"]):
        return False
    b.emit(
        "pad",
        node,
        (b.tensor(next(iter(a.values()))),),
        {
            "pads": tuple(int(p) for p in a["pad"]),
            "mode": a.get("mode") or "constant",
            "value": float(value or 0.0),
        },
    )
    return True
