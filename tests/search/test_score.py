"""Scores: what they are the mean of, when a policy is given up, that shared work changes no number."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from compressors.apply import compress, reduced_network
from compressors.execute import run
from compressors.policy import ResolvedPolicy
from compressors.prefix import PrefixCache, narrow_points
from compressors.recalibrate import combined, moments
from compressors.space import PolicySpace
from hw_profiles.target import load_target
from search.abilities import abilities_of
from search.answers import CHECKED, Answers
from search.look import CALIBRATION, HARDEST, LEFT, OTHERS, SAMPLES, Seen, at_most, wrong_allowed
from search.score import Score, Scorer, interval, score_compressed
from search.task import Metric, Task
from tests.search.scoring_task import make_task

ABILITIES = abilities_of(load_target("x86-avx512-vnni"))


@pytest.fixture(scope="module")
def task() -> Task:
    return make_task()


@pytest.fixture(scope="module")
def scorer(task: Task) -> Scorer:
    return Scorer.of(task, ABILITIES.numerics)


def policies_of(scorer: Scorer) -> list[ResolvedPolicy]:
    """Dense, integer, pruned, both, and nearly nothing left."""
    space = PolicySpace(scorer.network.structure, ABILITIES)
    wanted = ((1.0, None), (1.0, 8), (0.75, None), (0.5, 8), (0.125, 8))
    return [space.resolve(space.uniform(keep, bits)) for keep, bits in wanted]


def without_time(score: Score) -> Score:
    return replace(score, seconds=0.0)


def test_a_complete_score_is_the_mean_over_all_samples(scorer: Scorer, task: Task) -> None:
    for policy in policies_of(scorer):
        compressed = compress(scorer.network, policy, ABILITIES.numerics)
        simulated = score_compressed(compressed, task.validation, task.metric)
        score = scorer.score(policy)
        assert (
            abs(score.value - float(simulated.mean())) <= 1 / 400
        )  # one sample at most is rounded otherwise
        assert score.samples == 400
        assert not score.stopped_early
        assert score.low <= score.value <= score.high


def test_shared_beginnings_and_memories_change_no_bit(task: Task, scorer: Scorer) -> None:
    policies = policies_of(scorer)
    shared = {p.digest: scorer.score(p) for p in (*policies, *reversed(policies))}
    assert scorer.network.prefixes.hits + scorer.network.rounded.hits > 0
    for policy in policies:
        alone = Scorer.of(task, ABILITIES.numerics)
        assert without_time(alone.score(policy)) == without_time(shared[policy.digest])
        a, b = (compress(s.network, policy, ABILITIES.numerics) for s in (alone, scorer))
        assert a.activations == b.activations
        assert all(torch.equal(a.weights[k], b.weights[k]) for k in a.weights)


def test_a_bar_that_is_beaten_gives_the_complete_score(scorer: Scorer) -> None:
    for policy in policies_of(scorer):
        whole = scorer.score(policy)
        easy = scorer.score(policy, whole.value - 3 / 400)
        assert without_time(easy) == without_time(whole)
        assert not easy.stopped_early


def test_hopeless_policies_are_given_up_after_a_look(scorer: Scorer) -> None:
    *_, worst = policies_of(scorer)
    whole = scorer.score(worst)
    stopped = scorer.score(worst, 0.95)
    assert whole.value < 0.9
    assert stopped.stopped_early
    assert stopped.samples == SAMPLES
    assert stopped.value <= 0.95
    assert abs(stopped.value - whole.value) < 0.25
    assert not scorer.score(worst, None).stopped_early


@pytest.mark.parametrize("above", [0, 1, 4, 40])
def test_no_policy_that_beats_the_bar_by_far_is_lost_nor_a_worse_one_kept(scorer: Scorer, above: int) -> None:
    for policy in policies_of(scorer):
        value = scorer.score(policy).value
        score = scorer.score(policy, value + above / 400)
        assert score.stopped_early or above == 0 or score.value < value + above / 400
        assert score.value <= value + above / 400 + 1e-9


def test_without_a_runtime_the_simulation_scores(task: Task, scorer: Scorer) -> None:
    plain = Scorer(task, scorer.network, ABILITIES.numerics, runtime=False)
    for policy in policies_of(scorer)[:3]:
        assert abs(plain.score(policy).value - scorer.score(policy).value) <= 1 / 400
    answers = plain._answers(compress(scorer.network, policies_of(scorer)[1], ABILITIES.numerics))
    assert not answers.runtime
    assert len(answers.scores(task.validation)) == 400


def test_a_runtime_that_answers_otherwise_is_not_believed(task: Task, scorer: Scorer) -> None:
    compressed = compress(scorer.network, policies_of(scorer)[1], ABILITIES.numerics)
    answers = Answers(compressed, task.metric)
    other = compress(scorer.network, policies_of(scorer)[4], ABILITIES.numerics)
    answers._session = Answers(other, task.metric)._session
    expected = score_compressed(compressed, task.validation, task.metric)
    assert answers.runtime
    assert torch.equal(answers.scores(task.validation), expected)
    assert not answers.runtime
    assert answers.disagreed
    assert CHECKED < SAMPLES


def test_a_disbelieved_runtime_is_told_of(
    task: Task, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, other = policies_of(scorer)[1], policies_of(scorer)[4]
    assert not scorer.score(policy).disagreed
    wrong = Answers(compress(scorer.network, other, ABILITIES.numerics), task.metric)._session
    monkeypatch.setattr("search.answers._session", lambda compressed: wrong)
    score, known = scorer.examined(policy)
    assert score.disagreed
    assert known.disagreed
    simulated = Scorer(task, scorer.network, ABILITIES.numerics, runtime=False).score(policy)
    assert not simulated.disagreed
    assert without_time(replace(score, disagreed=False)) == without_time(simulated)


def test_the_least_certain_samples_come_first(scorer: Scorer, task: Task) -> None:
    with torch.no_grad():
        top = task.network(*task.validation.inputs).topk(2, 1)
    margin = top.values[:, 0] - top.values[:, 1]
    order = scorer._order
    assert sorted(order.tolist()) == list(range(400))
    assert sorted(order[:20].tolist()) == list(range(0, 400, 20))  # those the dense network gets wrong
    assert bool((margin[order[20:]].diff() >= 0).all())


def test_other_metrics_are_stopped_by_their_bound(task: Task) -> None:
    def loss(outputs: tuple[torch.Tensor, ...], targets: torch.Tensor | None) -> torch.Tensor:
        assert targets is not None
        return torch.nn.functional.cross_entropy(outputs[0], targets, reduction="none")

    lower = replace(task, metric=Metric("loss", False, "nats", loss))
    scorer = Scorer.of(lower, ABILITIES.numerics)
    dense, *_, worst = policies_of(scorer)
    base, bad = scorer.score(dense), scorer.score(worst)
    assert bad.value > base.value
    assert not scorer.score(dense, base.value + 0.5).stopped_early
    stopped = scorer.score(worst, base.value - 1.0)
    assert stopped.stopped_early
    assert stopped.value >= base.value - 1.0


def test_the_poisson_binomial_is_that_of_all_outcomes() -> None:
    chances = [0.9, 0.03, 0.5, 0.77]
    found = [0.0] * 5
    for outcome in itertools.product((0, 1), repeat=4):
        found[sum(outcome)] += math.prod(p if o else 1 - p for p, o in zip(chances, outcome, strict=True))
    assert [at_most(k, chances) for k in range(5)] == pytest.approx(list(itertools.accumulate(found)))
    assert at_most(-1, chances) == 0.0
    assert at_most(9, chances) == pytest.approx(1.0)
    assert at_most(0, []) == 1.0


def test_wrong_answers_that_a_bar_allows() -> None:
    assert [wrong_allowed(400, 1 - k / 400) for k in (0, 1, 7)] == [-1, 0, 6]
    assert wrong_allowed(359, 356 / 359) == 2


def test_a_look_foresees_what_all_calibration_samples_change(scorer: Scorer) -> None:
    look = scorer._look
    assert SAMPLES == HARDEST + OTHERS
    assert len(look._small.calibration[0]) == CALIBRATION < len(scorer.network.calibration[0])
    assert look._spread > 0.0  # batch-norm statistics of few samples move the answers
    _, _, pruned, *_ = policies_of(scorer)
    margins = [
        look._margins(out := run(g, w, look.part.inputs), look.metric.score(out, look.part.targets))
        for g, w in (reduced_network(n, pruned) for n in (look._small, scorer.network))
    ]
    assert margins[0] is not None
    assert margins[1] is not None
    left = float((margins[1] - margins[0]).square().mean().sqrt())
    assert 0.0 < left < LEFT * look._spread < look._spread


def test_a_look_without_margins_counts(scorer: Scorer) -> None:
    scores = torch.tensor([0.0] * 9 + [1.0] * (SAMPLES - 9))
    bar = 1 - 5 / 400  # four wrong answers beat it
    assert scorer._look.hopeless(Seen(scores, None), bar)
    assert not scorer._look.hopeless(Seen(scores, None), 1 - 20 / 400)
    assert scorer._look.hopeless(Seen(scores, [1.0] * 5 + [0.0] * (SAMPLES - 5)), bar)
    assert not scorer._look.hopeless(Seen(scores, [1.0] * 4 + [0.5] + [0.0] * (SAMPLES - 5)), bar)


def test_intervals() -> None:
    mean, std, low, high = interval(torch.tensor([1.0] * 95 + [0.0] * 5))
    assert (mean, low, high) == pytest.approx((0.95, 0.8882, 0.9785), abs=1e-4)  # Wilson
    assert std == pytest.approx(math.sqrt(0.95 * 0.05 / 100))
    mean, _, low, high = interval(torch.tensor([0.2, 0.4, 0.9]))
    assert mean - low == pytest.approx(high - mean)


def test_moments_of_chunks_are_those_of_all_samples() -> None:
    x = 5.0 + 3.0 * torch.randn(70, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    parts = x.split(32)
    mean, var = combined([moments(p, 1) for p in parts], [len(p) for p in parts])
    exact_var, exact_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(var.double(), exact_var, rtol=1e-5, atol=1e-5)


def test_the_prefix_cache_keeps_to_its_limit_and_drops_the_oldest() -> None:
    cache = PrefixCache(limit=80)
    for i in range(10):
        cache.put(bytes([i]), i, 10)
    assert (len(cache), cache.used) == (8, 80)
    assert bytes([0]) not in cache
    assert cache.longest([bytes([2]), None, bytes([5]), b"x"]) == (2, 5)
    cache.put(b"big", None, 11)  # more than an eighth
    cache.put(b"y", 11, 10)
    assert b"big" not in cache
    assert bytes([2]) in cache
    assert bytes([3]) not in cache
    assert cache.longest([b"nothing"]) is None
    assert (cache.hits, cache.misses) == (1, 1)


def test_a_network_resumed_at_a_narrow_point_gives_the_same_answers(scorer: Scorer, task: Task) -> None:
    graph, x = scorer.network.structure.graph, task.validation.inputs
    seen: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        whole = run(graph, scorer.network.weights, x, lambda name, v: seen.setdefault(name, v))
        points = narrow_points(graph)
        for i, names in points.items():
            again = run(graph, scorer.network.weights, x, resume=(i + 1, {t: seen[t] for t in names}))
            assert torch.equal(again[0], whole[0])
    assert sorted(points.values()) == [("flatten",), ("relu",)]  # after the stem and after the block
