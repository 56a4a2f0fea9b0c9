from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search import units
from search.errors import UsageError


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("3ms", units.LATENCY, 3.0),
        ("250us", units.LATENCY, 0.25),
        ("250 µs", units.LATENCY, 0.25),
        ("1.2s", units.LATENCY, 1200.0),
        ("200kB", units.SIZE, 200e3),
        ("1MB", units.SIZE, 1e6),
        ("1MiB", units.SIZE, 1048576.0),
        ("5mJ", units.ENERGY, 5.0),
        ("40MMACs", units.MACS, 40e6),
        ("1.2GMACs", units.MACS, 1.2e9),
        ("45s", units.DURATION, 45.0),
        ("3m", units.DURATION, 180.0),
        ("10min", units.DURATION, 600.0),
    ],
)
def test_absolute(text: str, kind: units.Kind, value: float) -> None:
    limit = units.parse_limit(text, kind, "--max")
    assert limit.value == pytest.approx(value)
    assert not limit.relative
    assert limit.resolve(base=123.0) == pytest.approx(value)


def test_relative_is_of_the_base() -> None:
    limit = units.parse_limit("0.5x", units.LATENCY, "--max-latency")
    assert limit.relative
    assert limit.written == "0.5x"
    assert limit.resolve(6.32) == pytest.approx(3.16)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("3", "has no unit"),
        (3, "has no unit"),
        ("fast", "not a number"),
        ("3,5ms", "is no unit"),
        ("3mJ", "is no unit of latency"),
        ("-3ms", "larger than 0"),
        ("0ms", "larger than 0"),
        ("0x", "larger than 0"),
        ("nan ms", "not a number"),
        ("1e999ms", "larger than 0"),
        ("", "not a number"),
    ],
)
def test_refused(text: object, part: str) -> None:
    with pytest.raises(UsageError) as caught:
        units.parse_limit(text, units.LATENCY, "--max-latency")
    assert part in caught.value.message
    assert "--max-latency" in caught.value.message
    assert "3ms" in (caught.value.hint or "")
    assert caught.value.exit_code == 2


def test_energy_tells_milli_from_mega() -> None:
    with pytest.raises(UsageError, match="no unit of energy"):
        units.parse_limit("5MJ", units.ENERGY, "--max-energy")
    with pytest.raises(UsageError, match="cannot be relative"):
        units.parse_limit("2x", units.DURATION, "--timeout")


def test_seconds_and_points() -> None:
    assert units.parse_seconds("0", "--recover") == 0.0
    assert units.parse_seconds("0s", "--recover") == 0.0
    assert units.parse_seconds("1.5m", "--recover") == 90.0
    assert units.parse_points("1.0", "--max-drop") == 1.0
    assert units.parse_points("0pt", "--max-drop") == 0.0
    for bad in ("60", "soon", "0q"):
        with pytest.raises(UsageError):
            units.parse_seconds(bad, "--timeout")
    for bad in ("-1", "1%", "x"):
        with pytest.raises(UsageError):
            units.parse_points(bad, "--max-drop")


def test_shown() -> None:
    assert units.format_ms(3.0204) == "3.02 ms"
    assert units.format_ms(0.1834) == "0.183 ms"
    assert units.format_ms(0.0021) == "2.10 µs"
    assert units.format_ms(9.9999) == "10.0 ms"
    assert units.format_ms(12345.0) == "12.3 s"
    assert units.format_interval(4.21, 9.49) == "4.2-9.5"
    assert units.format_interval(12.1, 12.4) == "12.1-12.4"
    assert units.format_bytes(212_345) == "212 kB"
    assert units.format_bytes(1_094_000) == "1094 kB"
    assert units.format_bytes(23_400_000) == "23.4 MB"
    assert units.format_macs(40_812_345) == "40.8 MMACs"
    assert units.format_mj(0.812) == "812 µJ"
    assert units.format_points(0.41) == "0.4 pt"
    assert units.format_points(-0.01) == "0.0 pt"
    assert units.format_metric(0.986, "%") == "98.6 %"
    assert units.format_metric(0.98612, "cosine") == "0.9861 cosine"
    assert units.format_seconds(59.4) == "0:59"
    assert units.format_seconds(3723) == "1:02:03"
    assert units.format_count(271_000) == "0.27 M"
    assert units.format_cost("macs", 1000) == "1.00 kMACs"


@given(st.floats(1e-3, 1e6), st.sampled_from(["ns", "us", "ms", "s"]))
def test_number_survives(value: float, unit: str) -> None:
    limit = units.parse_limit(f"{value!r}{unit}", units.LATENCY, "--max-latency")
    factor = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}[unit]
    assert limit.value == pytest.approx(value * factor)
    assert limit.written == f"{value!r}{unit}"
    assert limit.resolve(1.0) == limit.value
