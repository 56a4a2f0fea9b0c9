"""Tables and figures of the benchmark of agents, from finished cells."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench_agents_cells import Record
from bench_agents_curves import (
    Comparison,
    Mark,
    Problem,
    Quantity,
    Spread,
    claims,
    compare,
    curves,
    marks_of,
    own_seconds,
    problems,
)

from agents.registry import DEFAULT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Runs of this length of the default agent, and of that of the published controllers, are compared.
FEW, MANY = 50, 400
PUBLISHED = ("ddpg", "haq")
QUANTITIES: tuple[Quantity, ...] = ("best", "hypervolume")
_TITLE = {"best": "best metric inside the budget, %", "hypervolume": "hypervolume, % of all runs together"}


def report(records: Sequence[Record], folder: Path, every: Sequence[Record] = ()) -> None:
    """Print the tables; write the same numbers as CSV, and the figures as PNG and SVG.

    ``every``: runs of any length, of which short ones of the default agent are compared with long ones.
    """
    for r in records:
        if r.failure:
            print(f"left out: {' '.join(r.cell.problem)} {r.cell.agent} seed {r.cell.seed}: {r.failure}")
    found, marks = problems(records), marks_of(records)
    if not found:
        return
    for problem in found:
        print_problem(problem, marks)
    print_time(found)
    mine = DEFAULT if any(DEFAULT in p.agents for p in found) else found[0].agents[0]
    print_comparisons(found, mine, marks)
    for other in PUBLISHED:
        print_claim(every or records, other)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(found, marks, folder / "table.csv")
    draw(found, folder)
    print(f"\ntable.csv and figures in {folder}")


# -- tables


def print_problem(problem: Problem, marks: Sequence[Mark]) -> None:
    """Median and half the distance of the quartiles, agent by agent."""
    first = problem.records[0]
    seeds = len({r.cell.seed for r in problem.records})
    base = f"uncompressed {100 * first.base_gain:.1f} at {first.base_latency_ms:.3g} ms"
    size = f"budget {first.limit_ms:.3g} ms, {first.dimension} choices, {seeds} seeds"
    print(f"\n{' '.join(problem.name)}: {base}, {size}")
    for quantity in QUANTITIES:
        print(f"  {_TITLE[quantity]}: median ± half the distance of the quartiles (~ not all runs got there)")
        print(f"  {'':14s}" + "".join(f"{m!s:>13s}" for m in marks))
        for agent in _ranked(problem, marks[-1], quantity):
            print(f"  {agent:14s}" + "".join(f"{_cell(problem, agent, m, quantity):>13s}" for m in marks))


def _ranked(problem: Problem, mark: Mark, quantity: Quantity) -> list[str]:
    at = {a: Spread.of(problem.values(a, mark, quantity).values()).median for a in problem.agents}
    return sorted(at, key=lambda a: -at[a])


def _cell(problem: Problem, agent: str, mark: Mark, quantity: Quantity) -> str:
    spread = Spread.of(problem.values(agent, mark, quantity).values())
    short = "" if problem.complete(agent, mark) else "~"
    return f"{short}{100 * spread.median:.2f} ±{50 * (spread.high - spread.low):.2f}"


def print_time(found: Sequence[Problem]) -> None:
    """Milliseconds a suggestion."""
    print("\nmilliseconds a suggestion, over all runs: the agent's own, and of the evaluation it led to")
    for agent, (own, paid) in own_seconds(found).items():
        print(
            f"  {agent:14s} own {1e3 * own.median:8.1f} ({1e3 * own.low:.1f} to {1e3 * own.high:.1f}), "
            f"evaluation {1e3 * paid.median:7.1f}"
        )


def print_comparisons(found: Sequence[Problem], mine: str, marks: Sequence[Mark]) -> None:
    """The default agent against each other one: where it wins, and every problem on which it does not."""
    others = [a for a in dict.fromkeys(a for p in found for a in p.agents) if a != mine]
    for quantity in QUANTITIES:
        print(
            f"\n{mine} against the others, {_TITLE[quantity]}: problems won-tied-lost by the medians, "
            "median of the paired differences in points, p of Wilcoxon's signed-rank test"
        )
        print(f"  {'':14s}" + "".join(f"{m!s:>24s}" for m in marks))
        rows = {o: [compare(found, mine, o, m, quantity) for m in marks] for o in others}
        for other, row in rows.items():
            print(f"  {other:14s}" + "".join(f"{_judged(c):>24s}" for c in row))
        _print_losses(mine, [c for row in rows.values() for c in row])


def _judged(c: Comparison) -> str:
    counts = f"{len(c.problems_won)}-{len(c.problems_tied)}-{len(c.problems_lost)}"
    return f"{counts} {100 * c.median:+.2f} p={c.p:.2g}"


def _print_losses(mine: str, rows: Sequence[Comparison]) -> None:
    lost: dict[tuple[str, str, str], list[str]] = {}
    for c in rows:
        for problem in c.problems_lost:
            lost.setdefault(problem, []).append(f"{c.other}@{c.mark}")
    if not lost:
        print(f"  {mine} is behind nobody on any problem")
    for problem, behind in lost.items():
        print(f"  behind on {' '.join(problem)}: {', '.join(behind)}")


def print_claim(every: Sequence[Record], other: str) -> None:
    """Problem by problem, whether the default agent does with few evaluations what another does with many.

    Both planned with as many as they had: agents spend a short run otherwise than a long one's beginning.
    """
    wanted = ((DEFAULT, FEW), (other, MANY))
    found = problems([r for r in every if (r.cell.agent, r.cell.evaluations) in wanted])
    for quantity in QUANTITIES:
        rows = claims(found, *wanted, quantity)
        if not rows:
            print(f"\n{DEFAULT} at {FEW} against {other} at {MANY}: not both have runs")
            return
        held = sum(c.holds for c in rows)
        claim = f"{DEFAULT} at {FEW} at least as good as {other} at {MANY}, {_TITLE[quantity]}"
        print(f"\n{claim}: {held} of {len(rows)}")
        for c in rows:
            print(
                f"  {'yes' if c.holds else 'NO ':3s} {' '.join(c.problem):46s} "
                f"{100 * c.few.median:.2f} against {100 * c.many.median:.2f}"
            )


def write_csv(found: Sequence[Problem], marks: Sequence[Mark], path: Path) -> None:
    """One row per problem, agent, mark and quantity."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = ["task", "target", "budget", "agent", "mark", "unit", "quantity"]
        writer.writerow([*head, "median", "low", "high", "seeds", "reached"])
        for p in found:
            for agent in p.agents:
                for mark in marks:
                    for quantity in QUANTITIES:
                        s = Spread.of(p.values(agent, mark, quantity).values())
                        row = [*p.name, agent, mark.at, mark.unit, quantity, s.median, s.low, s.high, s.count]
                        writer.writerow([*row, p.complete(agent, mark)])


# -- figures


def draw(found: Sequence[Problem], folder: Path) -> None:
    """Best and hypervolume over evaluations, hypervolume over minutes: a panel a problem."""
    import matplotlib

    matplotlib.use("Agg")
    panels: tuple[tuple[Literal["evaluations", "minutes"], Quantity], ...] = (
        ("evaluations", "best"),
        ("evaluations", "hypervolume"),
        ("minutes", "hypervolume"),
    )
    agents = sorted(dict.fromkeys(a for p in found for a in p.agents), key=lambda a: a == DEFAULT)
    palette = matplotlib.colormaps["tab10" if len(agents) <= 10 else "tab20"]
    colours = {a: "black" if a == DEFAULT else palette(i % palette.N) for i, a in enumerate(agents)}
    for unit, quantity in panels:
        _figure(found, unit, quantity, colours, folder / f"{quantity}_{unit}")


def _figure(
    found: Sequence[Problem],
    unit: Literal["evaluations", "minutes"],
    quantity: Quantity,
    colours: dict[str, Any],
    path: Path,
) -> None:
    from matplotlib import lines, pyplot

    columns = min(4, len(found))
    rows = -(-len(found) // columns)
    wide, high = max(7.5, 4.2 * columns), 3.1 * rows + 1.0
    figure, axes = pyplot.subplots(rows, columns, figsize=(wide, high), squeeze=False)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    for axis, problem in zip(axes.flat, found, strict=False):
        _panel(axis, problem, unit, quantity, colours)
    handles = [lines.Line2D([], [], color=c, label=a) for a, c in colours.items()]
    figure.legend(handles=handles, loc="lower center", ncols=int(wide), frameon=False, fontsize=8)
    figure.suptitle(f"{_TITLE[quantity]}: median and quartiles over seeds", fontsize=11)
    figure.tight_layout(rect=(0, 0.3 * -(-len(handles) // int(wide)) / high, 1, 1 - 0.4 / high))
    for ending in (".png", ".svg"):
        figure.savefig(path.with_suffix(ending), dpi=120)
    pyplot.close(figure)


def _panel(
    axis: Axes,
    problem: Problem,
    unit: Literal["evaluations", "minutes"],
    quantity: Quantity,
    colours: dict[str, Any],
) -> None:
    # the default agent last, on top of others that go the same way
    for curve in sorted(curves(problem, unit, quantity), key=lambda c: c.agent == DEFAULT):
        axis.fill_between(
            curve.x, 100 * curve.low, 100 * curve.high, color=colours[curve.agent], alpha=0.12, lw=0
        )
        axis.plot(
            curve.x, 100 * curve.median, color=colours[curve.agent], lw=2.0 if curve.agent == DEFAULT else 1.4
        )
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_title(" ".join(problem.name), fontsize=9)
    axis.set_xlabel(unit if unit == "evaluations" else "minutes, replayed", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.2)


__all__ = ["report"]
