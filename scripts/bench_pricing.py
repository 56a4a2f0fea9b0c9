"""Seconds to price 10,000 policies of a 50-layer network, target by target.

    .venv/bin/python scripts/bench_pricing.py [--policies 10000] [--layers 50] [--profile FOLDER]

Kernels are 3x3 convolutions of random widths in the target's own precision; process time of one thread, after
a first call. `--profile` is a folder of profiles of this machine, such as `bench_predictor.py --local` keeps
(.venv/cache/bench-predictor/profile): what was learned of it, with one thread and two, prices them as well,
kernels and intervals, and then a network of fifty kernels in fp32 and int8.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from hw_profiles.devices.local import LocalDevice
from hw_profiles.filling import single_of
from hw_profiles.kernel import KernelBatch, KernelKind, make_batch
from hw_profiles.learned import learn
from hw_profiles.learned_store import observations
from hw_profiles.predictor import Predictor
from hw_profiles.profiles import ProfileStore
from hw_profiles.target import Target, list_targets, load_target


def kind_of(target: Target) -> KernelKind:
    """A convolution in a precision that the target executes."""
    pairs = target.abilities.integer_precisions
    if target.base_precision == "w8a8":
        return KernelKind("Conv", precision=f"w{pairs[-1][0]}a{pairs[-1][1]}", weight_bearing=True)
    if pairs:
        return KernelKind("QLinearConv", precision="int8", weight_bearing=True)
    return KernelKind("Conv", precision=target.base_precision, weight_bearing=True)


def profiled(folder: Path) -> Iterator[tuple[str, Predictor]]:
    """Predictors that profiles of this machine give, with one thread and two."""
    store, facts, target = ProfileStore(folder), LocalDevice().facts(), load_target("local")
    alone = learn(observations(store.open(facts, 1)), target, 1, calibrated=False)
    yield f"profile, {alone.networks} networks", replace(Predictor(target), learned=alone)
    if single_of(store, facts, 2) is not None and store.open(facts, 2).measured:
        both = learn(observations(store.open(facts, 2)), target, 2, calibrated=False, single=alone)
        yield f"two threads, {both.networks} more", replace(Predictor(target, 2), learned=both)


def mixed(policies: int, layers: int) -> KernelBatch:
    """Networks of random widths: convolutions and what lies between them, some in fp32, some in int8."""
    kinds = []
    for i in range(layers):
        floats = (i // 10) % 2 == 0
        conv = KernelKind("Conv" if floats else "QLinearConv", precision="fp32" if floats else "int8",
                          weight_bearing=True)  # fmt: skip
        other = KernelKind("Add", precision="fp32") if floats else KernelKind("QLinearAdd", precision="int8")
        kinds.append(conv if i % 5 < 4 else other)
    width = np.random.default_rng(1).integers(8, 256, (policies, layers)).astype(float)
    window = np.array([3.0 if k.weight_bearing and i % 2 else 1.0 for i, k in enumerate(kinds)])
    shape = {"cin": width, "cout": width, "kernel_h": window, "kernel_w": window, "out_h": 14, "out_w": 14}
    return make_batch(tuple(kinds), shape)


def seconds(predictor: Predictor, batch: KernelBatch) -> float:
    """Process seconds of one call after a first, small one."""
    predictor.predict(batch.row(0))
    start = time.process_time()
    predictor.predict(batch)
    return time.process_time() - start


def main() -> None:
    """Price and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policies", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=50)
    parser.add_argument("--profile", default="", help="folder of profiles of this machine")
    options = parser.parse_args()
    width = 8.0 * np.random.default_rng(0).integers(1, 32, (options.policies, options.layers))
    shape = {"cin": width, "cout": width, "kernel_h": 3, "kernel_w": 3, "out_h": 14, "out_w": 14}

    def convolutions(target: Target) -> KernelBatch:
        return make_batch((kind_of(target),) * options.layers, shape)

    def tell(name: str, taken: float) -> None:
        print(f"{name:40s} {taken:7.3f} s for {options.policies} policies", flush=True)

    with threadpool_limits(1):
        for name in list_targets():
            target = load_target(name)
            tell(name, seconds(Predictor(target), convolutions(target)))
        for name, predictor in profiled(Path(options.profile)) if options.profile else ():
            tell(name, seconds(predictor, convolutions(predictor.target)))
            tell(f"{name}, mixed", seconds(predictor, mixed(options.policies, options.layers)))


if __name__ == "__main__":
    main()
