"""A study with a lookahead: the same trials in whatever order outcomes come, and after any interruption."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from agents.registry import make_agent
from agents.toys import toy_problem
from search.evaluate import Evaluator, Finished, Job, attempt
from search.journal import Journal
from search.study import LOOKAHEAD, Study
from tests.search.worker_tasks import SPACE, ToyExaminer

TOTAL = 24


class Shuffled(Evaluator):
    """``workers`` jobs are under way; a random one of them is done next, as if others were slower."""

    def __init__(self, workers: int, seed: int) -> None:
        self.workers = workers
        self.most = 0
        self._jobs: list[Job] = []
        self._draw = random.Random(seed)
        self._examiner = ToyExaminer()

    def submit(self, jobs: Sequence[Job]) -> None:
        self._jobs.extend(jobs)
        self.most = max(self.most, len(self._jobs))

    def completed(self) -> list[Finished]:
        if not self._jobs:
            return []
        at = self._draw.randrange(min(self.workers, len(self._jobs)))
        return [attempt(self._examiner, self._jobs.pop(at))]


def study_of(
    agent: str, evaluator: Evaluator, journal: Journal | None = None, lookahead: int | None = LOOKAHEAD
) -> Study:
    problem = toy_problem(SPACE, share=0.4, evaluations=TOTAL)
    return Study(problem, make_agent(agent, problem, 0), evaluator, journal, lookahead=lookahead)  # fmt: skip


def trials(study: Study) -> list[tuple[int, str, float | None]]:
    return [(e.suggestion.number, e.outcome.policy.digest, e.outcome.accuracy) for e in study.entries]


@pytest.mark.parametrize("agent", ["joint", "ddpg", "nsga2"])
def test_the_trials_do_not_depend_on_the_number_of_workers(agent: str) -> None:
    alone, four, many = (study_of(agent, Shuffled(w, w)) for w in (1, 4, 16))
    for study in (alone, four, many):
        study.run(TOTAL)
    assert trials(alone) == trials(four) == trials(many)
    assert [n for n, _, _ in trials(alone)] == list(range(TOTAL))
    assert isinstance(many.evaluator, Shuffled)
    assert many.evaluator.most == LOOKAHEAD


def test_without_a_lookahead_they_do() -> None:
    alone, four = (study_of("joint", Shuffled(w, w), lookahead=None) for w in (1, 4))
    for study in (alone, four):
        study.run(TOTAL)
    assert sorted(trials(alone)) != sorted(trials(four))


@pytest.mark.parametrize("kept", [0.1, 0.35, 0.5, 0.8, 0.97])
def test_a_study_cut_anywhere_goes_on_to_the_same_trials(kept: float, tmp_path: Path) -> None:
    whole = tmp_path / "whole.jsonl"
    with Journal.create(whole, {}) as journal:
        standard = study_of("joint", Shuffled(4, 1), journal)
        standard.run(TOTAL)
    lines = whole.read_bytes().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_bytes(b"".join(lines[: max(2, round(kept * len(lines)))]))
    with Journal.open(cut) as journal:
        again = study_of("joint", Shuffled(3, 2), journal)
        again.restore(journal.records)
        again.run(TOTAL)
    assert trials(again) == trials(standard)
    done = [r.data["number"] for r in Journal.read(cut) if r.kind == "evaluated"]
    assert sorted(done) == list(range(TOTAL))


def test_an_agent_learns_in_the_order_of_the_numbers_and_knows_no_more_than_it_may() -> None:
    study = study_of("random", Shuffled(8, 3))
    seen: list[int] = []
    plain, suggest = study.agent.update, study.agent.suggest
    told_at: list[int] = []
    study.agent.update = lambda s, o: (seen.append(s.number), plain(s, o))[1]  # type: ignore[method-assign]
    study.agent.suggest = lambda n=1: (told_at.append(len(seen)), suggest(n))[1]  # type: ignore[method-assign]
    study.run(TOTAL)
    assert seen == list(range(TOTAL))
    assert told_at == [max(0, k + 1 - LOOKAHEAD) for k in range(TOTAL)]
