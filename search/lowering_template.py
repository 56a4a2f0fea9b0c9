"""Kernel templates: a sequence of kernels whose sizes are formulas of channels kept and ranks.

A template is a pure value with a JSON form. Compiled once, it gives the kernel shapes of thousands of
policies with a matrix product: sizes = constants + values @ multiples, columns = products of sizes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compressors.graph import DimSize
from hw_profiles.kernel import COLUMNS, VIEW_OPS, KernelBatch, KernelKind, activation_width

Array = NDArray[np.float64]


class Dim(NamedTuple):
    """One size: ``const + sum(factor * value[name])``, rounded up to multiples of ``step`` unless 0."""

    const: float
    mult: tuple[tuple[str, float], ...] = ()
    step: int = 0

    def rounded(self, step: int) -> Dim:
        """The size in whole blocks of ``step``; 0 gives the exact size back."""
        if self.mult:
            return self._replace(step=step)
        return Dim(math.ceil(self.const / step) * float(step)) if step else self

    def times(self, factor: float) -> Dim:
        """The size times a number."""
        step = int(self.step * factor)
        return Dim(self.const * factor, tuple((n, m * factor) for n, m in self.mult), step)

    def plus(self, other: Dim) -> Dim:
        """The sum of two sizes."""
        total = dict(self.mult)
        for n, m in other.mult:
            total[n] = total.get(n, 0.0) + m
        step = max(self.step, other.step)  # only whole blocks are joined in a blocked layout
        return Dim(self.const + other.const, tuple(sorted((n, m) for n, m in total.items() if m)), step)

    def at(self, values: Mapping[str, float]) -> float:
        """The size for given channels kept and ranks."""
        exact = self.const + sum(m * values[n] for n, m in self.mult)
        return math.ceil(exact / self.step) * self.step if self.step else exact


@lru_cache(maxsize=65536)
def dim_of(size: DimSize, batch: int) -> Dim:
    """A size of the skeleton at a batch size."""
    factor = batch if size.batch else 1
    return Dim(float(size.const * factor), tuple((g, float(m * factor)) for g, m in size.mult))


ONE = Dim(1.0)
#: A product of sizes, and a sum of such products.
Term = tuple[Dim, ...]
Cell = tuple[Term, ...]


def cell(value: float | Dim) -> Cell:
    """A number or one size as a cell."""
    return ((value if isinstance(value, Dim) else Dim(float(value)),),)


def count(shape: Iterable[Dim]) -> Cell:
    """Number of elements of a shape."""
    return (tuple(shape) or (ONE,),)


@dataclass(frozen=True)
class SymbolicKernel:
    """One kernel of a template: its kind, a cell for every column that is not at its default, and the
    tensors it reads and writes (constants left out)."""

    kind: KernelKind
    cells: Mapping[str, Cell]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    @property
    def is_view(self) -> bool:
        """Whether the result is another view of the first operand."""
        return self.kind.op in VIEW_OPS


@dataclass(frozen=True)
class Template:
    """Kernels in order of execution, and the number of elements of every tensor between them.

    ``inputs`` are live from the start, ``outputs`` to the end. ``source`` says where it comes from:
    "host", "host-without-nchwc" or "rules". ``exact`` templates hold for one policy's sizes only: some
    could not be expressed as formulas.
    """

    kernels: tuple[SymbolicKernel, ...]
    tensors: Mapping[str, Cell]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    source: str
    exact: bool = False
    widths: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def kinds(self) -> tuple[KernelKind, ...]:
        """What each kernel is."""
        return tuple(k.kind for k in self.kernels)

    def compiled(self, names: Sequence[str]) -> CompiledTemplate:
        """The template with its formulas as matrices over the given value names."""
        return CompiledTemplate(self, names)


class Formulas:
    """Many cells evaluated at once: (P, U) values in, (P, number of cells) out."""

    def __init__(self, cells: Sequence[Cell], names: Sequence[str]) -> None:
        index = {n: i for i, n in enumerate(names)}
        dims: dict[Dim, int] = {}
        base = np.zeros(len(cells))
        known: dict[int, float] = {}  # cells of one constant are many and shared
        owners: list[int] = []
        factors: list[float] = []
        parts: list[list[int]] = []
        for i, terms in enumerate(cells):
            if id(terms) in known:
                base[i] = known[id(terms)]
                continue
            for term in terms:
                factor = math.prod([d.const for d in term if not d.mult])
                free = [dims.setdefault(d, len(dims) + 1) for d in term if d.mult]
                if not free:
                    base[i] += factor
                    if len(terms) == 1:
                        known[id(terms)] = factor
                    continue
                owners.append(i)
                factors.append(factor)
                parts.append(free)
        self._base = base
        self._matrix = np.zeros((len(names), len(dims) + 1))
        self._const = np.ones(len(dims) + 1)
        self._steps = np.ones(len(dims) + 1)
        self._stepped = np.array([j for d, j in dims.items() if d.step], dtype=np.intp)
        for d, j in dims.items():
            self._const[j] = d.const
            self._steps[j] = d.step or 1
            for n, m in d.mult:
                self._matrix[index[n], j] = m
        width = max((len(p) for p in parts), default=1)
        self._parts = np.array([p + [0] * (width - len(p)) for p in parts], dtype=np.intp).reshape(-1, width)
        self._factors = np.array(factors)
        self._owners, self._starts = np.unique(np.array(owners, dtype=np.intp), return_index=True)

    def __call__(self, values: Array) -> Array:
        out = np.tile(self._base, (len(values), 1))
        if len(self._owners):
            sizes = values @ self._matrix + self._const
            if len(self._stepped):
                steps = self._steps[self._stepped]
                sizes[:, self._stepped] = np.ceil(sizes[:, self._stepped] / steps) * steps
            terms = sizes[:, self._parts[:, 0]] * self._factors
            for j in range(1, self._parts.shape[1]):
                terms *= sizes[:, self._parts[:, j]]
            out[:, self._owners] += np.add.reduceat(terms, self._starts, axis=1)
        return out


class CompiledTemplate:
    """A template ready to give kernel columns and peak memory of many policies."""

    def __init__(self, template: Template, names: Sequence[str]) -> None:
        self.template = template
        self.names = tuple(names)
        self.kinds = template.kinds
        one = cell(1.0)
        cells = [k.cells.get(c, one) for c in COLUMNS for k in template.kernels]
        self._columns = Formulas(cells, names)
        self._live, tensors = _liveness(template)
        self._tensors = Formulas([template.tensors[t] for t in tensors], names)
        self._widths = np.array([template.widths.get(t, 4.0) for t in tensors])

    def batch(self, values: Array) -> KernelBatch:
        """Kernels of P policies whose channels kept and ranks are ``values`` (P, U)."""
        table = self._columns(values)
        k = len(self.kinds)
        return KernelBatch(self.kinds, {c: table[:, i * k : (i + 1) * k] for i, c in enumerate(COLUMNS)})

    def memory_bytes(self, values: Array) -> Array:
        """(P,) largest sum of live activations, in bytes, over the kernels in order."""
        if not len(self._widths):
            return np.zeros(len(values))
        return np.asarray(((self._tensors(values) * self._widths) @ self._live).max(axis=1))


def _liveness(template: Template) -> tuple[Array, list[str]]:
    """(T, K) 1 where a buffer is live while a kernel runs, and the buffers; views share their source's."""
    root: dict[str, str] = {}
    first: dict[str, int] = dict.fromkeys(template.inputs, 0)
    last: dict[str, int] = dict.fromkeys(template.inputs, 0)
    end = max(len(template.kernels) - 1, 0)
    for i, k in enumerate(template.kernels):
        for t in k.reads:
            last[root.get(t, t)] = i
        for t in k.writes:
            if k.is_view and k.reads:
                root[t] = root.get(k.reads[0], k.reads[0])
                continue
            first.setdefault(t, i)
            last[t] = max(last.get(t, 0), i)
    for t in template.outputs:
        if root.get(t, t) in first:
            last[root.get(t, t)] = end
    buffers = [t for t in first if t in template.tensors]
    live = np.zeros((len(buffers), max(len(template.kernels), 1)))
    for j, t in enumerate(buffers):
        live[j, first[t] : last[t] + 1] = 1.0
    return live, buffers


def element_width(kind: KernelKind) -> float:
    """Bytes per element a kernel writes; array precisions are taken as whole bytes."""
    width = activation_width(kind)[1]
    return 1.0 if np.isnan(width) else width


# -- JSON


def to_json(template: Template) -> dict[str, Any]:
    """JSON document of a template; equal cells are written once."""
    cells: dict[Cell, int] = {}
    known: dict[int, int] = {}

    def index(value: Cell) -> int:
        found = known.get(id(value))
        if found is None:
            found = known[id(value)] = cells.setdefault(value, len(cells))
        return found

    kernels = [
        {
            "kind": [*dataclasses.astuple(k.kind)],
            "cells": {c: index(v) for c, v in k.cells.items()},
            "reads": k.reads,
            "writes": k.writes,
        }
        for k in template.kernels
    ]
    return {
        "kernels": kernels,
        "tensors": {t: index(v) for t, v in template.tensors.items()},
        "cells": [_cell_json(v) for v in cells],
        "inputs": template.inputs,
        "outputs": template.outputs,
        "source": template.source,
        "exact": template.exact,
        "widths": dict(template.widths),
    }


def _cell_json(value: Cell) -> list[Any]:
    return [[[d.const, d.step, *d.mult] for d in term] for term in value]


def _cell_of(doc: Any) -> Cell:
    return tuple(
        tuple(Dim(float(d[0]), tuple((str(n), float(m)) for n, m in d[2:]), int(d[1])) for d in term)
        for term in doc
    )


def from_json(doc: Any) -> Template:
    """The template that `to_json` wrote. Raises KeyError, TypeError, ValueError or IndexError."""
    cells = [_cell_of(c) for c in doc["cells"]]
    kernels = []
    for k in doc["kernels"]:
        op, domain, precision, layer, fused, bearing = k["kind"]
        kind = KernelKind(op, domain, precision, layer, tuple(fused), bool(bearing))
        at = {c: cells[i] for c, i in k["cells"].items()}
        kernels.append(SymbolicKernel(kind, at, tuple(k["reads"]), tuple(k["writes"])))
    return Template(
        tuple(kernels),
        {t: cells[i] for t, i in doc["tensors"].items()},
        tuple(doc["inputs"]),
        tuple(doc["outputs"]),
        str(doc["source"]),
        bool(doc["exact"]),
        {t: float(v) for t, v in doc["widths"].items()},
    )
