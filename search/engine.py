"""What the command line and Python callers run: a search, and what is done with its results.

import search
result = search.run(task, target="raspberry-pi", max_latency="0.5x")
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agents.contract import Outcome, Suggestion
from agents.registry import check_name, make_agent
from agents.repair import require_feasible
from compressors.policy import ResolvedPolicy
from hw_profiles.target import load_target

from . import summary, warm
from .candidates import SHORTLIST, Candidate, pick, recover_candidates, shortlist
from .commands import apply_policy, export_point, measure_run, predict
from .console import Progress, Silent, header_lines
from .deliver import Delivered, deliver
from .errors import InfeasibleError, ResumeError, StoppedError
from .evaluate import make_evaluator
from .journal import Journal
from .result import RunResult
from .results import Event, Results, RunFacts
from .runfolder import (
    CONFIG,
    ENV,
    FRONT,
    RESULTS,
    RUNS,
    RunFolder,
    check_free,
    check_writable,
    environment,
    recovered_name,
)
from .setup import Setup, load_setup, untouched
from .siblings import other_runtimes
from .stored import to_bytes
from .study import Study, outcome_of
from .threads import single_threaded
from .timing import Stopwatch, first_policies, measures

if TYPE_CHECKING:
    from .config import RunConfig
    from .task import Task

#: Networks of the front that are timed between search and recovery, and how often the search may go on.
TIMED = 6
ROUNDS = 3
#: Parts of an active study, between which its front is timed; networks timed at a time; and how often the
#: front is timed until no point of it is only predicted.
PARTS = 4
TOGETHER = 12
SWEEPS = 8


@dataclass
class _Run:
    """One run under way."""

    setup: Setup
    folder: RunFolder
    journal: Journal
    progress: Progress
    stop: threading.Event | None
    facts: RunFacts
    watch: Stopwatch
    events: list[Event] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)

    def event(self, kind: str, text: str, **more: Any) -> None:
        """Journal something that turned out otherwise, and tell."""
        self.journal.append("event", {"kind": kind, "text": text, **more})
        event = Event(kind=kind, text=text)
        if event not in self.events:  # exported again after an interruption
            self.events.append(event)
        self.progress.note(f"event    {text}")

    @property
    def stopped(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self.stop is not None and self.stop.is_set()


@single_threaded
def run(
    config: RunConfig,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
    task: Task | None = None,
    command: Sequence[str] = (),
) -> RunResult:
    """Search one target: baselines, study, recovery, export, verification, report.

    Raises the package's errors; with ``stop`` set the run ends after the evaluation in flight and its
    folder can be resumed.
    """
    started = time.perf_counter()
    show = progress if progress is not None else Silent()
    setup = load_setup(config, task)
    if stop is not None and stop.is_set():
        raise StoppedError("stopped in set-up: nothing new was evaluated.", "Start it again.")
    if not measures(setup):  # else once prices are corrected
        require_feasible(setup.problem)
    known = warm.earlier(setup) if config.resume is None else []
    folder, journal = _opened(setup)
    facts = _facts(setup, folder, command)
    watch = Stopwatch(setup, journal)
    this = _Run(setup, folder, journal, show, stop, facts, watch, _events(journal), setup.timings)
    with journal:
        folder.sweep()
        folder.write(CONFIG, config.to_yaml())
        folder.write_json(ENV, environment(setup.lowering.predictor.threads))
        watch.restore()
        _time_first(this)
        require_feasible(setup.problem)
        backing = _backing(setup)
        show.header(header_lines(summary.document(setup, facts, None, backing)))
        study, baselines = _study(this, known)
        candidates: list[Candidate] = []
        delivered: Delivered | None = None
        with study.evaluator:
            _search(this, study, config.evaluations)
            chosen = [] if this.stopped or config.dry_run else _timed_shortlist(this, study)
        if not this.stopped and not config.dry_run:
            candidates = _candidates(this, chosen)
        if candidates and not this.stopped:
            delivered = _delivered(this, candidates)
        results = _results(this, study, baselines, candidates, delivered, started)
        _written(this, results)
    return RunResult(folder.path, results, task)


def check(config: RunConfig) -> None:
    """Refuse what can be refused before any network is traced, for all targets at once."""
    check_name(config.agent)
    for one in config.for_each_target():
        load_target(one.target[0])
        if one.resume is None:
            check_writable(RUNS) if one.out is None else check_free(Path(one.out))
    if config.warm_start is not None and config.resume is None:
        Journal.read(RunFolder.find(config.warm_start).journal)


def _opened(setup: Setup) -> tuple[RunFolder, Journal]:
    config = setup.config
    header = {
        "config": config.model_dump(mode="json"),
        **warm.marks(setup),
        "base": setup.base_score.value,
        "seed": config.seed,
    }
    if config.resume is None:
        folder = RunFolder.create(setup.target.name, None if config.out is None else Path(config.out))
        return folder, Journal.create(folder.journal, header)
    folder = RunFolder.find(config.resume)
    journal = Journal.open(folder.journal)
    changed = warm.difference(journal.header, warm.marks(setup))
    if changed:
        journal.close()
        raise ResumeError(f"cannot resume {folder.id}: {changed} changed since.", "Start anew.")
    return folder, journal


def _events(journal: Journal) -> list[Event]:
    """What an interrupted run told of before."""
    told = [r.data for r in journal.records if r.kind == "event" and "text" in r.data]
    return [Event(kind=e["kind"], text=e["text"]) for e in told]


def _facts(setup: Setup, folder: RunFolder, command: Sequence[str]) -> RunFacts:
    from importlib import metadata

    from .runfolder import cpu_model

    versions = {p: v for p, v in environment()["packages"].items() if v is not None}
    return RunFacts(
        id=folder.id,
        created=time.strftime("%Y-%m-%dT%H:%M:%S"),
        version=metadata.version("tailorbird"),
        seed=setup.config.seed,
        state="complete",
        command=list(command),
        versions=versions,
        cpu=cpu_model(),
    )


def _time_first(this: _Run) -> None:
    """Where the target is this machine, correct the prices before anything is searched."""
    if measures(this.setup):
        start = time.perf_counter()
        this.watch.time(first_policies(this.setup))
        this.timings["measure"] = time.perf_counter() - start


def _backing(setup: Setup) -> str:
    batch = setup.lowering.kernels([setup.base_policy])[0][1]
    return setup.lowering.predictor.predict(batch).backing


# -- the study


def _study(
    this: _Run, known: list[tuple[Suggestion, Outcome]]
) -> tuple[Study, dict[str, tuple[ResolvedPolicy, Outcome]]]:
    """The study with its baselines scored and, when resumed, its journal taken up."""
    setup = this.setup
    from .evaluate import Finished, Job

    workers = setup.config.workers
    if workers > 1 and setup.task.spec is None:
        this.progress.note("workers  one: this task lives in this process only")
    agent = make_agent(setup.config.agent, setup.problem, setup.config.seed)
    study = Study(setup.problem, agent, make_evaluator(setup.task, setup.scorer, workers), this.journal)
    space = setup.space
    bits = max(space.abilities.act_bits, default=None)
    found: dict[str, tuple[ResolvedPolicy, Outcome]] = {}
    start = time.perf_counter()
    proposals = [("int8", space.uniform(1.0, bits)), ("uniform", space.uniform(0.5, bits))]
    for i, (name, proposal) in enumerate(proposals if bits is not None else proposals[1:]):
        if this.stopped:
            break
        policy = space.resolve(proposal)
        score = setup.scorer.score(policy)
        outcome = outcome_of(setup.problem, Finished(Job(-1 - i, policy), score))
        found[name] = (policy, outcome)
        if outcome.feasible:
            point = tuple(float(x) for x in space.encode(proposal))
            study.learn(Suggestion(-1 - i, point, policy, f"baseline: {name}"), outcome)
    this.timings["baselines"] = time.perf_counter() - start
    if setup.config.resume is not None and all(r.kind != "suggested" for r in this.journal.records):
        known = warm.earlier(setup)  # it was interrupted before it took anything over
    warm.take_over(study, this.journal, known)
    study.restore(this.journal.records)
    return study, found


def _search(this: _Run, study: Study, evaluations: int) -> None:
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


def _renew(this: _Run, study: Study) -> None:
    """Go on under corrected prices."""
    config = this.setup.config
    seed = config.seed + 1 + len(study.entries)
    study.renew(this.setup.problem, make_agent(config.agent, this.setup.problem, seed))


def _more(this: _Run, study: Study) -> None:
    """Search on under corrected prices, because nothing holds the budget yet."""
    _renew(this, study)
    _search(this, study, len(study.entries) + max(10, this.setup.config.evaluations // 4))


# -- candidates


def _candidates(this: _Run, chosen: Sequence[Outcome]) -> list[Candidate]:
    """The shortlist, recovered."""
    setup, config = this.setup, this.setup.config
    if not chosen:
        raise InfeasibleError(
            "no evaluated policy holds the budget; the search was too short.",
            f"Go on with --resume {this.folder.path} --evaluations {2 * config.evaluations}.",
        )
    start = time.perf_counter()
    found = recover_candidates(setup, chosen, config.recover_seconds, this.progress, this.stop)
    for c in found:
        if c.recovered:
            this.folder.write(recovered_name(c.searched.policy.digest), to_bytes(c.compressed))
        this.journal.append(
            "recovered",
            {
                "policy": c.searched.policy.digest,
                "before": c.searched.accuracy,
                "after": c.score.value,
                "steps": c.steps,
                "seconds": c.seconds,
            },
        )
    this.timings["recover"] = time.perf_counter() - start
    return found


def _timed_shortlist(this: _Run, study: Study) -> list[Outcome]:
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


def _holds(this: _Run, outcome: Outcome) -> bool:
    """Whether a policy was timed and holds the budget."""
    return outcome.policy.digest in this.watch.seen and this.watch.holds(outcome.policy)


def _time_front(this: _Run, study: Study) -> None:
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


def _delivered(this: _Run, candidates: list[Candidate]) -> Delivered:
    start = time.perf_counter()
    at = pick(this.setup, candidates)
    found = deliver(this.setup, candidates[at], this.folder, this.watch, this.event)
    this.journal.append("exported", {"policy": found.candidate.searched.policy.digest, "files": found.files})
    this.timings["export"] = time.perf_counter() - start
    return found


# -- what is written


def _results(
    this: _Run,
    study: Study,
    baselines: dict[str, tuple[ResolvedPolicy, Outcome]],
    candidates: Sequence[Candidate],
    delivered: Delivered | None,
    started: float,
) -> Results:
    setup = this.setup
    backing = _backing(setup)
    study.reprice(setup.problem)
    results = summary.document(setup, this.facts, study, backing)
    picked = None if delivered is None else delivered.candidate
    results["points"] = summary.points(setup, study, candidates, picked)
    results["picked"] = next((p["number"] for p in results["points"] if p["picked"]), None)
    results["kernels"] = summary.kernel_times(setup, setup.base_policy)
    for name, (policy, outcome) in baselines.items():
        integers = " + int8" if setup.space.abilities.act_bits else ""
        entry = summary.network(setup, "int8" if name == "int8" else f"uniform 0.5{integers}", policy, None)
        entry["validation"] = {
            "value": outcome.accuracy or 0.0,
            "samples": len(setup.task.validation),
            "low": outcome.accuracy_low,
            "high": outcome.accuracy_high,
        }
        entry["drop"] = setup.problem.drop(outcome.accuracy or 0.0)
        if name == "int8":
            results["plain_int8"] = entry
        else:
            results["uniform"] = [entry]
    results["steps"] = [
        {
            "number": e.suggestion.number,
            "accuracy": e.outcome.accuracy,
            "latency_ms": e.outcome.costs["latency_ms"],
            "feasible": e.outcome.feasible,
            "origin": e.suggestion.origin,
        }
        for e in study.entries
    ]
    results["events"] = this.events
    results["siblings"] = other_runtimes(setup, None if picked is None else picked.compressed.policy)
    notes = dict.fromkeys((*setup.space.structure.notes, *untouched(setup.space)))
    results["notes"] = [{"subject": s, "reason": r} for s, r in notes]
    if delivered is not None:
        delivered.into(results)
    if this.stopped and delivered is None:
        results["run"]["state"] = "interrupted"
    this.timings["total"] = time.perf_counter() - started
    results["timings"] = {k: round(v, 2) for k, v in this.timings.items()}
    return results


def _written(this: _Run, results: Results) -> None:
    folder = this.folder
    results["files"] = sorted({*results.get("files", []), RESULTS, FRONT, CONFIG, ENV})
    rows = [
        {
            "number": p["number"],
            "picked": p["picked"],
            "metric": None if (score := p.get("validation")) is None else score["value"],
            "drop": p.get("drop"),
            **{k: n["value"] for k, n in p["costs"].items()},
            "digest": p["digest"],
        }
        for p in results["points"]
    ]
    columns = [
        "number",
        "picked",
        "metric",
        "drop",
        "latency_ms",
        "size_bytes",
        "memory_bytes",
        "energy_mj",
        "macs",
        "digest",
    ]
    folder.write_csv(FRONT, columns, rows)
    folder.write_json(RESULTS, results)
    from .report import write_report

    path = write_report(folder.path)
    results["files"] = sorted({*results["files"], path.name})
    folder.write_json(RESULTS, results)


__all__ = ["RunResult", "apply_policy", "check", "export_point", "measure_run", "predict", "run"]
