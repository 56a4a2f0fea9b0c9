#!/usr/bin/env python3
"""Several targets searched together against each one's own full search: evaluations and hypervolume.

    scripts/bench_targets.py [--tasks digits32,mnist5k-lenet5] [--seeds 0,1,2] [--evaluations 100]
        [--targets raspberry-pi-4,jetson-orin-nano,fpga-zcu104-dpu] [--folder DIR]

Per task, target and seed: a search of its own at the given number of evaluations, and the search of all
targets together, all at the same share of their own base latency: half-way between the smallest that every
target reaches and the base, but not below 0.5x. Per target the ratio of the hypervolumes of the two fronts:
accuracies of the search (no recovery), baselines included, down to a fifth below the uncompressed metric and
up to the budget.
"share": a search of its own with as many evaluations as its share of the joint one has; what is gained
over it is gained by sharing. All use one pool, which makes what two of them evaluate cheap and changes no
result. With --folder the runs are kept there, and those that are complete are not run again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import search
from agents.pareto import hypervolume
from agents.repair import smallest_reachable
from search.config import make_config
from search.group import find_group, total_evaluations
from search.results import Results, read_results
from search.runfolder import RESULTS, slug
from search.setup import load_setup

TARGETS = "raspberry-pi-4,jetson-orin-nano,fpga-zcu104-dpu"
#: The metric below which nothing counts, as a share of the uncompressed network's; a hair over the budget.
FLOOR, EDGE = 0.8, 1.0 + 1e-6
#: The least budget as a share of the base latency.
LATENCY = 0.5
#: How much less hypervolume is allowed, and how many evaluations for three targets.
ALLOWED, COST = 0.98, 1.3


@dataclass(frozen=True)
class Line:
    """One target of one task and seed. Hypervolumes as shares of the whole search's."""

    task: str
    seed: int
    target: str
    together: float
    own_share: float
    best: float
    best_together: float


@dataclass(frozen=True)
class Plan:
    """What every search of the benchmark has in common."""

    folder: Path
    evaluations: int
    targets: tuple[str, ...]
    budgets: dict[str, str] = field(default_factory=dict)

    def alone(self, task: str, target: str, seed: int, evaluations: int) -> Results:
        """The results of one target's own search."""
        out = self.folder / f"{task}-{seed}-{slug(target)}-{evaluations}"
        if not (out / RESULTS).is_file():
            search.run(task, target=target, **self._options(task, out, seed, evaluations))
        return read_results(out / RESULTS)

    def together(self, task: str, seed: int) -> list[Results]:
        """The results of all targets' search together."""
        out = self.folder / f"{task}-{seed}-together-{self.evaluations}"
        files = [out / slug(t) / RESULTS for t in self.targets]
        if not all(f.is_file() for f in files):
            if find_group(out) is not None:
                search.run(resume=str(out))
            else:
                search.run(task, target=self.targets, **self._options(task, out, seed, self.evaluations))
        return [read_results(f) for f in files]

    def _options(self, task: str, out: Path, seed: int, evaluations: int) -> dict[str, Any]:
        pool = self.folder / "pool.sqlite"
        return {
            "max_latency": self.budget(task),
            "seed": seed,
            "evaluations": evaluations,
            "recover": "0",
            "out": str(out),
            "pool": str(pool),
        }

    def budget(self, task: str) -> str:
        """The share of the base latency that is the budget on every target."""
        if task not in self.budgets:
            shares = []
            for target in self.targets:
                setup = load_setup(make_config({"target": target, "task": task}))
                key = setup.budget.latency_key
                shares.append(smallest_reachable(setup.problem)[0][key] / setup.base_costs[key])
            self.budgets[task] = f"{max(LATENCY, ceil(10 * (1 + max(shares))) / 20):g}x"
        return self.budgets[task]


def volume(results: Results) -> float:
    """Hypervolume of a front, metric times ms, as the module says."""
    higher = results["task"]["higher_is_better"]
    base = results["base"].get("validation")
    limit = results["budget"]["limits"]["latency_ms"]["limit"]
    if base is None or not higher:
        raise SystemExit("this benchmark takes tasks with a metric of which more is better.")
    rows = [
        (score["value"], p["costs"]["latency_ms"]["value"])
        for p in results["points"]
        if (score := p.get("validation")) is not None and p.get("feasible") and p["complete"]
    ]
    return hypervolume(
        np.array(rows).reshape(len(rows), 2), (FLOOR * base["value"], EDGE * limit), (True, False)
    )


def best(results: Results) -> float:
    """Metric of the picked point."""
    point = next((p for p in results["points"] if p["picked"]), None)
    score = None if point is None else point.get("validation")
    return float("nan") if score is None else score["value"]


def compared(plan: Plan, task: str, seed: int) -> tuple[list[Line], int]:
    """One line a target, and the evaluations that the targets together took, the matrix's included."""
    count = len(plan.targets)
    share = -(-total_evaluations(_config(plan, task), count) // count)
    joint = plan.together(task, seed)
    matrix = joint[0].get("matrix")
    paid = 0 if matrix is None else matrix["evaluations"] + matrix["further"]
    lines = []
    for target, found in zip(plan.targets, joint, strict=True):
        own = plan.alone(task, target, seed, plan.evaluations)
        few = plan.alone(task, target, seed, share)
        whole = volume(own)
        line = Line(task, seed, target, _share(found, whole), _share(few, whole), best(own), best(found))
        print(_shown(line), flush=True)
        lines.append(line)
    budget, of_one = plan.budget(task), plan.evaluations
    print(f"{task:16s} {seed:4d} latency {budget}: {paid} evaluations together, {of_one} of one", flush=True)
    return lines, paid


def _share(results: Results, whole: float) -> float:
    """Hypervolume as a share of the whole search's; 1 where that has none."""
    return volume(results) / whole if whole > 0 else 1.0


def _config(plan: Plan, task: str) -> search.RunConfig:
    return make_config({"target": plan.targets, "task": task, "evaluations": plan.evaluations})


def _shown(x: Line) -> str:
    return (
        f"{x.task:16s} {x.seed:4d} {x.target:20s} {100 * x.together:8.2f} % {100 * x.own_share:8.2f} % "
        f"{100 * x.best:8.2f} {100 * x.best_together:8.2f}"
    )


def summary(lines: Sequence[Line], paid: Sequence[int], evaluations: int) -> bool:
    """Print means over seeds and whether both marks are reached."""
    print("\nmean over seeds        together    share    least of a seed")
    held = max(paid) <= COST * evaluations
    for task, target in dict.fromkeys((x.task, x.target) for x in lines):
        rows = [x for x in lines if (x.task, x.target) == (task, target)]
        mean, few = (float(np.mean([getattr(x, k) for x in rows])) for k in ("together", "own_share"))
        least = min(x.together for x in rows)
        held = held and mean >= ALLOWED
        print(f"{task:16s} {target:20s} {100 * mean:6.2f} % {100 * few:6.2f} % {100 * least:6.2f} %")
    print(
        f"evaluations together {max(paid)} at most, {max(paid) / evaluations:.2f}x those of one\n"
        f"{'reached' if held else 'MISSED'}: at most {COST}x the evaluations, mean hypervolume at least "
        f"{100 * ALLOWED:.0f} % of each one's own"
    )
    return held


def main() -> int:
    """Search, compare, print; exit 1 where a mark is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="digits32,mnist5k-lenet5")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--targets", default=TARGETS)
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    options = parser.parse_args()
    lines: list[Line] = []
    paid: list[int] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder if options.folder is not None else Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        plan = Plan(folder, options.evaluations, tuple(options.targets.split(",")))
        print(f"{'task':16s} seed {'target':20s} together      share       own %  together %")
        for task in options.tasks.split(","):
            for seed in map(int, options.seeds.split(",")):
                found, count = compared(plan, task, seed)
                lines += found
                paid.append(count)
    return 0 if summary(lines, paid, options.evaluations) else 1


if __name__ == "__main__":
    sys.exit(main())
