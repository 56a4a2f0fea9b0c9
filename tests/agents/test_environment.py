import dataclasses
import json
import subprocess
import sys
import warnings
from collections.abc import Callable

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from agents.contract import Budget, Costs, Problem
from agents.environment import CompressionEnv
from agents.episode import MODES, Course
from agents.errors import AgentError, NothingFeasibleError
from agents.observation import FEATURES, MASK, STATES, Observer
from agents.pricing import Pricer
from agents.sites import KINDS, K, chosen, sites, taken
from agents.toys import ToyAccuracy, ToyCosts, toy_problem, toy_space
from compressors.policy import ResolvedPolicy
from compressors.space import PolicySpace


def env_of(problem: Problem, mode: str = "amc", render_mode: str | None = None) -> CompressionEnv:
    model = ToyAccuracy(problem.space.structure)
    sign = 1.0 if problem.higher_is_better else -1.0
    return CompressionEnv(problem, lambda p: sign * model(p), mode=mode, render_mode=render_mode)


def play(env: CompressionEnv, action: Callable[[], np.ndarray]) -> tuple[list[np.ndarray], float, dict]:
    """One episode: all observations, the last reward and the last info."""
    state, _ = env.reset()
    states, done, reward, info = [state], False, 0.0, {}
    while not done:
        state, reward, done, truncated, info = env.step(action())
        assert not truncated
        states.append(state)
    return states, reward, info


@pytest.mark.parametrize("mode", sorted(MODES))
def test_gymnasium_has_nothing_to_complain_about(mode: str) -> None:
    name = "TailorbirdToy-v0"
    problem = toy_problem(toy_space(2), share=0.3)
    gymnasium.register(name, entry_point=lambda **options: env_of(problem, **options))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made = gymnasium.make(name, mode=mode, render_mode="ansi")
            check_env(made.unwrapped)
            made.reset(seed=1)
            made.step(made.action_space.sample())
            assert isinstance(made.render(), str)
    finally:
        del gymnasium.registry[name]
    assert made.observation_space.shape == (STATES,)
    assert made.action_space.shape == (K,)


def test_every_coordinate_is_decided_once_and_by_the_first_layer_that_meets_it() -> None:
    space = toy_space(2, bits=((8, 8), (4, 8)))
    names = [c.name for c in space.choices]
    for two_steps in (False, True):
        course = sites(space, two_steps=two_steps)
        assert sorted(i for s in course for i in s.all) == list(range(space.dimension))
    at = {names[i]: s.layer for s in sites(space) for i in s.all}
    assert at["keep:trunk"] == at["act_bits:x"] == "stem"
    assert at["keep:g1"] == at["removed:block1"] == "b1a"
    assert at["act_bits:h0"] == at["weight_bits:b0b"] == "b0b"
    acts = KINDS.index("act_bits")
    for site in sites(space, two_steps=True):
        assert bool(site.coordinates[acts]) == site.second
        assert site.mask[acts] == float(site.second)


def test_actions_pick_bins_of_equal_width_and_are_read_back() -> None:
    space = toy_space(1, 32, methods=("prune",))
    site, sizes = sites(space)[0], space.cardinalities
    (i,) = site.all
    n = int(sizes[i])
    shares = np.linspace(0, 1, 10 * n, endpoint=False) + 0.05 / n
    picked = [chosen(site, np.full(K, a), sizes)[i] for a in shares]
    assert np.bincount(picked).tolist() == [10] * n
    assert chosen(site, np.ones(K), sizes)[i] == n - 1
    for v in range(n):
        point = np.zeros(space.dimension, dtype=np.int64)
        point[i] = v
        assert chosen(site, taken(site, point, sizes), sizes)[i] == v


def test_observations_are_the_same_at_reset_in_steps_and_from_the_finished_policy() -> None:
    problem = toy_problem(toy_space(3, bits=((8, 8), (4, 8))), share=0.3, conversion=0.02)
    env, rng = env_of(problem), np.random.default_rng(0)
    for _ in range(3):
        states, _, info = play(env, lambda: rng.random(K))
        indices = problem.space.indices(info["point"])
        np.testing.assert_array_equal(np.stack(states), env.course.observer.episode(indices))
        for state in states:
            assert state.dtype == np.float32
            assert env.observation_space.contains(state)


def test_what_observations_say() -> None:
    problem = toy_problem(toy_space(2), share=0.5)
    observer = Observer(Pricer(problem), sites(problem.space))
    column = {name: k for k, name in enumerate(FEATURES)}
    dense = observer.episode(observer.pricer.top)
    small = observer.episode(observer.cheapest)
    steps = len(observer.course)
    assert dense.shape == (steps + 1, STATES)
    np.testing.assert_allclose(dense[:steps, column["index"]], np.linspace(0, 1, steps))
    np.testing.assert_allclose(dense[:, column["reduced"]], 0.0, atol=1e-6)
    assert (np.diff(small[:, column["reduced"]]) >= 0).all()
    governed = dense[:steps, column["cost"]].sum()
    assert small[steps, column["reduced"]] == pytest.approx(governed, abs=1e-5)
    assert dense[steps, column["headroom"]] == 0.0
    limit, least = problem.budget.max_latency_ms, observer.pricer.latency(observer.cheapest[None])[0]
    assert small[0, column["headroom"]] == pytest.approx(1 - least / limit, abs=1e-6)
    np.testing.assert_array_equal(dense[:steps, MASK], np.stack([s.mask for s in observer.course]))


def budgets(space: PolicySpace, rng: np.random.Generator) -> Budget:
    """A few limits at once, each between what is possible for nearly everything and for nearly nothing."""
    base = {k: float(v[0]) for k, v in ToyCosts(space.structure)([space.resolve(space.dense)]).items()}
    names = ["latency_ms", "size_bytes", "memory_bytes", "energy_mj", "macs"]
    chosen_names = rng.choice(names, size=rng.integers(1, 4), replace=False)
    limits = {f"max_{n}": float(base[n] * rng.uniform(0.1, 0.9)) for n in chosen_names}
    risk = 0.9 if rng.random() < 0.3 else None
    return Budget(**limits, risk=risk)


@dataclasses.dataclass(frozen=True)
class Rough:
    """Costs that no structure helps with: the toy's times a factor that hangs on the policy's digest."""

    plain: ToyCosts
    spread: float

    def __call__(self, policies: list[ResolvedPolicy]) -> Costs:
        noise = np.array([int(p.digest[:8], 16) / 2**32 for p in policies])
        return {k: v * (1 + self.spread * noise) for k, v in self.plain(policies).items()}


def random_problem(rng: np.random.Generator) -> Problem:
    methods = [m for m in ("prune", "quantize", "factorize", "depth") if rng.random() < 0.75] or ["prune"]
    bits = ((8, 8), (4, 8)) if rng.random() < 0.5 else ((8, 8),)
    space = toy_space(int(rng.integers(1, 4)), int(rng.choice([8, 16, 32])), bits=bits, methods=methods)
    plain = ToyCosts(space.structure, conversion=float(rng.choice([0.0, 0.02, 0.1])))
    rough = Rough(plain, float(rng.choice([0.0, 0.5])))
    problem = toy_problem(space, budget=budgets(space, rng))
    guide = plain if rng.random() < 0.3 else None
    return dataclasses.replace(problem, costs=rough, estimates=guide)


def actions(rng: np.random.Generator) -> Callable[[], np.ndarray]:
    """Uniform ones, greedy ones, or only the extremes."""
    kind = rng.integers(3)
    if kind == 0:
        return lambda: rng.random(K).astype(np.float32)
    if kind == 1:
        return lambda: np.ones(K, dtype=np.float32)
    return lambda: rng.integers(0, 2, K).astype(np.float32)


@pytest.mark.parametrize("mode", ["amc", "haq"])
def test_walls_hold_every_budget_on_random_problems(mode: str) -> None:
    rng = np.random.default_rng(11)
    finished = impossible = 0
    while finished < 200:
        problem = random_problem(rng)
        try:
            env = env_of(problem, mode)
        except NothingFeasibleError:
            impossible += 1
            continue
        _, reward, info = play(env, actions(rng))
        exact = {k: float(v[0]) for k, v in problem.costs([info["policy"]]).items()}
        assert problem.budget.why_not(exact) == ""
        assert info["feasible"]
        assert info["costs"] == exact
        assert np.isfinite(reward)
        assert problem.space.resolve(problem.space.decode(info["point"])) == info["policy"]
        finished += 1
    assert impossible < 4 * finished


def test_after_every_step_a_completion_holds() -> None:
    rng = np.random.default_rng(5)
    for _ in range(15):
        problem = random_problem(rng)
        course = Course(Pricer(problem), MODES["amc"])
        if course.witness is None:
            continue
        at, act = course.start(), actions(rng)
        while not course.done(at):
            before = at
            at = course.decide(at, act())
            assert problem.budget.why_not(course.pricer.exact(at.indices)) == ""
            decided = [i for s in course.sites[: before.step] for i in s.all]
            assert (at.indices[decided] == before.indices[decided]).all()


def test_walls_leave_alone_what_fits_and_bite_no_more_than_needed() -> None:
    space = toy_space(2, methods=("prune",))
    loose = env_of(toy_problem(space, budget=Budget(max_latency_ms=1e6)))
    _, _, info = play(loose, lambda: np.ones(K, dtype=np.float32))
    assert info["policy"] == space.resolve(space.dense)
    problem = toy_problem(space, share=0.5)
    course = Course(Pricer(problem), MODES["amc"])
    at = course.decide(course.start(), np.ones(K))
    (i,) = course.sites[0].all
    cheap = course.observer.prefix(1, at.indices)
    for value in range(int(at.indices[i]) + 1, int(space.cardinalities[i])):
        cheap[i] = value
        assert not course.pricer.feasible(cheap[None])[0]


def test_accuracy_guaranteed_mode_lets_episodes_exceed_the_limits_and_says_so() -> None:
    problem = toy_problem(toy_space(2), share=0.3)
    env = env_of(problem, "amc-accuracy")
    _, reward, info = play(env, lambda: np.ones(K, dtype=np.float32))
    assert info["policy"] == problem.space.resolve(problem.space.dense)
    assert not info["feasible"]
    log = np.log(info["costs"]["latency_ms"] * 1e6)
    assert reward == pytest.approx(-(1 - info["accuracy"]) * log)
    _, smaller, there = play(env, lambda: np.full(K, 0.8, dtype=np.float32))
    assert there["costs"]["latency_ms"] < info["costs"]["latency_ms"]
    assert smaller != reward


@pytest.mark.parametrize("higher", [True, False])
def test_rewards_as_published(higher: bool) -> None:
    problem = toy_problem(toy_space(2), share=0.5, higher_is_better=higher)
    for mode in ("amc", "haq"):
        _, reward, info = play(env_of(problem, mode), lambda: np.full(K, 0.6, dtype=np.float32))
        gain = info["accuracy"] if higher else -info["accuracy"]
        if mode == "amc":
            assert reward == pytest.approx(gain)
        else:
            assert reward == pytest.approx(-0.1 * problem.drop(info["accuracy"]))


def test_haq_walks_bits_down_and_touches_nothing_else() -> None:
    space = toy_space(2, bits=((8, 8), (4, 8)), methods=("quantize",))
    problem = toy_problem(space, share=0.45)
    env = env_of(problem, "haq")
    _, _, info = play(env, lambda: np.ones(K, dtype=np.float32))
    assert info["feasible"]
    point = space.indices(info["point"])
    kinds = np.array([c.kind for c in space.choices])
    lowered = point < space.cardinalities - 1
    assert lowered.any()
    assert set(kinds[lowered]) <= {"weight_bits", "act_bits"}


def test_misuse_is_named() -> None:
    problem = toy_problem(toy_space(1), share=0.5)
    env = env_of(problem)
    with pytest.raises(AgentError, match="reset"):
        env.step(np.ones(K, dtype=np.float32))
    env.reset()
    with pytest.raises(AgentError, match="finite numbers"):
        env.step(np.full(K, np.nan, dtype=np.float32))
    with pytest.raises(AgentError, match="finite numbers"):
        env.step(np.ones(K + 1, dtype=np.float32))
    with pytest.raises(AgentError, match="mode='nac'"):
        CompressionEnv(problem, lambda p: 0.5, mode="nac")
    with pytest.raises(AgentError, match="render_mode='human'"):
        CompressionEnv(problem, lambda p: 0.5, render_mode="human")
    broken = CompressionEnv(problem, lambda p: float("nan"))
    with pytest.raises(AgentError, match="not a finite number"):
        play(broken, lambda: np.ones(K, dtype=np.float32))
    with pytest.raises(NothingFeasibleError):
        env_of(toy_problem(toy_space(1), budget=Budget(max_latency_ms=1e-9)))


def test_rendering_names_what_was_decided() -> None:
    env = env_of(toy_problem(toy_space(1), share=0.5), render_mode="ansi")
    assert env.render() is None
    env.reset()
    assert env.render() == ""
    env.step(np.zeros(K, dtype=np.float32))
    text = env.render()
    assert text is not None
    assert text.startswith("stem: keep trunk = ")
    assert env_of(toy_problem(toy_space(1), share=0.5)).render() is None


def test_a_space_without_choices_has_one_step() -> None:
    problem = toy_problem(toy_space(1, methods=()), budget=Budget())
    states, _, info = play(env_of(problem), lambda: np.zeros(K, dtype=np.float32))
    assert len(states) == 2
    assert info["policy"] == problem.space.resolve(problem.space.dense)


STABLE_BASELINES = """
import json, warnings
import numpy as np
import torch
from stable_baselines3 import DDPG
from stable_baselines3.common.callbacks import BaseCallback
from agents.environment import CompressionEnv
from agents.toys import ToyAccuracy, toy_problem, toy_space

torch.set_num_threads(1)
problem = toy_problem(toy_space(2), share=0.3, conversion=0.02)
env = CompressionEnv(problem, ToyAccuracy(problem.space.structure))

class Episodes(BaseCallback):
    ends = []
    def _on_step(self):
        self.ends += [i for i in self.locals["infos"] if "policy" in i]
        return True

model = DDPG("MlpPolicy", env, learning_starts=60, batch_size=32, train_freq=1, seed=0, device="cpu")
before = [p.clone() for p in model.actor.parameters()]
model.learn(400, callback=Episodes())
state, _ = env.reset()
done = False
while not done:
    state, reward, done, _, info = env.step(model.predict(state, deterministic=True)[0])
held = [not problem.budget.why_not(e["costs"]) for e in (*Episodes.ends, info)]
moved = any((a != b).any().item() for a, b in zip(before, model.actor.parameters()))
print(json.dumps({"episodes": len(Episodes.ends), "held": held, "moved": moved, "reward": reward}))
"""


def test_a_stable_baselines_agent_trains_on_it() -> None:
    pytest.importorskip("stable_baselines3")
    done = subprocess.run(
        [sys.executable, "-c", STABLE_BASELINES], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["episodes"] == 400 // len(sites(toy_space(2)))
    assert all(told["held"])
    assert told["moved"]
    assert 0.0 < told["reward"] < 1.0
