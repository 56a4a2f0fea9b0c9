"""Compressed networks on disk: one safetensors file with every value inference uses. No pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from compressors.compressed import ActivationCode, Code, Compressed, DynamicCode, WeightCode
from compressors.network import Network
from compressors.policy import DYNAMIC, ResolvedPolicy
from compressors.resolve import Numerics
from compressors.skeleton import concrete, placed, unknowns

from .errors import InputError
from .safe_json import parse_json

SCHEMA_VERSION = 1
#: Numbers of a weight's code (axis, bits, high) and of an activation's (scale, zero point, bits, low, high).
_CODE, _RANGE = 3, 5


def to_bytes(compressed: Compressed) -> bytes:
    """A compressed network as safetensors: weights, scales of weights and biases, quantisers as metadata."""
    tensors: dict[str, Tensor] = {f"weight/{k}": v.contiguous() for k, v in compressed.weights.items()}
    tensors.update({f"scale/{k}": c.scale.contiguous() for k, c in compressed.codes.items()})
    tensors.update({f"bias_scale/{k}": s.contiguous() for k, s in compressed.biases.items()})
    document = {
        "schema_version": SCHEMA_VERSION,
        "policy": compressed.policy.to_dict(),
        "activations": {
            k: [c.scale, c.zero_point, c.bits, c.low, c.high]
            for k, c in compressed.activations.items()
            if isinstance(c, ActivationCode)
        },
        "codes": {k: [c.axis, c.bits, c.high] for k, c in compressed.codes.items()},
    }
    return save({k: v.clone() for k, v in tensors.items()}, {"tailorbird": json.dumps(document)})


def from_file(path: Path, network: Network, numerics: Numerics) -> Compressed:
    """Read what `to_bytes` wrote, for the network it was made from. Raises InputError, PolicyError."""
    document, tensors = read_parts(path)
    policy = ResolvedPolicy.from_dict(document.get("policy"))
    codes_of, ranges_of = _codes(document, path)
    skeleton = network.skeletons.of(policy)
    graph = concrete(skeleton.graph, skeleton, unknowns(policy, network.structure))
    graph, where = placed(graph, network.structure, skeleton, policy, numerics)
    weights = {k.removeprefix("weight/"): v for k, v in tensors.items() if k.startswith("weight/")}
    missing = [p for p, t in graph.params.items() if p not in weights or tuple(weights[p].shape) != t.shape]
    if missing:
        raise InputError(
            f"{str(path)!r} does not fit this network: {missing[0]!r} is missing or of another shape."
        )
    unscaled = next((k for k in codes_of if f"scale/{k}" not in tensors), None)
    if unscaled is not None:
        raise InputError(f"{str(path)!r} has no scales for {unscaled!r}.")
    codes = {k: WeightCode(tensors[f"scale/{k}"], *c) for k, c in codes_of.items()}
    biases = {k.removeprefix("bias_scale/"): v for k, v in tensors.items() if k.startswith("bias_scale/")}
    activations: dict[str, Code] = {k: ActivationCode(*c) for k, c in ranges_of.items()}
    if policy.ranges == DYNAMIC:  # nothing to be kept of these
        activations = {t: DynamicCode.of(bits, graph, t) for t, bits in where.tensors.items()}
    return Compressed(
        policy, numerics, graph, weights, activations, codes, biases, skeleton.layer_of, skeleton.unfoldable
    )


def read_parts(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(document, tensors) of a file. Raises InputError."""
    try:
        with safe_open(str(path), framework="pt") as file:
            document = parse_json((file.metadata() or {}).get("tailorbird", "null"))
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as problem:
        raise InputError(f"cannot read weights from {str(path)!r}: {problem}") from problem
    if not isinstance(document, dict) or document.get("schema_version") != SCHEMA_VERSION:
        raise InputError(f"{str(path)!r} does not hold a compressed network of this version.")
    return document, tensors


def _codes(document: dict[str, Any], path: Path) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """(codes of weights, of activations) of a document: lists of numbers by name. Raises InputError."""
    found: list[dict[str, list[Any]]] = []
    for key, count in (("codes", _CODE), ("activations", _RANGE)):
        table = document.get(key)
        if not isinstance(table, dict) or not all(_is_row(row, count) for row in table.values()):
            raise InputError(f"{str(path)!r}: its {key} are not {count} numbers each.")
        found.append(table)
    return found[0], found[1]


def _is_row(row: Any, count: int) -> bool:
    return (
        isinstance(row, list)
        and len(row) == count
        and all(x is None or (isinstance(x, int | float) and not isinstance(x, bool)) for x in row)
    )
