"""Measuring ONNX files with onnxruntime on this machine. Pure ONNX in; every measurement judges itself.

Default session options are used, but for the number of threads: that is how a user loads the file.
All models are run interleaved, so that a change of load or clock meets them alike.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hw_profiles.devices import agent
from hw_profiles.devices.agent import Runner, counted, interleave, made_up_inputs, session_options
from hw_profiles.devices.contract import STABLE_WITHIN, Sample
from hw_profiles.errors import MeasurementError

Inputs = Mapping[str, NDArray[np.generic]]


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

    def scaled(self, factor: float) -> Measurement:
        """The same in another unit of time: what a common network took then over what it takes now."""
        return replace(
            self,
            cpu_min_ms=None if self.cpu_min_ms is None else self.cpu_min_ms * factor,
            cpu_median_ms=None if self.cpu_median_ms is None else self.cpu_median_ms * factor,
            wall_min_ms=self.wall_min_ms * factor,
            wall_p50_ms=self.wall_p50_ms * factor,
            wall_p95_ms=self.wall_p95_ms * factor,
        )


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
    for _ in interleave([(runner, repeats, rounds) for runner in runners]):
        pass
    peaks = [peak_memory(model, threads) if memory else None for model in models]
    return [_judge(runner, threads, peak) for runner, peak in zip(runners, peaks, strict=True)]


def _load(model: bytes | Path, inputs: Inputs | None, threads: int) -> Runner:
    try:
        return Runner(model, threads, inputs)
    except Exception as error:
        name = "the model" if isinstance(model, bytes) else repr(model.name)
        raise MeasurementError(f"onnxruntime cannot run {name}: {str(error).splitlines()[0]}") from error


def _judge(runner: Runner, threads: int, peak: int | None) -> Measurement:
    cpu, wall = (np.array(seconds) * 1e3 for seconds in counted(runner.cpu, runner.wall))
    judged, clock = (cpu, "CPU") if threads == 1 and len(cpu) else (wall, "wall")
    limit = STABLE_WITHIN[clock.lower()]
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
        cpu_min_ms=float(cpu.min()) if clock == "CPU" else None,
        cpu_median_ms=float(np.median(cpu)) if clock == "CPU" else None,
        wall_min_ms=float(wall.min()),
        wall_p50_ms=float(np.median(wall)),
        wall_p95_ms=float(np.quantile(wall, 0.95)),
        load_ms=runner.load_seconds * 1e3,
        peak_memory_bytes=peak,
        stable=stable,
        why=why,
    )


def measurement_of(sample: Sample) -> Measurement:
    """A device's sample, judged. Raises MeasurementError for one that failed or counts instructions."""
    if sample.error or sample.unit != "ms" or not sample.wall:
        why = sample.error or f"{sample.unit} are no time"
        raise MeasurementError(f"no latency of {sample.key!r}: {why}")
    stable, why = sample.verdict()
    wall, cpu = np.array(sample.wall), np.array(sample.cpu)
    return Measurement(
        threads=sample.threads,
        runs=len(wall),
        cpu_min_ms=float(cpu.min()) if len(cpu) else None,
        cpu_median_ms=float(np.median(cpu)) if len(cpu) else None,
        wall_min_ms=float(wall.min()),
        wall_p50_ms=float(np.median(wall)),
        wall_p95_ms=float(np.quantile(wall, 0.95)),
        load_ms=sample.load_ms or 0.0,
        peak_memory_bytes=sample.peak_memory_bytes,
        stable=stable,
        why=why,
    )


def peak_memory(model: bytes | Path, threads: int = 1) -> int:
    """Bytes that loading and running a network adds to the peak of a fresh process that has onnxruntime."""
    with tempfile.TemporaryDirectory() as folder:
        path = model if isinstance(model, Path) else Path(folder) / "model.onnx"
        if isinstance(model, bytes):
            path.write_bytes(model)
        try:
            return agent.peak_memory(path, threads)
        except RuntimeError as error:
            raise MeasurementError(f"measuring memory of {path.name!r} failed: {error}") from error


__all__ = [
    "Inputs",
    "Measurement",
    "made_up_inputs",
    "measure_latency",
    "measurement_of",
    "peak_memory",
    "session_options",
]
