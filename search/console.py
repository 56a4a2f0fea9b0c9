"""Plain text of what was found, drawn from the documents of `search.results` alone.

The run and `search report` print the same because both call `render`. Nothing here knows a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from search.results import (
    Applied,
    Measurement,
    Network,
    Number,
    Point,
    Prediction,
    Results,
    Score,
    Sibling,
    Verification,
)
from search.units import (
    format_bytes,
    format_cost,
    format_count,
    format_interval,
    format_macs,
    format_metric,
    format_ms,
    format_points,
    format_seconds,
    significant,
)

if TYPE_CHECKING:
    from agents.contract import Outcome

COST_NAMES: Mapping[str, str] = {
    "latency_ms": "latency",
    "size_bytes": "size",
    "memory_bytes": "memory",
    "energy_mj": "energy",
    "macs": "MACs",
}


class Progress(Protocol):
    """What a running study tells whoever watches. Nothing that is told changes the study."""

    def header(self, lines: Sequence[str]) -> None:
        """What is about to be searched, before the first evaluation; see `header_lines`."""

    def start(self, total: int, done: int = 0, unit: str = "%") -> None:
        """`total` evaluations are planned, `done` were there already; `unit` is the metric's."""

    def update(self, outcome: Outcome, best: Outcome | None, front_size: int, feasible_share: float) -> None:
        """One evaluation ended. `best` is the one that would be picked now; the share is in 0..1."""

    def note(self, text: str) -> None:
        """One line that a person should see now: a phase begins, something was put right."""

    def close(self) -> None:
        """The study ended, one way or the other."""


class Silent:
    """A Progress that tells nobody."""

    def header(self, lines: Sequence[str]) -> None: ...
    def start(self, total: int, done: int = 0, unit: str = "%") -> None: ...
    def update(
        self, outcome: Outcome, best: Outcome | None, front_size: int, feasible_share: float
    ) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


def table(rows: Sequence[Sequence[str]], left: Sequence[int] = (), gap: str = "  ") -> list[str]:
    """Lines of a table, every column as wide as it needs; columns in `left` are flush left, others right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        gap.join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def render(results: Results, folder: Path | None = None, header: bool = True) -> str:
    """The whole transcript of a run: header lines, table, footer."""
    lines = [*header_lines(results), ""] if header else []
    lines += front_lines(results)
    return "\n".join([*lines, "", *footer_lines(results, folder)]).rstrip() + "\n"


def header_lines(results: Results) -> list[str]:
    """Run, task, target, what the costs rest on, budget, agent. Needs no points."""
    run, task, target, search = results["run"], results["task"], results["target"], results["search"]
    about = f"{format_count(task['parameters'])} params, {format_macs(task['macs'])}"
    threads = f"{target['threads']} thread{'s' if target['threads'] != 1 else ''}"
    scored = _score(results["base"].get("validation"), results)
    metric = f"        {task['metric']} {scored}" if scored else ""
    space = f"{search['layers']} layers, 10^{search['log10_policies']:.0f} policies"
    unvalidated = "" if target["validated"] else ", unvalidated"
    return [
        f"tailorbird {run['version']}   run {run['id']}   seed {run['seed']}",
        f"task     {task['name']}: {task['network']}, {about}{metric}",
        f"target   {target['name']}: {target['title']}, batch {target['batch']}, {threads}",
        f"cost     {target['backing']}{unvalidated}{_arrow(results)}",
        f"budget   {budget_text(results):<36} space  {space}",
        f"agent    {search['agent']}: {search['summary']}",
    ]


def _arrow(results: Results) -> str:
    latency = results["base"]["costs"].get("latency_ms")
    if latency is None or latency["source"] != "predicted":
        return ""
    if any(_latency(n.get("measured")) for n in (results["base"], *results["points"])):
        return "  → latencies are predicted unless they say measured"
    return "  → every latency below is PREDICTED"


def budget_text(results: Results) -> str:
    """`latency ≤ 3.16 ms (0.5x)`, or what is minimised."""
    budget = results["budget"]
    parts = []
    for cost, limit in budget["limits"].items():
        shown = format_cost(cost, limit["limit"])
        written = (
            "" if limit["written"].replace(" ", "") == shown.replace(" ", "") else f" ({limit['written']})"
        )
        parts.append(f"{COST_NAMES.get(cost, cost)} ≤ {shown}{written}")
    drop = budget.get("max_drop")
    if drop is not None:
        parts.append(f"drop ≤ {format_points(drop)}")
    risk = budget.get("risk")
    if risk is not None:
        parts.append(f"judged by the {100 * risk:.0f} % bound")
    prefix = "least latency, " if budget["objective"] == "latency" else ""
    return prefix + ", ".join(parts)


def front_cells(results: Results) -> list[list[str]]:
    """The table's cells, heading first: base, baselines, front. At most seven columns."""
    measured = any(_latency(n.get("measured")) for n in results["points"])
    rows = [_heading(results, measured), _row("base", results["base"], results, measured)]
    rows += [_row(_label(n), n, results, measured) for n in baselines(results)]
    return rows + [
        _row(f"{'*' if p['picked'] else ' '} {p['number']}", p, results, measured) for p in results["points"]
    ]


def baselines(results: Results) -> list[Network]:
    """Plain INT8 and uniform scaling, as far as they were tried."""
    return [n for n in (results.get("plain_int8"), *(results.get("uniform") or [])) if n is not None]


def front_lines(results: Results) -> list[str]:
    """The table with its title."""
    measured = any(_latency(n.get("measured")) for n in results["points"])
    where = "predicted and measured" if measured else _source(results["base"])
    counts = f"{len(results['points'])} of {results['search']['feasible']} feasible"
    title = f"Pareto front ({counts}), {where} on {results['target']['name']}"
    lines = [title, *(f"  {line}" for line in table(front_cells(results)))]
    if any(n.get("feasible") is False for n in baselines(results)):
        lines.append("  (!) outside the budget")
    return lines


def _label(network: Network) -> str:
    return network["name"] + (" (!)" if network.get("feasible") is False else "")


def _heading(results: Results, measured: bool) -> list[str]:
    confidence = 100 * results["target"]["confidence"]
    head = ["#", results["task"]["metric"], "drop", f"latency, {confidence:.0f} % interval"]
    return [*head, *(["measured", "vs base", "size"] if measured else ["vs base", "size", "MMACs"])]


def _row(label: str, network: Network, results: Results, measured: bool) -> list[str]:
    costs, base = network["costs"], results["base"]
    drop = network.get("drop")
    cells = [
        label,
        _score(network.get("validation"), results),
        "" if drop is None or label == "base" else format_points(drop),
        with_interval(costs.get("latency_ms")),
    ]
    size = costs.get("size_bytes")
    sized = format_bytes(size["value"]) if size else ""
    if measured:
        own, whole = _latency(network.get("measured")), _latency(base.get("measured"))
        return [*cells, format_ms(own) if own else "", _times(whole, own), sized]
    macs = costs.get("macs")
    times = _times(_latency(base["costs"]), _latency(costs))
    return [*cells, times, sized, _millions(macs["value"]) if macs else ""]


def _millions(macs: float) -> str:
    return f"{macs / 1e6:.1f}" if macs >= 1e6 else significant(macs / 1e6)


def with_interval(number: Number | None) -> str:
    """`3.02 ms (2.0-4.5)`."""
    if number is None:
        return ""
    low, high = number.get("low"), number.get("high")
    shown = format_ms(number["value"])
    if low is None or high is None:
        return shown
    factor = {"s": 1e-3, "µs": 1e3}.get(shown.rpartition(" ")[2], 1.0)
    return f"{shown} ({format_interval(low * factor, high * factor)})"


def _latency(costs: Mapping[str, Number] | None) -> float | None:
    number = (costs or {}).get("latency_ms")
    return None if number is None else number["value"]


def _times(base: float | None, own: float | None) -> str:
    return f"{base / own:.1f}x" if base and own else ""


def _source(network: Network) -> str:
    latency = network["costs"].get("latency_ms")
    return latency["source"] if latency else "costs"


def _score(score: Score | None, results: Results) -> str:
    return "" if score is None else format_metric(score["value"], results["task"]["metric_unit"])


def footer_lines(results: Results, folder: Path | None = None) -> list[str]:
    """What was picked and why, the test score, verification, what differs, files, and what to do next."""
    picked = next((p for p in results["points"] if p["picked"]), None)
    lines: list[str] = []
    if picked is not None:
        lines += [f"* picked: {_why_picked(results)}", *_test_line(picked, results)]
    lines += _line("verified", verified_text(results.get("verification"), "the searched network"))
    lines += _line("differs", disagreed_text(results))
    for event in results.get("events") or []:
        lines += _line(event["kind"], event["text"])
    for other in results.get("siblings") or []:
        lines += _line("also", sibling_text(other))
    notes = results.get("notes") or []
    if notes:
        reasons = "; ".join(f"{n['subject']} ({n['reason']})" for n in notes[:3])
        more = f"; {len(notes) - 3} more in the report" if len(notes) > 3 else ""
        lines += _line("left", f"as it is: {reasons}{more}")
    timings = results.get("timings") or {}
    lines += _line("took", ", ".join(f"{k} {format_seconds(v)}" for k, v in timings.items() if v >= 0.5))
    if folder is not None:
        lines += _line("wrote", f"{folder}/{{{', '.join(results.get('files') or [])}}}")
        lines += _next(results, folder)
    return lines


def disagreed_text(results: Results) -> str:
    """Of how many policies the runtime's answers were not believed; "" where of none."""
    count, of = results["search"].get("disagreed", 0), results["search"]["evaluated"]
    if not count:
        return ""
    return (
        f"on {count} of {of} policies the runtime answered otherwise than the searched network, by which "
        "they were scored; one that is delivered is verified again"
    )


def _why_picked(results: Results) -> str:
    drop = results["budget"].get("max_drop")
    if results["budget"]["objective"] == "latency" and drop is not None:
        return f"least latency with a drop of at most {format_points(drop)}"
    direction = "highest" if results["task"]["higher_is_better"] else "lowest"
    return f"{direction} {results['task']['metric']} inside the budget"


def _test_line(picked: Point, results: Results) -> list[str]:
    test, base = picked.get("test"), results["base"].get("test")
    if test is None:
        return []
    before = f" (uncompressed {_score(base, results)})" if base else ""
    return _line("test", f"{_score(test, results)}{before} on {test['samples']} samples the search never saw")


def verified_text(check: Verification | None, what: str) -> str:
    """One line on the comparison in the runtime, "" where there was none."""
    if check is None:
        return ""
    if not check["passed"]:
        differ = check["samples"] - check["agree"]
        return f"FAILED in {check['runtime']}: {differ} of {check['samples']} answers differ"
    text = (
        f"{check.get('file', 'model.onnx')} in {check['runtime']}: same answers as {what} "
        f"on {check['agree']} of {check['samples']}"
    )
    ties = f"; on {check['ties']} others two classes are as good as equal" if check.get("ties") else ""
    return f"{text} validation samples{'; ' + check['text'] if check.get('text') else ''}{ties}"


def sibling_text(other: Sibling) -> str:
    """`raspberry-pi-4/ncnn: 1.9 ms (1.5-2.4) predicted for the picked network: 0.61x, faster`."""
    latency = other.get("latency_ms")
    if latency is None:
        return f"{other['target']}: not priced: {other.get('why', 'unknown')}"
    shown = f"{with_interval(latency)} {latency['source']} for {other['network']}"
    return f"{other['target']}: {shown}: {other.get('verdict', '')}"


def _next(results: Results, folder: Path) -> list[str]:
    name = "latest" if folder.parent.name == "runs" else str(folder)
    if results["run"]["state"] == "interrupted":
        return _line("next", f"search --resume {name}")
    if "model.onnx" not in (results.get("files") or ["model.onnx"]):
        return _line("next", f"search report {name}")
    return [*_line("next", f"search measure {name}"), *_line("", f"search report {name}")]


def _line(word: str, text: str) -> list[str]:
    return [f"{word:<9} {text}"] if text else []


def render_prediction(found: Prediction) -> str:
    """What `search predict` prints: costs, then the kernels that take longest."""
    threads = f"{found['threads']} thread{'s' if found['threads'] != 1 else ''}"
    head = _line("target", f"{found['target']}, batch {found['batch']}, {threads}")
    head += _line("cost", found["backing"] + ("" if found["validated"] else ", unvalidated"))
    for name, number in found["costs"].items():
        shown = with_interval(number) if name == "latency_ms" else format_cost(name, number["value"])
        head += _line(COST_NAMES.get(name, name), f"{shown}  {number['source']}")
    slowest = sorted(found["kernels"], key=lambda k: -k["latency_ms"])[:10]
    rows = [["kernel", "precision", "layer", "latency"]]
    rows += [[k["kernel"], k["precision"], k.get("layer") or "", format_ms(k["latency_ms"])] for k in slowest]
    lines = [
        *head,
        "",
        f"slowest {len(slowest)} of {len(found['kernels'])} kernels",
        *table(rows, left=(0, 1, 2)),
    ]
    if found["unknown"]:
        lines += ["", f"without a cost, not counted: {', '.join(found['unknown'])}"]
    return "\n".join(lines) + "\n"


def render_measurement(found: Measurement) -> str:
    """What `search measure` prints: one row a network, all columns in ms but memory."""
    first = found["networks"][0]["min_cpu_ms"]
    rows = [["network", "load", "p50", "p95", "CPU minimum", "vs first", "memory"]]
    for n in found["networks"]:
        memory = format_bytes(n["memory_bytes"]) if n["memory_bytes"] else ""
        times = [format_ms(n[key]) for key in ("load_ms", "p50_ms", "p95_ms", "min_cpu_ms")]
        rows.append([n["name"], *times, f"{first / n['min_cpu_ms']:.2f}x", memory])
    threads = f"{found['threads']} thread{'s' if found['threads'] != 1 else ''}"
    where = f" on {found['device']}" if found.get("device") else ""
    soaked = f", after {found['soak_seconds']:.0f} s of running" if found.get("soak_seconds") else ""
    turns = f"batch {found['batch']}, {found['repeats']} turns each{soaked}"
    lines = [f"measured{where} with {found['runtime']}, {threads}, {turns}", *table(rows, left=(0,))]
    for n in found["networks"]:
        predicted = n.get("predicted_ms")
        if predicted:
            lines += _line("predicted", f"{n['name']}: {format_ms(predicted)}, off by "
                           f"{100 * (predicted / n['min_cpu_ms'] - 1):+.0f} %")  # fmt: skip
    if found.get("apart"):
        lines += _line("predicted", f"the run's predictions are of {found['apart']}: not compared")
    throttled = found.get("throttled")
    if throttled is not None:
        lines += _line("throttled", f"in {100 * throttled:.0f} % of the measurements")
    if not found["stable"]:
        lines += _line("unstable", found.get("why", "the turns differ too much"))
    return "\n".join(lines) + "\n"


def render_applied(found: Applied, folder: Path) -> str:
    """What `search apply` and `search export` print."""
    lines = _line("policy", found["digest"])
    score = found.get("validation")
    if score is not None:
        shown = format_metric(score["value"], found.get("metric_unit", ""))
        lines += _line(found.get("metric", "metric"), f"{shown} on {score['samples']} validation samples")
    for name, number in found.get("costs", {}).items():
        shown = with_interval(number) if name == "latency_ms" else format_cost(name, number["value"])
        lines += _line(COST_NAMES.get(name, name), f"{shown}  {number['source']}")
    lines += _line("verified", verified_text(found.get("verification"), "the compressed network"))
    for event in found.get("events") or []:
        lines += _line(event["kind"], event["text"])
    return "\n".join([*lines, *_line("wrote", f"{folder}/{{{', '.join(found['files'])}}}")]) + "\n"
