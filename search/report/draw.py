"""Draws the values of `search.report.data` as SVG."""

from __future__ import annotations

from collections.abc import Callable

from search.report.data import Agreement, Dot, FrontPlot, LayerBar, ProgressPlot, TimeBar
from search.report.svg import Axes, drawing, number, padded, tag, text
from search.units import format_cost, format_interval, format_macs, format_ms

_RADIUS = {
    "tried": 2.2,
    "infeasible": 2.2,
    "uniform": 4.0,
    "int8": 6.0,
    "base": 6.0,
    "front": 5.0,
    "picked": 7.0,
}
#: The three rows of the layer plot, in pixels from the top.
MACS_TOP, MACS_HEIGHT = 20.0, 110.0
KEPT_TOP, KEPT_HEIGHT = 162.0, 80.0
BITS_TOP = 260.0
_LEGEND = {
    "front": "Pareto front",
    "picked": "picked",
    "base": "uncompressed",
    "int8": "plain INT8",
    "uniform": "uniform scaling",
    "tried": "evaluated, feasible",
    "infeasible": "evaluated, not feasible",
}


def draw_front(plot: FrontPlot) -> str:
    """Metric over cost, with the budget as a line and intervals as whiskers."""
    scale = 1.0 if plot.cost == "latency_ms" else 1e-6
    axes = Axes(860, 420, (plot.x_range[0] * scale, plot.x_range[1] * scale), plot.y_range, (66, 14, 18, 74))
    name = "latency, ms" if plot.cost == "latency_ms" else "MMACs"
    axes.axes(f"{name} ({plot.x_source})", f"{plot.metric}, {plot.unit or 'value'} on validation")
    if plot.budget is not None:
        _budget(axes, plot, scale)
    _line(axes, [d for d in plot.dots if d.kind == "uniform"], scale, "uniform")
    _line(
        axes,
        sorted((d for d in plot.dots if d.kind in ("front", "picked")), key=lambda d: d.x),
        scale,
        "front",
    )
    for dot in plot.dots:
        if axes.inside(dot.x * scale, dot.y):
            _dot(axes, dot, scale, plot)
    kinds = [k for k in _LEGEND if any(d.kind == k for d in plot.dots)]
    _legend(axes, [(k, _LEGEND[k]) for k in kinds])
    return axes.svg(f"{plot.metric} against {name} with the Pareto front")


def _budget(axes: Axes, plot: FrontPlot, scale: float) -> None:
    limit = (plot.budget or 0.0) * scale
    x = axes.x(limit)
    width = x - axes.left
    axes.add(
        tag("rect", x=axes.left, y=axes.top, width=width, height=axes.bottom - axes.top, class_="inside")
    )
    axes.add(tag("line", x1=x, x2=x, y1=axes.top, y2=axes.bottom, class_="budget"))
    axes.add(
        text(x + 5, axes.top + 13, f"budget {format_cost(plot.cost, plot.budget or 0.0)}", class_="tick")
    )


def _line(axes: Axes, dots: list[Dot], scale: float, kind: str) -> None:
    seen = [d for d in dots if axes.inside(d.x * scale, d.y)]
    if len(seen) > 1:
        path = " ".join(f"{number(axes.x(d.x * scale))},{number(axes.y(d.y))}" for d in seen)
        axes.add(tag("polyline", points=path, class_=f"line {kind}"))


def _dot(axes: Axes, dot: Dot, scale: float, plot: FrontPlot) -> None:
    x, y = axes.x(dot.x * scale), axes.y(dot.y)
    whiskers = dot.kind in ("front", "picked", "base", "int8")
    if whiskers and dot.x_low is not None and dot.x_high is not None:
        ends = [min(max(axes.x(v * scale), axes.left), axes.right) for v in (dot.x_low, dot.x_high)]
        axes.add(tag("line", x1=ends[0], x2=ends[1], y1=y, y2=y, class_=f"whisker {dot.kind}"))
    if whiskers and dot.y_low is not None and dot.y_high is not None:
        ends = [min(max(axes.y(v), axes.top), axes.bottom) for v in (dot.y_low, dot.y_high)]
        axes.add(tag("line", x1=x, x2=x, y1=ends[0], y2=ends[1], class_=f"whisker {dot.kind}"))
    said = f"{dot.label}: {plot.metric} {dot.y:.4g} {plot.unit} at {format_cost(plot.cost, dot.x)}"
    if dot.x_low is not None and dot.x_high is not None and plot.cost == "latency_ms":
        said += f" ({format_interval(dot.x_low, dot.x_high)})"
    axes.add(tag("circle", title=said, cx=x, cy=y, r=_RADIUS[dot.kind], class_=f"dot {dot.kind}"))


def _legend(axes: Axes, entries: list[tuple[str, str]]) -> None:
    x = axes.left
    y = axes.height - 8
    for kind, words in entries:
        radius = min(_RADIUS[kind], 5.0)
        axes.add(tag("circle", cx=x + 5, cy=y - 4, r=radius, class_=f"dot {kind}"))
        axes.add(text(x + 14, y, words, class_="tick"))
        x += 26 + 6.6 * len(words)


def draw_layers(bars: tuple[LayerBar, ...]) -> str:
    """Three rows over the same layers: MACs before and after, channels and rank kept, bits."""
    step = max(11.0, min(38.0, 840.0 / max(1, len(bars))))
    left, labels = 84.0, 9 + max((6.2 * len(_short(b.name)) for b in bars), default=0)
    width = left + step * len(bars) + 12
    most = max((b.macs for b in bars), default=1.0) or 1.0
    parts = [
        *_panel(left, width, MACS_TOP, MACS_HEIGHT, "MACs", [(0.0, "0"), (1.0, format_macs(most))]),
        *_panel(left, width, KEPT_TOP, KEPT_HEIGHT, "kept", [(0.0, "0"), (0.5, "50 %"), (1.0, "100 %")]),
        text(left - 6, BITS_TOP + 17, "bits", "end", "tick strong"),
    ]
    for i, bar in enumerate(bars):
        x = left + step * i
        parts += _layer_column(bar, x, step, most)
        middle, y = x + step / 2 + 4, BITS_TOP + 44
        turned = f"rotate(-90 {number(middle)} {number(y)})"
        parts.append(text(middle, y, _short(bar.name), "end", "tick", transform=turned))
    return drawing(
        max(width, 480), BITS_TOP + 44 + labels, parts, "per layer: MACs, channels and rank kept, bits"
    )


def _panel(
    left: float, width: float, top: float, height: float, name: str, marks: list[tuple[float, str]]
) -> list[str]:
    parts = [text(left, top - 6, name, class_="tick strong")]
    for share, label in marks:
        y = top + height * (1 - share)
        parts.append(tag("line", x1=left, x2=width - 8, y1=y, y2=y, class_="grid"))
        parts.append(text(left - 6, y + 4, label, "end", "tick"))
    return parts


def _layer_column(bar: LayerBar, x: float, step: float, most: float) -> list[str]:
    inner, gap = step * 0.76, step * 0.12
    said = f"{bar.name}: {format_macs(bar.macs)} → {format_macs(bar.macs_after)}"
    said += f", {100 * bar.keep:.0f} % of the channels"
    if bar.rank is not None:
        said += f", {100 * bar.rank:.0f} % of the rank"
    parts = []
    for macs, kind in ((bar.macs, "ghost"), (bar.macs_after, "bar")):
        height = MACS_HEIGHT * macs / most
        parts.append(_rect(x + gap, MACS_TOP + MACS_HEIGHT - height, inner, height, kind, said))
    parts.append(_rect(x + gap, KEPT_TOP, inner, KEPT_HEIGHT, "ghost", said))
    if not bar.removed:
        height = KEPT_HEIGHT * bar.keep
        parts.append(_rect(x + gap, KEPT_TOP + KEPT_HEIGHT - height, inner, height, "bar", said))
        if bar.rank is not None:
            y = KEPT_TOP + KEPT_HEIGHT * (1 - bar.rank)
            parts.append(tag("line", x1=x + gap, x2=x + gap + inner, y1=y, y2=y, class_="rank"))
    return [*parts, *_bits_tile(bar, x + gap, inner)]


def _bits_tile(bar: LayerBar, x: float, inner: float) -> list[str]:
    if bar.removed:
        words, kind, said = "–", "none", f"{bar.name}: removed"
    elif bar.weight_bits >= 32:
        words, kind, said = "fp", "float", f"{bar.name}: float"
    else:
        acts = "float" if bar.act_bits >= 32 else f"{bar.act_bits}-bit"
        words, kind = str(bar.weight_bits), "int8" if bar.weight_bits == 8 else "low"
        said = f"{bar.name}: {bar.weight_bits}-bit weights, {acts} activations"
    tile = _rect(x, BITS_TOP, inner, 26, f"tile {kind}", said)
    ink = "tilet dark" if kind in ("none", "float") else "tilet"
    return [tile, text(x + inner / 2, BITS_TOP + 17, words, "middle", ink)] if inner >= 13 else [tile]


def _rect(x: float, y: float, width: float, height: float, kind: str, said: str = "") -> str:
    return tag("rect", title=said, x=x, y=y, width=width, height=max(height, 0.0), rx=1.5, class_=kind)


def _short(name: str, most: int = 22) -> str:
    return name if len(name) <= most else "…" + name[-(most - 1) :]


def draw_times(bars: tuple[TimeBar, ...]) -> str:
    """Two bars a class of kernels: before and after."""
    most = max(max(b.before_ms, b.after_ms) for b in bars) or 1.0
    left = 24 + max(6.6 * len(b.name) for b in bars)
    width, row = 860.0, 40.0
    parts = [
        _rect(left, 4, 12, 10, "ghost"),
        text(left + 18, 13, f"uncompressed, {format_ms(sum(b.before_ms for b in bars))}", class_="tick"),
        _rect(left + 200, 4, 12, 10, "bar"),
        text(left + 218, 13, f"picked, {format_ms(sum(b.after_ms for b in bars))}", class_="tick"),
    ]
    for i, bar in enumerate(bars):
        y = 26 + row * i
        parts.append(text(left - 8, y + 18, bar.name, "end", "tick"))
        for k, (value, kind) in enumerate(((bar.before_ms, "ghost"), (bar.after_ms, "bar"))):
            length = (width - left - 90) * value / most
            parts.append(_rect(left, y + 14 * k, length, 12, kind, f"{bar.name}: {format_ms(value)}"))
            words = format_ms(value) if value > 0 else "–"
            parts.append(text(left + length + 6, y + 14 * k + 10, words, class_="tick"))
    return drawing(width, 30 + row * len(bars), parts, "latency by kind of kernel, before and after")


def draw_progress(plot: ProgressPlot) -> str:
    """Every evaluation as a dot, the best so far as a staircase."""
    # The first finds are far below the rest and would flatten it.
    values = [v for _, v in plot.best[min(2, len(plot.best) // 3) :]] + [v for _, v in plot.references]
    low, high = padded(
        values or [v for _, v, _ in plot.tried], share=0.25, least=abs(max(values or [1.0])) * 0.01
    )
    last = max(n for n, *_ in plot.tried)
    axes = Axes(860, 330, (0, max(last, 1) * 1.02), (low, high), (66, 14, 18, 46))
    axes.axes("evaluations", f"{plot.metric}, {plot.unit or 'value'}")
    for i, (name, value) in enumerate(plot.references):
        y = axes.y(value)
        axes.add(tag("line", x1=axes.left, x2=axes.right, y1=y, y2=y, class_="reference"))
        axes.add(text(axes.right - 4 - 110 * i, y - 5, name, "end", "tick"))
    for n, value, feasible in plot.tried:
        if axes.inside(n, value):
            kind = "tried" if feasible else "infeasible"
            said = f"evaluation {n}: {value:.4g} {plot.unit}"
            axes.add(tag("circle", title=said, cx=axes.x(n), cy=axes.y(value), r=2.6, class_=f"dot {kind}"))
    if plot.best:

        def held(value: float) -> float:
            return min(axes.y(value), axes.bottom)

        axes.add(tag("path", d=_stairs(plot.best, axes.x, held), class_="line front"))
    return axes.svg("best so far against evaluations")


def _stairs(
    steps: tuple[tuple[int, float], ...], to_x: Callable[[float], float], to_y: Callable[[float], float]
) -> str:
    path = f"M{number(to_x(steps[0][0]))} {number(to_y(steps[0][1]))}"
    return path + "".join(f" H{number(to_x(n))} V{number(to_y(v))}" for n, v in steps[1:])


def draw_agreement(found: Agreement) -> str:
    """Measured over predicted latency; on the line they agree."""
    values = [v for _, *pair in found.pairs for v in pair]
    span = (0.0, max(values) * 1.08)
    axes = Axes(460, 400, span, span)
    axes.axes("predicted, ms", "measured, ms")
    low, high = axes.x(0), axes.x(span[1])
    axes.add(tag("line", x1=low, y1=axes.y(0), x2=high, y2=axes.y(span[1]), class_="reference"))
    for name, predicted, measured in found.pairs:
        said = f"{name}: predicted {format_ms(predicted)}, measured {format_ms(measured)}"
        axes.add(
            tag("circle", title=said, cx=axes.x(predicted), cy=axes.y(measured), r=5, class_="dot front")
        )
    return axes.svg("measured against predicted latency")
