"""How far the stand-in for another processor's onnxruntime is from that runtime itself, graph by graph.

    python scripts/score_arm_templates.py [networks ...] [--policies 12] [--core cortex-a72] [--exports 2]
    python scripts/score_arm_templates.py --core haswell

Kernel templates of arm64 targets come from this machine's onnxruntime without its blocked layout
(`templates: host-without-nchwc`). Here random policies of the hand-written networks (fp32, int8, mixed; half
of them with widths that are no multiple of anything) are optimised by it and, as the judge, by the arm64
onnxruntime under emulation. Graphs are equal when they have the same kernels: operation, domain, all
attributes, element types and shapes of constants. `--exports` compares so many really compressed files a
network too. With `--core haswell` the judge is AVX2, and the stand-in this machine's own default session.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from compressors.apply import compress  # noqa: E402
from compressors.network import Network  # noqa: E402
from compressors.policy import ResolvedPolicy  # noqa: E402
from compressors.skeleton import SkeletonCache, concrete, placement, unknowns  # noqa: E402
from compressors.space import PolicySpace  # noqa: E402
from hw_profiles.devices.emulated import CORES, EmulatedArm, EmulatedX86  # noqa: E402
from hw_profiles.errors import DeviceError  # noqa: E402
from hw_profiles.target import load_target  # noqa: E402
from search.abilities import abilities_of  # noqa: E402
from search.dummies import dummy_model  # noqa: E402
from search.export_onnx import export_model  # noqa: E402
from search.lowering import Lowering  # noqa: E402
from search.templates import optimised  # noqa: E402
from tests.compressors.networks import inputs_for, networks, oddities  # noqa: E402

Kernels = Counter[tuple[str, ...]]


def kernels_in(model: onnx.ModelProto) -> Kernels:
    """Kernels of an optimised graph with all that decides what runs."""
    constants = {i.name: f"{i.data_type}{list(i.dims)}" for i in model.graph.initializer}
    found: Kernels = Counter()
    for node in model.graph.node:
        attributes = sorted(f"{a.name}={onnx.helper.get_attribute_value(a)!r}" for a in node.attribute)
        inputs = [constants.get(t, "tensor") if t else "" for t in node.input]
        found[(node.op_type, node.domain.removeprefix("ai.onnx"), *attributes, *inputs)] += 1
    return found


def policies_of(network: Network, target_name: str, count: int) -> Iterator[ResolvedPolicy]:
    """fp32, int8, then random policies; every second one at any width."""
    abilities = abilities_of(load_target(target_name))
    fine = dataclasses.replace(abilities, granularity=1, depthwise_granularity=1)
    spaces = [PolicySpace(network.structure, a) for a in (abilities, fine)]
    rng = np.random.default_rng(0)
    yield spaces[0].resolve(spaces[0].uniform(1.0))
    yield spaces[0].resolve(spaces[0].uniform(1.0, 8))
    for i in range(count - 2):
        space = spaces[i % 2]
        free = rng.random(space.dimension) < rng.random()
        yield space.resolve(space.decode(np.where(free, rng.random(space.dimension), 1.0)))


class Scorer:
    """Compares graphs and remembers what differs."""

    def __init__(self, target: str, method: str, judge: EmulatedArm | EmulatedX86) -> None:
        self.target, self.method, self.judge = load_target(target), method, judge
        self.lacking: Counter[str] = Counter()
        self.superfluous: Counter[str] = Counter()
        self.agree = self.total = 0

    def same(self, model: bytes) -> bool:
        """Whether stand-in and truth are equal for a file."""
        ours = kernels_in(optimised(model, self.method))
        truth = kernels_in(onnx.load_from_string(self.judge.optimised(model)))
        self.agree += sum((ours & truth).values())
        self.total += sum((ours | truth).values())
        self.lacking.update({short(k): n for k, n in (truth - ours).items()})
        self.superfluous.update({short(k): n for k, n in (ours - truth).items()})
        return ours == truth

    def score(
        self, name: str, make: tuple[nn.Module, tuple[torch.Tensor, ...]], count: int, exports: int
    ) -> str:
        """A line on one network."""
        network = Network.from_module(*make, inputs_for(name, 16))
        lowering = Lowering(network.structure, self.target, weights=network.weights)
        skeletons = SkeletonCache(network.structure)
        numerics = abilities_of(self.target).numerics
        same = files = 0
        for i, policy in enumerate(policies_of(network, self.target.name, count)):
            skeleton = skeletons.of(policy)
            graph = concrete(skeleton.graph, skeleton, unknowns(policy, network.structure))
            where = placement(network.structure, skeleton, policy)
            dummy = dummy_model(graph, where, self.target.numerics.activations, lowering.constants)
            same += self.same(dummy.SerializeToString())
            if 0 < i <= exports:
                files += self.same(export_model(compress(network, policy, numerics)))
        return f"{name:20s} {same:4d} of {count:<4d} {files:4d} of {exports}"


def short(kernel: tuple[str, ...]) -> str:
    """Operation, domain and activation of a kernel, for a list."""
    extra = [part for part in kernel[2:] if part.startswith(("activation=", "channels_last="))]
    return " ".join([part for part in kernel[:2] if part] + extra)


def main() -> int:
    """Print the shares; 1 where a stand-in is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", help="names; all by default")
    parser.add_argument("--policies", type=int, default=12)
    parser.add_argument("--exports", type=int, default=2)
    parser.add_argument("--core", default="cortex-a72", choices=[*CORES, "haswell"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    x86 = given.core == "haswell"
    judge = EmulatedX86() if x86 else EmulatedArm(given.core)
    scorer = Scorer(
        *(("x86-avx512-vnni", "host") if x86 else ("raspberry-pi-4", "host-without-nchwc")), judge
    )
    began = time.perf_counter()
    known = {**networks(), **oddities()}
    print(f"stand-in {scorer.method!r} against {given.core}\n{'network':20s} equal graphs  equal exports")
    try:
        for name in given.networks or known:
            print(scorer.score(name, known[name](), max(given.policies, 2), given.exports), flush=True)
    except DeviceError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return problem.exit_code
    finally:
        judge.close()
    print(f"kernels that agree {scorer.agree} of {scorer.total}, {time.perf_counter() - began:.0f} s")
    for title, kernels in (("lacks", scorer.lacking), ("has too many", scorer.superfluous)):
        print(f"stand-in {title}: " + (", ".join(f"{k} {n}" for k, n in kernels.most_common(8)) or "nothing"))
    return int(scorer.agree != scorer.total)


if __name__ == "__main__":
    sys.exit(main())
