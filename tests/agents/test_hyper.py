import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from agents.contract import Agent, Outcome, Problem, Suggestion
from agents.errors import HistoryError
from agents.features import COORDINATE, Features
from agents.hyper import HyperAgent, _picked, _spread_over
from agents.hypernet import BINS, HyperNet, examples, held, place
from agents.past import Elite, PastStudy, fractions, past_study
from agents.registry import make_agent
from agents.testing import check_agent, run, score_of
from agents.toys import ToyAccuracy, toy_problem, toy_space


def study_of(problem: Problem, history: Sequence[tuple[Suggestion, Outcome]], run: str = "r") -> PastStudy:
    found = past_study(problem, history, run=run, task="task", target="toy", agent="random")
    assert found is not None
    return found


def searched(blocks: int, width: int, share: float, seed: int = 0) -> PastStudy:
    problem = toy_problem(toy_space(blocks, width), share=share)
    history = run(make_agent("random", problem, seed), problem, 24, score_of(problem))
    return study_of(problem, history, f"{blocks}-{width}-{share}")


@cache
def pool() -> tuple[PastStudy, ...]:
    return tuple(searched(b, w, s) for b, w, s in ((1, 32, 0.4), (3, 64, 0.3), (4, 32, 0.5), (3, 32, 0.2)))


def with_past(problem: Problem, studies: Sequence[PastStudy] | None = None) -> Problem:
    return replace(problem, past=lambda: pool() if studies is None else studies)


def policies(agent: Agent, problem: Problem, count: int) -> list[str]:
    return [s.policy.digest for s, _ in run(agent, problem, count, score_of(problem))]


# -- the record of a study


def test_a_study_survives_json_and_is_small() -> None:
    study = searched(4, 64, 0.4)
    assert PastStudy.from_dict(json.loads(study.to_json())) == study
    assert PastStudy.from_dict(json.loads(study.to_json())).digest == study.digest
    assert len(study.to_json()) < 20_000
    assert study.budget == {"latency_ms": pytest.approx(0.4)}
    assert all(0 < e.shares["latency_ms"] <= 0.4 + 1e-6 and e.gain < 0 for e in study.elites)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"schema_version": 9}, "another version"),
        ({"features": 0}, "another version"),
        ({"rows": []}, "0 rows for"),
        ({"overall": [float("nan")] * 3}, "overall has not"),
        ({"network": 3}, "network is no text"),
        ({"budget": {"latency_ms": "half"}}, "budget holds 'half'"),
        ({"elites": [{"fractions": [2.0], "gain": 0.0, "shares": {}}]}, "1 fractions for"),
        ({"elites": [7]}, "an elite is no object"),
        ({"evaluations": True}, "evaluations holds True"),
    ],
)
def test_what_is_no_study_is_refused(change: dict[str, object], why: str) -> None:
    doc = pool()[0].to_dict() | change
    with pytest.raises(HistoryError, match=why):
        PastStudy.from_dict(doc)
    del doc["run"]
    with pytest.raises(HistoryError):
        PastStudy.from_dict(doc)
    with pytest.raises(HistoryError, match="no JSON object"):
        PastStudy.from_dict([doc])


def test_elites_are_the_best_and_the_front_without_collapsed_networks() -> None:
    problem = toy_problem(toy_space(2), share=0.5)
    history = run(make_agent("random", problem, 0), problem, 30, score_of(problem))
    study = study_of(problem, history)
    gains = [o.accuracy - 0.95 for _, o in history if o.accuracy is not None]
    assert study.elites[0].gain == pytest.approx(max(gains), abs=1e-6)
    assert min(e.gain for e in study.elites) >= -0.2 * 0.95
    collapsed = [(s, replace(o, accuracy=0.1)) for s, o in history]
    assert past_study(problem, collapsed, run="r", task="t", target="toy", agent="random") is not None
    nothing = [(s, replace(o, accuracy=None, feasible=False)) for s, o in history]
    assert past_study(problem, nothing, run="r", task="t", target="toy", agent="random") is None


def test_what_a_removed_block_holds_is_not_learned() -> None:
    problem = toy_problem(toy_space(2), share=0.9)
    names = [c.name for c in problem.space.choices]
    indices = problem.space.cardinalities - 1
    indices[names.index("removed:block0")] = 0
    indices[names.index("keep:g1")] = 0
    policy = problem.space.resolve(problem.space.at(indices))
    found = dict(zip(names, fractions(problem, indices, policy), strict=True))
    assert found["removed:block0"] == 0.0
    assert found["removed:block1"] == 1.0
    assert found["keep:g0"] is None
    assert found["rank:b0a"] is None
    assert found["keep:g1"] == 0.0
    assert found["rank:b1a"] == 1.0


# -- the network


def test_places_are_where_they_say() -> None:
    points = np.linspace(0.0, 1.0, BINS)
    for fraction in (0.0, 0.3, 0.5, 0.97, 1.0):
        assert place(fraction) @ points == pytest.approx(fraction)
        assert place(fraction).sum() == pytest.approx(1.0)


def invented(rule: str, number: int) -> PastStudy:
    """A study whose elites follow a rule: large where the loss is large, and larger the larger the budget."""
    like = pool()[number % len(pool())]
    rows = np.array(like.rows)
    rank = rows[:, COORDINATE.index("rank of loss")]
    elites = []
    for share in (0.2, 0.4, 0.8):
        level = {"budget": np.full(len(rank), share), "loss": rank}[rule]
        elites.append(Elite(tuple(float(v) for v in level), -0.01, {"latency_ms": share}))
    return replace(like, run=f"{rule}{number}", elites=tuple(elites), network=f"{number}")


@pytest.mark.parametrize("rule", ["budget", "loss"])
def test_a_rule_is_learned_and_holds_for_a_network_never_seen(rule: str) -> None:
    net = HyperNet([invented(rule, k) for k in range(3)])
    unseen = invented(rule, 3)
    found = Features(np.array(unseen.rows), np.array(unseen.overall))
    points = np.linspace(0.0, 1.0, BINS)
    for elite in unseen.elites:
        p = net.distributions(found, held(unseen, elite))
        np.testing.assert_allclose(p.sum(-1), 1.0, atol=1e-6)
        wanted = np.array(elite.fractions, dtype=float)
        assert np.abs(p.mean(0) @ points - wanted).mean() < 0.15
    assert net.surprise(unseen) < np.log(BINS) - 0.5


def test_training_repeats_and_the_order_of_the_studies_does_not_count() -> None:
    found = Features(np.array(pool()[0].rows), np.array(pool()[0].overall))
    answers = [HyperNet(s).distributions(found, {"latency_ms": 0.3}) for s in (pool(), pool()[::-1])]
    np.testing.assert_array_equal(*answers)
    with pytest.raises(ValueError, match="no study"):
        HyperNet([replace(pool()[0], elites=())])


def test_networks_count_alike_however_often_they_were_searched() -> None:
    often = [replace(pool()[0], run=str(k), target=str(k)) for k in range(5)]
    data = examples([*often, pool()[1]])
    alone = [data.weight[data.study == k].sum() for k in range(6)]
    assert sorted(alone)[-1] == pytest.approx(0.5)
    assert sum(sorted(alone)[:5]) == pytest.approx(0.5)


# -- the agent


def test_conformance_with_past_studies() -> None:
    check_agent(lambda problem, seed: HyperAgent(with_past(problem), seed))


def test_without_past_studies_it_is_joint() -> None:
    problem = toy_problem(toy_space(2), share=0.3, evaluations=24)
    joint = policies(make_agent("joint", problem, 3), problem, 14)
    assert policies(make_agent("hyper", problem, 3), problem, 14) == joint
    assert policies(make_agent("hyper", with_past(problem, []), 3), problem, 14) == joint
    own = replace(pool()[0], network=problem.space.structure.graph.digest)
    judged = HyperAgent(with_past(problem, [own]), 3, others_only=True)
    assert policies(judged, problem, 14) == joint
    assert policies(make_agent("hyper", with_past(problem), 3), problem, 14) != joint


def test_it_begins_with_what_it_learned_at_the_budget() -> None:
    problem = with_past(toy_problem(toy_space(2), share=0.3, evaluations=40))
    agent = make_agent("hyper", problem, 0)
    first = agent.suggest(6)
    assert all(s.origin.startswith("learned") for s in first[:2])
    limit = problem.budget.max_latency_ms or 0.0
    latency = problem.costs([s.policy for s in first])["latency_ms"]
    assert 0.85 * limit < latency[0] <= limit
    assert latency.min() < 0.8 * limit  # some look down the front


def test_an_earlier_study_of_the_same_network_is_recalled() -> None:
    plain = toy_problem(toy_space(3, 32), share=0.3, evaluations=40)
    history = run(make_agent("joint", plain, 0), plain, 40, score_of(plain))
    study = study_of(plain, history)
    best = max((o for _, o in history), key=lambda o: o.accuracy or 0.0)
    agent = make_agent("hyper", with_past(plain, [study]), 1)
    begun = agent.suggest(2)
    score = ToyAccuracy(plain.space.structure)
    assert max(score(s.policy) for s in begun) >= (best.accuracy or 0.0) - 0.02
    # a network trained on one study alone may know it by heart
    assert begun[1].origin.startswith("recalled") or begun[0].policy == best.policy


def test_what_it_begins_with_is_better_than_chance_on_a_network_never_seen() -> None:
    """Its first policy against the median of random ones at the same budget, each on several networks."""
    for blocks, width, share in ((2, 32, 0.3), (2, 48, 0.25), (5, 32, 0.4)):
        problem = with_past(toy_problem(toy_space(blocks, width), share=share, evaluations=40))
        accuracy = ToyAccuracy(problem.space.structure)
        drawn = [accuracy(s.policy) for s in make_agent("random", problem, 0).suggest(15)]
        first = make_agent("hyper", problem, 0).suggest(1)[0]
        assert accuracy(first.policy) > np.median(drawn) + 0.05


def test_a_tilt_moves_every_coordinate_the_same_way() -> None:
    rng = np.random.default_rng(0)
    top = np.array([0, 1, 6, 12])
    chances = _spread_over(rng.dirichlet(np.ones(BINS), size=4), top)
    np.testing.assert_allclose(chances.sum(1), 1.0)
    assert (chances[np.arange(13)[None] > top[:, None]] == 0).all()
    for quantiles in (None, rng.random(4)):
        picked = _picked(chances, top, np.linspace(-40, 40, 33), quantiles)
        assert (np.diff(picked, axis=0) >= 0).all()
        assert picked[0].tolist() == [0, 0, 0, 0]
        assert picked[-1].tolist() == top.tolist()


SCRIPT = """
from dataclasses import replace
from agents.testing import run, score_of
from tests.agents.test_hyper import with_past
from agents.toys import toy_problem, toy_space
from agents.registry import make_agent
problem = with_past(toy_problem(toy_space(2), share=0.3, evaluations=16))
print(*(s.policy.digest for s, _ in run(make_agent("hyper", problem, 5), problem, 10, score_of(problem))))
"""


def test_the_same_suggestions_in_a_fresh_process() -> None:
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=True)
    problem = with_past(toy_problem(toy_space(2), share=0.3, evaluations=16))
    assert done.stdout.split() == policies(make_agent("hyper", problem, 5), problem, 10)
