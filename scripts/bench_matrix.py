#!/usr/bin/env python3
"""Is a policy made for one device the right one for another? The policy x device matrix.

    scripts/bench_matrix.py [--task digits32] [--evaluations 40] [--pool 6] [--seed 0]

For each target the budget lies half-way between its smallest reachable latency and its base. Every target is
searched with equal evaluations (no recovery); the best policies of all searches are pooled, scored under each
target's numerics, and each target picks from the pool. Row: for whom a policy was picked; column: where it is
priced and scored. "tie" marks equal accuracy. Accuracies are on the validation data.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from agents.repair import smallest_reachable
from compressors.policy import FLOAT, ResolvedPolicy
from compressors.translate import proposal_of
from search import engine
from search.config import make_config
from search.setup import Setup, load_setup
from search.summary import layer_rows

TARGETS = ("raspberry-pi-4", "x86-avx512-vnni", "gpu-t4", "fpga-bitfusion")


@dataclass
class Column:
    """One target: its problem, what its search found, and scores of pooled policies by digest."""

    setup: Setup
    smallest: float
    found: list[ResolvedPolicy] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def limit(self) -> float:
        """The latency budget, ms."""
        return (self.smallest + self.setup.base_costs["latency_ms"]) / 2

    def latency(self, policy: ResolvedPolicy) -> float:
        """Predicted milliseconds."""
        return self.setup.priced(policy)["latency_ms"]

    def score(self, policy: ResolvedPolicy) -> float:
        """Validation metric under this target's numerics, remembered."""
        if policy.digest not in self.scores:
            self.scores[policy.digest] = self.setup.scorer.score(policy).value
        return self.scores[policy.digest]


def moved(source: Column, target: Column, policy: ResolvedPolicy) -> ResolvedPolicy:
    """The policy as the other target can execute it."""
    return target.setup.space.resolve(proposal_of(source.setup.space.structure, policy))


def searched(name: str, task: str, evaluations: int, pool: int, seed: int, folder: Path) -> Column:
    """Search one target at its half-way budget."""
    first = load_setup(make_config({"target": name, "task": task}))
    column = Column(first, smallest_reachable(first.problem)[0]["latency_ms"])
    config = make_config({"target": name, "task": task, "max_latency": f"{column.limit}ms", "seed": seed,
                          "evaluations": evaluations, "recover": "0", "out": str(folder / name)})  # fmt: skip
    result = engine.run(config)
    column.setup = load_setup(config)
    ranked = sorted(result.results["points"], key=lambda p: -(p.get("validation") or {"value": 0.0})["value"])
    column.found = [ResolvedPolicy.from_dict(p.get("policy")) for p in ranked[:pool]]
    print(f"{name}: smallest {column.smallest:.3f} ms, base {first.base_costs['latency_ms']:.3f} ms, "
          f"budget {column.limit:.3f} ms, {evaluations} evaluations", flush=True)  # fmt: skip
    return column


def settings(setup: Setup, policy: ResolvedPolicy) -> dict[str, tuple[object, ...]]:
    """Integer settings of every layer: channels, factorisation, weight bits, activation bits."""
    return {r["name"]: (r["channels_after"], r.get("factor"), r["weight_bits"], r["act_bits"])
            for r in layer_rows(setup, policy)}  # fmt: skip


def differing(a: dict[str, tuple[object, ...]], b: dict[str, tuple[object, ...]]) -> float:
    """Share of layers whose settings differ."""
    return sum(a[k] != b[k] for k in a) / len(a)


def main() -> int:
    """Search, pool, print; exit 1 when a stranger's policy beats a target's own or two are too much alike."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", default="digits32")
    parser.add_argument("--evaluations", type=int, default=40)
    parser.add_argument("--pool", type=int, default=6, help="policies each search gives to the pool")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        columns = {
            t: searched(t, args.task, args.evaluations, args.pool, args.seed, Path(folder)) for t in TARGETS
        }
    picks: dict[str, ResolvedPolicy] = {}
    for name, column in columns.items():
        pool = {p.digest: p for c in columns.values() for q in c.found for p in [moved(c, column, q)]}
        holding = [p for p in pool.values() if column.latency(p) <= column.limit * (1 + 1e-9)]
        picks[name] = max(holding, key=lambda p: (column.score(p), -column.latency(p)))
    good = show_matrix(columns, picks)
    return 0 if show_differences(columns, picks) and good else 1


def show_matrix(columns: dict[str, Column], picks: dict[str, ResolvedPolicy]) -> bool:
    """Accuracy and share of the budget of each pick on each target."""
    good = True
    print(f"\n{'made for / priced on':22}" + "".join(f"{c:>22}" for c in columns))
    for row in columns:
        cells = []
        for name, column in columns.items():
            policy = picks[row] if row == name else moved(columns[row], column, picks[row])
            share = column.latency(policy) / column.limit
            mark = "over" if share > 1 + 1e-9 else ""
            score = column.score(policy)
            own = column.score(picks[name])
            if not mark and row != name:
                mark = "tie" if score == own else "BETTER" if score > own else ""
                good &= mark != "BETTER"
            cells.append(f"{100 * score:.1f} % {share:.2f}x {mark:>6}")
        print(f"{row:22}" + "".join(f"{c:>22}" for c in cells))
    print("accuracy, latency as a share of the column's budget (over: does not hold it)")
    return good


def show_differences(columns: dict[str, Column], picks: dict[str, ResolvedPolicy]) -> bool:
    """Share of layers with different settings, for each pair of targets."""
    tables = {name: settings(c.setup, picks[name]) for name, c in columns.items()}
    good = True
    print("\nlayers with different integer settings (channels, rank, bits)")
    for a, b in itertools.combinations(columns, 2):
        share = differing(tables[a], tables[b])
        good &= share >= 0.2
        print(f"  {a} / {b}: {100 * share:.0f} %")
    widths = {n: sum(1 for v in t.values() if v[2] == FLOAT) for n, t in tables.items()}
    print("float layers: " + ", ".join(f"{n} {w}" for n, w in widths.items()))
    return good


if __name__ == "__main__":
    sys.exit(main())
