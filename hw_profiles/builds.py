"""Builds of an FPGA's core: what each takes of the chip, which fit a budget, and the target that each makes.

A core comes in several sizes; its size is chosen when the chip is configured, before any network runs.
Published latencies are of one of them. A smaller one takes more cycles for the same layers, counted as for
the measured one (`hw_profiles.costs.dpu`), and counts channels in other steps; traffic and launches stay.
What that leaves out stands in the interval: `Builds.scaling`.
"""

from __future__ import annotations

import difflib

from hw_profiles.errors import ResourceError, UnsupportedSettingError
from hw_profiles.target import Build, Constant, Granularity, Target, Validation


def with_build(target: Target, name: str) -> Target:
    """The target with another build of its core, called ``target@build``. The measured build: the target.

    Raises UnsupportedSettingError for a build that there is not.
    """
    if target.builds is None:
        raise UnsupportedSettingError(f"{target.name} comes in one build; {name!r} cannot be chosen.")
    known = {b.name.lower(): b for b in target.builds.known}
    if name.lower() not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(known)}."
        raise UnsupportedSettingError(f"{target.name} has no build {name!r}. {hint}")
    build, measured = known[name.lower()], target.builds.measured
    return target if build.name == measured else _scaled(target, build)


def fitting(target: Target, max_dsp: int | None, max_bram: int | None) -> list[Build]:
    """Builds that a budget of DSP slices and block RAMs (of 36 kbit) has room for, in the least way to build
    each. Raises UnsupportedSettingError where the target knows of none, ResourceError where none fits."""
    if target.builds is None:
        raise UnsupportedSettingError(
            f"nothing is known of the DSP slices and block RAMs that {target.name} takes.\n"
            "`--max-dsp` and `--max-bram` are for fpga-zcu104-dpu."
        )
    chosen = target.name.partition("@")[2]
    known = [b for b in target.builds.known if chosen in ("", b.name.lower())]
    found = [b for b in known if _within(b.dsp.least, max_dsp) and _within(b.bram36.least, max_bram)]
    if not found:
        least = min(known, key=lambda b: (b.dsp.least, b.bram36.least))
        wanted = ((max_dsp, "DSP"), (max_bram, "BRAM36"))
        asked = " and ".join(f"{n} {what}" for n, what in wanted if n is not None)
        raise ResourceError(
            f"no build of {target.name} fits in {asked}.\n"
            f"The smallest, {least.name}, takes {least.dsp.least} DSP and {least.bram36.least} BRAM36."
        )
    return found


def _within(taken: int, limit: int | None) -> bool:
    return limit is None or taken <= limit


def _scaled(target: Target, build: Build) -> Target:
    """The target with the counts of another build; its prices rest on the measured one's."""
    builds = target.builds
    assert builds is not None
    channels = build.channels
    peak = Constant(value=build.pixels * channels * channels, source=builds.source)
    array = {
        "pixels": Constant(value=build.pixels, source=builds.source),
        "channels": Constant(value=channels, source=builds.source),
    }
    cost = target.cost.model_copy(
        update={
            "constants": {**target.cost.constants, "array": array},
            "interval": target.cost.interval.model_copy(update={"runtime_factor": builds.scaling}),
        }
    )
    abilities = target.abilities.model_copy(
        update={"granularity": Granularity(fp32=channels, int8=channels, depthwise=channels)}
    )
    return target.model_copy(
        update={
            "name": f"{target.name}@{build.name.lower()}",
            "aliases": (),
            "title": target.title.replace(builds.measured, build.name),
            "isa": target.isa.replace(builds.measured.lower(), build.name.lower()),
            "device": target.device.model_copy(update={"peak_macs_per_cycle_core": {"int8": peak}}),
            "abilities": abilities,
            "cost": cost,
            "validation": Validation(status="unvalidated"),
            "backing": f"cycles of a {build.name} counted, the rest as measured on a {builds.measured}: "
            f"{target.backing}; no {build.name} was measured",
        }
    )


__all__ = ["fitting", "with_build"]
