"""Policies as pure values: proposed in ratios (`Policy`), resolved into integers (`ResolvedPolicy`).

Only the resolved policy counts: it is what is hashed, stored, priced and exported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .errors import PolicyError
from .factors import FACTORISATIONS

SCHEMA_VERSION = 1
#: Bits of a value that is not quantised.
FLOAT = 32
#: Ranges of activations that a runtime finds as it runs, of every sample anew.
DYNAMIC = "dynamic"
#: What a document that does not name how weight scales are found means.
SCALES = "mse"


@dataclass(frozen=True)
class Factor:
    """A factorisation of one layer: ``method``, one of `FACTORISATIONS`, and its rank(s)."""

    method: str
    rank: tuple[int, ...]


@dataclass(frozen=True)
class Policy:
    """A proposal in ratios; what is not named is left as it is.

    ``keep[group]`` in (0, 1]; ``rank[layer]`` = (method, ratio of the full rank in (0, 1]);
    ``weight_bits[layer]`` and ``act_bits[tensor group]`` in 2..8 or 32 (float); ``removed`` names blocks.
    ``criterion`` chooses which channels stay; ``ranges`` and ``scales`` how the ranges of activations and
    the scales of weights are found.
    """

    keep: Mapping[str, float] = field(default_factory=dict)
    rank: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    weight_bits: Mapping[str, int] = field(default_factory=dict)
    act_bits: Mapping[str, int] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()
    criterion: str = "obs"
    ranges: str = "mse"
    scales: str = "mse"


@dataclass(frozen=True)
class ResolvedPolicy:
    """What is done to one network, in integers. Compare, hash and store by value.

    ``kept`` names every group that survives, ``weight_bits`` every layer that survives, ``act_bits``
    every tensor group that survives; ``factors`` only layers that are factorised.
    """

    network: str
    kept: Mapping[str, int]
    factors: Mapping[str, Factor]
    weight_bits: Mapping[str, int]
    act_bits: Mapping[str, int]
    removed: tuple[str, ...] = ()
    criterion: str = "obs"
    ranges: str = "mse"
    scales: str = "mse"

    def to_dict(self) -> dict[str, Any]:
        """JSON document, keys sorted, as `policy_schema` describes it."""
        layers: dict[str, dict[str, Any]] = {}
        for name in sorted(self.weight_bits):
            layers[name] = {"weight_bits": self.weight_bits[name]}
            if name in self.factors:
                f = self.factors[name]
                layers[name]["factor"] = {"method": f.method, "rank": list(f.rank)}
        found = {
            "schema_version": SCHEMA_VERSION,
            "network": self.network,
            "groups": dict(sorted(self.kept.items())),
            "layers": layers,
            "tensors": dict(sorted(self.act_bits.items())),
            "removed": sorted(self.removed),
            "criterion": self.criterion,
            "ranges": self.ranges,
        }
        if self.scales != SCALES:
            found["scales"] = self.scales
        return found

    def to_json(self) -> str:
        """Canonical JSON text."""
        return json.dumps(self.to_dict(), indent=1, sort_keys=True)

    @cached_property
    def digest(self) -> str:
        """sha256 (first 16 hex digits) of the canonical JSON."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResolvedPolicy) and self.digest == other.digest

    @classmethod
    def from_dict(cls, doc: Any) -> ResolvedPolicy:
        """Read a document checked against the schema. Raises PolicyError naming what is wrong."""
        problem = check_document(doc)
        if problem:
            raise PolicyError(f"not a policy: {problem}. See `search apply --help` for the schema.")
        return cls(
            network=doc["network"],
            kept=dict(doc["groups"]),
            factors={
                n: Factor(v["factor"]["method"], tuple(v["factor"]["rank"]))
                for n, v in doc["layers"].items()
                if "factor" in v
            },
            weight_bits={n: v["weight_bits"] for n, v in doc["layers"].items()},
            act_bits=dict(doc["tensors"]),
            removed=tuple(sorted(doc["removed"])),
            criterion=doc["criterion"],
            ranges=doc["ranges"],
            scales=doc.get("scales", SCALES),
        )


def policy_schema() -> dict[str, Any]:
    """The JSON Schema of policy documents, with every factorisation that is registered in this process.

    The published ``policy.schema.json`` is this schema with the built-in ones.
    """
    text = Path(__file__).with_name("policy.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    schema["$defs"]["factor"]["oneOf"] = [
        {
            "description": FACTORISATIONS.summary(name),
            "type": "object",
            "required": ["method", "rank"],
            "additionalProperties": False,
            "properties": {
                "method": {"const": name},
                "rank": {
                    "type": "array",
                    "items": {"$ref": "#/$defs/rank"},
                    "minItems": scheme.ranks,
                    "maxItems": scheme.ranks,
                },
            },
        }
        for name, scheme in FACTORISATIONS.items()
    ]
    return schema


def check_document(doc: Any) -> str:
    """What is wrong with a policy document, "" when nothing is. Mirrors `policy_schema`."""
    if not isinstance(doc, dict):
        return f"expected an object, got {type(doc).__name__}"
    version = doc.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        return f"schema_version is {doc.get('schema_version')!r}, this version reads {SCHEMA_VERSION}"
    kinds = {
        "network": str,
        "groups": dict,
        "layers": dict,
        "tensors": dict,
        "removed": list,
        "criterion": str,
        "ranges": str,
    }
    for key, kind in kinds.items():
        if not isinstance(doc.get(key), kind):
            return f"{key!r} is missing or not of type {kind.__name__}"
    if not isinstance(doc.get("scales", SCALES), str):
        return "'scales' is not of type str"
    for key in doc:
        if key not in kinds and key not in ("schema_version", "scales"):
            return f"unknown key {key!r}"
    for name, kept in doc["groups"].items():
        if not _int_in(kept, 1, 1 << 24):
            return f"groups[{name!r}] = {kept!r} is not a positive integer"
    for name, bits in doc["tensors"].items():
        if not _is_bits(bits):
            return f"tensors[{name!r}] = {bits!r} is not 2..8, 16 or 32"
    if not all(isinstance(x, str) for x in doc["removed"]):
        return "'removed' holds something other than names"
    return next((p for n, v in doc["layers"].items() if (p := _check_layer(n, v))), "")


def _check_layer(name: str, value: Any) -> str:
    where = f"layers[{name!r}]"
    if not isinstance(value, dict) or not set(value) <= {"weight_bits", "factor"}:
        return f"{where} must hold weight_bits and optionally factor"
    if not _is_bits(value.get("weight_bits")):
        return f"{where}.weight_bits = {value.get('weight_bits')!r} is not 2..8, 16 or 32"
    if "factor" not in value:
        return ""
    factor = value["factor"]
    if not isinstance(factor, dict) or set(factor) != {"method", "rank"}:
        return f"{where}.factor must hold method and rank, nothing else"
    if not isinstance(factor["method"], str) or factor["method"] not in FACTORISATIONS:
        return f"{where}.factor.method must be one of {', '.join(FACTORISATIONS)}"
    rank = factor["rank"]
    if (
        not isinstance(rank, list)
        or len(rank) != FACTORISATIONS[factor["method"]].ranks
        or not all(_int_in(r, 1, 1 << 24) for r in rank)
    ):
        return f"{where}.factor.rank = {rank!r} does not fit method {factor['method']!r}"
    return ""


def _int_in(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_bits(value: Any) -> bool:
    return _int_in(value, 2, 8) or (_int_in(value, 16, 32) and value in (16, FLOAT))
