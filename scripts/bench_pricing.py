"""Seconds to price 10,000 policies of a 50-layer network, target by target.

    .venv/bin/python scripts/bench_pricing.py [--policies 10000] [--layers 50]

Kernels are 3x3 convolutions of random widths in the target's own precision; process time, after a first call.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from hw_profiles.kernel import KernelKind, make_batch
from hw_profiles.predictor import Predictor
from hw_profiles.target import Target, list_targets, load_target


def kind_of(target: Target) -> KernelKind:
    """A convolution in a precision that the target executes."""
    pairs = target.abilities.integer_precisions
    if target.base_precision == "w8a8":
        return KernelKind("Conv", precision=f"w{pairs[-1][0]}a{pairs[-1][1]}", weight_bearing=True)
    if pairs:
        return KernelKind("QLinearConv", precision="int8", weight_bearing=True)
    return KernelKind("Conv", precision=target.base_precision, weight_bearing=True)


def main() -> None:
    """Price and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--policies", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=50)
    options = parser.parse_args()
    width = 8.0 * np.random.default_rng(0).integers(1, 32, (options.policies, options.layers))
    shape = {"cin": width, "cout": width, "kernel_h": 3, "kernel_w": 3, "out_h": 14, "out_w": 14}
    for name in list_targets():
        target = load_target(name)
        batch = make_batch((kind_of(target),) * options.layers, shape)
        predictor = Predictor(target)
        predictor.predict(batch.row(0))
        start = time.process_time()
        predictor.predict(batch)
        print(f"{name:28s} {time.process_time() - start:7.3f} s for {options.policies} policies")


if __name__ == "__main__":
    main()
