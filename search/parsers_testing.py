"""Every parser of input from outside, each with a sound example: for property tests and for fuzzing.

    from search.parsers_testing import PARSERS, refused
    refused(PARSERS["policy"], b"{")        # raises AssertionError unless one clear error comes of it

A parser may take what it is given, or refuse it with an error of ours: one that carries an exit code and says
in a line or two what is wrong. Anything else that it raises is a fault of its own.
"""

from __future__ import annotations

import io
import json
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .cli_support import words_of


@dataclass(frozen=True)
class Parser:
    """One parser.

    Attributes:
        example: makes something that it takes.
        feed: hands it bytes; a folder is there for those that read files.
        text: whether its input is JSON or the like, which may be changed value by value.
        errors: what it raises besides errors with an exit code, as its docstring says.
    """

    example: Callable[[], bytes]
    feed: Callable[[bytes, Path], object]
    text: bool = False
    errors: tuple[type[Exception], ...] = ()


def refused(parser: Parser, content: bytes, folder: Path | None = None) -> str | None:
    """The message with which a parser refuses something, None where it takes it. Raises AssertionError for a
    message that says nothing, and whatever else the parser raises."""
    if folder is None:
        with tempfile.TemporaryDirectory() as made:
            return refused(parser, content, Path(made))
    try:
        parser.feed(content, folder)
    except parser.errors as problem:
        return str(problem)
    except Exception as problem:
        if not isinstance(getattr(problem, "exit_code", None), int):
            raise
        message, hint = words_of(problem, known=True)
        if not message.strip():
            raise AssertionError(f"{type(problem).__name__} without a word") from problem
        return message if hint is None else f"{message}\n{hint}"
    return None


def _file(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    """Feeds a parser of files."""

    def feed(content: bytes, folder: Path) -> object:
        path = folder / name
        path.write_bytes(content)
        return read(path)

    return feed


def _text(content: bytes) -> str:
    return content.decode("utf-8", errors="replace")


# -- examples


def _policy() -> bytes:
    from .pool_testing import POLICY

    return POLICY.to_json().encode()


def _evidence() -> bytes:
    from .pool_testing import LOOKED, WHOLE

    return json.dumps(WHOLE.merged(LOOKED).to_dict()).encode()


def _journal() -> bytes:
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


def _pool(packed: bool) -> bytes:
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


def _profile(packed: bool) -> bytes:
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


def _target() -> bytes:
    from hw_profiles.target import TARGETS_FOLDER

    return (TARGETS_FOLDER / "fpga-bitfusion.yaml").read_bytes()


def _config() -> bytes:
    from .config import make_config

    return make_config({"target": "local", "max_latency": "0.5x", "bits": "4,8"}).to_yaml().encode()


def _weights() -> dict[str, Any]:
    import torch

    return {"0.weight": torch.zeros(2, 3), "0.bias": torch.ones(2)}


def _safetensors() -> bytes:
    from safetensors.torch import save

    return save(_weights(), {"tailorbird": json.dumps({"schema_version": 1, "policy": {}})})


def _torch_file() -> bytes:
    import torch

    sink = io.BytesIO()
    torch.save(_weights(), sink)
    return sink.getvalue()


def _npz() -> bytes:
    import numpy as np

    sink = io.BytesIO()
    np.savez_compressed(sink, x=np.zeros((40, 1, 4, 4), np.float32), y=np.arange(40) % 4)
    return sink.getvalue()


def _image() -> bytes:
    import numpy as np
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(sink, "PNG")
    return sink.getvalue()


def _onnx() -> bytes:
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, (2, 1, 3, 3), [0.0] * 18)
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", (1, 1, 4, 4)), ("y", None))
    ]
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "net", ends[:1], ends[1:], [weight])
    model: bytes = helper.make_model(graph).SerializeToString()
    return model


def _frame() -> bytes:
    import numpy as np

    from hw_profiles.devices.agent import pack_array, write_frame

    stream, blobs = io.BytesIO(), list[bytes]()
    spec = pack_array(np.arange(6, dtype=np.float32).reshape(2, 3), blobs)
    sample = {"key": "k", "threads": 1, "wall": [1.0, 2.0], "outputs": [spec]}
    write_frame(stream, {"sample": sample, "facts": {"device": "d"}}, blobs)
    return stream.getvalue()


def _results() -> bytes:
    number = {"value": 1.0, "source": "predicted"}
    run = {"id": "r", "created": "", "version": "0", "seed": 0, "state": "complete", "command": [],
           "versions": {}, "cpu": ""}  # fmt: skip
    return json.dumps({"schema_version": 1, "run": run, "base": {"costs": {"latency_ms": number}}}).encode()


# -- feeds


def _feed_journal(path: Path) -> None:
    from .journal import Journal
    from .study import Study

    study = Study.__new__(Study)
    study.entries = []
    study.agent = _Deaf()  # type: ignore[assignment]
    study.restore(Journal.read(path))


def _records() -> bytes:
    """Lines of a journal without their checksums."""
    return b"".join(b"{" + line[len(b'{"crc":"00000000",') :] + b"\n" for line in _journal().splitlines())


def _feed_records(content: bytes, folder: Path) -> None:
    """Lines with the right checksums, whatever they hold: what damage is not taken for."""
    lines = [line[1:] for line in content.split(b"\n") if line]
    path = folder / "journal.jsonl"
    path.write_bytes(b"".join(b'{"crc":"%08x",%s\n' % (zlib.crc32(line), line) for line in lines))
    _feed_journal(path)


class _Deaf:
    """An agent that is told of outcomes and learns nothing."""

    def replay(self, history: object) -> None: ...


def _feed_image(path: Path) -> object:
    from .tasks.images import read_images

    return read_images(path.parent, (4, 4))


def _feed_npz(path: Path) -> object:
    from .tasks.data import read_data

    return read_data(path, None, (), ())


def _feed_checkpoint(path: Path) -> None:
    from torch import nn

    from .tasks.checkpoint import load_checkpoint

    load_checkpoint(nn.Sequential(nn.Linear(3, 2)), path)


def _feed_frame(content: bytes, folder: Path) -> None:
    from hw_profiles.devices.agent import read_frame, unpack_array
    from hw_profiles.devices.contract import Work
    from hw_profiles.devices.replies import read_condition, read_facts, read_sample

    frame = read_frame(io.BytesIO(content), limit=1 << 20)
    if frame is None:
        return
    head, blobs = frame
    unpack_array(head.get("array"), blobs) if "array" in head else None
    for key, read in (("facts", read_facts), ("condition", read_condition)):
        if key in head:
            _one(read, head[key])
    if "sample" in head:
        _one(lambda sample: read_sample(sample, blobs, [Work("k", b"", 1)]), head["sample"])


def _one(read: Callable[[Any], object], value: Any) -> None:
    """Several parts of one frame: that one is refused says nothing of the others."""
    from hw_profiles.errors import DeviceError

    try:
        read(value)
    except DeviceError:
        return


def _feed_weights(path: Path) -> object:
    from .stored import read_parts

    return read_parts(path)


def _feed_units(content: bytes, folder: Path) -> None:
    from .errors import UsageError
    from .units import COST_KINDS, parse_limit, parse_points, parse_seconds

    text = _text(content)
    reads: list[Callable[[], object]] = [lambda: parse_seconds(text, "--timeout")]
    reads += [lambda: parse_points(text, "--max-drop")]
    reads += [lambda kind=kind: parse_limit(text, kind, "--max-x") for kind in COST_KINDS.values()]  # type: ignore[misc]
    for read in reads:
        try:
            read()
        except UsageError:
            continue


def _feed_address(content: bytes, folder: Path) -> None:
    from .pool_address import is_server, without_password

    text = _text(content)
    if is_server(text) and without_password(without_password(text)) != without_password(text):
        raise AssertionError(f"not all of the password is left out of {text!r}")


def _feed_evidence(content: bytes, folder: Path) -> object:
    from .evidence import Evidence
    from .safe_json import parse_json

    return Evidence.from_dict(parse_json(content))


def _feed_study(content: bytes, folder: Path) -> object:
    from agents.past import PastStudy

    from .safe_json import parse_json

    return PastStudy.from_dict(parse_json(content))


def _feed_set(content: bytes, folder: Path) -> object:
    from .config import load_config

    return load_config({"target": "local"}, [_text(content)])


def _read_policy(path: Path) -> object:
    from .commands import read_policy

    return read_policy(path)


def _read_config(path: Path) -> object:
    from .config import load_config

    return load_config({"target": "local"}, (), path)


def _read_target(path: Path) -> object:
    from hw_profiles.target import load_target

    return load_target(path)


def _read_profile(path: Path) -> object:
    from hw_profiles.profiles import Profile

    return Profile.load(path)


def _read_pool(path: Path) -> object:
    from .pool_file import read_pool

    return list(read_pool(path))


def _read_results(path: Path) -> object:
    from .results import read_results

    return read_results(path)


def _read_onnx(path: Path) -> object:
    from .onnx_input import check_onnx

    return check_onnx(path)


def _study() -> bytes:
    from agents.features import COORDINATE, NETWORK
    from agents.past import Elite, PastStudy

    elite = Elite((1.0, None), -0.5, {"latency_ms": 0.5})
    rows = tuple(tuple(0.0 for _ in COORDINATE) for _ in range(2))
    words = ("run", "network", "task", "target", "agent", "accuracy")
    budget = {"latency_ms": 0.5}
    study = PastStudy(*words, 3, budget, ("keep:a", "keep:b"), rows, tuple(0.0 for _ in NETWORK), (elite,))
    return study.to_json().encode()


#: Name -> parser.
PARSERS: Mapping[str, Parser] = {
    "policy": Parser(_policy, _file("policy.json", _read_policy), True),
    "evidence": Parser(_evidence, _feed_evidence, True, (ValueError,)),
    "study": Parser(_study, _feed_study, True, (ValueError,)),
    "journal": Parser(_journal, _file("journal.jsonl", _feed_journal)),
    "records": Parser(_records, _feed_records),
    "results": Parser(_results, _file("results.json", _read_results), True),
    "config": Parser(_config, _file("config.yaml", _read_config)),
    "set": Parser(lambda: b"bits=[4, 8]", _feed_set),
    "target": Parser(_target, _file("target.yaml", _read_target)),
    "profile": Parser(lambda: _profile(False), _file("p.jsonl", _read_profile)),
    "profile-gz": Parser(lambda: _profile(True), _file("p.jsonl.gz", _read_profile)),
    "pool": Parser(lambda: _pool(False), _file("pool.jsonl", _read_pool)),
    "pool-gz": Parser(lambda: _pool(True), _file("pool.jsonl.gz", _read_pool)),
    "pool-address": Parser(lambda: b"postgresql://me:word@host:5432/db?sslmode=require", _feed_address),
    "checkpoint": Parser(_safetensors, _file("w.safetensors", _feed_checkpoint)),
    "torch-file": Parser(_torch_file, _file("w.pt", _feed_checkpoint)),
    "weights": Parser(_safetensors, _file("weights.safetensors", _feed_weights)),
    "npz": Parser(_npz, _file("data.npz", _feed_npz)),
    "image": Parser(_image, _file("a.png", _feed_image)),
    "onnx": Parser(_onnx, _file("net.onnx", _read_onnx)),
    "frame": Parser(_frame, _feed_frame, errors=(ValueError,)),
    "units": Parser(lambda: b"3.5ms", _feed_units),
}

__all__ = ["PARSERS", "Parser", "refused"]
