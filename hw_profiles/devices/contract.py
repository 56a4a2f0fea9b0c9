"""The contract of devices: works in, raw samples out. Pure values; every back end answers alike.

A device owns one runtime on one machine. It runs ONNX files as a user would load them (default session, but
for the number of threads), all works of one call interleaved, and returns what it saw, not what it thinks
of it: judging (`Sample.verdict`) and storing (`hw_profiles.profiles`) happen here.
"""

from __future__ import annotations

import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from hw_profiles.devices.agent import made_up

Unit = Literal["ms", "instructions"]

#: Halves of a sample that disagree by more than this are called unstable: CPU time, wall time, instructions.
STABLE_WITHIN = {"cpu": 0.03, "wall": 0.10, "instructions": 0.001}


@dataclass(frozen=True)
class DeviceFacts:
    """What a device is; the same until it is set up otherwise. Clock in GHz, memory in bytes.

    `emulated` names what emulates it: milliseconds are then the emulation's, and no profile of the real one.
    """

    device: str
    chip: str
    cores: int
    isa: str
    runtime: str
    runtime_version: str
    clock_ghz: float | None = None
    memory_bytes: int | None = None
    system: str = ""
    emulated: str = ""


@dataclass(frozen=True)
class Condition:
    """The state of a device at one moment; None where it does not tell."""

    clock_ghz: float | None = None
    temperature_c: float | None = None
    governor: str | None = None
    throttled: bool | None = None
    load: float | None = None


@dataclass(frozen=True)
class Work:
    """One network to be measured: `runs` timed runs or more over `rounds` interleaved rounds.

    `inputs` feeds it; None lets the device make up standard-normal values of seed 0. `kernels` asks for the
    runtime's own record of every kernel too, `answers` for the outputs of the first run, `memory` for the
    peak that loading and running adds to a fresh process. Works of one call have keys of their own.
    """

    key: str
    model: bytes = field(repr=False)
    threads: int = 1
    runs: int = 48
    rounds: int = 4
    kernels: bool = False
    answers: bool = False
    memory: bool = False
    inputs: Mapping[str, NDArray[Any]] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class KernelRecord:
    """What the runtime told of its kernels: the optimised graph (ONNX bytes) and its profiler's events.

    `hw_profiles.onnx_kernels.read_record` makes kernels and microseconds of it.
    """

    optimised: bytes = field(repr=False)
    events: tuple[Mapping[str, Any], ...] = field(repr=False)
    runs: int


@dataclass(frozen=True)
class Sample:
    """What one work gave: raw runs in order, in `unit`. `error` in place of runs where it failed.

    `cpu` is CPU time of the calling thread (one thread only, else empty), `wall` the clock on the wall;
    instruction counts stand in `wall`, with `cpu` empty.
    """

    key: str
    unit: Unit
    threads: int
    cpu: tuple[float, ...] = ()
    wall: tuple[float, ...] = ()
    load_ms: float | None = None
    peak_memory_bytes: int | None = None
    before: Condition = Condition()
    after: Condition = Condition()
    record: KernelRecord | None = None
    outputs: tuple[NDArray[Any], ...] | None = field(default=None, repr=False)
    error: str = ""

    @property
    def clock(self) -> str:
        """What `best` is a figure of: "cpu", "wall" or "instructions"."""
        if self.unit == "instructions":
            return "instructions"
        return "cpu" if self.cpu else "wall"

    @property
    def runs(self) -> tuple[float, ...]:
        """The runs that count: CPU time with one thread, else the wall clock."""
        return self.cpu or self.wall

    @property
    def best(self) -> float:
        """Least run, the figure that repeats best."""
        return min(self.runs)

    @property
    def median(self) -> float:
        """Median run."""
        return statistics.median(self.runs)

    def verdict(self) -> tuple[bool, str]:
        """(stable, why): halves of the runs agree, the device did not throttle or change its clock."""
        if self.error or not self.runs:
            return False, self.error or "no runs"
        half = len(self.runs) // 2
        if not half:
            return False, "one run only: repeat it"
        first, second = min(self.runs[:half]), min(self.runs[half:])
        apart = abs(first - second) / second
        limit = STABLE_WITHIN[self.clock]
        if apart > limit:
            return (
                False,
                f"unstable, because halves of {len(self.runs)} runs are {apart:.1%} apart ({limit:.1%})",
            )
        if self.disturbed:
            return False, self.disturbed
        return True, f"halves of {len(self.runs)} runs {apart:.1%} apart"

    @property
    def disturbed(self) -> str:
        """What the device itself says against the sample, "" for nothing."""
        if self.before.throttled or self.after.throttled:
            return "unstable, because the device throttled"
        clocks = (self.before.clock_ghz, self.after.clock_ghz)
        if clocks[0] and clocks[1] and abs(clocks[0] - clocks[1]) > 0.05 * clocks[0]:
            return f"unstable, because the clock went from {clocks[0]:.2f} to {clocks[1]:.2f} GHz"
        return ""


class Device(ABC):
    """A place where networks run and are measured. A context manager; subclasses are final.

    Raises `DeviceError` (exit code 5) when it cannot be reached, refuses, or answers nonsense. A network that
    does not run there is a `Sample` with `error`, and takes nothing else down.
    """

    #: What its samples are in.
    unit: Unit = "ms"

    @abstractmethod
    def facts(self) -> DeviceFacts:
        """What the device is. Cheap after the first call."""

    @abstractmethod
    def condition(self) -> Condition:
        """Its state now."""

    @abstractmethod
    def measure(self, works: Sequence[Work]) -> Iterator[Sample]:
        """Samples of the works in any order, each as soon as it is known; interleaved where several."""

    def close(self) -> None:
        """Leave nothing behind."""
        return

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


__all__ = ["Condition", "Device", "DeviceFacts", "KernelRecord", "Sample", "Unit", "Work", "made_up"]
