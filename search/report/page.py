"""The report: one HTML file that opens offline, drawn from `results.json` alone."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from search.console import budget_text, front_cells, verified_text, with_interval
from search.matrix_text import common_line, matrix_cells
from search.report import data, draw, why
from search.results import Matrix, Network, Point, Results, picked_point, read_results
from search.runfolder import FIGURES, REPORT, RESULTS, atomic_write, told_clearly
from search.units import (
    format_bytes,
    format_macs,
    format_metric,
    format_ms,
    format_points,
    format_seconds,
    significant,
)

_HERE = Path(__file__).parent


def write_report(folder: Path) -> Path:
    """Writes `report.html` and `figures/*.svg` of a run's folder from its results. Returns the report's path.

    Raises InputError where there are no results or the folder cannot be written to.
    """
    folder = Path(folder)
    results = read_results(folder / RESULTS)
    figures = draw_figures(results)
    with told_clearly("create", folder / FIGURES):
        (folder / FIGURES).mkdir(exist_ok=True)
    style = (_HERE / "style.css").read_text(encoding="utf-8")
    for name, svg in figures.items():
        # A file of its own has no page around it to take its colours from.
        start = svg.index(">") + 1
        atomic_write(folder / FIGURES / f"{name}.svg", f"{svg[:start]}<style>{style}</style>{svg[start:]}\n")
    return atomic_write(folder / REPORT, render_page(results, figures))


def draw_figures(results: Results) -> dict[str, str]:
    """SVG by name: those that the results hold enough for."""
    figures = {"front": draw.draw_front(data.front_plot(results))}
    layers = data.layer_bars(picked_point(results))
    if layers:
        figures["layers"] = draw.draw_layers(layers)
    times = data.time_bars(results)
    if times:
        figures["times"] = draw.draw_times(times)
    progress = data.progress_plot(results)
    if progress.tried:
        figures["progress"] = draw.draw_progress(progress)
    agreement = data.agreement(results)
    if agreement is not None:
        figures["agreement"] = draw.draw_agreement(agreement)
    return figures


def render_page(results: Results, figures: dict[str, str] | None = None) -> str:
    """The page as HTML, nothing loaded from elsewhere."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    drawn = draw_figures(results) if figures is None else figures
    names = ("front", "layers", "times", "progress", "agreement")
    svgs = {f"{name}_svg": Markup(drawn.get(name, "")) for name in names}
    style = Markup((_HERE / "style.css").read_text(encoding="utf-8"))
    page = environment.get_template("template.html.j2").render(style=style, **svgs, **_context(results))
    return page + "\n"


def _context(results: Results) -> dict[str, Any]:
    picked, run = picked_point(results), results["run"]
    check = results.get("verification")
    samples = results["task"]["samples"].items()
    timings = (results.get("timings") or {}).items()
    heading, *rows = front_cells(results)
    changed, left = why.reasons(results)
    matrix = results.get("matrix")
    return {
        "task": {"fingerprint": "", **results["task"]},
        "target": results["target"],
        "run": {"cpu": "", **run, "created": run["created"].replace("T", " ")[:16]},
        "picked": picked,
        "tiles": [] if picked is None else _tiles(results, picked),
        "budget": budget_text(results),
        "prediction_note": _prediction_note(results),
        "verified": verified_text(check, "the searched network"),
        "passed": bool(check and check["passed"]),
        "searched": _searched(results),
        "front_caption": _front_caption(results),
        "front_heading": heading,
        "front_rows": [{"kind": _row_kind(cells[0]), "cells": cells} for cells in rows],
        "any_rank": any(b.rank is not None for b in data.layer_bars(picked)),
        "layer_heading": LAYER_HEADING,
        "layer_rows": [] if picked is None else layer_rows(picked),
        "why_heading": why.HEADING,
        "why_changed": changed,
        "why_left": left,
        "ranked": _ranked(results),
        "agreement_caption": _agreement_caption(results),
        "matrix": None if matrix is None else matrix_cells(matrix, results["task"]["metric_unit"]),
        "matrix_notes": [] if matrix is None else _matrix_notes(matrix, results),
        "events": results.get("events") or [],
        "notes": results.get("notes") or [],
        "command": shlex.join(run["command"]),
        "versions": sorted(run.get("versions", {}).items()),
        "samples": ", ".join(f"{name} {count}" for name, count in samples) + " samples",
        "timings": ", ".join(f"{name} {format_seconds(seconds)}" for name, seconds in timings),
        "files": ", ".join(results.get("files") or []),
    }


def _tiles(results: Results, picked: Point) -> list[dict[str, str]]:
    base, unit, metric = results["base"], results["task"]["metric_unit"], results["task"]["metric"]
    tiles = []
    score, drop = picked.get("validation"), picked.get("drop")
    if score is not None:
        side = "" if drop is None else "better" if drop < 0 else "worse"
        lost = "" if drop is None else f"{format_points(abs(drop))} {side} than the uncompressed network"
        tiles.append(
            {"name": f"{metric}, validation", "value": format_metric(score["value"], unit), "note": lost}
        )
    test, before = picked.get("test"), base.get("test")
    if test is not None:
        was = "" if before is None else f"uncompressed {format_metric(before['value'], unit)}; "
        note = f"{was}{test['samples']} samples, scored once"
        tiles.append({"name": f"{metric}, test", "value": format_metric(test["value"], unit), "note": note})
    return [*tiles, *_cost_tiles(base, picked)]


def _cost_tiles(base: Network, picked: Point) -> list[dict[str, str]]:
    tiles = []
    for source, costs, whole in (
        ("measured", picked.get("measured", {}), base.get("measured", {})),
        ("predicted", picked["costs"], base["costs"]),
    ):
        own, was = costs.get("latency_ms"), whole.get("latency_ms")
        if own is not None:
            factor = f"{was['value'] / own['value']:.1f}x faster; " if was and own["value"] else ""
            note = f"{factor}was {format_ms(was['value'])}" if was else ""
            low, high = own.get("low"), own.get("high")
            if source == "predicted" and low is not None and high is not None:
                note += f"; between {significant(low)} and {significant(high)} ms"
            tiles.append(
                {"name": f"latency, {own['source']}", "value": format_ms(own["value"]), "note": note}
            )
    size, full = picked["costs"].get("size_bytes"), base["costs"].get("size_bytes")
    if size is not None:
        note = f"was {format_bytes(full['value'])}" if full else ""
        tiles.append({"name": "size", "value": format_bytes(size["value"]), "note": note})
    return tiles


def _prediction_note(results: Results) -> str:
    latency = results["base"]["costs"].get("latency_ms")
    if latency is None or latency["source"] != "predicted":
        return ""
    confidence = f"{100 * results['target']['confidence']:.0f} %"
    return f"Latencies are predicted, with {confidence} intervals, unless they say measured."


def _searched(results: Results) -> str:
    s = results["search"]
    more = [
        f"{count} {words}"
        for key, words in (
            ("rejected", "rejected unseen"),
            ("stopped", "stopped early"),
            ("reused", "reused"),
            ("disagreed", "scored by simulation, since the runtime answered otherwise"),
        )
        if (count := s.get(key))
    ]
    counts = ", ".join(
        [f"{s['evaluated']} of {s['planned']} policies evaluated", f"{s['feasible']} feasible", *more]
    )
    space = f"{s['layers']} layers, 10^{s['log10_policies']:.0f} policies"
    return f"{counts}; agent {s['agent']} ({s['summary']}); {space}"


def _front_caption(results: Results) -> str:
    plot = data.front_plot(results)
    left_out = f" {plot.outside} of {len(plot.dots)} lie outside the frame." if plot.outside else ""
    return f"Up and to the left is better. Whiskers are intervals.{left_out}"


def _row_kind(label: str) -> str:
    if label.startswith("*"):
        return "picked"
    return "" if label.strip().isdigit() else "reference"


def _ranked(results: Results) -> str:
    """How well what the search relies on ranked the policies; "" where it was not told."""
    rows = [
        f"the {p['name']} {p['spearman']:.2f} ({p['low']:.2f} to {p['high']:.2f}, {p['policies']} policies)"
        for p in results.get("proxies") or []
    ]
    if not rows:
        return ""
    return f"How well stand-ins ranked what was scored in full (Spearman, 95 % interval): {', '.join(rows)}."


def _agreement_caption(results: Results) -> str:
    found = data.agreement(results)
    if found is None:
        return ""
    tau = "" if found.tau is None else f", Kendall's tau {found.tau:.2f}"
    return f"{len(found.pairs)} networks: mean error {found.mape:.1f} %{tau}."


def _matrix_notes(matrix: Matrix, results: Results) -> list[str]:
    task = results["task"]
    found = common_line(matrix, task["metric"], task["metric_unit"]).split(maxsplit=1)[1]
    marks = "~: the nearest policy that this target executes; (!): outside that target's budget."
    return [f"Not recovered. {marks}", f"Common to all: {found}."]


LAYER_HEADING = ("layer", "shape", "channels", "rank", "weights", "activations", "MACs", "latency")


def layer_rows(point: Point) -> list[tuple[str, ...]]:
    """Cells of the layer table, one row a layer; before → after where something changed."""
    rows: list[tuple[str, ...]] = []
    for layer in point.get("layers", []):
        before, after = layer.get("latency_ms"), layer.get("latency_after_ms")
        latency = "" if after is None else format_ms(after)
        if before is not None and after is not None:
            latency = f"{format_ms(before)} → {format_ms(after)}"
        gone = layer["removed"]
        rows.append(
            (
                layer["name"],
                layer["shape"],
                "removed" if gone else _change(str(layer["channels"]), str(layer["channels_after"])),
                "" if gone else layer.get("factor") or "dense",
                "" if gone else _bits(layer["weight_bits"]),
                "" if gone else _bits(layer["act_bits"]),
                _change(format_macs(layer["macs"]), format_macs(layer["macs_after"])),
                latency,
            )
        )
    return rows


def _change(before: str, after: str) -> str:
    return before if before == after else f"{before} → {after}"


def _bits(bits: int) -> str:
    return "float" if bits >= 32 else f"{bits} bit"


__all__ = ["draw_figures", "layer_rows", "render_page", "with_interval", "write_report"]
