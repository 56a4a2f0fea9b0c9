"""What the command line and Python callers run: a search, and what is done with its results.

import search
result = search.run(task, target="raspberry-pi", max_latency="0.5x")
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agents.contract import Agent, Outcome, Suggestion
from agents.registry import check_name, make_agent
from agents.repair import require_feasible
from compressors.policy import ResolvedPolicy
from hw_profiles.target import load_target

from . import sensitivity, studies, summary, warm
from .builds import check_resources
from .candidates import Candidate, pick, recover_candidates
from .cluster import borrowed, kept
from .commands import apply_policy, export_point, measure_run, predict
from .console import Progress, Silent, header_lines
from .deliver import Delivered, deliver
from .errors import InfeasibleError, ResumeError, StoppedError, VerificationError
from .evaluate import make_evaluator
from .explanation import explanation
from .journal import Journal
from .pool import OFF, PooledEvaluator, open_pool
from .private import forget, place_of
from .proxies import proxies
from .result import RunResult
from .results import Event, Results, RunFacts
from .rounds import search_policies, time_first, timed_shortlist
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
from .study import LOOKAHEAD, Study, outcome_of
from .templates import stand_in
from .threads import single_threaded
from .timing import Stopwatch, measures
from .underway import Run

if TYPE_CHECKING:
    from .config import RunConfig
    from .task import Task


@dataclass
class Search:
    """One target's search, begun: its study stands, nothing is proposed yet."""

    run: Run
    study: Study
    baselines: dict[str, tuple[ResolvedPolicy, Outcome]]
    started: float
    delivered: Delivered | None = None


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
    setup = load_setup(config, task)
    with begun(setup, progress if progress is not None else Silent(), stop, command) as search:
        with search.study.evaluator:
            search_policies(search.run, search.study, config.evaluations)
            chosen = shortlisted(search)
        results = concluded(search, chosen)
        written(search, results)
    return RunResult(search.run.folder.path, results, task)


@contextlib.contextmanager
def begun(
    setup: Setup,
    show: Progress,
    stop: threading.Event | None = None,
    command: Sequence[str] = (),
    joined: Callable[[Setup, Agent], Agent] = lambda setup, agent: agent,
) -> Iterator[Search]:
    """A search whose folder, journal, prices and study stand; ``joined`` may put an agent before its own.

    The caller closes the study's evaluator.
    """
    started = time.perf_counter() - setup.timings.get("set-up", 0.0)
    config = setup.config
    if stop is not None and stop.is_set():
        raise StoppedError("stopped in set-up: nothing new was evaluated.", "Start it again.")
    if not measures(setup):  # else once prices are corrected
        require_feasible(setup.problem)
    known = warm.earlier(setup) if config.resume is None else []
    folder, journal = _opened(setup)
    facts = _facts(setup, folder, command)
    watch = Stopwatch(setup, journal)
    this = Run(setup, folder, journal, show, stop, facts, watch, _events(journal), setup.timings)
    with journal, borrowed(setup.device), kept(config.workers, config.ray_address):
        if journal.torn_bytes:
            show.note(f"journal  its last {journal.torn_bytes} bytes were cut short and are left out")
        folder.sweep()
        folder.write(CONFIG, config.to_yaml())
        folder.write_json(ENV, environment(setup.lowering.predictor.threads))
        watch.restore()
        sensitivity.journalled(setup, journal)
        time_first(this)
        require_feasible(setup.problem)
        show.header(header_lines(summary.document(setup, facts, None, _backing(setup))))
        study, baselines = _study(this, known, joined)
        yield Search(this, study, baselines, started)


def shortlisted(search: Search) -> list[Outcome]:
    """What is worth recovering, once the study has ended; timed where a device is at hand."""
    this = search.run
    chosen = [] if this.stopped or this.setup.config.dry_run else timed_shortlist(this, search.study)
    if this.pool is not None and this.pool.found:
        this.progress.note(f"pool     {this.pool.summary}")
    return chosen


def concluded(search: Search, chosen: Sequence[Outcome]) -> Results:
    """Recover the shortlist and deliver the best of it: the results, not written yet."""
    this = search.run
    candidates: list[Candidate] = []
    if not this.stopped and not this.setup.config.dry_run:
        candidates = _candidates(this, chosen)
    if candidates and not this.stopped:
        search.delivered = _delivered(this, candidates)
    return _results(this, search.study, search.baselines, candidates, search.delivered, search.started)


def written(search: Search, results: Results) -> None:
    """Write results and report, and keep the study for later ones."""
    _written(search.run, results)
    if not search.run.stopped:
        forget(place_of(search.run.folder, search.run.journal))
    studies.keep(search.run, search.study)


def check(config: RunConfig) -> None:
    """Refuse what can be refused before any network is traced, for all targets at once."""
    check_name(config.agent)
    for one in config.for_each_target():
        check_resources(one, load_target(one.target[0]))
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
    return [Event(kind=str(e.get("kind")), text=str(e["text"])) for e in told]


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


def _backing(setup: Setup) -> str:
    batch = setup.lowering.kernels([setup.base_policy])[0][1]
    backing = setup.lowering.predictor.predict(batch).backing
    return "; ".join(filter(None, (backing, stand_in(setup.target), setup.emulated)))


# -- the study


def _study(
    this: Run, known: list[tuple[Suggestion, Outcome]], joined: Callable[[Setup, Agent], Agent]
) -> tuple[Study, dict[str, tuple[ResolvedPolicy, Outcome]]]:
    """The study with its baselines scored and, when resumed, its journal taken up."""
    setup = this.setup
    from .evaluate import Finished, Job

    config = setup.config
    setup.past = studies.remembered(this)
    agent = joined(setup, make_agent(setup.config.agent, setup.problem, setup.config.seed))
    pool = this.pool = open_pool(
        OFF if setup.config.dry_run else setup.config.pool,  # a dry run is there to see what evaluations take
        setup.scorer,
        lambda text: this.progress.note(f"pool     {text}"),
    )
    workers = make_evaluator(
        setup.task, setup.scorer, config.workers, config.ray_address, config.evaluation_seconds,
        lambda text: this.progress.note(f"workers  {text}"),
    )  # fmt: skip
    lookahead = LOOKAHEAD if config.deterministic else None
    study = Study(setup.problem, agent, PooledEvaluator(workers, pool), this.journal, lookahead=lookahead)
    space = setup.space
    bits = max(space.abilities.act_bits, default=None)
    found: dict[str, tuple[ResolvedPolicy, Outcome]] = {}
    start = time.perf_counter()
    proposals = [("int8", space.uniform(1.0, bits)), ("uniform", space.uniform(0.5, bits))]
    for i, (name, proposal) in enumerate(proposals if bits is not None else proposals[1:]):
        if this.stopped:
            break
        policy = space.resolve(proposal)
        score = pool.score(policy)
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


# -- candidates


def _candidates(this: Run, chosen: Sequence[Outcome]) -> list[Candidate]:
    """The shortlist, recovered."""
    config = this.setup.config
    if not chosen:
        raise InfeasibleError(
            "no evaluated policy holds the budget; the search was too short.",
            f"Go on with --resume {this.folder.path} --evaluations {2 * config.evaluations}.",
        )
    start = time.perf_counter()
    found = recover_candidates(this, chosen)
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


def _delivered(this: Run, candidates: list[Candidate]) -> Delivered:
    """The best candidate that its runtime confirms; another is an event, and the next is tried."""
    start = time.perf_counter()
    left = list(candidates)
    while True:
        at = pick(this.setup, left)
        try:
            found = deliver(this.setup, left[at], this.folder, this.watch, this.event)
        except VerificationError as problem:
            chosen = left.pop(at)
            if not left:
                raise
            this.event(
                "verification", f"{chosen.searched.policy.digest[:8]}: {problem.message} The next is tried."
            )
            continue
        break
    this.journal.append("exported", {"policy": found.candidate.searched.policy.digest, "files": found.files})
    this.timings["export"] = time.perf_counter() - start
    return found


# -- what is written


def _results(
    this: Run,
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
        chosen = delivered.candidate.searched.policy.digest
        results["explanation"] = explanation(setup, study, chosen)
        results["proxies"] = [] if this.pool is None else proxies(setup, study, this.pool, chosen)
    if this.stopped and delivered is None:
        results["run"]["state"] = "interrupted"
    this.timings["total"] = time.perf_counter() - started
    results["timings"] = {k: round(v, 2) for k, v in this.timings.items()}
    return results


def _written(this: Run, results: Results) -> None:
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
