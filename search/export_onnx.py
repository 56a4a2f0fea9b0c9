"""The ONNX file of a compressed network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressors.policy import FLOAT
from search.emit import emit

if TYPE_CHECKING:
    from compressors.compressed import Compressed


def export_model(compressed: Compressed) -> bytes:
    """A compressed network as an ONNX model: quantise/dequantise where the simulation has them.

    Weights of fewer than 8 bits are stored as int8 codes that use only their range, activations of fewer
    bits as clipped 8-bit codes: onnxruntime computes the right values, but no faster. The model's metadata
    names the policy, the numerics, and under "values_only" the layers and tensors of which that is true.
    """
    model = emit(
        compressed.graph,
        compressed.weights,
        compressed.activations,
        compressed.codes,
        compressed.biases,
        metadata(compressed),
    )
    data: bytes = model.SerializeToString()
    return data


def metadata(compressed: Compressed) -> dict[str, str]:
    """What the file says of itself."""
    found = {
        "policy": compressed.policy.digest,
        "network": compressed.policy.network,
        "numerics": compressed.numerics.key,
    }
    reduced = values_only(compressed)
    if reduced:
        found["values_only"] = "; ".join(reduced)
    return found


def values_only(compressed: Compressed) -> tuple[str, ...]:
    """Layers and tensors whose bits onnxruntime has no kernels for, e.g. "layer1.conv1 w4", "relu_3 a4"."""
    layer_of = compressed.layer_of
    found: dict[str, None] = {}
    for n in compressed.graph.nodes:
        if len(n.inputs) < 2 or n.inputs[1] not in compressed.codes:
            continue
        bits = compressed.codes[n.inputs[1]].bits
        integer = n.inputs[0] in compressed.activations
        if bits not in (8, FLOAT) or not integer:
            found[f"{layer_of.get(n.name, n.name)} w{bits}"] = None
    for tensor, code in compressed.activations.items():
        if code.bits != 8:
            found[f"{tensor} a{code.bits}"] = None
    return tuple(found)
