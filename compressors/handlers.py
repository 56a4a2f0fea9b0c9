"""How each of torch's operations becomes nodes of ours: one small function per operation.

A handler gets the builder, torch's node and its arguments by schema name; it emits and returns True, or
returns False when it cannot express this call, which then stays a generic ``aten`` node.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from . import moves
from .graph import ELEMENTWISE, Node
from .padding import attribute

if TYPE_CHECKING:
    from .trace import Builder

_ALIASES = frozenset(
    {
        "dropout",
        "feature_dropout",
        "contiguous",
        "clone",
        "alias",
        "detach",
        "identity",
        "lift_fresh_copy",
        "detach_",
        "feature_alpha_dropout",
        "alpha_dropout",
        "_to_copy",
        "to",
    }
)
_BINARY = {
    "add": "add",
    "sub": "sub",
    "mul": "mul",
    "div": "div",
    "true_divide": "div",
    "pow": "pow",
    "maximum": "maximum",
    "minimum": "minimum",
    "multiply": "mul",
    "subtract": "sub",
}
_RESHAPES = frozenset(
    {
        "view",
        "reshape",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "_unsafe_view",
        "view_as",
        "unsqueeze_",
        "squeeze_",
    }
)
IGNORED = frozenset(
    {
        "sym_size",
        "_assert_scalar",
        "sym_constrain_range_for_size",
        "_assert_async",
        "sym_constrain_range",
        "_assert_tensor_metadata",
    }
)


Handler = Callable[["Builder", Any, dict[str, Any]], bool]


def _tuple(value: Any, n: int) -> tuple[int, ...]:
    if value is None:
        return (0,) * n
    if isinstance(value, int):
        return (value,) * n
    found = tuple(int(v) for v in value)
    return found * n if len(found) == 1 else found


def _conv(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    weight = b.env.get(a["weight"])
    if not isinstance(weight, str) or weight not in b.weights:
        return False
    transposed = "output_padding" in a and (a.get("transposed") is not False)
    kernel = tuple(b.weights[weight].shape[2:])
    n = len(kernel)
    padding = a["padding"]
    dilation = _tuple(a["dilation"], n)
    x = b.tensor(a["input"])
    if isinstance(padding, str):
        both = [0] * n if padding == "valid" else [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        padding = attribute([p // 2 for p in both], [p - p // 2 for p in both])
    else:
        padding = _tuple(padding, n)
    attrs = {
        "stride": _tuple(a["stride"], n),
        "padding": padding,
        "dilation": dilation,
        "groups": int(a["groups"]),
    }
    if transposed:
        attrs["output_padding"] = _tuple(a["output_padding"], n)
    bias = b.tensor(a["bias"]) if a.get("bias") is not None else ""
    if bias and bias not in b.weights:
        return False
    b.emit("conv_transpose" if transposed else "conv", node, (x, weight, bias), attrs)
    return True


def _linear(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    weight = b.env.get(a["weight"])
    bias = b.tensor(a["bias"]) if a.get("bias") is not None else ""
    if not isinstance(weight, str) or weight not in b.weights or (bias and bias not in b.weights):
        return False
    b.emit("linear", node, (b.tensor(a["input"]), weight, bias))
    return True


def _batch_norm(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    if a.get("running_mean") is None or a.get("training"):
        return False
    channels = b.weights[b.tensor(a["running_mean"])].shape[0]
    weight = b.tensor(a["weight"]) if a.get("weight") is not None else b.constant(torch.ones(channels))
    bias = b.tensor(a["bias"]) if a.get("bias") is not None else b.constant(torch.zeros(channels))
    b.emit(
        "batch_norm",
        node,
        (b.tensor(a["input"]), weight, bias, b.tensor(a["running_mean"]), b.tensor(a["running_var"])),
        {"eps": float(a["eps"])},
    )
    return True


def _layer_norm(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    names = [b.tensor(a[k]) if a.get(k) is not None else "" for k in ("weight", "bias")]
    b.emit(
        "layer_norm",
        node,
        (b.tensor(a["input"]), *names),
        {"dims": len(a["normalized_shape"]), "eps": float(a["eps"])},
    )
    return True


def _group_norm(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    names = [b.tensor(a[k]) if a.get(k) is not None else "" for k in ("weight", "bias")]
    b.emit(
        "group_norm",
        node,
        (b.tensor(a["input"]), *names),
        {"groups": int(a["num_groups"]), "eps": float(a["eps"])},
    )
    return True


def _binary(op: str) -> Handler:
    def handle(b: Builder, node: Any, a: dict[str, Any]) -> bool:
        if a.get("alpha") not in (None, 1) or a.get("rounding_mode") is not None:
            return False
        first, second = (a[k] for k in list(a)[:2])
        if any(isinstance(b.env.get(v), type(None)) for v in (first, second) if isinstance(v, torch.fx.Node)):
            return False
        b.emit(op, node, (b.tensor(first, node), b.tensor(second, node)))
        return True

    return handle


def _unary(op: str, **keys: str) -> Handler:
    def handle(b: Builder, node: Any, a: dict[str, Any]) -> bool:
        attrs = {ours: a[theirs] for ours, theirs in keys.items()}
        b.emit(op, node, (b.tensor(next(iter(a.values()))),), attrs)
        return True

    return handle


def _clip(low: float | None, high: float | None) -> Handler:
    def handle(b: Builder, node: Any, a: dict[str, Any]) -> bool:
        least = a.get("min", a.get("min_val", low)) if low is None else low
        most = a.get("max", a.get("max_val", high)) if high is None else high
        if isinstance(least, torch.fx.Node) or isinstance(most, torch.fx.Node):
            return False
        attrs = {
            "min": -math.inf if least is None else float(least),
            "max": math.inf if most is None else float(most),
        }
        b.emit("clip", node, (b.tensor(next(iter(a.values()))),), attrs)
        return True

    return handle


def _axis_unary(op: str) -> Handler:
    def handle(b: Builder, node: Any, a: dict[str, Any]) -> bool:
        rank = len(node.meta["val"].shape)
        b.emit(op, node, (b.tensor(next(iter(a.values()))),), {"axis": int(a["dim"]) % rank})
        return True

    return handle


def _max_pool(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    n = len(node.meta["val"].shape) - 2
    kernel = _tuple(a["kernel_size"], n)
    b.emit(
        "max_pool",
        node,
        (b.tensor(next(iter(a.values()))),),
        {
            "kernel": kernel,
            "stride": _tuple(a["stride"] or kernel, n),
            "padding": _tuple(a["padding"], n),
            "dilation": _tuple(a["dilation"], n),
            "ceil": bool(a["ceil_mode"]),
        },
    )
    return True


def _avg_pool(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    if a.get("divisor_override") is not None:
        return False
    n = len(node.meta["val"].shape) - 2
    kernel = _tuple(a["kernel_size"], n)
    b.emit(
        "avg_pool",
        node,
        (b.tensor(next(iter(a.values()))),),
        {
            "kernel": kernel,
            "stride": _tuple(a["stride"] or kernel, n),
            "padding": _tuple(a["padding"], n),
            "ceil": bool(a["ceil_mode"]),
            "count_include_pad": bool(a["count_include_pad"]),
        },
    )
    return True


def _adaptive_pool(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    x = b.tensor(next(iter(a.values())))
    spatial = b.tensors[x].shape[2:]
    n = len(spatial)
    size = tuple(s if o is None else int(o) for o, s in zip(a["output_size"], spatial, strict=True))
    if all(s == 1 for s in size):
        b.emit("mean", node, (x,), {"axes": tuple(range(2, 2 + n)), "keepdim": True})
        return True
    if any(s % o for s, o in zip(spatial, size, strict=True)):
        return False
    kernel = tuple(s // o for s, o in zip(spatial, size, strict=True))
    b.emit(
        "avg_pool",
        node,
        (x,),
        {"kernel": kernel, "stride": kernel, "padding": (0,) * n, "ceil": False, "count_include_pad": True},
    )
    return True


def _mean(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    x = b.tensor(next(iter(a.values())))
    rank = len(b.tensors[x].shape)
    if not a.get("dim"):
        return False
    axes = tuple(sorted(int(d) % rank for d in a["dim"]))
    b.emit("mean", node, (x,), {"axes": axes, "keepdim": bool(a["keepdim"])})
    return True


def _upsample(mode: str) -> Handler:
    def handle(b: Builder, node: Any, a: dict[str, Any]) -> bool:
        x = b.tensor(next(iter(a.values())))
        before, after = b.tensors[x].shape[2:], b.shape(node.meta["val"].shape)[2:]
        scale = tuple(o / i for o, i in zip(after, before, strict=True))
        if any(s != int(s) for s in scale):
            return False
        b.emit(
            "upsample",
            node,
            (x,),
            {
                "mode": mode,
                "scale": tuple(int(s) for s in scale),
                "align_corners": bool(a.get("align_corners") or False),
            },
        )
        return True

    return handle


def _embedding(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    weight = b.tensor(a["weight"])
    if weight not in b.weights:
        return False
    b.emit("embedding", node, (b.tensor(a["indices"]), weight))
    return True


def _sdpa(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    if a.get("enable_gqa"):
        return False
    query = a["query"].meta["val"]
    scale = a.get("scale")
    mask = b.tensor(a["attn_mask"]) if a.get("attn_mask") is not None else ""
    b.emit(
        "sdpa",
        node,
        (b.tensor(a["query"]), b.tensor(a["key"]), b.tensor(a["value"]), mask),
        {
            "scale": float(scale) if scale is not None else 1.0 / math.sqrt(int(query.shape[-1])),
            "causal": bool(a["is_causal"]),
        },
    )
    return True


def _many(op: str, count: int) -> Handler:
    def handle(b: Builder, node: Any, a: dict[str, Any]) -> bool:
        b.emit(op, node, tuple(b.tensor(v) for v in list(a.values())[:count]))
        return True

    return handle


def _matmul(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    """A product with a matrix of weights is a linear layer; its weight is stored transposed."""
    first, second = (b.tensor(v) for v in list(a.values())[:2])
    if second in b.weights and first not in b.weights and b.weights[second].dim() == 2:
        b.emit("linear", node, (first, b.transposed(second), ""))
    else:
        b.emit("matmul", node, (first, second))
    return True


def _addmm(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    bias, first, second = (b.tensor(a[k]) for k in ("self", "mat1", "mat2"))
    plain = a["beta"] == 1 and a["alpha"] == 1 and bias in b.weights and b.weights[bias].dim() == 1
    if not plain or second not in b.weights or first in b.weights:
        return False
    b.emit("linear", node, (first, b.transposed(second), bias))
    return True


def _glu(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    """x[:half] * sigmoid(x[half:])."""
    x, kind = b.tensor(a["self"]), b._type_of(node)
    axis = int(a["dim"]) % len(kind.shape)
    names = (f"{node.name}_value", f"{node.name}_logit")
    b.nodes.append(Node("split", f"{node.name}_split", (x,), names, {"axis": axis}))
    b.tensors.update(dict.fromkeys(names, kind))
    gate = b.emit_as("sigmoid", f"{node.name}_gate", (names[1],), kind, {})
    b.emit("mul", node, (names[0], gate))
    return True


def _alias(b: Builder, node: Any, a: dict[str, Any]) -> bool:
    source = next(iter(a.values()))
    if source.meta["val"].dtype != node.meta["val"].dtype:
        return False
    b.env[node] = b.env[source]
    return True


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(_ALIASES, _alias),
    **{name: _binary(op) for name, op in _BINARY.items()},
    **dict.fromkeys(_RESHAPES, moves.reshape_call),
    **{name: _unary(name) for name in ELEMENTWISE},
    **dict.fromkeys(
        (
            "conv1d",
            "conv2d",
            "conv3d",
            "convolution",
            "conv_transpose1d",
            "conv_transpose2d",
            "conv_transpose3d",
        ),
        _conv,
    ),
    **dict.fromkeys(("permute", "transpose", "t", "numpy_T"), moves.permute_call),
    **{f"max_pool{n}d": _max_pool for n in (1, 2, 3)},
    **{f"avg_pool{n}d": _avg_pool for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": _adaptive_pool for n in (1, 2, 3)},
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split"), moves.split_call),
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "hardtanh": _clip(None, None),
    "clamp": _clip(None, None),
    "relu6": _clip(0.0, 6.0),
    "clamp_min": _clip(None, None),
    "leaky_relu": _unary("leaky_relu", alpha="negative_slope"),
    "elu": _unary("elu", alpha="alpha"),
    "gelu": _unary("gelu", approximate="approximate"),
    "softmax": _axis_unary("softmax"),
    "log_softmax": _axis_unary("log_softmax"),
    "cat": moves.cat_call,
    "concat": moves.cat_call,
    "stack": moves.stack_call,
    "unbind": moves.unbind_call,
    "slice": moves.slice_call,
    "select": moves.select_call,
    "mean": _mean,
    "pad": moves.pad_call,
    "embedding": _embedding,
    "scaled_dot_product_attention": _sdpa,
    "matmul": _matmul,
    "bmm": _matmul,
    "mm": _matmul,
    "addmm": _addmm,
    "glu": _glu,
    "prelu": _many("prelu", 2),
    "expand": _many("expand", 1),
    "expand_as": _many("expand", 1),
    "upsample_nearest1d": _upsample("nearest"),
    "upsample_nearest2d": _upsample("nearest"),
    "upsample_bilinear2d": _upsample("bilinear"),
}
