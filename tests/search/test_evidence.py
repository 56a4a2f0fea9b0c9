"""Evidence: the score it gives for any bar is the one an evaluation without it finds, on real networks."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compressors.policy import ResolvedPolicy
from compressors.space import PolicySpace
from hw_profiles.target import load_target
from search.abilities import abilities_of
from search.evidence import BATCH, Clock, Evidence, batch_of, interval, judge
from search.look import SAMPLES, Seen, Terms
from search.pool_testing import FRACTIONS, HALF, LOOKED, WHOLE
from search.score import Examination, Score, Scorer
from search.task import Metric, load_task
from tests.search.scoring_task import make_task
from tests.search.test_score import policies_of

ABILITIES = abilities_of(load_target("x86-avx512-vnni"))


def loss(outputs: tuple[Tensor, ...], targets: Tensor | None) -> Tensor:
    assert targets is not None
    return torch.nn.functional.cross_entropy(outputs[0], targets, reduction="none")


def graded(outputs: tuple[Tensor, ...], targets: Tensor | None) -> Tensor:
    """Right, wrong, or half right where the network is not sure."""
    assert targets is not None
    sure = outputs[0].softmax(1).max(1).values > 0.4
    right = (outputs[0].argmax(1) == targets).float()
    return torch.where(sure, right, 0.5 * right)


def scorer_of(metric: Metric | None = None, runtime: bool = True) -> Scorer:
    task = make_task() if metric is None else replace(make_task(), metric=metric)
    scorer = Scorer.of(task, ABILITIES.numerics)
    return Scorer(task, scorer.network, ABILITIES.numerics, runtime)


SCORERS = {
    "right or wrong": lambda: scorer_of(),
    "in simulation": lambda: scorer_of(runtime=False),
    "loss": lambda: scorer_of(Metric("loss", False, "nats", loss)),
    "graded": lambda: scorer_of(Metric("graded", True, "", graded)),
}


@pytest.fixture(scope="module", params=SCORERS)
def scorer(request: pytest.FixtureRequest) -> Scorer:
    return SCORERS[request.param]()


def bars_of(scorer: Scorer, policies: Sequence[ResolvedPolicy]) -> list[float | None]:
    """Every value a policy reaches, just below and above it, and far from all of them."""
    reached = [scorer.score(p).value for p in policies]
    near = [v + d / 400 for v in reached for d in (-1, 0, 1, 5)]
    return [None, min(reached) - 1.0, max(reached) + 1.0, 0.5, *near]


def without_time(score: Score) -> Score:
    return replace(score, seconds=0.0)


def test_every_bar_gives_the_score_of_an_evaluation_without_evidence(scorer: Scorer) -> None:
    policies = policies_of(scorer)
    ends = set()
    for policy in policies:
        # all that can be known: a look, and every sample
        _, known = scorer.examined(policy)
        if scorer.terms.looks:
            known = Examination(scorer, policy).further(known, "look")
        for bar in bars_of(scorer, policies):
            derived = judge(known, scorer.terms, bar)
            assert isinstance(derived, Score)
            assert without_time(derived) == without_time(scorer.score(policy, bar))
            assert scorer.examined(policy, bar, known) == (derived, known)
            ends.add((derived.stopped_early, derived.samples))
    assert (False, 400) in ends
    assert (True, SAMPLES) in ends


def test_evidence_in_pieces_adds_up_in_any_order(scorer: Scorer) -> None:
    policies = policies_of(scorer)
    bars = [b for b in bars_of(scorer, policies) if b is not None][::5]
    policy = policies[2]
    expected = {bar: without_time(scorer.score(policy, bar)) for bar in (None, *bars)}
    for order in itertools.islice(itertools.permutations((None, *bars)), 0, None, 17):
        known = None
        for bar in order:
            score, known = scorer.examined(policy, bar, known)
            assert without_time(score) == expected[bar]
    assert known is not None
    again = Evidence.from_dict(json.loads(json.dumps(known.to_dict())))
    assert again == known
    assert again.fits(scorer.terms)


def test_going_on_computes_what_is_missing_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_of()
    stages: list[str] = []
    further = Examination.further

    def counted(self: Examination, known: Evidence, stage: str) -> Evidence:
        stages.append(stage)
        return further(self, known, stage)  # type: ignore[arg-type]

    monkeypatch.setattr(Examination, "further", counted)
    policy = policies_of(scorer)[2]
    value = scorer.score(policy).value
    assert stages == ["batch"] * 7
    stages.clear()
    easy, known = scorer.examined(policy, value - 0.1)
    assert stages == ["look", *["batch"] * 7]
    stages.clear()
    assert scorer.examined(policy, None, known)[0].value == value
    assert scorer.examined(policy, value - 0.1, known) == (easy, known)
    assert stages == []
    half = replace(known, look=None, scores=known.scores[:BATCH], batch_seconds=known.batch_seconds[:1])
    score, whole = scorer.examined(policy, None, half)
    assert stages == ["batch"] * 6
    assert score.value == value
    assert whole.batch_seconds[0] == known.batch_seconds[0]
    assert whole.scores == known.scores


def test_seconds_are_those_of_the_stages_that_would_have_run() -> None:
    terms = Terms(200, True, True)
    look = Seen((1.0,) * SAMPLES, None, 0.5)
    scores = (0.0,) * 10 + (1.0,) * 190
    known = Evidence(0.25, look, 1.0, scores, (2.0, 4.0, 8.0, 16.0))
    whole = judge(known, terms, None)
    assert isinstance(whole, Score)
    assert (whole.seconds, whole.value, whole.stopped_early) == (31.25, 0.95, False)
    hopeful = judge(known, terms, 0.94)
    assert isinstance(hopeful, Score)
    assert (hopeful.seconds, hopeful.stopped_early) == (31.75, False)
    stopped = judge(known, terms, 0.96)  # ten are wrong of the eight that it allows
    assert isinstance(stopped, Score)
    assert (stopped.seconds, stopped.samples, stopped.stopped_early) == (3.75, BATCH, True)
    hopeless = judge(replace(known, look=replace(look, scores=(0.0,) * SAMPLES)), terms, 0.96)
    assert isinstance(hopeless, Score)
    assert (hopeless.seconds, hopeless.samples) == (0.75, SAMPLES)
    assert hopeless.value <= 0.96


def test_what_is_missing_is_named() -> None:
    terms = Terms(200, True, True)
    assert judge(Evidence(), terms, None) == "batch"
    assert judge(Evidence(), terms, 0.5) == "look"
    assert judge(Evidence(), replace(terms, stoppable=False), 0.5) == "batch"
    assert judge(Evidence(), Terms(2 * SAMPLES, True, True), 0.5) == "batch"
    assert judge(HALF, terms, None) == "batch"
    assert judge(replace(HALF, look=LOOKED.look), terms, 0.99) != "batch"
    assert (batch_of(terms), batch_of(replace(terms, binary=False))) == (BATCH, 200)


@given(
    st.lists(st.sampled_from((0.0, 1.0)), min_size=90, max_size=300),
    st.floats(-0.2, 1.2),
    st.lists(st.floats(0.0, 1.0), min_size=SAMPLES, max_size=SAMPLES),
)
def test_a_policy_given_up_does_not_beat_the_bar_and_one_that_beats_it_is_not(
    scores: list[float], bar: float, wrong: list[float]
) -> None:
    terms = Terms(len(scores), True, True)
    times = (1.0,) * -(-len(scores) // BATCH)
    look = Seen(tuple(scores[:SAMPLES]), tuple(wrong), 1.0)
    known = Evidence(1.0, look, 1.0, tuple(scores), times)
    score = judge(known, terms, bar)
    assert isinstance(score, Score)
    value = sum(scores) / len(scores)
    if not score.stopped_early:
        assert (score.value, score.samples) == (pytest.approx(value), len(scores))
    else:
        assert score.value <= bar
        assert score.samples == SAMPLES or value <= bar + 1e-6  # what all samples say is certain
    assert known.fits(terms)
    assert not known.fits(replace(terms, count=len(scores) - 1))


@pytest.mark.parametrize(
    "evidence", [Evidence(), LOOKED, HALF, WHOLE, FRACTIONS, replace(WHOLE, disagreed=True)]
)
def test_json_and_back(evidence: Evidence) -> None:
    assert Evidence.from_dict(json.loads(json.dumps(evidence.to_dict()))) == evidence
    assert evidence.merged(Evidence()) == evidence == Evidence().merged(evidence)
    assert evidence.merged(evidence) == evidence


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"scores": {"count": 3, "bits": "ff"}},
        {"scores": {"count": 10**9, "bits": "1"}},
        {"scores": {"count": 2.0, "bits": "1"}},
        {"scores": {"count": True, "bits": "1"}},
        {"scores": {"count": 4, "bits": "f" * 9999}},
        {"scores": [float("nan")]},
        {"scores": ["1.0"]},
        {"scores": [10**400]},
        {"scores": None},
        {"batch_seconds": [float("inf"), 0.375]},
        {"batch_seconds": [-1.0, 0.375]},
        {"shrunk_seconds": float("nan")},
        {"shrunk_seconds": True},
        {"batch_seconds": []},
        {"look": {"scores": [0.5], "wrong": None, "seconds": 1.0}},
        {"look": 7},
        {"compressed_seconds": None},
        {"shrunk_seconds": "soon"},
        {"disagreed": 1},
    ],
)
def test_what_is_not_evidence_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        Evidence.from_dict({**WHOLE.to_dict(), **change})


def test_the_clock_counts_work_and_not_waiting() -> None:
    import time

    clock = Clock()
    time.sleep(0.2)
    assert clock.spent() < 0.1
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    assert 0.1 <= clock.spent() < 0.4


def test_an_interval_is_the_same_of_numbers_and_of_a_tensor() -> None:
    for values in ((1.0, 0.0, 1.0, 1.0), (0.25, 0.5, 1 / 3)):
        assert interval(values) == interval(torch.tensor(values, dtype=torch.float64))


@pytest.mark.slow
def test_every_bar_on_digits32() -> None:
    task = load_task("digits32")
    scorer = Scorer.of(task, ABILITIES.numerics)
    space = PolicySpace(scorer.network.structure, ABILITIES)
    policies = [space.resolve(space.uniform(keep, 8)) for keep in (1.0, 0.7)]
    for policy in policies:
        _, known = scorer.examined(policy)
        known = Examination(scorer, policy).further(known, "look")
        for wrong in (0, 2, 3, 5, 8, 20, 60):
            bar = 1.0 - wrong / len(task.validation)
            derived = judge(known, scorer.terms, bar)
            assert isinstance(derived, Score)
            assert without_time(derived) == without_time(scorer.score(policy, bar))
