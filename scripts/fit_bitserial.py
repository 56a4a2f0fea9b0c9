"""Fit the bit-serial array's stages to HAQ's published table; the table is used where it has the shape.

    .venv/bin/python scripts/fit_bitserial.py             # held-out errors; the target's constants rewritten
    .venv/bin/python scripts/fit_bitserial.py --dry-run   # errors only

Held out are shapes, with all their bit widths, in five folds: what the model is for is a layer that the
table does not have. (Leaving out single entries of the table is in scripts/bench_predictor.py --published.)
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from hw_profiles.costs.base import Shapes
from hw_profiles.costs.bitserial import combine, is_depthwise, stages
from hw_profiles.fitting import Key, constants_yaml, log_errors, log_sigma, replace_block, validation_yaml
from hw_profiles.haq import haq_table, mobilenet_v2
from hw_profiles.kernel import Array
from hw_profiles.target import TARGETS_FOLDER

TARGET = "fpga-haq-bismo"
COMMAND = "python scripts/fit_bitserial.py"
FOLDS = 5
NAMES = ("serial", "results", "fetched")


@dataclass(frozen=True)
class Entries:
    """Entries of the table of one form: stages by name, cycles, MACs x bits, and the fold of the shape."""

    stages: dict[str, Array]
    cycles: Array
    products: Array
    fold: Array

    def take(self, rows: NDArray[np.bool_]) -> Entries:
        """Some of them."""
        kept = {n: v[rows] for n, v in self.stages.items()}
        return Entries(kept, self.cycles[rows], self.products[rows], self.fold[rows])


def load() -> dict[str, Entries]:
    """The table by form, "dense" and "depthwise"."""
    shapes, table = haq_table()
    bits = np.array([(w, a) for w in range(1, 9) for a in range(1, 9)], dtype=np.float64)
    batch = mobilenet_v2(
        np.repeat(bits[:, :1], len(shapes), axis=1), np.repeat(bits[:, 1:], len(shapes), axis=1)
    )
    nothing = np.zeros((len(batch), 1))
    s = Shapes(batch, list(range(len(shapes))), (nothing, nothing))
    cycles = table[np.arange(len(shapes)), bits[:, :1].astype(int) - 1, bits[:, 1:].astype(int) - 1]
    products = batch.macs() * batch["weight_bits"] * batch["act_bits"]
    distinct = sorted(set(shapes))
    order = np.random.default_rng(0).permutation(len(distinct)) % FOLDS
    fold = np.broadcast_to(np.array([order[distinct.index(x)] for x in shapes]), cycles.shape)
    found, thin = stages(s), is_depthwise(s)
    return {
        form: Entries({n: v[mask] for n, v in found.items()}, cycles[mask], products[mask], fold[mask])
        for form, mask in (("dense", ~thin), ("depthwise", thin))
    }


def fit(entries: Entries) -> dict[str, float]:
    """Constants of the stages and their sharpness, by robust least squares on log cycles."""
    names = [n for n in NAMES if entries.stages[n].any()]

    def constants(theta: Array) -> dict[str, float]:
        values = {n: float(np.exp(t)) for n, t in zip(names, theta, strict=False)}
        return {**values, "sharpness": 1.0 + float(np.exp(theta[-1]))}

    def residuals(theta: Array) -> Array:
        return np.asarray(np.log(combine(entries.stages, constants(theta)) / entries.cycles))

    start = np.array([0.0] * len(names) + [0.7])
    return constants(np.asarray(least_squares(residuals, start, loss="soft_l1", f_scale=0.1).x))


def linear(entries: Entries) -> Array:
    """(2,) baseline: cycles = a + b MACs x bits, relative errors alike."""
    matrix = np.stack([entries.products, np.ones(len(entries.cycles))], axis=1) / entries.cycles[:, None]
    return np.asarray(np.linalg.lstsq(matrix, np.ones(len(entries.cycles)), rcond=None)[0])


def held_out(entries: Entries) -> tuple[Array, Array]:
    """|log errors| of the model and of the line, shapes left out in folds."""
    model, line = [], []
    for f in range(FOLDS):
        train, test = entries.take(entries.fold != f), entries.take(entries.fold == f)
        model.append(log_errors(combine(test.stages, fit(train)), test.cycles))
        a = linear(train)
        line.append(log_errors(np.maximum(a[0] * test.products + a[1], 1.0), test.cycles))
    return np.concatenate(model), np.concatenate(line)


def write(entries: dict[str, Entries], errors: Array) -> None:
    """Constants, interval and validation."""
    path = TARGETS_FOLDER / f"{TARGET}.yaml"
    constants: dict[Key, float] = {}
    for form, mine in entries.items():
        constants |= {(form, n): v for n, v in fit(mine).items()}
    # What only moves goes through the same ports as results: 256 sums of 32 bits a cycle.
    constants["simple", "bits"] = 1.0 / (256.0 * 32.0)
    source = (
        "HAQ's table of a simulated bit-serial array (mit-han-lab/haq, MIT), fitted by "
        "scripts/fit_bitserial.py"
    )
    simple = "256 sums of 32 bits a cycle leave the array of HAQ's table (mit-han-lab/haq, MIT)"
    text = [
        "  interval:",
        f'    log_sigma: {{value: {log_sigma(errors):.4g}, source: "held-out shapes, {COMMAND}"}}',
        '    runtime_factor: {value: 1.0, source: "the simulator is the runtime"}',
        constants_yaml(constants, {"": source, "simple": simple}),
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
    entries = load()
    every = []
    print(
        f"{'shapes held out':16s} {'rows':>6s} {'median':>8s} {'p90':>8s} {'worst':>8s}   MACs x bits: "
        f"median, p90"
    )
    for form, mine in entries.items():
        e, line = held_out(mine)
        every.append(e)
        print(
            f"{form:16s} {len(e):6d} {np.median(e):8.1%} {np.quantile(e, 0.9):8.1%} {e.max():8.1%}   ", end=""
        )
        print(f"{np.median(line):8.1%} {np.quantile(line, 0.9):8.1%}   {fit(mine)}")
    if not arguments.dry_run:
        write(entries, np.concatenate(every))


if __name__ == "__main__":
    main()
