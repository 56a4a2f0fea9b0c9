"""The report's table of reasons: what each choice of the picked policy saves and risks."""

from __future__ import annotations

from collections.abc import Sequence

from search.results import Change, Explained, Results
from search.units import format_ms, significant

HEADING = ("layer", "choice", "saves", "risks", "a step smaller", "a step larger", "why")
#: Kind of a choice to the words before its value.
_WORDS = {"rank": "rank: ", "weight_bits": "weights: ", "act_bits": "activations: ", "removed": "block "}
#: Fewer milliseconds and nats than these are the last digits of a sum.
_NOTHING, _NO_LOSS = 5e-7, 1e-9


Row = tuple[str, ...]


def reasons(results: Results) -> tuple[list[Row], list[Row]]:
    """Rows of (what was changed, what was left as it is), cells as in `HEADING`.

    Both in the order of the layers; only the first of a layer's rows names it.
    """
    rows = results.get("explanation") or []
    changed = [r for r in rows if not _left(r)]
    return _grouped(changed), _grouped([r for r in rows if _left(r)])


def _left(row: Explained) -> bool:
    """A choice at its last value: there is no step up. What goes with a removed block has no step at all."""
    return row["step_up"] is None


def _grouped(rows: Sequence[Explained]) -> list[Row]:
    found: list[Row] = []
    last = ""
    for row in rows:
        name = row["layer"] or row["subject"]
        found.append((name if name != last else "", *_cells(row)))
        last = name
    return found


def _cells(row: Explained) -> Row:
    own = row["layer"] or row["subject"]
    words = f"{_WORDS.get(row['kind'], '')}{row['value']}"
    if row["subject"] != own and row["kind"] in ("keep", "removed"):
        words += f" ({row['subject']})"
    return (
        words,
        "" if abs(row["latency_ms"]) < _NOTHING else format_ms(row["latency_ms"]),
        nats(row["risk"]),
        _step(row["step_down"]),
        _step(row["step_up"]),
        row["why"],
    )


def nats(value: float | None) -> str:
    """A loss, short; powers of ten where it is small; "" where it was not measured or there is none."""
    if value is None or abs(value) < _NO_LOSS:
        return ""
    return significant(value) if abs(value) >= 0.001 else f"{value:.0e}".replace("e-0", "e-")


def _step(change: Change | None) -> str:
    if change is None:
        return "–"
    added, risk = change["latency_ms"], change["risk"]
    ms = "0 ms" if abs(added) < _NOTHING else f"{_sign(added)}{format_ms(abs(added))}"
    return ms if risk is None or abs(risk) < _NO_LOSS else f"{ms}, {_sign(risk)}{nats(abs(risk))}"


def _sign(value: float) -> str:
    return "+" if value > 0 else "−"


__all__ = ["HEADING", "nats", "reasons"]
