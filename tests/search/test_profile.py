"""`search profile`: what is measured is kept, taken up again, shared, and what prices rest on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import search
from hw_profiles.devices.contract import DeviceFacts
from hw_profiles.devices.local import LocalDevice
from hw_profiles.predictor import Predictor
from hw_profiles.profiles import Profile, ProfileStore
from hw_profiles.target import load_target
from search.cli import main
from search.profile import check_measurable, known_predictor, profile_target
from search.results import read_results
from tests.hw_profiles.devices.servers import TOKEN, http_agent


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """This machine measured for a few seconds, into a store of its own: (data home, document)."""
    home = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(home))
        yield home, profile_target("local", minutes=0.1, accept_unstable=True)


def test_a_profile_is_kept_and_prices_rest_on_it(profiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home, found = profiled
    monkeypatch.setenv("XDG_DATA_HOME", str(home))
    assert found["measured"] >= 16
    assert Path(found["file"]).is_relative_to(home)
    assert found["networks"] == found["measured"]
    assert "measured on" in found["backing"]
    plain = Predictor(load_target("local"))
    with LocalDevice() as device:
        known, note = known_predictor(plain, device)
    assert note == ""
    assert known.learned is not None
    assert known.learned.networks == found["networks"]


def test_profiling_goes_on_where_it_was(profiled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    home, found = profiled
    monkeypatch.setenv("XDG_DATA_HOME", str(home))
    again = profile_target("local", minutes=0.05, accept_unstable=True)
    assert again["held"] >= 16
    assert again["networks"] == found["networks"] + again["measured"]


def test_a_search_says_that_it_rests_on_the_profile(
    profiled: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(profiled[0]))
    options = {"task": "mnist5k-lenet300", "evaluations": 4, "recover": "0", "measure": "never"}
    search.run(target="local", max_latency="0.8x", out=str(tmp_path / "run"), **options)
    backing = read_results(tmp_path / "run" / "results.json")["target"]["backing"]
    assert "kernels measured" in backing
    assert "onnxruntime" in backing


def test_profiles_are_shared_and_merged(
    profiled: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(profiled[0]))
    shared = tmp_path / "mine.jsonl.gz"
    assert main(["profile", "--share", str(shared)]) == 0
    count = len(Profile.load(shared).measured)
    assert count >= 16
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "theirs"))
    assert main(["profile", "--add", str(shared), "--json"]) == 0
    assert f"{count} networks" in capsys.readouterr().out
    assert [len(p.measured) for p in ProfileStore().all()] == [count]
    assert main(["profile", "--add", str(tmp_path / "none.jsonl")]) == 3
    (tmp_path / "bad.jsonl").write_text("{}\n")
    assert main(["profile", "--add", str(tmp_path / "bad.jsonl")]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_a_stale_profile_is_named_and_left_aside(
    profiled: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = Profile.load(profiled[1]["file"])
    facts = DeviceFacts(**{**old.facts.__dict__, "device": "raspberry-pi-4", "runtime_version": "1.9.0"})
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    ProfileStore().append(facts, 1, old.rows)
    now = DeviceFacts(**{**facts.__dict__, "runtime_version": "1.32.0"})

    class Board:
        def facts(self) -> DeviceFacts:
            return now

    plain = Predictor(load_target("raspberry-pi-4"), 1)
    known, note = known_predictor(plain, Board())  # type: ignore[arg-type]
    assert known is plain
    assert "1.9.0" in note
    assert "stale" in note


def test_a_host_is_profiled_before_it_is_searched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    with http_agent() as address:
        search.run(
            target="raspberry-pi-4", host=address, token=TOKEN, profile="4s", max_latency="0.6x", threads=1,
            task="mnist5k-lenet300", evaluations=6, recover="0", accept_unstable=True,
            out=str(tmp_path / "run"),
        )  # fmt: skip
    results = read_results(tmp_path / "run" / "results.json")
    (kept,) = ProfileStore().all()
    assert kept.facts.device == "raspberry-pi-4"
    assert any(row.key.startswith("kernel#") for row in kept.measured.values())
    assert "kernels measured" in results["target"]["backing"]
    assert all("measured" in p for p in results["points"])


@pytest.mark.parametrize("name", ["gpu-t4", "fpga-bitfusion", "raspberry-pi-4/ncnn"])
def test_what_no_device_runs_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(search.errors.UsageError, match=name):
        check_measurable(load_target(name))
    assert main(["profile", "--target", name, "--host", "http://127.0.0.1:9", "--json"]) == 2
    assert name in json.dumps(json.loads(capsys.readouterr().out))
