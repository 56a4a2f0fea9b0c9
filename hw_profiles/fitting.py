"""Fitting loop-count cost models: design rows of kernels, non-negative least squares, constants into YAML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from hw_profiles.costs import cpu, cpu_loops
from hw_profiles.costs.base import Shapes
from hw_profiles.errors import BadTargetError
from hw_profiles.kernel import Array, KernelBatch, activation_width

#: A constant: (table, feature).
Key = tuple[str, str]
Row = dict[Key, float]


def design_rows(batch: KernelBatch, core_bytes: float, last_bytes: float) -> list[Row]:
    """Loop counts of the first policy's kernels: one row per kernel, the constant's key to its count.

    The time of a kernel is the sum of constant x count, in nanoseconds, just as `CpuCost` computes it.
    """
    one = batch.row(0)
    cold = cpu.cold_shares(one, core_bytes, last_bytes)
    return [_row(one, k, cold) for k in range(len(one.kinds))]


def _row(batch: KernelBatch, k: int, cold: tuple[Array, Array]) -> Row:
    kind, shapes = batch.kinds[k], Shapes(batch, [k], cold)
    family = cpu.family(kind)
    if family == "simple":
        table = cpu.simple_table(kind) or "view"
        features = cpu.simple_features(shapes, *activation_width(kind)) if table != "view" else {}
        if "pool" not in table:
            features.pop("taps", None)  # the same as what is written
    else:
        table = family
        if not family.startswith("gemm"):
            table = cpu.variant_table(family, int(cpu.variants(family, shapes)[0, 0]))
        features = cpu_loops.MODELS[table](shapes)
    row = {(table, name): float(np.broadcast_to(count, (1, 1))[0, 0]) for name, count in features.items()}
    return {**row, (table, "overhead"): 1.0}


def total(rows: Iterable[Row]) -> Row:
    """The row of a whole network: its kernels' rows added up."""
    summed: Row = {}
    for row in rows:
        for key, count in row.items():
            summed[key] = summed.get(key, 0.0) + count
    return summed


def solve(
    rows: Sequence[Row], times_ns: Array, weights: Array, ridge: float = 1e-3, drop: Iterable[Key] = ()
) -> dict[Key, float]:
    """Non-negative constants minimising the weighted squared error of `times_ns`, (n,).

    Columns are scaled to unit norm first; the small ridge settles columns that cannot be told apart.
    """
    dropped = set(drop)
    keys = sorted({key for row in rows for key in row} - dropped)
    index = {key: i for i, key in enumerate(keys)}
    matrix = np.zeros((len(rows), len(keys)))
    for i, row in enumerate(rows):
        for key, count in row.items():
            if key in index:
                matrix[i, index[key]] = count
    matrix *= weights[:, None]
    norms = np.linalg.norm(matrix, axis=0)
    norms[norms == 0.0] = 1.0
    gram = matrix / norms
    stacked = np.vstack([gram, ridge * np.eye(len(keys))])
    found, _ = nnls(
        stacked, np.concatenate([times_ns * weights, np.zeros(len(keys))]), maxiter=50 * len(keys)
    )
    return {key: float(value) for key, value in zip(keys, found / norms, strict=True)}


def predict_ns(row: Row, constants: Mapping[Key, float]) -> float:
    """Nanoseconds of a kernel or of a whole network."""
    return sum(count * constants.get(key, 0.0) for key, count in row.items())


def log_errors(predicted: Array, measured: Array) -> Array:
    """|log(predicted / measured)|: 0.05 is 5 %."""
    return np.asarray(np.abs(np.log(predicted / measured)))


def log_sigma(errors: Array) -> float:
    """Standard deviation whose 90 % interval covers 90 % of these |log errors|: 0.9 quantile / 1.645."""
    return float(np.quantile(errors, 0.9) / 1.645)


def constants_yaml(constants: Mapping[Key, float], sources: Mapping[str, str]) -> str:
    """The `constants:` block of a target file; `sources` by table, "" for the rest. Zeros are left out."""
    tables: dict[str, dict[str, float]] = {}
    for (table, name), value in sorted(constants.items()):
        if value > 0.0 or name == "overhead":
            tables.setdefault(table, {})[name] = value
    lines = ["  constants:"]
    anchors: dict[str, str] = {}
    for table, entries in tables.items():
        source = sources.get(table, sources.get("", ""))
        lines.append(f"    {table}:")
        for name, value in entries.items():
            text = f"*{anchors[source]}" if source in anchors else f'&fit{len(anchors)} "{source}"'
            anchors.setdefault(source, f"fit{len(anchors)}")
            lines.append(f"      {name}: {{value: {value:.4g}, source: {text}}}")
    return "\n".join(lines)


def replace_block(path: Path, name: str, text: str, indent: str = "") -> None:
    """Replace what stands between `# name: begin` and `# name: end` in a target file."""
    content = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"({indent}# {name}: begin\n).*?({indent}# {name}: end\n)", re.DOTALL)
    if not pattern.search(content):
        raise BadTargetError(f"target file {path.name!r} has no block '# {name}: begin' ... '# {name}: end'")
    path.write_text(pattern.sub(lambda m: m[1] + text.rstrip("\n") + "\n" + m[2], content), encoding="utf-8")


def validation_yaml(errors: Array, held_out: str, command: str, backing: str) -> str:
    """The `validation` and `backing` of a target file from held-out relative errors (N,)."""
    return "\n".join(
        (
            "validation:",
            "  status: validated",
            f"  median_error: {float(np.median(errors)):.3f}",
            f"  worst_error: {float(errors.max()):.3f}",
            f'  held_out: "{held_out}"',
            f'  command: "{command}"',
            f'backing: "{backing}"',
        )
    )
