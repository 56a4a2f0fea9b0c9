"""A device whose truth is known: for tests, for conformance, and to try a study without a board."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, final

import numpy as np

from hw_profiles.devices.agent import Runner, record_kernels
from hw_profiles.devices.contract import Condition, Device, DeviceFacts, KernelRecord, Sample, Work
from hw_profiles.errors import DeviceError

#: What may happen in place of an undisturbed sample. "unplugged" and "crashed" raise DeviceError once;
#: "throttled" doubles the time and says so; "shared" takes 1.7 times as long throughout and says nothing;
#: "unstable" makes halves disagree; "failed" is an error sample.
Trouble = Literal["unplugged", "crashed", "throttled", "shared", "unstable", "failed"]
Truth = Callable[[Work], float]

_SIMULATED = DeviceFacts("simulated", "simulated chip", 4, "simulated", "onnxruntime", "0.0", 1.5, 1 << 30)


def by_size(work: Work) -> float:
    """The default truth: 0.02 ms and 1 ms per MB of model, by Amdahl's law 60 % of it parallel."""
    return (0.02 + len(work.model) * 1e-6) * (0.4 + 0.6 / work.threads)


@final
class SimulatedDevice(Device):
    """Latency is `truth(work)` ms, slower by noise (relative, one-sided) and drift (relative, by sample).

    `trouble` maps the number of a sample, counted from 0 over the device's life, to what happens to it.
    Times follow from `seed`, the number of the sample and the work. Answers, optimised graphs and the
    kernels' shares of the time are those of the onnxruntime here, made when a work asks for them.
    """

    def __init__(
        self,
        truth: Truth = by_size,
        *,
        noise: float = 0.01,
        drift: float = 0.0,
        trouble: Mapping[int, Trouble] | None = None,
        seed: int = 0,
        facts: DeviceFacts = _SIMULATED,
    ) -> None:
        self.truth, self.noise, self.drift, self.seed = truth, noise, drift, seed
        self.trouble = dict(trouble or {})
        self.given = 0
        self._facts = facts

    def facts(self) -> DeviceFacts:
        """As told at the start."""
        return self._facts

    def condition(self) -> Condition:
        """Always at its clock, cool and idle."""
        return Condition(self._facts.clock_ghz, 45.0, "performance", False, 0.0)

    def measure(self, works: Sequence[Work]) -> Iterator[Sample]:
        """One sample after the other; trouble comes when its number is up."""
        for work in works:
            number, self.given = self.given, self.given + 1
            what = self.trouble.get(number)
            if what in ("unplugged", "crashed"):
                raise DeviceError(f"{self._facts.device} is gone: {what} at sample {number}")
            error = "it does not run here" if what == "failed" else _unreadable(work.model)
            if error:
                yield Sample(work.key, self.unit, work.threads, error=error)
            else:
                yield self._sample(work, number, what)

    def _sample(self, work: Work, number: int, what: Trouble | None) -> Sample:
        count = max(1, work.runs // work.rounds) * work.rounds
        digest = hashlib.sha256(work.model).digest()
        rng = np.random.default_rng([self.seed, number, int.from_bytes(digest[:4], "big")])
        factors = (1.0 + self.drift * number) * (1.0 + np.abs(rng.normal(0.0, self.noise, count)))
        if what == "throttled":
            factors = factors * 2.0
        if what == "shared":
            factors = factors * 1.7
        if what == "unstable":
            factors[: count // 2] *= 1.5
        times = tuple(float(ms) for ms in self.truth(work) * factors)
        state = self.condition()
        sample = Sample(
            key=work.key,
            unit=self.unit,
            threads=work.threads,
            cpu=times if work.threads == 1 else (),
            wall=times,
            load_ms=5.0,
            peak_memory_bytes=2 * len(work.model) if work.memory else None,
            before=state,
            after=replace(state, throttled=what == "throttled"),
        )
        return self._with_runtime(work, sample) if work.kernels or work.answers else sample

    def _with_runtime(self, work: Work, sample: Sample) -> Sample:
        """Adds what the onnxruntime here says, or its error."""
        try:
            runner = Runner(work.model, 1, work.inputs)
            outputs = tuple(np.asarray(value) for value in runner.outputs) if work.answers else None
            record = self._record(work, runner) if work.kernels else None
        except Exception as error:
            text = (str(error).splitlines() or [type(error).__name__])[0]
            return Sample(work.key, self.unit, work.threads, error=text)
        return replace(sample, outputs=outputs, record=record)

    def _record(self, work: Work, runner: Runner) -> KernelRecord:
        """One run's events, their times scaled so that they sum to the truth."""
        with tempfile.TemporaryDirectory() as folder:
            optimised, events = record_kernels(work.model, runner.feed, 1, 1, Path(folder))
        total = math.fsum(event["dur"] for event in events) + len(events)
        scale = self.truth(work) * 1e3 / max(total, 1.0)
        return KernelRecord(
            optimised, tuple({**event, "dur": (event["dur"] + 1) * scale} for event in events), 1
        )


def _unreadable(model: bytes) -> str:
    import onnx

    try:
        return "" if onnx.load_from_string(model).graph.node else "the model has no nodes"
    except Exception as error:
        return f"no model: {str(error).splitlines()[0]}"


__all__ = ["SimulatedDevice", "Trouble", "Truth", "by_size"]
