"""Measuring ONNX files with onnxruntime on this machine. Pure ONNX in; every measurement judges itself.

Default session options are used, but for the number of threads: that is how a user loads the file.
All models are run interleaved, so that a change of load or clock meets them alike.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hw_profiles.errors import MeasurementError

Inputs = Mapping[str, NDArray[np.generic]]

#: Halves of a measurement that disagree by more than this are called unstable.
STABLE_WITHIN = 0.03
#: With several threads the wall clock counts, and that one is noisier.
STABLE_WALL_WITHIN = 0.10
_WARM_UP_SECONDS = 1.0
_NUMPY_TYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(int32)": np.int32,
    "tensor(int64)": np.int64, "tensor(bool)": np.bool_,
}  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """Latency of one network, milliseconds per run, lower is better; all of it measured, nothing predicted.

    `cpu_*` is CPU time of the calling thread (one thread only, else None), `wall_*` the clock on the wall.
    `peak_memory_bytes` is what loading and running added to a fresh process, if asked for.
    """

    threads: int
    runs: int
    cpu_min_ms: float | None
    cpu_median_ms: float | None
    wall_min_ms: float
    wall_p50_ms: float
    wall_p95_ms: float
    load_ms: float
    peak_memory_bytes: int | None
    stable: bool
    why: str
    source: Literal["measured"] = "measured"

    @property
    def latency_ms(self) -> float:
        """The figure that repeats best: minimum CPU time with one thread, minimum wall time with several."""
        return self.cpu_min_ms if self.cpu_min_ms is not None else self.wall_min_ms


@dataclass
class _Runner:
    """A loaded network and the times of its runs, seconds."""

    session: Any
    feed: dict[str, NDArray[np.generic]]
    load: float
    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def once(self) -> float:
        """One run; returns its wall seconds."""
        wall, cpu = time.perf_counter(), time.thread_time()
        self.session.run(None, self.feed)
        self.cpu.append(time.thread_time() - cpu)
        self.wall.append(time.perf_counter() - wall)
        return self.wall[-1]

    def warm_up(self) -> None:
        """Run until three runs in a row bring no new minimum worth speaking of, or a second is over."""
        best, calm, until = float("inf"), 0, time.perf_counter() + _WARM_UP_SECONDS
        while calm < 3 and time.perf_counter() < until:
            taken = self.once()
            calm = calm + 1 if taken > best * 0.98 else 0
            best = min(best, taken)
        self.cpu.clear()
        self.wall.clear()


def measure_latency(
    models: Sequence[bytes | Path],
    inputs: Sequence[Inputs | None] | None = None,
    *,
    threads: int = 1,
    repeats: int = 50,
    rounds: int = 4,
    memory: bool = False,
) -> list[Measurement]:
    """Measure networks interleaved: `rounds` rounds of `repeats / rounds` runs of every network in turn.

    `inputs[i]` feeds model i; None makes up standard-normal values (free dimensions become 1).
    """
    if inputs is not None and len(inputs) != len(models):
        raise MeasurementError(f"{len(inputs)} inputs for {len(models)} models: give one per model, or None")
    runners = [_load(model, None if inputs is None else inputs[i], threads) for i, model in enumerate(models)]
    for runner in runners:
        runner.warm_up()
    for _ in range(rounds):
        for runner in runners:
            for _ in range(max(1, repeats // rounds)):
                runner.once()
    peaks = [peak_memory(model, threads) if memory else None for model in models]
    return [_judge(runner, threads, peak) for runner, peak in zip(runners, peaks, strict=True)]


def session_options(threads: int) -> Any:
    """Default session options but for the number of threads and the log level."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return options


def made_up_inputs(session: Any, seed: int = 0) -> dict[str, NDArray[np.generic]]:
    """Standard-normal (float) or zero (integer) inputs for a session; free dimensions become 1."""
    rng = np.random.default_rng(seed)
    feed: dict[str, NDArray[np.generic]] = {}
    for wanted in session.get_inputs():
        shape = [d if isinstance(d, int) and d > 0 else 1 for d in wanted.shape]
        dtype = np.dtype(_NUMPY_TYPES.get(wanted.type, np.float32))
        values = rng.standard_normal(shape) if dtype.kind == "f" else np.zeros(shape)
        feed[wanted.name] = values.astype(dtype)
    return feed


def _load(model: bytes | Path, inputs: Inputs | None, threads: int) -> _Runner:
    import onnxruntime

    start = time.perf_counter()
    source = model if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(
            source, session_options(threads), providers=["CPUExecutionProvider"]
        )
        load = time.perf_counter() - start
        feed = made_up_inputs(session) if inputs is None else dict(inputs)
        session.run(None, feed)
    except Exception as error:
        name = "the model" if isinstance(model, bytes) else repr(model.name)
        raise MeasurementError(f"onnxruntime cannot run {name}: {str(error).splitlines()[0]}") from error
    return _Runner(session, feed, load)


def _judge(runner: _Runner, threads: int, peak: int | None) -> Measurement:
    wall = np.array(runner.wall) * 1e3
    cpu = np.array(runner.cpu) * 1e3
    judged, limit, clock = (cpu, STABLE_WITHIN, "CPU") if threads == 1 else (wall, STABLE_WALL_WITHIN, "wall")
    half = len(judged) // 2
    first, second = float(judged[:half].min(initial=np.inf)), float(judged[half:].min())
    apart = abs(first - second) / second if half else float("inf")
    stable = apart <= limit
    why = f"minima of both halves of {len(judged)} runs: {apart:.1%} apart in {clock} time, limit {limit:.0%}"
    if not half:
        why = "one run only: repeat it"
    return Measurement(
        threads=threads,
        runs=len(wall),
        cpu_min_ms=float(cpu.min()) if threads == 1 else None,
        cpu_median_ms=float(np.median(cpu)) if threads == 1 else None,
        wall_min_ms=float(wall.min()),
        wall_p50_ms=float(np.median(wall)),
        wall_p95_ms=float(np.quantile(wall, 0.95)),
        load_ms=runner.load * 1e3,
        peak_memory_bytes=peak,
        stable=stable,
        why=why,
    )


def peak_memory(model: bytes | Path, threads: int = 1) -> int:
    """Bytes that loading and running a network adds to the peak of a fresh process that has onnxruntime."""
    with tempfile.TemporaryDirectory() as folder:
        path = model if isinstance(model, Path) else Path(folder) / "model.onnx"
        if isinstance(model, bytes):
            path.write_bytes(model)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-m", "hw_profiles.measure", str(path), str(threads)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise MeasurementError(
            f"measuring memory of {path.name!r} failed: {done.stderr.strip().splitlines()[-1]}"
        )
    return int(json.loads(done.stdout)["peak_memory_bytes"])


def _peak_of_this_process() -> int:
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _memory_main(path: str, threads: int) -> None:
    import onnxruntime  # noqa: F401  its own memory is not the network's

    before = _peak_of_this_process()
    runner = _load(Path(path), None, threads)
    runner.once()
    sys.stdout.write(json.dumps({"peak_memory_bytes": _peak_of_this_process() - before}))


def spread(values: Sequence[float]) -> float:
    """Robust relative spread: median absolute deviation over the median."""
    middle = statistics.median(values)
    return statistics.median(abs(v - middle) for v in values) / middle


if __name__ == "__main__":
    _memory_main(sys.argv[1], int(sys.argv[2]))
