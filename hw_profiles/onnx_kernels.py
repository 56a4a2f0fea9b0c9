"""Kernels of any ONNX network, as onnxruntime really executes it: optimised graph + profiler events."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from hw_profiles.devices.contract import KernelRecord
from hw_profiles.errors import MeasurementError
from hw_profiles.kernel import ASYMMETRIC, CONV_OPS, MATMUL_OPS, KernelBatch, KernelKind, make_batch
from hw_profiles.measure import Inputs, made_up_inputs, session_options

_WEIGHTED = CONV_OPS | MATMUL_OPS
_QUANTISED = ("Quantize", "Quantise", "QLinear", "QGemm", "Dequantize", "DynamicQuantize")
_FUSED_ATTRIBUTES = ("activation", "activation_func")


@dataclass(frozen=True)
class Execution:
    """What onnxruntime ran: the kernels in order with their shapes, and each one's microseconds by run."""

    batch: KernelBatch
    kernel_us: np.ndarray  # (runs, K)


@dataclass(frozen=True)
class _Event:
    inputs: list[tuple[str, list[int]]]
    outputs: list[tuple[str, list[int]]]


def kernels_of(model: bytes | Path, inputs: Inputs | None = None) -> KernelBatch:
    """The kernels of one network, (1, K), as the default session of this machine's onnxruntime runs them."""
    return execute(model, inputs, runs=1).batch


def execute(model: bytes | Path, inputs: Inputs | None = None, runs: int = 1, threads: int = 1) -> Execution:
    """Run a network under the profiler and read kernels, shapes and times, views included."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = session_options(threads)
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        source = model if isinstance(model, bytes) else str(model)
        try:
            session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            feed = made_up_inputs(session) if inputs is None else dict(inputs)
            for _ in range(runs):
                session.run(None, feed)
        except Exception as error:
            raise MeasurementError(
                f"onnxruntime cannot run the model: {str(error).splitlines()[0]}"
            ) from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        optimised = onnx.load(options.optimized_model_filepath)
    return _join(optimised, events, runs)


def read_record(record: KernelRecord) -> Execution:
    """Kernels and their times from what a device recorded."""
    return _join(onnx.load_from_string(record.optimised), record.events, record.runs)


def _join(optimised: onnx.ModelProto, events: Iterable[Mapping[str, Any]], runs: int) -> Execution:
    """Join nodes with their profiler events by name; every node has one event per run."""
    times: dict[str, list[float]] = {}
    shapes: dict[str, _Event] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        node = name.removesuffix("_kernel_time")
        times.setdefault(node, []).append(float(event["dur"]))
        if node not in shapes:
            arguments = event["args"]
            shapes[node] = _Event(
                _typed(arguments["input_type_shape"]), _typed(arguments["output_type_shape"])
            )
    constants = {i.name: list(i.dims) for i in optimised.graph.initializer}
    slow = asymmetric_nodes(optimised)
    kinds: list[KernelKind] = []
    rows: list[dict[str, float]] = []
    durations: list[list[float]] = []
    for node in optimised.graph.node:
        if node.name not in shapes:
            raise MeasurementError(
                f"node {node.name!r} ({node.op_type}) of the optimised graph was never run"
            )
        kind, row = _kernel(node, shapes[node.name], constants)
        if node.name in slow:
            kind = replace(kind, fused=(*kind.fused, ASYMMETRIC))
        kinds.append(kind)
        rows.append(row)
        durations.append(times[node.name][:runs])
    columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
    return Execution(make_batch(kinds, columns), np.array(durations).T)


def _typed(entries: Iterable[Mapping[str, list[int]]]) -> list[tuple[str, list[int]]]:
    return [(kind, shape) for entry in entries for kind, shape in entry.items()]


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def _kernel(
    node: onnx.NodeProto, event: _Event, constants: Mapping[str, list[int]]
) -> tuple[KernelKind, dict[str, float]]:
    attributes = _attributes(node)
    data_type, source = event.inputs[0] if event.inputs else ("float", [1])
    target = event.outputs[0][1] if event.outputs else source
    weights = next((constants[i] for i in node.input[1:] if len(constants.get(i, ())) >= 2), None)
    weighted = node.op_type in _WEIGHTED and weights is not None
    kind = KernelKind(
        op=node.op_type,
        domain=node.domain if node.domain != "ai.onnx" else "",
        precision=_precision(node, data_type),
        layer=node.name,
        fused=_fused(node, attributes),
        weight_bearing=weighted,
    )
    fed = [shape for (_, shape), name in zip(event.inputs, _fed(node, constants), strict=False) if name]
    data = [s for s in fed if len(s) > 1 or s == source] or [source]
    row = {
        "batch": float(source[0]) if source else 1.0,
        "in_elements": float(sum(_count(s) for s in data)),
        "out_elements": float(_count(target)),
        "weight_elements": float(_count(weights)) if weighted and weights is not None else 0.0,
    }
    if node.op_type in CONV_OPS:
        row |= _convolution(attributes, source, target, weights or [1, 1, 1, 1])
    elif node.op_type in MATMUL_OPS:
        row |= _matmul(attributes, source, target, weighted)
    else:
        row |= _other(node.op_type, attributes, source, target)
    return kind, row


def _fed(node: onnx.NodeProto, constants: Mapping[str, list[int]]) -> list[str]:
    """Names of inputs that are computed at run time; "" for constants. Events list inputs in this order."""
    return ["" if name in constants else name for name in node.input if name]


def _count(shape: list[int]) -> int:
    return int(np.prod(shape, dtype=np.int64)) if shape else 1


def _precision(node: onnx.NodeProto, data_type: str) -> str:
    if data_type in ("uint8", "int8") or node.op_type.startswith(_QUANTISED):
        return "int8"
    if node.op_type.endswith("IntegerToFloat"):
        return "int8"
    return "fp16" if data_type == "float16" else "fp32"


def _fused(node: onnx.NodeProto, attributes: Mapping[str, Any]) -> tuple[str, ...]:
    found = [attributes[a].decode().lower() for a in _FUSED_ATTRIBUTES if attributes.get(a)]
    if node.op_type in ("Conv", "FusedConv") and len(node.input) > 3 and node.input[3]:
        found.append("add")
    return tuple(found)


def asymmetric_nodes(optimised: onnx.ModelProto) -> frozenset[str]:
    """Names of the integer convolutions whose weights have an offset: those without a direct kernel."""
    offsets = {
        i.name
        for i in optimised.graph.initializer
        if i.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
        and len(i.dims) < 2
        and np.any(onnx.numpy_helper.to_array(i) != 0)
    }
    nodes = (n for n in optimised.graph.node if n.op_type == "QLinearConv" and len(n.input) > 5)
    return frozenset(n.name for n in nodes if n.input[5] in offsets)


def _planes(shape: list[int], channels_last: bool) -> tuple[float, float, float]:
    """(channels, height, width) of an activation; missing spatial dimensions are 1."""
    rest = [*shape[1:], 1, 1, 1]
    if channels_last and len(shape) >= 3:
        spatial = [*shape[1:-1], 1]
        return float(shape[-1]), float(spatial[0]), float(spatial[1])
    return float(rest[0]), float(rest[1]), float(rest[2])


def _convolution(
    attributes: Mapping[str, Any], source: list[int], target: list[int], weights: list[int]
) -> dict[str, float]:
    last = bool(attributes.get("channels_last", 0))
    cin, in_h, in_w = _planes(source, last)
    cout, out_h, out_w = _planes(target, last)
    kernel = [*(attributes.get("kernel_shape") or weights[2:]), 1]
    strides = [*(attributes.get("strides") or [1, 1]), 1]
    return {
        "cin": cin, "cout": cout, "groups": float(attributes.get("group", 1)),
        "kernel_h": float(kernel[0]), "kernel_w": float(kernel[1]),
        "stride_h": float(strides[0]), "stride_w": float(strides[1]),
        "in_h": in_h, "in_w": in_w, "out_h": out_h, "out_w": out_w,
    }  # fmt: skip


def _matmul(
    attributes: Mapping[str, Any], source: list[int], target: list[int], weighted: bool
) -> dict[str, float]:
    contracted = source[0] if attributes.get("transA") else (source[-1] if source else 1)
    columns = target[-1] if target else 1
    rows = _count(target) // max(columns, 1)
    batch = float(target[0]) if len(target) > 1 else 1.0
    groups = 1.0 if weighted else float(_count(target[1:-2]))
    return {
        "batch": batch, "cin": float(contracted), "cout": float(columns), "groups": groups,
        "kernel_h": 1.0, "kernel_w": 1.0, "stride_h": 1.0, "stride_w": 1.0,
        "in_h": rows / batch / groups, "in_w": 1.0, "out_h": rows / batch / groups, "out_w": 1.0,
    }  # fmt: skip


def _other(op: str, attributes: Mapping[str, Any], source: list[int], target: list[int]) -> dict[str, float]:
    last = bool(attributes.get("channels_last", 0)) or op.startswith("Nhwc")
    cin, in_h, in_w = _planes(source, last)
    cout, out_h, out_w = _planes(target, last)
    kernel = [*(attributes.get("kernel_shape") or [1]), 1]
    strides = [*(attributes.get("strides") or [1]), 1]
    return {
        "cin": cin, "cout": cout, "groups": 1.0,
        "kernel_h": float(kernel[0]), "kernel_w": float(kernel[1]),
        "stride_h": float(strides[0]), "stride_w": float(strides[1]),
        "in_h": in_h, "in_w": in_w, "out_h": out_h, "out_w": out_w,
    }  # fmt: skip
