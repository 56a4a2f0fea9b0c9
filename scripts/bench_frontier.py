#!/usr/bin/env python3
"""The frontier on mnist5k-distorted: accuracy below plain INT8's latency, measured here in one run.

    scripts/bench_frontier.py [--shares 0.7,0.5] [--seeds 0,1,2] [--search 155s] [--recover 168s] [--agent X]

For every share and seed one run of `search --target local --measure active` whose budget is that share of
plain INT8's measured latency (onnxruntime's quantize_static, u8 activations, s8 weights per channel). What it
delivers is then timed interleaved with the float network and plain INT8 (default sessions, one thread,
minimum of CPU time) and scored by onnxruntime on the test data; so is the front of the first run, without
recovery.
The defaults leave room for what is measured before the search and for the recovery's last step: 180 s each.
The peers' points are those of pruning, factorisation and quantisation tools with the same recipe on another
machine with AVX512-VNNI, one seed each, relative to its own plain INT8.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench_local import Entry, answers, plain_int8

from compressors.apply import compress
from compressors.policy import ResolvedPolicy
from hw_profiles.measure import measure_latency
from search import engine
from search.config import make_config
from search.errors import TailorbirdError
from search.export_onnx import export_model
from search.result import RunResult
from search.setup import Setup, load_setup

TASK = "mnist5k-distorted"
#: (what, test accuracy in percent, latency relative to plain INT8 in the same run)
PEERS = (
    ("plain INT8", 93.3, 1.0),
    ("TPE on measured latency + fine-tuning + INT8", 92.9, 0.92),
    ("magnitude in steps of 16 + fine-tuning + INT8", 90.9, 0.70),
)
GOAL_SHARE, GOAL = 0.70, 92.5
REPEATS = 400


def timed(setup: Setup, models: list[bytes]) -> list[float]:
    """Milliseconds of each file, interleaved."""
    names = setup.space.structure.graph.inputs
    feed = {n: x[:1].numpy() for n, x in zip(names, setup.task.example, strict=True)}
    return [m.latency_ms for m in measure_latency(models, [feed] * len(models), repeats=REPEATS)]


def searched(limit_ms: float, seed: int, args: argparse.Namespace, folder: Path) -> tuple[RunResult, float]:
    """One run under a budget in milliseconds, with its wall seconds."""
    values = {"target": "local", "task": TASK, "max_latency": f"{limit_ms:.5f}ms", "seed": seed,
              "evaluations": args.evaluations, "timeout": args.search, "recover": args.recover,
              "measure": "active",
              "out": str(folder / f"{limit_ms:.5f}-{seed}")}  # fmt: skip
    if args.agent is not None:
        values["agent"] = args.agent
    begun = time.monotonic()
    return engine.run(make_config(values)), time.monotonic() - begun


def front_of(result: RunResult, setup: Setup) -> list[tuple[str, bytes]]:
    """The front's networks as the search scored them, without recovery."""
    found = []
    for p in result.results["points"]:
        policy = ResolvedPolicy.from_dict(p["policy"])
        model = export_model(compress(setup.scorer.network, policy, setup.scorer.numerics))
        found.append((f"front {p['number']}, not recovered", model))
    return found


def show(setup: Setup, models: list[tuple[str, bytes]]) -> list[tuple[float, float]]:
    """Print (share of plain INT8's latency, test accuracy in percent) of every network, and return them."""
    entries = [Entry(n, m, answers(setup, m)) for n, m in models]
    times = timed(setup, [m for _, m in models])
    int8 = times[1]
    rows = [(ms / int8, 100 * float(e.scores.mean())) for e, ms in zip(entries, times, strict=True)]
    for entry, ms, (share, accuracy) in zip(entries, times, rows, strict=True):
        print(f"    {entry.name:28}{ms:9.4f} ms{share:8.3f}x{accuracy:9.2f} %", flush=True)
    return rows


def main() -> int:
    """Every share and seed; 0 when the goal at 0.70x is reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shares", default="0.7,0.5", help="of plain INT8's latency")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--search", default="155s")
    parser.add_argument("--recover", default="168s")
    parser.add_argument("--evaluations", type=int, default=100_000, help="at most; time ends the search")
    parser.add_argument("--agent", help="another agent than the default")
    args = parser.parse_args()
    setup = load_setup(make_config({"target": "local", "task": TASK}))
    base = export_model(compress(setup.scorer.network, setup.base_policy, setup.scorer.numerics))
    int8 = plain_int8(setup, base)
    reached: dict[float, list[tuple[float, float]]] = {}
    for name, accuracy, share in PEERS:
        print(f"peer  {name:48}{share:6.2f}x{accuracy:7.1f} %")
    with tempfile.TemporaryDirectory() as folder:
        for share in map(float, args.shares.split(",")):
            for i, seed in enumerate(map(int, args.seeds.split(","))):
                limit = share * timed(setup, [base, int8])[1]
                print(f"{share:.2f}x of plain INT8 ({limit:.4f} ms), seed {seed}", flush=True)
                try:
                    result, seconds = searched(limit, seed, args, Path(folder))
                except TailorbirdError as problem:
                    print(f"    {problem}", flush=True)
                    continue
                parts = ", ".join(f"{k} {v:.0f} s" for k, v in (result.results.get("timings") or {}).items())
                print(f"    {len(result.results['steps'])} evaluations; {parts}; wall {seconds:.0f} s")
                delivered = (result.folder / "model.onnx").read_bytes()
                more = front_of(result, setup) if i == 0 else []
                models = [("uncompressed", base), ("plain INT8", int8), ("delivered", delivered), *more]
                reached.setdefault(share, []).append(show(setup, models)[2])
    for share, rows in reached.items():
        shares, accuracies = zip(*rows, strict=True)
        middle = f"{statistics.median(accuracies):.2f} % at {statistics.median(shares):.3f}x"
        worst = f"{min(accuracies):.2f} %, {max(shares):.3f}x"
        print(f"{share:.2f}x: median of {len(rows)} seeds {middle}, worst {worst}")
    held = [a for s, a in reached.get(GOAL_SHARE, []) if s <= GOAL_SHARE]
    good = len(held) > 0 and statistics.median(a for _, a in reached[GOAL_SHARE]) >= GOAL
    print(f"goal: at least {GOAL} % at no more than {GOAL_SHARE}x, median: {'reached' if good else 'missed'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
