"""Delivery when a runtime does not confirm a network: it is told, and the next candidate is delivered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import search
from search import engine
from search.errors import VerificationError
from search.results import read_results

OPTIONS = {
    "target": "raspberry-pi-4",
    "task": "mnist5k-lenet300",
    "evaluations": 8,
    "recover": "0",
    "threads": 1,
}


def refusing(times: int, asked: list[str]) -> Any:
    """`deliver` that refuses the first so many candidates, as verification would."""
    real = engine.deliver

    def deliver(setup: Any, candidate: Any, *more: Any) -> Any:
        asked.append(candidate.searched.policy.digest)
        if len(asked) <= times:
            raise VerificationError("the exported file gives other top-1 answers.", "It is not final.")
        return real(setup, candidate, *more)

    return deliver


def test_the_next_candidate_is_delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(engine, "deliver", refusing(1, asked))
    search.run(max_latency="0.7x", out=str(tmp_path / "run"), **OPTIONS)
    results = read_results(tmp_path / "run" / "results.json")
    assert len(set(asked)) == 2
    picked = next(p for p in results["points"] if p["picked"])
    assert picked["digest"] == asked[1]
    told = [e for e in results["events"] if e["kind"] == "verification"]
    assert len(told) == 1
    assert asked[0][:8] in told[0]["text"]
    assert results["verification"]["passed"]
    assert (tmp_path / "run" / "model.onnx").is_file()


def test_without_a_confirmed_candidate_nothing_is_final(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(engine, "deliver", refusing(99, asked))
    with pytest.raises(VerificationError):
        search.run(max_latency="0.7x", out=str(tmp_path / "run"), **OPTIONS)
    assert len(asked) == len(set(asked)) >= 2
    assert not (tmp_path / "run" / "model.onnx").exists()
