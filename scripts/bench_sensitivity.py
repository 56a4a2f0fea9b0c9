"""The sensitivity pass: what its caches save, how it scales, and how well it ranks.

    .venv/bin/python scripts/bench_sensitivity.py [--part time,depth,scale,rank] [--policies 60] [--samples N]
                                                  [--networks minilm,efficientnet-lite0]

time: ResNet-20 on digits32, CPU seconds of one thread, least of several rounds that take turns, for

- nothing kept: for every change the changed and the uncompressed network run from their inputs, and the
  factorisation or reconstruction is solved for it (channels are ranked and covariances known, as in any run);
- activations not kept: as `measured_losses(reuse=False)`;
- everything kept: as by default.

depth: residual networks of 20 to 50 layers with random weights, 3x32x32.

scale: real networks (`--networks`) on x86-avx512-vnni: CPU seconds of set-up, of the pass over the whole
network and of that around the uniform policy of the budget's size, as by default and with more samples and
values; and the Spearman correlation of their losses with those of the most.

rank: Spearman correlation of losses with what the complete evaluation says: of single changes that are
policies (channels, ranks, blocks), and summed over the changes of random feasible policies; the same for the
estimates from gradients, for losses around the uniform policy of the budget's size, from which `joint` and
`exact` start, and for the first look (`search.look`) at those policies. Truth is the drop of top-1
on the validation data, which is coarse (1/359), and the rise of its cross-entropy.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor

from agents.pricing import Pricer
from agents.reference import reference
from agents.repair import random_feasible
from compressors.apply import compress, shrunk
from compressors.memo import Memo
from compressors.network import Network
from compressors.policy import ResolvedPolicy
from compressors.sensitivity import (
    first_order_losses,
    losses_around,
    measured_losses,
    second_order_losses,
)
from compressors.sensitivity.changes import Change
from compressors.sensitivity.divergence import divergence
from compressors.sensitivity.plan import Losses, Plan
from compressors.sensitivity.suffix import Reference
from compressors.simulate import answers
from compressors.space import Abilities, PolicySpace
from search.config import make_config
from search.look import estimate
from search.sensitivity import class_axes
from search.setup import Setup, load_setup
from search.tasks.networks import ResNet

ROUNDS = 2
#: Of the real networks: target, budget, and samples of the fullest pass.
SCALE_TARGET, SCALE_BUDGET, MOST = "x86-avx512-vnni", "0.34x", 32
DEPTHS = (3, 5, 8)  # residual blocks a stage: 20, 32 and 50 layers
WAYS: dict[str, Callable[..., Losses]] = {
    "measured": measured_losses,
    "first order": first_order_losses,
    "second order": second_order_losses,
}
console = Console(width=110)
Floats = NDArray[np.float64]


def timed(function: Callable[[], Losses]) -> tuple[float, Losses]:
    """CPU seconds, and what came out."""
    start = time.process_time()
    found = function()
    return time.process_time() - start, found


@torch.no_grad()
def nothing_kept(network: Network, space: PolicySpace, samples: int | None) -> Losses:
    """The same numbers with nothing remembered from one change to the next."""
    plan = Plan(network, space, samples=samples)
    outputs, numerics = plan.outputs, space.abilities.numerics

    def lose(chunk: tuple[Tensor, ...]) -> Callable[[Change], float]:
        def of(change: Change) -> float:
            network.predictors, network.factors = Memo(), Memo()
            reference = Reference(network.structure, plan.changes.nothing, chunk, numerics, reuse=False)
            found = reference.answers(change)
            return 0.0 if found is None else divergence(outputs, reference.outputs, found)

        return of

    return plan.run(lose)


def largest_difference(a: Losses, b: Losses) -> float:
    """Over all coordinates and values."""
    return max((float(np.abs(a[name] - b[name]).max()) for name in a), default=0.0)


def compare(network: Network, space: PolicySpace, samples: int | None, rounds: int) -> list[list[str]]:
    """Rows of the ways to compute, with least CPU seconds, ratio to the last and largest difference to it."""
    ways: dict[str, Callable[[], Losses]] = {
        "nothing kept": lambda: nothing_kept(network, space, samples),
        "activations not kept": lambda: measured_losses(network, space, samples, reuse=False),
        "everything kept": lambda: measured_losses(network, space, samples),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Losses] = {}
    for _ in range(rounds):
        for name, way in ways.items():
            network.predictors, network.factors = Memo(), Memo()
            seconds, found[name] = timed(way)
            times[name].append(seconds)
    least = {name: min(t) for name, t in times.items()}
    last = "everything kept"
    return [
        [n, f"{s:.2f}", f"{s / least[last]:.2f}", f"{largest_difference(found[n], found[last]):.1e}"]
        for n, s in least.items()
    ]


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print one."""
    drawn = Table(title=title, title_justify="left")
    for i, name in enumerate(columns):
        drawn.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn)


def part_time(setup: Setup, samples: int | None) -> None:
    """ResNet-20 on digits32."""
    plan = Plan(setup.scorer.network, setup.space, samples=samples)
    values, count = sum(map(len, plan.measured)), sum(c[0].shape[0] for c in plan.chunks)
    rows = compare(setup.scorer.network, setup.space, samples, ROUNDS)
    title = (
        f"ResNet-20, digits32, {setup.target.name}: {values} values of {setup.space.dimension} coordinates, "
    )
    table(title + f"{count} samples", ("", "CPU s", "ratio", "largest difference"), rows)


def part_depth(samples: int) -> None:
    """Residual networks of growing depth, random weights."""
    rows = []
    for n in DEPTHS:
        torch.manual_seed(0)
        module, x = ResNet(n=n, channels=3).eval(), torch.randn(64, 3, 32, 32)
        network = Network.from_module(module, (x[:1],), (x,))
        network.rank_channels("obs")
        space = PolicySpace(network.structure, Abilities())
        values = sum(map(len, Plan(network, space, samples=samples).measured))
        for i, row in enumerate(compare(network, space, samples, 1)):
            head = [f"{6 * n + 2} layers", str(space.dimension), str(values)] if i == 0 else ["", "", ""]
            rows.append([*head, *row])
    columns = ("network", "coordinates", "values", "", "CPU s", "ratio", "largest difference")
    table(f"Depth, random weights, {samples} samples", columns, rows)


# -- real networks


def part_scale(network: str, most: int) -> None:
    """One real network: what a pass takes by default, and how it ranks against one with ``most`` samples."""
    start = time.process_time()
    setup = load_setup(make_config({"target": SCALE_TARGET, "task": network, "threads": 1,
                                    "max_latency": SCALE_BUDGET}))  # fmt: skip
    seconds = time.process_time() - start
    model, space = setup.scorer.network, setup.space
    at = [int(v) for v in reference(Pricer(setup.problem))]
    classes = class_axes(setup.task, space)
    ways: dict[str, list[tuple[str, Callable[[], Losses]]]] = {
        "whole": [
            ("by default", lambda: measured_losses(model, space, classes=classes)),
            *(
                (f"{n} samples", partial(measured_losses, model, space, n, classes=classes))
                for n in (8, most)
            ),
        ],
        "around": [
            ("by default", lambda: losses_around(model, space, at, classes=classes)),
            *((f"{n} samples", partial(losses_around, model, space, at, n, classes)) for n in (8, most)),
        ],
    }
    rows = []
    for kind, each in ways.items():
        found = [(name, *timed(way)) for name, way in each]
        full = found[-1][2]
        for name, took, losses in found:
            rows.append([kind, name, f"{took:.1f}", *agreement(losses, full, space)])
    title = f"{network}, {space.dimension} coordinates, set-up {seconds:.1f} CPU s: Spearman with the last"
    table(title, ("losses", "", "CPU s", "values", "coordinates"), rows)


def agreement(found: Losses, full: Losses, space: PolicySpace) -> tuple[str, str]:
    """Spearman of the losses of all values but the last, and of each coordinate's first (the largest)."""
    pairs = [(found[c.name], full[c.name]) for c in space.choices]
    a, b = (np.concatenate([p[k][:-1] for p in pairs]) for k in (0, 1))
    first = [[float(p[k][0]) for p in pairs] for k in (0, 1)]
    return f"{float(spearmanr(a, b).statistic):.3f}", f"{float(spearmanr(*first).statistic):.3f}"


# -- ranking


@dataclass(frozen=True)
class Truth:
    """Validation metrics of a compressed network: top-1 (0..1) and cross-entropy (nats)."""

    top1: float
    entropy: float

    @classmethod
    def of(cls, setup: Setup, policy: ResolvedPolicy) -> Truth:
        split = setup.task.validation
        compressed = compress(setup.scorer.network, policy, setup.scorer.numerics)
        found = answers(compressed, split.inputs)[0]
        if split.targets is None:
            raise ValueError("validation data without labels")
        right = (found.argmax(1) == split.targets).double().mean()
        return cls(float(right), float(F.cross_entropy(found.double(), split.targets)))


def spearman(estimates: Sequence[float], truths: Sequence[Truth]) -> list[str]:
    """Correlation with the drop of top-1 and with the rise of the cross-entropy."""
    wrong, entropy = [-t.top1 for t in truths], [t.entropy for t in truths]
    return [f"{float(spearmanr(estimates, x).statistic):+.3f}" for x in (wrong, entropy)]


def every_way(setup: Setup, samples: int | None) -> dict[str, Losses]:
    """Measured and estimated losses, by name."""
    losses: dict[str, Losses] = {}
    rows = []
    for name, way in WAYS.items():
        seconds, losses[name] = timed(partial(way, setup.scorer.network, setup.space, samples))
        rows.append([name, f"{seconds:.2f}"])
    table(f"One pass each, {setup.target.name}", ("losses", "CPU s"), rows)
    return losses


def part_rank(setup: Setup, losses: dict[str, Losses], policies: int) -> None:
    """Single changes, then random feasible policies."""
    space, top = setup.space, setup.space.cardinalities - 1
    singles, policy_of = [], []
    plan = Plan(setup.scorer.network, space)
    for i, choice in enumerate(space.choices):
        for v in plan.measured[i] if choice.kind in ("keep", "rank", "removed") else ():
            indices = top.copy()
            indices[i] = v
            singles.append((choice.name, v))
            policy_of.append(space.resolve(space.at(indices)))
    truths = [Truth.of(setup, p) for p in policy_of]
    rows = [[name, *spearman([found[n][v] for n, v in singles], truths)] for name, found in losses.items()]
    measured = losses["measured"]
    flat = [measured[n][v] for n, v in singles]
    for row, (name, found) in zip(rows, losses.items(), strict=True):
        mine = [found[n][v] for n, v in singles]
        row.append("" if name == "measured" else f"{float(spearmanr(mine, flat).statistic):+.3f}")
    columns = ("losses", "drop of top-1", "rise of cross-entropy", "measured losses")
    table(f"{len(singles)} single changes, {setup.target.name}: Spearman with", columns, rows)
    _random(setup, losses, policies)


def _random(setup: Setup, losses: dict[str, Losses], policies: int) -> None:
    pricer, rng = Pricer(setup.problem), np.random.default_rng(0)
    drawn = [x for _ in range(policies) if (x := random_feasible(pricer, rng)) is not None]
    resolved = [pricer.policy(x) for x in drawn]
    truths = [Truth.of(setup, p) for p in resolved]
    names = [c.name for c in setup.space.choices]
    rows = []
    for name, found in losses.items():
        sums = [sum(float(found[n][i]) for n, i in zip(names, x, strict=True)) for x in drawn]
        rows.append([f"sum of {name}", *spearman(sums, truths)])
    at = reference(pricer)
    seconds, around = timed(lambda: losses_around(setup.scorer.network, setup.space, at))
    sums = [sum(float(around[n][i]) for n, i in zip(names, x, strict=True)) for x in drawn]
    rows.append([f"sum of measured around uniform ({seconds:.1f} s)", *spearman(sums, truths)])
    look = setup.scorer._look
    seen = [look.at(p, shrunk(setup.scorer.network, p)) for p in resolved]
    rows.append(["first look", *spearman([-estimate(s, look.count)[0] for s in seen], truths)])
    best, worst = max(t.top1 for t in truths), min(t.top1 for t in truths)
    title = f"{len(drawn)} random feasible policies, {setup.target.name}, top-1 {worst:.3f} to {best:.3f}: "
    table(title + "Spearman with", ("estimate", "drop of top-1", "rise of cross-entropy"), rows)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", default="time,depth,rank")
    parser.add_argument("--networks", default="minilm,efficientnet-lite0")
    parser.add_argument("--target", default="raspberry-pi-4,fpga-bitfusion")
    parser.add_argument("--policies", type=int, default=60)
    parser.add_argument("--samples", type=int)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = arguments.part.split(",")
    wanted = arguments.target.split(",") if {"time", "rank"} & set(parts) else []
    setups = [load_setup(make_config({"target": t})) for t in wanted]
    if "time" in parts:
        part_time(setups[0], arguments.samples)
    if "depth" in parts:
        part_depth(arguments.samples or 16)
    for network in arguments.networks.split(",") if "scale" in parts else ():
        part_scale(network, arguments.samples or MOST)
    for setup in setups if "rank" in parts else ():
        part_rank(setup, every_way(setup, arguments.samples), arguments.policies)


if __name__ == "__main__":
    main()
