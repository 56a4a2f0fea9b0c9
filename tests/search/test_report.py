from __future__ import annotations

import json
import random
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from scipy.stats import kendalltau

from search.errors import InputError
from search.report import render_page, write_report
from search.report.data import agreement, front_plot, kendall_tau, layer_bars, progress_plot, time_bars
from search.report.page import draw_figures, layer_rows
from search.report.svg import Axes, padded, tag, tick_label, ticks
from search.report.why import HEADING, reasons
from search.results import Results, check_results, picked_point, results_schema
from tests.search.results_example import exact, example, measured_example


def bare_example() -> Results:
    """A run that found nothing, with only what is required."""
    full = example()
    base = full["base"]
    return {
        "schema_version": 1,
        "run": full["run"],
        "task": full["task"],
        "target": full["target"],
        "budget": full["budget"],
        "search": full["search"],
        "base": {"name": "uncompressed", "costs": base["costs"]},
        "points": [],
    }


def test_front_holds_references_and_leaves_the_hopeless_out() -> None:
    plot = front_plot(example())
    kinds = [d.kind for d in plot.dots]
    assert kinds.count("picked") == 1
    assert kinds.count("front") == 4
    assert (kinds.count("base"), kinds.count("int8"), kinds.count("uniform")) == (1, 1, 3)
    assert kinds.count("tried") + kinds.count("infeasible") == 199  # one evaluation has no accuracy
    picked = next(d for d in plot.dots if d.kind == "picked")
    assert picked.y == pytest.approx(98.2)
    assert picked.x == 3.02
    assert picked.x_low is not None
    assert picked.x_low < picked.x
    assert plot.budget == 3.16
    assert plot.x_source == "predicted"
    beyond = [d for d in plot.dots if not plot.shows(d)]
    assert plot.outside == len(beyond) > 0
    assert all(d.kind in ("tried", "infeasible") for d in beyond)


def test_front_far_below_leaves_the_frame_and_percent_ends_at_100() -> None:
    results = example(steps=[])
    results["points"][-1]["validation"] = {"value": 0.11, "samples": 359}
    plot = front_plot(results)
    assert plot.outside == 1
    assert plot.y_range[0] > 80
    assert plot.y_range[1] <= 101
    errors = example(steps=[])
    errors["task"] = {**errors["task"], "higher_is_better": False, "metric": "mse", "metric_unit": ""}
    for network in (errors["base"], errors["plain_int8"], *errors["points"]):
        assert network is not None
        found = network.get("validation")
        assert found is not None
        found["value"] = 1 - found["value"]
    low = front_plot(errors)
    assert low.y_range[0] < 0.014 < low.y_range[1]
    assert [d.kind for d in low.dots if low.shows(d)].count("picked") == 1


def test_front_without_latency_is_over_macs() -> None:
    results = example(steps=[])
    for network in (results["base"], *results["points"]):
        del network["costs"]["latency_ms"]
    plot = front_plot(results)
    assert plot.cost == "macs"
    assert plot.x_source == "exact"
    assert plot.budget is None
    assert "MMACs" in draw_figures(results)["front"]


def test_layers_and_times() -> None:
    results = example()
    bars = layer_bars(picked_point(results))
    assert len(bars) == 21
    removed = [b for b in bars if b.removed]
    assert [(b.keep, b.macs_after) for b in removed] == [(0.0, 0.0)]
    assert all(0 <= b.keep <= 1 for b in bars)
    times = {b.name: b for b in time_bars(results)}
    assert times["QLinearConv w8a8"].before_ms == 0.0
    assert times["FusedConv fp32"].before_ms == pytest.approx(sum(0.2 + 0.01 * i for i in range(20)))
    assert times["FusedConv fp32"].after_ms == pytest.approx(0.34)
    few = time_bars(results, most=2)
    assert few[-1].name == f"{len(times) - 2} others"
    assert sum(b.after_ms for b in few) == pytest.approx(sum(b.after_ms for b in times.values()))
    assert time_bars(bare_example()) == ()
    assert layer_bars(None) == ()


def test_best_so_far_only_rises_and_follows_the_polarity() -> None:
    results = example()
    plot = progress_plot(results)
    values = [v for _, v in plot.best]
    assert values == sorted(values)
    feasible = [v for _, v, ok in plot.tried if ok]
    assert values[-1] == max(feasible)
    assert values[0] == feasible[0]
    assert plot.best[-1][0] == 200
    results["task"]["higher_is_better"] = False
    lower = [v for _, v in progress_plot(results).best]
    assert lower == sorted(lower, reverse=True)
    assert lower[-1] == min(feasible)


def test_agreement_is_of_predicted_and_measured() -> None:
    assert agreement(example()) is None
    found = agreement(measured_example())
    assert found is not None
    assert len(found.pairs) == 6
    assert found.tau == pytest.approx(1.0)
    assert found.mape == pytest.approx(100 * sum(abs(p / m - 1) for _, p, m in found.pairs) / 6)


@pytest.mark.parametrize("seed", range(8))
def test_kendall_tau_agrees_with_scipy(seed: int) -> None:
    rng = random.Random(seed)
    a = [rng.randint(0, 6) for _ in range(20)]
    b = [rng.randint(0, 6) for _ in range(20)]
    assert kendall_tau(a, b) == pytest.approx(kendalltau(a, b).statistic)
    assert kendall_tau(a, a) == pytest.approx(1.0)
    assert kendall_tau([1, 1, 1], [1, 2, 3]) is None


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 6.7, about=7) == [0, 1, 2, 3, 4, 5, 6]
    assert ticks(89.1, 100.3) == [90, 95, 100]
    assert ticks(0.012, 0.019, 4) == [0.012, 0.014, 0.016, 0.018]
    assert ticks(3, 3) == [3]
    assert tick_label(0.014, 0.002) == "0.014"
    assert tick_label(90.0, 2.0) == "90"
    low, high = padded([5.0])
    assert low < 5.0 < high
    axes = Axes(100, 100, (0, 10), (0, 1), margin=(0, 0, 0, 0))
    assert (axes.x(5), axes.y(1)) == (50, 0)
    assert (
        tag("a", "x", title="<&>", class_="k", x=1.5, gone=None)
        == '<a class="k" x="1.5"><title>&lt;&amp;&gt;</title>x</a>'
    )


@pytest.mark.parametrize(
    "results", [example(), measured_example(), bare_example()], ids=["full", "measured", "bare"]
)
def test_the_page_is_whole_and_loads_nothing(results: Results, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(check_results(results)))
    path = write_report(tmp_path)
    page = path.read_text(encoding="utf-8")
    assert len(page) < 1_000_000
    links = re.findall(r"""(?:src|href)=["']([^"']+)|url\(""", page)
    assert links == []
    assert set(re.findall(r"https?://[^\"'\s<]+", page)) <= {"http://www.w3.org/2000/svg"}
    assert "<script" not in page
    for figure in (tmp_path / "figures").glob("*.svg"):
        assert ET.parse(figure).getroot().tag.endswith("svg")
    figures = {p.stem for p in (tmp_path / "figures").iterdir()}
    assert figures == set(draw_figures(results))
    assert "front" in figures


def test_the_page_says_what_counts() -> None:
    page = render_page(example())
    for words in (
        "3.02 ms",
        "98.2 %",
        "97.8 %",
        "uncompressed 98.3 %",
        "first layer: &lt;3 input channels&gt;",
        "priced as QLinearConv",
        "search --target=raspberry-pi --skip &#39;head.*&#39;",
        "plain INT8 (!)",
        "passed",
        "predicted",
    ):
        assert words in page, words
    assert "measured, ms" not in page
    measured = render_page(measured_example())
    assert "measured, ms" in measured
    assert "latency, measured" in measured
    assert "Nothing inside the budget" in render_page(bare_example())
    unvalidated = example()
    unvalidated["target"]["validated"] = False
    assert "unvalidated" in render_page(unvalidated)


def test_layer_table_shows_changes() -> None:
    point = picked_point(example())
    assert point is not None
    rows = layer_rows(point)
    assert len(rows) == 21
    assert rows[12][2] == "removed"
    assert rows[0][4] == "float"
    assert any("→" in row[2] for row in rows)
    assert any(row[3].startswith("tucker2") for row in rows)


def test_results_are_checked(tmp_path: Path) -> None:
    assert check_results(example()) == example()
    broken = example()
    broken["points"][0]["number"] = "one"  # type: ignore[typeddict-item]
    with pytest.raises(InputError, match=r"points\.0\.number"):
        check_results(broken)
    with pytest.raises(InputError, match="schema version 9"):
        check_results({**example(), "schema_version": 9})
    with pytest.raises(InputError, match="No such file"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        write_report(tmp_path)
    assert "points" in results_schema()["properties"]
    assert exact(1.0)["source"] == "exact"


def test_reasons_are_told_layer_by_layer() -> None:
    changed, left = reasons(example())
    assert [r[0] for r in changed] == ["x", "conv1", "layer1.0.conv1", "", ""]  # a layer is named once
    assert [r[0] for r in left] == ["layer2.0.conv2", "fc"]
    assert all(len(r) == len(HEADING) <= 7 for r in changed + left)
    cells = {r[1]: r for r in changed}
    assert cells["8 of 16 channels"][2:6] == ("0.210 ms", "0.0030", "−0.080 ms, +0.011", "+0.100 ms, −0.0021")
    assert cells["block removed (layer1.0)"][4:6] == ("–", "+0.350 ms, −9e-4")
    assert cells["rank: tucker2 at 0.25"][4:6] == ("−8.00 µs, +0.0011", "+0.010 ms")  # one loss unmeasured
    assert cells["activations: 8 bits"][3] in ("", "5e-8")
    assert left[0][2:4] == ("", "")
    assert reasons(bare_example()) == ([], [])


def test_the_page_says_why_and_does_so_safely() -> None:
    page = render_page(example())
    table = page[page.index("<h2>Why</h2>") : page.index("<h2>Where the milliseconds went</h2>")]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    assert len(rows) == 2 + 7
    assert all(len(re.findall(r"<t[dh]", row)) == 7 for row in rows)
    assert "because of keep &lt;conv1&gt;" in table
    assert "2 choices left as they are" in table
    assert "<h2>Why</h2>" not in render_page(bare_example())


def test_an_explanation_follows_the_schema() -> None:
    document = example()
    check_results(document)
    spoilt = json.loads(json.dumps(document))
    spoilt["explanation"][1]["step_down"]["latency_ms"] = "much"
    with pytest.raises(InputError, match=r"explanation\.1\.step_down"):
        check_results(spoilt)
    del spoilt["explanation"][1]
    del spoilt["explanation"][0]["why"]
    with pytest.raises(InputError, match=r"explanation\.0\.why"):
        check_results(spoilt)
