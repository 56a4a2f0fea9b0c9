"""What the report's plots show, computed from the results: frozen values, no drawing."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from search.results import KernelTime, Network, Point, Results, Score, Step, picked_point

Kind = Literal["tried", "infeasible", "uniform", "int8", "base", "front", "picked"]


@dataclass(frozen=True)
class Dot:
    """One network in the plane of cost and metric.

    `x` in the cost's unit, `y` the metric as shown (percent where its unit is %); None: unknown.
    """

    kind: Kind
    label: str
    x: float
    y: float
    x_low: float | None = None
    x_high: float | None = None
    y_low: float | None = None
    y_high: float | None = None


@dataclass(frozen=True)
class FrontPlot:
    """Metric against cost. `budget` on the x axis, None without one; `x_source` says how x is known.

    `x_range`, `y_range`: what to show. Hopeless policies would squeeze the rest: `outside` are left out.
    """

    dots: tuple[Dot, ...]
    metric: str
    unit: str
    cost: str
    x_source: str
    budget: float | None
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    outside: int

    def shows(self, dot: Dot) -> bool:
        """Whether a dot lies in the frame."""
        (left, right), (low, high) = self.x_range, self.y_range
        return left <= dot.x <= right and low <= dot.y <= high


@dataclass(frozen=True)
class LayerBar:
    """One layer of the picked policy: MACs before and after, shares in 0..1, bits (32: float)."""

    name: str
    macs: float
    macs_after: float
    keep: float
    rank: float | None
    weight_bits: int
    act_bits: int
    removed: bool


@dataclass(frozen=True)
class TimeBar:
    """Latency of one class of kernels in ms, in the uncompressed network and in the picked one."""

    name: str
    before_ms: float
    after_ms: float


@dataclass(frozen=True)
class ProgressPlot:
    """Evaluations in order: (number, metric as shown, feasible), and the best so far.

    `references`: name and metric of the base and of plain INT8.
    """

    tried: tuple[tuple[int, float, bool], ...]
    best: tuple[tuple[int, float], ...]
    references: tuple[tuple[str, float], ...]
    metric: str
    unit: str


@dataclass(frozen=True)
class Agreement:
    """Predicted against measured latency, in ms. MAPE in percent; Kendall's tau-b from three networks on."""

    pairs: tuple[tuple[str, float, float], ...]
    mape: float
    tau: float | None


def shown(value: float, unit: str) -> float:
    """A metric as on an axis: percent where the unit is %."""
    return 100 * value if unit == "%" else value


def front_plot(results: Results) -> FrontPlot:
    """Front, reference points, and every evaluation."""
    unit = results["task"]["metric_unit"]
    cost = "latency_ms" if "latency_ms" in results["base"]["costs"] else "macs"
    points = [
        _dot(p, "picked" if p["picked"] else "front", f"point {p['number']}", cost, unit)
        for p in results["points"]
    ]
    references = [_dot(results["base"], "base", "uncompressed", cost, unit)]
    int8 = results.get("plain_int8")
    if int8 is not None:
        references.append(_dot(int8, "int8", int8["name"], cost, unit))
    uniform = [_dot(n, "uniform", n["name"], cost, unit) for n in results.get("uniform") or []]
    tried = _tried(results, unit) if cost == "latency_ms" else []
    important = [d for d in (*points, *references) if d is not None]
    everything = tuple(d for d in (*tried, *uniform, *references, *points) if d is not None)
    limit = results["budget"]["limits"].get(cost)
    budget = None if limit is None else limit["limit"]
    known = results["base"]["costs"].get(cost)
    plot = FrontPlot(
        dots=everything,
        metric=results["task"]["metric"],
        unit=unit,
        cost=cost,
        x_source=known["source"] if known else "exact",
        budget=budget,
        x_range=_x_range([*important, *(d for d in uniform if d is not None)], budget),
        y_range=_y_range(important, results["task"]["higher_is_better"], unit == "%"),
        outside=0,
    )
    return dataclasses.replace(plot, outside=sum(not plot.shows(d) for d in everything))


def _dot(network: Network | Point, kind: Kind, label: str, cost: str, unit: str) -> Dot | None:
    costs, score = network["costs"].get(cost), network.get("validation")
    if costs is None or score is None:
        return None
    low, high = _bounds(score, unit)
    return Dot(
        kind,
        label,
        costs["value"],
        shown(score["value"], unit),
        costs.get("low"),
        costs.get("high"),
        low,
        high,
    )


def _bounds(score: Score, unit: str) -> tuple[float | None, float | None]:
    low, high = score.get("low"), score.get("high")
    return (None if low is None else shown(low, unit), None if high is None else shown(high, unit))


def _tried(results: Results, unit: str) -> list[Dot]:
    return [
        Dot(
            _kind(s),
            f"evaluation {s['number']}",
            s["latency_ms"],
            shown(s["accuracy"], unit),
        )
        for s in results.get("steps") or []
        if s["accuracy"] is not None and s["latency_ms"] is not None
    ]


def _kind(step: Step) -> Kind:
    return "tried" if step["feasible"] else "infeasible"


def _x_range(dots: Sequence[Dot], budget: float | None) -> tuple[float, float]:
    xs = [d.x for d in dots] + ([] if budget is None else [budget])
    return (0.0, max(xs) * 1.06) if xs else (0.0, 1.0)


def _y_range(dots: Sequence[Dot], higher_is_better: bool, percent: bool) -> tuple[float, float]:
    """What shows the good end of the front well: far worse points are left out, intervals may leave it."""
    if not dots:
        return 0.0, 1.0
    sign = 1.0 if higher_is_better else -1.0
    gains = [sign * d.y for d in dots]
    top = max(gains)
    near = max((4 * (top - sign * d.y) for d in dots if d.kind == "picked"), default=0.0)
    floor = top - max(near, 0.08 * abs(top))
    worst = min(g for g in gains if g >= floor)
    span = max(top - worst, abs(top) * 0.005, 1e-6)
    ends = sorted((sign * (worst - 0.5 * span), sign * (top + 0.25 * span)))
    return (max(ends[0], -1.0), min(ends[1], 101.0)) if percent else (ends[0], ends[1])


def layer_bars(point: Point | None) -> tuple[LayerBar, ...]:
    """The decisions of a point, layer by layer; empty where they are not known."""
    return tuple(
        LayerBar(
            row["name"],
            row["macs"],
            row["macs_after"],
            row["channels_after"] / row["channels"] if row["channels"] else 1.0,
            row.get("rank_ratio"),
            row["weight_bits"],
            row["act_bits"],
            row["removed"],
        )
        for row in (point.get("layers", []) if point else [])
    )


def time_bars(results: Results, most: int = 9) -> tuple[TimeBar, ...]:
    """Where the milliseconds went, by kind of kernel and precision, longest first, small ones together."""
    point = picked_point(results)
    before = _by_kernel(results.get("kernels") or [])
    after = _by_kernel(point.get("kernels", []) if point else [])
    if not before or not after:
        return ()
    names = sorted({*before, *after}, key=lambda n: -max(before.get(n, 0.0), after.get(n, 0.0)))
    bars = [TimeBar(n, before.get(n, 0.0), after.get(n, 0.0)) for n in names[:most]]
    rest = names[most:]
    if rest:
        sums = (sum(times.get(n, 0.0) for n in rest) for times in (before, after))
        bars.append(TimeBar(f"{len(rest)} others", *sums))
    return tuple(bars)


def _by_kernel(kernels: Iterable[KernelTime]) -> Mapping[str, float]:
    totals: dict[str, float] = {}
    for kernel in kernels:
        name = f"{kernel['kernel']} {kernel['precision']}".strip()
        totals[name] = totals.get(name, 0.0) + kernel["latency_ms"]
    return totals


def progress_plot(results: Results) -> ProgressPlot:
    """Best so far against the number of evaluations."""
    unit = results["task"]["metric_unit"]
    sign = 1.0 if results["task"]["higher_is_better"] else -1.0
    tried: list[tuple[int, float, bool]] = []
    best: list[tuple[int, float]] = []
    for step in results.get("steps") or []:
        if step["accuracy"] is None:
            continue
        value = shown(step["accuracy"], unit)
        tried.append((step["number"], value, step["feasible"]))
        if step["feasible"] and (not best or sign * value > sign * best[-1][1]):
            best.append((step["number"], value))
    if best:
        best.append((max(t[0] for t in tried), best[-1][1]))
    named = (("uncompressed", results["base"]), ("plain INT8", results.get("plain_int8")))
    references = tuple(
        (name, shown(score["value"], unit))
        for name, network in named
        if network is not None and (score := network.get("validation")) is not None
    )
    return ProgressPlot(tuple(tried), tuple(best), references, results["task"]["metric"], unit)


def agreement(results: Results) -> Agreement | None:
    """Predicted against measured latency; None where nothing was measured."""
    networks = [results["base"], *([n] if (n := results.get("plain_int8")) else []), *results["points"]]
    pairs = []
    for network in networks:
        predicted, measured = (
            network["costs"].get("latency_ms"),
            network.get("measured", {}).get("latency_ms"),
        )
        if predicted and measured and predicted["source"] == "predicted" and measured["value"] > 0:
            pairs.append((network["name"], predicted["value"], measured["value"]))
    if not pairs:
        return None
    mape = 100 * sum(abs(p / m - 1) for _, p, m in pairs) / len(pairs)
    tau = kendall_tau([p for _, p, _ in pairs], [m for *_, m in pairs]) if len(pairs) >= 3 else None
    return Agreement(tuple(pairs), mape, tau)


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's tau-b of two rankings of n items (Kendall 1945); None where one of them is all ties."""
    score, pairs_a, pairs_b = 0, 0, 0
    for (a1, b1), (a2, b2) in itertools.combinations(zip(a, b, strict=True), 2):
        order_a, order_b = (a1 > a2) - (a1 < a2), (b1 > b2) - (b1 < b2)
        score += order_a * order_b
        pairs_a += abs(order_a)
        pairs_b += abs(order_b)
    return None if not (pairs_a and pairs_b) else score / float(pairs_a * pairs_b) ** 0.5
