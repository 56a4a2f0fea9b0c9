import dataclasses
from pathlib import Path

import numpy as np
import pytest

from agents.contract import Agent
from agents.errors import HistoryError
from agents.random_ import RandomAgent
from agents.registry import list_agents, make_agent
from agents.surrogate import Surrogate, Warp, expected_improvement, recent_and_best
from agents.testing import AgentConformanceError, check_agent, run, score_of
from agents.testing_processes import check_processes
from agents.toys import toy_outcome, toy_problem, toy_space

#: Agents that take a tenth of a second and more a suggestion, or whose own tests run the suite as well.
SLOW = {"gp", "exact", "ddpg", "ddpg-accuracy", "haq"}
NAMES = list(list_agents())
#: For what takes four processes an agent; all of them where time is no matter.
FEW = ["random", "tpe", "cmaes", "joint"]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in NAMES])
def test_conformance(name: str) -> None:
    check_agent(lambda problem, seed: make_agent(name, problem, seed))


class Repeating(RandomAgent):
    """Breaks the contract: forgets what it suggested."""

    def _record(self, suggestion):  # type: ignore[no-untyped-def]
        super()._record(suggestion)
        self._digests.clear()


class Careless(RandomAgent):
    """Breaks the contract: does not ask what a policy costs."""

    def _checked(self, number, indices, origin):  # type: ignore[no-untyped-def]
        s = super()._checked(number, indices, origin)
        return (
            s
            if s is None
            else dataclasses.replace(
                s, policy=self.space.resolve(self.space.dense), point=(1.0,) * self.space.dimension
            )
        )


def test_the_suite_catches_agents_that_break_the_contract() -> None:
    with pytest.raises(AgentConformanceError, match=r"twice|does not end|out already|known before"):
        check_agent(Repeating)
    with pytest.raises(AgentConformanceError, match="infeasible"):
        check_agent(Careless)


def test_the_same_in_fresh_processes_and_continued_from_a_journal() -> None:
    check_processes(FEW, evaluations=9)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_agent_is_the_same_in_three_processes_and_resumed_in_a_fourth(name: str) -> None:
    check_processes([name])


HASHING = """
import numpy as np
from agents.random_ import RandomAgent
from agents.registry import register

class Hashing(RandomAgent):
    name = "hashing"

    def propose(self, number, attempt, rng):
        return super().propose(number, attempt, np.random.default_rng(abs(hash(f"{number}, {attempt}"))))

register("hashing", Hashing, "what it suggests hangs on the hashes of text, which a process salts")
"""


def test_an_agent_that_differs_between_processes_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hashing_agent.py").write_text(HASHING)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(AgentConformanceError, match="two processes with one seed differ"):
        check_processes(["hashing"], imports=["hashing_agent"], evaluations=4, processes=2)


def test_answers_that_do_not_belong_are_refused() -> None:
    problem = toy_problem(toy_space(2), share=0.3)
    agent: Agent = make_agent("random", problem, 0)
    first, second = agent.suggest(2)
    agent.update(first, toy_outcome(problem, first.policy, 0.5))
    with pytest.raises(HistoryError, match="answered before"):
        agent.update(first, toy_outcome(problem, first.policy, 0.5))
    with pytest.raises(HistoryError, match="another policy"):
        agent.update(dataclasses.replace(first, number=1), toy_outcome(problem, first.policy, 0.5))
    assert agent.outstanding == (second,)


def test_joint_beats_random_and_uniform_at_equal_evaluations() -> None:
    problem = toy_problem(toy_space(4, 32), share=0.25, evaluations=40)
    score = score_of(problem)
    top = {}
    for name in ("uniform", "random", "joint"):
        history = run(make_agent(name, problem, 0), problem, 40, score)
        top[name] = max(o.accuracy for _, o in history if o.accuracy is not None)
    assert top["joint"] > top["random"]
    assert top["joint"] > top["uniform"]


def test_surrogate_learns_a_sum_and_knows_what_it_has_seen() -> None:
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.1, 2.0, size=12)
    x, far = rng.random((80, 12)), rng.random((40, 12))
    model = Surrogate(x, -(x**2) @ weights)
    mean, std = model.predict(far)
    assert np.corrcoef(mean, -(far**2) @ weights)[0, 1] > 0.98
    at, sure = model.predict(x)
    assert sure.mean() < std.mean()
    np.testing.assert_allclose(at, -(x**2) @ weights, atol=0.2)
    model.believe(far[:5])
    assert (model.predict(far[:5])[1] < std[:5]).all()


def test_warp_keeps_the_order_and_history_keeps_the_best() -> None:
    gain = np.array([0.1, 0.9, 0.88, 0.895, 0.12])
    assert (np.argsort(Warp(gain).warp(gain)) == np.argsort(gain)).all()
    assert np.isfinite(Warp(np.full(4, 0.5)).warp(np.full(4, 0.5))).all()
    kept = recent_and_best(np.r_[1.0, np.zeros(9)], most=4)
    assert kept.tolist() == [0, 1, 8, 9]
    assert recent_and_best(np.zeros(3)).tolist() == [0, 1, 2]
    assert expected_improvement(np.array([0.0, 1.0]), np.array([1e-6, 1e-6]), 0.5)[1] == pytest.approx(0.5)
