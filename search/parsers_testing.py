"""Every parser of input from outside, each with a sound example: for property tests and for fuzzing.

    from search.parsers_testing import PARSERS, refused
    refused(PARSERS["policy"], b"{")        # raises AssertionError unless one clear error comes of it

A parser may take what it is given, or refuse it with an error of ours: one that carries an exit code and says
in a line or two what is wrong. Anything else that it raises is a fault of its own.
"""

from __future__ import annotations

import io
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import parsers_examples as examples
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


# -- feeds


def _feed_journal(path: Path) -> None:
    from .journal import Journal
    from .study import Study

    nothing: Any = None
    study = Study(nothing, _Deaf(), nothing, None)  # type: ignore[arg-type]
    study.restore(Journal.read(path))


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


#: Name -> parser.
PARSERS: Mapping[str, Parser] = {
    "policy": Parser(examples.policy, _file("policy.json", _read_policy), True),
    "evidence": Parser(examples.evidence, _feed_evidence, True, (ValueError,)),
    "study": Parser(examples.study, _feed_study, True, (ValueError,)),
    "journal": Parser(examples.journal, _file("journal.jsonl", _feed_journal)),
    "records": Parser(examples.records, _feed_records),
    "results": Parser(examples.results, _file("results.json", _read_results), True),
    "config": Parser(examples.config, _file("config.yaml", _read_config)),
    "set": Parser(lambda: b"bits=[4, 8]", _feed_set),
    "target": Parser(examples.target, _file("target.yaml", _read_target)),
    "profile": Parser(lambda: examples.profile(False), _file("p.jsonl", _read_profile)),
    "profile-gz": Parser(lambda: examples.profile(True), _file("p.jsonl.gz", _read_profile)),
    "pool": Parser(lambda: examples.pool(False), _file("pool.jsonl", _read_pool)),
    "pool-gz": Parser(lambda: examples.pool(True), _file("pool.jsonl.gz", _read_pool)),
    "pool-address": Parser(lambda: b"postgresql://me:word@host:5432/db?sslmode=require", _feed_address),
    "checkpoint": Parser(examples.safetensors, _file("w.safetensors", _feed_checkpoint)),
    "torch-file": Parser(examples.torch_file, _file("w.pt", _feed_checkpoint)),
    "weights": Parser(examples.safetensors, _file("weights.safetensors", _feed_weights)),
    "npz": Parser(examples.npz, _file("data.npz", _feed_npz)),
    "image": Parser(examples.image, _file("a.png", _feed_image)),
    "onnx": Parser(examples.onnx, _file("net.onnx", _read_onnx)),
    "frame": Parser(examples.frame, _feed_frame, errors=(ValueError,)),
    "units": Parser(lambda: b"3.5ms", _feed_units),
}

__all__ = ["PARSERS", "Parser", "refused"]
