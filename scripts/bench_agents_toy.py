"""Agents on toy problems whose optimum is known or searched for at length: regret, ratios, time, predictions.

    python scripts/bench_agents_toy.py [--evaluations 100] [--seeds 4] [--agents joint,tpe,random]

Regret: best metric there is minus best found, in points. "separable": the optimum is exact (dynamic programme
over the groups for every width of the trunk). The others interact, with non-monotone costs: the best of a
long annealing on the true metric and of all agents stands for the optimum.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agents.contract import Problem
from agents.design import initial_design
from agents.moves import Mover
from agents.pareto import hypervolume
from agents.pricing import Indices, Pricer
from agents.registry import make_agent
from agents.repair import expected_losses
from agents.toys import ToyAccuracy, toy_outcome, toy_problem, toy_space

MARKS = (30, 60, 100, 200)


def cases(evaluations: int) -> dict[str, tuple[Problem, float]]:
    """Name to problem and interaction strength."""
    joint, pruned = toy_space(7, 64), toy_space(16, 64, methods=("prune",))
    return {
        "separable, 17 coordinates, 0.5x": (toy_problem(pruned, share=0.5, evaluations=evaluations), 0.0),
        "joint, 38 coordinates, 0.3x": (toy_problem(joint, share=0.3, evaluations=evaluations), 0.0),
        "joint, interacting, non-monotone, 0.2x": (
            toy_problem(joint, share=0.2, conversion=0.03, evaluations=evaluations),
            1.0,
        ),
        "joint, interacting, non-monotone, 0.1x": (
            toy_problem(joint, share=0.1, conversion=0.05, evaluations=evaluations),
            0.5,
        ),
    }


def exact_separable(problem: Problem, accuracy: ToyAccuracy) -> float:
    """Optimum of a prune-only problem without interaction: per trunk width a Pareto programme over groups."""
    pricer = Pricer(problem)
    names = [c.subject for c in problem.space.choices]
    trunk, limit, best = names.index("trunk"), problem.budget.max_latency_ms or np.inf, -np.inf
    for width in range(pricer.top[trunk] + 1):
        base = np.zeros_like(pricer.top)
        base[trunk] = width
        states = [(float(pricer.latency(base[None])[0]), 0.0, base)]
        for i in (k for k in range(len(names)) if k != trunk):
            options = np.repeat(base[None], pricer.top[i] + 1, axis=0)
            options[:, i] = np.arange(pricer.top[i] + 1)
            extra = pricer.latency(options) - pricer.latency(base[None])[0]
            loss = [-np.log((accuracy(pricer.policy(o)) - 0.1) / 0.85) for o in options]
            grown = [
                (t + e, s + q, _with(x, i, v))
                for t, s, x in states
                for v, (e, q) in enumerate(zip(extra, loss, strict=True))
                if t + e <= limit
            ]
            states = _pareto(grown)
        if states:
            best = max(best, max(accuracy(pricer.policy(x)) for _, _, x in states[-1:]))
    return best


def _with(x: Indices, i: int, v: int) -> Indices:
    y = x.copy()
    y[i] = v
    return y


def _pareto(states: list[tuple[float, float, Indices]]) -> list[tuple[float, float, Indices]]:
    """Non-dominated (latency, loss), by rising latency; latencies are lumped to 1e-3 of a millisecond."""
    kept: list[tuple[float, float, Indices]] = []
    for s in sorted(states, key=lambda s: (round(s[0], 3), s[1])):
        if not kept or s[1] < kept[-1][1] - 1e-12:
            kept.append(s)
    return kept


def annealed(problem: Problem, accuracy: ToyAccuracy, seed: int, steps: int = 400) -> float:
    """Best metric of a simulated annealing on the true metric: some thousand evaluations."""
    pricer = Pricer(problem)
    mover, rng = Mover(pricer, problem.budget, expected_losses(problem)), np.random.default_rng(seed)
    x = max((d for d, _ in initial_design(pricer, problem, 12)), key=lambda d: accuracy(pricer.policy(d)))
    value = best = accuracy(pricer.policy(x))
    for k in range(steps):
        heat = 0.02 * (1 - k / steps) + 1e-6
        batch = np.stack([mover.mutate(x[None], rng) for _ in range(12)])
        for row in batch[pricer.feasible(batch)]:
            new = accuracy(pricer.policy(row))
            if new > value or rng.random() < np.exp((new - value) / heat):
                x, value, best = row, new, max(best, new)
    return best


def trace(
    name: str, problem: Problem, accuracy: ToyAccuracy, seed: int, evaluations: int
) -> tuple[list[float], float, float, float]:
    """Best so far per evaluation, hypervolume, seconds and predictions per suggestion."""
    agent = make_agent(name, problem, seed)
    best: list[float] = []
    points: list[tuple[float, float]] = []
    spent = 0.0
    for _ in range(evaluations):
        began = time.perf_counter()
        found = agent.suggest(1)
        spent += time.perf_counter() - began
        if not found:
            break
        value = accuracy(found[0].policy)
        outcome = toy_outcome(problem, found[0].policy, value)
        agent.update(found[0], outcome)
        best.append(max(value, best[-1] if best else 0.0))
        points.append((value, outcome.costs["latency_ms"]))
    limit = problem.budget.max_latency_ms or 1.0
    volume = hypervolume(np.array(points), (0.5, limit), (True, False)) / (0.45 * limit)
    best += best[-1:] * (evaluations - len(best))
    priced = agent.pricer.priced if hasattr(agent, "pricer") else 0
    return best, volume, spent / evaluations, priced / evaluations


def main() -> None:
    """Run every agent on every case and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--agents", default="uniform,random,tpe,nsga2,joint")
    options = parser.parse_args()
    names = options.agents.split(",")
    marks = [m for m in MARKS if m <= options.evaluations] or [options.evaluations]
    for label, (problem, interaction) in cases(options.evaluations).items():
        found: dict[str, list[tuple[list[float], float, float, float]]] = {n: [] for n in names}
        optima = []
        for seed in range(options.seeds):
            accuracy = ToyAccuracy(problem.space.structure, seed=seed, interaction=interaction)
            optimum = (
                exact_separable(problem, accuracy)
                if label.startswith("separable")
                else annealed(problem, accuracy, seed)
            )
            for n in names:
                found[n].append(trace(n, problem, accuracy, seed, options.evaluations))
            optima.append(max(optimum, *(found[n][-1][0][-1] for n in names)))
        report(label, found, optima, marks)


def report(
    label: str,
    found: dict[str, list[tuple[list[float], float, float, float]]],
    optima: list[float],
    marks: list[int],
) -> None:
    """Print one case: mean regret in points after each mark, ratio to random's, hypervolume, time."""
    regret = {
        n: [100 * float(np.mean([o - r[0][m - 1] for o, r in zip(optima, rows, strict=True)])) for m in marks]
        for n, rows in found.items()
    }
    print(f"\n{label}: regret in points after {marks} evaluations, {len(optima)} seeds")
    for n, rows in found.items():
        volume, ms, priced = (float(np.mean([r[k] for r in rows])) for k in (1, 2, 3))
        ratio = (
            f"{regret[n][-1] / max(regret['random'][-1], 1e-9):5.2f}x random's" if "random" in regret else ""
        )
        numbers = " ".join(f"{v:6.2f}" for v in regret[n])
        print(
            f"  {n:13s} {numbers}   {ratio}   hypervolume {volume:.3f}   {1e3 * ms:5.0f} ms,"
            f" {priced:4.0f} predictions a suggestion",
            flush=True,
        )


if __name__ == "__main__":
    main()
