"""Probe networks: ONNX graphs with random weights whose kernels are measured to fit a cost model.

Pure ONNX: nothing here knows of the networks or policies that are searched. A probe is float or carries
quantise/dequantise pairs (u8 affine activations, s8 weights per channel), wholly or on some of its layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_OPSET = 17
_IR_VERSION = 9
_SCALE = 0.03


@dataclass
class Graph:
    """Builds one probe. Tensors are names; `shapes` remembers theirs, batch first."""

    rng: np.random.Generator
    int8_share: float = 0.0
    dynamic: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    padded: bool = True
    _count: int = 0
    _rounded: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    def name(self, stem: str) -> str:
        """A fresh name."""
        self._count += 1
        return f"{stem}_{self._count}"

    def constant(self, value: Any, stem: str = "w") -> str:
        """An initializer (numpy arrays and scalars)."""
        name = self.name(stem)
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def op(self, kind: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        """A node with one output of the given shape."""
        out = self.name(kind.lower())
        self.nodes.append(helper.make_node(kind, inputs, [out], name=self.name(f"n_{kind}"), **attributes))
        self.shapes[out] = shape
        return out

    def quantised(self, x: str, signed: bool = True) -> str:
        """A quantise/dequantise pair on an activation, when the probe is an integer one."""
        if not self.int8_share:
            return x
        scale = self.constant(np.float32(_SCALE), "scale")
        zero = self.constant(np.uint8(128 if signed else 0), "zero")
        q = self.op("QuantizeLinear", [x, scale, zero], self.shapes[x])
        return self.op("DequantizeLinear", [q, scale, zero], self.shapes[x])

    def weight(self, shape: tuple[int, ...], fan_in: int) -> tuple[str, str]:
        """Weights and bias, quantised per output channel for an integer layer."""
        cout = shape[0]
        if not self.int8_share or self.rng.random() >= self.int8_share:
            values = (self.rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
            return self.constant(values), self.constant(np.full(cout, 0.01, np.float32), "bias")
        scales = np.full(cout, 0.02 / np.sqrt(fan_in), np.float32)
        integers = self.rng.integers(-127, 128, shape).astype(np.int8)
        inputs = [self.constant(integers), self.constant(scales), self.constant(np.zeros(cout, np.int8))]
        weights = self.op("DequantizeLinear", inputs, shape, axis=0)
        bias = [self.constant(np.ones(cout, np.int32), "bias"), self.constant(scales * np.float32(_SCALE))]
        bias.append(self.constant(np.zeros(cout, np.int32)))
        return weights, self.op("DequantizeLinear", bias, (cout,), axis=0)

    def conv(
        self, x: str, cout: int, kernel: tuple[int, int], stride: int = 1, groups: int = 1, relu: int = True
    ) -> str:
        """Convolution with bias, padded or not, optional ReLU or ReLU6 (`relu` of 6).

        An integer probe quantises its output.
        """
        batch, cin, height, width = self.shapes[x]
        pads = [kernel[0] // 2, kernel[1] // 2] if self.padded else [0, 0]
        out = (
            batch,
            cout,
            (height + 2 * pads[0] - kernel[0]) // stride + 1,
            (width + 2 * pads[1] - kernel[1]) // stride + 1,
        )
        inputs = [x, *self.weight((cout, cin // groups, *kernel), cin // groups * kernel[0] * kernel[1])]
        y = self.op(
            "Conv", inputs, out, kernel_shape=list(kernel), strides=[stride] * 2, pads=pads * 2, group=groups
        )
        if relu == 6:
            low, high = self.constant(np.float32(0.0)), self.constant(np.float32(6.0))
            return self.quantised(self.op("Clip", [y, low, high], out), signed=False)
        return self.quantised(self.op("Relu", [y], out) if relu else y, signed=not relu)

    def dense(self, x: str, cout: int, relu: bool = False) -> str:
        """Gemm with bias on (rows, features)."""
        rows, cin = self.shapes[x]
        y = self.op("Gemm", [x, *self.weight((cout, cin), cin)], (rows, cout), transB=1)
        return self.quantised(self.op("Relu", [y], (rows, cout)) if relu else y, signed=not relu)

    def add(self, a: str, b: str, relu: bool = True) -> str:
        """Residual addition."""
        y = self.op("Add", [a, b], self.shapes[a])
        return self.quantised(self.op("Relu", [y], self.shapes[a]) if relu else y, signed=not relu)

    def concat(self, parts: list[str]) -> str:
        """Concatenation of channels."""
        batch, _, height, width = self.shapes[parts[0]]
        shape = (batch, sum(self.shapes[p][1] for p in parts), height, width)
        return self.quantised(self.op("Concat", parts, shape, axis=1))

    def pool(self, x: str, kind: str = "MaxPool") -> str:
        """2x2 pooling."""
        batch, channels, height, width = self.shapes[x]
        out = (batch, channels, height // 2, width // 2)
        return self.quantised(self.op(kind, [x], out, kernel_shape=[2, 2], strides=[2, 2]))

    def head(self, x: str, classes: int = 10) -> str:
        """Global average pooling and a classifier."""
        batch, channels = self.shapes[x][:2]
        pooled = self.quantised(self.op("GlobalAveragePool", [x], (batch, channels, 1, 1)))
        return self.dense(self.flatten(pooled), classes)

    def flatten(self, x: str) -> str:
        """(batch, everything else)."""
        batch, *rest = self.shapes[x]
        return self.quantised(self.op("Flatten", [x], (batch, int(np.prod(rest))), axis=1))

    def project(self, x: str, cout: int) -> str:
        """MatMul with weights (features last) and bias."""
        *rows, cin = self.shapes[x]
        if self.dynamic:
            return self._project_dynamic(x, cout)
        if self.int8_share and self.rng.random() < self.int8_share:
            integers = self.constant(self.rng.integers(-127, 128, (cin, cout)).astype(np.int8))
            scale, zero = self.constant(np.float32(0.02 / np.sqrt(cin))), self.constant(np.int8(0))
            weight = self.op("DequantizeLinear", [integers, scale, zero], (cin, cout))
        else:
            values = self.rng.standard_normal((cin, cout)) / np.sqrt(cin)
            weight = self.constant(values.astype(np.float32))
        y = self.op("MatMul", [x, weight], (*rows, cout))
        y = self.quantised(y)
        return self.quantised(
            self.op("Add", [y, self.constant(np.full(cout, 0.01, np.float32))], (*rows, cout))
        )

    def _project_dynamic(self, x: str, cout: int) -> str:
        """The same with integer weights; the range of ``x`` is found in every run, once for all readers."""
        *rows, cin = self.shapes[x]
        if x not in self._rounded:
            made = (self.name("codes"), self.name("scale"), self.name("zero"))
            self.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], made, self.name("n_rounded")))
            self._rounded[x] = made
        codes, scale, zero = self._rounded[x]
        weight = self.constant(self.rng.integers(-127, 128, (cin, cout)).astype(np.int8))
        scales = self.constant(np.full(cout, 0.02 / np.sqrt(cin), np.float32), "scales")
        shape = (*rows, cout)
        sums = self.op(
            "Cast", [self.op("MatMulInteger", [codes, weight, zero], shape)], shape, to=TensorProto.FLOAT
        )
        y = self.op("Mul", [sums, self.op("Mul", [scale, scales], (cout,))], shape)
        return self.op("Add", [y, self.constant(np.full(cout, 0.01, np.float32))], shape)

    def normalise(self, x: str) -> str:
        """Layer normalisation over the features."""
        size = self.shapes[x][-1]
        ones, zeros = self.constant(np.ones(size, np.float32)), self.constant(np.zeros(size, np.float32))
        return self.quantised(self.op("LayerNormalization", [x, ones, zeros], self.shapes[x]))

    def attention(self, x: str, heads: int, each: int = 0) -> str:
        """Multi-head self-attention with four projections; heads `each` wide, by default all as wide as x."""
        batch, tokens, size = self.shapes[x]
        each = each or size // heads
        split = self.constant(np.array([batch, tokens, heads, each], np.int64))

        def head(perm: list[int]) -> str:
            y = self.op("Reshape", [self.project(x, heads * each), split], (batch, tokens, heads, each))
            return self.op("Transpose", [y], tuple([batch, tokens, heads, each][p] for p in perm), perm=perm)

        query, value, key = head([0, 2, 1, 3]), head([0, 2, 1, 3]), head([0, 2, 3, 1])
        scores = self.op("MatMul", [query, key], (batch, heads, tokens, tokens))
        weights = self.op("Softmax", [scores], (batch, heads, tokens, tokens), axis=-1)
        mixed = self.op("MatMul", [weights, value], (batch, heads, tokens, each))
        back = self.op("Transpose", [mixed], (batch, tokens, heads, each), perm=[0, 2, 1, 3])
        join = self.constant(np.array([batch, tokens, heads * each], np.int64))
        flat = self.op("Reshape", [back, join], (batch, tokens, heads * each))
        return self.project(self.quantised(flat), size)

    def gelu(self, x: str) -> str:
        """x / 2 (1 + erf(x / sqrt 2)), as it is fused into one kernel."""
        shape = self.shapes[x]
        root, one, half = (self.constant(np.float32(v)) for v in (np.sqrt(2.0), 1.0, 0.5))
        y = self.op("Add", [self.op("Erf", [self.op("Div", [x, root], shape)], shape), one], shape)
        return self.quantised(self.op("Mul", [self.op("Mul", [x, y], shape), half], shape))

    def finish(self, x: str, source: str) -> bytes:
        """The model of everything built, from input `source` to output `x`."""
        graph = helper.make_graph(
            self.nodes,
            "probe",
            [helper.make_tensor_value_info(source, TensorProto.FLOAT, self.shapes[source])],
            [helper.make_tensor_value_info(x, TensorProto.FLOAT, self.shapes[x])],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", _OPSET)]
        return bytes(
            helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION).SerializeToString()
        )


Builder = Callable[[Graph, str], str]


def widths(rng: np.random.Generator, low: int, high: int, count: int, style: str) -> list[int]:
    """Channel counts: "16" and "8" and "4" give multiples, "any" any."""
    step = {"16": 16, "8": 8, "4": 4, "any": 1}[style]
    return [
        max(step, int(w) // step * step) for w in np.exp(rng.uniform(np.log(low), np.log(high + 1), count))
    ]


def _styles(rng: np.random.Generator) -> str:
    return str(rng.choice(["16", "8", "4", "any"], p=[0.3, 0.25, 0.25, 0.2]))


def resnet(g: Graph, x: str) -> str:
    """CIFAR-style residual network with random widths and depth, blocks pruned inside."""
    style = _styles(g.rng)
    scale = float(np.exp(g.rng.uniform(np.log(0.5), np.log(4.0))))
    stages = [widths(g.rng, max(4, int(b * scale * 0.4)), int(b * scale), 1, style)[0] for b in (16, 32, 64)]
    x = g.conv(x, stages[0], (3, 3))
    for i, width in enumerate(stages):
        for j in range(int(g.rng.integers(1, 4))):
            stride = 2 if i and not j else 1
            inner = widths(g.rng, max(4, width // 4), width, 1, style)[0]
            y = g.conv(g.conv(x, inner, (3, 3), stride), width, (3, 3), relu=False)
            short = x if g.shapes[x] == g.shapes[y] else g.conv(x, width, (1, 1), stride, relu=False)
            x = g.add(y, short)
    return g.head(x)


def resnet20(g: Graph, x: str) -> str:
    """ResNet-20 of CIFAR with every group of channels pruned to a random width."""
    style = _styles(g.rng)
    stages = [widths(g.rng, max(4, base // 4), base, 1, style)[0] for base in (16, 32, 64)]
    x = g.conv(x, stages[0], (3, 3))
    for i, (base, width) in enumerate(zip((16, 32, 64), stages, strict=True)):
        for j in range(3):
            stride = 2 if i and not j else 1
            inner = widths(g.rng, max(4, base // 4), base, 1, style)[0]
            y = g.conv(g.conv(x, inner, (3, 3), stride), width, (3, 3), relu=False)
            x = g.add(y, g.conv(x, width, (1, 1), stride, relu=False) if stride > 1 else x)
    return g.head(x)


def signal(g: Graph, x: str) -> str:
    """One-dimensional convolutions over a recording of the input's pixels."""
    batch, channels, height, width = g.shapes[x]
    style = _styles(g.rng)
    shape = g.constant(np.array([batch, channels, 1, height * width], np.int64))
    x = g.quantised(g.op("Reshape", [x, shape], (batch, channels, 1, height * width)))
    for width in widths(g.rng, 8, 128, int(g.rng.integers(2, 6)), style):
        x = g.conv(x, width, (1, int(g.rng.choice([3, 5, 7]))))
    return g.head(x)


def encoder(g: Graph, x: str) -> str:
    """Transformer encoder blocks on flattened patches: projections, attention, Gelu-free feed-forward."""
    batch, channels, height, width = g.shapes[x]
    tokens, features = height, channels * width
    model = int(g.rng.choice([32, 48, 64, 96, 128]))
    x = g.op(
        "Reshape", [x, g.constant(np.array([batch, tokens, features], np.int64))], (batch, tokens, features)
    )
    x = g.project(x, model)
    for _ in range(int(g.rng.integers(1, 4))):
        x = g.normalise(g.add(g.attention(x, int(g.rng.choice([2, 4]))), x, relu=False))
        hidden = widths(g.rng, model, 4 * model, 1, _styles(g.rng))[0]
        y = g.op(
            str(g.rng.choice(["Relu", "Sigmoid", "Tanh", "Erf"])),
            [g.project(x, hidden)],
            (batch, tokens, hidden),
        )
        x = g.normalise(g.add(g.project(g.quantised(y), model), x, relu=False))
    return g.dense(g.op("ReduceMean", [x], (batch, model), axes=[1], keepdims=0), 10)


def text(g: Graph, x: str) -> str:
    """Encoder blocks at the sizes of sentence encoders, with Gelu; some heads and hidden units pruned."""
    tokens = int(g.rng.choice([16, 32, 64, 128]))
    batch, channels, height, width = g.shapes[x]
    sizes = [s for s in (64, 128, 192, 256, 384) if s <= channels * height * width]
    model = int(g.rng.choice(sizes))
    flat = g.constant(np.array([batch, 1, channels * height * width], np.int64))
    x = g.op("Reshape", [x, flat], (batch, 1, channels * height * width))
    spread = g.constant(g.rng.standard_normal((tokens, 1)).astype(np.float32))
    first = g.constant(np.array([0, 0], np.int64)), g.constant(np.array([1, model], np.int64))
    x = g.op("Slice", [x, *first, g.constant(np.array([1, 2], np.int64))], (batch, 1, model))
    x = g.op("Mul", [x, spread], (batch, tokens, model))
    for _ in range(int(g.rng.integers(1, 4))):
        heads, each = int(g.rng.choice([1, 2, 4, 6, 8, 12])), int(g.rng.choice([16, 24, 32, 48]))
        x = g.normalise(g.add(g.attention(x, heads, each), x, relu=False))
        hidden = widths(g.rng, model, 4 * model, 1, _styles(g.rng))[0]
        x = g.normalise(g.add(g.project(g.gelu(g.project(x, hidden)), model), x, relu=False))
    return g.dense(g.op("ReduceMean", [x], (batch, model), axes=[1], keepdims=0), 10)


def plain(g: Graph, x: str) -> str:
    """VGG-style stack, wide and small at the end so that weights stream from memory."""
    style = _styles(g.rng)
    top = int(g.rng.choice([32, 64, 128, 256, 512]))
    for width in widths(g.rng, max(6, top // 6), top, int(g.rng.integers(3, 8)), style):
        x = g.conv(x, width, (3, 3))
        if g.shapes[x][2] > 3 and g.rng.random() < 0.6:
            x = g.pool(x, str(g.rng.choice(["MaxPool", "MaxPool", "AveragePool"])))
    return g.head(x, int(g.rng.choice([10, 100])))


def mobile(g: Graph, x: str) -> str:
    """Inverted residuals with depthwise 3x3 or 5x5."""
    style = _styles(g.rng)
    x = g.conv(x, widths(g.rng, 8, 32, 1, style)[0], (3, 3), int(g.rng.integers(1, 3)))
    for width in widths(g.rng, 8, 96, int(g.rng.integers(3, 7)), style):
        inner = widths(g.rng, 2 * width, 6 * width, 1, style)[0]
        kernel = int(g.rng.choice([3, 3, 5]))
        y = g.conv(x, inner, (1, 1))
        y = g.conv(
            y, inner, (kernel, kernel), 2 if g.shapes[y][2] > 7 and g.rng.random() < 0.4 else 1, groups=inner
        )
        y = g.conv(y, width, (1, 1), relu=False)
        x = g.add(y, x, relu=False) if g.shapes[x] == g.shapes[y] else y
    return g.head(x)


def factorised(g: Graph, x: str) -> str:
    """Spatially separable and Tucker-like chains, fire modules, grouped convolutions."""
    style = _styles(g.rng)
    x = g.conv(x, widths(g.rng, 16, 48, 1, style)[0], (3, 3), int(g.rng.integers(1, 3)))
    for width in widths(g.rng, 12, 128, int(g.rng.integers(2, 6)), style):
        rank = widths(g.rng, 4, width, 1, "any" if g.rng.random() < 0.5 else "4")[0]
        form = int(g.rng.integers(0, 4))
        if form == 0:
            x = g.conv(g.conv(x, rank, (3, 1), relu=False), width, (1, 3))
        elif form == 1:
            x = g.conv(g.conv(g.conv(x, rank, (1, 1), relu=False), rank, (3, 3), relu=False), width, (1, 1))
        elif form == 2:
            y = g.conv(x, rank, (1, 1))
            x = g.concat([g.conv(y, width, (1, 1)), g.conv(y, width, (3, 3))])
        else:
            x = g.conv(g.conv(x, rank // 4 * 4 or 4, (1, 1)), width // 4 * 4 or 4, (3, 3), groups=4)
        if g.shapes[x][2] > 6 and g.rng.random() < 0.4:
            x = g.pool(x)
    return g.head(x)


def lenet(g: Graph, x: str) -> str:
    """Two 5x5 convolutions and two dense layers."""
    style = _styles(g.rng)
    a, b = widths(g.rng, 4, 32, 1, style)[0], widths(g.rng, 8, 64, 1, style)[0]
    x = g.pool(g.conv(g.pool(g.conv(x, a, (5, 5))), b, (5, 5)))
    return g.dense(g.dense(g.flatten(x), widths(g.rng, 16, 512, 1, style)[0], relu=True), 10)


def mlp(g: Graph, x: str) -> str:
    """Dense layers alone."""
    style = _styles(g.rng)
    x = g.flatten(x)
    for width in widths(g.rng, 16, 1024, int(g.rng.integers(1, 4)), style):
        x = g.dense(x, width, relu=True)
    return g.dense(x, 10)


def probe(family: str, seed: int) -> bytes:
    """One probe network, a pure function of its arguments.

    `family` is one of FAMILIES, with "/int8" or "/mixed" appended for an integer one: "resnet/int8";
    "/dynamic" for one whose projections find the ranges of what they read in every run.
    """
    name, _, precision = family.partition("/")
    rng = np.random.default_rng([seed, sum(map(ord, family))])
    shares = {"": 0.0, "int8": 1.0, "mixed": 0.7, "dynamic": 0.0}
    graph = Graph(rng, shares[precision], precision == "dynamic")
    side = int(rng.choice([16, 28, 28, 32, 32, 40, 56]))
    source = "input"
    graph.shapes[source] = (1, int(rng.choice([1, 3])), side, side)
    return graph.finish(FAMILIES[name](graph, graph.quantised(source)), source)


FAMILIES: dict[str, Builder] = {
    "resnet20": resnet20,
    "resnet": resnet,
    "plain": plain,
    "mobile": mobile,
    "factorised": factorised,
    "lenet": lenet,
    "mlp": mlp,
    "signal": signal,
    "encoder": encoder,
    "text": text,
}
