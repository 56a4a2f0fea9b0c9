"""Fit the loop-count constants of x86-avx512-vnni to the tables of scripts/profile_x86.py.

    .venv/bin/python scripts/fit_x86.py             # held-out errors, and the target's constants rewritten
    .venv/bin/python scripts/fit_x86.py --dry-run   # errors only

Kernels and whole networks are fitted together (a network is the sum of its kernels plus a fixed cost), every
row by its relative error. Held out are whole networks, five folds; the baseline is fitted on the same folds.
"""

from __future__ import annotations

import argparse
import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import lsq_linear

from hw_profiles.costs.threads import longest_part
from hw_profiles.fitting import (
    Key,
    Row,
    constants_yaml,
    design_rows,
    log_sigma,
    predict_ns,
    replace_block,
    solve,
    total,
)
from hw_profiles.kernel import COLUMNS, KernelKind, make_batch
from hw_profiles.target import DATA_FOLDER, TARGETS_FOLDER, load_target

TARGET = "x86-avx512-vnni"
COMMAND = "python scripts/fit_x86.py"
FOLDS = 5
#: A whole network counts as much as this many of its kernels: its time is measured directly.
NETWORK_WEIGHT = 6.0
#: Kernels under a few microseconds are known to a fraction of a microsecond only.
FLOOR_NS = 4000.0


#: Work that scales alike with threads, by class of cost, and the tables it comes from.
PARALLEL = {
    "float": ("conv_float",),
    "integer": ("conv_int",),
    "gemm": ("gemm",),
    "memory": ("memory", "depthwise", "reorder"),
}
PARALLEL_OF = {"nchwc": "float", "plain": "float", "int8": "integer", "gemm": "gemm"}
WAIT_UNIT = 1000.0


@dataclass
class Network:
    """One measured probe: kernels' loop counts and nanoseconds, the whole's, longest parts (2 threads)."""

    name: str
    rows: list[Row]
    kernel_ns: np.ndarray
    macs: float
    whole_ns: float
    longest: np.ndarray

    @property
    def whole(self) -> Row:
        """Loop counts of the network, its fixed cost included."""
        return {**total(self.rows), ("network", "overhead"): 1.0}


def load(folder: Path = DATA_FOLDER, prefix: str = "x86") -> list[Network]:
    """The measured probes of the two tables whose names begin with ``prefix``."""
    device = load_target(TARGET).device
    core, last = device.core_cache_bytes, device.last_cache_bytes
    with (folder / f"{prefix}_networks.csv").open(encoding="utf-8") as file:
        file.readline()
        wholes = {r["network"]: float(r["us"]) * 1e3 for r in csv.DictReader(file)}
    groups: dict[str, list[dict[str, str]]] = {}
    with gzip.open(folder / f"{prefix}_kernels.csv.gz", "rt", encoding="utf-8") as file:
        file.readline()
        for record in csv.DictReader(file):
            groups.setdefault(record["network"], []).append(record)
    networks = []
    for name, records in groups.items():
        kinds = [_kind(r) for r in records]
        batch = make_batch(kinds, {c: [float(r[c]) for r in records] for c in COLUMNS})
        rows = design_rows(batch, core.value if core else np.inf, last.value if last else np.inf)
        times = np.array([float(r["us"]) * 1e3 for r in records])
        macs, part = float(batch.macs().sum()), longest_part(batch, 2)[0]
        networks.append(Network(name, rows, times, macs, wholes[name], part))
    return networks


def _kind(r: dict[str, str]) -> KernelKind:
    fused = tuple(part for part in r["fused"].split("+") if part)
    return KernelKind(r["op"], r["domain"], r["precision"], "", fused, r["weight_bearing"] == "1")


def fit(networks: Sequence[Network]) -> dict[Key, float]:
    """Constants from kernels and whole networks together."""
    rows = [row for n in networks for row in n.rows] + [n.whole for n in networks]
    kernels = np.concatenate([n.kernel_ns for n in networks])
    wholes = np.array([n.whole_ns for n in networks])
    weights = np.concatenate([1.0 / (kernels + FLOOR_NS), NETWORK_WEIGHT / wholes])
    constants = solve(rows, np.concatenate([kernels, wholes]), weights)
    # An operation never seen is priced as the dearest simple ones are.
    return constants | {
        ("unknown", name): value for (table, name), value in constants.items() if table == "special"
    }


def folds(networks: Sequence[Network]) -> list[tuple[list[Network], list[Network]]]:
    """(train, test) pairs by whole networks."""
    return [
        (
            [n for i, n in enumerate(networks) if i % FOLDS != f],
            [n for i, n in enumerate(networks) if i % FOLDS == f],
        )
        for f in range(FOLDS)
    ]


def parallel_shares(
    networks: Sequence[Network], constants: dict[Key, float], folder: Path
) -> dict[Key, float]:
    """Share of each kind of work that two threads divide, and the wait of threads per kernel, (0 to 1; ns).

    Fitted to the ratio of two threads to one, since that is what the wall clock tells on a shared machine.
    """
    path = folder / "x86_threads.csv"
    with path.open(encoding="utf-8") as file:
        file.readline()
        ratios = {r["network"]: float(r["two_us"]) / float(r["one_us"]) for r in csv.DictReader(file)}
    matrix, target = [], []
    for n in networks:
        if n.name not in ratios:
            continue
        parts = dict.fromkeys((*PARALLEL, "wait"), 0.0)
        whole = predict_ns(n.whole, constants)
        for row, longest in zip(n.rows, n.longest, strict=True):
            part = PARALLEL_OF.get(next(iter(row))[0].split(".")[0], "memory")
            busy = {key: count for key, count in row.items() if key[1] != "overhead"}
            parts[part] -= (1.0 - longest) * predict_ns(busy, constants) / whole
            parts["wait"] += WAIT_UNIT / whole * (longest < 1.0)
        matrix.append(list(parts.values()))
        target.append(ratios[n.name] - 1.0)
    top = [1.0] * len(PARALLEL) + [np.inf]
    found = lsq_linear(np.array(matrix), np.array(target), bounds=(np.zeros(len(top)), np.array(top)))
    print(
        f"two threads over one: median error {np.median(np.abs(found.fun)):.1%} over {len(target)} networks"
    )
    shares = dict(zip((*PARALLEL, "wait"), map(float, found.x), strict=True))
    classes = {("parallel", name): shares[part] for part, names in PARALLEL.items() for name in names}
    return classes | {("parallel", "wait"): shares["wait"] * WAIT_UNIT}


def held_out(
    networks: Sequence[Network],
) -> tuple[dict[str, float], dict[str, list[float]], dict[str, float]]:
    """Signed log errors: of every network, of kernels by table, of every network by MACs alone."""
    whole, baseline = {}, {}
    kernels: dict[str, list[float]] = {}
    for train, test in folds(networks):
        constants = fit(train)
        slope, fixed = _line(train)
        for n in test:
            whole[n.name] = float(np.log(predict_ns(n.whole, constants) / n.whole_ns))
            baseline[n.name] = float(np.log(max(fixed + slope * n.macs, 1.0) / n.whole_ns))
            for row, ns in zip(n.rows, n.kernel_ns, strict=True):
                table = next(key[0] for key in row)
                kernels.setdefault(table, []).append(float(np.log(predict_ns(row, constants) / ns)))
    return whole, kernels, baseline


def _line(networks: Sequence[Network]) -> tuple[float, float]:
    times = np.array([n.whole_ns for n in networks])
    matrix = np.array([[n.macs, 1.0] for n in networks]) / times[:, None]
    slope, fixed = np.linalg.lstsq(matrix, np.ones(len(times)), rcond=None)[0]
    return float(slope), float(fixed)


def report(whole: dict[str, float], kernels: dict[str, list[float]], baseline: dict[str, float]) -> None:
    """Print held-out errors."""
    print(f"{'kernels':22s} {'count':>6s} {'median':>8s} {'p90':>8s}")
    for table, errors in sorted(kernels.items()):
        e = np.abs(errors)
        print(f"{table:22s} {len(e):6d} {np.median(e):8.1%} {np.quantile(e, 0.9):8.1%}")
    families: dict[str, list[float]] = {}
    for name, error in whole.items():
        families.setdefault(name.split("#")[0], []).append(error)
    print(f"\n{'whole networks':22s} {'count':>6s} {'median':>8s} {'worst':>8s} {'bias':>8s}")
    for family, errors in families.items():
        e = np.abs(errors)
        print(f"{family:22s} {len(e):6d} {np.median(e):8.1%} {e.max():8.1%} {np.median(errors):+8.1%}")
    for title, found in (("all, held out", whole), ("baseline: MACs only", baseline)):
        e = np.abs(list(found.values()))
        print(f"{title:22s} {len(e):6d} {np.median(e):8.1%} {e.max():8.1%}   p90 {np.quantile(e, 0.9):.1%}")


def write(networks: Sequence[Network], whole: dict[str, float]) -> None:
    """The target's constants, interval and validation."""
    from fit_x86_dynamic import ALIKE, SOURCE, dynamic_constants

    path = TARGETS_FOLDER / f"{TARGET}.yaml"
    errors, constants = np.abs(list(whole.values())), fit(networks)
    measured = "measured by scripts/profile_x86.py on this class of machine, fitted by scripts/fit_x86.py"
    more = parallel_shares(networks, constants, DATA_FOLDER) | dynamic_constants(constants)
    text = [
        "  interval:",
        f'    log_sigma: {{value: {log_sigma(errors):.4g}, source: "held-out whole networks, {COMMAND}"}}',
        '    runtime_factor: {value: 1.0, source: "the runtime itself was measured"}',
        constants_yaml(constants | more, {"": measured, **dict.fromkeys(ALIKE, SOURCE)}),
    ]
    replace_block(path, "fitted", "\n".join(text), indent="  ")
    validation = [
        "validation:",
        "  status: validated",
        f"  median_error: {float(np.median(errors)):.3f}",
        f"  worst_error: {float(errors.max()):.3f}",
        f'  held_out: "{len(errors)} whole networks in {FOLDS} folds, one thread"',
        f'  command: "{COMMAND}"',
        f'backing: "{len(errors)} networks measured in onnxruntime, one thread; held-out median error '
        f'{float(np.median(errors)):.1%}"',
    ]
    replace_block(path, "validation", "\n".join(validation))


def main() -> None:
    """Fit, report, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--data", type=Path, default=DATA_FOLDER)
    arguments = parser.parse_args()
    networks = load(arguments.data)
    whole, kernels, baseline = held_out(networks)
    report(whole, kernels, baseline)
    if not arguments.dry_run:
        write(networks, whole)


if __name__ == "__main__":
    main()
