"""How evaluation scales: workers, overhead, busy actors of a cluster, memory, and where it would end.

    .venv/bin/python scripts/bench_scale.py [--quick] [--sleeps 0.05,0.5,5] [--actors 64] [--task digits32]

1. Evaluations that sleep, by 1, 2, 4 and 8 workers: overhead is what a worker spends beside sleeping.
2. Real evaluations of a task's policies by 1 and 2 workers, with queues one and two jobs deep; once all at
   hand, once suggested by the default agent as the search goes.
3. Many actors on a local cluster of several nodes, sleeping: the share of their time that they are busy.
4. Memory of workers, controller time per suggestion and outcome, and what would saturate first at 1,000.
5. Recovery (`--parts recovery`) of a short search's three best, by this process and by two workers on Ray
   Tune, in the same wall time, several seeds: the metric that each reaches.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from agents.contract import Agent
from agents.registry import DEFAULT, make_agent
from compressors.policy import ResolvedPolicy
from search.candidates import (
    SHORTLIST,
    Candidate,
    at_once,
    one_by_one,
    pick,
    plain_candidate,
    plan_of,
    shortlist,
)
from search.cluster import connect, disconnect
from search.config import make_config
from search.console import Silent
from search.evaluate import Examiner, Finished, InlineEvaluator, Job
from search.evaluate_ray import RayEvaluator
from search.evidence import Evidence, Score
from search.setup import Setup, load_setup
from search.study import LOOKAHEAD, Study, outcome_of
from search.threads import torch_threads

TARGET = "x86-avx512-vnni"
WORKERS = (1, 2, 4, 8)
NODES = 4
MANY = 1000
#: Seconds of sleep in part 3, jobs of each actor there, and jobs of each worker in part 1.
SIMULATED, EACH, JOBS = 2.0, 8, 12


@dataclass(frozen=True)
class Sleeper:
    """An evaluation that takes ``seconds`` and no processor."""

    seconds: float

    def examined(
        self, policy: ResolvedPolicy, bar: float | None = None, known: Evidence | None = None
    ) -> tuple[Score, Evidence]:
        """See `Scorer.examined`."""
        time.sleep(self.seconds)
        return Score(0.5, 0.0, 0.5, 0.5, 1, self.seconds), Evidence()


@contextlib.contextmanager
def started(examiner: Examiner, workers: int, depth: int = 2, cpus: float = 1.0) -> Iterator[RayEvaluator]:
    """A pool whose workers are all ready."""
    pool = RayEvaluator(examiner, workers, depth=depth, resources={"CPU": cpus})
    with pool:
        pool.wait_ready()
        yield pool


def finished(pool: RayEvaluator, jobs: Sequence[Job]) -> float:
    """Wall seconds until all jobs are done, fed as a study feeds: never more out than keep it busy."""
    waiting, running = list(reversed(jobs)), 0
    start = time.perf_counter()
    while waiting or running:
        chosen = [waiting.pop() for _ in range(min(pool.workers - running, len(waiting)))]
        pool.submit(chosen)
        running += len(chosen)
        done = pool.completed()
        running -= len(done)
        failed = [f.error for f in done if f.score is None]
        if failed:
            raise RuntimeError(failed[0])
    return time.perf_counter() - start


def sleeping(policy: ResolvedPolicy, sleeps: Sequence[float], jobs: int) -> None:
    """Part 1."""
    print("sleeping evaluations: workers, evaluations/s, overhead ms an evaluation")
    for seconds in sleeps:
        each = max(4, min(jobs, round(20.0 / seconds)))
        for workers in WORKERS:
            with started(Sleeper(seconds), workers, cpus=0.1) as pool:
                wall = finished(pool, [Job(i, policy) for i in range(each * workers)])
            overhead = 1e3 * (wall / each - seconds)
            print(
                f"  {seconds:5g} s   {workers}   {each * workers / wall:8.2f}   {overhead:6.2f}", flush=True
            )


def real(setup: Setup, count: int) -> None:
    """Part 2, its first half: all policies at hand."""
    agent = make_agent("random", setup.problem, 0)
    jobs = [Job(s.number, s.policy) for s in agent.suggest(count)]
    print(f"real evaluations ({setup.task.name}, {len(jobs)} random policies, complete)")
    single = 0.0
    for workers, depth in ((1, 2), (2, 1), (2, 2)):
        with started(setup.scorer.for_workers(), workers, depth) as pool:
            finished(pool, [Job(-1 - i, setup.base_policy) for i in range(2 * workers)])  # warm
            wall = finished(pool, jobs)
            memory = [_memory_mb(p.pid) for p in pool.places]
            packed = pool.packed_bytes / 1e6
        single = single or wall
        print(
            f"  {workers} workers, {depth} deep: {len(jobs) / wall:.2f} evaluations/s, {single / wall:.2f}x; "
            f"memory of one {statistics.mean(memory):.0f} MB of its own; {packed:.1f} MB in the store",
            flush=True,
        )


def _memory_mb(pid: int) -> float:
    """Memory that a process shares with no other, MB."""
    return float(psutil.Process(pid).memory_full_info().uss) / 1e6


def searching(setup: Setup, count: int) -> None:
    """Part 2, its second half: the default agent suggests while others run."""
    print(f"searches of {count} evaluations by {DEFAULT}, whole evaluations")
    for workers, depth, lookahead in ((1, 1, None), (2, 1, None), (2, 2, None), (2, 2, LOOKAHEAD)):
        with started(setup.scorer.for_workers(), workers, depth) as pool:
            study = Study(
                setup.problem, make_agent(DEFAULT, setup.problem, 0), pool, None, lookahead=lookahead
            )
            start = time.perf_counter()
            study.run(count)
            wall = time.perf_counter() - start
        kept = [o.accuracy for o in study.outcomes if o.feasible and o.accuracy is not None]
        order = "deterministic" if lookahead else "as they come"
        print(
            f"  {workers} workers, {depth} deep, {order}: {len(study.entries) / wall:.2f} evaluations/s, "
            f"best {max(kept):.4f}",
            flush=True,
        )


def busy(policy: ResolvedPolicy, actors: int, nodes: int) -> None:
    """Part 3."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": actors, "include_dashboard": False})
    for _ in range(nodes - 1):
        cluster.add_node(num_cpus=actors)
    connect(cluster.address)
    try:
        # at ``nodes`` CPUs each, a node with as many CPUs as there are actors takes its share and no more
        with started(Sleeper(SIMULATED), actors, cpus=float(nodes)) as pool:
            wall = finished(pool, [Job(i, policy) for i in range(EACH * actors)])
            used = len({p.node for p in pool.places})
        print(
            f"{actors} actors on {used} nodes, {SIMULATED:g} s each: busy {EACH * SIMULATED / wall:.1%}, "
            f"{EACH * actors / wall:.1f} evaluations/s",
            flush=True,
        )
    finally:
        disconnect()
        cluster.shutdown()


def controller(setup: Setup, count: int) -> tuple[float, float]:
    """Seconds of the controller per suggestion and per outcome, prices and bar included."""
    agent: Agent = make_agent(DEFAULT, setup.problem, 0)
    asked, told = [], []
    for _ in range(count):
        start = time.process_time()
        suggestions = agent.suggest()
        asked.append(time.process_time() - start)
        for s in suggestions:
            finish = _scored(s.number, s.policy)
            start = time.process_time()
            agent.update(s, outcome_of(setup.problem, finish))
            told.append(time.process_time() - start)
    rest = count // 2
    return statistics.mean(asked[rest:]), statistics.mean(told[rest:])


def _scored(number: int, policy: ResolvedPolicy) -> Finished:
    """A made-up end that depends on the policy alone."""
    value = 0.5 + (int(policy.digest[:6], 16) % 1000) / 2500.0
    return Finished(Job(number, policy), Score(value, 0.0, value, value, 1, 0.0))


def dispatch(policy: ResolvedPolicy, count: int) -> float:
    """Seconds of this process for sending one job and taking its end."""
    with started(Sleeper(0.0), 2) as pool:
        finished(pool, [Job(i, policy) for i in range(20)])
        start = time.process_time()
        finished(pool, [Job(i, policy) for i in range(count)])
        return (time.process_time() - start) / count


def recovery(setup: Setup, evaluations: int, seconds: float, seeds: int) -> None:
    """Part 5."""
    with InlineEvaluator(setup.scorer) as evaluator:
        study = Study(setup.problem, make_agent(DEFAULT, setup.problem, 0), evaluator, None)
        study.run(evaluations)
    plain = [plain_candidate(setup, o) for o in shortlist(setup, study.outcomes, SHORTLIST)]
    metric = setup.task.metric
    found = ", ".join(metric.show(c.score.value) for c in plain)
    whole = metric.show(setup.base_score.value)
    print(f"recovery ({setup.task.name}, {whole}; the {len(plain)} best of {evaluations} policies: {found})")
    print("  seed   Ray Tune: wall s   steps   metric of the best   one process: wall s   steps   the best")
    gains = []
    for seed in range(seeds):
        setup.config = setup.config.model_copy(update={"seed": seed})
        wall, tuned = _recovered_at_once(setup, plain, seconds)
        start = time.perf_counter()
        single = one_by_one(setup, plain, wall, Silent(), None)
        other = time.perf_counter() - start
        best = [found[pick(setup, found)].score.value for found in (tuned, single)]
        gains.append(setup.problem.gain(best[0]) - setup.problem.gain(best[1]))
        steps = [sum(c.steps for c in found) for found in (tuned, single)]
        print(
            f"  {seed:4}   {wall:16.1f}   {steps[0]:5}   {metric.show(best[0]):>18}   {other:19.1f}   "
            f"{steps[1]:5}   {metric.show(best[1]):>8}",
            flush=True,
        )
    print(f"  Ray Tune's best is better by {statistics.mean(gains):+.4f} in the mean")


def _recovered_at_once(setup: Setup, plain: list[Candidate], seconds: float) -> tuple[float, list[Candidate]]:
    """Wall seconds, the start of the workers included, and the candidates after them."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        plan = plan_of(setup, plain, seconds)
        found = at_once(setup, plain, plan, Path(folder) / "recovery" / "trials", Silent(), None)
        return time.perf_counter() - start, found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--quick", action="store_true", help="a tenth of everything")
    options.add_argument("--sleeps", default="0.05,0.5,5")
    options.add_argument("--actors", type=int, default=64)
    options.add_argument("--task", default="digits32")
    options.add_argument("--target", default=TARGET)
    options.add_argument("--evaluations", type=int, default=60)
    options.add_argument("--parts", default="sleeping,real,searching,busy,controller")
    options.add_argument("--recover", type=float, default=45.0, help="seconds of training in part 5")
    options.add_argument("--seeds", type=int, default=3)
    chosen = options.parse_args()
    parts = chosen.parts.split(",")
    sleeps = [float(s) for s in chosen.sleeps.split(",")]
    count, actors = chosen.evaluations, chosen.actors
    if chosen.quick:
        sleeps, count, actors = sleeps[:1], count // 5, actors // 8
    with torch_threads(1):
        values = {"target": chosen.target, "task": chosen.task, "workers": 2, "recover": "0"}
        setup = load_setup(make_config(values))
        policy = setup.base_policy
        connect(cpus=2)
        if "sleeping" in parts:
            sleeping(policy, sleeps, JOBS)
        if "real" in parts:
            real(setup, count)
        if "searching" in parts:
            searching(setup, count)
        sent = dispatch(policy, 200) if "controller" in parts else 0.0
        if "recovery" in parts:
            recovery(setup, count, chosen.recover, chosen.seeds)
        disconnect()
        if "busy" in parts:
            busy(policy, actors, NODES)
        if "controller" in parts:
            extrapolated(*controller(setup, count), sent)


def extrapolated(ask: float, tell: float, sent: float) -> None:
    """Part 4, from seconds of the controller per suggestion, per outcome and per job sent."""
    each = ask + tell + sent
    print(f"controller: {1e3 * ask:.1f} ms a suggestion, {1e3 * tell:.2f} ms an outcome, ", end="")
    print(f"{1e3 * sent:.2f} ms to send a job and take its end")
    print(
        f"{MANY} workers: the agent saturates first, at {1 / each:.0f} evaluations/s; all are busy ", end=""
    )
    print(f"where an evaluation takes {MANY * each:.0f} s or more ({MANY * sent:.1f} s without the agent)")


if __name__ == "__main__":
    main()
