"""What the loop counts leave unexplained, learned: one smooth function of the shapes per kind of kernel.

log(time / price) = offset of the kind + Gaussian process over its shapes, the process in Nystroem features
(Williams and Seeger 2001), so that a fit is ridge regression with the prior's covariance. Kernels and whole
networks are fitted together: a network's log latency is not linear in the logs of its kernels, so the fit is
a few Gauss-Newton steps, each with weights that discount outliers (Student's t). What was never measured
keeps its price and a wide spread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from hw_profiles.costs import cpu
from hw_profiles.costs.base import Shapes
from hw_profiles.costs.threads import longest_part
from hw_profiles.kernel import Array, KernelBatch, KernelKind

#: Shapes as the process sees them, with the distance at which two count as unlike (octaves; shares; flags).
FEATURES: Mapping[str, float] = {
    "cin": 6.0, "cout": 6.0, "pixels": 6.0, "out_w": 6.0, "window": 4.0, "kernel_w": 4.0, "stride": 3.0,
    "groups": 8.0, "read": 8.0, "written": 8.0, "ragged_cout": 2.0, "odd_cout": 2.0, "ragged_cin": 2.0,
    "odd_cin": 2.0, "cold": 2.0, "relu": 3.0, "clip": 3.0, "add": 3.0, "ragged_row": 2.0,
    "padded": 2.0, "spilled": 1.4, "touched": 16.0,
}  # fmt: skip
#: Features of kernels without multiply-accumulates: how channels are laid out matters little to them.
_SIMPLE = frozenset({"read", "written", "window", "stride", "cold", "ragged_row", "spilled", "touched"})
#: Prior standard deviations of log(time / price): a kind's offset, its function of the shapes.
OFFSET_SIGMA, SHAPE_SIGMA = 0.3, 0.25
#: Inducing points of a kind at most; one for every six kernels measured.
POINTS = 80
#: Times of single kernels: relative spread, and microseconds that the profiler's clock adds to it.
KERNEL_SIGMA, KERNEL_US = 0.1, 0.6
#: Times of networks: what the sum of kernels misses however many are measured.
NETWORK_SIGMA, NETWORK_US = 0.02, 0.2
#: Degrees of freedom of Student's t; what disturbs a measurement makes it longer, so that residuals on that
#: side are weighed as if larger (networks held out, one thread, a restless machine: 80 to 90 % within 10 %).
_FREEDOM, _LONGER = 4.0, 1.5
_STEPS = 4
_LEAST_US = 0.05
#: Rows of shapes evaluated at once; variance at least; share of a direction's variance below which it counts
#: as unknown.
_ROWS, _LEAST_VARIANCE, _LEAST_KNOWN = 4096, 1e-6, 1e-4
Float32 = NDArray[np.float32]


def touched_bytes(batch: KernelBatch) -> Array:
    """(P, K) bytes that every kernel reads and writes: weights and activations."""
    return np.asarray(batch.in_bytes() + batch.out_bytes() + batch.weight_bytes())


def features(batch: KernelBatch, cold: Array, core_bytes: float, touched: Array | None = None) -> Float32:
    """(P, K, F) shapes in units of FEATURES; `cold` (the weights' share) broadcasts to (P, K), as does
    `touched`, the bytes that a kernel's whole network reads and writes in a run (of the batch's by default).

    Activations that exceed a core's cache are read and written farther away: `spilled`. In a network that
    touches little, every kernel is a little faster: data, code and branch histories stay close.
    """
    if touched is None:
        touched = touched_bytes(batch).sum(axis=1, keepdims=True)
    c, shape = batch.columns, batch.shape
    grouped = np.where(c["groups"] > 1.0, c["groups"], 1.0)
    cin, cout = c["cin"] / grouped, c["cout"]
    flags = {n: np.array([float(n in k.fused) for k in batch.kinds]) for n in ("relu", "clip", "add")}
    columns = {
        "cin": _log(cin), "cout": _log(cout), "pixels": _log(c["batch"] * c["out_h"] * c["out_w"]),
        "out_w": _log(c["out_w"]), "window": _log(c["kernel_h"] * c["kernel_w"]),
        "kernel_w": _log(c["kernel_w"]), "stride": _log(c["stride_w"]), "groups": _log(c["groups"]),
        "read": _log(c["in_elements"]), "written": _log(c["out_elements"]),
        "ragged_cout": np.mod(-cout, 16.0) / 16.0, "odd_cout": np.mod(cout, 4.0) != 0.0,
        "ragged_cin": np.mod(-cin, 16.0) / 16.0, "odd_cin": np.mod(cin, 4.0) != 0.0, "cold": cold, **flags,
        "touched": _log(np.broadcast_to(touched, shape)),
    }  # fmt: skip
    border = (c["out_h"] - 1.0) * c["stride_h"] + c["kernel_h"] - c["in_h"]
    columns["padded"] = border / np.maximum(c["kernel_h"] - 1.0, 1.0)
    held = (batch.in_bytes() + batch.out_bytes()) / core_bytes
    columns["spilled"] = np.clip(held - 0.5, 0.0, 1.5)
    columns["ragged_row"] = np.mod(-np.where(c["out_w"] > 1.0, c["out_w"], c["out_h"]), 16.0) / 16.0
    bearing = np.array([float(kind.has_macs) for kind in batch.kinds], dtype=np.float32)
    found = np.empty((*shape, len(FEATURES)), dtype=np.float32)
    for i, (name, length) in enumerate(FEATURES.items()):
        found[..., i] = np.asarray(columns[name], dtype=np.float32) / np.float32(length)
        if name not in _SIMPLE:
            found[..., i] *= bearing
        elif name == "ragged_row":
            found[..., i] *= 1.0 - bearing
    return found


def _log(x: Array) -> Float32:
    return np.asarray(np.log2(np.maximum(x, 0.5).astype(np.float32)))


def cell_name(kind: KernelKind, table: str) -> str:
    """Kind of kernel that shares one function: the table that prices it and the operation."""
    return f"{table or 'view'}|{kind.op}"


def cells_of(
    batch: KernelBatch, cold: tuple[Array, Array], part: Array | None = None
) -> tuple[list[str], NDArray[np.intp]]:
    """(names, (P, K) index of each kernel's name); what is divided among threads has functions of its own.

    `part` (P, K) is the share that the busiest thread does, None where there is one thread.
    """
    return _divided(*_kinds(batch, cold), part)


def _divided(
    names: list[str], found: NDArray[np.intp], part: Array | None
) -> tuple[list[str], NDArray[np.intp]]:
    if part is None:
        return names, found
    divided = part < 1.0
    used = np.unique(found[divided]) if divided.any() else np.zeros(0, dtype=np.intp)
    places = np.zeros(len(names), dtype=np.intp)
    places[used] = np.arange(len(names), len(names) + len(used))
    return [*names, *(f"{names[i]}|divided" for i in used)], np.where(divided, places[found], found)


def _kinds(batch: KernelBatch, cold: tuple[Array, Array]) -> tuple[list[str], NDArray[np.intp]]:
    names: dict[str, int] = {}
    found = np.zeros(batch.shape, dtype=np.intp)

    def number(kind: KernelKind, table: str) -> int:
        return names.setdefault(cell_name(kind, table), len(names))

    for name, members in cpu.families(batch.kinds).items():
        index = np.asarray(members, dtype=np.intp)
        if name == "simple" or name.startswith("gemm"):
            for i in members:
                found[:, i] = number(
                    batch.kinds[i], cpu.simple_table(batch.kinds[i]) if name == "simple" else name
                )
            continue
        tables = cpu.variant_tables(name)
        kinds = cpu.variants(name, Shapes(batch, index, cold))
        for j, i in enumerate(members):
            used = np.unique(kinds[:, j])
            if len(used) == 1:
                found[:, i] = number(batch.kinds[i], tables[used[0]])
                continue
            numbers = np.zeros(len(tables), dtype=np.intp)
            for variant in used:
                numbers[variant] = number(batch.kinds[i], tables[variant])
            found[:, i] = numbers[kinds[:, j]]
    return list(names), found


class View:
    """Kernels as learned functions see them: what several models of one target price is worked out once."""

    def __init__(self, batch: KernelBatch, core_bytes: float, last_bytes: float) -> None:
        self.batch = batch
        self.cold = cpu.cold_shares(batch, core_bytes, last_bytes)
        self._core_bytes = core_bytes
        self._parts: dict[int, Array] = {}

    @cached_property
    def shapes(self) -> Float32:
        """(P, K, F), see `features`."""
        return features(self.batch, np.broadcast_to(self.cold[0], self.batch.shape), self._core_bytes)

    @cached_property
    def _named(self) -> tuple[list[str], NDArray[np.intp]]:
        return _kinds(self.batch, self.cold)

    def part(self, threads: int) -> Array:
        """(P, K) share of each kernel that the busiest thread does."""
        if threads not in self._parts:
            self._parts[threads] = longest_part(self.batch, threads)
        return self._parts[threads]

    def cells(self, threads: int) -> tuple[list[str], NDArray[np.intp]]:
        """See `cells_of`."""
        return _divided(*self._named, None if threads == 1 else self.part(threads))


@dataclass(frozen=True, eq=False)
class Cell:
    """One kind's function: inducing points (M, F), whitening (M, M), weights (1 + M,) offset first.

    `root` (1 + M, 1 + M) maps basis values to standard deviations; `nugget` is the scatter that no function
    of the shapes explains.
    """

    points: Float32
    whiten: Float32
    weights: Array
    root: Float32
    nugget: float
    count: int

    def basis(self, x: Float32) -> Float32:
        """(n, 1 + M) offset and features of shapes (n, F)."""
        out = np.empty((len(x), 1 + len(self.points)), dtype=np.float32)
        out[:, 0] = OFFSET_SIGMA
        if len(self.points):
            out[:, 1:] = _kernel(x, self.points) @ self.whiten
        return out

    def factor(self, x: Float32, shape_sigma: float | None = None) -> tuple[Float32, Float32]:
        """(log factor, its variance) of shapes (n, F), (n,) each; variance 0 without the prior's sigma.

        With W the whitening and C the weights' covariance, the variance is the prior's less b'(I - C)b of the
        basis b = (offset, k W): one product with a root of I - C in place of two with W and C. What the
        inducing points do not span stays at the prior. Blocks of rows stay in the cache.
        """
        mean, variance = np.empty(len(x), np.float32), np.zeros(len(x), np.float32)
        for first in range(0, len(x), _ROWS):
            rows = slice(first, first + _ROWS)
            kernel = _kernel(x[rows], self.points)
            mean[rows] = kernel @ self._mean[1:] + self._mean[0]
            if shape_sigma is not None:
                learned = kernel @ self._learned[1:]
                learned += self._learned[0]
                variance[rows] = np.einsum("ij,ij->i", learned, learned)
        if shape_sigma is not None:
            np.subtract(np.float32(OFFSET_SIGMA**2 + shape_sigma**2), variance, out=variance)
            np.maximum(variance, np.float32(_LEAST_VARIANCE), out=variance)
        return mean, variance

    @cached_property
    def _mean(self) -> Float32:
        """(1 + M,) what the offset and the kernel's values are multiplied by."""
        shape = self.whiten.astype(np.float64) @ self.weights[1:]
        return np.concatenate([[OFFSET_SIGMA * self.weights[0]], shape]).astype(np.float32)

    @cached_property
    def _learned(self) -> Float32:
        """(1 + M, R) a root of what is known: directions of which next to nothing is known are left out."""
        root = self.root.astype(np.float64)
        values, vectors = np.linalg.eigh(np.eye(len(root)) - root @ root.T)
        kept = values > _LEAST_KNOWN
        scaled = vectors[:, kept] * np.sqrt(values[kept])
        shape = self.whiten.astype(np.float64) @ scaled[1:]
        return np.concatenate([OFFSET_SIGMA * scaled[:1], shape]).astype(np.float32)


def _kernel(x: Float32, z: Float32) -> Float32:
    """(n, M) Gaussian kernel of unit variance."""
    d = x @ z.T
    d *= -2.0
    d += (x * x).sum(axis=1)[:, None]
    d += (z * z).sum(axis=1)
    np.maximum(d, 0.0, out=d)
    d *= -0.5
    return np.asarray(np.exp(d, out=d))


@dataclass(frozen=True, eq=False)
class Residual:
    """The learned functions by kind; `fixed` is the log factor on a network's fixed cost; `shape_sigma` the
    functions' prior standard deviation."""

    cells: Mapping[str, Cell] = field(default_factory=dict)
    fixed: float = 0.0
    shape_sigma: float = SHAPE_SIGMA

    def __call__(
        self, view: View, threads: int = 1, spread: bool = True
    ) -> tuple[Array, Array, Array, NDArray[np.intp]]:
        """(P, K) each: log factor on the price, its standard deviation, scatter, and the kind's number.

        Without `spread` the middle two stay the prior's, which saves most of the time.
        """
        names, numbers = view.cells(threads)
        shape = view.batch.shape
        factor, sigma = np.zeros(shape), np.full(shape, np.hypot(OFFSET_SIGMA, self.shape_sigma))
        scatter = np.full(shape, self.shape_sigma)
        for i, name in enumerate(names):
            if name not in self.cells:
                continue
            cell, where = self.cells[name], np.nonzero(numbers == i)
            mean, variance = cell.factor(view.shapes[where], self.shape_sigma if spread else None)
            factor[where] = mean
            if spread:
                sigma[where] = np.sqrt(variance)
                scatter[where] = cell.nugget
        return factor, sigma, scatter, numbers


def inducing(x: Float32, count: int, rng: np.random.Generator) -> Float32:
    """Up to `count` of the given shapes, each as far as can be from those before (farthest-point order)."""
    unique = np.unique(x, axis=0)
    count = min(count, len(unique))
    chosen = [int(rng.integers(len(unique)))]
    distance = ((unique - unique[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < count and distance.max() > 1e-4:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, ((unique - unique[chosen[-1]]) ** 2).sum(axis=1))
    return unique[chosen]


@dataclass(frozen=True, eq=False)
class Observed:
    """What a fit sees: prices (n,) and fixed cost in microseconds, owners (n,), measured kernels (n,) and
    networks (N,) in microseconds (NaN where unknown), relative spread of the latter (N,)."""

    price_us: Array
    fixed_us: float
    owner: NDArray[np.intp]
    kernel_us: Array
    network_us: Array
    sigma: Array


def fit_residual(
    names: Sequence[str],
    numbers: NDArray[np.intp],
    x: Float32,
    seen: Observed,
    seed: int = 0,
    shape_sigma: float = SHAPE_SIGMA,
    points: int = POINTS,
) -> Residual:
    """Functions of all kinds fitted to kernels and networks; `numbers` (n,) index `names`, `x` is (n, F)."""
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(numbers == i) for i in range(len(names))]
    cells = [_empty(x[rows], rng, shape_sigma, points) for rows in members]
    bases = [cell.basis(x[rows]).astype(np.float64) for cell, rows in zip(cells, members, strict=True)]
    sizes = [basis.shape[1] for basis in bases]
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
    blocks = [slice(starts[i], starts[i + 1]) for i in range(len(cells))]
    total = int(starts[-1]) + 1  # the last is the fixed cost's
    weights, precision = np.zeros(total), np.eye(total)
    for _ in range(_STEPS):
        log_factor = _evaluate(bases, members, weights, blocks, len(x))
        precision, moment = _normal(bases, members, blocks, log_factor, weights, seen, total)
        step = np.linalg.solve(precision, moment)
        weights = weights + np.clip(step, -2.0, 2.0)
        if float(np.abs(step).max()) < 1e-3:
            break
    log_factor = _evaluate(bases, members, weights, blocks, len(x))
    covariance = np.linalg.inv(precision)
    residual = _kernel_residual(log_factor, seen)
    found = {}
    for name, cell, rows, block in zip(names, cells, members, blocks, strict=True):
        root = np.linalg.cholesky(covariance[block, block] + 1e-10 * np.eye(block.stop - block.start))
        found[name] = Cell(
            cell.points,
            cell.whiten,
            weights[block],
            root.astype(np.float32),
            _nugget(residual[rows], seen, rows),
            len(rows),
        )
    return Residual(found, float(weights[-1]) * OFFSET_SIGMA, shape_sigma)


def _empty(x: Float32, rng: np.random.Generator, shape_sigma: float, most: int) -> Cell:
    points = inducing(x, min(most, len(x) // 6), rng) if len(x) > 3 else x[:0]
    gram = _kernel(points, points).astype(np.float64) + 1e-4 * np.eye(len(points))
    whiten = shape_sigma * np.linalg.inv(np.linalg.cholesky(gram)).T if len(points) else gram
    return Cell(
        points, whiten.astype(np.float32), np.zeros(1 + len(points)), np.zeros((1, 1), np.float32), 0.0, 0
    )


def _evaluate(
    bases: Sequence[Array],
    members: Sequence[NDArray[np.intp]],
    weights: Array,
    blocks: Sequence[slice],
    count: int,
) -> Array:
    found = np.zeros(count)
    for basis, rows, block in zip(bases, members, blocks, strict=True):
        found[rows] = basis @ weights[block]
    return found


def _kernel_residual(log_factor: Array, seen: Observed) -> Array:
    """(n,) log of measured over expected, small kernels drawn together by the clock's microseconds."""
    expected = seen.price_us * np.exp(log_factor)
    return np.log((seen.kernel_us + KERNEL_US) / (expected + KERNEL_US))


def _nugget(residual: Array, seen: Observed, rows: NDArray[np.intp]) -> float:
    """Scatter of a kind's kernels beyond their clock's, held to SHAPE_SIGMA / 2 by four kernels."""
    us = seen.kernel_us[rows]
    weight = us / (us + 4.0 * KERNEL_US)
    known = np.isfinite(residual)
    squares = float(np.sum(weight[known] * np.minimum(residual[known] ** 2, 1.0)))
    return float(np.sqrt((4.0 * (SHAPE_SIGMA / 2) ** 2 + squares) / (4.0 + float(weight[known].sum()))))


def _student(residual: Array, sigma: Array) -> Array:
    """Weights that make least squares the maximum likelihood of Student's t, its upper side narrower."""
    beyond = np.where(residual > 0.0, _LONGER, 1.0) * residual / sigma
    return np.asarray((_FREEDOM + 1.0) / (_FREEDOM + beyond**2) / sigma**2)


def _normal(
    bases: Sequence[Array], members: Sequence[NDArray[np.intp]], blocks: Sequence[slice], log_factor: Array,
    weights: Array, seen: Observed, total: int,
) -> tuple[Array, Array]:  # fmt: skip
    """Precision and gradient of the log posterior at the current weights."""
    expected = seen.price_us * np.exp(log_factor)
    residual = _kernel_residual(log_factor, seen)
    slope = expected / (expected + KERNEL_US)
    known = np.isfinite(residual)
    sigma = np.hypot(KERNEL_SIGMA, KERNEL_US / np.where(known, seen.kernel_us + KERNEL_US, 1.0))
    trust = np.where(known, _student(np.where(known, residual, 0.0), sigma), 0.0)
    residual = np.where(known, residual, 0.0)
    fixed = seen.fixed_us * np.exp(weights[-1] * OFFSET_SIGMA)
    count = len(seen.network_us)
    sums = np.bincount(seen.owner, weights=expected, minlength=count) + fixed
    share = expected / sums[seen.owner]
    jacobian = np.zeros((count, total))
    precision, moment = np.eye(total), -weights
    for basis, rows, block in zip(bases, members, blocks, strict=True):
        w = trust[rows] * slope[rows]
        precision[block, block] += (basis * (w * slope[rows])[:, None]).T @ basis
        moment[block] += basis.T @ (w * residual[rows])
        sum_up = sparse.csr_matrix(
            (share[rows], (seen.owner[rows], np.arange(len(rows)))), (count, len(rows))
        )
        jacobian[:, block] = sum_up @ basis
    jacobian[:, -1] = fixed / sums * OFFSET_SIGMA
    whole = np.log(seen.network_us / sums)
    spread = np.sqrt(NETWORK_SIGMA**2 + seen.sigma**2 + (NETWORK_US / seen.network_us) ** 2)
    trust = _student(whole, spread)
    precision += (jacobian * trust[:, None]).T @ jacobian
    moment += jacobian.T @ (trust * whole)
    return precision, moment


__all__ = [
    "FEATURES",
    "Cell",
    "Observed",
    "Residual",
    "View",
    "cells_of",
    "features",
    "fit_residual",
    "touched_bytes",
]
