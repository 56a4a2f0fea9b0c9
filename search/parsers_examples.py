"""A sound example for every parser of `search.parsers_testing`: small, made anew, the same every time."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any


def policy() -> bytes:
    from .pool_testing import POLICY

    return POLICY.to_json().encode()


def evidence() -> bytes:
    from .pool_testing import LOOKED, WHOLE

    return json.dumps(WHOLE.merged(LOOKED).to_dict()).encode()


def journal() -> bytes:
    from agents.contract import Outcome, Suggestion

    from .journal import SCHEMA_VERSION, Record, encode
    from .pool_testing import POLICY

    suggestion = Suggestion(0, (0.5, 1.0), POLICY, "random").to_dict()
    outcome = Outcome(POLICY, 0.5, {"latency_ms": 1.0}).to_dict()
    rows: list[tuple[str, dict[str, Any]]] = [
        ("header", {"schema_version": SCHEMA_VERSION, "config": {"target": ["local"]}}),
        ("suggested", {"suggestion": suggestion}),
        ("evaluated", {"number": 0, "outcome": outcome}),
    ]
    return b"".join(encode(Record(i, kind, data, float(i))) for i, (kind, data) in enumerate(rows))


def pool(packed: bool) -> bytes:
    from .pool_file import export_pool
    from .pool_sqlite import SqliteStore
    from .pool_testing import CONTEXT, HALF, POLICY, WHOLE

    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder, "pool.sqlite"))
        store.put(CONTEXT, POLICY, WHOLE)
        store.put(CONTEXT, POLICY.from_dict({**POLICY.to_dict(), "groups": {"a": 3}}), HALF)
        path = Path(folder, "pool.jsonl.gz" if packed else "pool.jsonl")
        export_pool(store, path)
        store.close()
        return path.read_bytes()


def profile(packed: bool) -> bytes:
    from hw_profiles.devices.contract import DeviceFacts
    from hw_profiles.profile_rows import FailureRow, NetworkRow
    from hw_profiles.profiles import Profile

    facts = DeviceFacts("a board", "a chip", 4, "arm64-neon", "onnxruntime", "1.32.0", 1.5)
    network = NetworkRow(
        model="0" * 64, key="k", clock="cpu", runs=[1.0, 1.5, 1.25, 1.0], stable=True, why=""
    ).addressed()
    failure = FailureRow(model="1" * 64, key="f", error="it does not run").addressed()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "p.jsonl.gz" if packed else "p.jsonl")
        Profile(facts, 1, "ms", (network, failure)).save(path)
        return path.read_bytes()


def target() -> bytes:
    from hw_profiles.target import TARGETS_FOLDER

    return (TARGETS_FOLDER / "fpga-bitfusion.yaml").read_bytes()


def config() -> bytes:
    from .config import make_config

    return make_config({"target": "local", "max_latency": "0.5x", "bits": "4,8"}).to_yaml().encode()


def weights() -> dict[str, Any]:
    import torch

    return {"0.weight": torch.zeros(2, 3), "0.bias": torch.ones(2)}


def safetensors() -> bytes:
    from safetensors.torch import save

    return save(weights(), {"tailorbird": json.dumps({"schema_version": 1, "policy": {}})})


def torch_file() -> bytes:
    import torch

    sink = io.BytesIO()
    torch.save(weights(), sink)
    return sink.getvalue()


def npz() -> bytes:
    import numpy as np

    sink = io.BytesIO()
    np.savez_compressed(sink, x=np.zeros((40, 1, 4, 4), np.float32), y=np.arange(40) % 4)
    return sink.getvalue()


def image() -> bytes:
    import numpy as np
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(sink, "PNG")
    return sink.getvalue()


def onnx() -> bytes:
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, (2, 1, 3, 3), [0.0] * 18)
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", (1, 1, 4, 4)), ("y", None))
    ]
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "net", ends[:1], ends[1:], [weight])
    model: bytes = helper.make_model(graph).SerializeToString()
    return model


def frame() -> bytes:
    import numpy as np

    from hw_profiles.devices.agent import pack_array, write_frame

    stream, blobs = io.BytesIO(), list[bytes]()
    spec = pack_array(np.arange(6, dtype=np.float32).reshape(2, 3), blobs)
    sample = {"key": "k", "threads": 1, "wall": [1.0, 2.0], "outputs": [spec]}
    write_frame(stream, {"sample": sample, "facts": {"device": "d"}}, blobs)
    return stream.getvalue()


def results() -> bytes:
    number = {"value": 1.0, "source": "predicted"}
    run = {"id": "r", "created": "", "version": "0", "seed": 0, "state": "complete", "command": [],
           "versions": {}, "cpu": ""}  # fmt: skip
    return json.dumps({"schema_version": 1, "run": run, "base": {"costs": {"latency_ms": number}}}).encode()


def study() -> bytes:
    from agents.features import COORDINATE, NETWORK
    from agents.past import Elite, PastStudy

    elite = Elite((1.0, None), -0.5, {"latency_ms": 0.5})
    rows = tuple(tuple(0.0 for _ in COORDINATE) for _ in range(2))
    words = ("run", "network", "task", "target", "agent", "accuracy")
    budget = {"latency_ms": 0.5}
    study = PastStudy(*words, 3, budget, ("keep:a", "keep:b"), rows, tuple(0.0 for _ in NETWORK), (elite,))
    return study.to_json().encode()


def records() -> bytes:
    """Lines of a journal without their checksums."""
    return b"".join(b"{" + line[len(b'{"crc":"00000000",') :] + b"\n" for line in journal().splitlines())
