"""From an eager torch network to a `Graph`, by torch.export.

Operations and their attributes (inputs in parentheses; "" where absent):

conv (x, w, b): stride, padding (begins, or begins and ends where those differ), dilation, groups.
conv_transpose (x, w, b): stride, padding, dilation, groups, output_padding.
linear (x, w, b). matmul (a, b). batch_norm (x, w, b, mean, var): eps. layer_norm (x, w, b): dims, eps.
group_norm (x, w, b): groups, eps. add, sub, mul, div, pow, maximum, minimum (a, b). cat (...): axis.
split (x) -> several: axis. slice (x): axis, start, end, step. select (x): axis, index.
reshape (x): to the shape of its output. permute (x): perm. expand (x): to the shape of its output.
max_pool (x): kernel, stride, padding, dilation, ceil. avg_pool (x): kernel, stride, padding, ceil,
count_include_pad. mean (x): axes, keepdim. pad (x): pads (torch order), mode, value.
upsample (x): mode, scale, align_corners. embedding (ids, w). prelu (x, w).
sdpa (q, k, v, mask): scale, causal. softmax, log_softmax (x): axis. clip (x): min, max.
leaky_relu, elu (x): alpha. gelu (x): approximate. Elementwise without attributes: see ``graph.ELEMENTWISE``.
aten (...): any other operation: target, and its arguments, with ``Ref(i)`` for input i; left dense.
"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .errors import NumericsError, TraceError
from .graph import Graph, Node, Shape, TensorType
from .handlers import HANDLERS, IGNORED
from .moves import tensor_type
from .padding import in_convolutions


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
    return Builder(program, fixed).build()


def _check_weights(network: nn.Module) -> None:
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise NumericsError(
                f"weight {name!r} holds NaN or infinite values; check the checkpoint before compressing it."
            )


def _export(network: nn.Module, example: tuple[torch.Tensor, ...]) -> tuple[Any, int | None]:
    two = tuple(torch.cat([x, x]) if x.shape[0] == 1 else x for x in example)
    logging.getLogger("torch").setLevel(logging.ERROR)
    # torch.export prints the graph it fails on, and there are two attempts.
    with warnings.catch_warnings(), torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):
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


class Builder:
    """Walks an exported program once and emits our nodes."""

    def __init__(self, program: Any, fixed: int | None) -> None:
        self.program = program
        self.fixed = fixed
        self.nodes: list[Node] = []
        self.tensors: dict[str, TensorType] = {}
        self.weights: dict[str, torch.Tensor] = {}
        self.env: dict[Any, Any] = {}  # fx node -> tensor name, list of names, or a Python number
        self.counter = 0
        self.turned: dict[str, str] = {}  # matrix of weights -> its transpose

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
            {k: tensor_type(v) for k, v in self.weights.items()},
            self.fixed,
        )
        graph = in_convolutions(graph.rebuilt(self.nodes))
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

    def constant(self, value: torch.Tensor, stem: str = "") -> str:
        """Register a weight that is no parameter of the network; named after those it was made from."""
        name = stem
        if not stem or stem in self.weights:
            name = f"{stem}.{self.counter}" if stem else f"constant_{self.counter}"
            self.counter += 1
        self.weights[name] = value.detach().clone()
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
        if base in IGNORED:
            self.env[node] = None
            return
        if self._fold_constant(node):
            return
        handler = HANDLERS.get(base)
        done = handler is not None and handler(self, node, _arguments(node))
        if not done:
            self._generic(node)
        if in_place:  # later reads of the argument see the new value
            self.env[node.args[0]] = self.env[node]

    def _fold_constant(self, node: Any) -> bool:
        """Operations on no tensor (arange), or on weights alone (weight norm), are evaluated now."""
        value = node.meta.get("val")
        several = isinstance(value, list | tuple) and all(isinstance(v, torch.Tensor) for v in value)
        if not several and not isinstance(value, torch.Tensor):
            return False
        sources = [self.env.get(n) for n in node.all_input_nodes]
        if not all(isinstance(s, str) and s in self.weights for s in sources):
            return False
        real = {n: self.weights[self.env[n]] for n in node.all_input_nodes}
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), real.__getitem__)
        with torch.no_grad():
            result = node.target(*args, **kwargs)
        stem = _common_name([str(s) for s in sources])
        if several:
            self.env[node] = [self.constant(v, stem) for v in result]
            return True
        if len(sources) == 1 and _same_values(result, next(iter(real.values()))):
            self.env[node] = sources[0]
            return True
        name = self.env[node] = self.constant(result, stem)
        if len(sources) == 1 and _is_transposed(result, next(iter(real.values()))):
            self.turned[name] = str(sources[0])
        return True

    def transposed(self, name: str) -> str:
        """Name of the transpose of a matrix of weights; of the original if ``name`` is one itself."""
        if name not in self.turned:
            other = self.constant(self.weights[name].t().contiguous(), name)
            self.turned[name] = other
        return self.turned[name]

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


def _same_values(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b))


def _is_transposed(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dim() == 2 and _same_values(a, b.t())


def _common_name(names: Sequence[str]) -> str:
    """The dotted prefix all names share, without the part torch's parametrisations add."""
    parts = [n.replace(".parametrizations.", ".").split(".") for n in names]
    common = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return ".".join(common)


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


__all__ = ["Builder", "Ref", "Traced", "trace"]
