"""Searches with a device at hand: what is measured is the price, and all of the front is measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

import search
from hw_profiles.devices.contract import Work
from hw_profiles.devices.simulated import SimulatedDevice
from hw_profiles.measure import Measurement
from search import engine, setup
from search.cli import main
from search.errors import DeviceError
from search.results import Results, read_results
from search.timing import measure_models
from tests.hw_profiles.devices.servers import TOKEN, http_agent

#: Without profiling first: tests/search/test_profile.py has that.
QUICK = {"task": "mnist5k-lenet300", "evaluations": 8, "recover": "0", "threads": 1, "profile": "0s"}


def front_of(folder: Path) -> Results:
    return read_results(folder / "results.json")


@pytest.mark.parametrize("measure", ["front", "active"])
def test_every_point_of_the_front_is_measured_on_the_host(tmp_path: Path, measure: str) -> None:
    with http_agent() as address:
        search.run(
            target="raspberry-pi-4", host=address, token=TOKEN, measure=measure, max_latency="0.6x",
            accept_unstable=True, out=str(tmp_path / "run"), **QUICK,
        )  # fmt: skip
    results = front_of(tmp_path / "run")
    assert results["points"]
    limit = results["budget"]["limits"]["latency_ms"]["limit"]
    assert limit == pytest.approx(0.6 * results["base"]["measured"]["latency_ms"]["value"])
    for point in results["points"]:
        measured, predicted = point["measured"]["latency_ms"], point["costs"]["latency_ms"]
        assert (measured["source"], predicted["source"]) == ("measured", "predicted")
        assert measured["value"] <= limit * 1.02 or point["picked"]
    assert TOKEN not in (tmp_path / "run" / "config.yaml").read_text()
    assert "corrected by" in results["target"]["backing"]


def test_a_run_with_a_host_is_measured_again_and_exported_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")  # a loose budget: wall times of two threads here are not what is tested
    with http_agent() as address:
        there = ["--host", address, "--token", TOKEN, "--accept-unstable"]
        search.run(
            target="raspberry-pi-4", host=address, token=TOKEN, measure="final", max_latency="0.95x",
            accept_unstable=True, out=run, **(QUICK | {"threads": 2}),
        )  # fmt: skip
        assert main(["measure", run, *there, "--soak", "0s", "--json"]) == 0
        timed = json.loads(capsys.readouterr().out)
    assert [n["name"] for n in timed["networks"]] == ["uncompressed", "all-integer", "run"]
    assert all(n["min_cpu_ms"] > 0.0 for n in timed["networks"])
    assert timed["threads"] == 2  # the run's: predictions are of those
    assert all(n["predicted_ms"] > 0.0 for n in timed["networks"])
    assert "apart" not in timed
    assert main(["measure", run]) == 0  # here, which is no Raspberry Pi
    told = capsys.readouterr().out
    assert "predictions are of raspberry-pi-4, not this machine: not compared" in told
    assert "off by" not in told
    assert main(["export", run, "--point", "1", "--out", str(tmp_path / "point")]) == 0  # nobody is there


def test_without_a_device_nothing_is_measured(tmp_path: Path) -> None:
    search.run(target="raspberry-pi-4", max_latency="0.6x", out=str(tmp_path / "run"), **QUICK)
    results = front_of(tmp_path / "run")
    assert all("measured" not in p for p in results["points"])
    assert "measured" not in results["base"]


def test_a_device_slower_than_predicted_moves_the_budget_and_the_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def truth(work: Work) -> float:
        return 0.5 + len(work.model) * 3e-6  # ms: a fixed cost no published constant knows, then memory

    device = SimulatedDevice(truth, noise=0.002)
    monkeypatch.setattr(setup, "device_at_hand", lambda config, target: device)
    search.run(
        target="raspberry-pi-4", measure="active", max_latency="0.5x", out=str(tmp_path / "run"),
        **{**QUICK, "evaluations": 16},
    )  # fmt: skip
    results = front_of(tmp_path / "run")
    base = results["base"]["measured"]["latency_ms"]["value"]
    assert base == pytest.approx(truth(Work("", b"x" * 1_070_000)), rel=0.1)
    assert results["budget"]["limits"]["latency_ms"]["limit"] == pytest.approx(0.5 * base, rel=0.02)
    assert results["points"]
    assert all(p["measured"]["latency_ms"]["value"] <= 0.51 * base for p in results["points"])
    assert device.given > len(results["points"])  # during the search as well


@pytest.mark.parametrize("disturbed", [0, 1, 9])
def test_what_is_delivered_is_measured_again_where_it_breaks_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disturbed: int
) -> None:
    calls = 0

    def measured(setup_: setup.Setup, models: Sequence[bytes]) -> list[Measurement]:
        nonlocal calls
        calls += 1
        *others, last = measure_models(setup_, models)
        return [*others, last.scaled(3.0) if calls <= disturbed else last]

    monkeypatch.setattr(setup, "device_at_hand", lambda config, target: SimulatedDevice(noise=0.002))
    monkeypatch.setattr("search.deliver.measure_models", measured)
    search.run(target="raspberry-pi-4", max_latency="0.5x", out=str(tmp_path / "run"), **QUICK)
    results = front_of(tmp_path / "run")
    picked = next(p for p in results["points"] if p["picked"])
    holds = (
        picked["measured"]["latency_ms"]["value"] <= 1.02 * results["budget"]["limits"]["latency_ms"]["limit"]
    )
    told = [e["text"] for e in results["events"] if e["kind"] == "budget"]
    assert calls == min(disturbed + 1, 3)
    assert holds == (disturbed < 3) == (not told)
    assert all("over the" in text for text in told)


def test_an_unsteady_device_ends_the_run_unless_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    troubles = dict.fromkeys(range(400), "unstable")
    monkeypatch.setattr(setup, "device_at_hand", lambda c, t: SimulatedDevice(trouble=dict(troubles)))
    options = {"target": "raspberry-pi-4", "host": "pi@board", "max_latency": "0.6x", **QUICK}
    with pytest.raises(DeviceError, match="unsteadily") as caught:
        search.run(out=str(tmp_path / "a"), **options)
    assert caught.value.exit_code == 5
    assert "--accept-unstable" in str(caught.value)
    search.run(out=str(tmp_path / "b"), accept_unstable=True, **options)
    assert front_of(tmp_path / "b")["points"]


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--host", "http://127.0.0.1:9", "--token", "x"], 5, "127.0.0.1:9"),
        (["--host", "ftp://board"], 5, "ftp://board"),
        (["--host", "nobody@127.0.0.1:9"], 5, "127.0.0.1"),
        (["--host", "emulated:cortex-a72"], 2, "instructions"),
        (["--host", "emulated:cortex-a27"], 5, "Did you mean"),
    ],
)
def test_a_host_that_is_none_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, said: str
) -> None:
    given = ["--target", "raspberry-pi-4", "--task", "mnist5k-lenet300", "--out", str(tmp_path / "run")]
    assert main([*given, "--threads", "1", *flags]) == code
    text = capsys.readouterr().err
    assert said in text
    assert "Traceback" not in text


def test_measuring_a_file_on_a_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search.run(target="local", max_latency="0.8x", out=str(tmp_path / "run"), **QUICK)
    model = tmp_path / "run" / "model.onnx"
    with http_agent() as address:
        found = engine.measure_run(
            str(model), host=address, token=TOKEN, soak_seconds=0.5, accept_unstable=True
        )  # fmt: skip
        assert main(["measure", str(model), "--host", address, "--token", "wrong", "--json"]) == 5
    answer = json.loads(capsys.readouterr().out)
    assert "token" in json.dumps(answer).lower()
    assert found["soak_seconds"] == 0.5
    assert found["networks"][0]["memory_bytes"]
    assert 0 < found["networks"][0]["min_cpu_ms"] <= found["networks"][0]["p95_ms"]
    assert found["throttled"] in (None, 0.0)  # many machines do not tell
