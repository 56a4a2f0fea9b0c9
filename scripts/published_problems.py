"""Published allocation problems solved exactly: HAWQ-V3's integer programs, HAQ's table, APQ's table.

    python scripts/published_problems.py [--apq 100]

HAWQ-V3 (ICML 2021): 18 integer programs, bits of ResNet-18 and -50 on a T4, beside the bits published.
HAQ (CVPR 2019): MobileNetV2 on a bit-serial array within 0.60 of its cost at 8/8, first and last layer
pinned, beside the published policy. APQ (CVPR 2020): random networks of the table's layers on BitFusion,
whose latency is not monotone in the bits, against an enumeration of every policy.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agents.allocation import Allocation, Floats, Ints, Item, solve
from agents.allocation_milp import solve_milp
from hw_profiles.apq import apq_table
from hw_profiles.haq import cost_share, haq_table, mobilenet_v2, published_policy
from hw_profiles.hawq import BITS, IntegerProgram, integer_programs
from hw_profiles.predictor import Predictor
from hw_profiles.target import load_target

#: Bits that HAQ searches.
LEAST_BITS, MOST_BITS = 2, 8
#: Weight bits count first, activation bits decide between equals: more than all activation bits together.
FIRST = 1000.0


def items_of(program: IntegerProgram) -> list[Item]:
    """One item per layer, its choices the bits in the order of BITS."""
    return [Item(loss, cost[:, None]) for loss, cost in zip(program.loss, program.cost, strict=True)]


def solved(program: IntegerProgram) -> tuple[int, ...]:
    """Bits of every layer of the optimal allocation."""
    found = solve(items_of(program), np.array([program.limit]), ties=program.ties)
    if found is None:
        raise SystemExit(f"{program.name}: nothing within the limit")
    return tuple(BITS[c] for c in found.choices)


def hawq() -> None:
    """Solve the 18 programs, print loss and cost beside the published ones, and the time of all of them."""
    programs = integer_programs()
    solved(programs[0])  # imports and first calls
    start, busy = time.perf_counter(), time.process_time()
    found = [solved(p) for p in programs]
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    print("HAWQ-V3, summed loss (exact / published), cost / limit")
    better = equal = 0
    for p, bits in zip(programs, found, strict=True):
        (loss, cost), (theirs, _) = p.of(bits), p.of(p.published)
        mark = "better" if loss < theirs * (1 - 1e-9) else "equal" if loss <= theirs * (1 + 1e-9) else "WORSE"
        better, equal = better + (mark == "better"), equal + (mark == "equal")
        print(f"  {p.name:24s} {loss:.5f} / {theirs:.5f} {mark:6s} {cost:9.4f} / {p.limit:.4f}")
    print(f"  {equal} equal, {better} better, of {len(programs)}")
    print(f"  {seconds:.3f} s for all, {busy:.3f} s of processor time")
    limits = [np.array([p.limit]) for p in programs]
    start = time.perf_counter()
    by_milp = [solve_milp(items_of(p), limit, ties=p.ties) for p, limit in zip(programs, limits, strict=True)]
    same = sum(
        m is not None and abs(m.loss - p.of(b)[0]) < 1e-9
        for m, p, b in zip(by_milp, programs, found, strict=True)
    )
    print(f"  HiGHS agrees on {same} of {len(programs)}, {time.perf_counter() - start:.3f} s")


def haq_choices(least: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Bits (weights, activations) each layer may have, at least ``least``; the ends pinned at the most."""
    last = len(least) - 1
    return [
        [
            (w, a)
            for w in range(max(LEAST_BITS, low[0]), MOST_BITS + 1)
            for a in range(max(LEAST_BITS, low[1]), MOST_BITS + 1)
            if i not in (0, last) or (w, a) == (MOST_BITS, MOST_BITS)
        ]
        for i, low in enumerate(least)
    ]


def haq_policy(share: float, least: Sequence[tuple[int, int]], weight: float = FIRST) -> tuple[Ints, Ints]:
    """Weight and activation bits (53,) of the highest ``weight`` x weight bits + activation bits."""
    cycles = haq_table()[1]
    choices = haq_choices(least)
    items = [
        Item(
            -np.array([weight * w + a for w, a in own]),
            np.array([[table[w - 1, a - 1]] for w, a in own]),
        )
        for own, table in zip(choices, cycles, strict=True)
    ]
    found = solve(items, np.array([share * cycles[:, -1, -1].sum()]))
    if found is None:
        raise SystemExit("HAQ: nothing within the limit")
    bits = np.array([own[c] for own, c in zip(choices, found.choices, strict=True)])
    return bits[:, 0], bits[:, 1]


def haq() -> None:
    """Solve HAQ's problem freely and with at least the published bits everywhere."""
    share, weights, acts = published_policy()
    layers = len(weights)
    free, above = [(LEAST_BITS, LEAST_BITS)] * layers, list(zip(weights.tolist(), acts.tolist(), strict=True))
    rows = {
        "published": (weights, acts),
        "exact, at least the published bits": haq_policy(share, above),
        "exact, most weight bits": haq_policy(share, free),
        "exact, most bits in all": haq_policy(share, free, weight=1.0),
    }
    target = load_target("fpga-haq-bismo")
    predictor = Predictor(target)
    full = np.full((1, layers), float(MOST_BITS))
    base = predictor.predict(mobilenet_v2(full, full)).latency_ms[0]
    print(f"\nHAQ, MobileNetV2 on {target.name}, within {share:g} of the cost at 8/8, ends pinned at 8/8")
    for name, (w, a) in rows.items():
        priced = predictor.predict(mobilenet_v2(w[None].astype(float), a[None].astype(float))).latency_ms[0]
        share_of = cost_share(w, a)
        below = int(((w < weights) | (a < acts)).sum())
        print(
            f"  {name:35s} cost share {share_of:.4f} (as the target prices it {priced / base:.4f}), "
            f"{w.sum()} weight bits, {a.sum()} activation bits, {below} layers below the published bits"
        )
        print(f"    {' '.join(f'{x}/{y}' for x, y in zip(w, a, strict=True))}")


def apq_instance(rng: np.random.Generator) -> tuple[list[Item], Floats]:
    """6 to 8 random layers of the table with random losses, and a limit on latency or on latency and energy.

    Losses follow rounding noise, 4^-bits, at a scale of the layer's own for weights and activations.
    """
    table = apq_table()
    shapes = sorted(table)
    items = []
    width = int(rng.integers(1, 3))
    for k in rng.integers(0, len(shapes), size=int(rng.integers(6, 9))):
        choices = sorted(table[shapes[int(k)]].items())
        scale = rng.lognormal(0.0, 1.5, size=2)
        loss = [scale[0] * 4.0**-w + scale[1] * 4.0**-a for (w, a), _ in choices]
        items.append(Item(np.array(loss), np.array([cost[:width] for _, cost in choices])))
    low = np.sum([item.cost.min(axis=0) for item in items], axis=0)
    high = np.sum([item.cost.max(axis=0) for item in items], axis=0)
    return items, low + rng.uniform(0.02, 0.9, size=width) * (high - low)


def enumerated(items: Sequence[Item], limits: Floats) -> float:
    """Least summed loss of every policy there is, inf where none holds the limits."""
    loss, cost = np.zeros(1), np.zeros((1, len(limits)))
    for item in items[1:]:
        loss = (loss[:, None] + item.loss).ravel()
        cost = (cost[:, None] + item.cost).reshape(len(loss), -1)
    best = np.inf
    for first, extra in zip(items[0].loss, items[0].cost, strict=True):
        held = (cost + extra <= limits).all(axis=1)
        best = min(best, float(loss[held].min(initial=np.inf)) + float(first))
    return best


def agrees(found: Allocation | None, best: float) -> bool:
    """Whether the allocation has the loss of the best policy, or is None where there is none."""
    return np.isinf(best) if found is None else abs(found.loss - best) <= 1e-9 * abs(best)


def apq(instances: int) -> None:
    """Compare with an enumeration on random instances."""
    rng = np.random.default_rng(0)
    same = nothing = 0
    took = 0.0
    for _ in range(instances):
        items, limits = apq_instance(rng)
        start = time.perf_counter()
        found = solve(items, limits)
        took += time.perf_counter() - start
        same += agrees(found, enumerated(items, limits))
        nothing += found is None
    falls = sum(
        costs[8, 4][0] > costs[8, 8][0]
        for costs in apq_table().values()
        if (8, 4) in costs and (8, 8) in costs
    )
    print(f"\nAPQ on BitFusion: {falls} of {len(apq_table())} layers are slower at W8A4 than at W8A8")
    print(f"  {same} of {instances} optima as enumerated ({nothing} infeasible); {took:.3f} s for all")


def main() -> None:
    """Solve and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--apq", type=int, default=100, help="random instances of APQ's table")
    options = parser.parse_args()
    hawq()
    haq()
    apq(options.apq)


if __name__ == "__main__":
    main()
