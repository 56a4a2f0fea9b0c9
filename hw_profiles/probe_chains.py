"""Generic probe networks: random chains of kernels, of no architecture anybody uses.

Every operation is drawn by itself: convolutions of any window, stride, group and width, pools, additions,
concatenations, projections, attention, dense layers, each tensor integer or float by chance. A kernel is thus
measured among neighbours as they come, in networks small enough to be measured in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hw_profiles.probes import Graph

#: Work of a probe, multiply-accumulates, drawn log-uniformly; a CPU core does some 10^10 a second.
LEAST_MACS, MOST_MACS = 2e5, 3e8
#: Share of probes that are small throughout, and their most: in them what every kernel costs at least shows.
SMALL_SHARE, SMALL_MACS = 0.2, 2e6
#: Elements of one tensor at most: 4 MB of floats.
_MOST_ELEMENTS = 1 << 20
_WIDEST = 1024


@dataclass
class Chain(Graph):
    """A graph whose tensors are quantised one by one, with probability `act_share`.

    A layer is integer where its input is; with `layers_only` projections alone are, with that probability,
    and what lies between them stays float. `macs_left` is what the rest of the chain may spend.
    """

    act_share: float = 0.0
    style: int = 4
    macs_left: float = 1e7
    layers_only: float = 0.0
    small: bool = False
    integers: set[str] = field(default_factory=set)

    def quantised(self, x: str, signed: bool = True) -> str:
        """A quantise/dequantise pair, by chance."""
        if self.rng.random() >= self.act_share:
            return x
        self.int8_share = 1.0
        y = super().quantised(x, signed)
        self.integers.add(y)
        return y

    def conv(
        self, x: str, cout: int, kernel: tuple[int, int], stride: int = 1, groups: int = 1, relu: int = True
    ) -> str:
        """See `Graph.conv`; spends multiply-accumulates. `relu` of 6 is ReLU6."""
        integer = x in self.integers and self.rng.random() < max(self.act_share, 0.5)
        self.int8_share, cin, share = float(integer), self.shapes[x][1], self.act_share
        # Integer layers write integers, or nothing fuses. A float one between integers is made integer by the
        # runtime itself, with other weights: rare.
        self.act_share = 1.0 if integer else share if x not in self.integers else 0.15
        y = super().conv(x, cout, kernel, stride, groups, relu)
        self.act_share = share
        self.macs_left -= np.prod(self.shapes[y][2:]) * cin * cout * kernel[0] * kernel[1] / groups
        return y

    def dense(self, x: str, cout: int, relu: bool = False) -> str:
        """See `Graph.dense`."""
        self.int8_share = float(x in self.integers)
        self.macs_left -= self.shapes[x][-1] * cout
        return super().dense(x, cout, relu)

    def project(self, x: str, cout: int) -> str:
        """MatMul with weights and, mostly, bias; features last."""
        *rows, cin = self.shapes[x]
        self.macs_left -= float(np.prod(rows)) * cin * cout
        x = self.before_layer(x)
        if x in self.integers:
            integers = self.constant(self.rng.integers(-127, 128, (cin, cout)).astype(np.int8))
            # One scale a column; with one for all where the output is rounded, or nothing fuses.
            many = cout if self.layers_only else 1
            scale = self.constant(np.full(many, 0.02 / np.sqrt(cin), np.float32).squeeze())
            zero = self.constant(np.zeros(many, np.int8).squeeze())
            weight = self.op("DequantizeLinear", [integers, scale, zero], (cin, cout), axis=1)
        else:
            weight = self.constant((self.rng.standard_normal((cin, cout)) / np.sqrt(cin)).astype(np.float32))
        y = self.quantised(self.op("MatMul", [x, weight], (*rows, cout)))
        if self.rng.random() < (0.6 if self.layers_only else 0.15):  # with a bias few become integer
            return y
        return self.quantised(
            self.op("Add", [y, self.constant(np.full(cout, 0.01, np.float32))], (*rows, cout))
        )

    def width(self, high: float, low: int = 4) -> int:
        """A channel count, log-uniform, in steps of the chain's style (now and then of none)."""
        step = 1 if self.rng.random() < 0.06 else self.style
        top = max(float(low), min(high, _WIDEST))
        drawn = float(np.exp(self.rng.uniform(np.log(low), np.log(top + 1.0))))
        return int(max(step if step <= top else 1, drawn // step * step, 1))

    def before_layer(self, x: str) -> str:
        """Quantises the input of a projection where only those are quantised."""
        if not self.layers_only or x in self.integers:
            return x
        share, self.act_share = self.act_share, self.layers_only
        y = self.quantised(x)
        self.act_share = share
        return y

    def map(self, kind: str, x: str, **attributes: Any) -> str:
        """An operation element by element."""
        return self.quantised(self.op(kind, [x], self.shapes[x], **attributes))


def random_probe(seed: int, kind: str = "", precision: str = "") -> bytes:
    """One probe, a pure function of its arguments.

    `kind`: one of KINDS, "" draws one; `precision`: "fp32", "int8", "mixed", "" draws one.
    """
    rng = np.random.default_rng([7351, seed])
    kind = kind or str(rng.choice(list(KINDS), p=[0.64, 0.30, 0.06]))
    precision = precision or str(rng.choice(["fp32", "int8", "mixed"], p=[0.33, 0.33, 0.34]))
    share = {"fp32": 0.0, "int8": 1.0, "mixed": float(rng.uniform(0.4, 0.95))}[precision]
    style = int(rng.choice([16, 8, 4, 1], p=[0.25, 0.2, 0.4, 0.15]))
    small = bool(rng.random() < SMALL_SHARE)
    least, most = (LEAST_MACS / 10, SMALL_MACS) if small else (LEAST_MACS, MOST_MACS)
    macs = float(np.exp(rng.uniform(np.log(least), np.log(most))))
    graph = Chain(rng, act_share=share, style=style, macs_left=macs, small=small)
    source = "input"
    return graph.finish(KINDS[kind](graph, source), source)


# ---------------------------------------------------------------------------------------------- images


def image(g: Chain, source: str) -> str:
    """Convolutions, pools, additions and concatenations on an image, then a head."""
    rng = g.rng
    side = int(np.exp(rng.uniform(np.log(6), np.log(40 if g.small else 226))))
    other = side if rng.random() < 0.85 else max(1, int(side * rng.uniform(0.2, 1.0)))
    channels = int(rng.choice([1, 1, 3, 3, 4, 8] if g.small else [1, 3, 3, 3, 4, 16, 32, 64]))
    g.shapes[source] = (1, channels, side, other)
    if np.prod(g.shapes[source]) > _MOST_ELEMENTS:
        g.shapes[source] = (1, 3, side, other)
    x = g.quantised(source)
    steps = int(rng.integers(2, 13))
    share = g.macs_left / steps * 2.0
    names, weights = zip(*IMAGE_STEPS, strict=True)
    chance = np.array(weights) / sum(weights)
    for i in range(steps):
        step = names[int(rng.choice(len(names), p=chance))] if i else _convolve
        x = step(g, x, min(share, max(g.macs_left, LEAST_MACS / 10)))
        if min(g.shapes[x][2:]) < 2 and i > 1:
            break
    return _head(g, x)


def _room(g: Chain, x: str, macs: float, window: int, stride: int = 1) -> float:
    """Most output channels of a convolution of x within a budget of work and of elements."""
    _, cin, height, width = g.shapes[x]
    pixels = max(1.0, height / stride) * max(1.0, width / stride)
    return min(macs / (cin * window * pixels), _MOST_ELEMENTS / pixels)


def _convolve(g: Chain, x: str, macs: float) -> str:
    """A dense convolution of any window."""
    k = int(g.rng.choice([1, 3, 5, 7, 2, 9], p=[0.35, 0.38, 0.14, 0.07, 0.03, 0.03]))
    kernel = (k, k)
    if k in (3, 5, 7) and g.rng.random() < 0.2:
        kernel = (k, 1) if g.rng.random() < 0.5 else (1, k)
    stride = _stride(g, x)
    # Without padding the edges cost nothing: kernels differ by as much as a third.
    g.padded = k == 1 or min(g.shapes[x][2:]) < 3 * k or bool(g.rng.random() < 0.7)
    y = _activated(g, x, g.width(_room(g, x, macs, kernel[0] * kernel[1], stride)), kernel, stride, 1)
    g.padded = True
    return y


def _stride(g: Chain, x: str) -> int:
    return 2 if min(g.shapes[x][2:]) > 5 and g.rng.random() < (0.45 if g.shapes[x][2] > 48 else 0.2) else 1


def _activated(g: Chain, x: str, cout: int, kernel: tuple[int, int], stride: int, groups: int) -> str:
    """A convolution followed by ReLU, nothing, ReLU6, or now and then something dearer."""
    form = g.rng.random()
    if form < 0.55:
        return g.conv(x, cout, kernel, stride, groups)
    if form < 0.75:
        return g.conv(x, cout, kernel, stride, groups, relu=False)
    if form < 0.93:
        return g.conv(x, cout, kernel, stride, groups, relu=6)
    y = g.conv(x, cout, kernel, stride, groups, relu=False)
    gate = g.map("HardSigmoid" if form < 0.96 else "Sigmoid", y)
    return g.quantised(g.op("Mul", [y, gate], g.shapes[y]))


def _depthwise(g: Chain, x: str, macs: float) -> str:
    """Depthwise 3x3, 5x5 or 7x7, the channels widened first now and then."""
    if g.rng.random() < 0.6:
        x = _activated(g, x, g.width(_room(g, x, macs, 1), 8), (1, 1), 1, 1)
    k = int(g.rng.choice([3, 3, 3, 5, 7]))
    return _activated(g, x, g.shapes[x][1], (k, k), _stride(g, x), g.shapes[x][1])


def _grouped(g: Chain, x: str, macs: float) -> str:
    """A convolution of 2 to 8 groups, where the channels divide."""
    groups = [n for n in (2, 4, 8) if g.shapes[x][1] % n == 0]
    if not groups:
        return _convolve(g, x, macs)
    n = int(g.rng.choice(groups))
    cout = max(n, g.width(_room(g, x, macs * n, 9)) // n * n)
    return _activated(g, x, cout, (3, 3), _stride(g, x), n)


def _residual(g: Chain, x: str, macs: float) -> str:
    """A branch of one to three convolutions added to its input."""
    y, channels = x, g.shapes[x][1]
    for _ in range(int(g.rng.integers(0, 3))):
        k = int(g.rng.choice([1, 3]))
        y = _activated(g, y, g.width(_room(g, y, macs / 3, k * k)), (k, k), 1, 1)
    k = int(g.rng.choice([1, 3]))
    if _room(g, y, macs * 2, k * k) < channels:
        k = 1
    y = g.conv(y, channels, (k, k), relu=False)
    return g.add(y, x, relu=bool(g.rng.random() < 0.6))


def _concat(g: Chain, x: str, macs: float) -> str:
    """Two to four branches beside one another."""
    parts = []
    for _ in range(int(g.rng.integers(2, 5))):
        if g.rng.random() < 0.25 and min(g.shapes[x][2:]) > 2:
            y = g.op("MaxPool", [x], g.shapes[x], kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
            y = g.quantised(y)
        else:
            y = _activated(g, x, g.width(_room(g, x, macs / 4, 1)), (1, 1), 1, 1)
        if g.rng.random() < 0.6:
            k = int(g.rng.choice([3, 3, 5]))
            y = _activated(g, y, g.width(_room(g, y, macs / 3, k * k)), (k, k), 1, 1)
        parts.append(y)
    return g.concat(parts)


def _pool(g: Chain, x: str, macs: float) -> str:
    """2x2 or 3x3 pooling, by two mostly."""
    batch, channels, height, width = g.shapes[x]
    if min(height, width) < 4:
        return _convolve(g, x, macs)
    kind = str(g.rng.choice(["MaxPool", "MaxPool", "MaxPool", "AveragePool"]))
    form = int(g.rng.integers(0, 3))
    k, stride, pad = ((2, 2, 0), (3, 2, 1), (3, 1, 1))[form]
    out = tuple((n + 2 * pad - k) // stride + 1 for n in (height, width))
    y = g.op(kind, [x], (batch, channels, *out), kernel_shape=[k, k], strides=[stride] * 2, pads=[pad] * 4)
    return g.quantised(y)


def _head(g: Chain, x: str) -> str:
    """Global pooling or flattening, then one or two dense layers; or nothing."""
    form, channels = g.rng.random(), int(np.prod(g.shapes[x][1:]))
    if form < 0.12:
        return x
    if form < 0.75 or channels > 16384:
        if g.rng.random() < 0.2:
            pooled = g.op("ReduceMean", [x], (1, g.shapes[x][1]), axes=[2, 3], keepdims=0)
            x = g.quantised(pooled)
        else:
            pooled = g.op("GlobalAveragePool", [x], (1, g.shapes[x][1], 1, 1))
            x = g.flatten(g.quantised(pooled))
    else:
        x = g.flatten(x)
    return _dense_tail(g, x)


def _dense_tail(g: Chain, x: str) -> str:
    room = 2e6 / g.shapes[x][1]
    if g.rng.random() < 0.5:
        x = g.dense(x, g.width(room, 8), relu=True)
    return g.dense(x, int(g.rng.choice([2, 10, 10, 100])))


Step = Callable[[Chain, str, float], str]
IMAGE_STEPS: list[tuple[Step, float]] = [
    (_convolve, 0.40), (_depthwise, 0.18), (_grouped, 0.03),
    (_residual, 0.16), (_concat, 0.11), (_pool, 0.12),
]  # fmt: skip


# ------------------------------------------------------------------------------------ tokens, vectors


def tokens(g: Chain, source: str) -> str:
    """Projections, attention, normalisation and activations on (1, tokens, features)."""
    rng = g.rng
    count = int(np.exp(rng.uniform(np.log(8), np.log(40 if g.small else 200))))
    if rng.random() < 0.5:  # sequences come in round lengths
        count = max(8, count // 16 * 16)
    sizes = [16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384]
    size = int(rng.choice(sizes[:5] if g.small else sizes))
    g.shapes[source] = (1, count, g.width(256, 8))
    if rng.random() < 0.85:
        g.layers_only, g.act_share = g.act_share, 0.0
    x = g.project(g.quantised(source), size)
    room = g.macs_left
    for _ in range(int(rng.integers(1, 9))):
        form = rng.random()
        if form < 0.15:
            x = g.normalise(x)
        elif form < 0.50:
            y = _attend(g, x, int(rng.choice([n for n in (1, 2, 4, 8) if size % n == 0]))) if room > 0 else x
            x = g.normalise(g.add(y, x, relu=False)) if rng.random() < 0.6 else g.add(y, x, relu=False)
        elif form < 0.80:
            hidden = g.width(min(2048.0, max(room, 1e5) / (4.0 * count * size)), 16)
            y = _nonlinear(g, g.project(x, hidden))
            y = g.project(y, size)
            x = g.add(y, x, relu=False) if rng.random() < 0.6 else y
        elif form < 0.87:
            x = _nonlinear(g, x)
        elif form < 0.94:
            x = g.project(x, size)
        else:
            x = _gated(g, x)
    if rng.random() < 0.2:
        return x
    pooled = g.op("ReduceMean", [x], (1, size), axes=[1], keepdims=0)
    return _dense_tail(g, g.quantised(pooled))


def _attend(g: Chain, x: str, heads: int) -> str:
    """Self-attention, from three projections or from one that is split (as `nn.MultiheadAttention` does)."""
    if g.rng.random() < 0.5:
        return g.attention(x, heads)
    batch, count, size = g.shapes[x]
    each = size // heads
    packed = g.project(x, 3 * size)
    shape = g.constant(np.array([batch, count, 3, heads, each], np.int64))
    y = g.op("Reshape", [packed, shape], (batch, count, 3, heads, each))
    y = g.op("Transpose", [y], (3, batch, heads, count, each), perm=[2, 0, 3, 1, 4])
    names = [g.name("split") for _ in range(3)]
    _split(g, y, names, (1, batch, heads, count, each), 0)
    zero = g.constant(np.array([0], np.int64))
    query, key, value = (g.op("Squeeze", [n, zero], (batch, heads, count, each)) for n in names)
    scale = g.constant(np.float32(each**-0.5))
    query = g.op("Mul", [query, scale], g.shapes[query])
    turned = g.op("Transpose", [key], (batch, heads, each, count), perm=[0, 1, 3, 2])
    scores = g.op("MatMul", [query, turned], (batch, heads, count, count))
    weights = g.op("Softmax", [scores], (batch, heads, count, count), axis=-1)
    mixed = g.op("MatMul", [weights, value], (batch, heads, count, each))
    back = g.op("Transpose", [mixed], (batch, count, heads, each), perm=[0, 2, 1, 3])
    join = g.constant(np.array([batch, count, size], np.int64))
    return g.project(g.op("Reshape", [back, join], (batch, count, size)), size)


def _nonlinear(g: Chain, x: str) -> str:
    """ReLU, Gelu as exporters write it, Sigmoid or Tanh."""
    kind = str(g.rng.choice(["Relu", "Gelu", "Gelu", "Sigmoid", "Tanh"]))
    if kind != "Gelu":
        return g.map(kind, x)
    shape = g.shapes[x]
    scaled = g.op("Div", [x, g.constant(np.float32(np.sqrt(2.0)))], shape)
    bent = g.op("Add", [g.op("Erf", [scaled], shape), g.constant(np.float32(1.0))], shape)
    half = g.op("Mul", [g.op("Mul", [x, bent], shape), g.constant(np.float32(0.5))], shape)
    return g.quantised(half)


def _gated(g: Chain, x: str) -> str:
    """Features split in two, one half gating the other, and put together again."""
    batch, count, size = g.shapes[x]
    if size % 2:
        return g.project(x, size)
    half = (batch, count, size // 2)
    names = [g.name("split"), g.name("split")]
    _split(g, x, names, half, 2)
    gate = g.op("Sigmoid", [names[1]], half)
    y = g.op("Mul", [names[0], gate], half)
    joined = g.op("Concat", [y, names[1]], (batch, count, size), axis=2)
    return g.quantised(joined)


def _split(g: Chain, x: str, names: list[str], shape: tuple[int, ...], axis: int) -> None:
    from onnx import helper

    sizes = g.constant(np.array([shape[axis]] * len(names), np.int64))
    g.nodes.append(helper.make_node("Split", [x, sizes], names, name=g.name("n_Split"), axis=axis))
    g.shapes.update(dict.fromkeys(names, shape))


def vector(g: Chain, source: str) -> str:
    """Dense layers on one vector, up to some megabytes of weights."""
    g.shapes[source] = (1, g.width(2048, 16))
    x = g.quantised(source)
    for _ in range(int(g.rng.integers(1, 5))):
        x = g.dense(x, g.width(min(2048.0, 2.5e6 / g.shapes[x][1]), 8), relu=bool(g.rng.random() < 0.7))
    return x


KINDS: dict[str, Callable[[Chain, str], str]] = {"image": image, "tokens": tokens, "vector": vector}

__all__ = ["KINDS", "Chain", "random_probe"]
