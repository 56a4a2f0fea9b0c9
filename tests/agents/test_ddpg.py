import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from agents.contract import Budget
from agents.ddpg import AMC, HAQ, DdpgAgent, truncated_normal
from agents.ddpg_network import Actor, Hyper, Learner
from agents.observation import MASK, STATES
from agents.registry import make_agent
from agents.sites import K
from agents.testing import check_agent, run, score_of
from agents.toys import toy_outcome, toy_problem, toy_space

NAMES = ["ddpg", "ddpg-accuracy", "haq"]


@pytest.mark.parametrize("name", NAMES)
def test_conformance(name: str) -> None:
    check_agent(lambda problem, seed: make_agent(name, problem, seed))


def test_published_schedules_and_their_scaling() -> None:
    assert AMC.scaled(800) == AMC
    assert AMC.scaled(2000).warmup == 100
    assert [AMC.noise(n, 0) for n in (100, 101, 110)] == pytest.approx([0.5, 0.5 * 0.95, 0.5 * 0.95**10])
    assert HAQ.noise(120, 0) == pytest.approx(0.5 * 0.99**100)
    short = AMC.scaled(80)
    assert short.warmup == 10
    for share in (0.2, 0.5, 1.0):
        assert short.noise(round(80 * share), 0) == pytest.approx(AMC.noise(round(800 * share), 0), rel=1e-6)
    assert AMC.noise(700, 2) > AMC.noise(700, 1) > AMC.noise(700, 0)


def test_truncated_normal_stays_inside_and_has_the_right_shape() -> None:
    from scipy.stats import truncnorm

    rng = np.random.default_rng(0)
    mean, sigma = np.array([0.0, 0.3, 1.0], dtype=np.float32), 0.4
    drawn = np.stack([truncated_normal(mean, sigma, rng) for _ in range(4000)])
    assert (drawn >= 0).all()
    assert (drawn <= 1).all()
    for k, m in enumerate(mean):
        wanted = truncnorm((0 - m) / sigma, (1 - m) / sigma, loc=m, scale=sigma)
        assert drawn[:, k].mean() == pytest.approx(wanted.mean(), abs=0.02)
        assert drawn[:, k].std() == pytest.approx(wanted.std(), abs=0.02)
    assert truncated_normal(np.array([np.nan], dtype=np.float32), sigma, rng).tolist() == [0.5]
    near = truncated_normal(np.array([0.25, 1.0], dtype=np.float32), 1e-6, rng)
    np.testing.assert_allclose(near, [0.25, 1.0], atol=1e-4)


def test_the_learner_finds_a_known_optimum() -> None:
    """One-step episodes, reward -(a0 - target of the state)^2: the actor has to find the target."""
    rng = np.random.default_rng(0)
    learner = Learner(steps=64, seed=0, hyper=Hyper(lr_actor=1e-3))
    for _ in range(2000):
        state = rng.random(STATES).astype(np.float32)
        state[MASK] = [1, 0, 0, 0, 0]
        action = (rng.random(K) * state[MASK]).astype(np.float32)
        reward = -float((action[0] - (0.2 + 0.6 * state[0])) ** 2)
        learner.memory.add(state, action, reward, state, 0.0)
    learner.train(600, rng)
    errors = []
    for _ in range(50):
        state = rng.random(STATES).astype(np.float32)
        state[MASK] = [1, 0, 0, 0, 0]
        got = learner.act(state)
        assert (got[1:] == 0).all()
        errors.append(abs(got[0] - (0.2 + 0.6 * state[0])))
    assert np.mean(errors) < 0.1
    assert learner.updates == 600


def test_the_same_weights_from_the_same_transitions_whatever_the_global_generator() -> None:
    def trained() -> list[torch.Tensor]:
        rng = np.random.default_rng(3)
        learner = Learner(steps=4, seed=5, hyper=Hyper())
        for _ in range(50):
            learner.memory.add(*(rng.random(n).astype(np.float32) for n in (STATES, K, 1, STATES, 1)))
        learner.train(5, rng)
        return [p.detach() for p in (*learner.actor.parameters(), *learner.critic_target.parameters())]

    first = trained()
    torch.manual_seed(1)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    second = trained()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    other = Actor((300, 300), np.random.default_rng(0))
    assert not torch.equal(first[0], other.first.weight)


def test_memory_keeps_the_latest_episodes() -> None:
    learner = Learner(steps=2, seed=0, hyper=Hyper(memory=3))
    row = (np.zeros(STATES), np.zeros(K), 0.0, np.zeros(STATES), 1.0)
    for reward in range(10):
        learner.memory.add(row[0], row[1], float(reward), row[3], row[4])
    rewards = learner.memory.sample(64, np.random.default_rng(0))[2]
    assert sorted(rewards[:, 0].tolist()) == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("name", NAMES)
def test_replay_in_the_middle_of_training_is_exact(name: str) -> None:
    problem = toy_problem(toy_space(2), share=0.3, evaluations=24)
    score = score_of(problem)
    whole = run(make_agent(name, problem, 4), problem, 24, score)
    again = make_agent(name, problem, 4)
    again.replay(whole[:15])
    assert isinstance(again, DdpgAgent)
    assert again.learner.updates > 0
    assert [s for s, _ in run(again, problem, 9, score)] == [s for s, _ in whole[15:]]
    assert any("actor" in s.origin for s, _ in whole)
    assert "warm-up" in whole[0][0].origin


SCRIPT = """
import sys
import agents, agents.ddpg
assert not {"torch", "gymnasium", "scipy"} & set(sys.modules)
from agents.registry import make_agent
from agents.testing import run, score_of
from agents.toys import toy_problem, toy_space
problem = toy_problem(toy_space(1), share=0.3, evaluations=16)
for name in ("ddpg", "haq"):
    history = run(make_agent(name, problem, 5), problem, 14, score_of(problem))
    print(name, *(s.policy.digest for s, _ in history))
"""


def test_the_same_suggestions_in_fresh_processes_whatever_the_threads() -> None:
    texts = []
    for setting in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": setting, "OMP_NUM_THREADS": setting}
        command = [sys.executable, "-c", SCRIPT]
        texts.append(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
    assert texts[0] == texts[1]
    assert len(texts[0].split()) == 2 * 15


def test_outcomes_in_another_order_train_other_networks_but_hold_the_budget() -> None:
    problem = toy_problem(toy_space(2), share=0.3, evaluations=24)
    score, trained = score_of(problem), []
    for order in (1, -1):
        agent = make_agent("ddpg", problem, 0)
        for _ in range(4):
            for s in agent.suggest(4)[::order]:
                agent.update(s, toy_outcome(problem, s.policy, score(s)))
        assert isinstance(agent, DdpgAgent)
        assert agent.learner.updates > 0
        trained.append([p.detach() for p in agent.learner.critic.parameters()])
        for s in agent.suggest(4):
            assert not problem.budget.why_not({k: float(v[0]) for k, v in problem.costs([s.policy]).items()})
    assert not all(torch.equal(a, b) for a, b in zip(*trained, strict=True))


def test_estimates_guide_and_exact_costs_decide() -> None:
    exact = toy_problem(toy_space(2), share=0.3, conversion=0.02, evaluations=20)
    cheap = toy_problem(toy_space(2), share=0.3, evaluations=20)
    problem = dataclasses.replace(exact, estimates=cheap.costs)
    for name in NAMES:
        history = run(make_agent(name, problem, 0), problem, 20, score_of(problem))
        assert len(history) == 20
        for s, _ in history:
            costs = {k: float(v[0]) for k, v in problem.costs([s.policy]).items()}
            assert problem.budget.why_not(costs) == ""


def test_ddpg_learns_to_beat_its_own_warm_up() -> None:
    problem = toy_problem(toy_space(3, methods=("prune",)), share=0.5, evaluations=120)
    gains = []
    for seed in (0, 1, 2):
        history = run(make_agent("ddpg", problem, seed), problem, 120, score_of(problem))
        gain = np.array([o.accuracy for _, o in history])
        gains.append(np.median(gain[-30:]) - np.median(gain[:15]))
    assert np.median(gains) > 0


def test_a_settled_actor_goes_on_one_layer_at_a_time() -> None:
    problem = toy_problem(toy_space(2, methods=("prune",)), share=0.5, evaluations=8)
    history = run(make_agent("ddpg", problem, 0), problem, 30, score_of(problem))
    assert len({s.policy for s, _ in history}) == 30
    assert sum("drawn anew" in s.origin for s, _ in history) > 3


def test_least_latency_takes_the_accuracy_guaranteed_reward() -> None:
    problem = toy_problem(toy_space(2), budget=Budget(max_drop=3.0), objective="latency")
    agent = make_agent("ddpg", problem, 0)
    assert isinstance(agent, DdpgAgent)
    assert agent.course.mode.reward == "accuracy-guaranteed"
    assert agent.course.mode.budget == "walls"
    plain = make_agent("ddpg", toy_problem(toy_space(2), share=0.3), 0)
    assert isinstance(plain, DdpgAgent)
    assert plain.course.mode.reward == "accuracy"


def test_nothing_is_suggested_where_nothing_is_feasible() -> None:
    problem = toy_problem(toy_space(1), budget=Budget(max_latency_ms=1e-9))
    for name in NAMES:
        assert make_agent(name, problem, 0).suggest(3) == []
