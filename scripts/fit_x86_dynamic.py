"""Constants of kernels that find ranges of activations as they run, beside those of scripts/fit_x86.py.

    .venv/bin/python scripts/profile_x86.py --dynamic   # a minute, one thread
    .venv/bin/python scripts/fit_x86_dynamic.py         # held-out errors; adds the constants to the target's

Such kernels were measured later than the others, and no machine runs at the same pace every day. What runs
like them with fixed ranges was measured beside them: by how much it is predicted too slow or too fast today,
by so much the times of the new kernels are scaled before they are fitted. So both are priced as of one day.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fit_x86 import FLOOR_NS, FOLDS, TARGET, Network, folds, load

from hw_profiles.fitting import Key, Row, constants_yaml, predict_ns, replace_block, solve
from hw_profiles.target import DATA_FOLDER, TARGETS_FOLDER, load_target

PREFIX = "x86_dynamic"
#: Tables fitted here, and those of the kernels that run like them but for the ranges.
ALIKE = {"gemm.int8_dynamic": "gemm.int8", "quantise_dynamic": "quantise"}
SOURCE = (
    "measured by scripts/profile_x86.py --dynamic, fitted by scripts/fit_x86_dynamic.py at their like's pace"
)
Kernels = list[tuple[Row, float]]


def dynamic_constants(known: Mapping[Key, float], folder: Path = DATA_FOLDER) -> dict[Key, float]:
    """Constants of the tables of `ALIKE`, nanoseconds a count, at the pace of the ``known`` ones."""
    networks = load(folder, PREFIX)
    return fit(networks, known, networks)


def kernels_of(networks: Sequence[Network], table: str) -> Kernels:
    """(loop counts, nanoseconds) of the kernels that a table prices."""
    return [
        (row, float(ns))
        for n in networks
        for row, ns in zip(n.rows, n.kernel_ns, strict=True)
        if next(iter(row))[0] == table
    ]


def pace(networks: Sequence[Network], known: Mapping[Key, float], table: str) -> float:
    """Predicted over measured time of all kernels of a known table: above 1 where today's are faster."""
    rows = kernels_of(networks, table)
    return sum(predict_ns(row, known) for row, _ in rows) / sum(ns for _, ns in rows)


def fit(
    networks: Sequence[Network], known: Mapping[Key, float], beside: Sequence[Network]
) -> dict[Key, float]:
    """The tables from ``networks``' kernels; paces from those ``beside`` them."""
    found: dict[Key, float] = {}
    for table, like in ALIKE.items():
        rows = kernels_of(networks, table)
        times = np.array([ns for _, ns in rows]) * pace(beside, known, like)
        found.update(solve([row for row, _ in rows], times, 1.0 / (times + FLOOR_NS)))
    return found


def held_out(networks: Sequence[Network], known: Mapping[Key, float], table: str) -> np.ndarray:
    """Signed log errors (n,) of a table's kernels in networks that it was not fitted to."""
    factor, errors = pace(networks, known, ALIKE[table]), []
    for train, test in folds([n for n in networks if kernels_of([n], table)]):
        constants = fit(train, known, networks)
        errors += [np.log(predict_ns(row, constants) / (ns * factor)) for row, ns in kernels_of(test, table)]
    return np.array(errors)


def write(known: Mapping[Key, float], new: Mapping[Key, float]) -> None:
    """The target's constants with the new ones; all others stay as they are."""
    cost = load_target(TARGET).cost
    source = next(iter(cost.constants["gemm.int8"].values())).source
    text = ["  interval:"]
    for name in ("log_sigma", "runtime_factor"):
        constant = getattr(cost.interval, name)
        text.append(f'    {name}: {{value: {constant.value}, source: "{constant.source}"}}')
    text.append(constants_yaml({**known, **new}, {"": source, **dict.fromkeys(ALIKE, SOURCE)}))
    replace_block(TARGETS_FOLDER / f"{TARGET}.yaml", "fitted", "\n".join(text), indent="  ")


def main() -> None:
    """Print paces, held-out errors, constants; write these."""
    tables = load_target(TARGET).cost.constants
    known = {(t, n): c.value for t, entries in tables.items() if t not in ALIKE for n, c in entries.items()}
    networks = load(DATA_FOLDER, PREFIX)
    for table, like in ALIKE.items():
        print(f"{like}: predicted over measured {pace(networks, known, like):.3f}")
        errors = held_out(networks, known, table)
        print(
            f"{table}: {len(errors)} kernels held out in {FOLDS} folds by networks, median error "
            f"{np.median(np.abs(errors)):.1%}, p90 {np.quantile(np.abs(errors), 0.9):.1%}, "
            f"bias {np.median(errors):+.1%}"
        )
    new = fit(networks, known, networks)
    for key, value in sorted(new.items()):
        print(f"  {'.'.join(key):32s} {value:.4g}")
    write(known, new)


if __name__ == "__main__":
    main()
