"""Policies, the policy space, traced networks, and doing a policy to a network.

Names are loaded when first asked for: the pure values (policy, space, structure) need no torch.
Functions that share a module's name (`trace.trace`, `resolve.resolve`, `simulate.simulate`) live there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .apply import compress
    from .compressed import Compressed
    from .errors import CompressorError, NumericsError, PolicyError, TraceError
    from .factors import Factorisation, Step, factorisation
    from .graph import Graph, Structure
    from .importance import criterion
    from .network import Network
    from .policy import FLOAT, Factor, Policy, ResolvedPolicy
    from .quantize import range_method, weight_scale
    from .resolve import Numerics
    from .simulate import answers
    from .space import Abilities, PolicySpace
    from .structure import structure_of
    from .version import COMPRESSOR_VERSION

_HOME = {
    "Abilities": "space",
    "Compressed": "compressed",
    "CompressorError": "errors",
    "COMPRESSOR_VERSION": "version",
    "FLOAT": "policy",
    "Factor": "policy",
    "Factorisation": "factors",
    "Graph": "graph",
    "Network": "network",
    "Numerics": "resolve",
    "NumericsError": "errors",
    "Policy": "policy",
    "PolicyError": "errors",
    "PolicySpace": "space",
    "ResolvedPolicy": "policy",
    "Step": "factors",
    "Structure": "graph",
    "TraceError": "errors",
    "answers": "simulate",
    "compress": "apply",
    "criterion": "importance",
    "factorisation": "factors",
    "range_method": "quantize",
    "structure_of": "structure",
    "weight_scale": "quantize",
}

__all__ = [
    "COMPRESSOR_VERSION",
    "FLOAT",
    "Abilities",
    "Compressed",
    "CompressorError",
    "Factor",
    "Factorisation",
    "Graph",
    "Network",
    "Numerics",
    "NumericsError",
    "Policy",
    "PolicyError",
    "PolicySpace",
    "ResolvedPolicy",
    "Step",
    "Structure",
    "TraceError",
    "answers",
    "compress",
    "criterion",
    "factorisation",
    "range_method",
    "structure_of",
    "weight_scale",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{home}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
