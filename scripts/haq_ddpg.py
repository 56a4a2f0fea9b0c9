"""HAQ's table of a bit-serial array: what the `haq` and `ddpg` agents find in as many episodes as published.

    python scripts/haq_ddpg.py [--agents haq,ddpg] [--episodes 600] [--budget 0.6] [--seeds 1]

MobileNetV2's 53 layers at 2 to 8 weight and activation bits, first and last pinned at 8/8, latency from the
published table, budget a share of what 8/8 costs. No accuracy is at hand: the metric is a proxy, the sum of
all layers' weight and activation bits over that of 8/8, so an agent is paid for bits kept inside the budget.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agents.contract import Budget, Costs, Outcome, Problem
from agents.ddpg import HAQ
from agents.registry import make_agent
from compressors.graph import DimSize, Graph, Layer, Node, Structure, TensorGroup, TensorType
from compressors.policy import ResolvedPolicy
from compressors.space import Abilities, PolicySpace
from hw_profiles.haq import haq_table
from hw_profiles.target import load_target

TARGET = "fpga-haq-bismo"
#: Cost share of HAQ's published policy.
BUDGET = 0.60
LEAST, MOST = 2, 8
PINNED = "first and last layers stay at 8/8, as published"


@dataclass(frozen=True)
class BitsTable:
    """Latency of policies from the table: cycles (layers, 8, 8) by weight bits - 1, activation bits - 1."""

    cycles: NDArray[np.float64]
    clock_ghz: float

    def bits(self, policy: ResolvedPolicy) -> NDArray[np.int64]:
        """Weight and activation bits of every layer, shape (2, layers); what is pinned has the most."""
        names = [layer_name(k) for k in range(len(self.cycles))]
        found = [
            [policy.weight_bits[n] for n in names],
            [policy.act_bits.get(f"in:{n}", MOST) for n in names],
        ]
        return np.minimum(np.array(found, dtype=np.int64), MOST)

    def __call__(self, policies: Sequence[ResolvedPolicy]) -> Costs:
        weight, act = np.stack([self.bits(p) for p in policies], axis=1) - 1
        total = self.cycles[np.arange(len(self.cycles)), weight, act].sum(axis=1)
        return {"latency_ms": total / (self.clock_ghz * 1e6)}

    def proxy(self, policy: ResolvedPolicy) -> float:
        """The stand-in for accuracy: weight and activation bits summed over layers, over that of 8/8."""
        return float(self.bits(policy).sum() / (2 * MOST * len(self.cycles)))


@dataclass(frozen=True)
class Found:
    """The best policy of a run by the proxy: ``share`` of 8/8's cost, total bits, and the run's seconds."""

    agent: str
    seed: int
    episodes: int
    share: float
    weight_bits: int
    act_bits: int
    policy: ResolvedPolicy
    seconds: float


def layer_name(index: int) -> str:
    """Name of a layer of the table."""
    return f"layer{index}"


def haq_structure() -> Structure:
    """The table's layers as a chain; a tensor group before each layer but the pinned ones."""
    shapes, _ = haq_table()
    layers, nodes, tensors = [], [], {"t0": TensorType((-1, int(shapes[0][0]), 224, 224))}
    for k, (cin, cout, kernel, stride, out, groups) in enumerate(np.array(shapes, dtype=int).tolist()):
        name, weight = layer_name(k), (cout, cin // groups, kernel, kernel)
        pinned = {"bits": PINNED} if k in (0, len(shapes) - 1) else {}
        macs = int(np.prod(weight)) * out * out
        layers.append(Layer(name, "conv", f"{name}.w", "", (name,), weight, groups, macs, pinned))
        stride_of = {"stride": (stride, stride), "groups": groups}
        nodes.append(Node("conv", name, (f"t{k}", f"{name}.w"), (f"t{k + 1}",), stride_of))
        tensors[f"t{k + 1}"] = TensorType((-1, cout, out, out))
    graph = Graph(
        tuple(nodes),
        ("t0",),
        (f"t{len(shapes)}",),
        tensors,
        {x.weight: TensorType(x.weight_shape) for x in layers},
    )
    free = tuple(TensorGroup(f"in:{x.name}", (f"t{k}",)) for k, x in enumerate(layers) if not x.fixed)
    sizes = {x.weight: tuple(DimSize(n) for n in x.weight_shape) for x in layers}
    return Structure(graph, tuple(layers), (), free, (), sizes)


def haq_problem(budget: float = BUDGET, episodes: int = HAQ.episodes) -> tuple[Problem, BitsTable]:
    """The search on HAQ's table; ``budget`` is a share of what 8/8 costs."""
    pairs = tuple((w, a) for w in range(LEAST, MOST + 1) for a in range(LEAST, MOST + 1))
    able = Abilities(precisions=pairs, float_kernels=False, methods=frozenset({"quantize"}))
    space = PolicySpace(haq_structure(), able)
    table = BitsTable(haq_table()[1], float(load_target(TARGET).device.clock_ghz.value))
    whole = float(table([space.resolve(space.dense)])["latency_ms"][0])
    return Problem(space, Budget(max_latency_ms=budget * whole), table, 1.0, evaluations=episodes), table


def run_haq(
    agent: str = "haq", *, episodes: int = HAQ.episodes, budget: float = BUDGET, seed: int = 0
) -> Found:
    """Let an agent search for ``episodes`` evaluations of the proxy; the best policy it suggested."""
    problem, table = haq_problem(budget, episodes)
    started, controller = time.perf_counter(), make_agent(agent, problem, seed)
    best: tuple[float, ResolvedPolicy] | None = None
    for _ in range(episodes):
        for s in controller.suggest(1):
            metric = table.proxy(s.policy)
            costs = {k: float(v[0]) for k, v in problem.costs([s.policy]).items()}
            controller.update(s, Outcome(s.policy, metric, costs))
            best = max(best or (metric, s.policy), (metric, s.policy), key=lambda pair: pair[0])
    if best is None:
        raise SystemExit(f"nothing holds {budget:.2f} of 8/8's cost.")
    policy = best[1]
    whole = problem.costs([problem.space.resolve(problem.space.dense)])["latency_ms"][0]
    weight, act = table.bits(policy).sum(axis=1)
    share = float(problem.costs([policy])["latency_ms"][0] / whole)
    seconds = time.perf_counter() - started
    return Found(agent, seed, episodes, share, int(weight), int(act), policy, seconds)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--agents", default="haq,ddpg")
    parser.add_argument("--episodes", type=int, default=HAQ.episodes)
    parser.add_argument("--budget", type=float, default=BUDGET)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    print(f"{'agent':14s} seed episodes cost share weight bits activation bits seconds")
    for name in options.agents.split(","):
        for seed in range(options.seeds):
            f = run_haq(name, episodes=options.episodes, budget=options.budget, seed=seed)
            print(
                f"{f.agent:14s} {f.seed:4d} {f.episodes:8d} {f.share:10.4f} "
                f"{f.weight_bits:11d} {f.act_bits:15d} {f.seconds:7.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
