"""Choosing the build of an FPGA's core by what it may take of the chip: `--max-dsp`, `--max-bram`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressors.space import PolicySpace
from hw_profiles.builds import fitting, with_build
from hw_profiles.kernel import CONV_OPS, KernelBatch
from hw_profiles.predictor import Predictor
from hw_profiles.target import Build, Target, load_target

from .abilities import abilities_of, base_policy_of
from .lowering import Lowering
from .units import format_ms

if TYPE_CHECKING:
    from compressors.network import Network

    from .config import RunConfig


def check_resources(config: RunConfig, target: Target) -> None:
    """Refuse a budget that no build holds, before anything is paid for. Raises the errors of `fitting`."""
    if limited(config):
        fitting(target, config.max_dsp, config.max_bram)


def limited(config: RunConfig) -> bool:
    """Whether the chip's resources are limited."""
    return config.max_dsp is not None or config.max_bram is not None


def chosen_build(config: RunConfig, target: Target, network: Network) -> tuple[Target, str]:
    """The target with the build that runs the uncompressed network fastest, as predicted, inside the limits,
    and a sentence on it; of equally fast ones the smallest. Without limits the target as it is."""
    if not limited(config):
        return target, ""
    builds = fitting(target, config.max_dsp, config.max_bram)
    batch = _base_kernels(config, target, network)
    device = load_target(target.name.partition("@")[0]) if "@" in target.name else target
    targets = [with_build(device, b.name) for b in builds]
    ms = [float(Predictor(t, config.threads).predict(batch).latency_ms[0]) for t in targets]
    best = min(range(len(builds)), key=lambda i: (ms[i], builds[i].dsp.least))
    return targets[best], _sentence(config, builds[best], ms[best], len(builds), batch)


def _base_kernels(config: RunConfig, target: Target, network: Network) -> KernelBatch:
    structure = network.structure
    base = base_policy_of(PolicySpace(structure, abilities_of(target)), target)
    images = config.batch if config.batch is not None else target.default_batch
    lowering = Lowering(
        structure, target, images, config.threads, network.weights, Predictor(target, config.threads)
    )
    return lowering.kernels([base])[0][1]


def _sentence(config: RunConfig, build: Build, ms: float, fit: int, batch: KernelBatch) -> str:
    limits = [f"{n} {what}" for n, what in ((config.max_dsp, "DSP"), (config.max_bram, "BRAM36")) if n]
    text = (
        f"{build.name}, the fastest of {fit} within {' and '.join(limits)}: "
        f"{build.dsp.least}-{build.dsp.most} DSP, {build.bram36.least}-{build.bram36.most} BRAM36, "
        f"{format_ms(ms)} for the uncompressed network"
    )
    thin = any(k.op in CONV_OPS and float(batch["groups"][0, i]) > 1.0 for i, k in enumerate(batch.kinds))
    return f"{text}; its engine for depthwise layers takes more DSP" if thin else text


__all__ = ["check_resources", "chosen_build", "limited"]
