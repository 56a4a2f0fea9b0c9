"""scripts/bench_agents.py: what it counts, and that a small one runs, is resumed, and reports."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.search.own_task import flags

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def cells() -> Iterator[ModuleType]:
    sys.path.insert(0, str(SCRIPTS))
    import bench_agents_cells

    yield bench_agents_cells
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def found(cells: ModuleType) -> ModuleType:
    import bench_agents_curves

    return bench_agents_curves


def record(cells: ModuleType, agent: str, seed: int, gains: list[float], seconds: float = 10.0):  # type: ignore[no-untyped-def]
    """A run whose k-th policy has the k-th gain at half the budget; every evaluation takes ``seconds``."""
    cell = cells.Cell("task", "target", "0.5x", seed, agent, len(gains))
    made = cells.Record(cell, 0.9, 4.0, 2.0, 7)
    made.known = [cells.Step(1.0, 0.0, 0.8, 1.5, True, "int8")]
    made.steps = [cells.Step(seconds, 2.0 * (k + 1), g, 1.0, g >= 0, f"{k}") for k, g in enumerate(gains)]
    return made


def test_best_and_hypervolume_at_marks(cells: ModuleType, found: ModuleType) -> None:
    run = record(cells, "a", 0, [0.75, -1.0, 0.85, 0.9])
    (problem,) = found.problems([run])
    marks = [found.Mark("evaluations", n) for n in (1, 2, 3, 4)]
    assert [problem.values("a", m, "best")[0] for m in marks] == [0.8, 0.8, 0.85, 0.9]
    floor = problem.floor
    assert floor == pytest.approx(0.8 * 0.9)
    edge = 2.0 * (1 + 1e-6)
    first = (0.75 - floor) * (edge - 1.0) + (0.8 - 0.75) * (edge - 1.5)
    last = (0.9 - floor) * (edge - 1.0)
    volumes = [found.volume(found.points(found.until(run, m)), floor, 2.0) for m in marks]
    assert volumes[0] == volumes[1] == pytest.approx(first)
    assert volumes[3] == problem.whole == pytest.approx(last)
    shares = [problem.values("a", m, "hypervolume")[0] for m in marks]
    assert shares == pytest.approx([v / last for v in volumes])


def test_hard_budgets_are_compared_all_the_same(cells: ModuleType, found: ModuleType) -> None:
    """Where nothing comes near the uncompressed network's 0.9."""
    rows = [record(cells, "a", 0, [0.3, 0.4]), record(cells, "b", 0, [0.2, 0.5])]
    for row in rows:
        row.known = []
    (problem,) = found.problems(rows)
    mark = found.Mark("evaluations", 2)
    assert problem.floor == pytest.approx(0.4)
    assert problem.values("a", mark, "best") == {0: 0.4}
    assert problem.values("b", mark, "best") == {0: 0.5}
    assert problem.values("a", mark, "hypervolume") == {0: 0.0}  # at the floor
    assert problem.values("b", mark, "hypervolume") == {0: pytest.approx(1.0)}


def test_wall_clock_is_what_evaluations_and_agent_take_together(cells: ModuleType, found: ModuleType) -> None:
    run = record(cells, "a", 0, [0.75, 0.81, 0.85, 0.9, 0.7], seconds=10.0)
    # baseline 1 s; then 10 s each, and 2 s of the agent's own
    assert found.seconds_of(run).tolist() == [1.0, 13.0, 25.0, 37.0, 49.0, 61.0]
    minute = found.Mark("minutes", 1.0)
    assert [s.digest for s in found.until(run, minute)] == ["int8", "0", "1", "2", "3"]
    assert found.reached(run, minute)
    assert not found.reached(run, found.Mark("minutes", 2.0))
    assert not found.reached(run, found.Mark("evaluations", 6))
    run.exhausted = True
    assert found.reached(run, found.Mark("minutes", 2.0))


def test_comparisons_count_pairs_and_name_losses(cells: ModuleType, found: ModuleType) -> None:
    rows = [record(cells, "mine", s, [0.82, 0.86 + s / 100]) for s in range(5)]
    rows += [record(cells, "other", s, [0.84, 0.85 + s / 100]) for s in range(5)]
    problems = found.problems(rows)
    early = found.compare(problems, "mine", "other", found.Mark("evaluations", 1), "best")
    late = found.compare(problems, "mine", "other", found.Mark("evaluations", 2), "best")
    assert (early.pairs, late.pairs) == (5, 5)
    assert (early.median, late.median) == (pytest.approx(-0.02), pytest.approx(0.01))
    assert early.problems_lost == late.problems_won == (("task", "target", "0.5x"),)
    assert early.p == pytest.approx(found.wilcoxon([-0.02] * 5))
    assert early.p < 0.1
    assert found.wilcoxon([]) == found.wilcoxon([0.0, 0.0]) == 1.0
    assert found.wilcoxon([0.1, -0.1, 0.1, -0.1]) > 0.9
    (claim,) = found.claims(problems, ("mine", 1), ("other", 2), "best")
    assert not claim.holds
    (claim,) = found.claims(problems, ("mine", 2), ("other", 2), "best")
    assert claim.holds
    assert found.claims(problems, ("mine", 2), ("nobody", 2), "best") == []


def test_short_runs_of_ours_against_long_ones_of_theirs(
    cells: ModuleType, found: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench_agents_report

    ours, theirs = (
        record(cells, "joint", 0, [0.7] * 49 + [0.88]),
        record(cells, "ddpg", 0, [0.7] * 399 + [0.87]),
    )
    beginning = record(
        cells, "joint", 1, [0.7] * 30 + [0.899] + [0.7] * 369
    )  # planned with more: not counted
    bench_agents_report.print_claim([ours, theirs, beginning], "ddpg")
    text = capsys.readouterr().out
    assert "joint at 50 at least as good as ddpg at 400" in text
    assert "1 of 1" in text
    assert "88.00 against 87.00" in text
    bench_agents_report.print_claim([ours, beginning], "ddpg")
    assert "not both have runs" in capsys.readouterr().out


def test_a_run_without_anything_usable_counts_as_the_worst(cells: ModuleType, found: ModuleType) -> None:
    none, some = record(cells, "a", 0, [-1.0, -1.0]), record(cells, "b", 0, [0.7, 0.8])
    none.known = some.known = []
    (problem,) = found.problems([none, some])
    mark = found.Mark("evaluations", 2)
    assert problem.values("a", mark, "best") == {0: 0.7}
    assert problem.values("a", mark, "hypervolume") == {0: 0.0}
    (alone,) = found.problems([none])
    assert alone.values("a", mark, "hypervolume") == {0: 0.0}


def test_records_survive_json(cells: ModuleType) -> None:
    run = record(cells, "a", 3, [0.75, -1.0])
    assert cells.Record.from_dict(json.loads(json.dumps(run.to_dict()))) == run
    with pytest.raises(ValueError):
        cells.Record.from_dict({**run.to_dict(), "schema_version": 0})


def test_published_records_report_the_same(cells: ModuleType, found: ModuleType, tmp_path: Path) -> None:
    import bench_agents

    rows = [record(cells, a, s, [0.75, -1.0, 0.85 + s / 100]) for s in (1, 0) for a in ("joint", "ddpg")]
    path = tmp_path / "results" / "published.jsonl.xz"
    bench_agents.write_published(rows, path)
    first = path.read_bytes()
    again = bench_agents.read(path)
    assert [r.cell for r in again] == sorted(r.cell for r in rows)
    marks = [found.Mark("evaluations", 2), found.Mark("evaluations", 3), found.Mark("minutes", 1.0)]
    (ours,), (theirs,) = found.problems(rows), found.problems(again)
    for quantity in ("best", "hypervolume"):
        for mark in marks:
            for agent in ("joint", "ddpg"):
                assert ours.values(agent, mark, quantity) == theirs.values(agent, mark, quantity)
    new = record(cells, "joint", 0, [0.8, 0.8, 0.8])
    both = bench_agents.merged(again, [new])
    assert len(both) == 4
    assert next(r for r in both if r.cell == new.cell).steps == new.steps
    bench_agents.write_published(again, path)
    assert path.read_bytes() == first


def test_cells_of_targets_that_are_priced_otherwise_here_are_left_out(
    cells: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench_agents

    targets = ("raspberry-pi-4", "x86-avx512-vnni", "fpga-bitfusion")
    wanted = [cells.Cell("toy", t, "0.5x", 0, "random", 5) for t in targets]
    for blocks, count in ((8, 2), (16, 3)):
        monkeypatch.setattr("search.templates.block_size", lambda method="host", blocks=blocks: blocks)
        kept = bench_agents.comparable(wanted)
        assert len(kept) == count
        assert ("x86-avx512-vnni is left out" in capsys.readouterr().out) == (blocks == 8)
        assert {c.target for c in kept} >= {"raspberry-pi-4", "fpga-bitfusion"}


def test_what_one_cell_measured_is_charged_to_all_that_ask_for_it(cells: ModuleType, tmp_path: Path) -> None:
    held: dict[int, int] = {}

    def measure(at: int) -> int:
        if at not in held:
            held[at] = sum(i * i for i in range(300_000))
        return held[at]

    def key(at: int) -> str:
        return f"at {at}"

    paid = []
    for _ in range(2):  # the second finds it in the file, as another process would
        meter = cells.Meter(cells.Costs(tmp_path / "costs.jsonl"))
        asked = meter.metered(measure, key)
        assert asked(1) == asked(1) == held[1]
        paid.append(meter.charged)
        meter.begin()
        assert (meter.charged, meter.inside) == (0.0, 0.0)
    assert paid[1] == pytest.approx(paid[0], abs=1e-5)
    assert paid[0] > 0
    cold = []
    meter = cells.Meter(cells.Costs(tmp_path / "other.jsonl"))
    assert meter.metered(measure, key, lambda at: cold.append(measure(at + 1)))(1) == held[1]
    assert cold == [held[2]]  # what a cache held is measured once more, for its time
    assert meter.charged > 0
    assert len((tmp_path / "other.jsonl").read_text().splitlines()) == 1


def bench(folder: Path, *more: str) -> str:
    task = flags(folder)[1].removeprefix("--task=")
    words = [
        *("--tasks", task, "--targets", "raspberry-pi-4", "--budgets", "0.6x", "--agents", "random,uniform"),
        *("--seeds", "1", "--evaluations", "6", "--jobs", "1", "--pool", str(folder / "pool.sqlite")),
        *("--results", str(folder / "results.jsonl"), *more),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "bench_agents.py"), *words],
        capture_output=True, text=True, timeout=240, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_small_one_runs_is_resumed_and_reports(tmp_path: Path, cells: ModuleType) -> None:
    first = bench(tmp_path)
    assert "2 cells, 0 there already" in first
    rows = [
        cells.Record.from_dict(json.loads(x)) for x in (tmp_path / "results.jsonl").read_text().splitlines()
    ]
    assert {r.cell.agent for r in rows} == {"random", "uniform"}
    for r in rows:
        assert 0 < len(r.steps) <= 6
        assert len(r.steps) == 6 or r.exhausted
        assert all(s.latency_ms <= r.limit_ms for s in r.steps)
        assert all(s.evaluation_seconds > 0 for s in r.steps)
        assert np.all(np.diff([s.agent_seconds for s in r.steps]) >= 0)
    names = {p.name for p in tmp_path.iterdir()}
    assert names >= {"table.csv", "best_evaluations.png", "hypervolume_minutes.svg"}
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    torn = '{"schema_version": 1, "cell":'  # the machine was switched off
    (tmp_path / "results.jsonl").write_text(f"{lines[1]}\n{torn}")
    again = bench(tmp_path)
    assert "2 cells, 1 there already" in again
    repeated = [
        cells.Record.from_dict(json.loads(x))
        for x in (tmp_path / "results.jsonl").read_text().splitlines()
        if x.endswith("}")
    ]
    old = next(r for r in rows if r.cell == repeated[-1].cell)
    # from the pool, and equal to the last bit, recorded times included
    assert repeated[-1].pooled == len(old.steps)
    assert [replace(s, agent_seconds=0.0) for s in repeated[-1].steps] == [
        replace(s, agent_seconds=0.0) for s in old.steps
    ]
