"""kill -9 at moments spread over a run's wall time, then --resume: nothing lost, nothing doubled, same end.

    python scripts/kill_resume.py [--kills 20] [--evaluations 60] [--task mnist5k-lenet300] [--workers 1]

An undisturbed run sets the standard: its evaluations in order, its best, its exported file. Every other run
is killed with its whole process group at a moment of its own, one in each of as many equal parts of the
standard's wall time, start-up and the writing of results included; then it is resumed. A run killed before
its first record holds nothing to resume and is started anew in the same folder. With several workers the
order of outcomes differs from run to run: only what is lost or doubled is judged then.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import contextlib

from search.journal import Journal, Record
from search.runfolder import JOURNAL, MODEL, RESULTS

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Ending:
    """What a finished run holds: digests evaluated in order, the picked policy, the exported file's hash."""

    evaluated: tuple[str, ...]
    numbers: tuple[int, ...]
    best: str
    score: float
    model: str

    @classmethod
    def of(cls, folder: Path) -> Ending:
        """Read a finished run's journal, results and model."""
        done = [r for r in Journal.read(folder / JOURNAL) if r.kind == "evaluated"]
        results: dict[str, Any] = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
        best = next(p for p in results["points"] if p["picked"])
        return cls(
            tuple(_digest(r) for r in done),
            tuple(int(r.data["number"]) for r in done),
            best["digest"],
            best["validation"]["value"],
            hashlib.sha256((folder / MODEL).read_bytes()).hexdigest(),
        )

    def unlike(self, standard: Ending) -> list[str]:
        """In what the best policy and its file differ from another ending's."""
        if (self.best, self.score) != (standard.best, standard.score):
            return [f"best {self.best} {self.score:.4f}, not {standard.best} {standard.score:.4f}"]
        return [] if self.model == standard.model else ["the exported file differs"]


def _digest(record: Record) -> str:
    policy = json.dumps(record.data["outcome"]["policy"], sort_keys=True)
    return hashlib.sha256(policy.encode()).hexdigest()[:16]


def command(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """The search that is killed."""
    return [
        *(sys.executable, "-m", "search.cli", "--task", arguments.task, "--target", arguments.target),
        *("--evaluations", str(arguments.evaluations), "--seed", str(arguments.seed), "--recover", "0"),
        *("--workers", str(arguments.workers), "--out", str(folder), "--quiet", "--json"),
    ]


def resume(folder: Path) -> list[str]:
    """Going on with it."""
    return [sys.executable, "-m", "search.cli", "--resume", str(folder), "--quiet", "--json"]


def finish(words: list[str], text: Path) -> None:
    """Run a command to its end; what it says goes to a file."""
    with text.open("w", encoding="utf-8") as file:
        done = subprocess.run(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=_environment())
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(words)}\nexited with {done.returncode}: {text.read_text()[-800:]}")


def kill_after(words: list[str], seconds: float) -> bool:
    """Start a command and kill -9 its process group after a time; whether it was still running."""
    quiet = subprocess.DEVNULL
    started = time.monotonic()
    process = subprocess.Popen(
        words, cwd=ROOT, stdout=quiet, stderr=quiet, env=_environment(), start_new_session=True
    )
    try:
        process.wait(seconds - (time.monotonic() - started))
        running = False
    except subprocess.TimeoutExpired:
        running = True
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return running


def _environment() -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": str(ROOT)}


@dataclass(frozen=True)
class Kill:
    """One killed run: when, what its journal held then, what was wrong at the end ("" if nothing)."""

    seconds: float
    records: int
    evaluated: int
    torn: bool
    wrong: str


def one_kill(arguments: argparse.Namespace, folder: Path, seconds: float, standard: Ending) -> Kill:
    """Kill a run after a time (sooner, if it has ended by then), resume it, and judge its end."""
    while not kill_after(command(arguments, folder), seconds):
        shutil.rmtree(folder)
        seconds *= 0.9
    journal = folder / JOURNAL
    before = journal.read_bytes() if journal.is_file() else b""
    whole = before[: before.rfind(b"\n") + 1]
    records = Journal.read(journal) if before else []
    again = resume(folder) if before else command(arguments, folder)
    finish(again, folder.with_suffix(".txt"))
    wrong = judge(arguments, standard, Ending.of(folder), whole, journal.read_bytes())
    drafts = [p.name for p in folder.iterdir() if p.suffix == ".tmp"]
    wrong = "; ".join(filter(None, (wrong, f"left behind: {', '.join(drafts)}" if drafts else "")))
    evaluated = sum(r.kind == "evaluated" for r in records)
    return Kill(seconds, len(records), evaluated, len(whole) < len(before), wrong)


def judge(arguments: argparse.Namespace, standard: Ending, end: Ending, before: bytes, after: bytes) -> str:
    """What is wrong with a resumed run; "" if nothing."""
    wrong = []
    if not after.startswith(before):
        wrong.append("records of the killed run are gone")
    if len(end.evaluated) != arguments.evaluations:
        wrong.append(f"{len(end.evaluated)} evaluations")
    if len(set(end.evaluated)) != len(end.evaluated) or len(set(end.numbers)) != len(end.numbers):
        wrong.append("an evaluation is doubled")
    if arguments.workers == 1:
        same = sum(a == b for a, b in zip(end.evaluated, standard.evaluated, strict=False))
        if end.evaluated != standard.evaluated:
            wrong.append(f"only {same} evaluations are the standard's")
        wrong += end.unlike(standard)
    return "; ".join(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--task", default="mnist5k-lenet300")
    parser.add_argument("--target", default="x86-avx512-vnni")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        finish(command(arguments, root / "warm"), root / "warm.txt")  # caches filled, as for every other run
        started = time.monotonic()
        finish(command(arguments, root / "standard"), root / "standard.txt")
        wall = time.monotonic() - started
        standard = Ending.of(root / "standard")
        print(
            f"undisturbed: {len(standard.evaluated)} evaluations in {wall:.1f} s, "
            f"best {standard.best} at {standard.score:.4f}",
            flush=True,
        )
        twice = judge(arguments, standard, Ending.of(root / "warm"), b"", b"")
        print(f"undisturbed again, same seed: {twice or 'the same, file included'}", flush=True)
        draw = random.Random(arguments.seed)
        print("kill   after s   records   evaluated   torn   result", flush=True)
        failed = bool(twice)
        for k in range(arguments.kills):
            seconds = wall * (k + draw.random()) / arguments.kills
            found = one_kill(arguments, root / f"kill-{k}", seconds, standard)
            print(
                f"{k + 1:4}   {found.seconds:7.2f}   {found.records:7}   {found.evaluated:9}   "
                f"{'yes' if found.torn else 'no':>4}   "
                f"{found.wrong or 'same'}",
                flush=True,
            )
            failed |= bool(found.wrong)
    print(
        "FAILED" if failed else f"passed: {arguments.kills} kills, nothing lost, nothing doubled, same best"
    )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
