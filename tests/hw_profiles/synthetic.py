"""A device whose truth is known: loop constants of its own, weights that stream from memory, noise."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from hw_profiles.costs import cost_model
from hw_profiles.kernel import Array, KernelBatch, KernelKind, make_batch
from hw_profiles.learned import Observation
from hw_profiles.refit import with_constants
from hw_profiles.target import Target, load_target

PRIOR = load_target("x86-avx512-vnni")
#: Nanoseconds per byte of weights beyond what the core's cache holds: no constant of the cost model.
STREAM_NS = 0.03
NOISE = 0.01

KINDS = {
    "conv": KernelKind("Conv", "com.microsoft.nchwc", "fp32", fused=("relu",), weight_bearing=True),
    "integer": KernelKind("QLinearConv", "com.microsoft", "int8", weight_bearing=True),
    "add": KernelKind("Add"),
    "pool": KernelKind("MaxPool", "com.microsoft.nchwc"),
    "reorder": KernelKind("ReorderOutput", "com.microsoft.nchwc"),
    "gemm": KernelKind("Gemm", weight_bearing=True),
}


def truth(seed: int = 0) -> Target:
    """The prior with every table of constants off by its own factor, 1.6 either way, and all by 0.6."""
    values: dict[tuple[str, str], float] = {}
    for table, entries in PRIOR.cost.constants.items():
        rng = np.random.default_rng([seed, zlib.crc32(table.encode())])  # whatever other tables there are
        factor = 0.6 * float(np.exp(rng.normal(0.0, 0.5)))
        values |= {
            (table, name): c.value * factor * float(np.exp(rng.normal(0.0, 0.3)))
            for name, c in entries.items()
        }
    return with_constants(
        PRIOR, {k: v for k, v in values.items() if k[0] != "parallel"}, "made up for a test"
    )


def networks(count: int, seed: int) -> list[KernelBatch]:
    """Random chains of kernels, (1, K) each."""
    rng = np.random.default_rng(seed)
    return [_network(rng) for _ in range(count)]


def _network(rng: np.random.Generator) -> KernelBatch:
    names = [
        str(rng.choice(list(KINDS), p=[0.35, 0.25, 0.1, 0.1, 0.1, 0.1])) for _ in range(rng.integers(4, 13))
    ]
    side = float(rng.choice([4, 7, 14, 28, 32]))
    channels = 4.0 * np.exp(rng.uniform(np.log(2), np.log(64), len(names) + 1)).round()
    flat = np.array([name == "gemm" for name in names])
    keeps = np.array([name in ("add", "pool", "reorder") for name in names])
    window = np.where(keeps | flat, 1.0, rng.choice([1.0, 3.0], len(names)))
    pixels = np.where(flat, 1.0, side)
    columns = {
        "cin": channels[:-1], "cout": np.where(keeps, channels[:-1], channels[1:]),
        "kernel_h": window, "kernel_w": window, "out_h": pixels, "out_w": pixels,
    }  # fmt: skip
    return make_batch([KINDS[name] for name in names], columns)


def real_us(batch: KernelBatch, target: Target) -> tuple[Array, float]:
    """(microseconds of every kernel (K,), of the whole network) without noise."""
    costs = cost_model(target).price(batch, 1)
    weights = batch.weight_bytes()[0]
    core = PRIOR.device.core_cache_bytes
    assert core is not None
    cold = max(0.0, 1.0 - core.value / max(float(weights.sum()), 1.0))
    kernel = (costs.busy_us + costs.overhead_us)[0] + weights * cold * STREAM_NS * 1e-3
    return kernel, float(kernel.sum()) + costs.network_us


def measured(batches: Sequence[KernelBatch], target: Target, seed: int = 0) -> list[Observation]:
    """What a profile holds of them: the whole within 1 %, kernels in the whole microseconds of a profiler."""
    rng = np.random.default_rng([seed, 77])
    found = []
    for batch in batches:
        kernel, whole = real_us(batch, target)
        noise = 1.0 + abs(rng.normal(0.0, NOISE))
        raw = np.floor(kernel + 1.2 + rng.uniform(0.0, 0.3, len(kernel)))
        found.append(Observation(batch, whole * noise * 1e-3, NOISE, raw))
    return found


__all__ = ["KINDS", "PRIOR", "measured", "networks", "real_us", "truth"]
