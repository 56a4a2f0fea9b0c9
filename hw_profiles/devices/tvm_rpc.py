"""A device that runs a TVM RPC server: networks are compiled here, sent as a library, timed over there.

TVM's RPC has no authentication: whoever reaches its port runs code on the board. Bind it to loopback and go
through an SSH tunnel. Untuned TVM is far slower than onnxruntime: a second back end that runs anywhere and
cross-checks answers, not a stand-in for another runtime's latency.
"""

from __future__ import annotations

import gc
import queue
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np

from hw_profiles.devices.contract import Condition, Device, DeviceFacts, Sample, Work, made_up
from hw_profiles.devices.replies import plain
from hw_profiles.errors import DeviceError

#: Code generator by target (cores: data sheets of BCM2837, BCM2711, BCM2712) and the compiler that links.
TARGETS: dict[str, tuple[dict[str, Any] | str, str | None]] = {
    name: (
        {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": core, "mattr": ["+neon"]},
        "aarch64-linux-gnu-gcc",
    )
    for name, core in (
        ("raspberry-pi-3", "cortex-a53"),
        ("raspberry-pi-zero-2-w", "cortex-a53"),
        ("raspberry-pi-4", "cortex-a72"),
        ("raspberry-pi-5", "cortex-a76"),
    )
}
_CONNECT_SECONDS = 20.0
#: A server ends a session after so long, whatever it does; every call of `measure` is one.
_SESSION_SECONDS = 3600


@dataclass
class _Loaded:
    work: Work
    machine: Any
    tensors: list[Any]
    load_ms: float
    wall: list[float] = field(default_factory=list)


@final
class TvmRpcDevice(Device):
    """A TVM RPC server at host:port, started there with `python -m tvm.exec.rpc_server`.

    `target` is what TVM compiles for ("llvm": this machine's own kind); `compiler` links for another kind of
    machine. Samples are wall times of `time_evaluator`; kernels and peak memory are not to be had.
    """

    def __init__(
        self,
        host: str,
        port: int = 9090,
        name: str | None = None,
        *,
        key: str = "",
        target: Mapping[str, Any] | str | None = None,
        compiler: str | None = None,
    ) -> None:
        known = TARGETS.get(name or "", ("llvm", None))
        self._target, self._compiler = (target or known[0], compiler) if target else known
        self._host, self._port, self._key, self._name = host, port, key, name
        self._session: Any = None
        self._facts: DeviceFacts | None = None

    @property
    def where(self) -> str:
        """Address, for messages."""
        return f"tvm://{self._host}:{self._port}"

    def facts(self) -> DeviceFacts:
        """What little RPC tells; `cores` is the number of threads it takes by itself."""
        if self._facts is None:
            import tvm

            threads = self._remotely("runtime.NumThreads")
            kind = self._target if isinstance(self._target, str) else str(self._target.get("mcpu", "llvm"))
            name = self._name or f"tvm-{self._host}"
            self._facts = DeviceFacts(
                name, f"a TVM RPC server, code for {kind}", max(1, int(threads)), kind, "tvm", tvm.__version__
            )
        return self._facts

    def condition(self) -> Condition:
        """Unknown: RPC does not tell. Raises DeviceError where the server is gone."""
        self._connected()
        return Condition()

    def measure(self, works: Sequence[Work]) -> Iterator[Sample]:
        """Compile, send, and time the works interleaved; those of other threads in turn."""
        self.close()
        for threads in sorted({work.threads for work in works}):
            yield from self._measured([work for work in works if work.threads == threads], threads)

    def _measured(self, works: Sequence[Work], threads: int) -> Iterator[Sample]:
        loaded: list[_Loaded] = []
        with tempfile.TemporaryDirectory() as folder:
            self._remotely("runtime.config_threadpool", 1, threads)  # 1: the big cores first
            for i, work in enumerate(works):
                library = Path(folder) / f"work{i}.so"
                try:
                    inputs = self._compile(work, library)
                except Exception as error:
                    text = f"TVM cannot compile it: {_last_line(error)}"
                    yield Sample(work.key, self.unit, threads, error=text)
                    continue
                with self._mind():
                    loaded.append(self._load(work, library, inputs))
        with self._mind():
            self._time(loaded)
        for entry in loaded:
            outputs = None
            if entry.work.answers:
                with self._mind():
                    outputs = self._answers(entry)
            yield Sample(
                entry.work.key, self.unit, threads, (), tuple(entry.wall), entry.load_ms, outputs=outputs
            )

    def _compile(self, work: Work, library: Path) -> list[np.ndarray[Any, Any]]:
        """Write the library; returns the inputs in the order of its parameters."""
        import onnx
        import tvm
        from tvm.relax.frontend.onnx import from_onnx
        from tvm.support import cc

        model = onnx.load_from_string(work.model)
        constants = {i.name for i in model.graph.initializer}
        rng, inputs, shapes = np.random.default_rng(0), [], {}
        for wanted in model.graph.input:
            if wanted.name in constants:
                continue
            kind = wanted.type.tensor_type
            shape = [d.dim_value if d.dim_value > 0 else 1 for d in kind.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
            given = None if work.inputs is None else work.inputs[wanted.name]
            inputs.append(made_up(shape, dtype, rng) if given is None else given)
            shapes[wanted.name] = list(inputs[-1].shape)
        module = from_onnx(model, shape_dict=shapes)
        built = tvm.compile(module, target=tvm.target.Target(self._target))
        extra = {} if self._compiler is None else {"fcompile": cc.cross_compiler(self._compiler)}
        built.export_library(str(library), **extra)
        return inputs

    def _load(self, work: Work, library: Path, inputs: Sequence[np.ndarray[Any, Any]]) -> _Loaded:
        import time

        import tvm
        from tvm import relax

        session = self._connected()
        cpu = session.cpu()
        start = time.perf_counter()
        session.upload(str(library))
        machine = relax.VirtualMachine(session.load_module(library.name), cpu)
        taken = (time.perf_counter() - start) * 1e3
        tensors = [tvm.runtime.tensor(np.ascontiguousarray(value), cpu) for value in inputs]
        machine.set_input("main", *tensors)
        machine.invoke_stateful("main")
        session.remove(library.name)
        return _Loaded(work, machine, tensors, taken)

    def _time(self, loaded: Sequence[_Loaded]) -> None:
        cpu = self._connected().cpu()
        for turn in range(max((entry.work.rounds for entry in loaded), default=0)):
            for entry in loaded:
                if turn < entry.work.rounds:
                    runs = max(1, entry.work.runs // entry.work.rounds)
                    # the first run after another network is a cold one
                    timer = entry.machine.time_evaluator("invoke_stateful", cpu, number=1, repeat=runs + 1)
                    entry.wall.extend(seconds * 1e3 for seconds in timer("main").results[1:])

    def _answers(self, entry: _Loaded) -> tuple[np.ndarray[Any, Any], ...]:
        found = entry.machine.get_outputs("main")
        parts = [found] if hasattr(found, "numpy") else list(found)
        return tuple(np.asarray(part.numpy()) for part in parts)

    def _remotely(self, function: str, *arguments: int) -> Any:
        with self._mind():
            return self._connected().get_function(function)(*arguments)

    def _connected(self) -> Any:
        if self._session is None:
            try:
                from tvm import rpc
            except ImportError as error:
                raise DeviceError(f"TVM RPC needs apache-tvm: {error}") from error
            found: queue.Queue[Any] = queue.Queue()

            def connect() -> None:
                try:
                    options = {"key": self._key, "session_timeout": _SESSION_SECONDS}
                    found.put(rpc.connect(self._host, self._port, **options))
                except Exception as error:
                    found.put(error)

            threading.Thread(target=connect, daemon=True).start()  # it knows no time limit of its own
            try:
                session = found.get(timeout=_CONNECT_SECONDS)
            except queue.Empty:
                session = TimeoutError("no answer; it serves one at a time, and somebody else may be there")
            if isinstance(session, Exception):
                raise DeviceError(
                    f"cannot reach the TVM RPC server at {self.where}: {_last_line(session)}. "
                    "Start it there with `python -m tvm.exec.rpc_server`."
                ) from session
            self._session = session
        return self._session

    def _mind(self) -> _Mind:
        return _Mind(self)

    def close(self) -> None:
        """Hang up; the server then removes what was sent."""
        if self._session is not None:
            self._session = None
            gc.collect()  # a session ends with the last object that lives over there, cycles included


class _Mind:
    """What goes wrong between here and the server is a DeviceError, and the session is over."""

    def __init__(self, device: TvmRpcDevice) -> None:
        self._device = device

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, DeviceError):
            self._device.close()
            raise DeviceError(f"{self._device.where} is gone: {_last_line(error)}") from error


def _last_line(error: Exception) -> str:
    return plain((str(error).strip().splitlines() or [type(error).__name__])[-1])


__all__ = ["TARGETS", "TvmRpcDevice"]
