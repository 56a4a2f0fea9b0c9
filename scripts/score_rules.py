"""How far hand-written fusion rules are from what onnxruntime does: share of kernels that agree.

    .venv/bin/python scripts/score_rules.py [--policies 1000] [--seed 0]

Random policies of the digits ResNet-20 are lowered twice for x86: by asking onnxruntime, and by
search/rules.py. A kernel agrees when both have one of the same kind (weight-bearing, addition, pooling,
conversion, ...), precision, layer and fused activation. Layout changes, which rules know nothing of, count
against them.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from compressors.space import PolicySpace
from compressors.structure import structure_of
from compressors.trace import trace
from hw_profiles.kernel import KernelKind
from hw_profiles.target import load_target
from search.abilities import abilities_of
from search.lowering import Lowering
from search.tasks.networks import resnet20
from search.templates import TemplateStore

_KINDS = {
    "FusedConv": "Conv", "QLinearConv": "Conv", "QGemm": "Gemm", "QLinearAdd": "Add",
    "GlobalAveragePool": "ReduceMean", "QLinearGlobalAveragePool": "ReduceMean",
}  # fmt: skip
#: Views cost nothing on either side.
_IGNORED = frozenset({"Flatten", "Reshape"})


def key_of(kind: KernelKind) -> tuple[str, ...]:
    """What has to be the same: kind, precision, layer or tensor, fused activation and addition."""
    where = kind.layer if kind.weight_bearing else ""
    return (_KINDS.get(kind.op, kind.op), kind.precision, where, *sorted(kind.fused))


def counted(kinds: tuple[KernelKind, ...]) -> Counter[tuple[str, ...]]:
    """Kernels by key; integer kernels have their activation inside the rounding."""
    found: Counter[tuple[str, ...]] = Counter()
    for kind in kinds:
        if kind.op not in _IGNORED:
            key = key_of(kind)
            found[
                tuple(x for x in key if x not in ("relu", "clip")) if kind.precision == "int8" else key
            ] += 1
    return found


def main() -> None:
    """Print the shares."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--policies", type=int, default=1000)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    torch.set_num_threads(1)
    network = resnet20().eval()
    traced = trace(network, (torch.zeros(1, 1, 32, 32),))
    structure = structure_of(traced.graph)
    target = load_target("x86-avx512-vnni")
    by_rule = target.model_copy(update={"runtime": target.runtime.model_copy(update={"templates": "rules"})})
    space = PolicySpace(structure, abilities_of(target))
    rng = np.random.default_rng(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        asked = Lowering(structure, target, weights=traced.weights, store=TemplateStore(Path(folder) / "a"))
        ruled = Lowering(structure, by_rule, weights=traced.weights, store=TemplateStore(Path(folder) / "b"))
        report(asked, ruled, space, rng, given.policies)


def report(
    asked: Lowering, ruled: Lowering, space: PolicySpace, rng: np.random.Generator, count: int
) -> None:
    """Compare kernel by kernel and in milliseconds."""
    agree = total = bearing_agree = bearing = 0
    ratios = []
    missed: Counter[str] = Counter()
    for _ in range(count):
        policy = space.resolve(space.decode(rng.random(space.dimension)))
        a, b = (counted(x.template(policy).kinds) for x in (asked, ruled))
        agree += sum((a & b).values())
        total += sum((a | b).values())
        bearing += sum(n for k, n in a.items() if k[2])
        bearing_agree += sum(n for k, n in (a & b).items() if k[2])
        missed.update({k[0]: n for k, n in (a - b).items()})
        prices = [float(x.costs([policy])["latency_ms"][0]) for x in (asked, ruled)]
        ratios.append(prices[1] / prices[0])
    low, middle, high = np.quantile(ratios, [0.05, 0.5, 0.95])
    print(f"{count} random policies, {asked.asked} templates asked of onnxruntime")
    print(f"kernels that agree          {agree / total:6.1%} of all either side has")
    print(f"weight-bearing that agree   {bearing_agree / bearing:6.1%}")
    print(f"price by rules / by runtime {middle:.2f} ({low:.2f} to {high:.2f}, 90 % of policies)")
    print("kernels the rules lack:     " + ", ".join(f"{k} {n}" for k, n in missed.most_common(6)))


if __name__ == "__main__":
    main()
