"""What onnxruntime really executes of a file: optimised graph and profiler events; apart from lowering."""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hw_profiles.kernel import CONV_OPS, MATMUL_OPS, KernelBatch
from search.errors import InputError
from search.foreign import executed, foreign

if TYPE_CHECKING:
    import onnx

    from hw_profiles.devices.emulated import EmulatedX86

#: Elements of one input that are made up: zeros of a gigabyte.
MOST_ELEMENTS = 1 << 28
_NUMPY = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8, "tensor(bool)": np.bool_,
}  # fmt: skip
_INTEGER_OPS = ("QLinear", "QGemm", "MatMulInteger", "DynamicQuantize", "QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class FoundKernel:
    """One kernel of the loaded file. Shapes are those of a run; ``weights`` are the names of its
    multi-dimensional constants, ``weight_shape`` the first one's sizes (blocked layouts are padded)."""

    op: str
    domain: str
    precision: str
    name: str
    fused: tuple[str, ...]
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    weights: tuple[str, ...]
    weight_shape: tuple[int, ...]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    window: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    groups: int = 1
    channels_last: bool = False

    @property
    def weight_bearing(self) -> bool:
        """Whether it multiplies activations with stored weights."""
        return (self.op in CONV_OPS or self.op in MATMUL_OPS) and bool(self.weights)

    @property
    def in_elements(self) -> int:
        """Elements read, constants and, beside a tensor, scales and other single numbers left out."""
        first = self.inputs[0] if self.inputs else ()
        return sum(math.prod(s) for s in self.inputs if len(s) > 1 or s == first)

    @property
    def out_elements(self) -> int:
        """Elements of the first result."""
        return math.prod(self.outputs[0]) if self.outputs else 0


@dataclass(frozen=True)
class Difference:
    """Kernels priced and kernels found, where the two do not match. ``priced`` or ``found`` may be 0."""

    kernel: str
    layers: tuple[str, ...]
    priced: int
    found: int

    def __str__(self) -> str:
        where = f" at {', '.join(self.layers)}" if self.layers else ""
        return f"{self.kernel}{where}: priced {self.priced}, found {self.found}"


def read_kernels(
    model: bytes | Path, method: str = "host", inputs: Mapping[str, Any] | None = None, batch: int = 1
) -> list[FoundKernel]:
    """Kernels in order of execution, as onnxruntime's default session makes and runs them on zeros.

    ``method`` is the target's way to templates: "host", "host-without-nchwc" for the stand-in of arm64, or
    "x86-avx2", which is emulated where this machine is another.
    Raises InputError when the file cannot be loaded or run.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised as well
    options.intra_op_num_threads = 1
    if method == "host-without-nchwc":
        options.add_session_config_entry("optimization.disable_specified_optimizers", "NchwcTransformer")
    source = model if isinstance(model, bytes) else str(model)
    device = foreign(method)
    if device is not None:
        return _emulated(device, source, options, inputs, batch)
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            session.run(None, dict(inputs) if inputs is not None else made_up(session, batch))
        except Exception as problem:
            line = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
            name = "the file" if isinstance(model, bytes) else repr(str(model))
            raise InputError(f"onnxruntime cannot load and run {name}: {line[:200]}") from problem
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        graph = onnx.load(options.optimized_model_filepath).graph
    return _joined(graph, events)


def _emulated(
    device: EmulatedX86, source: bytes | str, options: Any, inputs: Mapping[str, Any] | None, batch: int
) -> list[FoundKernel]:
    """The same on an emulated processor. This machine's session tells the inputs."""
    import onnx
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        model = source if isinstance(source, bytes) else onnx.load(source).SerializeToString()
        graph, events = executed(
            device, model, dict(inputs) if inputs is not None else made_up(session, batch)
        )
    except Exception as problem:
        line = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise InputError(f"onnxruntime cannot load and run the file there: {line[:200]}") from problem
    return _joined(onnx.load_from_string(graph).graph, events)


def made_up(session: Any, batch: int = 1) -> dict[str, Any]:
    """Inputs of the right shapes; free dimensions are the batch."""
    feed: dict[str, Any] = {}
    for i in session.get_inputs():
        sizes = [d if isinstance(d, int) and d > 0 else batch for d in i.shape]
        if math.prod(sizes) > MOST_ELEMENTS:
            raise InputError(
                f"input {i.name[:80]!r} has {math.prod(sizes):.3g} elements; {MOST_ELEMENTS} are many."
            )
        feed[i.name] = np.zeros(sizes, dtype=_NUMPY.get(i.type, np.float32))
    return feed


def _joined(graph: onnx.GraphProto, events: Sequence[Mapping[str, Any]]) -> list[FoundKernel]:
    """Nodes of the optimised graph in the order in which the profiler saw them run."""
    nodes: dict[str, list[Any]] = {}
    for node in graph.node:
        nodes.setdefault(node.name, []).append(node)
    constants = {i.name: tuple(i.dims) for i in graph.initializer}
    found = []
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        waiting = nodes.get(name.removesuffix("_kernel_time")) or nodes.get("") or []
        wanted = event["args"].get("op_name")
        node = next((n for n in waiting if n.op_type == wanted), None)
        if node is None:
            continue
        waiting.remove(node)
        found.append(_kernel(node, event["args"], constants))
    return found


def _shapes(entries: Sequence[Mapping[str, Sequence[int]]]) -> list[tuple[str, tuple[int, ...]]]:
    return [(kind, tuple(shape)) for entry in entries for kind, shape in entry.items()]


def _kernel(node: Any, event: Mapping[str, Any], constants: Mapping[str, tuple[int, ...]]) -> FoundKernel:
    import onnx

    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if node.op_type.startswith("Nhwc"):
        attrs.setdefault("channels_last", 1)
    ins = _shapes(event["input_type_shape"])
    names = [t for t in node.input if t]
    data = [s for (_, s), t in zip(ins, names, strict=False) if t not in constants]
    weights = tuple(t for t in node.input[1:] if len(constants.get(t, ())) >= 2)
    fused = [attrs[a].decode().lower() for a in ("activation", "activation_func") if attrs.get(a)]
    if node.op_type in ("Conv", "FusedConv") and len(node.input) > 3 and node.input[3]:
        fused.append("add")
    kind = ins[0][0] if ins else "float"
    integer = kind in ("uint8", "int8") or node.op_type.startswith(_INTEGER_OPS)
    return FoundKernel(
        node.op_type,
        "" if node.domain == "ai.onnx" else node.domain,
        "int8" if integer else "fp16" if kind == "float16" else "fp32",
        node.name,
        tuple(fused),
        tuple(data),
        tuple(s for _, s in _shapes(event["output_type_shape"])),
        weights,
        constants[weights[0]] if weights else (),
        tuple(t for t in names if t not in constants),
        tuple(t for t in node.output if t),
        tuple(attrs.get("kernel_shape") or ()),
        tuple(attrs.get("strides") or ()),
        int(attrs.get("group", 1)),
        bool(attrs.get("channels_last", 0)),
    )


_Key = tuple[str, str, str, tuple[str, ...], int, int]


def compare(priced: KernelBatch, found: Sequence[FoundKernel]) -> list[Difference]:
    """Kernels of one policy (a batch of one row) against those found; [] when they are the same.

    Compared are operation, domain, precision, what is fused, and elements read and written per sample,
    without regard to order.
    """
    batch = _batch_ratio(priced, found)
    ours: Counter[_Key] = Counter()
    layers: dict[_Key, list[str]] = {}
    for i, k in enumerate(priced.kinds):
        size = (round(float(priced[c][0, i]) / batch) for c in ("in_elements", "out_elements"))
        key: _Key = (k.op, k.domain, k.precision, k.fused, *size)  # type: ignore[assignment]
        ours[key] += 1
        if k.layer:
            layers.setdefault(key, []).append(k.layer)
    theirs: Counter[_Key] = Counter(
        (k.op, k.domain, k.precision, k.fused, k.in_elements, k.out_elements) for k in found
    )
    return [
        Difference(_describe(key), tuple(dict.fromkeys(layers.get(key, ()))), ours[key], theirs[key])
        for key in {**ours, **theirs}
        if ours[key] != theirs[key]
    ]


def _batch_ratio(priced: KernelBatch, found: Sequence[FoundKernel]) -> float:
    first = next((k.inputs[0][0] for k in found if k.inputs and k.inputs[0]), 1)
    return float(priced["batch"][0, 0]) / first if len(priced.kinds) and first else 1.0


def _describe(key: _Key) -> str:
    op, domain, precision, fused, read, written = key
    name = f"{domain.removeprefix('com.microsoft.')}.{op}" if "nchwc" in domain else op
    return f"{name}{'+' + '+'.join(fused) if fused else ''} {precision} {read}→{written} elements"
