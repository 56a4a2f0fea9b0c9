from __future__ import annotations

import io
from pathlib import Path

from agents.contract import Outcome
from compressors.policy import ResolvedPolicy
from search.cli_progress import Bar, Lines, Pace, make_progress, status
from search.console import (
    Silent,
    budget_text,
    front_cells,
    render,
    render_applied,
    render_measurement,
    render_prediction,
    table,
)
from tests.search.results_example import costs, example, kernels, measured_example, score


def outcome(accuracy: float | None, latency_ms: float = 3.0) -> Outcome:
    policy = ResolvedPolicy("net", {}, {}, {}, {})
    return Outcome(policy, accuracy, {"latency_ms": latency_ms}, feasible=accuracy is not None)


def test_transcript() -> None:
    text = render(example(), Path("runs/20261122-203114-raspberry-pi-4"))
    lines = text.splitlines()
    assert lines[0] == "tailorbird 0.1.0   run 20261122-203114-raspberry-pi-4   seed 0"
    assert lines[1].endswith("40.8 MMACs        top-1 98.6 %")
    assert "batch 1, 4 threads" in lines[2]
    assert lines[3].endswith("every latency below is PREDICTED")
    assert "latency ≤ 3.16 ms (0.5x)" in lines[4]
    assert "21 layers, 10^34 policies" in lines[4]
    assert "Pareto front (5 of 96 feasible), predicted on raspberry-pi-4" in lines
    assert any(line.split()[:3] == ["*", "1", "98.2"] for line in lines)
    assert "(!) outside the budget" in text
    assert "* picked: highest top-1 inside the budget" in lines
    assert "97.8 % (uncompressed 98.3 %) on 360 samples" in text
    assert "same answers as the searched network on 359 of 359" in text
    assert "search measure latest" in text
    assert render(example(), header=False).startswith("Pareto front")


def test_table_has_seven_columns_and_says_what_is_measured() -> None:
    for results in (example(), measured_example()):
        cells = front_cells(results)
        assert {len(row) for row in cells} == {7}
    assert "measured" not in front_cells(example())[0]
    assert front_cells(measured_example())[0][4] == "measured"
    text = render(measured_example())
    assert "predicted and measured on raspberry-pi-4" in text
    assert "PREDICTED" not in text
    assert table([["a", "bb"], ["ccc", "d"]], left=(0,)) == ["a    bb", "ccc   d"]


def test_other_goals_and_states() -> None:
    results = example()
    results["budget"] = {"objective": "latency", "limits": {}, "max_drop": 1.0, "risk": 0.9}
    assert budget_text(results) == "least latency, drop ≤ 1.0 pt, judged by the 90 % bound"
    assert "least latency with a drop of at most 1.0 pt" in render(results)
    results["budget"] = {
        "objective": "accuracy",
        "limits": {
            "size_bytes": {"limit": 200e3, "written": "200kB"},
            "macs": {"limit": 20.4e6, "written": "0.5x"},
        },
    }
    assert budget_text(results) == "size ≤ 200 kB, MACs ≤ 20.4 MMACs (0.5x)"
    results["run"]["state"] = "interrupted"
    results["points"] = []
    text = render(results, Path("elsewhere"))
    assert "search --resume elsewhere" in text
    assert "picked" not in text


def test_a_failed_verification_shouts() -> None:
    results = example(
        verification={"passed": False, "agree": 350, "samples": 359, "runtime": "onnxruntime 1.32.0"}
    )
    text = render(results)
    assert "FAILED in onnxruntime 1.32.0: 9 of 359 answers differ" in text
    assert "same answers" not in text
    assert render(example(verification=None)).count("verified") == 0


def test_policies_on_which_the_runtime_was_not_believed_are_counted() -> None:
    results = example()
    assert "differs" not in render(results)
    results["search"]["disagreed"] = 3
    of = results["search"]["evaluated"]
    assert f"differs   on 3 of {of} policies the runtime answered otherwise" in render(results)


def test_prediction_measurement_and_applied() -> None:
    text = render_prediction(
        {
            "onnx": "m.onnx",
            "target": "raspberry-pi-4",
            "threads": 1,
            "batch": 1,
            "costs": costs(3.02, 212_000, 21.6e6),
            "confidence": 0.9,
            "backing": "a prior",
            "validated": False,
            "kernels": kernels(1.0, integer=True),
            "unknown": ["Erf"],
        }
    )
    assert "3.02 ms (2.1-4.4)  predicted" in text
    assert "a prior, unvalidated" in text
    assert "without a cost, not counted: Erf" in text
    assert "slowest 10 of 25 kernels" in text
    timing = {"load_ms": 5.0, "p50_ms": 1.1, "p95_ms": 1.3, "memory_bytes": None}
    text = render_measurement(
        {
            "runtime": "onnxruntime 1.32.0",
            "threads": 1,
            "batch": 1,
            "repeats": 40,
            "stable": False,
            "why": "spread 12 %",
            "networks": [
                {"name": "base", "min_cpu_ms": 1.0, **timing},  # type: ignore[typeddict-item]
                {"name": "picked", "min_cpu_ms": 0.5, "predicted_ms": 0.55, **timing},  # type: ignore[typeddict-item]
            ],
        }
    )
    assert "2.00x" in text
    assert "off by +10 %" in text
    assert "unstable  spread 12 %" in text
    text = render_applied(
        {
            "digest": "abc",
            "costs": costs(3.02, 212_000, 21.6e6),
            "validation": score(0.982),
            "metric": "top-1",
            "metric_unit": "%",
            "files": ["model.onnx"],
        },
        Path("out"),
    )
    assert "98.2 % on 359 validation samples" in text
    assert "out/{model.onnx}" in text


def test_lines_for_logs_are_few() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    lines.header(["one", "two"])
    lines.start(200)
    for _ in range(200):
        lines.update(outcome(0.982), outcome(0.982), 7, 0.48)
    lines.close()
    written = stream.getvalue().splitlines()
    assert written[:2] == ["one", "two"]
    assert len(written) == 2 + 10
    assert written[-1].startswith("search   200/200   best 98.2 % at 3.00 ms   front 7   feasible 48 %")
    assert "\x1b" not in stream.getvalue()


def test_verbose_shows_every_evaluation() -> None:
    stream = io.StringIO()
    lines = make_progress(verbose=True, stream=stream)
    lines.start(3, done=1, unit="cosine")
    lines.update(outcome(0.5), None, 0, 0.0)
    lines.update(outcome(None), outcome(0.5), 1, 0.5)
    text = stream.getvalue()
    assert text.count("tried") == 2
    assert "not evaluated" in text
    assert "3/3" in text
    assert "nothing feasible yet" in status(None, 0, 0.0, "%")


def test_where_stderr_goes_decides() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert isinstance(make_progress(quiet=True), Silent)
    assert isinstance(make_progress(stream=io.StringIO()), Lines)
    bar = make_progress(stream=Terminal())
    assert isinstance(bar, Bar)
    bar.start(2)
    bar.note("half [way]")
    bar.update(outcome(0.9), outcome(0.9), 1, 1.0)
    bar.close()
    pace = Pace(10, 4)
    assert pace.left == ""
    pace.step()
    assert pace.left.endswith("left")
