"""Conformance suite for agents: `check_agent(factory)` raises AgentConformanceError at the first breach.

Anyone who writes an agent can run it::

    from agents.testing import check_agent
    check_agent(lambda problem, seed: MyAgent(problem, seed))
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from compressors.space import PolicySpace

from .contract import Agent, Budget, Outcome, Problem, Suggestion
from .errors import AgentError
from .registry import Factory
from .toys import ToyAccuracy, ToyCosts, toy_outcome, toy_space
from .toys import toy_problem as any_problem

#: Evaluations that problems announce: few, so that agents soon leave their start behind.
PLANNED = 16

Score = Callable[[Suggestion], float | None]


class AgentConformanceError(AgentError):
    """An agent that breaks its contract; the message says where."""

    exit_code = 1


def check_agent(factory: Factory, evaluations: int = 14) -> None:
    """Run every check on an agent. ``factory(problem, seed)`` makes it; a few seconds for a quick agent."""
    for check in CHECKS:
        try:
            check(factory, evaluations)
        except AgentConformanceError as e:
            raise AgentConformanceError(f"{check.__name__}: {e}") from e


def toy_problem(space: PolicySpace, **options: Any) -> Problem:
    """`agents.toys.toy_problem` with few planned evaluations."""
    return any_problem(space, evaluations=PLANNED, **options)


def need(holds: bool, what: str) -> None:
    """Raise AgentConformanceError unless ``holds``."""
    if not holds:
        raise AgentConformanceError(what)


def problems() -> Iterator[tuple[str, Problem]]:
    """Toy problems of every kind: each limit, risk, both objectives, non-monotone costs, low is better."""
    space = toy_space(2, 32, bits=((8, 8), (4, 8)))
    costs = ToyCosts(space.structure)([space.resolve(space.dense)])
    base = {k: float(v[0]) for k, v in costs.items()}
    yield "latency", toy_problem(space, share=0.4)
    yield "tight latency, non-monotone", toy_problem(space, share=0.15, conversion=0.05)
    yield "latency at risk", toy_problem(space, budget=Budget(base["latency_ms"] * 0.5, risk=0.9))
    yield "size", toy_problem(space, budget=Budget(max_size_bytes=base["size_bytes"] * 0.1))
    yield "memory", toy_problem(space, budget=Budget(max_memory_bytes=base["memory_bytes"] * 0.4))
    yield "energy", toy_problem(space, budget=Budget(max_energy_mj=base["energy_mj"] * 0.2))
    yield (
        "macs and latency",
        toy_problem(space, budget=Budget(base["latency_ms"] * 0.5, max_macs=base["macs"] * 0.4)),
    )
    yield "no limit", toy_problem(space, budget=Budget())
    yield "least latency", toy_problem(space, budget=Budget(max_drop=3.0), objective="latency")
    yield "lower is better", toy_problem(space, share=0.4, higher_is_better=False)


def score_of(problem: Problem, *, constant: bool = False) -> Score:
    """The toy metric of a suggestion."""
    model = ToyAccuracy(problem.space.structure, constant=constant)
    return lambda s: model(s.policy) * (1.0 if problem.higher_is_better else -1.0)


def run(agent: Agent, problem: Problem, evaluations: int, score: Score) -> list[tuple[Suggestion, Outcome]]:
    """One suggestion at a time; ends early when the agent has no more."""
    history: list[tuple[Suggestion, Outcome]] = []
    while len(history) < evaluations and (found := agent.suggest(1)):
        outcome = toy_outcome(problem, found[0].policy, score(found[0]))
        agent.update(found[0], outcome)
        history.append((found[0], outcome))
    return history


def check_contract(factory: Factory, evaluations: int) -> None:
    """Numbers count from 0, points decode to the policies, nothing is infeasible or suggested twice."""
    for label, problem in problems():
        history = run(factory(problem, 0), problem, evaluations, score_of(problem))
        need(len(history) > 0, f"{label}: no suggestion")
        for k, (s, _) in enumerate(history):
            need(s.number == k, f"{label}: suggestion {k} carries number {s.number}")
            need(s.origin != "" and "\n" not in s.origin, f"{label}: origin {s.origin!r} is not one line")
            need(all(np.isfinite(s.point)) and all(0 <= v <= 1 for v in s.point), f"{label}: point {s.point}")
            decoded = problem.space.resolve(problem.space.decode(s.point))
            need(decoded == s.policy, f"{label}: suggestion {k}'s point does not decode to its policy")
            problem.space.check(s.policy)
            why = problem.budget.why_not({n: float(v[0]) for n, v in problem.costs([s.policy]).items()})
            need(not why, f"{label}: suggestion {k} is infeasible: {why}")
            need(Suggestion.from_dict(json.loads(json.dumps(s.to_dict()))) == s, f"{label}: JSON of {k}")
        need(len({s.policy.digest for s, _ in history}) == len(history), f"{label}: a policy came twice")


def check_determinism(factory: Factory, evaluations: int) -> None:
    """Same seed and calls, same suggestions, even with other random numbers drawn in between."""
    problem = toy_problem(toy_space(2), share=0.3)
    score = score_of(problem)
    first = run(factory(problem, 3), problem, evaluations, score)
    state = np.random.get_state()  # noqa: NPY002  an agent must not depend on the global generator
    np.random.seed(7)  # noqa: NPY002
    second = run(factory(problem, 3), problem, evaluations, score)
    np.random.set_state(state)  # noqa: NPY002
    need([s for s, _ in first] == [s for s, _ in second], "two runs with one seed differ")


def check_replay(factory: Factory, evaluations: int) -> None:
    """An agent brought back from a journal goes on as the undisturbed one, at every cut."""
    for problem in (
        toy_problem(toy_space(2), share=0.3),
        toy_problem(toy_space(2), budget=Budget(max_drop=3.0), objective="latency"),
    ):
        score = score_of(problem)
        whole = run(factory(problem, 1), problem, evaluations, score)
        for cut in {0, 1, len(whole) // 2, max(0, len(whole) - 1)}:
            agent = factory(problem, 1)
            agent.replay(whole[:cut])
            rest = run(agent, problem, evaluations - cut, score)
            same = [s for s, _ in rest] == [s for s, _ in whole[cut:]]
            need(same, f"after replaying {cut} outcomes it goes elsewhere")


def check_replay_with_suggestions_out(factory: Factory, evaluations: int) -> None:
    """The same with three suggestions out at the kill: they are outstanding, and what follows is equal."""
    problem = toy_problem(toy_space(2), share=0.3)
    score = score_of(problem)
    agent = factory(problem, 2)
    log: list[tuple[Suggestion, Outcome | None]] = []
    for _ in range(evaluations // 4):
        batch = agent.suggest(4)
        log += [(s, None) for s in batch]
        for s in (*batch[2:3], *batch[:1]):
            outcome = toy_outcome(problem, s.policy, score(s))
            agent.update(s, outcome)
            log.append((s, outcome))
    restored = factory(problem, 2)
    restored.replay(json_round_trip(log))
    need(restored.outstanding == agent.outstanding, "outstanding suggestions differ after the replay")
    need(restored.suggest(3) == agent.suggest(3), "suggestions differ after the replay")


def json_round_trip(log: list[tuple[Suggestion, Outcome | None]]) -> list[tuple[Suggestion, Outcome | None]]:
    """A history written to JSON and read back, as a journal would."""
    text = json.dumps([(s.to_dict(), o.to_dict() if o is not None else None) for s, o in log])
    return [
        (Suggestion.from_dict(s), Outcome.from_dict(o) if o is not None else None)
        for s, o in json.loads(text)
    ]


def check_any_order(factory: Factory, evaluations: int) -> None:
    """Several suggestions out at once are distinct, and their outcomes may come in any order."""
    problem = toy_problem(toy_space(2), share=0.3)
    score, agent, rng = score_of(problem), factory(problem, 0), np.random.default_rng(0)
    seen: set[str] = set()
    for _ in range(max(2, evaluations // 4)):
        batch = agent.suggest(4)
        for s in batch:
            need(s.policy.digest not in seen, f"suggestion {s.number} was out already")
            seen.add(s.policy.digest)
        for k in rng.permutation(len(batch)):
            agent.update(batch[k], toy_outcome(problem, batch[k].policy, score(batch[k])))
    need(not agent.outstanding, "every suggestion was answered, yet some are outstanding")


def check_many_out(factory: Factory, evaluations: int) -> None:
    """With eight suggestions out at all times, each outcome is answered by one that is new and holds."""
    problem = toy_problem(toy_space(2), share=0.3)
    score, agent, rng = score_of(problem), factory(problem, 0), np.random.default_rng(1)
    out = agent.suggest(8)
    need(len(out) == 8, f"{len(out)} suggestions of 8, nothing being known")
    seen = {s.policy.digest for s in out}
    for _ in range(2 * evaluations):
        s = out.pop(int(rng.integers(len(out))))
        agent.update(s, toy_outcome(problem, s.policy, score(s)))
        fresh = agent.suggest()
        if not fresh:
            break
        need(fresh[0].policy.digest not in seen, f"suggestion {fresh[0].number} is not new")
        need(not problem.budget.why_not(cost_of(problem, fresh[0])), "a suggestion outside the budget")
        seen.add(fresh[0].policy.digest)
        out += fresh
        need(agent.outstanding == tuple(sorted(out, key=lambda x: x.number)), "others are outstanding")
    else:
        return
    for s in out:
        agent.update(s, toy_outcome(problem, s.policy, score(s)))
    need(agent.suggest() == [], f"no suggestion with {len(out)} out, yet one with none")


def cost_of(problem: Problem, suggestion: Suggestion) -> dict[str, float]:
    """Exact costs of one suggestion by name."""
    return {k: float(v[0]) for k, v in problem.costs([suggestion.policy]).items()}


def check_exhaustion(factory: Factory, evaluations: int) -> None:
    """A tiny space ends: no repetition, an empty list at the end; an impossible budget suggests nothing."""
    space = toy_space(1, 8, methods=("prune", "depth"))
    problem = toy_problem(space, share=0.9)
    history = run(factory(problem, 0), problem, 200, score_of(problem))
    need(len({s.policy for s, _ in history}) == len(history) < 200, "a tiny space does not end")
    agent = factory(problem, 0)
    agent.replay(history)
    need(agent.suggest(2) == [], "suggestions after the last policy")
    impossible = toy_problem(space, budget=Budget(max_latency_ms=1e-9))
    need(factory(impossible, 0).suggest(1) == [], "a suggestion under an impossible budget")
    nothing = toy_problem(toy_space(1, methods=()), budget=Budget())
    need(len(run(factory(nothing, 0), nothing, 5, score_of(nothing))) == 1, "a space of one policy has one")


def check_odd_outcomes(factory: Factory, evaluations: int) -> None:
    """Constant metrics, missing ones, NaN, early stops, infeasible after all, and outcomes known before."""
    problem = toy_problem(toy_space(2), share=0.3)
    flat = run(factory(problem, 0), problem, evaluations, score_of(problem, constant=True))
    need(len(flat) > 0, "no suggestion when every metric is the same")
    blind = run(factory(problem, 0), problem, evaluations, lambda s: None)
    need(len(blind) > 0, "no suggestion when nothing can be evaluated")
    score, agent = score_of(problem), factory(problem, 0)
    for k in range(evaluations):
        for s in agent.suggest(1):
            outcome = toy_outcome(problem, s.policy, score(s))
            odd: tuple[dict[str, Any], ...] = (
                {},
                {"accuracy": None, "feasible": False, "why": "not evaluated"},
                {"accuracy": float("nan")},
                {"stopped_early": True},
                {"feasible": False, "why": "priced again"},
                {"costs": {}},
            )
            agent.update(s, dataclasses.replace(outcome, **odd[k % len(odd)]))
    known = run(factory(problem, 5), problem, 4, score)
    warm = factory(problem, 0)
    warm.replay([(dataclasses.replace(s, number=-1 - k), o) for k, (s, o) in enumerate(known)])
    again = {s.policy for s, _ in known} & {s.policy for s, _ in run(warm, problem, 4, score)}
    need(not again, "a policy known before is suggested")


CHECKS: tuple[Callable[[Factory, int], None], ...] = (
    check_contract,
    check_determinism,
    check_replay,
    check_replay_with_suggestions_out,
    check_any_order,
    check_many_out,
    check_exhaustion,
    check_odd_outcomes,
)
