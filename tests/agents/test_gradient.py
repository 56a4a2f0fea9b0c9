"""The `gradient` agent: conformance, a known optimum, slopes of costs, learning, replay."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from itertools import pairwise, product

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.architecture import Logits, Separable, Slopes, Trainer, draw, softmax
from agents.contract import Budget, Gates, Problem
from agents.gradient import GradientAgent
from agents.pricing import Pricer
from agents.registry import list_agents, make_agent
from agents.testing import check_agent, run, score_of
from agents.toys import ToyAccuracy, toy_outcome, toy_problem, toy_space


class Coupled:
    """A relaxation with a known loss: each value's own, and pairs of neighbours that hurt each other.

    ``loss(x) = sum_i own_i[x_i] + sum_i pair * own_i[x_i] * own_i+1[x_i+1]``, multilinear in the gates.
    """

    def __init__(self, own: list[NDArray[np.float64]], pair: float) -> None:
        self.own, self.pair, self.steps = own, pair, 0

    def step(self, gates: Gates, batch: int) -> tuple[float, list[NDArray[np.float64]]]:
        """Loss and gradient by hand."""
        self.steps += 1
        at = [float(g @ o) for g, o in zip(gates, self.own, strict=True)]
        loss = sum(at) + self.pair * sum(a * b for a, b in pairwise(at))
        around = [sum(at[j] for j in (i - 1, i + 1) if 0 <= j < len(at)) for i in range(len(at))]
        return loss, [o * (1.0 + self.pair * r) for o, r in zip(self.own, around, strict=True)]


def coupled(problem: Problem, pair: float, seed: int = 0) -> Coupled:
    """Losses that fall to 0 at the last value, coordinates differing by two orders of magnitude."""
    rng = np.random.default_rng(seed)
    sizes = [len(c.values) for c in problem.space.choices]
    weights = np.exp(rng.uniform(np.log(0.02), np.log(2.0), len(sizes)))
    return Coupled(
        [w * (1 - np.arange(n) / max(n - 1, 1)) ** 2 for w, n in zip(weights, sizes, strict=True)], pair
    )


def losses_of_all(problem: Problem, relaxation: Coupled) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Every feasible policy of a small space and its loss, by enumeration."""
    rows = np.array(list(product(*(range(n) for n in problem.space.cardinalities))), dtype=np.int64)
    rows = rows[Pricer(problem).feasible(rows)]
    at = np.stack([o[rows[:, i]] for i, o in enumerate(relaxation.own)])
    return rows, at.sum(0) + relaxation.pair * (at[:-1] * at[1:]).sum(0)


def test_conformance() -> None:
    check_agent(lambda problem, seed: make_agent("gradient", problem, seed))
    assert "ProxylessNAS" in list_agents()["gradient"]
    assert GradientAgent.__module__ == "agents.gradient"


def test_conformance_on_a_relaxation() -> None:
    def factory(problem: Problem, seed: int) -> GradientAgent:
        relaxed = coupled(problem, 0.5)
        return GradientAgent(dataclasses.replace(problem, relaxation=lambda: relaxed), seed)

    check_agent(factory, evaluations=8)
    agent = factory(toy_problem(toy_space(2), share=0.4), 0)
    assert agent.suggest(2)[0].origin.startswith("gradient: most probable")
    assert agent.trainer.steps > 100


@pytest.mark.parametrize(("share", "pair"), [(0.5, 0.0), (0.35, 1.0), (0.25, 3.0)])
def test_the_first_suggestion_is_near_the_known_optimum(share: float, pair: float) -> None:
    space = toy_space(2, 16, methods=("prune", "depth", "quantize"))
    problem = toy_problem(space, share=share)
    found = []
    for seed in range(3):
        relaxed = coupled(problem, pair, seed)
        rows, losses = losses_of_all(problem, relaxed)
        agent = GradientAgent(dataclasses.replace(problem, relaxation=lambda r=relaxed: r), seed)
        first = space.indices(agent.suggest(1)[0].point)
        own = losses[(rows == first).all(1)]
        assert len(own) == 1
        found.append(float((losses < own[0] - 1e-12).mean()))
    # share of all feasible policies that are better
    assert np.median(found) <= 0.002
    assert max(found) <= 0.02


def test_what_outcomes_move_is_rounded_without_the_network() -> None:
    space = toy_space(2, 32)
    problem = toy_problem(space, share=0.4, evaluations=60)
    relaxed = coupled(problem, 0.5)
    problem = dataclasses.replace(problem, relaxation=lambda: relaxed)
    agent, score = GradientAgent(problem, 0), score_of(problem)
    run(agent, problem, 20, score)  # every rung is trained by now
    steps, modes = relaxed.steps, set()
    for _ in range(30):
        run(agent, problem, 1, score)
        trained = agent._training(0)
        assert trained is not None
        modes.add(agent._logits(0, trained).mode.tobytes())
    assert relaxed.steps == steps
    assert len(modes) > 1


def test_every_limit_holds_and_costs_are_spent() -> None:
    space = toy_space(3, 32, bits=((8, 8), (4, 8)))
    free = toy_problem(space)
    dense = {k: float(v[0]) for k, v in free.costs([space.resolve(space.dense)]).items()}
    budget = Budget(max_latency_ms=0.5 * dense["latency_ms"], max_size_bytes=0.2 * dense["size_bytes"])
    problem = toy_problem(space, budget=budget)
    relaxed = coupled(problem, 0.3)
    agent = GradientAgent(dataclasses.replace(problem, relaxation=lambda: relaxed), 0)
    first = agent.suggest(1)[0]
    costs = {k: float(v[0]) for k, v in problem.costs([first.policy]).items()}
    assert budget.why_not(costs) == ""
    assert max(costs[n] / limit for n, limit in budget.limits.items()) > 0.85
    trained = agent._training(0)
    assert trained is not None
    assert set(trained.multipliers) == {"latency_ms", "size_bytes"}


def test_slopes_are_differences_of_the_costs() -> None:
    problem = toy_problem(toy_space(2, 16, methods=("prune",)), share=0.5)
    pricer = Pricer(problem)
    limit = problem.budget.limits["latency_ms"]
    slopes = Slopes(pricer, {"latency_ms": limit})
    certain = Logits.around(pricer, pricer.top).moved(np.zeros(1))
    certain.values[np.arange(len(pricer.top)), pricer.top] += 100.0
    slopes.refresh(certain, np.random.default_rng(0))
    p = certain.probabilities()
    full = float(pricer.latency(pricer.top[None])[0])
    assert slopes.expected(p)["latency_ms"] == pytest.approx(full / limit)
    for i, n in enumerate(pricer.space.cardinalities):
        for v in range(n):
            row = pricer.top.copy()
            row[i] = v
            wanted = (float(pricer.latency(row[None])[0]) - full) / limit
            assert slopes.differences["latency_ms"][i, v] == pytest.approx(wanted)
    # moving all of one coordinate's probability moves the expectation by the slope
    moved = p.copy()
    moved[0] = np.eye(p.shape[1])[0]
    gain = slopes.expected(moved)["latency_ms"] - slopes.expected(p)["latency_ms"]
    assert gain == pytest.approx(slopes.differences["latency_ms"][0, 0])


def test_logits_as_a_distribution() -> None:
    problem = toy_problem(toy_space(3))
    pricer, rng = Pricer(problem), np.random.default_rng(0)
    logits = Logits.around(pricer, pricer.top)
    p = logits.probabilities()
    np.testing.assert_allclose(p.sum(1), 1.0)
    assert (logits.mode == pricer.top).all()
    assert all((p[i, n:] == 0).all() for i, n in enumerate(pricer.space.cardinalities))
    counts = np.mean([draw(p, rng)[0] == pricer.top[0] for _ in range(2000)])
    assert counts == pytest.approx(p[0, pricer.top[0]], abs=0.04)
    for changes in (1.0, 4.0):
        differ = [(logits.sample(rng, changes) != pricer.top).sum() for _ in range(300)]
        assert np.mean(differ) == pytest.approx(changes, rel=0.25)
    np.testing.assert_allclose(softmax(np.array([[0.0, np.log(3.0), -np.inf]])), [[0.25, 0.75, 0.0]])


def test_unmeasured_losses_are_expected_ones() -> None:
    problem = toy_problem(toy_space(2))
    first = problem.space.choices[0]
    gaps = np.full(len(first.values), np.nan)
    gaps[0] = 0.5
    measured = dataclasses.replace(problem, losses=lambda: {first.name: gaps})
    losses = Separable.of(measured).losses
    assert losses[0][0] == 0.5
    assert all((np.diff(x) <= 0).all() and x[-1] == 0 for x in losses[1:])
    total, slopes = Separable(losses).step([np.eye(len(x))[0] for x in losses], 0)
    assert total == pytest.approx(sum(x[0] for x in losses))
    np.testing.assert_array_equal(slopes[1], losses[1])


def test_outcomes_move_the_distribution() -> None:
    problem = toy_problem(toy_space(3), share=0.4, evaluations=40)
    agent = GradientAgent(problem, 0)
    before = agent._training(0)
    assert before is not None
    suggested = agent.suggest(24)
    rows = np.stack([problem.space.indices(s.point) for s in suggested])
    own = np.array([agent._nearest(r) == 0 for r in rows])
    # a coordinate that the rung's suggestions disagree on: its lowest value there is what pays
    choice = int(np.argmax([min((c == c.min()).sum(), (c > c.min()).sum()) for c in rows[own].T]))
    liked = int(rows[own][:, choice].min())
    for s, r in zip(suggested, rows, strict=True):
        agent.update(s, toy_outcome(problem, s.policy, 0.5 + 0.4 * float(r[choice] == liked)))
    after = agent._logits(0, before)
    assert agent._logits(0, before).values is after.values
    assert after.probabilities()[choice, liked] > before.logits.probabilities()[choice, liked]


def test_trained_once_and_a_ladder_from_there() -> None:
    problem = toy_problem(toy_space(3), share=0.5, evaluations=24)
    relaxed = coupled(problem, 0.2)
    agent = GradientAgent(dataclasses.replace(problem, relaxation=lambda: relaxed), 0)
    score = score_of(problem)
    history = run(agent, problem, 3, score)
    steps = relaxed.steps
    history += run(agent, problem, 12, score)
    more = relaxed.steps - steps
    assert 0 < more < 2 * steps
    origins = [s.origin for s, _ in history]
    assert sum("most probable" in o for o in origins) >= 4
    latency = [o.costs["latency_ms"] for s, o in history if "at 1 of" not in s.origin]
    assert len(latency) == 3
    assert min(latency) < 0.8 * max(o.costs["latency_ms"] for _, o in history)
    assert agent.trainer.seconds > 0


def test_no_losses_are_measured_where_the_network_is_relaxed() -> None:
    def never() -> dict[str, NDArray[np.float64]]:
        raise AssertionError("measured")

    problem = toy_problem(toy_space(2), share=0.3)
    relaxed = coupled(problem, 0.2)
    agent = GradientAgent(dataclasses.replace(problem, losses=never, relaxation=lambda: relaxed), 0)
    assert len(agent.suggest(6)) == 6
    assert relaxed.steps > 0


def test_measured_losses_make_it_better_than_random() -> None:
    problem = toy_problem(toy_space(4, 32), share=0.25, evaluations=20)
    model, space = ToyAccuracy(problem.space.structure), problem.space

    def losses() -> dict[str, NDArray[np.float64]]:
        found = {}
        for i, c in enumerate(space.choices):
            rows = np.repeat((space.cardinalities - 1)[None], len(c.values), axis=0)
            rows[:, i] = np.arange(len(c.values))
            found[c.name] = np.array([-np.log(model(space.resolve(space.at(r))) / 0.95) for r in rows])
        return found

    known = dataclasses.replace(problem, losses=losses)
    score = score_of(problem)
    ours = [o.accuracy or 0.0 for _, o in run(make_agent("gradient", known, 0), known, 10, score)]
    random = [o.accuracy or 0.0 for _, o in run(make_agent("random", problem, 0), problem, 20, score)]
    assert max(ours) > max(random)
    assert ours[0] > float(np.median(random))


SCRIPT = """
import dataclasses
from agents.registry import make_agent
from agents.testing import run, score_of
from agents.toys import toy_problem, toy_space
from tests.agents.test_gradient import coupled
problem = toy_problem(toy_space(2), share=0.3, evaluations=16)
relaxed = coupled(problem, 0.5)
problem = dataclasses.replace(problem, relaxation=lambda: relaxed)
history = run(make_agent("gradient", problem, 5), problem, 8, score_of(problem))
print(*(s.policy.digest for s, _ in history))
"""


def test_the_same_suggestions_in_a_fresh_process_and_after_a_replay() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    problem = toy_problem(toy_space(2), share=0.3, evaluations=16)
    relaxed = coupled(problem, 0.5)
    problem = dataclasses.replace(problem, relaxation=lambda: relaxed)
    whole = run(make_agent("gradient", problem, 5), problem, 8, score_of(problem))
    assert done.stdout.split() == [s.policy.digest for s, _ in whole]
    resumed = make_agent("gradient", problem, 5)
    resumed.replay(whole[:5])
    assert [s for s, _ in run(resumed, problem, 3, score_of(problem))] == [s for s, _ in whole[5:]]
    other = run(make_agent("gradient", problem, 6), problem, 8, score_of(problem))
    assert [s for s, _ in other] != [s for s, _ in whole]


def test_one_hot_gates_of_a_policy() -> None:
    problem = toy_problem(toy_space(1, 8, methods=("prune",)))
    relaxed = coupled(problem, 0.0)
    trainer = Trainer(Pricer(problem), relaxed)
    worst = sum(float(o[0]) for o in relaxed.own)
    assert trainer.one_hot(np.zeros(problem.space.dimension, dtype=np.int64)) == pytest.approx(worst)
    assert trainer.one_hot(problem.space.cardinalities - 1) == 0.0
    assert trainer.steps == 2
