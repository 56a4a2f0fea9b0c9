"""Several problems searched together: what is shared is exact or evaluated anew; what is offered."""

from __future__ import annotations

import numpy as np
import pytest

from agents.contract import Outcome, Problem
from agents.joined import DOUBT, Exchange, JoinedAgent, Offer, Party
from agents.pareto import hypervolume, reference_gain
from agents.random_ import RandomAgent
from agents.registry import make_agent
from agents.testing import check_agent
from agents.toys import ToyAccuracy, toy_outcome, toy_problem, toy_space
from compressors.policy import ResolvedPolicy
from compressors.translate import translated

SPACE = toy_space(2, 32)
COARSE = toy_space(2, 32, granularity=16)
ACCURACY = ToyAccuracy(SPACE.structure)


class World:
    """Parties on toys; ``lost`` is what the second kind of numerics takes off every metric."""

    def __init__(self, numerics: str = "ab", share: float = 0.6, lost: float = 0.0) -> None:
        spaces = [SPACE, COARSE, SPACE]
        self.lost = [lost if n == "b" else 0.0 for n in numerics]
        self.problems = [toy_problem(s, share=share) for s, _ in zip(spaces, numerics, strict=False)]
        self.outcomes: list[list[Outcome]] = [[] for _ in numerics]
        self.exchange = Exchange(
            [
                Party(f"t{k}", self.problems[k], n, lambda k=k: self.outcomes[k])
                for k, n in enumerate(numerics)
            ]
        )

    def evaluate(self, at: int, policy: ResolvedPolicy) -> Outcome:
        outcome = toy_outcome(self.problems[at], policy, ACCURACY(policy) - self.lost[at])
        self.outcomes[at].append(outcome)
        return outcome


def uniform(problem: Problem, keep: float) -> ResolvedPolicy:
    return problem.space.resolve(problem.space.uniform(keep, act_bits=8))


def never(policy: ResolvedPolicy) -> bool:
    return False


@pytest.mark.parametrize("inner", ["random", "joint"])
def test_an_agent_that_is_offered_policies_keeps_the_contract(inner: str) -> None:
    def made(problem: Problem, seed: int) -> JoinedAgent:
        pool = RandomAgent(problem, seed + 1).suggest(4)

        def offered(agent: JoinedAgent) -> Offer | None:
            fresh = next((s for s in pool if not agent.knows(s.policy)), None)
            return None if fresh is None else Offer(fresh.point, fresh.policy, "offered")

        return JoinedAgent(make_agent(inner, problem, seed), offered)

    check_agent(made)


def test_offers_are_numbered_among_the_agents_own_and_never_suggested_twice() -> None:
    problem = toy_problem(SPACE, share=0.6)
    policy = uniform(problem, 0.5)
    offer = Offer(translated(policy, SPACE).point, policy, "offered")
    agent = JoinedAgent(make_agent("joint", problem, 0), lambda a: None if a.knows(policy) else offer)
    found = agent.suggest(5)
    assert [s.number for s in found] == list(range(5))
    assert found[0].origin == "offered"
    assert len({s.policy.digest for s in found}) == 5
    assert agent.outstanding == tuple(found)


def test_what_was_evaluated_under_the_same_numerics_is_free() -> None:
    world = World("aab")
    policy = uniform(world.problems[1], 0.5)
    world.evaluate(1, policy)
    offer = world.exchange.free(0, never)
    assert offer is not None
    assert offer.policy == policy
    assert SPACE.resolve(SPACE.decode(offer.point)) == policy
    assert world.exchange.free(0, lambda p: p == policy) is None
    assert world.exchange.free(2, never) is None


def test_a_policy_that_is_not_of_the_space_or_over_the_budget_is_not_free() -> None:
    world = World("aa", share=0.3)
    world.evaluate(0, SPACE.resolve(SPACE.uniform(0.3, act_bits=8)))
    world.evaluate(0, SPACE.resolve(SPACE.dense))
    assert world.exchange.free(1, never) is None


def test_the_most_promising_offer_is_the_one_brute_force_finds() -> None:
    world = World()
    rng = np.random.default_rng(0)
    for keep in rng.uniform(0.4, 1.0, 12):
        world.evaluate(0, uniform(world.problems[0], keep))
    world.evaluate(1, uniform(world.problems[1], 0.5))
    problem = world.problems[1]
    edge = (reference_gain(problem), problem.budget.limits["latency_ms"])

    def volume(rows: list[tuple[float, float]]) -> float:
        return hypervolume(np.array(rows), edge, (True, False))

    own = [(o.accuracy or 0.0, o.costs["latency_ms"]) for o in world.outcomes[1]]
    best: tuple[float, ResolvedPolicy | None] = (0.0, None)
    for o in world.outcomes[0]:
        policy = translated(o.policy, COARSE).policy
        latency = float(problem.costs([policy])["latency_ms"][0])
        if latency <= edge[1]:
            more = volume([*own, (o.accuracy or 0.0, latency)]) - volume(own)
            best = max(best, (more, policy), key=lambda x: x[0])
    offer = world.exchange.promising(1, never)
    assert offer is not None
    assert offer.policy == best[1]


def test_a_front_that_is_better_already_is_offered_nothing() -> None:
    world = World()
    world.evaluate(0, uniform(world.problems[0], 0.25))
    world.evaluate(1, uniform(world.problems[1], 0.5))
    better = toy_outcome(world.problems[1], COARSE.resolve(COARSE.at(np.zeros(COARSE.dimension, int))), 0.96)
    world.outcomes[1].append(better)
    assert world.exchange.promising(1, never) is None


def test_the_difference_of_numerics_is_learned_from_pairs() -> None:
    world = World(lost=0.1)
    assert world.exchange.difference(0, 1) == 0.0
    for keep in (0.5, 0.75, 1.0):
        policy = uniform(world.problems[1], keep)
        world.evaluate(0, policy)
        world.evaluate(1, policy)
    assert world.exchange.difference(0, 1) == pytest.approx(0.1 * 3 / (3 + DOUBT))
    assert World("aa").exchange.difference(0, 1) == 0.0


def test_the_common_policy_is_the_best_for_the_worst_off() -> None:
    world = World(lost=0.1)
    good, poor = uniform(world.problems[1], 0.5), COARSE.resolve(COARSE.at(np.zeros(COARSE.dimension, int)))
    assert world.exchange.best_common() is None
    world.evaluate(1, good)
    assert world.exchange.common() == good
    assert world.exchange.missing(good) == [0]
    world.evaluate(0, good)
    for at in (0, 1):
        world.evaluate(at, poor)
    found = world.exchange.best_common()
    assert found is not None
    assert found == (good, pytest.approx(ACCURACY(good) - 0.1))
    assert world.exchange.common() is None
