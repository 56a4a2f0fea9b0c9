"""Does learning from past studies help on a network never seen? Leave-one-network-out.

    python scripts/bench_hyper.py OUT.jsonl [--evaluations 60] [--seeds 3] [--only study|run|table] [...]

First `joint` searches every problem once: the past studies. Then, for every problem, `hyper` learns from the
studies of all other *families* of networks (a ResNet never learns from a ResNet) and is compared with `joint`
and `random`. What is in OUT already is not done again; a stop loses one search at most.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agents.contract import Agent, Budget, Outcome, Problem, Suggestion
from agents.pareto import hypervolume, reference_gain
from agents.past import PastStudy, past_study
from agents.pricing import Pricer
from agents.registry import make_agent
from agents.repair import anchors
from compressors.policy import ResolvedPolicy
from search.config import make_config
from search.evaluate import Finished, Job
from search.score import Score
from search.setup import Setup, load_setup
from search.study import outcome_of
from search.task import fingerprint
from search.threads import single_threaded

OWN = f"{Path(__file__).resolve().with_name('bench_hyper_networks.py')}:"
#: Task to its family.
NETWORKS = {
    "digits32": "resnet",
    "mnist5k-distorted": "resnet",
    f"{OWN}resnet_small": "resnet",
    "mnist5k-lenet5": "lenet",
    "mnist5k-lenet300": "mlp",
    f"{OWN}vgg_small": "vgg",
    f"{OWN}vgg_flat": "vgg",
    f"{OWN}mobile_small": "mobile",
    f"{OWN}mobile_deep": "mobile",
    f"{OWN}inception_small": "inception",
    f"{OWN}inception_deep": "inception",
}
TARGETS = ("raspberry-pi-4", "x86-avx512-vnni", "fpga-bitfusion")
#: Between the smallest latency there is (0) and that of the uncompressed network (1), in logarithms: so they
#: are as hard for every network, whatever of its time no compression saves.
BUDGETS = (0.75, 0.5)
AGENTS = ("hyper", "joint", "random")
MARKS = (5, 10, 25, 50)


@dataclass(frozen=True)
class Case:
    """One problem: task, target and how tight its budget is."""

    task: str
    target: str
    budget: float

    @property
    def family(self) -> str:
        return NETWORKS[self.task]

    @property
    def name(self) -> str:
        return f"{self.task.rpartition(':')[2]} {self.target} {self.budget}"


class Bench:
    """Problems that are loaded once, and scores that every agent shares."""

    def __init__(self, evaluations: int) -> None:
        self.evaluations = evaluations
        self._setups: dict[tuple[str, str], Setup] = {}
        self._problems: dict[Case, Problem] = {}
        self._scores: dict[tuple[str, str, str], Score] = {}

    def setup(self, case: Case) -> Setup:
        key = (case.task, case.target)
        if key not in self._setups:
            self._setups.clear()  # one network in memory at a time
            wanted = {"task": case.task, "target": case.target, "max_latency": "1x"}
            self._setups[key] = load_setup(make_config({**wanted, "evaluations": self.evaluations}))
        return self._setups[key]

    def problem(self, case: Case) -> Problem:
        if case not in self._problems:
            plain = self.setup(case).problem
            pricer = Pricer(plain)
            ends = [pricer.exact(x)["latency_ms"] for x in (anchors(pricer)[1], pricer.top)]
            limit = ends[0] * (ends[1] / ends[0]) ** case.budget
            self._problems[case] = replace(plain, budget=Budget(max_latency_ms=limit))
        return self._problems[case]

    def score(self, case: Case, policy: ResolvedPolicy) -> Score:
        scorer = self.setup(case).scorer
        key = (case.task, scorer.numerics.key, policy.digest)
        if key not in self._scores:
            self._scores[key] = scorer.score(policy)
        return self._scores[key]

    def search(
        self, case: Case, make: Callable[[Problem, int], Agent], seed: int
    ) -> tuple[list[tuple[Suggestion, Outcome]], int, float]:
        """What a search tells its agent, baselines first; how many they are; the agent's own seconds."""
        problem = self.problem(case)
        space = problem.space
        start = time.process_time()
        agent = make(problem, seed)
        own = time.process_time() - start
        told: list[tuple[Suggestion, Outcome]] = []
        bits = max(space.abilities.act_bits, default=None)
        for i, proposal in enumerate((space.uniform(1.0, bits), space.uniform(0.5, bits))):
            policy = space.resolve(proposal)
            outcome = outcome_of(problem, Finished(Job(-1 - i, policy), self.score(case, policy)))
            if outcome.feasible:
                point = tuple(float(x) for x in space.encode(proposal))
                told.append((Suggestion(-1 - i, point, policy, "baseline"), outcome))
                agent.update(*told[-1])
        known = len(told)
        while len(told) - known < self.evaluations:
            start = time.process_time()
            found = agent.suggest(1)
            own += time.process_time() - start
            if not found:
                break
            s = found[0]
            told.append(
                (s, outcome_of(problem, Finished(Job(s.number, s.policy), self.score(case, s.policy))))
            )
            start = time.process_time()
            agent.update(*told[-1])
            own += time.process_time() - start
        return told, known, own


def cases(args: argparse.Namespace) -> Iterator[Case]:
    for task in NETWORKS:
        if args.networks and task.rpartition(":")[2] not in args.networks.split(","):
            continue
        for target in args.targets.split(","):
            for budget in args.budgets.split(","):
                yield Case(task, target, float(budget))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def build_studies(bench: Bench, path: Path, wanted: Sequence[Case]) -> None:
    """Search every problem once with `joint`."""
    done = {r["case"] for r in read(path) if r["kind"] == "study"}
    for case in wanted:
        if case.name in done:
            continue
        told, _, own = bench.search(case, partial(make_agent, "joint"), seed=1000)
        setup = bench.setup(case)
        study = past_study(
            setup.problem,
            told,
            run=case.name,
            task=fingerprint(setup.task),
            target=case.target,
            agent="joint",
        )
        doc = None if study is None else study.to_dict()
        append(path, {"kind": "study", "case": case.name, "family": case.family, "study": doc})
        spent = sum(o.seconds for _, o in told)
        print(f"study {case.name}: {len(told)} outcomes, own {own:.1f} s, scores {spent:.1f} s", flush=True)


def compare(bench: Bench, path: Path, wanted: Sequence[Case], seeds: int, agents: Sequence[str]) -> None:
    """Every agent on every problem; `hyper` with the other families' studies."""
    rows = read(path)
    done = {(r["case"], r["agent"], r["seed"]) for r in rows if r["kind"] == "run"}
    studies = [(r["family"], PastStudy.from_dict(r["study"])) for r in rows if r.get("study")]
    for case in wanted:
        others = [s for family, s in studies if family != case.family]
        for agent in agents:
            for seed in range(seeds):
                if (case.name, agent, seed) in done:
                    continue
                told, known, own = bench.search(case, partial(learner, agent, others), seed)
                row = {"kind": "run", "case": case.name, "agent": agent, "seed": seed, "own": own}
                append(path, {**row, **curves(bench.problem(case), told, known)})
        print(f"run {case.name}: learned from {len(others)}", flush=True)


def learner(name: str, studies: Sequence[PastStudy], problem: Problem, seed: int) -> Agent:
    """An agent that may learn from these studies."""
    return make_agent(name, replace(problem, past=lambda: studies), seed)


def curves(problem: Problem, told: Sequence[tuple[Suggestion, Outcome]], known: int) -> dict[str, Any]:
    """Best feasible metric and hypervolume (share of the box up to the limit) after each mark."""
    limit = problem.budget.max_latency_ms or np.inf
    reference, base = reference_gain(problem), problem.gain(problem.base_accuracy)
    best, volume = [], []
    for mark in MARKS:
        rows = np.array(
            [
                [problem.gain(o.accuracy), o.costs["latency_ms"]]
                for _, o in told[: known + mark]
                if o.feasible and o.accuracy is not None
            ]
        ).reshape(-1, 2)
        best.append(float(rows[:, 0].max(initial=-np.inf)) if len(rows) else None)
        box = hypervolume(rows, (reference, limit), (True, False)) if len(rows) else 0.0
        volume.append(box / ((base - reference) * limit))
    return {"best": best, "volume": volume, "base": base}


def table(path: Path) -> None:
    """Medians over seeds per problem, and the differences over problems."""
    runs = [r for r in read(path) if r["kind"] == "run"]
    for what, unit, digits in (("best", 100.0, 2), ("volume", 1.0, 4)):
        print(f"\n{what} after {', '.join(map(str, MARKS))} evaluations, median over seeds")
        medians = {
            key: unit * np.median([[v or 0.0 for v in r[what]] for r in rows], axis=0)
            for key, rows in grouped(runs).items()
        }
        for (case, agent), row in medians.items():
            print(f"  {case:44} {agent:7} " + "  ".join(f"{v:.{digits}f}" for v in row))
        for other in AGENTS[1:]:
            both = [c for c, a in medians if a == "hyper" and (c, other) in medians]
            if both:
                gap = np.stack([medians[c, "hyper"] - medians[c, other] for c in both])
                print(f"  hyper - {other} on {len(both)} problems: mean {gap.mean(0).round(digits)}")
                print(f"    better {(gap > 0).sum(0)}, worse {(gap < 0).sum(0)}", end=", ")
                print(f"median {np.median(gap, 0).round(digits)}, worst {gap.min(0).round(digits)}")
    for agent in AGENTS:
        if own := [r["own"] for r in runs if r["agent"] == agent]:
            print(f"{agent}'s own CPU seconds a search, median: {np.median(own):.1f}")


def grouped(runs: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Runs by problem and agent, problems together."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for case in dict.fromkeys(r["case"] for r in runs):
        for agent in AGENTS:
            if own := [r for r in runs if r["case"] == case and r["agent"] == agent]:
                found[case, agent] = own
    return found


@single_threaded
def main(args: argparse.Namespace) -> None:
    bench, wanted, path = Bench(args.evaluations), list(cases(args)), Path(args.out)
    if args.only in (None, "study"):
        build_studies(bench, path, wanted)
    if args.only in (None, "run"):
        compare(bench, path, wanted, args.seeds, args.agents.split(","))
    table(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", choices=("study", "run", "table"))
    parser.add_argument("--networks", default="")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--budgets", default=",".join(map(str, BUDGETS)))
    parser.add_argument("--agents", default=",".join(AGENTS))
    main(parser.parse_args())
