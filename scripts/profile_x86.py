"""Measure onnxruntime's kernels on this machine, in the context of whole networks.

Every probe network (random widths, float, integer and mixed) is measured twice over: as a whole by the
minimum of thread CPU time, all probes interleaved in rounds, and kernel by kernel under the profiler. The
profiler adds a few microseconds a kernel; what it adds is spread over the kernels and taken off, so that the
kernels of a network sum to what the network takes.

    .venv/bin/python scripts/profile_x86.py            # about ten minutes, one thread
    .venv/bin/python scripts/fit_x86.py                # fits the constants, prints held-out errors

Writes hw_profiles/data/x86_kernels.csv.gz, one row per kernel, and x86_networks.csv, one row per network;
with --threads x86_threads.csv, networks with one thread and with two, for which the machine should be idle;
with --dynamic x86_dynamic_kernels.csv.gz and x86_dynamic_networks.csv.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from hw_profiles.kernel import COLUMNS, KernelBatch
from hw_profiles.measure import made_up_inputs, measure_latency, session_options
from hw_profiles.onnx_kernels import execute
from hw_profiles.probes import probe

DATA = Path(__file__).resolve().parent.parent / "hw_profiles" / "data"
#: Networks by family: how many seeds of each.
PLAN = {
    "resnet20": 24, "resnet20/int8": 32, "resnet20/mixed": 18,
    "resnet": 24, "resnet/int8": 28, "resnet/mixed": 16,
    "plain": 24, "plain/int8": 24, "plain/mixed": 12,
    "mobile": 30, "mobile/int8": 28, "mobile/mixed": 12,
    "factorised": 28, "factorised/int8": 32, "factorised/mixed": 14,
    "lenet": 14, "lenet/int8": 14,
    "mlp": 8, "mlp/int8": 8,
    "signal": 8, "signal/int8": 8,
    "encoder": 12, "encoder/int8": 10,
}  # fmt: skip
#: With --dynamic: float ones tell at which pace the machine runs today (scripts/fit_x86_dynamic.py).
DYNAMIC_PLAN = {"text/dynamic": 32, "text": 16, "text/int8": 8}
#: Least seconds of runs per network and pass; small networks run often, large ones at least four times.
_PASS_SECONDS = 0.12
_PROFILED_RUNS = 40


@dataclass
class Probe:
    """One network under measurement."""

    name: str
    model: bytes
    session: Any
    feed: dict[str, Any]
    best: float = float("inf")
    batch: KernelBatch | None = None
    kernel_us: list[np.ndarray] = field(default_factory=list)

    def run_for(self, seconds: float) -> None:
        """Run for a while and keep the least CPU time."""
        until, runs = time.perf_counter() + seconds, 0
        while runs < 4 or (time.perf_counter() < until and runs < 200):
            start = time.thread_time()
            self.session.run(None, self.feed)
            self.best = min(self.best, time.thread_time() - start)
            runs += 1

    def profile(self) -> None:
        """Some runs more under the profiler."""
        execution = execute(self.model, runs=_PROFILED_RUNS)
        self.batch = execution.batch
        self.kernel_us.append(execution.kernel_us)


def kernel_times(kernel_us: np.ndarray, whole_us: float) -> np.ndarray:
    """Microseconds of every kernel, (K,): the calm fifth of its profiled runs, made to sum to the whole."""
    times = np.sort(kernel_us, axis=0)
    calm = times[: max(1, len(times) // 5)].mean(axis=0) + 0.5  # the profiler rounds down to a microsecond
    added = max(0.0, (calm.sum() - whole_us) / len(calm))
    trimmed = np.maximum(calm - min(added, float(calm.min())), 0.2)
    return np.asarray(trimmed * (whole_us / trimmed.sum()))


def main() -> None:
    """Measure all probes and write the two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the networks, for a quick trial")
    parser.add_argument("--out", type=Path, default=DATA)
    parser.add_argument(
        "--threads", action="store_true", help="only x86_threads.csv: two threads against one"
    )
    parser.add_argument(
        "--dynamic", action="store_true", help="only networks that find ranges of activations as they run"
    )
    arguments = parser.parse_args()
    if arguments.threads:
        write_threads(arguments.out, arguments.rounds)
        return
    probes = []
    plan, prefix = (DYNAMIC_PLAN, "x86_dynamic") if arguments.dynamic else (PLAN, "x86")
    for family, count in plan.items():
        for seed in range(max(1, round(count * arguments.scale))):
            model = probe(family, seed)
            session = onnxruntime.InferenceSession(
                model, session_options(1), providers=["CPUExecutionProvider"]
            )
            probes.append(Probe(f"{family}#{seed}", model, session, made_up_inputs(session)))
    for i in range(arguments.rounds):
        for one in probes:
            one.profile()
            one.run_for(_PASS_SECONDS)
        print(f"round {i + 1} of {arguments.rounds}: {len(probes)} networks", flush=True)
        write(probes, arguments.out, prefix)


def write_threads(folder: Path, rounds: int) -> None:
    """Least wall time of some probes with one and two threads, interleaved."""
    names = [(family, seed) for family in PLAN for seed in range(2)]
    models = [probe(family, seed) for family, seed in names]
    best = {(i, t): float("inf") for i in range(len(models)) for t in (1, 2)}
    for _ in range(rounds):
        for i, model in enumerate(models):
            for threads, found in ((t, measure_latency([model], threads=t, repeats=60)[0]) for t in (1, 2)):
                best[i, threads] = min(best[i, threads], found.wall_min_ms * 1e3)
    with (folder / "x86_threads.csv").open("w", encoding="utf-8") as file:
        file.write("# measured by scripts/profile_x86.py --threads; least wall time\n")
        file.write("network,one_us,two_us\n")
        for i, (family, seed) in enumerate(names):
            file.write(f"{family}#{seed},{best[i, 1]:.2f},{best[i, 2]:.2f}\n")


def write(probes: list[Probe], folder: Path, prefix: str = "x86") -> None:
    """The two tables, deterministic for given measurements (no time stamp in the archive)."""
    version = onnxruntime.__version__
    header = f"# measured by scripts/profile_x86.py; onnxruntime {version}; one thread; minimum of CPU time"
    kernels = io.StringIO()
    kernels.write(header + "\n")
    writer = csv.writer(kernels, lineterminator="\n")
    writer.writerow(["network", "op", "domain", "precision", "fused", "weight_bearing", *COLUMNS, "us"])
    with (folder / f"{prefix}_networks.csv").open("w", encoding="utf-8") as networks:
        networks.write(header + "\nnetwork,us\n")
        for one in probes:
            if one.batch is None:
                continue
            networks.write(f"{one.name},{one.best * 1e6:.2f}\n")
            times = kernel_times(np.concatenate(one.kernel_us), one.best * 1e6)
            for k, kind in enumerate(one.batch.kinds):
                shape = [f"{one.batch[c][0, k]:.10g}" for c in COLUMNS]
                flag = int(kind.weight_bearing)
                row = [one.name, kind.op, kind.domain, kind.precision, "+".join(kind.fused), flag]
                writer.writerow([*row, *shape, f"{times[k]:.2f}"])
    with (
        (folder / f"{prefix}_kernels.csv.gz").open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as packed,
    ):
        packed.write(kernels.getvalue().encode())


if __name__ == "__main__":
    main()
