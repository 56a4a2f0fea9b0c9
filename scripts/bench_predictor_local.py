#!/usr/bin/env python3
"""The predictor on this machine: profile generic probes, then predict compressed networks of other families.

    scripts/bench_predictor_local.py [--minutes 10] [--per-family 42] [--threads 1] [--cache FOLDER]

1. Profiles this machine for at most --minutes: random chains of kernels, chosen by the planner.
2. Compresses networks of six families (ResNet, VGG, MobileNetV2, inception, LeNet, transformer encoder;
   random policies, fp32, int8 and mixed, several resolutions) and measures the exported files end to end,
   in --passes over all of them, since other work slows a machine for minutes: the least counts.
3. Prints the error by method and family, the interval's coverage, an ablation and learning curves.

One thread: minimum of CPU time; more: minimum of wall time, which other work on the machine disturbs. What
was measured is kept in --cache, so that a second call only fits and prints.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from hw_profiles.devices.contract import STABLE_WITHIN, Work  # noqa: E402
from hw_profiles.devices.local import LocalDevice  # noqa: E402
from hw_profiles.filling import fill  # noqa: E402
from hw_profiles.kernel import Array, KernelBatch  # noqa: E402
from hw_profiles.learned import Learned, Observation, learn  # noqa: E402
from hw_profiles.planner import Planner, runs_of  # noqa: E402
from hw_profiles.predictor import Predictor  # noqa: E402
from hw_profiles.profile_rows import NetworkRow  # noqa: E402
from hw_profiles.profiles import Profile, ProfileStore  # noqa: E402
from hw_profiles.profiling import Progress, profile  # noqa: E402
from hw_profiles.target import Target, load_target  # noqa: E402

CURVE = (0, 10, 30, 100, 300, 1000)
GOALS = "goal: at least 90 % within 10 %, 99 % within 25 %, Spearman at least 0.98 in every family"


@dataclass(frozen=True)
class Case:
    """One held-out network: its family, mode, kernels, and measured milliseconds."""

    key: str
    family: str
    batch: KernelBatch
    ms: float
    stable: bool
    profiler_ms: float


def main_local(args: argparse.Namespace) -> int:
    """Profile, measure, print; 0 when the goals are met."""
    target = load_target("local")
    cache = Path(args.cache)
    machine = LocalDevice()
    facts = machine.facts()
    print(f"{facts.chip}, {facts.runtime} {facts.runtime_version}, {args.threads} thread(s), "
          f"{'minimum of CPU time' if args.threads == 1 else 'minimum of wall time'}")  # fmt: skip
    known = profiled(machine, target, cache, args)
    single = alone(machine, target, cache, args)
    cases = held_out_cases(machine, cache, args)
    print(f"held out: {len(cases)} networks, {sum(c.stable for c in cases)} of them measured steadily")
    steady = [c for c in cases if c.stable] if args.stable_only else cases
    rows = in_order(known)
    good = report(target, rows, steady, args, single)
    curves(target, rows, steady, args, single)
    return 0 if good else 1


def profiled(machine: LocalDevice, target: Target, cache: Path, args: argparse.Namespace) -> Profile:
    """The profile of this machine, measured now unless the cache holds one."""
    store = ProfileStore(cache / "profile")
    facts = machine.facts()
    known = store.open(facts, args.threads)
    if not known.measured:
        begun, cpu = time.monotonic(), _cpu_seconds()
        found = fill(
            machine, target, store, args.threads, 60 * args.minutes, seed=args.seed, accept_unstable=True,
            progress=_tell,
        )  # fmt: skip
        taken, busy = (time.monotonic() - begun) / 60, (_cpu_seconds() - cpu) / 60
        text = (
            f"profiled {found.measured} probes in {taken:.1f} minutes ({busy:.1f} of them CPU time), "
            f"{found.unstable_kept} unsteady"
        )
        (cache / f"profile-{args.threads}.txt").write_text(text, encoding="utf-8")
        known = store.open(facts, args.threads)
    note = cache / f"profile-{args.threads}.txt"
    print(note.read_text(encoding="utf-8") if note.exists() else f"{len(known.measured)} probes in the cache")
    return known


def alone(machine: LocalDevice, target: Target, cache: Path, args: argparse.Namespace) -> Learned | None:
    """What was learned of one thread, where several are asked for."""
    if args.threads == 1:
        return None
    rows = in_order(ProfileStore(cache / "profile").open(machine.facts(), 1))
    print(f"one thread, on which {args.threads} rest: {len(rows)} probes")
    return learn(rows, target, 1, args.seed, calibrated=False)


def _cpu_seconds() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _tell(progress: Progress) -> None:
    if progress.measured % 50 == 0:
        print(f"  {progress.measured} measured, {progress.seconds:.0f} s", file=sys.stderr, flush=True)


def held_out_cases(machine: LocalDevice, cache: Path, args: argparse.Namespace) -> list[Case]:
    """Compressed networks of families that no profile has seen, measured now unless the cache holds them."""
    stores = [ProfileStore(cache / f"held-out-{i + 1}") for i in range(args.passes)]
    facts = machine.facts()
    index = cache / f"held-out-{args.per_family}-{args.seed}-{args.threads}.json"
    if not index.exists():
        from heldout_networks import held_out

        made = list(held_out(args.per_family, args.seed))
        runs = runs_of(args.threads)
        works = [Work(f"{h.mode}:{h.name}", h.model, args.threads, *runs, kernels=True) for h in made]
        anchor = Planner(load_target("local"), args.threads, seed=args.seed).anchor()
        for store in stores:
            profile(
                machine,
                works,
                store,
                batch=12,
                accept_unstable=True,
                anchor=anchor,
                twice=True,
                progress=_tell,
            )
        index.write_text(json.dumps([w.key for w in works]), encoding="utf-8")
    keys = set(json.loads(index.read_text(encoding="utf-8")))
    rows: dict[str, list[NetworkRow]] = {key: [] for key in sorted(keys)}
    for store in stores:
        for row in store.open(facts, args.threads).measured.values():
            if row.kinds and row.key in rows:
                rows[row.key].append(row)
    return [_case(key, found) for key, found in rows.items() if found]


def _case(key: str, rows: Sequence[NetworkRow]) -> Case:
    """The least of the passes; steady where another pass agrees with it."""
    best, *others = sorted(rows, key=lambda row: row.best)
    steady = others[0].best < best.best * (1 + STABLE_WITHIN[best.clock]) if others else best.stable
    family = key.split(":")[1].split("/")[0]
    return Case(key, family, best.batch(), best.best, steady, sum(best.kernel_us) * 1e-3)


def in_order(known: Profile) -> list[Observation]:
    """The profile's networks as they were measured."""
    return [
        Observation(row.batch(), row.best, row.sigma, np.array(row.kernel_us))
        for row in known.measured.values()
        if row.kinds
    ]


def predictions(predictor: Predictor, cases: Sequence[Case]) -> tuple[Array, Array, Array]:
    """(ms, low, high) of every case."""
    found = [predictor.predict(c.batch) for c in cases]
    return tuple(  # type: ignore[return-value]
        np.array([float(getattr(f, name)[0]) for f in found]) for name in ("latency_ms", "low_ms", "high_ms")
    )


def report(
    target: Target, rows: Sequence[Observation], cases: Sequence[Case], args: argparse.Namespace,
    single: Learned | None = None,
) -> bool:  # fmt: skip
    """The table of methods, the coverage by family; whether the goals are met."""
    begun = time.monotonic()
    learned = learn(rows, target, args.threads, args.seed, single=single)
    seconds = time.monotonic() - begun
    base = Predictor(target, args.threads)
    ours = replace(base, learned=learned)
    families = list(dict.fromkeys(c.family for c in cases))
    print(f"\n{'method':34}{'within 10 %':>12}{'25 %':>8}{'median':>8}   Spearman "
          + " ".join(f"{f[:9]:>9}" for f in families))  # fmt: skip
    methods = {
        "MACs only (a + b MACs)": macs_only(rows, cases),
        "sum of isolated kernels (fitted)": isolated(target, rows, cases, args),
        "sum of kernels under the profiler": np.array([c.profiler_ms for c in cases]),
        "prior, nothing measured": predictions(base, cases)[0],
        "prior, corrected by 30 networks": predictions(
            base.corrected([(r.batch, r.ms) for r in rows[:30]]), cases
        )[0],
        "constants refitted": predictions(
            Predictor(learn(rows, target, args.threads, args.seed, calibrated=False).target, args.threads),
            cases,
        )[0],
    }
    for name, predicted in methods.items():
        _line(name, predicted, cases, families)
    ms, low, high = predictions(ours, cases)
    good = _line("refitted and residual learned", ms, cases, families)
    print(GOALS)
    print(f"fit with calibration: {seconds:.1f} s; {ours.predict(cases[0].batch).backing}")
    measured = np.array([c.ms for c in cases])
    inside = (low <= measured) & (measured <= high)
    parts = [f"{f} {inside[[c.family == f for c in cases]].mean():.0%}" for f in families]
    print(f"90 % interval covers {inside.mean():.1%} ({', '.join(parts)}); "
          f"median half-width {np.median(high / ms) - 1:.1%}")  # fmt: skip
    for mode in ("fp32", "int8", "mixed"):
        mine = np.array([c.key.startswith(mode) for c in cases])
        error = np.abs(ms[mine] / measured[mine] - 1.0)
        print(f"  {mode:6} {mine.sum():3d} networks, median error {np.median(error):.1%}, "
              f"{np.mean(error <= 0.1):.0%} within 10 %")  # fmt: skip
    return good


def _line(name: str, predicted: Array, cases: Sequence[Case], families: Sequence[str]) -> bool:
    measured = np.array([c.ms for c in cases])
    error = np.abs(predicted / measured - 1.0)
    ranks = []
    for family in families:
        mine = [i for i, c in enumerate(cases) if c.family == family]
        ranks.append(float(spearmanr(predicted[mine], measured[mine])[0]))
    ten, quarter = float(np.mean(error <= 0.10)), float(np.mean(error <= 0.25))
    print(f"{name:34}{ten:12.1%}{quarter:8.1%}{np.median(error):8.1%}            "
          + " ".join(f"{r:9.3f}" for r in ranks), flush=True)  # fmt: skip
    return ten >= 0.9 and quarter >= 0.99 and min(ranks) >= 0.98


def macs_only(rows: Sequence[Observation], cases: Sequence[Case]) -> Array:
    """ms = a + b MACs, least squares of the relative error on the profile."""
    from scipy.optimize import nnls

    macs = np.array([float(r.batch.macs().sum()) for r in rows])
    ms = np.array([r.ms for r in rows])
    found, _ = nnls(np.column_stack([1.0 / ms, macs / ms]), np.ones(len(ms)))
    return np.array([found[0] + found[1] * float(c.batch.macs().sum()) for c in cases])


def isolated(
    target: Target, rows: Sequence[Observation], cases: Sequence[Case], args: argparse.Namespace
) -> Array:
    """Sum of kernels, each priced by a fit to profiled kernels alone: no whole network, no fixed cost."""
    from hw_profiles import refit

    weight, refit.NETWORK_WEIGHT = refit.NETWORK_WEIGHT, 1e-6
    flat = refit.flatten([(r.batch, r.ms, r.sigma) for r in rows], [r.kernel_us for r in rows], target)
    alone = Predictor(refit.refit(flat, target, args.threads), args.threads)
    refit.NETWORK_WEIGHT = weight
    return np.array([float(alone.predict(c.batch).kernel_ms.sum()) for c in cases])


def curves(
    target: Target, rows: Sequence[Observation], cases: Sequence[Case], args: argparse.Namespace,
    single: Learned | None = None,
) -> None:  # fmt: skip
    """Error and coverage after so many measured probes."""
    print(
        f"\n{'probes measured':>16}{'within 10 %':>12}{'25 %':>8}{'median':>8}"
        f"{'covered':>9}{'half-width':>12}"
    )
    measured = np.array([c.ms for c in cases])
    for count in (*(n for n in CURVE if n < len(rows)), len(rows)):
        learned = learn(rows[:count], target, args.threads, args.seed, single=single)
        ms, low, high = predictions(replace(Predictor(target, args.threads), learned=learned), cases)
        error, inside = np.abs(ms / measured - 1.0), (low <= measured) & (measured <= high)
        print(f"{count:16d}{np.mean(error <= 0.1):12.1%}{np.mean(error <= 0.25):8.1%}{np.median(error):8.1%}"
              f"{inside.mean():9.1%}{np.median(high / ms) - 1:12.1%}", flush=True)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `main_local`."""
    parser.add_argument("--minutes", type=float, default=10.0, help="of profiling, at most")
    parser.add_argument("--per-family", type=int, default=42, help="held-out networks a family")
    parser.add_argument("--passes", type=int, default=3, help="times the held-out networks are measured")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stable-only", action="store_true", help="leave out networks whose halves disagree")
    parser.add_argument("--cache", default=".venv/cache/bench-predictor", help="where measurements are kept")


if __name__ == "__main__":
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(found)
    sys.exit(main_local(found.parse_args()))
