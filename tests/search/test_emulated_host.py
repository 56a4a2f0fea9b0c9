"""One command on a board, where the board is emulated: profile, search and measure over the wire."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hw_profiles.devices.emulated_agent import EmulatedAgent
from hw_profiles.profiles import ProfileStore
from search.cli import main
from search.results import read_results
from tests.hw_profiles.devices.emulated_networks import built_sysroot

#: The emulation shares this machine with whatever else runs, and takes turns of a millisecond or less badly.
FLAGS = ["--task", "mnist5k-lenet300", "--evaluations", "6", "--recover", "0", "--threads", "1"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_search_with_the_host_profiles_searches_and_measures_the_front(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sysroot, run = built_sysroot(), tmp_path / "run"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with EmulatedAgent("cortex-a72", sysroot) as agent:
        host = ["--host", agent.address, "--token", agent.token, "--accept-unstable"]
        command = ["--target", "raspberry-pi", *FLAGS, "--profile", "30s", "--max-latency", "0.8x", *host]
        assert main([*command, "--out", str(run)]) == 0
        printed = capsys.readouterr()
        assert main(["measure", str(run), *host, "--soak", "1s", "--json"]) == 0
        timed = json.loads(capsys.readouterr().out)
    results = read_results(run / "results.json")
    assert results["target"]["name"] == "raspberry-pi-4"
    assert results["points"]
    for network in (results["base"], *results["points"]):
        measured, predicted = network["measured"]["latency_ms"], network["costs"]["latency_ms"]
        assert (measured["source"], predicted["source"]) == ("measured", "predicted")
        assert 0.0 < measured["value"] < 1e4
    limit = results["budget"]["limits"]["latency_ms"]["limit"]
    assert limit == pytest.approx(0.8 * results["base"]["measured"]["latency_ms"]["value"])
    # The label: what stands there is the time of an emulation, everywhere that facts are shown.
    assert "emulated raspberry-pi-4" in results["target"]["backing"]
    assert "the emulation's" in results["target"]["backing"]
    assert [e["text"] for e in results["events"] if e["kind"] == "device"]
    assert "the emulation's" in printed.out
    assert timed["device"] == "emulated raspberry-pi-4"
    assert all(0.0 < n["min_cpu_ms"] <= n["p95_ms"] for n in timed["networks"])
    profiles = ProfileStore().all()
    assert [(p.facts.device, p.facts.emulated, p.unit) for p in profiles] == [
        ("emulated raspberry-pi-4", "qemu-aarch64", "ms")
    ]
    assert len(profiles[0].measured) >= 8
    assert agent.token not in (run / "config.yaml").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_profile_of_instructions_is_kept_and_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAILORBIRD_ARM_SYSROOT", str(built_sysroot()))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    command = ["profile", "--target", "raspberry-pi-4", "--host", "emulated:cortex-a72"]
    assert main([*command, "--time", "5s"]) == 0
    assert "counted  instructions, not time" in capsys.readouterr().out
    (profile,) = ProfileStore().all()
    assert (profile.facts.device, profile.unit, profile.threads) == ("emulated cortex-a72", "instructions", 1)
    assert len(profile.measured) >= 8
    assert all(row.stable for row in profile.measured.values())
    assert main([*command, "--time", "5s", "--threads", "2"]) == 2
    assert "1 thread" in capsys.readouterr().err
