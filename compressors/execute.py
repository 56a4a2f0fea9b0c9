"""Running a `Graph` in torch: one small function per operation.

The same executor serves the uncompressed network, batch-norm recalibration, the simulation of integer
inference and recovery (it is differentiable in the weights).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import TraceError
from .graph import ELEMENTWISE, Graph, Node
from .padding import begins_and_ends
from .trace import Ref

_Operation = Callable[[Node, list[Any], list[tuple[int, ...]]], Any]
#: Called with (tensor name, value) after a node ran; what it returns takes the value's place.
Hook = Callable[[str, Tensor], Tensor]
#: Called for batch_norm nodes instead of the stored statistics: (node, input) -> output.
NormHook = Callable[[Node, Tensor, Mapping[str, Tensor]], Tensor]


def run(
    graph: Graph,
    weights: Mapping[str, Tensor],
    inputs: Sequence[Tensor],
    hook: Hook | None = None,
    norm_hook: NormHook | None = None,
    hooked: frozenset[str] | None = None,
    resume: tuple[int, Mapping[str, Tensor]] | None = None,
) -> tuple[Tensor, ...]:
    """Outputs of the network for a batch of inputs, each of shape (batch, ...).

    ``hook`` sees (and may replace) the tensors named in ``hooked`` (None: all); ``norm_hook`` takes over
    batch-norm. Values are freed once their last reader has run. ``resume``: the number of nodes of
    `schedule` to leave out, and the activations that were alive behind them.
    """
    values: dict[str, Tensor] = {}
    for name, value in zip(graph.inputs, inputs, strict=True) if resume is None else ():
        values[name] = hook(name, value) if hook and (hooked is None or name in hooked) else value
    if resume is not None:
        values.update(resume[1])
    batch = inputs[0].shape[0]
    for node, dead in islice(schedule(graph), 0 if resume is None else resume[0], None):
        if node.op == "batch_norm" and norm_hook is not None:
            several: Sequence[Tensor] = (norm_hook(node, values[node.inputs[0]], weights),)
        else:
            several = compute(graph, node, values, weights, batch)
        for name, value in zip(node.outputs, several, strict=False):
            values[name] = hook(name, value) if hook and (hooked is None or name in hooked) else value
        for name in dead:
            del values[name]
    return tuple(values[t] for t in graph.outputs)


def compute(
    graph: Graph, node: Node, values: Mapping[str, Tensor], weights: Mapping[str, Tensor], batch: int
) -> Sequence[Tensor]:
    """Outputs of one node, given the activations it reads."""
    operands = [None if not t else values[t] if t in values else weights[t] for t in node.inputs]
    shapes = [sizes(graph, t, batch) for t in node.outputs] if node.op in _SHAPED else []
    operation = OPERATIONS.get(node.op)
    if operation is None:
        raise TraceError(f"operation {node.op!r} of node {node.name!r} is not known")
    result = operation(node, operands, shapes)
    return result if isinstance(result, list | tuple) else (result,)


def sizes(graph: Graph, tensor: str, batch: int) -> tuple[int, ...]:
    """Concrete sizes of an activation at a batch size."""
    return tuple(d if d >= 0 else -d * batch for d in graph.tensors[tensor].shape)


def schedule(graph: Graph) -> Iterator[tuple[Node, tuple[str, ...]]]:
    """Nodes in order, each with the activations whose last reader it is."""
    cached = graph.topology.get("schedule")
    if cached is None:
        last: dict[str, int] = {}
        for i, node in enumerate(graph.nodes):
            for t in (*node.inputs, *node.outputs):
                if t in graph.tensors:
                    last[t] = i
        ends: dict[int, list[str]] = {}
        for t, i in last.items():
            if t not in graph.outputs:
                ends.setdefault(i, []).append(t)
        cached = [(n, tuple(ends.get(i, ()))) for i, n in enumerate(graph.nodes)]
        graph.topology["schedule"] = cached
    return iter(cached)


def _x(operands: list[Any]) -> Tensor:
    value: Tensor | None = operands[0]
    if value is None:
        raise TraceError("an operation lost its input")
    return value


#: Channels that oneDNN's blocks hold, and channels times rows of a window from which on it is distrusted.
_ALIGNED, _MANY = 16, 2048
#: Rows of a window from which on one column of samples is better convolved lying.
_FRAME = 16
_CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None, attrs: Mapping[str, Any]) -> Tensor:
    """A convolution, right where torch is not (`misread`), quick where it is slow; ``attrs`` of a node."""
    stride, padding, dilation, groups = (attrs[k] for k in ("stride", "padding", "dilation", "groups"))
    if len(padding) > len(stride):  # torch's convolutions pad both ends alike
        begins, ends = begins_and_ends(attrs)
        x = F.pad(x, [p for both in zip(reversed(begins), reversed(ends), strict=True) for p in both])
        padding = (0,) * len(stride)
        attrs = {**attrs, "padding": padding}
    columns = (x.shape[-1] + 2 * padding[-1] - 1) // stride[-1] + 1
    if not misread(x, weight, columns):
        if _framing(x, weight, stride):  # the same bits, five times as fast
            return _turned(x, weight, bias, attrs).contiguous(memory_format=torch.channels_last)
        return _CONVS[len(stride)](x, weight, bias, stride, padding, dilation, groups)
    if groups == 1 and not _trained(x, weight):
        missing = -x.shape[1] % _ALIGNED
        x, weight = (F.pad(t, (0, 0, 0, 0, 0, missing)) for t in (x, weight))
        return F.conv2d(x, weight, bias, stride, padding, dilation)
    return _turned(x, weight, bias, attrs)


def _turned(x: Tensor, weight: Tensor, bias: Tensor | None, attrs: Mapping[str, Any]) -> Tensor:
    """A 2-d convolution with rows for columns and columns for rows."""
    stride, padding, dilation = (tuple(reversed(attrs[k])) for k in ("stride", "padding", "dilation"))
    x, weight = x.transpose(2, 3), weight.transpose(2, 3)
    return F.conv2d(x, weight, bias, stride, padding, dilation, attrs["groups"]).transpose(2, 3)


def _framing(x: Tensor, weight: Tensor, stride: Sequence[int]) -> bool:
    """Whether a convolution cuts one column of samples into frames, as audio networks begin."""
    one = x.dim() == 4 and x.shape[1] == x.shape[3] == weight.shape[3] == 1
    return one and stride[0] > 1 and weight.shape[2] >= _FRAME and not _trained(x, weight)


def misread(x: Tensor, weight: Tensor, columns: int) -> bool:
    """Whether torch's convolution may be wrong by half of its result, without a word.

    A window of one column that yields one column, channels last, where channels are not a multiple of 16 and
    many (oneDNN of torch 2.13 with AVX-512; seen from 54 channels x 64 rows on, `tests` measure it). A window
    of one row, the same data lying, is right; so is what is filled up with channels of zeros. Shapes
    (N, C, H, W) and (out, in, rows, 1); of a transposed convolution with the first two turned, which takes
    its ``columns`` where others yield them.
    """
    if x.dim() != 4 or columns != 1 or weight.shape[3] != 1 or weight.shape[2] == 1:
        return False
    # the gradient of the data is a convolution over output channels
    summed = (weight.shape[1], weight.shape[0]) if _trained(x, weight) else (weight.shape[1],)
    return any(n * weight.shape[2] > _MANY and n % _ALIGNED != 0 for n in summed)


def _trained(x: Tensor, weight: Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


def _conv(n: Node, v: list[Any], _: Any) -> Tensor:
    return convolved(_x(v), v[1], v[2], n.attrs)


def _conv_transpose(n: Node, v: list[Any], _: Any) -> Tensor:
    x, weight, a = _x(v), v[1], n.attrs
    stride, padding, more, dilation = (a[k] for k in ("stride", "padding", "output_padding", "dilation"))
    if not misread(x, weight.transpose(0, 1), x.shape[-1]):
        return _TRANSPOSED[len(stride)](x, weight, v[2], stride, padding, more, a["groups"], dilation)
    stride, padding, more, dilation = (tuple(reversed(p)) for p in (stride, padding, more, dilation))
    x, weight = x.transpose(2, 3), weight.transpose(2, 3)
    return F.conv_transpose2d(x, weight, v[2], stride, padding, more, a["groups"], dilation).transpose(2, 3)


def _batch_norm(n: Node, v: list[Any], _: Any) -> Tensor:
    return F.batch_norm(_x(v), v[3], v[4], v[1], v[2], False, 0.0, n.attrs["eps"])


def _layer_norm(n: Node, v: list[Any], _: Any) -> Tensor:
    x = _x(v)
    return F.layer_norm(x, x.shape[-n.attrs["dims"] :], v[1], v[2], n.attrs["eps"])


def _max_pool(n: Node, v: list[Any], _: Any) -> Any:
    a = n.attrs
    tiles = tuple(a["kernel"]) == tuple(a["stride"]) and len(a["kernel"]) == 2 and max(a["kernel"]) <= 3
    if tiles and not torch.is_grad_enabled() and not any(a["padding"]) and set(a["dilation"]) == {1}:
        fits = all(s % k == 0 for s, k in zip(_x(v).shape[2:], a["kernel"], strict=True))
        if fits or not a["ceil"]:
            return _tiled_max(_x(v), *a["kernel"])
    return _MAX[len(a["kernel"])](_x(v), a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil"])


def _tiled_max(x: Tensor, high: int, wide: int) -> Tensor:
    """Largest value of every tile (high x wide), the rest cut off: ten times torch's kernel on a CPU."""
    rows, columns = x.shape[2] // high * high, x.shape[3] // wide * wide
    x = x.contiguous(memory_format=torch.channels_last)
    tall = reduce(torch.maximum, [x[:, :, k:rows:high] for k in range(high)])
    return reduce(torch.maximum, [tall[..., k:columns:wide] for k in range(wide)])


def _avg_pool(n: Node, v: list[Any], _: Any) -> Tensor:
    a = n.attrs
    return _AVG[len(a["kernel"])](
        _x(v), a["kernel"], a["stride"], a["padding"], a["ceil"], a["count_include_pad"]
    )


def _slice(n: Node, v: list[Any], _: Any) -> Tensor:
    a = n.attrs
    index = [slice(None)] * a["axis"] + [slice(a["start"], a["end"], a["step"])]
    return _x(v)[tuple(index)]


def _sdpa(n: Node, v: list[Any], _: Any) -> Tensor:
    return F.scaled_dot_product_attention(
        _x(v), v[1], v[2], v[3] if len(v) > 3 else None, is_causal=n.attrs["causal"], scale=n.attrs["scale"]
    )


def _aten(n: Node, v: list[Any], _: Any) -> Any:
    def real(value: Any) -> Any:
        if isinstance(value, Ref):
            return v[value.index]
        return [real(x) for x in value] if isinstance(value, tuple) else value

    namespace, name, overload = n.attrs["target"].split(".")
    operation = getattr(getattr(getattr(torch.ops, namespace), name), overload)
    return operation(*(real(a) for a in n.attrs["args"]), **{k: real(a) for k, a in n.attrs["kwargs"]})


def _elementwise(function: Callable[..., Tensor]) -> _Operation:
    return lambda n, v, _: function(_x(v))


def _binary(function: Callable[[Any, Any], Tensor]) -> _Operation:
    return lambda n, v, _: function(v[0], v[1])


def _upsample(n: Node, v: list[Any], _: Any) -> Tensor:
    a = n.attrs
    align = a["align_corners"] if a["mode"] == "bilinear" else None
    return F.interpolate(
        _x(v), scale_factor=[float(s) for s in a["scale"]], mode=a["mode"], align_corners=align
    )


def _clip(n: Node, v: list[Any], _: Any) -> Tensor:
    low, high = n.attrs["min"], n.attrs["max"]
    return torch.clamp(_x(v), None if low == -math.inf else low, None if high == math.inf else high)


#: Operations that need the sizes of their outputs.
_SHAPED = frozenset({"reshape", "expand", "split"})

OPERATIONS: dict[str, _Operation] = {
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": lambda n, v, _: F.linear(_x(v), v[1], v[2]),
    "matmul": _binary(torch.matmul),
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": lambda n, v, _: F.group_norm(_x(v), n.attrs["groups"], v[1], v[2], n.attrs["eps"]),
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "div": _binary(torch.div),
    "pow": _binary(torch.pow),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "cat": lambda n, v, _: torch.cat([x for x in v if x is not None], n.attrs["axis"]),
    "split": lambda n, v, s: torch.split(_x(v), [o[n.attrs["axis"]] for o in s], n.attrs["axis"]),
    "slice": _slice,
    "select": lambda n, v, _: _x(v).select(n.attrs["axis"], n.attrs["index"]),
    "reshape": lambda n, v, s: _x(v).reshape(s[0]),
    "expand": lambda n, v, s: _x(v).expand(s[0]),
    "identity": lambda n, v, _: _x(v),
    "permute": lambda n, v, _: _x(v).permute(n.attrs["perm"]),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "mean": lambda n, v, _: _x(v).mean(n.attrs["axes"], keepdim=n.attrs["keepdim"]),
    "pad": lambda n, v, _: F.pad(
        _x(v), n.attrs["pads"], n.attrs["mode"], n.attrs["value"] if n.attrs["mode"] == "constant" else None
    ),
    "upsample": _upsample,
    "embedding": lambda n, v, _: F.embedding(_x(v), v[1]),
    "prelu": lambda n, v, _: F.prelu(_x(v), v[1]),
    "sdpa": _sdpa,
    "aten": _aten,
    "softmax": lambda n, v, _: F.softmax(_x(v), n.attrs["axis"]),
    "log_softmax": lambda n, v, _: F.log_softmax(_x(v), n.attrs["axis"]),
    "clip": _clip,
    "leaky_relu": lambda n, v, _: F.leaky_relu(_x(v), n.attrs["alpha"]),
    "elu": lambda n, v, _: F.elu(_x(v), n.attrs["alpha"]),
    "gelu": lambda n, v, _: F.gelu(_x(v), approximate=n.attrs["approximate"]),
    **{name: _elementwise(getattr(torch, name, None) or getattr(F, name)) for name in ELEMENTWISE},
}
