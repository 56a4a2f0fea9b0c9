"""Formulas that lowering needs of a skeleton: bytes of the parameters, sizes whose alignment matters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compressors.skeleton import Placement, Skeleton
from hw_profiles.target import Target
from search.lowering_template import Cell, Dim, dim_of

_BYTES = {"float32": 4.0, "float64": 8.0, "float16": 2.0, "int64": 8.0, "int32": 4.0, "bool": 1.0}


def parameter_bytes(skeleton: Skeleton, where: Placement) -> Cell:
    """Bytes of everything stored: integer weights at their bits plus a float scale per channel; biases and
    all other parameters at 4 bytes (int32 or float32)."""
    axis = {
        n.inputs[1]: 1 if n.op == "conv_transpose" and n.attrs["groups"] == 1 else 0
        for n in skeleton.graph.nodes
        if n.name in skeleton.layer_of
    }
    terms: list[tuple[Dim, ...]] = []
    for name, kind in skeleton.graph.params.items():
        if name in skeleton.sizes:
            shape = tuple(dim_of(d, 1) for d in skeleton.sizes[name])
        else:
            shape = tuple(Dim(float(d)) for d in kind.shape)
        bits = where.params.get(name)
        width = _BYTES.get(kind.dtype, 4.0) if bits is None else bits / 8.0
        terms.append((Dim(width), *shape))
        if bits is not None:
            terms.append((Dim(4.0), shape[axis[name]]))
    return tuple(terms)


def alignment_dims(skeleton: Skeleton, where: Placement, target: Target) -> list[Dim]:
    """Channel counts on which the runtime's choice of layout depends: those of float convolutions."""
    from search.templates import BLOCKED

    if target.runtime.templates not in BLOCKED:
        return []
    found: dict[Dim, None] = {}
    for n in skeleton.graph.nodes:
        if n.op != "conv" or n.inputs[1] in where.params:
            continue
        for size in skeleton.sizes[n.inputs[1]][:2]:
            dim = dim_of(size, 1)
            if dim.mult:
                found[dim] = None
    return list(found)


def alignment_classes(sizes: NDArray[np.float64], target: Target) -> NDArray[np.int8]:
    """Class of each size, (P, D): whole blocks, multiples of four, or neither; below a block or not."""
    from search.templates import block_size

    block = block_size(target.runtime.templates)
    ragged = np.where(sizes % 4 == 0, 1, 2) + np.where(sizes < block, 2, 0)
    return np.asarray(np.where(sizes % block == 0, 0, ragged), dtype=np.int8)
