"""From an eager torch network to a `Graph`, by torch.export.

Operations and their attributes (inputs in parentheses; "" where absent):

conv (x, w, b): stride, padding, dilation, groups. conv_transpose (x, w, b): also output_padding.
linear (x, w, b). matmul (a, b). batch_norm (x, w, b, mean, var): eps. layer_norm (x, w, b): dims, eps.
group_norm (x, w, b): groups, eps. add, sub, mul, div, pow, maximum, minimum (a, b). cat (...): axis.
split (x) -> several: axis. slice (x): axis, start, end, step. select (x): axis, index.
reshape (x): to the shape of its output. permute (x): perm. expand (x): to the shape of its output.
max_pool (x): kernel, stride, padding, dilation, ceil. avg_pool (x): kernel, stride, padding, ceil,
count_include_pad. mean (x): axes, keepdim. pad (x): pads (torch order), mode, value.
upsample (x): mode, scale, align_corners. embedding (ids, w). prelu (x, w).
sdpa (q, k, v, mask): scale, causal. softmax, log_softmax (x): axis. clip (x): min, max.
leaky_relu, elu (x): alpha. gelu (x): approximate. Elementwise without attributes: see ``ELEMENTWISE``.
aten (...): any other operation: target, and its arguments, with ``Ref(i)`` for input i; left dense.
"""

from __future__ import annotations

import logging
import math
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .errors import NumericsError, TraceError
from .graph import Graph, Node, Shape, TensorType

ELEMENTWISE = frozenset(
    {
        "relu",
        "sigmoid",
        "tanh",
        "exp",
        "sqrt",
        "rsqrt",
        "neg",
        "abs",
        "erf",
        "log",
        "sin",
        "cos",
        "reciprocal",
        "hardswish",
        "hardsigmoid",
        "silu",
        "mish",
        "softplus",
        "floor",
    }
)
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
_IGNORED = frozenset(
    {
        "sym_size",
        "_assert_scalar",
        "sym_constrain_range_for_size",
        "_assert_async",
        "sym_constrain_range",
        "_assert_tensor_metadata",
    }
)


@dataclass(frozen=True)
class Ref:
    """Stands for input number ``index`` inside the arguments of an ``aten`` node."""

    index: int


@dataclass(frozen=True)
class Traced:
    """A graph and its weights (parameters, buffers and constants, detached, float32 kept as is)."""

    graph: Graph
    weights: dict[str, torch.Tensor]


def trace(network: nn.Module, example: Sequence[torch.Tensor]) -> Traced:
    """Trace an eval-mode network on an example batch (first dimension: batch).

    Raises TraceError when torch.export cannot follow the network, NumericsError when a weight is not
    finite. A network that cannot take another batch size is traced for the example's.
    """
    _check_weights(network)
    program, fixed = _export(network.eval(), tuple(example))
    return _Builder(program, fixed).build()


def _check_weights(network: nn.Module) -> None:
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise NumericsError(
                f"weight {name!r} holds NaN or infinite values; check the checkpoint before compressing it."
            )


def _export(network: nn.Module, example: tuple[torch.Tensor, ...]) -> tuple[Any, int | None]:
    two = tuple(torch.cat([x, x]) if x.shape[0] == 1 else x for x in example)
    logging.getLogger("torch").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            batch = torch.export.Dim("batch")
            shapes = tuple({0: batch} for _ in two)
            return torch.export.export(network, two, dynamic_shapes=shapes, strict=False), None
        except Exception:
            pass  # many networks fix their batch size; the attempt below says what is really wrong
        try:
            return torch.export.export(network, example, strict=False), example[0].shape[0]
        except Exception as problem:
            line = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
            raise TraceError(
                f"torch.export cannot trace {type(network).__name__}: {line[:200]}. "
                "Data-dependent Python control flow has to be removed first."
            ) from problem


class _Builder:
    """Walks an exported program once and emits our nodes."""

    def __init__(self, program: Any, fixed: int | None) -> None:
        self.program = program
        self.fixed = fixed
        self.nodes: list[Node] = []
        self.tensors: dict[str, TensorType] = {}
        self.weights: dict[str, torch.Tensor] = {}
        self.env: dict[Any, Any] = {}  # fx node -> tensor name, list of names, or a Python number
        self.counter = 0

    def build(self) -> Traced:
        self._placeholders()
        outputs: list[str] = []
        for node in self.program.graph.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                outputs = [self.env[x] for x in _flatten(node.args[0]) if x is not None]
        graph = Graph(
            tuple(self.nodes),
            self.inputs,
            tuple(outputs),
            self.tensors,
            {k: _type(v) for k, v in self.weights.items()},
            self.fixed,
        )
        graph = graph.rebuilt(self.nodes)
        return Traced(graph, {k: self.weights[k] for k in graph.params})

    def _placeholders(self) -> None:
        signature = self.program.graph_signature
        owned = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        state = {**dict(self.program.state_dict), **dict(self.program.constants)}
        inputs = []
        seen: dict[int, str] = {}
        for node in self.program.graph.nodes:
            if node.op != "placeholder":
                continue
            if node.name in owned:
                value = state[owned[node.name]].detach()
                name = (
                    seen.setdefault(value.data_ptr() or id(value), owned[node.name])
                    if value.is_floating_point() and value.numel()
                    else owned[node.name]
                )
                if name in self.weights and self.weights[name].shape != value.shape:
                    name = owned[node.name]
                self.weights[name] = value
                self.env[node] = name
            else:
                self.env[node] = node.name
                self.tensors[node.name] = self._type_of(node)
                inputs.append(node.name)
        self.inputs = tuple(inputs)

    # -- helpers for the handlers

    def tensor(self, value: Any, like: Any = None) -> str:
        """Name of an operand; a Python number becomes a constant of the type of ``like``."""
        if isinstance(value, torch.fx.Node):
            found = self.env[value]
            if isinstance(found, str):
                return found
            value = found
        dtype = (
            like.meta["val"].dtype
            if like is not None and hasattr(like.meta.get("val"), "dtype")
            else torch.float32
        )
        return self.constant(torch.tensor(value, dtype=dtype))

    def constant(self, value: torch.Tensor) -> str:
        name = f"constant_{self.counter}"
        self.counter += 1
        self.weights[name] = value
        return name

    def emit(self, op: str, node: Any, inputs: Sequence[str], attrs: Mapping[str, Any] | None = None) -> None:
        self.nodes.append(Node(op, node.name, tuple(inputs), (node.name,), dict(attrs or {})))
        self.tensors[node.name] = self._type_of(node)
        self.env[node] = node.name

    def emit_as(
        self, op: str, name: str, inputs: Sequence[str], kind: TensorType, attrs: Mapping[str, Any]
    ) -> str:
        self.nodes.append(Node(op, name, tuple(inputs), (name,), dict(attrs)))
        self.tensors[name] = kind
        return name

    def _type_of(self, node: Any) -> TensorType:
        value = node.meta["val"]
        return TensorType(self.shape(value.shape), str(value.dtype).removeprefix("torch."))

    def shape(self, sizes: Sequence[Any]) -> Shape:
        """Sizes with the batch symbol written as negative multiples."""
        found = []
        for d in sizes:
            expr = d.node.expr if isinstance(d, torch.SymInt) else d
            if not isinstance(d, torch.SymInt) or not expr.free_symbols:
                found.append(int(d))
                continue
            one = expr.subs(dict.fromkeys(expr.free_symbols, 1))
            two = expr.subs(dict.fromkeys(expr.free_symbols, 2))
            if len(expr.free_symbols) != 1 or two != 2 * one:
                raise TraceError(
                    f"a size depends on the batch as {expr}; only multiples can be handled. "
                    "Split the network before that operation."
                )
            found.append(-int(one))
        return tuple(found)

    # -- dispatch

    def _call(self, node: Any) -> None:
        target = node.target
        if target is operator.getitem:
            self.env[node] = self.env[node.args[0]][node.args[1]]
            return
        if not isinstance(target, torch._ops.OpOverload):
            self.env[node] = None  # arithmetic on sizes: shapes are taken from the outputs
            return
        name = target._schema.name.split("::")[-1]
        in_place = name.endswith("_") and not name.endswith("__")
        base = name.rstrip("_") if in_place else name
        if base in _IGNORED:
            self.env[node] = None
            return
        if self._fold_constant(node):
            return
        handler = _HANDLERS.get(base)
        done = handler is not None and handler(self, node, _arguments(node))
        if not done:
            self._generic(node)
        if in_place:  # later reads of the argument see the new value
            self.env[node.args[0]] = self.env[node]

    def _fold_constant(self, node: Any) -> bool:
        """Operations on no tensor at all (arange, zeros of a fixed size) are evaluated now."""
        if node.all_input_nodes or not hasattr(node.meta.get("val"), "shape"):
            return False
        self.env[node] = self.constant(node.target(*node.args, **node.kwargs))
        return True

    def _generic(self, node: Any) -> None:
        inputs: list[str] = []

        def replaced(value: Any) -> Any:
            if isinstance(value, torch.fx.Node):
                named = self.env[value]
                if not isinstance(named, str):
                    size = value.meta.get("val")
                    if isinstance(size, torch.SymInt) or named is None:
                        raise TraceError(
                            f"operation {node.target} reads a size that depends on the batch; "
                            "it cannot be handled."
                        )
                    return named
                inputs.append(named)
                return Ref(len(inputs) - 1)
            if isinstance(value, list | tuple):
                return tuple(replaced(v) for v in value)
            return value

        args = tuple(replaced(a) for a in node.args)
        kwargs = tuple((k, replaced(v)) for k, v in node.kwargs.items())
        attrs = {"target": str(node.target), "args": args, "kwargs": kwargs}
        value = node.meta["val"]
        if isinstance(value, list | tuple):
            names = [f"{node.name}_{i}" for i in range(len(value))]
            for part, v in zip(names, value, strict=True):
                self.tensors[part] = TensorType(self.shape(v.shape), str(v.dtype).removeprefix("torch."))
            self.nodes.append(Node("aten", node.name, tuple(inputs), tuple(names), attrs))
            self.env[node] = names
        else:
            self.emit("aten", node, inputs, attrs)


def _type(value: torch.Tensor) -> TensorType:
    return TensorType(tuple(value.shape), str(value.dtype).removeprefix("torch."))


def _flatten(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [x for v in value for x in _flatten(v)]
    if isinstance(value, dict):
        return [x for v in value.values() for x in _flatten(v)]
    return [value]


def _arguments(node: Any) -> dict[str, Any]:
    """All arguments of a call by schema name, defaults filled in."""
    found: dict[str, Any] = {}
    for i, spec in enumerate(node.target._schema.arguments):
        if i < len(node.args):
            found[spec.name] = node.args[i]
        elif spec.name in node.kwargs:
            found[spec.name] = node.kwargs[spec.name]
        else:
            found[spec.name] = spec.default_value if spec.has_default_value() else None
    return found


_Handler = Callable[[_Builder, Any, dict[str, Any]], bool]


def _tuple(value: Any, n: int) -> tuple[int, ...]:
    if value is None:
        return (0,) * n
    if isinstance(value, int):
        return (value,) * n
    found = tuple(int(v) for v in value)
    return found * n if len(found) == 1 else found


def _conv(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
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
        if any(p % 2 for p in both):
            return False
        padding = [p // 2 for p in both]
    attrs = {
        "stride": _tuple(a["stride"], n),
        "padding": _tuple(padding, n),
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


def _linear(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
    weight = b.env.get(a["weight"])
    bias = b.tensor(a["bias"]) if a.get("bias") is not None else ""
    if not isinstance(weight, str) or weight not in b.weights or (bias and bias not in b.weights):
        return False
    b.emit("linear", node, (b.tensor(a["input"]), weight, bias))
    return True


def _batch_norm(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
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


def _layer_norm(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
    names = [b.tensor(a[k]) if a.get(k) is not None else "" for k in ("weight", "bias")]
    b.emit(
        "layer_norm",
        node,
        (b.tensor(a["input"]), *names),
        {"dims": len(a["normalized_shape"]), "eps": float(a["eps"])},
    )
    return True


def _group_norm(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
    names = [b.tensor(a[k]) if a.get(k) is not None else "" for k in ("weight", "bias")]
    b.emit(
        "group_norm",
        node,
        (b.tensor(a["input"]), *names),
        {"groups": int(a["num_groups"]), "eps": float(a["eps"])},
    )
    return True


def _binary(op: str) -> _Handler:
    def handle(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
        if a.get("alpha") not in (None, 1) or a.get("rounding_mode") is not None:
            return False
        first, second = (a[k] for k in list(a)[:2])
        if any(isinstance(b.env.get(v), type(None)) for v in (first, second) if isinstance(v, torch.fx.Node)):
            return False
        b.emit(op, node, (b.tensor(first, node), b.tensor(second, node)))
        return True

    return handle


def _unary(op: str, **keys: str) -> _Handler:
    def handle(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
        attrs = {ours: a[theirs] for ours, theirs in keys.items()}
        b.emit(op, node, (b.tensor(next(iter(a.values()))),), attrs)
        return True

    return handle


def _clip(low: float | None, high: float | None) -> _Handler:
    def handle(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
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


def _axis_unary(op: str) -> _Handler:
    def handle(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
        rank = len(node.meta["val"].shape)
        b.emit(op, node, (b.tensor(next(iter(a.values()))),), {"axis": int(a["dim"]) % rank})
        return True

    return handle


def _reshape(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
    x = b.tensor(next(iter(a.values())))
    if b.shape(node.meta["val"].shape) == (b.tensors.get(x) or _type(b.weights[x])).shape:
        b.env[node] = x
    else:
        b.emit("reshape", node, (x,))
    return True


def _permute(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
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


def _cat(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
    rank = len(node.meta["val"].shape)
    b.emit("cat", node, tuple(b.tensor(x) for x in a["tensors"]), {"axis": int(a["dim"]) % rank})
    return True


def _stack(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
    kind = b._type_of(node)
    axis = int(a["dim"]) % len(kind.shape)
    one = TensorType((*kind.shape[:axis], 1, *kind.shape[axis + 1 :]), kind.dtype)
    parts = [
        b.emit_as("reshape", f"{node.name}_part{i}", (b.tensor(x),), one, {})
        for i, x in enumerate(a["tensors"])
    ]
    b.emit("cat", node, parts, {"axis": axis})
    return True


def _split(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
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


def _unbind(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
    values = node.meta["val"]
    axis = int(a["dim"]) % (len(values[0].shape) + 1)
    x = b.tensor(next(iter(a.values())))
    kind = TensorType(b.shape(values[0].shape), str(values[0].dtype).removeprefix("torch."))
    b.env[node] = [
        b.emit_as("select", f"{node.name}_{i}", (x,), kind, {"axis": axis, "index": i})
        for i in range(len(values))
    ]
    return True


def _slice(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
    x = b.tensor(next(iter(a.values())))
    kind = b.tensors.get(x) or _type(b.weights[x])
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


def _select(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
    x = b.tensor(next(iter(a.values())))
    kind = b.tensors.get(x) or _type(b.weights[x])
    axis = int(a["dim"]) % len(kind.shape)
    if kind.shape[axis] < 0 or isinstance(a["index"], torch.fx.Node):
        return False
    b.emit("select", node, (x,), {"axis": axis, "index": int(a["index"]) % kind.shape[axis]})
    return True


def _max_pool(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
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


def _avg_pool(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
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


def _adaptive_pool(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
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


def _mean(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
    x = b.tensor(next(iter(a.values())))
    rank = len(b.tensors[x].shape)
    if not a.get("dim"):
        return False
    axes = tuple(sorted(int(d) % rank for d in a["dim"]))
    b.emit("mean", node, (x,), {"axes": axes, "keepdim": bool(a["keepdim"])})
    return True


def _pad(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
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


def _upsample(mode: str) -> _Handler:
    def handle(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
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


def _embedding(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
    weight = b.tensor(a["weight"])
    if weight not in b.weights:
        return False
    b.emit("embedding", node, (b.tensor(a["indices"]), weight))
    return True


def _sdpa(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
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


def _many(op: str, count: int) -> _Handler:
    def handle(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
        b.emit(op, node, tuple(b.tensor(v) for v in list(a.values())[:count]))
        return True

    return handle


def _alias(b: _Builder, node: Any, a: dict[str, Any]) -> bool:
    source = next(iter(a.values()))
    if source.meta["val"].dtype != node.meta["val"].dtype:
        return False
    b.env[node] = b.env[source]
    return True


_HANDLERS: dict[str, _Handler] = {
    **dict.fromkeys(_ALIASES, _alias),
    **{name: _binary(op) for name, op in _BINARY.items()},
    **dict.fromkeys(_RESHAPES, _reshape),
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
    **dict.fromkeys(("permute", "transpose", "t", "numpy_T"), _permute),
    **{f"max_pool{n}d": _max_pool for n in (1, 2, 3)},
    **{f"avg_pool{n}d": _avg_pool for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": _adaptive_pool for n in (1, 2, 3)},
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split"), _split),
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
    "cat": _cat,
    "concat": _cat,
    "stack": _stack,
    "unbind": _unbind,
    "slice": _slice,
    "select": _select,
    "mean": _mean,
    "pad": _pad,
    "embedding": _embedding,
    "scaled_dot_product_attention": _sdpa,
    "matmul": _many("matmul", 2),
    "bmm": _many("matmul", 2),
    "mm": _many("matmul", 2),
    "prelu": _many("prelu", 2),
    "expand": _many("expand", 1),
    "expand_as": _many("expand", 1),
    "upsample_nearest1d": _upsample("nearest"),
    "upsample_nearest2d": _upsample("nearest"),
    "upsample_bilinear2d": _upsample("bilinear"),
}
