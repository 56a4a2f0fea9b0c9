"""Profiling a device, and prices that rest on profiles: who measured once need not ask for a table."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np

from hw_profiles.devices.contract import Device, DeviceFacts
from hw_profiles.errors import BadProfileError
from hw_profiles.predictor import Predictor
from hw_profiles.profiles import ProfileStore
from hw_profiles.profiling import ProfilingReport, Progress
from hw_profiles.target import Target, load_target

from .errors import InputError, UsageError

if TYPE_CHECKING:
    from compressors.policy import ResolvedPolicy
    from hw_profiles.kernel import KernelBatch

    from .config import RunConfig
    from .setup import Setup

#: Policies whose kernels say what a network needs, and of how many the kernels are looked at together.
POLICIES = 48


class Profiled(TypedDict):
    """What `search profile` did and what predictions rest on now."""

    target: str
    device: str
    chip: str
    emulated: str
    runtime: str
    threads: int
    measured: int
    held: int
    failed: dict[str, str]
    refused: dict[str, str]
    advice: list[str]
    ended: str
    seconds: float
    networks: int
    file: str
    unit: str
    backing: str
    median_error: NotRequired[float]


def profile_target(
    target_name: str,
    host: str | None = None,
    token: str | None = None,
    *,
    minutes: float = 5.0,
    threads: int | None = None,
    config: RunConfig | None = None,
    accept_unstable: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> Profiled:
    """Measure kernels on a device for so many minutes, and learn from them. Goes on where it was.

    ``config``: measure what this task's network and its compressed forms need, besides the general plan.
    Raises UsageError for a target that no device can be measured for, DeviceError (exit 5).
    """
    from hw_profiles.devices.opening import open_device

    target = load_target(target_name)
    check_measurable(target)
    with open_device(target.name, host, token) as device:
        unit = device.unit
        count = _threads(target, threads, unit)
        interest = [] if config is None else batches_of(_setup(config))
        report = measure_kernels(
            device, target, count, 60.0 * minutes, interest, accept_unstable, progress, stop
        )
    store = ProfileStore()
    path = store.path(report.facts, count)
    found = store.open(report.facts, count, unit)
    predictor = Predictor(target, count)
    if unit == "ms":
        from hw_profiles.filling import single_of

        single = single_of(store, report.facts, count)
        predictor = predictor.profiled(found, report.facts, beside=path, single=single)
    document = Profiled(
        target=target.name,
        device=report.facts.device,
        chip=report.facts.chip,
        emulated=report.facts.emulated,
        runtime=f"{report.facts.runtime} {report.facts.runtime_version}",
        threads=count,
        measured=report.measured,
        held=report.held,
        failed=report.failed,
        refused=report.refused,
        advice=report.advice,
        ended=report.ended,
        seconds=report.seconds,
        networks=len(found.measured),
        file=str(path),
        unit=unit,
        backing=target.backing if predictor.learned is None else predictor.learned.backing,
    )
    if predictor.learned is not None and np.isfinite(predictor.learned.error):
        document["median_error"] = predictor.learned.error
    return document


def _threads(target: Target, threads: int | None, unit: str) -> int:
    """Threads that a device of this unit measures with. Raises UsageError where it counts with one only."""
    if unit == "ms":
        return Predictor(target, threads).threads or 1
    if threads not in (None, 1):
        raise UsageError(f"{unit} are counted with 1 thread, not {threads}.", "Leave --threads out.")
    return 1


def share_profile(
    target_name: str, threads: int | None, add: Path | None, share: Path | None
) -> dict[str, str]:
    """Merge a shared profile into the store, and write the target's profile to a file.

    Raises BadProfileError (exit 3) for a file that is none or of something else, InputError where there is
    nothing to share.
    """
    from hw_profiles.profiles import Profile

    store, said = ProfileStore(), []
    if add is not None:
        merged = store.add(Profile.load(add))
        said.append(
            f"merged   {add}: the profile of {merged.facts.device} now has {len(merged.measured)} networks"
        )
        said += [f"note     {text}" for text in merged.notes]
    if share is not None:
        device = _here() if target_name == "local" else target_name
        found = store.find(device, threads=threads)
        if found is None:
            raise InputError(
                f"there is no profile of {target_name!r} to share.", "Measure one: search profile."
            )
        found.profile.save(share)
        said.append(
            f"wrote    {share}: {len(found.profile.measured)} networks of {found.profile.facts.device}"
        )
    return {"text": "\n".join(said)}


def _here() -> DeviceFacts:
    from hw_profiles.devices.local import LocalDevice

    with LocalDevice() as device:
        return device.facts()


def check_measurable(target: Target) -> None:
    """Refuse what no device back end can run. Raises UsageError."""
    if target.kind != "cpu" or target.runtime.name != "onnxruntime":
        raise UsageError(
            f"devices run onnxruntime on a processor; {target.name} is {target.kind}, {target.runtime.name}.",
            "`search targets` lists the others.",
        )


def measure_kernels(
    device: Device,
    target: Target,
    threads: int,
    seconds: float,
    interest: Sequence[KernelBatch] = (),
    accept_unstable: bool = False,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
) -> ProfilingReport:
    """Fill the device's profile for so long, what is of interest first. Raises DeviceError, StoreError."""
    from hw_profiles.filling import fill

    return fill(
        device, target, ProfileStore(), threads, seconds, interest=interest,
        accept_unstable=accept_unstable, progress=progress, stop=stop,
    )  # fmt: skip


def batches_of(setup: Setup) -> list[KernelBatch]:
    """Kernels of the uncompressed network and of random and uniform policies of its space."""
    space = setup.space
    rng = np.random.default_rng(setup.config.seed)
    bits = max(space.abilities.act_bits, default=None)
    policies: list[ResolvedPolicy] = [setup.base_policy]
    policies += [space.resolve(space.uniform(k, b)) for k in (1.0, 0.75, 0.5, 0.25) for b in (bits, None)]
    policies += [space.resolve(space.decode(rng.random(space.dimension))) for _ in range(POLICIES)]
    unique = list({p.digest: p for p in policies}.values())
    return [batch for _, batch in setup.lowering.kernels(unique)]


def known_predictor(plain: Predictor, device: Device | None) -> tuple[Predictor, str]:
    """The predictor that rests on what was measured before, and a note where a profile does not count.

    A device at hand is asked what it is; of another, the newest profile under the target's name counts.
    """
    target = plain.target
    store = ProfileStore()
    if target.kind != "cpu" or not store.folder.is_dir():
        return plain, ""
    threads = plain.threads or target.default_threads
    facts = None if device is None else device.facts()
    try:
        found = store.find(facts or target.name, threads=threads, runtime=target.runtime.name)
        if found is None:
            return plain, ""
        if found.stale:
            return plain, f"{found.stale}; `search profile` measures it again"
        from hw_profiles.filling import single_of

        path: Path = store.path(found.profile.facts, threads)
        single = single_of(store, found.profile.facts, threads)
        return plain.profiled(found.profile, facts, beside=path, single=single), ""
    except BadProfileError as problem:
        return plain, f"a profile is left aside: {problem}"


def _setup(config: RunConfig) -> Setup:
    from .setup import load_setup

    return load_setup(config)


__all__ = [
    "Profiled",
    "batches_of",
    "check_measurable",
    "known_predictor",
    "measure_kernels",
    "profile_target",
    "share_profile",
]
