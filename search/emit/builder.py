"""Building an ONNX graph as plain protobuf: names, constants, quantise/dequantise behind producers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from compressors.compressed import ActivationCode, Code, DynamicCode, WeightCode
from compressors.graph import FUSED_ACTIVATIONS, VIEW_OPS, Graph, Node, Shape
from search.errors import InputError

#: What onnxruntime's quantisation and layout optimisers know best; its version of Conv is still 11.
OPSET = 20
IR_VERSION = 9

ArrayLike = NDArray[Any]

ELEMENT_TYPES: Mapping[str, int] = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "int16": TensorProto.INT16,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
}
_NUMPY_TYPES = {np.dtype(k): v for k, v in ELEMENT_TYPES.items() if k != "bfloat16"}


class UnsupportedOperationError(InputError):
    """An operation that cannot be written as ONNX."""


def as_array(value: Any) -> ArrayLike:
    """A numpy array of a torch tensor or of an array."""
    if isinstance(value, np.ndarray):
        return value
    return np.asarray(value.detach().cpu().numpy())


def _attribute(name: str, value: int | float | str | Sequence[int]) -> onnx.AttributeProto:
    """An attribute; onnx.helper's inspects values at length, which tells when thousands are made."""
    if isinstance(value, int):
        return onnx.AttributeProto(name=name, type=onnx.AttributeProto.INT, i=value)
    if isinstance(value, float):
        return onnx.AttributeProto(name=name, type=onnx.AttributeProto.FLOAT, f=value)
    if isinstance(value, str):
        return onnx.AttributeProto(name=name, type=onnx.AttributeProto.STRING, s=value.encode())
    return onnx.AttributeProto(name=name, type=onnx.AttributeProto.INTS, ints=value)


def tensor_proto(name: str, value: ArrayLike) -> TensorProto:
    """An initializer with raw bytes; quicker than onnx.numpy_helper, which checks what is known here."""
    value = np.ascontiguousarray(value).reshape(value.shape)
    found = TensorProto(name=name, data_type=_NUMPY_TYPES[value.dtype], raw_data=value.tobytes())
    found.dims.extend(value.shape)
    return found


class Builder:
    """Collects nodes and initializers of one model.

    Readers of activation ``t`` read the value ``read(t)``: dequantised where ``t`` carries a quantiser.
    Tensor names of the graph name the dequantised value, so that every reader keeps its input's name;
    what the producer wrote before is called ``t/float``, its codes ``t/codes``. Tensors in ``dynamic`` stay
    float; who reads their codes asks for them with `dynamic_codes`.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, Any],
        activations: Mapping[str, Code],
        codes: Mapping[str, WeightCode],
        biases: Mapping[str, Any],
    ) -> None:
        self.graph = graph
        self.weights = weights
        self.dynamic = {t: c for t, c in activations.items() if isinstance(c, DynamicCode)}
        static = {t: c for t, c in activations.items() if isinstance(c, ActivationCode)}
        self.activations = harmonised(graph, static)
        self.codes = codes
        self.biases = biases
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._names: dict[str, int] = {}
        self._inputs = frozenset(graph.inputs)
        self._alias: dict[str, str] = {}
        self._rounded: set[str] = set()
        self.idle = idle_activations(graph, self.activations)
        self._redirected = {n.inputs[0]: f"{n.outputs[0]}/float" for n in self.idle.values()}

    # -- nodes and constants

    def node(
        self, op: str, inputs: Sequence[str], outputs: Sequence[str], name: str = "", **attrs: Any
    ) -> str:
        """Add a node; returns its first output. Attributes that are None are left out."""
        # Optimisers name tensors of their own after nodes: no node may share its name with a tensor.
        made = onnx.NodeProto(op_type=op, name=f"{name or outputs[0]}/{op}")
        made.input.extend(inputs)
        made.output.extend(outputs)
        for key, value in attrs.items():
            if value is not None:
                made.attribute.append(_attribute(key, value))
        self.nodes.append(made)
        return outputs[0]

    def temporary(self, base: str, hint: str) -> str:
        """A fresh tensor name ``base/hint``."""
        name = f"{base}/{hint}"
        count = self._names.get(name, 0)
        self._names[name] = count + 1
        return name if count == 0 else f"{name}{count}"

    def step(self, n: Node, op: str, inputs: Sequence[str], hint: str, **attrs: Any) -> str:
        """An inner node of the several that one of our nodes becomes; returns its output."""
        return self.node(op, inputs, [self.temporary(n.outputs[0], hint)], **attrs)

    def initializer(self, name: str, value: ArrayLike) -> str:
        """An initializer of the given name, written once."""
        if name not in self.initializers:
            self.initializers[name] = tensor_proto(name, value)
        return name

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """A small constant; equal ones share an initializer."""
        array = np.asarray(value, dtype=dtype)
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.initializer(f"constant/{len(self._constants)}", array)
        return self._constants[key]

    def integers(self, values: Sequence[int]) -> str:
        """A 1-d int64 constant."""
        return self.constant(list(values), np.int64)

    # -- tensors of the graph

    def read(self, tensor: str) -> str:
        """Name under which an activation or a parameter is read; "" stays ""."""
        if not tensor:
            return ""
        if tensor in self.graph.tensors:
            return self._alias.get(tensor, tensor)
        return tensor if tensor in self.initializers else self.initializer(tensor, self.array(tensor))

    def array(self, param: str) -> ArrayLike:
        """Values of a parameter."""
        return as_array(self.weights[param])

    def weight_codes(self, param: str, code: WeightCode) -> ArrayLike:
        """int8 codes in [-high, high] of a weight whose values are codes times scale, along ``code.axis``."""
        values = self.array(param)
        wide = [1] * values.ndim
        wide[code.axis] = -1
        rounded = np.rint(values / as_array(code.scale).reshape(wide))
        return np.clip(rounded, -code.high, code.high).astype(np.int8)

    def bias_codes(self, param: str, scale: ArrayLike) -> ArrayLike:
        """int32 codes of a bias at a scale per channel."""
        limit = 2**31 - 1
        codes = np.rint(self.array(param).astype(np.float64) / scale)
        return np.clip(codes, -limit, limit).astype(np.int32)

    def write(self, tensor: str) -> str:
        """Name under which the producer writes an activation."""
        if tensor in self._redirected:
            return self._redirected[tensor]
        return f"{tensor}/float" if tensor in self.activations else tensor

    def shape(self, tensor: str) -> Shape:
        """Sizes of an activation or a parameter, -k for k times the batch."""
        return self.graph.type_of(tensor).shape

    def quantise(self, tensor: str) -> None:
        """Quantise/dequantise behind an activation's producer."""
        code = self.activations[tensor]
        source, target = f"{tensor}/float", tensor
        if tensor in self._inputs:
            source, target = tensor, f"{tensor}/dequantised"
            self._alias[tensor] = target
        self.quantise_between(source, target, tensor, code)

    def quantise_between(self, source: str, target: str, base: str, code: ActivationCode) -> str:
        """``target`` = dequantise(quantise(``source``)); codes of fewer bits than a byte are clipped."""
        kind = np.uint8 if code.low >= 0 else np.int8
        scale = self.constant(code.scale)
        zero = self.constant(code.zero_point, kind)
        codes = self.node("QuantizeLinear", [source, scale, zero], [self.temporary(base, "codes")])
        info = np.iinfo(kind)
        if code.low > info.min or code.high < info.max:
            limits = [self.constant(code.low, kind), self.constant(code.high, kind)]
            codes = self.node("Clip", [codes, *limits], [self.temporary(base, "clipped")])
        return self.node("DequantizeLinear", [codes, scale, zero], [target])

    def dynamic_codes(self, tensor: str) -> tuple[str, str, str]:
        """Codes, scale and zero point of a tensor whose range is found in every run, computed once."""
        names = (f"{tensor}/codes", f"{tensor}/scale", f"{tensor}/zero")
        if tensor not in self._rounded:
            self._rounded.add(tensor)
            self.node("DynamicQuantizeLinear", [self.read(tensor)], names, tensor)
        return names

    def target_shape(self, tensor: str) -> str:
        """Constant for Reshape: the tensor's sizes, -1 where the batch enters."""
        sizes = self.shape(tensor)
        free = [i for i, d in enumerate(sizes) if d < 0]
        if len(free) > 1:
            raise UnsupportedOperationError(f"tensor {tensor!r}: two sizes depend on the batch: {sizes}")
        return self.integers([-1 if d < 0 else d for d in sizes])

    def batch_size(self, tensor: str) -> str:
        """A 1-element int64 tensor: the batch size, as multiples stand in ``tensor``'s shape."""
        first = self.graph.inputs[0]
        return self.node("Shape", [first], [self.temporary(tensor, "batch")], start=0, end=1)

    # -- the model

    def model(self, metadata: Mapping[str, str]) -> onnx.ModelProto:
        """The finished model."""
        outputs = []
        taken: set[str] = set()
        for i, t in enumerate(self.graph.outputs):
            name = self.read(t)
            if name in taken or t in self._inputs or t in self.initializers:
                name = self.node("Identity", [name], [f"{t}/output{i}"])
            taken.add(name)
            outputs.append(self._info(name, t))
        made = onnx.ModelProto(ir_version=IR_VERSION, producer_name="tailorbird")
        made.opset_import.append(helper.make_opsetid("", OPSET))
        graph = made.graph
        graph.name = "network"
        graph.node.extend(self.nodes)
        graph.initializer.extend(self.initializers.values())
        graph.input.extend(self._info(t, t) for t in self.graph.inputs)
        graph.output.extend(outputs)
        for key, value in metadata.items():
            made.metadata_props.append(onnx.StringStringEntryProto(key=key, value=value))
        return made

    def _info(self, name: str, tensor: str) -> onnx.ValueInfoProto:
        kind = self.graph.type_of(tensor)
        sizes = [d if d >= 0 else "batch" if d == -1 else f"{-d}*batch" for d in kind.shape]
        return helper.make_tensor_value_info(name, element_type(kind.dtype), sizes)


def idle_activations(graph: Graph, activations: Mapping[str, ActivationCode]) -> dict[str, Node]:
    """ReLUs and clips that do nothing but what the quantiser behind them does anyway, by node name.

    That is so when the codes reach at most half a step beyond the activation's limits: saturation clips
    to the same code. Runtimes drop such nodes when they fuse; here it does not depend on their tolerance.
    """
    found: dict[str, Node] = {}
    for n in graph.nodes:
        if n.op not in FUSED_ACTIVATIONS or n.outputs[0] not in activations:
            continue
        x, code = n.inputs[0], activations[n.outputs[0]]
        alone = x not in graph.outputs and x not in graph.inputs and len(graph.consumers[x]) == 1
        if not alone or x in activations or x not in graph.tensors:
            continue
        low, high = (0.0, math.inf) if n.op == "relu" else (n.attrs["min"], n.attrs["max"])
        least, most = ((c - code.zero_point) * code.scale for c in (code.low, code.high))
        if least > low - code.scale / 2 and most < high + code.scale / 2:
            found[n.name] = n
    return found


def keeps_values(n: Node, code: ActivationCode) -> bool:
    """Whether values that lie on the input's grid lie on it still behind ``n``."""
    if n.op in VIEW_OPS or n.op == "max_pool":
        return True
    if n.op == "upsample":
        return bool(n.attrs["mode"] == "nearest")
    return n.op == "relu" and code.zero_point == code.low


def harmonised(graph: Graph, activations: Mapping[str, ActivationCode]) -> dict[str, ActivationCode]:
    """Quantisers, made equal where an operation keeps values and the two differ by rounding only.

    Runtimes drop quantise/dequantise around such operations only if scales are the same to the last bit.
    """
    found = dict(activations)
    for n in graph.nodes:
        before = found.get(n.inputs[0]) if n.inputs else None
        after = found.get(n.outputs[0])
        if before is None or after is None or before == after or not keeps_values(n, before):
            continue
        same = dataclasses.replace(after, scale=before.scale) == before
        if same and math.isclose(before.scale, after.scale, rel_tol=1e-5):
            found[n.outputs[0]] = before
    return found


def element_type(dtype: str) -> int:
    """ONNX element type of a torch dtype's name."""
    if dtype not in ELEMENT_TYPES:
        raise UnsupportedOperationError(f"element type {dtype!r} cannot be exported; use float32")
    return ELEMENT_TYPES[dtype]
