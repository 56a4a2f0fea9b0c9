"""Searching and measuring in turns: prices are corrected by what the device says, and the search goes on."""

from __future__ import annotations

import time

from agents.contract import Outcome
from agents.registry import make_agent
from hw_profiles.predictor import Predictor

from .candidates import SHORTLIST, shortlist
from .profile import batches_of, known_predictor, measure_kernels
from .study import Study
from .timing import first_policies, measures
from .underway import Run

#: Networks of the front that are timed between search and recovery, and how often the search may go on.
TIMED = 6
#: Seconds of kernels before a search on a host that has no profile yet.
PROFILE_SECONDS = 120.0
ROUNDS = 3
#: Parts of an active study, between which its front is timed; networks timed at a time; and how often the
#: front is timed until no point of it is only predicted.
PARTS = 4
TOGETHER = 12
SWEEPS = 8


def time_first(this: Run) -> None:
    """Tell what was settled in set-up; with a device at hand, correct the prices before the search."""
    if this.setup.build_note:
        this.event("build", this.setup.build_note)
    if this.setup.ranges_note:
        this.event("ranges", this.setup.ranges_note)
    if this.setup.profile_note:
        this.progress.note(f"profile  {this.setup.profile_note}")
    if measures(this.setup):
        if this.setup.emulated:
            this.event("device", this.setup.emulated)
        _profile(this)
        start = time.perf_counter()
        this.watch.time(first_policies(this.setup))
        this.timings["measure"] = time.perf_counter() - start


def _profile(this: Run) -> None:
    """Measure the kernels that this network needs, where asked to, or where a host has no profile yet."""
    setup, config = this.setup, this.setup.config
    plain = Predictor(setup.target, config.threads)
    known = setup.lowering.predictor.learned is not None
    seconds = config.profile_seconds
    if seconds is None:
        seconds = PROFILE_SECONDS if config.host is not None and not known else 0.0
    if seconds <= 0 or setup.device is None or this.watch.seen:
        return
    start = time.perf_counter()
    this.progress.note(f"profile  {seconds:.0f} s of kernels that this network needs")
    report = measure_kernels(
        setup.device, setup.target, plain.threads or 1, seconds, batches_of(setup), config.accept_unstable,
        stop=this.stop,
    )  # fmt: skip
    predictor, note = known_predictor(plain, setup.device)
    setup.corrected(predictor)
    this.progress.note(
        f"profile  {report.measured} networks measured, {report.held} held before. {note}".rstrip()
    )
    this.timings["profile"] = time.perf_counter() - start


def search_policies(this: Run, study: Study, evaluations: int) -> None:
    start = time.perf_counter()
    config = this.setup.config
    total = 1 if config.dry_run else evaluations
    active = config.measure == "active" and measures(this.setup) and not config.dry_run
    this.progress.start(total, len(study.entries), this.setup.task.metric.unit)
    step = -(-total // PARTS) if active else total
    while not this.stopped:
        until = min(total, len(study.entries) + step)
        left = (
            None if config.timeout_seconds is None else config.timeout_seconds - time.perf_counter() + start
        )
        study.run(until, left, this.stop, this.progress)
        late = left is not None and time.perf_counter() - start > (config.timeout_seconds or 0.0)
        if len(study.entries) >= total or study.exhausted or this.stopped or late:
            break
        if this.watch.time(this.watch.untimed(study.outcomes, TOGETHER)):
            _renew(this, study)
    this.progress.close()
    if this.stopped:
        this.journal.append("interrupted", {"evaluated": len(study.entries)})
    elif study.exhausted and len(study.entries) < total:
        this.progress.note(f"the agent has nothing new after {len(study.entries)} evaluations")
    this.timings["search"] = this.timings.get("search", 0.0) + time.perf_counter() - start


def _renew(this: Run, study: Study) -> None:
    """Go on under corrected prices."""
    config = this.setup.config
    seed = config.seed + 1 + len(study.entries)
    study.renew(this.setup.problem, make_agent(config.agent, this.setup.problem, seed))


def _more(this: Run, study: Study) -> None:
    """Search on under corrected prices, because nothing holds the budget yet."""
    _renew(this, study)
    search_policies(this, study, len(study.entries) + max(10, this.setup.config.evaluations // 4))


def timed_shortlist(this: Run, study: Study) -> list[Outcome]:
    setup = this.setup
    if not measures(setup):
        return shortlist(setup, study.outcomes, SHORTLIST)
    for _ in range(ROUNDS):
        study.reprice(setup.problem)
        ranked = shortlist(setup, study.outcomes, TIMED)
        this.watch.time([o.policy for o in ranked])
        _time_front(this, study)
        holding = [o for o in shortlist(setup, study.outcomes, TIMED) if _holds(this, o)]
        if holding or this.stopped:
            return holding[:SHORTLIST]
        this.event(
            "budget",
            f"none of {len(ranked)} predicted to hold {this.watch.limit_ms:.3f} ms does so when "
            "measured; prices corrected, the search goes on",
        )
        _more(this, study)
    return []


def _holds(this: Run, outcome: Outcome) -> bool:
    """Whether a policy was timed and holds the budget."""
    return outcome.policy.digest in this.watch.seen and this.watch.holds(outcome.policy)


def _time_front(this: Run, study: Study) -> None:
    """Time the front until no point of it is only predicted: corrected prices may bring new points."""
    study.reprice(this.setup.problem)
    if this.setup.config.measure == "final":
        return
    start = time.perf_counter()
    for _ in range(SWEEPS):
        missing = this.watch.untimed(study.outcomes, TOGETHER)
        if not missing or this.stopped:
            break
        this.progress.note(f"measure  {len(missing)} networks of the front")
        this.watch.time(missing)
        study.reprice(this.setup.problem)
    this.timings["measure"] = this.timings.get("measure", 0.0) + time.perf_counter() - start


__all__ = ["search_policies", "time_first", "timed_shortlist"]
