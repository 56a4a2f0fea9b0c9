#!/usr/bin/env python3
"""What the planner's order is worth: error after so many probes in its order, and in random order.

    scripts/bench_planner.py --cache FOLDER [--threads 1] [--seeds 5] [--choices 2,8]

FOLDER is a --cache of scripts/bench_predictor.py --local: a profile and held-out networks, measured. Nothing
is measured here: the profile's probes are the pool. The planner's rule (`hw_profiles.planner`: some at random
first; then of so many drawn the one whose latency the model is least sure of, fitted anew as it grows) picks
from it, and so does chance; both are judged on the same held-out networks. The pool was drawn by the planner
itself, two to choose from, so that less is left to choose than where probes are made.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from bench_predictor_local import Case, held_out_cases, in_order, predictions  # noqa: E402

from hw_profiles.devices.local import LocalDevice  # noqa: E402
from hw_profiles.learned import Observation, learn  # noqa: E402
from hw_profiles.planner import FIRST, GROWTH  # noqa: E402
from hw_profiles.predictor import Predictor  # noqa: E402
from hw_profiles.profiles import ProfileStore  # noqa: E402
from hw_profiles.target import Target, load_target  # noqa: E402


def planned(
    pool: Sequence[Observation], count: int, choice: int, target: Target, threads: int, seed: int
) -> list[Observation]:
    """So many of the pool, in the planner's order. A choice of 1 is random order."""
    waiting = list(np.random.default_rng(seed).permutation(len(pool)))
    taken = [pool[waiting.pop()] for _ in range(FIRST)]
    model, fitted = None, 0
    while len(taken) < count:
        if choice > 1 and len(taken) > GROWTH * fitted:
            model, fitted = learn(taken, target, threads, seed, calibrated=False), len(taken)
        drawn = [waiting.pop() for _ in range(min(choice, len(waiting)))]
        sure = [0.0 if model is None else float(model.price(pool[i].batch)[1][0]) for i in drawn]
        best = drawn.pop(int(np.argmax(sure)))
        taken.append(pool[best])
        waiting[:0] = drawn  # those left over may come again, last
    return taken


def errors(
    taken: Sequence[Observation], cases: Sequence[Case], target: Target, threads: int, counts: Sequence[int]
) -> dict[int, tuple[float, float]]:
    """(median error, share within 10 %) on the held-out networks by the number of probes."""
    measured = np.array([c.ms for c in cases])
    found = {}
    for count in (n for n in counts if n <= len(taken)):
        learned = learn(taken[:count], target, threads, 0, calibrated=False)
        ms = predictions(replace(Predictor(target, threads), learned=learned), cases)[0]
        off = np.abs(ms / measured - 1.0)
        found[count] = float(np.median(off)), float(np.mean(off <= 0.1))
    return found


def main() -> int:
    """A row for each order and number of probes: mean over seeds, and its standard error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--choices", default="2,8")
    parser.add_argument("--counts", default="60,100,300", help="of probes, at which errors are taken")
    parser.add_argument("--per-family", type=int, default=42, help="of the benchmark that filled the cache")
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the benchmark that filled the cache")
    given = parser.parse_args()
    machine, cache, target = LocalDevice(), Path(given.cache), load_target("local")
    counts = [int(n) for n in given.counts.split(",")]
    index = cache / f"held-out-{given.per_family}-{given.seed}-{given.threads}.json"
    if not index.is_file():
        parser.error(f"no {index}: nothing is measured here; run scripts/bench_predictor.py --local first")
    pool = in_order(ProfileStore(cache / "profile").open(machine.facts(), given.threads))
    cases = [c for c in held_out_cases(machine, cache, given) if c.stable]
    print(f"{len(pool)} probes, {len(cases)} held-out networks measured steadily, {given.threads} thread(s)")
    print(f"{'order':24}{'probes':>8}{'median error':>18}{'within 10 %':>18}")
    for choice in (1, *(int(n) for n in given.choices.split(","))):
        name = "random" if choice == 1 else f"least sure of {choice}"
        runs = []
        for seed in range(given.seeds):
            taken = planned(pool, max(counts), choice, target, given.threads, seed)
            runs.append(errors(taken, cases, target, given.threads, counts))
        for count in counts:
            table = np.array([run[count] for run in runs])
            mean, spread = table.mean(axis=0), table.std(axis=0, ddof=1) / np.sqrt(len(table))
            cells = [f"{m:.1%} ± {s:.1%}" for m, s in zip(mean, spread, strict=True)]
            print(f"{name:24}{count:8d}{cells[0]:>18}{cells[1]:>18}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
