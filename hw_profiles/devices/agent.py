"""The agent: one file that measures ONNX networks on a device. Needs Python 3.9, numpy and onnxruntime.

    python agent.py serve [--bind ADDRESS] [--port N] [--token-file FILE] [--force]     over HTTP
    python agent.py stdio                                                               over stdin and stdout
    python agent.py once REQUEST REPLY                                                  from file to file

Requests and replies are frames: `TBF1`, the length of a JSON head (4 bytes, big-endian), the head, then the
blobs whose lengths stand in `head["blobs"]`. Nothing is compressed, nothing is pickled, nothing carries a
path: models and arrays are blobs, arrays raw little-endian numbers whose type and shape the head gives.

    {"do": "facts"}        -> {"facts": {...}}
    {"do": "condition"}    -> {"condition": {...}}
    {"do": "measure", "works": [{"key", "model": <blob>, "threads", "runs", "rounds", "kernels", "answers",
                                 "memory", "inputs": {name: {"dtype", "shape", "blob"}}}]}
                           -> {"at": i} as signs of life, {"sample": {...}} for each work, {"done": true}
    {"fault": sentence} stands in for any reply.

Networks run in a process of their own, in a temporary folder of their own: one that brings the runtime down
becomes a sample with an error, and takes nothing else down. This is the one place where networks are timed.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

# Wheels of onnxruntime report their use to its makers and leave files in home and temporary folders, unless
# told not to before they load (Privacy.md of onnxruntime 1.32).
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

MAGIC = b"TBF1"
#: Bytes of a head and of a whole frame, at most. Networks for small boards have some ten MB.
HEAD_LIMIT = 64 << 20
FRAME_LIMIT = 512 << 20
#: A worker that shows no sign of life for so long is ended; one run of one network takes less.
PATIENCE_SECONDS = 180.0
_WARM_UP_SECONDS = 1.0
#: How long helper threads of a session spin after a run, and then some.
_SPIN_SECONDS = 0.03
#: Runs under the profiler with several threads at most: it takes more than a small kernel does, and differs.
_DIVIDED_RUNS = 6
#: A request waits so long for the job before it: one that was given up half-way is about to end.
_BUSY_SECONDS = 10.0
#: What the profiler writes for a network of 1,000 kernels, and as much again.
_SCRATCH_BYTES = 16 << 20
#: Of the machine's memory, what a worker may take.
_MEMORY_SHARE = 0.9
#: What was being done when the line was cut may take so long to end.
_GRACE_SECONDS = 5.0
#: Number types that arrays may have: name of numpy -> onnxruntime.
DTYPES = {
    "float32": "tensor(float)", "float64": "tensor(double)", "float16": "tensor(float16)",
    "uint8": "tensor(uint8)", "int8": "tensor(int8)", "uint16": "tensor(uint16)", "int16": "tensor(int16)",
    "uint32": "tensor(uint32)", "int32": "tensor(int32)", "uint64": "tensor(uint64)",
    "int64": "tensor(int64)", "bool": "tensor(bool)",
}  # fmt: skip
_NUMPY_NAMES = {there: here for here, there in DTYPES.items()}
#: The key `location` of a tensor kept outside the file: a protobuf string, its length in any encoding.
_EXTERNAL_DATA = re.compile(rb"(?:\x08|\x88\x80{0,8}\x00)location")
_CRASHES = "the runtime died on it"

Frame = tuple[dict[str, Any], list[bytes]]
Feed = Mapping[str, "np.ndarray[Any, Any]"]


class FrameError(ValueError):
    """What came is no frame, or too large, or cut short."""


# ---------------------------------------------------------------------------------------------- frames


def write_frame(stream: Any, head: Mapping[str, Any], blobs: Sequence[bytes] = ()) -> None:
    """Write one frame and flush it."""
    text = json.dumps({**head, "blobs": [len(blob) for blob in blobs]}, allow_nan=False).encode()
    stream.write(MAGIC + len(text).to_bytes(4, "big") + text)
    for blob in blobs:
        stream.write(blob)
    stream.flush()


def read_frame(stream: Any, limit: int = FRAME_LIMIT) -> Frame | None:
    """The next frame of a stream, None at its end. Reads no more than `limit` bytes, whatever it is told."""
    start = _read(stream, 8, at_start=True)
    if not start:
        return None
    if start[:4] != MAGIC:
        raise FrameError(f"not a frame: it starts with {start[:4]!r}")
    size = int.from_bytes(start[4:], "big")
    if size > min(limit, HEAD_LIMIT):
        raise FrameError(f"a head of {size} bytes; the limit is {min(limit, HEAD_LIMIT)}")
    try:
        head = json.loads(_read(stream, size))
    except (ValueError, RecursionError) as error:
        raise FrameError(f"the head is not JSON: {str(error)[:80]}") from None
    sizes = head.pop("blobs", None) if isinstance(head, dict) else None
    if not isinstance(sizes, list) or not all(type(n) is int and n >= 0 for n in sizes):
        raise FrameError("the head does not tell its blobs")
    if size + sum(sizes) > limit:
        raise FrameError(f"a frame of {size + sum(sizes)} bytes; the limit is {limit}")
    return head, [_read(stream, n) for n in sizes]


def _read(stream: Any, size: int, at_start: bool = False) -> bytes:
    parts, missing = [], size
    while missing:
        part = stream.read(min(missing, 1 << 20))
        if not part:
            if at_start and missing == size:
                return b""
            raise FrameError(f"cut short: {missing} of {size} bytes are missing")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def pack_array(array: np.ndarray[Any, Any], blobs: list[bytes]) -> dict[str, Any]:
    """Put an array among the blobs; returns what the head says of it."""
    if array.dtype.name not in DTYPES:
        raise FrameError(f"arrays of {array.dtype} cannot travel")
    blobs.append(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes())
    return {"dtype": array.dtype.name, "shape": list(array.shape), "blob": len(blobs) - 1}


def unpack_array(spec: Any, blobs: Sequence[bytes]) -> np.ndarray[Any, Any]:
    """The array of a head's entry; its bytes are exactly those that its shape and type ask for."""
    try:
        name, shape, blob = str(spec["dtype"]), [int(n) for n in spec["shape"]], spec["blob"]
        if name not in DTYPES or len(shape) > 8 or min(shape, default=1) < 0:
            raise FrameError(f"no array has type {name[:40]} and shape {shape[:9]}")
        dtype = np.dtype(name)  # of a name that is known: numpy makes sense of many another text, or fails
        flat = np.frombuffer(blobs[blob], dtype.newbyteorder("<"))
        return flat.reshape(shape).astype(dtype)
    except (KeyError, TypeError, IndexError, ValueError, OverflowError) as error:
        raise FrameError(f"not an array: {str(error)[:120]}") from None


# ------------------------------------------------------------------------------- facts and condition


def facts() -> dict[str, Any]:
    """What this machine is, by the names of `DeviceFacts`."""
    text = _text("/proc/cpuinfo")
    chip = _text("/proc/device-tree/model").strip("\0\n ") or _chip(text)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    total = re.search(r"MemTotal:\s+(\d+) kB", _text("/proc/meminfo"))
    return {
        "device": re.sub(r"[^a-z0-9]+", "-", f"{chip} {cores} cores".lower()).strip("-"),
        "chip": chip,
        "cores": cores,
        "isa": isa_of(text, platform.machine()),
        "runtime": "onnxruntime",
        "runtime_version": _runtime_version(),
        "clock_ghz": _clock("cpuinfo_max_freq"),
        "memory_bytes": int(total[1]) * 1024 if total else None,
        "system": platform.platform(),
        "emulated": emulator(),
    }


def emulator() -> str:
    """What emulates this process, such as "qemu-aarch64": its times are then no device's. "" on a real one.

    Under qemu-user the kernel knows the process by the emulator's file: by name, or (started through
    binfmt_misc) among the files it maps.
    """
    known = f"/{_text('/proc/self/comm')}\n{_text('/proc/self/smaps')}"
    found = re.search(r"/(qemu-[a-z0-9_-]+)$", known, re.MULTILINE)
    return found[1] if found else ""


def condition(since: int | None = None) -> dict[str, Any]:
    """The state of this machine now, by the names of `Condition`.

    Throttled is what throttles now; given the mark of an earlier moment (`throttle_mark`), also what has
    throttled since.
    """
    governor = _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip()
    mark = throttle_mark()
    throttled = None if mark is None else bool(_now_throttled() or (since is not None and mark != since))
    return {
        "clock_ghz": _clock("scaling_cur_freq"),
        "temperature_c": _temperature(),
        "governor": governor or None,
        "throttled": throttled,
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def throttle_mark() -> int | None:
    """A number that changes when the chip throttles; None where it does not tell.

    Raspberry Pis: bits of `vcgencmd get_throttled` (0-3 now, 16-19 since boot: under-voltage, capped,
    throttled, soft limit; Raspberry Pi documentation). x86: the kernel's counters of thermal throttling.
    """
    bits = _vcgencmd()
    if bits is not None:
        return bits >> 16
    paths = sorted(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))
    counts = [int(text) for text in (_text(str(path)).strip() for path in paths) if text.isdigit()]
    return sum(counts) if counts else None


def _now_throttled() -> bool:
    return bool((_vcgencmd() or 0) & 0xF)


def _vcgencmd() -> int | None:
    try:
        done = subprocess.run(
            ["vcgencmd", "get_throttled"], capture_output=True, text=True, timeout=5, check=True
        )
        return int(done.stdout.strip().partition("=")[2], 16)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _chip(cpuinfo: str) -> str:
    for name in ("model name", "Hardware", "CPU part"):
        found = re.search(rf"^{name}\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
        if found:
            return found[1].strip() if name != "CPU part" else f"{platform.machine()} part {found[1].strip()}"
    return platform.processor() or platform.machine()


def isa_of(cpuinfo: str, machine: str) -> str:
    """Instruction set as targets name it, of a /proc/cpuinfo text and a machine name."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    if machine in ("aarch64", "arm64"):
        return "arm64-i8mm" if "i8mm" in flags else "arm64-dotprod" if "asimddp" in flags else "arm64-neon"
    for flag, name in (("avx512_vnni", "avx512-vnni"), ("avx_vnni", "avx-vnni"), ("avx512f", "avx512")):
        if flag in flags:
            return name
    return "avx2" if "avx2" in flags else machine


def _clock(name: str) -> float | None:
    """GHz of the fastest core; of /proc/cpuinfo without the kernel's figures.

    What stands there is the clock of this moment, but a constant where a machine is virtual.
    """
    paths = Path("/sys/devices/system/cpu").glob(f"cpu[0-9]*/cpufreq/{name}")
    khz = [int(text) for text in (_text(str(path)).strip() for path in paths) if text.isdigit()]
    text = _text("/proc/cpuinfo")
    virtual = re.search(r"^flags\b.*\bhypervisor\b", text, re.MULTILINE)
    if not khz and name == "cpuinfo_max_freq" and not virtual:
        return None
    mhz = [float(value) for value in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]
    return max(khz) / 1e6 if khz else round(max(mhz) / 1e3, 3) if mhz else None


def _temperature() -> float | None:
    """Degrees of the hottest zone of the processor."""
    found = []
    for zone in Path("/sys/class/thermal").glob("thermal_zone*"):
        value = _text(str(zone / "temp")).strip().lstrip("-")
        if value.isdigit() and re.search("cpu|soc|pkg|core", _text(str(zone / "type")).lower()):
            found.append(int(value) / 1000.0)
    return max(found) if found else None


def _runtime_version() -> str:
    from importlib import metadata

    for name in ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    raise RuntimeError(f"onnxruntime is not installed for {sys.executable}: pip install onnxruntime numpy")


# ---------------------------------------------------------------------------------------------- timing


def session_options(threads: int, *, shared: bool = False) -> Any:
    """Default session options but for the number of threads and the log level; threads may be `shared`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if shared:
        options.use_per_session_threads = False
    else:
        options.intra_op_num_threads = threads
    return options


def share_threads(threads: int) -> bool:
    """Give all sessions of this process the same helper threads; before the first of them is made.

    Sessions that have threads of their own spin for a while after a run, on cores that the next needs. Runs
    take as long either way (sixteen networks, two threads: median ratio 0.98). False where the runtime
    cannot, or one thread has no helpers.
    """
    import onnxruntime

    if threads == 1 or not hasattr(onnxruntime, "set_global_thread_pool_sizes"):
        return False
    try:
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
    except RuntimeError:  # there are sessions already
        return False
    return True


def made_up(shape: Sequence[int], dtype: np.dtype[Any], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Values for an input nobody gave: standard-normal floats, zeros otherwise."""
    values = rng.standard_normal(tuple(shape)) if dtype.kind == "f" else np.zeros(tuple(shape))
    return np.asarray(values.astype(dtype))


def made_up_inputs(session: Any, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Made-up inputs for a session; free dimensions become 1."""
    rng = np.random.default_rng(seed)
    feed: dict[str, np.ndarray[Any, Any]] = {}
    for wanted in session.get_inputs():
        shape = [d if isinstance(d, int) and d > 0 else 1 for d in wanted.shape]
        feed[wanted.name] = made_up(shape, np.dtype(_NUMPY_NAMES.get(wanted.type, "float32")), rng)
    return feed


class Runner:
    """A loaded network and the seconds of its runs. Raises what onnxruntime raises."""

    def __init__(
        self, model: bytes | Path, threads: int, inputs: Feed | None = None, *, shared: bool = False
    ) -> None:
        import onnxruntime

        start = time.perf_counter()
        self.threads, self.shared = threads, shared
        source = model if isinstance(model, bytes) else str(model)
        self.session = onnxruntime.InferenceSession(
            source, session_options(threads, shared=shared), providers=["CPUExecutionProvider"]
        )
        self.load_seconds = time.perf_counter() - start
        self.feed = made_up_inputs(self.session) if inputs is None else dict(inputs)
        self.outputs: list[Any] = self.session.run(None, self.feed)
        self.cpu: list[float] = []
        self.wall: list[float] = []

    def once(self) -> float:
        """One run; returns its wall seconds."""
        wall, cpu = time.perf_counter(), time.thread_time()
        self.session.run(None, self.feed)
        self.cpu.append(time.thread_time() - cpu)
        self.wall.append(time.perf_counter() - wall)
        return self.wall[-1]

    def settle(self) -> None:
        """Wait until another session's own threads sleep: they spin for a while, on cores that ours need.

        Three runs then bring this network's data close.
        """
        if self.threads > 1 and not self.shared:
            time.sleep(_SPIN_SECONDS)
        if self.threads > 1:
            for _ in range(3):
                self.session.run(None, self.feed)

    def warm_up(self) -> None:
        """Run until three runs in a row bring no new minimum worth speaking of, or a second is over."""
        best, calm, until = float("inf"), 0, time.perf_counter() + _WARM_UP_SECONDS
        while calm < 3 and time.perf_counter() < until:
            taken = self.once()
            calm = calm + 1 if taken > best * 0.98 else 0
            best = min(best, taken)
        self.cpu.clear()
        self.wall.clear()


def interleave(runners: Sequence[tuple[Runner, int, int]]) -> Iterator[int]:
    """Run (runner, runs, rounds) in turn, a round of each; yields the position before each round."""
    for turn in range(max((rounds for _, _, rounds in runners), default=0)):
        for i, (runner, runs, rounds) in enumerate(runners):
            if turn < rounds:
                yield i
                runner.settle()
                for _ in range(max(1, runs // rounds)):
                    runner.once()


def record_kernels(
    model: bytes, feed: Feed, threads: int, runs: int, folder: Path, *, shared: bool = False
) -> tuple[bytes, list[Any]]:
    """(optimised graph, profiler events of `runs` warm runs). Shapes stand with a node's first event only."""
    import onnxruntime

    options = session_options(threads, shared=shared)
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    for _ in range(runs + 1):
        session.run(None, dict(feed))
    told = Path(session.end_profiling())
    kept: dict[str, list[dict[str, Any]]] = {}
    for event in json.loads(told.read_text(encoding="utf-8")):
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            args = {k: event["args"][k] for k in ("input_type_shape", "output_type_shape")}
            first = len(kept.setdefault(name, [])) == 1
            kept[name].append(
                {"cat": "Node", "name": name, "dur": event["dur"], "args": args if first else {}}
            )
    events = [event for mine in kept.values() for event in mine[1:]]  # the first run is a cold one
    optimised = (folder / "optimised.onnx").read_bytes()
    told.unlink()
    return optimised, events


def peak_memory(model: Path, threads: int) -> int:
    """Bytes that loading and running a network adds to the peak of a fresh process that has onnxruntime."""
    command = [*_python(), "memory", str(model), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1])
    return int(done.stdout)


def _peak_bytes() -> int:
    """Peak resident bytes of this process; `ru_maxrss` starts at what the process that started it had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", _text("/proc/self/status"))
    if found:
        return int(found[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _python() -> list[str]:
    """Python on this file, and never on what lies beside it."""
    return [sys.executable, *(["-P"] if sys.version_info >= (3, 11) else []), str(Path(__file__).resolve())]


# ------------------------------------------------------------------------- the worker: one job, one process


def work(request: Mapping[str, Any], blobs: Sequence[bytes]) -> Iterator[Frame]:
    """Measure the works of one request in this process, in its current folder."""
    works = request["works"]
    counts = {int(wanted["threads"]) for wanted in works}
    shared = len(counts) == 1 and share_threads(*counts)
    loaded: list[tuple[int, Runner, bytes]] = []
    for i, wanted in enumerate(works):
        yield {"at": i}, []
        try:
            model = blobs[wanted["model"]]
            if _EXTERNAL_DATA.search(model):
                raise ValueError("its weights are in another file: save it as one file")
            given = wanted.get("inputs")
            feed = None if given is None else {name: unpack_array(a, blobs) for name, a in given.items()}
            loaded.append((i, Runner(model, int(wanted["threads"]), feed, shared=shared), model))
        except Exception as error:
            yield _failed(wanted, error), []
    for i, runner, _ in loaded:
        yield {"at": i}, []
        runner.warm_up()
    mark, before = throttle_mark(), condition()
    for place in interleave([(r, int(works[i]["runs"]), int(works[i]["rounds"])) for i, r, _ in loaded]):
        yield {"at": loaded[place][0]}, []
    states = {"before": before, "after": condition(since=mark)}
    for i, runner, model in loaded:
        yield {"at": i}, []
        try:
            frame = _sample(works[i], runner, model, states)
        except OSError:
            raise  # no space left, say: nothing that is the network's fault
        except Exception as error:
            frame = _failed(works[i], error), []
        yield frame
    yield {"done": True}, []


def _sample(wanted: Mapping[str, Any], runner: Runner, model: bytes, states: Mapping[str, Any]) -> Frame:
    blobs: list[bytes] = []
    threads, folder = int(wanted["threads"]), Path()
    cpu, wall = counted(runner.cpu, runner.wall)
    sample: dict[str, Any] = {
        "key": wanted["key"],
        "threads": threads,
        "cpu": [seconds * 1e3 for seconds in cpu] if threads == 1 else [],
        "wall": [seconds * 1e3 for seconds in wall],
        "load_ms": runner.load_seconds * 1e3,
        **states,
    }
    if (wanted.get("kernels") or wanted.get("memory")) and _free(folder) < 2 * len(model) + _SCRATCH_BYTES:
        raise OSError(f"no space left in the temporary folder: {_free(folder) >> 20} MB")
    if wanted.get("kernels"):
        runs = max(1, int(wanted["runs"]) // int(wanted["rounds"]))
        runs = runs if threads == 1 else min(runs, _DIVIDED_RUNS)
        optimised, events = record_kernels(model, runner.feed, threads, runs, folder, shared=runner.shared)
        blobs.append(optimised)
        sample["record"] = {"optimised": 0, "events": events, "runs": runs}
    if wanted.get("answers"):
        sample["outputs"] = [pack_array(np.asarray(value), blobs) for value in runner.outputs]
    if wanted.get("memory"):
        path = folder / "model.onnx"
        path.write_bytes(model)
        sample["peak_memory_bytes"] = peak_memory(path, threads)
    return {"sample": sample}, blobs


def counted(cpu: Sequence[float], wall: Sequence[float]) -> tuple[list[float], list[float]]:
    """CPU and wall seconds of the runs in which both clocks went on.

    A virtual machine's clock of threads stands still in a run of many thousands; one that does so often
    (1 % of the runs) is too coarse for this network, and wall times alone are told.
    """
    moved = [(c, wall[i]) for i, c in enumerate(cpu) if c > 0.0 and wall[i] > 0.0]
    if len(moved) < 0.99 * len(wall):
        return [], [w for w in wall if w > 0.0]
    return [c for c, _ in moved], [w for _, w in moved]


def _free(folder: Path) -> int:
    """Bytes that may be written; the runtime says of a full disk that the model is damaged."""
    return shutil.disk_usage(folder.resolve()).free


def _failed(wanted: Mapping[str, Any], error: object) -> dict[str, Any]:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return {"sample": {"key": wanted["key"], "threads": int(wanted["threads"]), "error": text[:500]}}


class Jobs:
    """Runs jobs in worker processes, one at a time; `stop` ends the one that runs, from any thread."""

    def __init__(self, patience: float = PATIENCE_SECONDS) -> None:
        self.patience = patience
        self.stopped = False
        self.folder = ""
        self._worker: subprocess.Popen[bytes] | None = None

    def stop(self) -> None:
        """End the running job now and take no more."""
        self.stopped = True
        if self._worker is not None:
            self._worker.kill()

    def answer(self, request: Mapping[str, Any], blobs: Sequence[bytes]) -> Iterator[Frame]:
        """The replies to one request; never raises for what is wrong with it."""
        try:
            if request.get("do") == "facts":
                yield {"facts": facts()}, []
            elif request.get("do") == "condition":
                yield {"condition": condition()}, []
            elif request.get("do") == "measure":
                yield from self._measure(list(request["works"]), blobs)
            else:
                yield {"fault": f"no such request: {str(request.get('do'))[:40]!r}"}, []
        except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
            yield {"fault": f"{type(error).__name__}: {error}"[:500]}, []

    def _measure(self, works: list[dict[str, Any]], blobs: Sequence[bytes]) -> Iterator[Frame]:
        """Works in worker processes; one that brings its process down twice is named, the rest go on."""
        waiting, downs = list(range(len(works))), [0] * len(works)
        while waiting:
            at, mine = 0, list(waiting)
            why = ""
            for head, parts in self._worker_frames([works[i] for i in mine], blobs):
                if "died" in head:
                    why = head["died"]
                elif "at" in head:
                    at = int(head["at"])
                    yield {"at": mine[at]}, []
                elif "sample" in head:
                    waiting = [i for i in waiting if works[i]["key"] != head["sample"]["key"]]
                    yield head, parts
                elif "fault" in head:
                    yield head, []
                    return
            if not why:
                break
            if self.stopped:
                raise RuntimeError("stopped")
            downs[mine[at]] += 1
            if downs[mine[at]] == 2 and mine[at] in waiting:
                waiting.remove(mine[at])
                yield _failed(works[mine[at]], f"{_CRASHES} ({why})"), []
        yield {"done": True}, []

    def _worker_frames(self, works: Sequence[Mapping[str, Any]], blobs: Sequence[bytes]) -> Iterator[Frame]:
        """Frames of one worker; the last is {"died": why} where it did not reach its end."""
        with tempfile.TemporaryDirectory(prefix="tailorbird-job-") as folder:
            self.folder, errors = folder, Path(folder, "stderr")
            with errors.open("wb") as stderr:
                worker = subprocess.Popen(
                    [*_python(), "work"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    cwd=folder,
                    env={**os.environ, "TMPDIR": folder},
                    start_new_session=True,  # Ctrl-C is for whoever started us
                )
            self._worker, done = worker, False
            watch = _Watch(worker, self.patience)
            try:
                if self.stopped:
                    worker.kill()
                with contextlib.suppress(OSError):
                    write_frame(worker.stdin, {"works": list(works)}, blobs)
                while not done:
                    frame = watch.read()
                    if frame is None:
                        break
                    done = "done" in frame[0]
                    if not done:
                        yield frame
            finally:
                self._worker = None
                watch.end()
            if not done:
                last = errors.read_bytes()[-2000:].decode(errors="replace").strip().splitlines()
                yield {"died": watch.why or ": ".join([_how(worker.returncode), *last[-1:]])}, []


class _Watch:
    """Reads a worker's frames, and ends it when none comes for too long."""

    def __init__(self, worker: subprocess.Popen[bytes], patience: float) -> None:
        self.worker, self.patience, self.why = worker, patience, ""
        self._ended = threading.Event()
        self._since = float("inf")
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        while not self._ended.wait(min(1.0, self.patience)):
            if time.monotonic() - self._since > self.patience:
                self.why = f"no sign of life for {self.patience:g} s"
                self.worker.kill()
                return

    def read(self) -> Frame | None:
        """The next frame; None when the worker is at its end or talks nonsense."""
        self._since = time.monotonic()
        try:
            return read_frame(self.worker.stdout)
        except FrameError:
            return None
        finally:
            self._since = float("inf")

    def end(self) -> None:
        """End the worker and wait for it."""
        self._ended.set()
        if self.worker.poll() is None and self.why == "":
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.worker.wait(0.05)  # one that has closed its output is about to go by itself
        self.worker.kill()
        for stream in (self.worker.stdin, self.worker.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        self.worker.wait()


def _how(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit {code}"


# ------------------------------------------------------------------------------------- ways to be asked


def stdio(jobs: Jobs, source: BinaryIO, sink: BinaryIO) -> None:
    """Answer frames until the other side closes its end, which ends a running job as well."""
    asked: queue.Queue[Frame | None] = queue.Queue()

    def listen() -> None:
        try:
            while True:
                frame = read_frame(source)
                if frame is None:
                    break
                asked.put(frame)
        except (FrameError, OSError, ValueError):
            pass
        asked.put(None)
        jobs.stop()
        time.sleep(_GRACE_SECONDS)  # longer only if nobody reads what we write: the line is dead
        for folder in (jobs.folder, os.path.dirname(os.path.abspath(__file__))):
            if os.path.basename(folder).startswith("tailorbird-"):
                shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=listen, daemon=True).start()
    write_frame(sink, {"hello": str(Path(__file__).resolve().parent)})
    while True:
        frame = asked.get()
        if frame is None:
            return
        for head, blobs in jobs.answer(*frame):
            write_frame(sink, head, blobs)


class _Bounded:
    """No more of a stream than so many bytes."""

    def __init__(self, stream: Any, size: int) -> None:
        self._stream, self._left = stream, size

    def read(self, size: int) -> bytes:
        part = bytes(self._stream.read(min(size, self._left)))
        self._left -= len(part)
        return part


def serve(
    token: str, bind: str = "127.0.0.1", port: int = 0, *, force: bool = False, limit: int = FRAME_LIMIT
) -> Any:
    """An HTTP server, ready for `serve_forever`: POST / with a frame, `Authorization: Bearer <token>`.

    Raises ValueError for an address that is neither loopback nor of a private network (unless `force`), or
    a token of fewer than 16 characters. There is no TLS: on a network you do not trust, use SSH.
    """
    import hmac
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    if not force and not _private(bind):
        raise ValueError(
            f"{bind} is open to more than this machine and its local network; --force if you mean it"
        )
    if len(token) < 16:
        raise ValueError(f"a token of {len(token)} characters; 16 at least")
    busy = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        timeout = 60
        server_version, sys_version = "tailorbird-agent", ""

        def do_POST(self) -> None:
            given = self.headers.get("Authorization", "").encode("utf-8", "replace")
            size = self.headers.get("Content-Length", "")
            if not hmac.compare_digest(given, f"Bearer {token}".encode()):
                return self._refuse(401, "wrong token")
            if not size.isascii() or not size.isdigit() or len(size) > 15:
                return self._refuse(411, "no Content-Length")
            if int(size) > limit:
                return self._refuse(413, f"{size} bytes; the limit is {limit}")
            if not busy.acquire(timeout=_BUSY_SECONDS):
                return self._refuse(409, "another job is running; try again when it is done")
            try:
                self._answer(int(size))
            finally:
                busy.release()
            return None

        def _answer(self, size: int) -> None:
            try:
                frame = read_frame(_Bounded(self.rfile, size), limit)
            except (FrameError, OSError) as error:
                return self._refuse(400, str(error))
            if frame is None:
                return self._refuse(400, "empty")
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            replies = Jobs().answer(*frame)
            with contextlib.suppress(OSError), contextlib.closing(replies):  # type: ignore[type-var]
                for head, blobs in replies:
                    write_frame(self.wfile, head, blobs)
            return None

        def _refuse(self, status: int, why: str) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.send_error(status, why[:200].replace("\n", " "))

        def log_message(self, *_: object) -> None:
            return

    return ThreadingHTTPServer((bind, port), Handler)


def _private(bind: str) -> bool:
    import ipaddress

    nets = "127.0.0.0/8 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 169.254.0.0/16 ::1/128 fc00::/7 fe80::/10"
    try:
        address = ipaddress.ip_address(bind)
    except ValueError:
        return bind == "localhost"
    return any(address in ipaddress.ip_network(net) for net in nets.split())


def _serve_main(arguments: Sequence[str]) -> None:
    import argparse
    import secrets

    parser = argparse.ArgumentParser(prog="agent.py serve")
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument(
        "--token-file", help="a file that holds the token; without it one is made up and printed"
    )
    parser.add_argument("--force", action="store_true", help="bind to any address")
    chosen = parser.parse_args(list(arguments))
    token = Path(chosen.token_file).read_text(encoding="utf-8").strip() if chosen.token_file else ""
    made = token or secrets.token_urlsafe(24)
    try:
        server = serve(made, chosen.bind, chosen.port, force=chosen.force)
    except (ValueError, OSError) as error:
        sys.exit(f"agent: {error}")
    host, port = server.server_address[:2]
    sys.stderr.write(f"agent: http://{host}:{port}" + (f"  token {made}\n" if not token else "\n"))
    sys.stderr.flush()
    with server, contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


def main(arguments: Sequence[str]) -> None:
    """See the top of this file."""
    mode, rest = (arguments[0] if arguments else "help"), list(arguments[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    if mode == "serve":
        _serve_main(rest)
    elif mode == "stdio":
        with contextlib.suppress(BrokenPipeError):
            stdio(Jobs(), sys.stdin.buffer, sys.stdout.buffer)
    elif mode == "once":
        with open(rest[0], "rb") as source, open(rest[1], "wb") as sink:
            frame = read_frame(source)
            for head, blobs in Jobs().answer(*(frame or ({}, []))):
                write_frame(sink, head, blobs)
    elif mode == "work":
        _work_main()
    elif mode == "memory":
        import onnxruntime  # noqa: F401  its own memory is not the network's

        before = _peak_bytes()
        Runner(Path(rest[0]), int(rest[1]))
        sys.stdout.write(str(_peak_bytes() - before))
    else:
        sys.exit(__doc__)


def _confine() -> None:
    """Limit this process: a network that asks for more than there is fails alone."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": 2 * FRAME_LIMIT, "RLIMIT_DATA": int(_MEMORY_SHARE * memory)}
    for name, most in limits.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            hard = resource.getrlimit(kind)[1]
            least = most if hard == resource.RLIM_INFINITY else min(most, hard)
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(kind, (least, least))


def _work_main() -> None:
    _confine()
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is not a reply
    frame = read_frame(sys.stdin.buffer)
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        write_frame(sink, {"fault": f"{error}: pip install onnxruntime numpy (for {sys.executable})"})
        return
    try:
        for head, blobs in work(*(frame or ({"works": []}, []))):
            write_frame(sink, head, blobs)
    except OSError as error:
        write_frame(sink, {"fault": str(error)[:500]})


if __name__ == "__main__":
    main(sys.argv[1:])
