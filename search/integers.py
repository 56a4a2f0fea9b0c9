"""Integer products of onnxruntime on this machine: exact, or saturating.

x86 without VNNI adds the products of two u8*s8 pairs in 16 bits, where they saturate (``vpmaddubsw``). A
network made for a processor without that flaw answers otherwise here. Kernels for unsigned weights are slower
and exact, so such a network is asked with its weights shifted: codes and zero points 128 higher, the same
numbers. (onnxruntime's own setting for it, ``session.x64quantprecision``, fails in version 1.32 where layers
share weights.) Networks made for a processor that saturates leave a bit of their weights unused, which needs
no shift.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

    from compressors.resolve import Numerics

_DEPTH = 64
_SHIFT = 128


def exact(model: bytes, numerics: Numerics) -> bytes:
    """The same network, with integer products on this machine as ``numerics`` has them.

    What is no network comes back as it is: loading it will tell.
    """
    if numerics.weight_reserve or not saturates():
        return model
    import onnx

    try:
        found = onnx.ModelProto.FromString(model)
    except Exception:  # protobuf's own exception, whose package has no types
        return model
    shift(found)
    return bytes(found.SerializeToString())


def shift(model: onnx.ModelProto) -> None:
    """Store signed weights of 8 bits unsigned, where they are dequantised or multiplied as integers."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    stored = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.INT8}
    shifted: set[str] = set()

    def moved(name: str) -> None:
        if name not in shifted:
            codes = numpy_helper.to_array(stored[name]).astype(np.int16) + _SHIFT
            stored[name].CopyFrom(numpy_helper.from_array(codes.astype(np.uint8), name))
            shifted.add(name)

    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            moved(node.input[0])
            moved(node.input[2])
        elif node.op_type == "MatMulInteger" and node.input[1] in stored:
            moved(node.input[1])
            zero = f"{node.input[1]}/zero"
            if zero not in stored:
                model.graph.initializer.append(numpy_helper.from_array(np.array(_SHIFT, np.uint8), zero))
                stored[zero] = model.graph.initializer[-1]
            node.input.append(zero)


@lru_cache(maxsize=1)
def saturates() -> bool:
    """Whether products of 8 bits saturate in default sessions here: asked of onnxruntime itself."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.full((_DEPTH, _DEPTH), 127, np.int8), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [_DEPTH, _DEPTH])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [_DEPTH, _DEPTH])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": np.full((_DEPTH, _DEPTH), 255, np.uint8)})
    return bool((found != 255 * 127 * _DEPTH).any())


__all__ = ["exact", "saturates", "shift"]
