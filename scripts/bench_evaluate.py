"""Evaluations per second: ours against the naive way, on the policies the default agent proposes with seed 0.

    .venv/bin/python scripts/bench_evaluate.py [--tasks digits32,mnist5k] [--evaluations 100] [--naive 20]

The naive side (scripts/naive_evaluate.py) is one process at the batch size, threads and memory format at
which it is fastest on a few policies, searched for first. Then the agent searches with complete evaluations
by a scorer whose caches are empty; every so often the naive side scores the same policy at once, and now and
then with one thread too. A second fresh scorer goes through the same policies with the bar each had, and may
stop early: its decisions (does the policy beat the bar?) are compared with the complete evaluations'. At last
the same jobs go through the evaluator with as many worker processes of one thread as there are cores, whose
caches are empty too. Times are those of the wall, but where both sides have one thread: its CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from naive_evaluate import Choice, Naive
from rich.console import Console
from rich.table import Table

from agents.contract import Suggestion
from agents.registry import make_agent
from compressors.apply import finish, reduced, shrunk
from compressors.policy import ResolvedPolicy
from search.answers import CHECKED
from search.config import make_config
from search.evaluate import Evaluator, Finished, InlineEvaluator, Job
from search.evaluate_ray import RayEvaluator
from search.score import Score, Scorer
from search.setup import Setup, load_setup
from search.study import Study, outcome_of

TARGET = "x86-avx512-vnni"
BATCHES = (32, 64, 128, 256, 512)
#: Policies on which the naive side's settings are searched for.
TUNED_ON = 2
#: How many of the policies that the naive side scores it scores with one thread too: one in so many.
ONE_THREAD_EVERY = 3
#: Seconds after which threads of an earlier call have stopped waiting busily, which counts as CPU time.
SPINNING = 0.4
console = Console(width=110)


@dataclass
class Row:
    """One policy: what it scored, and what that took, in seconds."""

    policy: ResolvedPolicy
    bar: float | None
    score: Score
    ours: float
    naive: float | None = None
    naive_one: float | None = None
    naive_right: int | None = None


class Recording(InlineEvaluator):
    """Complete evaluations, each timed; now and then the naive side takes its turn."""

    def __init__(self, scorer: Scorer, clock: Callable[[], float], threads: int) -> None:
        super().__init__(scorer)
        self.clock, self.threads = clock, threads
        self.naive: Naive | None = None
        self.every = 1
        self.rows: list[Row] = []

    def completed(self) -> list[Finished]:
        if not self._queue:
            return []
        job = self._queue.popleft()
        torch.set_num_threads(self.threads)
        start = self.clock()
        score = self.scorer.score(job.policy)
        row = Row(job.policy, job.bar, score, self.clock() - start)
        if self.naive is not None and len(self.rows) % self.every == 0:
            row.naive_right, _, row.naive = self.naive.right(job.policy)
            if len(self.rows) % (ONE_THREAD_EVERY * self.every) == 0:
                choice = self.naive.choice
                self.naive.choice = replace(choice, threads=1)
                time.sleep(SPINNING)
                row.naive_one = self.naive.right(job.policy)[1]
                self.naive.choice = choice
        torch.set_num_threads(self.threads)
        self.rows.append(row)
        return [Finished(job, score)]


def studied(setup: Setup, evaluator: Evaluator, evaluations: int) -> None:
    """The search as the engine does it: two baselines, then the agent's policies."""
    agent = make_agent(setup.config.agent, setup.problem, setup.config.seed)
    study = Study(setup.problem, agent, evaluator, None)
    bits = max(setup.space.abilities.act_bits, default=None)
    for i, proposal in enumerate((setup.space.uniform(1.0, bits), setup.space.uniform(0.5, bits))):
        policy = setup.space.resolve(proposal)
        evaluator.submit([Job(-1 - i, policy)])
        outcome = outcome_of(setup.problem, Finished(Job(-1 - i, policy), evaluator.completed()[0].score))
        if outcome.feasible:
            point = tuple(float(x) for x in setup.space.encode(proposal))
            study.learn(Suggestion(-1 - i, point, policy, "baseline"), outcome)
    study.run(evaluations)


def tuned(setup: Setup, policies: Sequence[ResolvedPolicy], threads: Sequence[int]) -> Choice:
    """The naive side's fastest setting by wall time, printed."""
    table = Table("batch", "threads", "memory format", "s / evaluation (wall)", title="naive side: settings")
    found: list[tuple[float, Choice]] = []
    for choice in (Choice(b, t, f) for b in BATCHES for t in threads for f in (True, False)):
        naive = Naive(setup.task, setup.scorer.network, setup.scorer.numerics, choice)
        seconds = statistics.mean(min(naive.right(p)[2] for _ in range(2)) for p in policies)
        found.append((seconds, choice))
    found.sort(key=lambda x: x[0])
    for seconds, c in found[:6]:
        form = "channels last" if c.channels_last else "contiguous"
        table.add_row(str(c.batch), str(c.threads), form, f"{seconds:.3f}")
    console.print(table)
    return found[0][1]


def phases_of(scorer: Scorer, policies: Sequence[ResolvedPolicy]) -> dict[str, float]:
    """Process seconds per complete evaluation by what they went into, with caches empty at the start."""
    spent: dict[str, float] = {}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = call()
        spent[name] = spent.get(name, 0.0) + (time.process_time() - start) / len(policies)
        return result

    network, numerics = scorer.network, scorer.numerics
    for i, p in enumerate(policies):
        name = "prune, reconstruct, factorise" if i else "importance and the like, once"
        weights = timed(name, lambda: shrunk(network, p))  # noqa: B023
        floats = timed("recalibrate 512", lambda: reduced(network, p, weights))  # noqa: B023
        compressed = timed("fold, weights, ranges 128", lambda: finish(network, p, numerics, floats))  # noqa: B023
        answers = timed("export, session", lambda: scorer._answers(compressed))  # noqa: B023
        timed("check against simulation", lambda: answers._check(scorer._ordered[slice(0, CHECKED)]))  # noqa: B023
        timed("validation", lambda: answers.scores(scorer._ordered))  # noqa: B023
    return spent


def fresh(setup: Setup) -> Scorer:
    """A scorer that has seen no policy."""
    return Scorer.of(setup.task, setup.scorer.numerics)


def bench(task: str, options: argparse.Namespace) -> None:
    """One task, from search to table."""
    values = {"target": TARGET, "task": task, "max_latency": options.max_latency, "recover": "0", "seed": 0}
    setup = load_setup(make_config({**values, "evaluations": options.evaluations}))
    n = len(setup.task.validation)
    space = setup.space
    bits = max(space.abilities.act_bits, default=None)
    some = [space.resolve(space.uniform(1.0, bits)), space.resolve(space.uniform(0.5, None))][:TUNED_ON]
    choice = tuned(setup, some, options.naive_threads)
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    torch.set_num_threads(options.threads)
    recording = Recording(fresh(setup), clock, options.threads)
    recording.naive = Naive(setup.task, setup.scorer.network, setup.scorer.numerics, choice)
    recording.every = max(1, options.evaluations // options.naive)
    studied(setup, recording, options.evaluations)
    rows = recording.rows
    both = [r for r in rows if r.naive is not None]
    show_pairs(both, n)
    one = [r for r in rows if r.naive_one is not None]
    naive = statistics.mean(r.naive for r in both if r.naive is not None)
    alone = statistics.mean(r.naive_one for r in one if r.naive_one is not None)
    ours = statistics.mean(r.ours for r in rows)
    looked, agree, stopped, wrong = early(setup, rows, clock)
    whole, _ = several(setup, [Job(i, r.policy) for i, r in enumerate(rows)], options.workers)
    quick, scores = several(setup, [Job(i, r.policy, r.bar) for i, r in enumerate(rows)], options.workers)
    summary = Table("", "s / evaluation", "evaluations / s", "ratio", title=f"{task}: {len(rows)} policies")
    by = f"{options.workers} workers"
    shown = (
        ("one thread each, CPU time: naive", alone, alone),
        ("  ours, complete", ours, alone),
        ("  ours, early stopping", looked, alone),
        (f"at its best, wall time: naive ({choice.threads} threads)", naive, naive),
        (f"  ours, complete, {by}", whole, naive),
        (f"  ours, early stopping, {by}", quick, naive),
    )
    for name, seconds, against in shown:
        summary.add_row(name, f"{seconds:.4f}", f"{1 / seconds:.2f}", f"{against / seconds:.2f}")
    console.print(summary)
    same = sum(accepts(setup, r, r.score) == accepts(setup, r, s) for r, s in zip(rows, scores, strict=True))
    given = recording.naive.phases["reconstruct, factorise"] / len(both)
    console.print(f"of the naive side {given:.4f} s are the reconstruction and factorisation both sides need")
    paired = statistics.median((r.naive or 0.0) / r.ours for r in both)
    console.print(f"median over the {len(both)} policies both scored, naive / ours complete: {paired:.2f}")
    barred = sum(r.bar is not None for r in rows)
    console.print(
        f"early stopping: {stopped} of {len(rows)} stopped ({barred} had a bar), same decision "
        f"{agree} of {len(rows)} ({agree / len(rows):.1%}), with {by} {same}; policies lost that beat the "
        f"bar: {wrong}"
    )
    torch.set_num_threads(1)
    show_phases(recording.naive, len(both), fresh(setup), [r.policy for r in rows])


def early(setup: Setup, rows: Sequence[Row], clock: Callable[[], float]) -> tuple[float, int, int, int]:
    """Mean seconds with early stopping, equal decisions, policies stopped, good policies lost."""
    scorer = fresh(setup)
    seconds, agree, stopped, wrong = [], 0, 0, 0
    for r in rows:
        start = clock()
        score = scorer.score(r.policy, r.bar)
        seconds.append(clock() - start)
        wanted, accepted = accepts(setup, r, r.score), accepts(setup, r, score)
        agree += wanted == accepted
        stopped += score.stopped_early
        wrong += wanted and not accepted
    return statistics.mean(seconds), agree, stopped, wrong


def accepts(setup: Setup, row: Row, score: Score | None) -> bool:
    """Whether a score says that the policy beats its bar."""
    better = setup.problem.gain
    if score is None or score.stopped_early:
        return False
    return row.bar is None or better(score.value) > better(row.bar) + 1e-9


def several(setup: Setup, jobs: Sequence[Job], workers: int) -> tuple[float, list[Score | None]]:
    """Wall seconds a job, and scores, of workers that have seen no policy but the dense one."""
    scores: list[Score | None] = [None] * len(jobs)
    pool = RayEvaluator(fresh(setup).for_workers(), workers, spec=setup.task.spec)
    with pool as evaluator:
        pool.wait_ready()
        dense = setup.space.resolve(setup.space.dense)
        warm = [Job(-1 - i, dense) for i in range(4 * workers)]
        evaluator.submit(warm)
        done = 0
        while done < len(warm):
            done += len(evaluator.completed())
        start = time.perf_counter()
        evaluator.submit(jobs)
        done = 0
        while done < len(jobs):
            for f in evaluator.completed():
                scores[f.job.number] = f.score
                done += 1
        return (time.perf_counter() - start) / len(jobs), scores


def show_pairs(rows: Sequence[Row], samples: int) -> None:
    """Right answers of both sides, policy by policy."""
    table = Table(
        "policy", "naive right", "ours right", "naive s", "ours s", title=f"same policies, {samples} samples"
    )
    for r in rows:
        ours = round(r.score.value * samples)
        table.add_row(r.policy.digest[:8], str(r.naive_right), str(ours), f"{r.naive:.3f}", f"{r.ours:.3f}")
    console.print(table)
    apart = [abs((r.naive_right or 0) - round(r.score.value * samples)) for r in rows]
    console.print(
        f"right answers equal on {sum(a == 0 for a in apart)} of {len(rows)} policies, within one on "
        f"{sum(a <= 1 for a in apart)}, largest difference {max(apart)}, sum naive "
        f"{sum(r.naive_right or 0 for r in rows)}, ours {sum(round(r.score.value * samples) for r in rows)}"
    )


def show_phases(naive: Naive, scored: int, scorer: Scorer, policies: Sequence[ResolvedPolicy]) -> None:
    """Where the time goes on both sides, process milliseconds an evaluation."""
    table = Table("naive", "ms", "ours, complete", "ms", title="where the time goes (process time)")
    left = [(k, 1e3 * v / scored) for k, v in naive.phases.items()]
    right = [(k, 1e3 * v) for k, v in phases_of(scorer, policies).items()]
    for i in range(max(len(left), len(right))):
        a = left[i] if i < len(left) else ("", None)
        b = right[i] if i < len(right) else ("", None)
        table.add_row(
            a[0], "" if a[1] is None else f"{a[1]:.1f}", b[0], "" if b[1] is None else f"{b[1]:.1f}"
        )
    console.print(table)


def main() -> None:
    """Parse and run."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--tasks", default="digits32,mnist5k", help="built-in tasks, comma-separated")
    options.add_argument("--evaluations", type=int, default=100, help="policies the agent proposes")
    options.add_argument("--naive", type=int, default=20, help="how many of them the naive side scores too")
    options.add_argument("--threads", type=int, default=1, help="torch threads of our side")
    options.add_argument("--naive-threads", type=int, nargs="+", default=[1, 2], help="threads to try")
    options.add_argument("--workers", type=int, default=2, help="worker processes of our side at its best")
    options.add_argument("--max-latency", default="0.5x")
    chosen = options.parse_args()
    for task in chosen.tasks.split(","):
        bench(task, chosen)


if __name__ == "__main__":
    main()
