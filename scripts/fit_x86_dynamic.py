"""Constants of kernels that find ranges of activations as they run, beside those of scripts/fit_x86.py.

    .venv/bin/python scripts/profile_x86.py --dynamic   # some minutes, one thread
    .venv/bin/python scripts/fit_x86_dynamic.py         # held-out errors; fit_x86.py writes the constants

Their networks (text/dynamic) were measured later than the others, and no machine runs at the same pace every
day. Float networks of the same family, measured with them, tell how much faster or slower by the constants
that are known; those are held, and only the tables of the new kernels are fitted.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from fit_x86 import FLOOR_NS, FOLDS, NETWORK_WEIGHT, TARGET, Network, folds, load

from hw_profiles.costs import cpu
from hw_profiles.fitting import Key, Row, predict_ns, solve
from hw_profiles.target import DATA_FOLDER, load_target

PREFIX = "x86_dynamic"
TABLES = frozenset({"gemm.int8_dynamic", "quantise_dynamic"})
SOURCE = (
    "measured by scripts/profile_x86.py --dynamic, fitted by scripts/fit_x86_dynamic.py at the others' pace"
)


def dynamic_constants(known: Mapping[Key, float], folder: Path = DATA_FOLDER) -> dict[Key, float]:
    """Constants of `TABLES`, nanoseconds a count, at the pace of the ``known`` ones."""
    networks = load(folder, PREFIX)
    known = complete(known, networks)
    return fit([n for n in networks if _is_dynamic(n)], known, pace(networks, known))


def complete(known: Mapping[Key, float], networks: Sequence[Network]) -> dict[Key, float]:
    """The known constants, and for tables without any (Gelu) those that stand in for them."""
    target = load_target(TARGET)
    keys = {key for n in networks for key in n.whole if key[0] not in TABLES}
    return {**known, **{(t, n): known.get((cpu.resolved(target, t), n), 0.0) for t, n in keys}}


def pace(networks: Sequence[Network], known: Mapping[Key, float]) -> float:
    """Predicted over measured time of the float networks, their median: above 1 where today's are faster."""
    plain = [n for n in networks if n.name.startswith("text#")]
    return float(np.median([predict_ns(n.whole, known) / n.whole_ns for n in plain]))


def fit(networks: Sequence[Network], known: Mapping[Key, float], factor: float) -> dict[Key, float]:
    """The new tables, from their kernels and from what is left of whole networks without all others."""
    rows: list[Row] = []
    times: list[float] = []
    weights: list[float] = []
    for n in networks:
        for row, ns in zip(n.rows, n.kernel_ns, strict=True):
            if next(iter(row))[0] in TABLES:
                rows.append(row)
                times.append(ns * factor)
                weights.append(1.0 / (ns * factor + FLOOR_NS))
        rows.append({key: count for key, count in n.whole.items() if key[0] in TABLES})
        times.append(n.whole_ns * factor - predict_ns(n.whole, known))
        weights.append(NETWORK_WEIGHT / (n.whole_ns * factor))
    return solve(rows, np.array(times), np.array(weights))


def held_out(networks: Sequence[Network], known: Mapping[Key, float], factor: float) -> dict[str, float]:
    """Signed log errors of networks that the new tables were not fitted to."""
    found = {}
    for train, test in folds(networks):
        constants = {**known, **fit(train, known, factor)}
        found.update(
            {n.name: float(np.log(predict_ns(n.whole, constants) / (n.whole_ns * factor))) for n in test}
        )
    return found


def _is_dynamic(n: Network) -> bool:
    return any(key[0] in TABLES for key in n.whole)


def main() -> None:
    """Print paces, constants, held-out errors."""
    constants = load_target(TARGET).cost.constants
    known = {
        (t, n): c.value for t, entries in constants.items() if t not in TABLES for n, c in entries.items()
    }
    networks = load(DATA_FOLDER, PREFIX)
    known = complete(known, networks)
    factor = pace(networks, known)
    for family in dict.fromkeys(n.name.split("#")[0] for n in networks):
        mine = [n for n in networks if n.name.split("#")[0] == family and not _is_dynamic(n)]
        ratios = [predict_ns(n.whole, known) / n.whole_ns for n in mine]
        if mine:
            print(f"{family}: predicted over measured {np.median(ratios):.3f}, {len(mine)} networks")
    dynamic = [n for n in networks if _is_dynamic(n)]
    errors = held_out(dynamic, known, factor)
    e = np.abs(list(errors.values()))
    print(
        f"at pace {factor:.3f}, held out in {FOLDS} folds: median {np.median(e):.1%}, worst {e.max():.1%}, "
    )
    print(f"bias {np.median(list(errors.values())):+.1%}, {len(e)} networks")
    for key, value in sorted(fit(dynamic, known, factor).items()):
        print(f"  {'.'.join(key):32s} {value:.4g}")


if __name__ == "__main__":
    main()
