"""A search in a Ray cluster while workers, a node and the driver are killed: does it end as undisturbed?

    .venv/bin/python scripts/chaos.py [--evaluations 200] [--every 5] [--task mnist5k-lenet300] [--seed 0]

The standard is one undisturbed search with --deterministic, one worker and no Ray. The same search then runs
with two workers on a cluster of two nodes of this machine. A worker is killed -9 every few seconds, one node
once, the driver twice; it is resumed each time. Passed: every number and every policy stands in the journal
once, with the standard's accuracy, and the same policy is picked with the same exported file.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from kill_resume import ROOT, Ending, _environment, finish

from search.journal import Journal
from search.runfolder import JOURNAL

#: Shares of the evaluations after which the driver is killed, and the node.
DRIVER_AT, NODE_AT = (0.25, 0.65), 0.45
LOOK_EVERY = 0.1


def command(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """The search."""
    return [
        *(sys.executable, "-m", "search.cli", "--task", arguments.task, "--target", arguments.target),
        *("--evaluations", str(arguments.evaluations), "--seed", str(arguments.seed), "--recover", "0"),
        *("--deterministic", "--pool", "off", "--out", str(folder), "--quiet", "--json"),
    ]


@dataclass
class Chaos:
    """What is done to one search, and when."""

    cluster: Any
    node: Any
    folder: Path
    every: float
    total: int
    draw: random.Random
    drivers: list[float] = field(default_factory=lambda: list(DRIVER_AT))
    workers_killed: int = 0
    nodes_killed: int = 0
    drivers_killed: int = 0
    next_kill: float = 0.0

    def run(self, first: list[str], again: list[str], text: Path) -> None:
        """Run the search to its end, however often it is killed. Raises SystemExit where it fails."""
        words = first
        while True:
            with text.open("a", encoding="utf-8") as file:
                driver = subprocess.Popen(
                    words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=_environment()
                )
            self.next_kill = time.monotonic() + self.every
            while driver.poll() is None:
                time.sleep(LOOK_EVERY)
                self.disturb(driver)
            if driver.returncode == 0:
                return
            if driver.returncode != -signal.SIGKILL:
                raise SystemExit(f"exited with {driver.returncode}: {text.read_text()[-1500:]}")
            words = again

    def disturb(self, driver: subprocess.Popen[bytes]) -> None:
        """Kill what is due."""
        share = self.done() / self.total
        if self.drivers and share >= self.drivers[0]:
            self.drivers.pop(0)
            driver.kill()
            self.drivers_killed += 1
            return
        if self.node is not None and share >= NODE_AT:
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.node = None
            self.nodes_killed += 1
            self.cluster.add_node(num_cpus=1)
        if time.monotonic() >= self.next_kill:
            self.next_kill = time.monotonic() + self.every
            self.kill_worker()

    def kill_worker(self) -> None:
        """One of this cluster's evaluation workers, if there are any now."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any("ray::EvaluationWorker" in part for part in process.cmdline()):
                    found.append(process.pid)
        if found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.draw.choice(found), signal.SIGKILL)
            self.workers_killed += 1

    def done(self) -> int:
        """Evaluations in the journal."""
        path = self.folder / JOURNAL
        return path.read_bytes().count(b'"kind":"evaluated"') if path.is_file() else 0


def trials(folder: Path) -> dict[int, tuple[str, Any]]:
    """Policy and accuracy by number."""
    done = [r.data for r in Journal.read(folder / JOURNAL) if r.kind == "evaluated"]
    return {
        int(d["number"]): (str(d["outcome"]["policy"]), d["outcome"]["accuracy"] or d["outcome"]["why"])
        for d in done
    }


def judge(standard: Path, disturbed: Path, total: int) -> str:
    """What is wrong with the disturbed run; "" if nothing."""
    mine, theirs = Ending.of(disturbed), Ending.of(standard)
    wrong = []
    if sorted(mine.numbers) != list(range(total)):
        wrong.append(f"{len(mine.numbers)} outcomes, {len(set(mine.numbers))} numbers")
    if len(set(mine.evaluated)) != total:
        wrong.append(f"{len(set(mine.evaluated))} distinct policies")
    found, expected = trials(disturbed), trials(standard)
    other = [k for k in expected if found.get(k) != expected[k]]
    if other:
        wrong.append(f"{len(other)} trials differ, the first is {other[0]}: {found.get(other[0])}")
    return "; ".join([*wrong, *mine.unlike(theirs)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two killed workers")
    parser.add_argument("--task", default="mnist5k-lenet300")
    parser.add_argument("--target", default="x86-avx512-vnni")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from ray.cluster_utils import Cluster

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        start = time.monotonic()
        finish(command(arguments, root / "standard"), root / "standard.txt")
        print(f"undisturbed, one worker: {time.monotonic() - start:.1f} s", flush=True)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        node = cluster.add_node(num_cpus=1)
        folder = root / "run"
        where = ["--ray-address", str(cluster.address), "--workers", "2"]
        resume = [sys.executable, "-m", "search.cli", "--resume", str(folder), "--quiet", "--json", *where]
        chaos = Chaos(
            cluster, node, folder, arguments.every, arguments.evaluations, random.Random(arguments.seed)
        )
        start = time.monotonic()
        chaos.run([*command(arguments, folder), *where], resume, root / "run.txt")
        print(
            f"disturbed: {time.monotonic() - start:.1f} s; killed: {chaos.workers_killed} workers, "
            f"{chaos.nodes_killed} nodes, {chaos.drivers_killed} drivers",
            flush=True,
        )
        cluster.shutdown()
        wrong = judge(root / "standard", folder, arguments.evaluations)
        best = Ending.of(folder)
    print(
        f"FAILED: {wrong}"
        if wrong
        else f"passed: {arguments.evaluations} distinct outcomes, each the standard's; best {best.best} at "
        f"{best.score:.4f}"
    )
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
