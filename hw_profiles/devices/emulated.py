"""Processors that are not here, emulated: the kernels their runtime runs, their instructions, their answers.

`EmulatedArm("cortex-a72")` runs the arm64 onnxruntime under Debian's qemu-user; onnxruntime believes to be
on that core and takes that core's kernels. What is counted are executed instructions, **not time**: caches,
DRAM, and how many instructions a cycle takes are not emulated. A count says which choice (float or integer,
which rounding of channels) gives a core less to do; it repeats within 0.1 %.

    with EmulatedArm("cortex-a72") as device:
        for sample in device.measure([Work("net", model, runs=4)]):
            sample.best, sample.by_class("dot")

Set-up, once: `apt-get install qemu-user debootstrap gcc`, then `python scripts/arm_sysroot.py`. No further
Python package is needed. `EmulatedX86` needs qemu-user and gcc alone: it runs this machine's onnxruntime on
another x86-64.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from hw_profiles.devices.contract import Condition, Device, DeviceFacts, KernelRecord, Sample, Unit, Work
from hw_profiles.devices.emulation import (
    CLASSES,
    Guest,
    Machine,
    arm_machine,
    stored_arrays,
    x86_machine,
)
from hw_profiles.devices.sysroot import CORES, Sysroot, compile_counter, core_named, default_sysroot
from hw_profiles.errors import DeviceError

#: Runs before those that count: the first allocates the arena, the second settles it.
_WARM_UP = 2
#: Looks at the clock before the first and, at least, after the last kernel of a run (onnxruntime 1.32): now
#: and then a run ends with more.
_MARKS_BEFORE, _MARKS_AFTER = 3, 5
#: Kernels are nearly all of a run; less means that the looks at the clock are not where we think.
_LEAST_SHARE = 0.7


@dataclass(frozen=True)
class InstructionSample(Sample):
    """A sample in instructions: `wall` has all of each run, `counts` the same runs by class.

    `counts` is one row a run in the order of `CLASSES`. A class is no part of a sum: a vector load counts as
    "all", "load_store" and "vector_memory". On x86 only "all" is known, the rest is 0.
    """

    counts: tuple[tuple[int, ...], ...] = ()

    def by_class(self, name: str) -> float:
        """Median executed instructions of one class in a run. Raises KeyError for a name not in CLASSES."""
        if name not in CLASSES:
            raise KeyError(f"no class {name!r} of instructions; there are {', '.join(CLASSES)}")
        return float(statistics.median(row[CLASSES.index(name)] for row in self.counts))

    @property
    def classes(self) -> dict[str, float]:
        """Median executed instructions of a run by class."""
        return {name: self.by_class(name) for name in CLASSES} if self.counts else {}


@dataclass
class _Entry:
    """One work under way."""

    work: Work
    number: int
    counts: list[tuple[int, ...]] = field(default_factory=list)
    outputs: tuple[NDArray[Any], ...] | None = None
    record: KernelRecord | None = None
    error: str = ""

    def sample(self) -> InstructionSample:
        work, counts = self.work, () if self.error else tuple(self.counts)
        return InstructionSample(
            work.key,
            "instructions",
            work.threads,
            wall=tuple(float(row[0]) for row in counts),
            record=None if self.error else self.record,
            outputs=None if self.error else self.outputs,
            error=self.error,
            counts=counts,
        )


class _Emulated(Device):
    """What both emulated processors do: one guest process, kept until `close`, started anew if it dies."""

    unit: ClassVar[Unit] = "instructions"  # type: ignore[misc]

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._guest: Guest | None = None
        self._numbers = 0

    @abstractmethod
    def _machine(self) -> Machine:
        """What to start; raises DeviceError if it is not set up."""

    def check(self) -> None:
        """Raise DeviceError, with what to do, if the emulator is not set up; starts nothing."""
        self._machine()

    def condition(self) -> Condition:
        """Nothing of an emulated processor changes."""
        return Condition()

    def close(self) -> None:
        """End the guest."""
        if self._guest is not None:
            self._guest.close()
            self._guest = None

    def measure(self, works: Sequence[Work]) -> Iterator[Sample]:
        """Counts of the works, one after the other in one guest: counts do not drift, so nothing is gained by
        interleaving, and `Work.rounds` says nothing here. A network that brings the guest down gets an error,
        the others go on in a new guest.

        Threads other than 1 are refused: threads that wait spin, and counts of several would not repeat.
        `Work.memory` has no answer (the emulator's own memory would be measured).
        """
        for work in works:
            entry = _Entry(work, self._next())
            if work.threads != 1:
                entry.error = f"instructions are counted with 1 thread only, not {work.threads}"
            else:
                guest = self._running()  # what is not set up is no network's error
                try:
                    self._count(guest, entry)
                except (DeviceError, OSError, ValueError) as problem:
                    entry.error = str(problem) or type(problem).__name__
                self._forget(guest, entry)
            yield entry.sample()

    def optimised(self, model: bytes, disabled: str = "") -> bytes:
        """The graph that this processor's onnxruntime makes of a network (ONNX bytes), less prepacking.

        ``disabled`` names optimizers to be left out. Raises DeviceError where it does not load.
        """
        guest = self._running()
        number = self._next()
        source = guest.write(f"{number}.onnx", model)
        target = guest.folder / f"{number}.optimised.onnx"
        try:
            guest.ask("optimise", model=source, to=str(target), disabled=disabled)
            return target.read_bytes()
        finally:
            for path in (Path(source), target):
                path.unlink(missing_ok=True)

    # -- one work

    def _count(self, guest: Guest, entry: _Entry) -> None:
        """Load, answer, warm up, record, run."""
        self._load(guest, entry)
        work, folder, key = entry.work, _folder(guest, entry), str(entry.number)
        answered = guest.ask("answer", key=key, folder=str(folder))["outputs"]
        if work.answers:
            entry.outputs = tuple(stored_arrays(folder, int(answered)))
        self._run(guest, key, _WARM_UP)
        if work.kernels:
            whole = statistics.median(row[0] for row in self._run(guest, key, 3))
            entry.record = _record(guest, key, folder, whole)
        entry.counts = self._run(guest, key, work.runs)

    def _load(self, guest: Guest, entry: _Entry) -> None:
        folder = _folder(guest, entry)
        path, feed = folder / "model.onnx", folder / "inputs.npz"
        path.write_bytes(entry.work.model)
        if entry.work.inputs is not None:
            np.savez(feed, **dict(entry.work.inputs))  # type: ignore[arg-type]
        inputs = str(feed) if entry.work.inputs is not None else None
        guest.ask("load", key=str(entry.number), model=str(path), inputs=inputs)

    def _run(self, guest: Guest, key: str, runs: int) -> list[tuple[int, ...]]:
        """Counts by class of each run; every run may take as long as the guest's patience."""
        rows = [guest.ask("run", key=key, runs=1)["counts"][0] for _ in range(runs)]
        return [tuple(int(n) for n in row) for row in rows]

    def _forget(self, guest: Guest, entry: _Entry) -> None:
        with contextlib.suppress(DeviceError):
            guest.ask("unload", key=str(entry.number))
        shutil.rmtree(guest.folder / str(entry.number), ignore_errors=True)

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers

    def _running(self) -> Guest:
        if self._guest is not None and not self._guest.alive:
            self.close()
        if self._guest is None:
            self._guest = Guest(self._machine(), self._patience_s)
        return self._guest


class EmulatedArm(_Emulated):
    """An Arm core under qemu-user: "cortex-a53", "cortex-a72" or "cortex-a76". Instruction counts, not time.

    In a work's kernel record the profiler's `dur` is replaced by executed instructions, less an equal share
    of the profiler's own for each kernel, so that kernels sum up to an unprofiled run (`read_record` then
    gives instructions for microseconds); `args["instructions"]` has the raw counts by class.
    Raises DeviceError where qemu-user or the sysroot is missing.
    """

    def __init__(
        self, core: str = "cortex-a72", sysroot: Path | None = None, patience_s: float = 600.0
    ) -> None:
        super().__init__(patience_s)
        self.core = core_named(core)
        self._sysroot = sysroot

    def _machine(self) -> Machine:
        return arm_machine(self.core, Sysroot.find(self._sysroot))

    def facts(self) -> DeviceFacts:
        """The core, and the arm64 onnxruntime of the sysroot."""
        sysroot = Sysroot.find(self._sysroot)
        return DeviceFacts(
            device=f"emulated {self.core.name}",
            chip=self.core.chip,
            cores=1,
            isa=self.core.isa,
            runtime="onnxruntime",
            runtime_version=str(sysroot.manifest.get("onnxruntime", "")),
            system=f"Debian {sysroot.manifest.get('debian', '')} arm64, qemu-user; instructions, not time",
            emulated="qemu-aarch64",
        )


class EmulatedX86(_Emulated):
    """This machine's onnxruntime on another x86-64 that qemu knows: by default Haswell (AVX2, no VNNI)."""

    def __init__(self, model: str = "Haswell", patience_s: float = 600.0) -> None:
        super().__init__(patience_s)
        self.model = model

    def _machine(self) -> Machine:
        if os.uname().machine != "x86_64":
            raise DeviceError("another x86-64 is emulated with this machine's own Python: only on x86-64")
        folder = default_sysroot().parent
        folder.mkdir(parents=True, exist_ok=True)
        return x86_machine(self.model, compile_counter(folder))

    def facts(self) -> DeviceFacts:
        """The processor, and this machine's onnxruntime."""
        from importlib import metadata

        return DeviceFacts(
            device=f"emulated {self.model}",
            chip=f"qemu -cpu {self.model}",
            cores=1,
            isa="x86-64-avx2" if self.model.startswith("Haswell") else "x86-64",
            runtime="onnxruntime",
            runtime_version=metadata.version("onnxruntime"),
            system="qemu-user; instructions, not time",
            emulated="qemu-x86_64",
        )


def _folder(guest: Guest, entry: _Entry) -> Path:
    folder = guest.folder / str(entry.number)
    folder.mkdir(exist_ok=True)
    return folder


def _record(guest: Guest, key: str, folder: Path, whole: float) -> KernelRecord:
    """One profiled run, the second of two, with instructions in place of microseconds."""
    runs = 2
    reply = guest.ask("record", key=key, model=str(folder / "model.onnx"), folder=str(folder), runs=runs)
    events = json.loads(Path(reply["events"]).read_text(encoding="utf-8"))
    nodes = [e for e in events if e.get("cat") == "Node" and str(e.get("name")).endswith("_kernel_time")]
    counted = count_events(nodes[len(nodes) // runs :], guest.marks(*reply["marks"][-1]), whole)
    return KernelRecord(Path(reply["optimised"]).read_bytes(), tuple(counted), 1)


def count_events(
    nodes: Sequence[Mapping[str, Any]], marks: Sequence[tuple[int, ...]], whole: float
) -> list[dict[str, Any]]:
    """Profiler events of one run with instructions for `dur`; `marks` are counts at its looks at the clock.

    onnxruntime looks at the clock before and after every kernel; what its profiler does in between is shared
    out equally, so that kernels sum up to `whole`, the instructions of a run without profiler.
    """
    last = _MARKS_BEFORE + 2 * len(nodes)
    another = "this onnxruntime's profiler is another one, whose kernels cannot be counted"
    if len(marks) < last + _MARKS_AFTER:
        raise DeviceError(
            f"only {len(marks)} looks at the clock in a run of {len(nodes)} kernels, "
            f"not {last + _MARKS_AFTER} or more: {another}"
        )
    inner = marks[_MARKS_BEFORE:last]
    spent = [
        [b - a for a, b in zip(*pair, strict=True)] for pair in zip(inner[::2], inner[1::2], strict=True)
    ]
    total = sum(row[0] for row in spent)
    if total < _LEAST_SHARE * whole:
        raise DeviceError(f"kernels have {total} of the {whole:.0f} instructions of a run: {another}")
    share = max(total - whole, 0.0) / max(len(spent), 1)
    return [
        {
            **event,
            "dur": max(row[0] - share, 0.0),
            "args": {**event["args"], "instructions": dict(zip(CLASSES, row, strict=True))},
        }
        for event, row in zip(nodes, spent, strict=True)
    ]


__all__ = ["CLASSES", "CORES", "EmulatedArm", "EmulatedX86", "InstructionSample", "count_events"]
