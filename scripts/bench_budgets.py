"""Budgets hold after rounding: random problems (network, target, limits, agent), suggestions priced anew.

    .venv/bin/python scripts/bench_budgets.py [--problems 1000] [--first 0] [--toys 0.4] [--agents joint,tpe]

Problem number k is a function of k: agents take turns, the rest is drawn. Real networks of six families are
priced by a lowering that shares nothing with the one the agent asked (its templates come from the runtime
anew), toys by their formulas. Metrics are synthetic: what is tested is limits, not learning. Exits with 1 if
any suggestion breaks a limit, is none of the space's, or does not decode to its policy.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agents.contract import LIMITS, Budget, Costs, Losses, Outcome, Problem, Suggestion
from agents.loss_table import loss_table, separable_loss
from agents.registry import list_agents, make_agent
from agents.toys import ToyCosts, toy_space
from compressors.policy import ResolvedPolicy
from compressors.space import PolicySpace

#: Family and variant of `heldout_networks`: small ones, of every kind of layer.
NETWORKS = (
    ("resnet", "14w32@28"),
    ("resnet", "8w64@64"),
    ("vgg", "8@32"),
    ("mobilenet-v2", "0.5@96"),
    ("inception", "4w16@32"),
    ("lenet", "6-16@32"),
    ("encoder", "64x2@16"),
)
TARGETS = (
    "raspberry-pi-4",
    "raspberry-pi-3/ncnn",
    "x86-avx512-vnni",
    "fpga-bitfusion",
    "fpga-zcu104-dpu",
    "gpu-t4",
)
#: Suggestions taken of each problem, in batches of one to three.
SUGGESTIONS = 7
RISK = 0.9

Price = Callable[[Sequence[ResolvedPolicy]], Costs]


@dataclass(frozen=True)
class World:
    """One network on one target: the space, the prices agents see, and a judge's own."""

    name: str
    space: PolicySpace
    costs: Price
    estimates: Price | None
    judge: Price


@dataclass
class Count:
    """What one agent did. ``filled``: per problem the largest share of a limit that any suggestion uses."""

    problems: int = 0
    suggestions: int = 0
    silent: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)
    filled: list[float] = field(default_factory=list)


# -- worlds


@cache
def toy_world(index: int) -> World:
    """A residual toy with a staircase and, mostly, conversions that make its costs non-monotone."""
    rng = np.random.default_rng((index, 0x70))
    bits = ((8, 8),) if index % 3 else ((8, 8), (4, 8))
    space = toy_space(int(rng.integers(1, 6)), int(rng.choice([16, 32, 64])), bits=bits)
    prices = ToyCosts(space.structure, conversion=float(rng.choice([0.0, 0.02, 0.05])))
    off = float(rng.uniform(0.85, 1.15))

    def estimates(policies: Sequence[ResolvedPolicy]) -> Costs:
        found = prices(policies)
        return {k: v * off if k.startswith("latency") else v for k, v in found.items()}

    return World(f"toy {index}", space, prices, estimates if index % 2 else None, prices)


@cache
def real_world(family: str, variant: str, target_name: str) -> World:
    """A network with random weights on a target, as `search` sets it up."""
    import torch
    from heldout_networks import VARIANTS

    from compressors.network import Network
    from hw_profiles.target import load_target
    from search.abilities import abilities_of
    from search.estimate import Estimator
    from search.lowering import Lowering
    from search.templates import TemplateStore

    torch.manual_seed(0)
    module, shape = VARIANTS[family][variant]()
    example = torch.randn(2, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = Network.from_module(module.eval(), (example[:1],), (example,))
    target = load_target(target_name)
    space = PolicySpace(network.structure, abilities_of(target))
    own = Lowering(network.structure, target, weights=network.weights)
    judge = Lowering(
        network.structure, target, weights=network.weights, store=TemplateStore(Path(tempfile.mkdtemp()))
    )
    estimator = Estimator.learned(space, own)
    factor = own.predictor.quantile_factor(RISK)

    def risky(price: Price) -> Price:
        def priced(policies: Sequence[ResolvedPolicy]) -> Costs:
            found = dict(price(policies))
            return {**found, "latency_high_ms": found["latency_ms"] * factor}

        return priced

    name = f"{family} {variant} on {target_name}"
    return World(name, space, risky(own.costs), risky(estimator.costs), risky(judge.costs))


# -- problems


def world_of(index: int, toys: float) -> World:
    """The network and target of problem ``index``."""
    rng = np.random.default_rng((index, 1))
    if rng.random() < toys:
        return toy_world(int(rng.integers(40)))
    network = NETWORKS[int(rng.integers(len(NETWORKS)))]
    return real_world(*network, TARGETS[int(rng.integers(len(TARGETS)))])


def problem_of(index: int, world: World) -> Problem:
    """Problem ``index``: one to three limits, either objective, with or without measured losses."""
    rng = np.random.default_rng((index, 2))
    base = {k: float(v[0]) for k, v in world.costs([world.space.resolve(world.space.dense)]).items()}
    offered = [f for f, cost in LIMITS.items() if base.get(cost, 0.0) > 0]
    if rng.random() < 0.8:  # peak memory is a fact of whole templates: no estimates, and slow
        offered.remove("max_memory_bytes")
    chosen = rng.choice(offered, size=min(len(offered), int(rng.choice([1, 1, 2, 3]))), replace=False)
    risk = RISK if rng.random() < 0.2 and "max_latency_ms" in chosen else None
    limits = {}
    for f in chosen:
        cost = "latency_high_ms" if risk is not None and f == "max_latency_ms" else LIMITS[f]
        limits[str(f)] = base[cost] * float(np.exp(rng.uniform(np.log(0.15), np.log(0.95))))
    fast = rng.random() < 0.25
    budget = Budget(**limits, risk=risk, max_drop=float(rng.uniform(0.5, 8.0)) if fast else None)
    estimates = None if budget.max_memory_bytes is not None else world.estimates
    problem = Problem(
        world.space,
        budget,
        world.costs,
        0.95,
        objective="latency" if fast else "accuracy",
        evaluations=int(rng.choice([8, 20, 60])),
        estimates=estimates,
    )
    table = losses_of(problem, index)
    return replace(problem, losses=lambda: table) if rng.random() < 0.5 else problem


def losses_of(problem: Problem, index: int) -> Losses:
    """Synthetic losses: the prior's, each coordinate times a random factor over two orders of magnitude."""
    factors = np.exp(np.random.default_rng((index, 3)).normal(0.0, 1.2, problem.space.dimension))
    table = loss_table(problem, {}).scaled(0.1 * factors).loss
    return {c.name: table[i, : len(c.values)] for i, c in enumerate(problem.space.choices)}


def metric_of(problem: Problem, index: int) -> Callable[[Suggestion], float]:
    """A metric that falls with the sum of the synthetic losses."""
    table = loss_table(problem, losses_of(problem, index))

    def metric(suggestion: Suggestion) -> float:
        at = problem.space.indices(suggestion.point)[None]
        return float(0.1 + 0.85 * np.exp(-separable_loss(table, at)[0]))

    return metric


# -- judging


def check(world: World, problem: Problem, suggestion: Suggestion) -> tuple[str, float]:
    """What is wrong with a suggestion ("" for nothing), and the largest share of a limit it uses."""
    policy = suggestion.policy
    try:
        world.space.check(policy)
    except Exception as e:
        return f"not of the space: {e}", 0.0
    if world.space.resolve(world.space.decode(suggestion.point)) != policy:
        return "the point does not decode to the policy", 0.0
    costs = {k: float(v[0]) for k, v in world.judge([policy]).items()}
    shares = [costs[name] / limit for name, limit in problem.budget.limits.items()]
    return problem.budget.why_not(costs), max(shares, default=0.0)


def played(name: str, index: int, toys: float, count: Count) -> None:
    """One problem: suggestions in batches, answered with the synthetic metric, all of them judged."""
    world = world_of(index, toys)
    problem = problem_of(index, world)
    metric, rng = metric_of(problem, index), np.random.default_rng((index, 4))
    began = time.process_time()
    agent = make_agent(name, problem, index)
    found: list[float] = []
    while len(found) < SUGGESTIONS:
        batch = agent.suggest(min(int(rng.integers(1, 4)), SUGGESTIONS - len(found)))
        if not batch:
            break
        for s in batch:
            why, share = check(world, problem, s)
            found.append(share)
            if why:
                count.violations.append(
                    f"problem {index}, {name}, {world.name}, suggestion {s.number}: {why}"
                )
            value = metric(s)
            costs = {k: float(v[0]) for k, v in problem.costs([s.policy]).items()}
            held = not problem.budget.why_not(costs) and problem.holds_drop(value)
            agent.update(s, Outcome(s.policy, value, costs, feasible=held))
    count.seconds += time.process_time() - began
    count.problems += 1
    count.suggestions += len(found)
    count.silent += not found
    count.filled += [max(found)] if found and problem.budget.limits else []


def run(problems: int, first: int, toys: float, names: Sequence[str]) -> dict[str, Count]:
    """Counts by agent over problems ``first`` to ``first + problems - 1``."""
    counts = {name: Count() for name in names}
    for index in range(first, first + problems):
        name = names[index % len(names)]
        played(name, index, toys, counts[name])
        done = index - first + 1
        if done % 50 == 0:
            broken = sum(len(c.violations) for c in counts.values())
            print(f"{done} problems, {broken} violations", file=sys.stderr, flush=True)
    return counts


def main() -> int:
    """Play, print the table, say what was broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--toys", type=float, default=0.4, help="share of problems that are toys")
    parser.add_argument("--agents", default=",".join(list_agents()))
    options = parser.parse_args()
    counts = run(options.problems, options.first, options.toys, options.agents.split(","))
    print(f"{'agent':16s} problems suggestions silent violations  budget used (median)   s a problem")
    for name, c in counts.items():
        used = f"{np.median(c.filled):.3f}" if c.filled else "-"
        print(
            f"{name:16s} {c.problems:8d} {c.suggestions:11d} {c.silent:6d} {len(c.violations):10d}"
            f"  {used:>20s}   {c.seconds / max(c.problems, 1):11.2f}"
        )
    broken = [v for c in counts.values() for v in c.violations]
    total = sum(c.suggestions for c in counts.values())
    print(
        f"{sum(c.problems for c in counts.values())} problems, {total} suggestions, {len(broken)} violations"
    )
    for line in broken:
        print(line)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
