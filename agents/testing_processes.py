"""Conformance across processes: the same seed suggests the same, and a journal continues where it ended.

    from agents.testing_processes import check_processes
    check_processes(["my-agent"], imports=["my_package.my_agent"])

Every process hashes strings differently, as a user's do. A worker is ``python -m agents.testing_processes``:
a JSON request on its standard input, the journals on its standard output.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from compressors.policy import ResolvedPolicy

from .contract import Agent, Budget, Costs, Outcome, Problem, Suggestion
from .registry import make_agent
from .testing import Score, need, score_of, toy_problem
from .toys import ToyAccuracy, toy_outcome, toy_space

#: Suggestions that are out at a time.
IN_FLIGHT = 2
SEED = 5


def check_processes(
    names: Sequence[str], *, imports: Sequence[str] = (), evaluations: int = 14, processes: int = 3
) -> None:
    """Play every agent in fresh processes, and once more from the journal of the first, cut in the middle.

    ``imports``: modules that register agents. Raises AgentConformanceError.
    """
    asked = {"names": list(names), "imports": list(imports), "evaluations": evaluations, "journals": {}}
    played = [_worker(asked, hash_seed=k + 1) for k in range(processes)]
    for again in played[1:]:
        for where, journal in played[0].items():
            need(again[where] == journal, f"{where}: two processes with one seed differ")
    cut = {where: journal[: len(journal) // 2] for where, journal in played[0].items()}
    resumed = _worker({**asked, "journals": cut}, hash_seed=processes + 1)
    for where, journal in played[0].items():
        need(len(journal) >= 2, f"{where}: nothing was suggested")
        need(resumed[where] == journal, f"{where}: continued from a journal it goes elsewhere")


def problems() -> Iterator[tuple[str, Problem]]:
    """Three that agents treat differently: a limit, least latency with losses, estimates that are off."""
    space = toy_space(2, bits=((8, 8), (4, 8)))
    yield "latency", toy_problem(space, share=0.3)
    drop = Budget(max_drop=3.0)
    measured = ToyAccuracy(space.structure)
    yield "least latency", toy_problem(space, budget=drop, objective="latency", measured=measured)
    plain = toy_problem(space, share=0.25, conversion=0.03)

    def estimates(policies: Sequence[ResolvedPolicy]) -> Costs:
        costs = plain.costs(policies)
        return {**costs, "latency_ms": costs["latency_ms"] * 0.93 + 0.001}

    yield "estimates", replace(plain, estimates=estimates)


def play(agent: Agent, problem: Problem, score: Score, journal: list[Any], evaluations: int) -> list[Any]:
    """The journal of a search continued to ``evaluations`` suggestions, `IN_FLIGHT` of them out at a time.

    Entries are a suggestion or [number, outcome]; what a journal holds is told as a study tells it.
    """
    suggested = {s.number: s for s in (Suggestion.from_dict(e) for e in journal if isinstance(e, dict))}
    told = [(suggested[e[0]], Outcome.from_dict(e[1])) for e in journal if not isinstance(e, dict)]
    answered = {s.number for s, _ in told}
    agent.replay([*told, *((s, None) for n, s in suggested.items() if n not in answered)])
    journal, out = list(journal), list(agent.outstanding)
    while True:
        fresh = agent.suggest(1) if len(suggested) < evaluations and len(out) < IN_FLIGHT else []
        for s in fresh:
            suggested[s.number] = s
            out.append(s)
            journal.append(s.to_dict())
        if fresh:
            continue
        if not out:
            return journal
        s = out.pop(0)
        outcome = toy_outcome(problem, s.policy, score(s))
        agent.update(s, outcome)
        journal.append([s.number, outcome.to_dict()])


def _worker(asked: dict[str, Any], hash_seed: int) -> dict[str, list[Any]]:
    env = {
        **os.environ,
        "PYTHONHASHSEED": str(hash_seed),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-m", "agents.testing_processes"],
        input=json.dumps(asked),
        env=env,
        capture_output=True,
        text=True,
    )
    need(done.returncode == 0, f"a process fails: {done.stderr[-2000:]}")
    found: dict[str, list[Any]] = json.loads(done.stdout)
    return found


def main() -> None:
    """Answer one request."""
    asked = json.loads(sys.stdin.read())
    for module in asked["imports"]:
        importlib.import_module(module)
    found = {}
    for name in asked["names"]:
        for label, problem in problems():
            where = f"{name}, {label}"
            agent = make_agent(name, problem, SEED)
            journal = asked["journals"].get(where, [])
            found[where] = play(agent, problem, score_of(problem), journal, asked["evaluations"])
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
