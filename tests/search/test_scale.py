"""The scripts that scale and disturb evaluation, in small: real clusters, real kills."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def output_of(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]
    return done.stdout


def test_a_search_survives_killed_workers_a_node_and_the_driver() -> None:
    text = output_of("scripts/chaos.py", "--evaluations", "40", "--every", "5")
    assert "1 nodes, 2 drivers" in text
    assert "passed: 40 distinct outcomes" in text


def test_the_benchmark_of_scale_runs() -> None:
    text = output_of("scripts/bench_scale.py", "--quick", "--task", "mnist5k-lenet300")
    assert "8 actors on 4 nodes" in text
    assert "1000 workers: the agent saturates first" in text
