"""Rank correlations of what is cheap with what was scored in full."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from search.cli import main
from search.proxies import LEAST, correlation
from search.report.page import render_page
from search.results import read_results
from search.runfolder import RESULTS
from tests.search.own_task import TEXT, flags
from tests.search.results_example import example


def test_correlation_is_spearmans_and_its_interval_holds_it() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=60)
    b = a + rng.normal(size=60)
    found = correlation(a.tolist(), b.tolist())
    assert found is not None
    rho, low, high = found
    assert rho == pytest.approx(spearmanr(a, b).statistic)
    assert -1 < low < rho < high < 1
    wider = correlation(a[:20].tolist(), b[:20].tolist())
    assert wider is not None
    assert wider[2] - wider[1] > high - low


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    rho = 0.8
    truth = 6 / np.pi * np.arcsin(rho / 2)  # Spearman of a bivariate normal distribution
    covered = 0
    for _ in range(400):
        a = rng.normal(size=25)
        b = rho * a + np.sqrt(1 - rho * rho) * rng.normal(size=25)
        found = correlation(a.tolist(), b.tolist())
        assert found is not None
        covered += found[1] <= truth <= found[2]
    assert 0.90 <= covered / 400 <= 0.99


def test_too_few_or_constant_values_tell_nothing() -> None:
    values = [float(i) for i in range(LEAST)]
    assert correlation(values, values) is not None
    assert correlation(values[1:], values[1:]) is None
    assert correlation(values, [1.0] * LEAST) is None
    assert correlation([1.0] * LEAST, values) is None


def test_a_perfect_order_is_told_as_such() -> None:
    found = correlation([float(i) for i in range(9)], [float(i * i) for i in range(9)])
    assert found is not None
    assert found[0] == pytest.approx(1.0)
    assert 0 < found[1] <= found[0] <= found[2] + 1e-9


@pytest.mark.parametrize("agent", ["joint", "random"])
def test_a_run_says_how_well_its_proxies_ranked(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    words = flags(tmp_path, "--evaluations=40", f"--agent={agent}", f"--out={tmp_path / 'run'}")
    harder = TEXT.replace("0.8 * torch.randn", "2.5 * torch.randn")  # else all policies score the same
    assert harder != TEXT
    (tmp_path / "stripes.py").write_text(harder, encoding="utf-8")
    assert main([*words, "--quiet"]) == 0
    results = read_results(tmp_path / "run" / RESULTS)
    complete = 2 + results["search"]["evaluated"] - results["search"].get("stopped", 0)  # and the baselines
    found = {p["name"]: p for p in results["proxies"]}
    assert "sum of single losses" in found
    for proxy in found.values():
        assert LEAST <= proxy["policies"] <= complete
        assert -1 <= proxy["low"] <= proxy["spearman"] <= proxy["high"] <= 1
    assert (
        found["sum of single losses"]["spearman"] > 0
    )  # on a network that was trained, losses say something
    page = (tmp_path / "run" / "report.html").read_text()
    assert "How well stand-ins ranked what was scored in full" in page


def test_the_page_tells_correlations_only_where_there_are_some() -> None:
    row = {"name": "first look", "policies": 31, "spearman": 0.7, "low": 0.45, "high": 0.85}
    page = render_page(example(proxies=[row]))
    assert "the first look 0.70 (0.45 to 0.85, 31 policies)" in page
    assert "How well stand-ins ranked" not in render_page(example())
