"""What runs inside the emulator: onnxruntime behind a pipe. Standard library, numpy and onnxruntime only.

    emulated_guest.py COUNTS        COUNTS: the file of the counter (a64_counter.c)

One JSON request a line on stdin, one JSON reply a line on stdout; everything else that is printed goes to
stderr. Arrays and models pass as files whose paths the requests name. A request that fails is answered with
{"error": reason}; only a crash ends the guest.
"""

from __future__ import annotations

import gc
import json
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

CLASSES = 10  # A64_CLASSES
_COUNTS = struct.Struct(f"<{CLASSES}Q")
_MARKS = struct.Struct("<Q")

_TYPES = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8, "tensor(int8)": np.int8, "tensor(int32)": np.int32,
    "tensor(int64)": np.int64, "tensor(bool)": np.bool_,
}  # fmt: skip


class Counter:
    """The counts of instructions that this very process has executed."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDONLY)

    def read(self) -> tuple[int, ...]:
        """Counts by class."""
        return _COUNTS.unpack(os.pread(self._file, _COUNTS.size, 0))

    def marks(self) -> int:
        """Number of marks so far."""
        (found,) = _MARKS.unpack(os.pread(self._file, _MARKS.size, _COUNTS.size))
        return int(found)


class Guest:
    """Loaded sessions by key."""

    def __init__(self, counter: Counter) -> None:
        self.counter = counter
        self.sessions: dict[str, Any] = {}
        self.feeds: dict[str, dict[str, Any]] = {}

    def hello(self) -> dict[str, Any]:
        """Versions of what is here."""
        return {
            "onnxruntime": onnxruntime.__version__, "numpy": np.__version__, "machine": os.uname().machine,
            "python": sys.version.split()[0],
        }  # fmt: skip

    def load(self, key: str, model: str, inputs: str | None) -> dict[str, Any]:
        """Load a network and keep it under a key, with its inputs (.npz; made up where None)."""
        session = _session(model, _options())
        self.feeds[key] = _feed(session, inputs)
        self.sessions[key] = session
        return {}

    def run(self, key: str, runs: int) -> dict[str, Any]:
        """Counts by class of each of some runs."""
        session, feed, read = self.sessions[key], self.feeds[key], self.counter.read
        counts = []
        for _ in range(runs):
            before = read()
            session.run(None, feed)
            counts.append([b - a for a, b in zip(before, read(), strict=True)])
        return {"counts": counts}

    def answer(self, key: str, folder: str) -> dict[str, Any]:
        """Run once and store the outputs as 0.npy, 1.npy, ... in a folder."""
        outputs = self.sessions[key].run(None, self.feeds[key])
        for i, values in enumerate(outputs):
            np.save(Path(folder) / f"{i}.npy", values, allow_pickle=False)
        return {"outputs": len(outputs)}

    def unload(self, key: str) -> dict[str, Any]:
        """Forget a network."""
        self.sessions.pop(key, None)
        self.feeds.pop(key, None)
        gc.collect()
        return {}

    def record(self, key: str, model: str, folder: str, runs: int) -> dict[str, Any]:
        """Run under the profiler: where its events and the optimised graph are, and the marks it made."""
        options = _options()
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = _session(model, options)
        marks = []
        for _ in range(runs):
            before = self.counter.marks()
            session.run(None, self.feeds[key])
            marks.append([before, self.counter.marks()])
        return {
            "optimised": options.optimized_model_filepath,
            "events": session.end_profiling(),
            "marks": marks,
        }

    def optimise(self, model: str, to: str, disabled: str) -> dict[str, Any]:
        """Store the graph that the runtime makes of a network, less prepacking, which changes no node."""
        options = _options()
        options.add_session_config_entry("session.disable_prepacking", "1")
        if disabled:
            options.add_session_config_entry("optimization.disable_specified_optimizers", disabled)
        options.optimized_model_filepath = to
        _session(model, options)
        return {}


def _options() -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return options


def _session(model: str, options: Any) -> Any:
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _feed(session: Any, inputs: str | None) -> dict[str, Any]:
    """Given inputs, or standard-normal (float) and zero (integer) ones; free dimensions become 1."""
    if inputs is not None:
        with np.load(inputs, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    rng = np.random.default_rng(0)
    feed = {}
    for wanted in session.get_inputs():
        shape = [d if isinstance(d, int) and d > 0 else 1 for d in wanted.shape]
        dtype = np.dtype(_TYPES.get(wanted.type, np.float32))
        feed[wanted.name] = (
            rng.standard_normal(shape).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)
        )
    return feed


def serve(counts: str) -> None:
    """Answer requests until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is not a reply
    guest = Guest(Counter(counts))
    gc.disable()  # a collection at a random moment would be counted
    known: dict[str, Callable[..., dict[str, Any]]] = {
        name: getattr(guest, name)
        for name in ("hello", "load", "run", "answer", "unload", "record", "optimise")
    }
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = known[request.pop("op")](**request)
        except Exception as problem:
            text = (str(problem).strip().splitlines() or [""])[0]
            reply = {"error": f"{type(problem).__name__}: {text}"[:500]}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    serve(sys.argv[1])
