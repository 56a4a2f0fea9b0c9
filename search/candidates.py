"""From outcomes to networks worth delivering: a shortlist, a short recovery, one pick."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agents.contract import Outcome
from agents.pareto import best, usable
from compressors.apply import compress
from compressors.compressed import Compressed

from .console import Progress
from .score import Score, interval, score_compressed
from .setup import Setup

if TYPE_CHECKING:
    from torch import Tensor

    from .recover import Recovered
    from .recover_ray import Plan
    from .underway import Run

#: How many policies are recovered, and the least time each must get.
SHORTLIST = 3
LEAST_SECONDS = 6.0
#: Learning rates of one policy that are tried at once, where there are workers enough.
MOST_RATES = 3
#: The kind of the event that names the trials a run has begun.
RECOVERY = "recovery"


@dataclass(frozen=True)
class Candidate:
    """One policy as a network: what it scored in the search and what it scores now."""

    searched: Outcome
    compressed: Compressed
    score: Score
    recovered: bool
    floats: Mapping[str, Tensor] | None = None
    steps: int = 0
    seconds: float = 0.0

    @property
    def outcome(self) -> Outcome:
        """The searched outcome with today's score."""
        return replace(
            self.searched,
            accuracy=self.score.value,
            accuracy_std=self.score.std,
            accuracy_low=self.score.low,
            accuracy_high=self.score.high,
            stopped_early=False,
        )


def shortlist(setup: Setup, outcomes: Sequence[Outcome], count: int) -> list[Outcome]:
    """The ``count`` best policies that hold the budget, by the metric, then by latency; no policy twice.

    Under ``max_drop`` policies that break only the drop may be recovered into it: they follow, nearest first.
    """
    problem = setup.problem
    seen: set[str] = set()
    unique = [o for o in outcomes if not (o.policy.digest in seen or seen.add(o.policy.digest))]  # type: ignore[func-returns-value]
    scored = [o for o in unique if o.accuracy is not None and not setup.budget.why_not(o.costs)]
    if problem.objective == "latency":
        holding = sorted((o for o in scored if usable(o) and o.feasible), key=lambda o: o.costs["latency_ms"])
        near = sorted((o for o in scored if not o.feasible), key=lambda o: problem.drop(o.accuracy or 0.0))
        return [*near[: max(0, count - 1)], *holding[:1]] if near and holding else [*holding, *near][:count]
    whole = [o for o in scored if not o.stopped_early] or scored
    return sorted(whole, key=lambda o: (-problem.gain(o.accuracy or 0.0), o.costs["latency_ms"]))[:count]


def score_now(setup: Setup, compressed: Compressed) -> Score:
    """A compressed network's metric on the whole validation set."""
    scores = score_compressed(compressed, setup.task.validation, setup.task.metric)
    return Score(*interval(scores), len(scores), 0.0)


def recover_candidates(this: Run, chosen: Sequence[Outcome]) -> list[Candidate]:
    """Networks of the shortlist, recovered: at once where there are several workers, else one by one."""
    setup, config = this.setup, this.setup.config
    plain = [plain_candidate(setup, o) for o in chosen]
    if config.recover_seconds <= 0 or not plain:
        return plain
    if config.workers == 1 and config.ray_address is None:
        return one_by_one(setup, plain, config.recover_seconds, this.progress, this.stop)
    from .private import place_of

    plan = plan_of(setup, plain, config.recover_seconds)
    again = _journalled(this) == plan.key
    if not again:
        this.journal.append("event", {"kind": RECOVERY, "trials": plan.key})
    return at_once(setup, plain, plan, place_of(this.folder, this.journal), this.progress, this.stop, again)


def one_by_one(
    setup: Setup, plain: list[Candidate], seconds: float, progress: Progress, stop: threading.Event | None
) -> list[Candidate]:
    """Recover in this process: half of the time shared by all, the other half for the best."""
    rounds = plain[: max(1, int(seconds / 2 // LEAST_SECONDS))]
    rest = plain[len(rounds) :]
    share = seconds if len(rounds) == 1 else seconds / 2 / len(rounds)
    recovered: list[Candidate] = []
    for i, c in enumerate(rounds):
        if stop is not None and stop.is_set():
            return [*recovered, *plain[i:]]
        progress.note(f"recover  {i + 1}/{len(rounds)}: {share:.0f} s of distillation")
        recovered.append(_recover(setup, c, share, stop))
    if len(rounds) > 1 and not (stop is not None and stop.is_set()):
        at = pick(setup, recovered)
        progress.note(f"recover  the best goes on for {seconds / 2:.0f} s")
        recovered[at] = _recover(setup, recovered[at], seconds / 2, stop)
    return [*recovered, *rest]


def plan_of(setup: Setup, plain: Sequence[Candidate], seconds: float) -> Plan:
    """Which candidates are recovered at once: each must get a least time of the workers' CPUs."""
    from .recover_ray import Plan

    config = setup.config
    count = max(1, min(len(plain), int(config.workers * seconds / 2 // LEAST_SECONDS)))
    return Plan(
        tuple(c.searched.policy for c in plain[:count]),
        seconds,
        config.seed,
        max(1, min(MOST_RATES, config.workers // count)),
        halving=setup.problem.objective == "accuracy",  # else the fastest counts, be it behind the others
    )


def at_once(
    setup: Setup,
    plain: list[Candidate],
    plan: Plan,
    place: Path,
    progress: Progress,
    stop: threading.Event | None,
    again: bool = False,
) -> list[Candidate]:
    """Recover as trials of Ray Tune, kept at ``place``; with ``again`` those that are there go on."""
    from .recover_ray import recover_all

    config = setup.config
    progress.note(
        f"recover  {len(plan.policies)} networks at once, {len(plan.trials)} trials of {plan.seconds:.0f} s"
    )
    found = recover_all(
        setup.task, setup.scorer.network, setup.scorer.numerics, plan, place,
        workers=config.workers, address=config.ray_address, again=again, stop=stop,
        tell=lambda text: progress.note(f"recover  {text}"),
    )  # fmt: skip
    rest = plain[len(found) :]
    pairs = zip(plain, found, strict=False)
    return [*(c if done is None else _with(setup, c, done) for c, done in pairs), *rest]


def _journalled(this: Run) -> str | None:
    """The trials that this run began last, if any."""
    keys = [r.data.get("trials") for r in this.journal.records if r.data.get("kind") == RECOVERY]
    return keys[-1] if keys else None


def pick(setup: Setup, candidates: Sequence[Candidate]) -> int:
    """Position of the candidate to deliver, by today's score."""
    problem = setup.problem
    outcomes = []
    for c in candidates:
        why = setup.budget.why_not(c.outcome.costs)
        holds = not why and problem.holds_drop(c.score.value)
        outcomes.append(replace(c.outcome, feasible=holds, why=why))
    at = best(outcomes, problem)
    if at is not None:
        return at
    return max(range(len(candidates)), key=lambda i: problem.gain(candidates[i].score.value))


def plain_candidate(setup: Setup, outcome: Outcome) -> Candidate:
    """A policy as a network, as it is compressed."""
    compressed = compress(setup.scorer.network, outcome.policy, setup.scorer.numerics)
    return Candidate(outcome, compressed, score_now(setup, compressed), False)


def _recover(setup: Setup, candidate: Candidate, seconds: float, stop: threading.Event | None) -> Candidate:
    from .recover import recover

    done = recover(
        setup.task,
        setup.scorer.network,
        candidate.searched.policy,
        setup.scorer.numerics,
        seconds,
        setup.config.seed,
        stop,
        candidate.floats,
    )
    return _with(setup, candidate, done)


def _with(setup: Setup, candidate: Candidate, done: Recovered) -> Candidate:
    """A candidate after one more recovery, unless it was better before."""
    better = setup.problem.gain(done.after) >= setup.problem.gain(candidate.score.value)
    compressed = done.compressed if better else candidate.compressed
    return Candidate(
        candidate.searched,
        compressed,
        score_now(setup, compressed),
        candidate.recovered or (better and done.steps > 0),
        done.floats,
        candidate.steps + done.steps,
        candidate.seconds + done.seconds,
    )
