"""Fit the BitFusion model to APQ's table of simulated layers; the table is used where it has the shape.

    .venv/bin/python scripts/fit_fpga.py             # held-out errors; the target's constants rewritten
    .venv/bin/python scripts/fit_fpga.py --dry-run   # errors only

A key of the table is (input channels, output channels, input size, kernel, stride, padding, groups)-WxAy, the
values milliseconds at 500 MHz (every one a whole number of cycles) and millijoules. Depthwise layers at 8x8
bits step every 8 channels, pointwise ones every 64 input channels: an array of 64 x 8 fusion units. Held out
are shapes, with all their bit widths, in five folds. Dense layers of the table are pointwise: wider windows
are priced by the same counts, which the table cannot check.
"""

from __future__ import annotations

import argparse
import csv
import gzip
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from hw_profiles.costs.base import Shapes
from hw_profiles.costs.fpga import compute_cycles, energy_features, memory_features, overlap
from hw_profiles.fitting import (
    Key,
    constants_yaml,
    log_errors,
    log_sigma,
    replace_block,
    solve,
    validation_yaml,
)
from hw_profiles.kernel import KernelKind, make_batch
from hw_profiles.target import DATA_FOLDER, TARGETS_FOLDER

TARGET = "fpga-bitfusion"
COMMAND = "python scripts/fit_fpga.py"
FOLDS = 5
FORMS = ("dense", "depthwise")


@dataclass(frozen=True)
class Table:
    """The published layers of one form: features as (n,) columns, cycles, picojoules, fold of the shape."""

    compute: np.ndarray
    memory: dict[str, np.ndarray]
    energy: dict[str, np.ndarray]
    macs: np.ndarray
    cycles: np.ndarray
    picojoules: np.ndarray
    fold: np.ndarray

    def __len__(self) -> int:
        return len(self.cycles)


def load(form: str) -> Table:
    """One form of layer of the table kept under data/."""
    with gzip.open(DATA_FOLDER / "apq_bitfusion.csv.gz", "rt", encoding="utf-8") as file:
        file.readline()
        thin = form == "depthwise"
        records = [r for r in csv.DictReader(file) if (r["depthwise"] == "1") == thin]
    get = {c: np.array([float(r[c]) for r in records])[:, None] for c in records[0]}
    columns = {c: get[c] for c in ("cin", "cout", "weight_bits", "act_bits", "kernel_h", "stride_h", "in_h")}
    columns |= {"kernel_w": get["kernel_h"], "stride_w": get["stride_h"], "in_w": get["in_h"]}
    columns |= {
        "out_h": np.ceil(get["in_h"] / get["stride_h"]),
        "groups": get["cin"] if thin else np.ones_like(get["cin"]),
    }
    columns["out_w"] = columns["out_h"]
    batch = make_batch([KernelKind("Conv", precision="w8a8", weight_bearing=True)], columns)
    zero = np.zeros((len(records), 1))
    s = Shapes(batch, [0], (zero, zero))
    shapes = [tuple(r[c] for c in ("cin", "cout", "in_h", "kernel_h", "stride_h")) for r in records]
    order = {shape: i for i, shape in enumerate(sorted(set(shapes)))}
    folds = np.random.default_rng(0).permutation(len(order)) % FOLDS
    return Table(
        compute=compute_cycles(s)[:, 0],
        memory={name: value[:, 0] for name, value in memory_features(s).items()},
        energy={name: value[:, 0] for name, value in energy_features(s, get["cycles"]).items()},
        macs=batch.macs()[:, 0] * get["weight_bits"][:, 0] * get["act_bits"][:, 0] / 64.0,
        cycles=get["cycles"][:, 0],
        picojoules=get["mj"][:, 0] * 1e9,
        fold=np.array([folds[order[shape]] for shape in shapes]),
    )


def fit_cycles(table: Table, rows: np.ndarray) -> dict[str, float]:
    """Constants of the overlap model on some rows, by robust least squares on log cycles."""
    names = list(table.memory)
    matrix = np.stack([table.memory[n][rows] for n in names], axis=1)
    norms = matrix.mean(axis=0) / table.cycles[rows].mean()

    def cycles(theta: np.ndarray) -> np.ndarray:
        memory = matrix @ (np.exp(theta[: len(names)]) / norms)
        return overlap(table.compute[rows] * np.exp(theta[-2]), memory, 1.0 + float(np.exp(theta[-1])))

    start = np.concatenate([np.full(len(names), np.log(0.2)), [0.0, 0.5]])
    target = np.log(table.cycles[rows])
    found = least_squares(lambda t: np.log(cycles(t)) - target, start, loss="soft_l1", f_scale=0.1).x
    constants = dict(zip(names, map(float, np.exp(found[: len(names)]) / norms), strict=True))
    return {**constants, "compute": float(np.exp(found[-2])), "sharpness": 1.0 + float(np.exp(found[-1]))}


def cycles_of(table: Table, constants: dict[str, float]) -> np.ndarray:
    """Predicted cycles of every row."""
    memory = sum(constants[n] * v for n, v in table.memory.items())
    return overlap(table.compute * constants["compute"], np.asarray(memory), constants["sharpness"])


def fit_energy(table: Table, rows: np.ndarray, form: str) -> dict[Key, float]:
    """Picojoules per product, MAC, bit and cycle."""
    name = f"energy.{form}"
    design = [{(name, n): float(v[i]) for n, v in table.energy.items()} for i in np.flatnonzero(rows)]
    times = table.picojoules[rows]
    return solve(design, times, 1.0 / times)


def held_out(form: str, table: Table) -> dict[str, np.ndarray]:
    """|log errors| by fold of latency, of energy and of the MACs x bits baseline."""
    found: dict[str, list[np.ndarray]] = {"latency": [], "baseline": [], "energy": []}
    for f in range(FOLDS):
        train, test = table.fold != f, table.fold == f
        found["latency"].append(
            log_errors(cycles_of(table, fit_cycles(table, train))[test], table.cycles[test])
        )
        rate = float(np.median(table.cycles[train] / table.macs[train]))
        found["baseline"].append(log_errors(rate * table.macs[test], table.cycles[test]))
        energy = fit_energy(table, train, form)
        joules = sum(energy[f"energy.{form}", n] * v for n, v in table.energy.items())
        found["energy"].append(log_errors(np.asarray(joules)[test], table.picojoules[test]))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def write(tables: dict[str, Table], errors: np.ndarray) -> None:
    """The target's constants, interval and validation."""
    path = TARGETS_FOLDER / f"{TARGET}.yaml"
    constants: dict[Key, float] = {}
    for form, table in tables.items():
        every = np.ones(len(table), dtype=bool)
        constants |= {(form, n): v for n, v in fit_cycles(table, every).items() if v > 1e-9}
        constants |= {key: v for key, v in fit_energy(table, every, form).items() if v > 0.0}
    constants["simple", "bits"] = constants["dense", "weights"]
    constants["simple", "overhead"] = constants["dense", "overhead"]
    source = "APQ table of the BitFusion simulator (mit-han-lab/apq, BSD-2), fitted by scripts/fit_fpga.py"
    text = [
        "  interval:",
        f'    log_sigma: {{value: {log_sigma(errors):.4g}, source: "held-out shapes, {COMMAND}"}}',
        '    runtime_factor: {value: 1.0, source: "the simulator is the runtime"}',
        constants_yaml(constants, {"": source}),
    ]
    replace_block(path, "fitted", "\n".join(text), indent="  ")
    held_out = f"{len(errors)} simulated layers, shapes in {FOLDS} folds; single layers"
    backing = (
        f"table of {len(errors)} simulated layers; off the table a model, held-out median "
        f"error {float(np.median(errors)):.1%}"
    )
    replace_block(path, "validation", validation_yaml(errors, held_out, COMMAND, backing))


def main() -> None:
    """Fit, report, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    tables = {form: load(form) for form in FORMS}
    print(f"{'shapes held out':12s} {'what':>10s} {'rows':>6s} {'median':>8s} {'p90':>8s} {'worst':>8s}")
    every = []
    for form, table in tables.items():
        found = held_out(form, table)
        every.append(found["latency"])
        for name, e in found.items():
            print(
                f"{form:15s} {name:>10s} {len(e):6d} {np.median(e):8.1%} "
                f"{np.quantile(e, 0.9):8.1%} {e.max():8.1%}"
            )
        constants = fit_cycles(table, np.ones(len(table), dtype=bool))
        print(f"{'':15s} factor on counted compute cycles {constants['compute']:.3f}")
    if not arguments.dry_run:
        write(tables, np.concatenate(every))


if __name__ == "__main__":
    main()
