"""Whatever a parser is given: it takes it, or says in a line why not. Nothing else ever comes of it."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.journal import Record, encode
from search.parsers_testing import PARSERS, refused

EXAMPLES = 25
quick = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
#: Values that parsers trip over.
ODD = st.sampled_from([
    None, True, False, 0, -1, 10**400, -(10**400), 2**63, 0.5, math.nan, math.inf, -math.inf, 1e308, "", "x",
    "\0", "\ud800", "../../etc/passwd", "x" * 5000, "nan", [], {}, [[]], [None], {"": None}, [1] * 300,
    {"a": {"b": {"c": {}}}}, "2026-99-99", "1e999", b"".hex(),
])  # fmt: skip


@cache
def example(name: str) -> bytes:
    return PARSERS[name].example()


@pytest.mark.parametrize("name", [n for n in PARSERS if n not in ("results", "weights")])
def test_a_sound_example_is_taken(name: str, tmp_path: Path) -> None:
    assert refused(PARSERS[name], example(name), tmp_path) is None


@pytest.mark.parametrize("name", PARSERS)
@quick
@given(content=st.binary(max_size=400))
def test_anything(name: str, content: bytes, tmp_path: Path) -> None:
    refused(PARSERS[name], content, tmp_path)


@st.composite
def damages(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """Bytes changed, taken out, put in, or doubled in one or two places; or the end cut off."""
    places = draw(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("xcidt"), st.binary(max_size=4)),
                           min_size=1, max_size=3))  # fmt: skip

    def damage(content: bytes) -> bytes:
        for share, kind, new in places:
            at = int(share * len(content))
            tail = content[at:]
            ways = {
                "x": bytes(b ^ (new[0] if new else 1) for b in tail[:1]) + tail[1:],
                "c": new + tail[len(new) :],
                "i": new + tail,
                "d": tail[:40] + tail,
                "t": b"",
            }
            content = content[:at] + ways[kind]
        return content

    return damage


@pytest.mark.parametrize("name", PARSERS)
@quick
@given(damage=damages())
def test_a_damaged_example(name: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    refused(PARSERS[name], damage(example(name)), tmp_path)


@pytest.mark.parametrize("name", [n for n in PARSERS if n.endswith("-gz")])
@quick
@given(damage=damages())
def test_a_damaged_example_inside_a_sound_gzip(
    name: str, damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    refused(PARSERS[name], gzip.compress(damage(gzip.decompress(example(name)))), tmp_path)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for k, v in inner for p in _places(v, (*path, k)))]


def _with(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _with(value[path[0]], path[1:], new)
    return copy


def changed(value: Any, data: st.DataObject) -> Any:
    """A document with one value, anywhere in it, that is another."""
    path = data.draw(st.sampled_from(_places(value)))
    return _with(value, path, data.draw(ODD))


@pytest.mark.parametrize("name", [n for n, p in PARSERS.items() if p.text])
@quick
@given(data=st.data())
def test_a_document_with_an_odd_value(name: str, data: st.DataObject, tmp_path: Path) -> None:
    refused(PARSERS[name], json.dumps(changed(json.loads(example(name)), data)).encode(), tmp_path)


@pytest.mark.parametrize("name", ["pool", "profile"])
@quick
@given(data=st.data())
def test_lines_with_an_odd_value(name: str, data: st.DataObject, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in example(name).splitlines()]
    at = data.draw(st.integers(0, len(rows) - 1))
    rows[at] = changed(rows[at], data)
    refused(PARSERS[name], b"".join(json.dumps(r).encode() + b"\n" for r in rows), tmp_path)


@quick
@given(data=st.data())
def test_records_with_an_odd_value_and_the_right_checksum(data: st.DataObject, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in example("journal").splitlines()]
    at = data.draw(st.integers(0, len(rows) - 1))
    rows[at]["data"] = changed(rows[at]["data"], data)
    lines = [encode(Record(r["n"], r["kind"], r["data"], r["at"])) for r in rows]
    refused(PARSERS["journal"], b"".join(lines), tmp_path)


@quick
@given(data=st.data())
def test_yaml_with_an_odd_value(data: st.DataObject, tmp_path: Path) -> None:
    import yaml

    for name in ("config", "target"):
        document = changed(yaml.safe_load(example(name)), data)
        try:
            text = yaml.safe_dump(document)
        except (ValueError, yaml.YAMLError):  # more digits than Python writes
            continue
        refused(PARSERS[name], text.encode("utf-8", errors="replace"), tmp_path)


@pytest.mark.parametrize(
    "name", ["policy", "evidence", "study", "results", "config", "set", "target", "pool"]
)
@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"a":' * 50_000, b"9" * 50_000, b"-" * 50_000, b"\xff\xfe", b"{a: &a [*a]}"],
    ids=["lists", "objects", "digits", "dashes", "no text", "alias"],
)
def test_what_has_no_end(name: str, content: bytes, tmp_path: Path) -> None:
    assert refused(PARSERS[name], b"bits=" + content if name == "set" else content, tmp_path) is not None
