"""Builds of the DPU: published sizes, which fit a budget, and prices by counted cycles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hw_profiles import KernelKind, Predictor, load_target, make_batch
from hw_profiles.builds import fitting, with_build
from hw_profiles.errors import ResourceError, UnsupportedSettingError

DPU = load_target("fpga-zcu104-dpu")
ARRAY = KernelKind("Conv", precision="w8a8", weight_bearing=True)


def test_names_say_the_operations_a_cycle_and_resources_grow_with_them() -> None:
    assert DPU.builds is not None
    known = DPU.builds.known
    assert len(known) == 8
    for b in known:
        assert b.name == f"B{2 * b.pixels * b.channels**2}"
        assert 0 < b.dsp.least < b.dsp.most
        assert 0 < b.bram36.least < b.bram36.most
        # A slice multiplies two pairs of bytes, at twice the clock of the rest; two more do something else.
        assert b.dsp.least == b.pixels * b.channels**2 / 4 + 2
    for a, b in itertools.pairwise(known):
        assert a.dsp.least < b.dsp.least
        assert a.bram36.least < b.bram36.least


@pytest.mark.parametrize(
    ("dsp", "bram", "names"),
    [
        (None, None, 8), (514, None, 8), (513, None, 7), (130, None, 3), (66, 72, 1),
        (None, 121, 4), (None, 120, 3), (200, 90, 2),
    ],
)  # fmt: skip
def test_what_fits(dsp: int | None, bram: int | None, names: int) -> None:
    assert len(fitting(DPU, dsp, bram)) == names


def test_what_does_not_fit_names_the_least() -> None:
    with pytest.raises(
        ResourceError, match=r"fits in 65 DSP and 300 BRAM36(?s:.)*B512, takes 66 DSP and 72"
    ) as e:
        fitting(DPU, 65, 300)
    assert e.value.exit_code == 4
    with pytest.raises(ResourceError, match="B1152, takes 146"):
        fitting(load_target("zcu104@b1152"), 100, None)
    with pytest.raises(UnsupportedSettingError, match="nothing is known of the DSP"):
        fitting(load_target("raspberry-pi-4"), 100, None)
    with pytest.raises(UnsupportedSettingError, match="Did you mean 'b1152'"):
        load_target("zcu104@b1153")
    with pytest.raises(UnsupportedSettingError, match="one build"):
        load_target("raspberry-pi-4@b512")


def test_the_measured_build_is_the_target_itself() -> None:
    assert load_target("dpu@b4096") is with_build(DPU, "B4096")
    assert with_build(DPU, "B4096") is DPU


def test_a_smaller_build_takes_the_cycles_that_can_be_counted() -> None:
    """A layer that fills both engines: cycles by hand; all else (traffic, launch) is the same."""
    columns = {"cin": 96, "cout": 96, "kernel_h": 3, "kernel_w": 3, "out_h": 32, "out_w": 32}
    batch = make_batch((ARRAY,), columns)
    small = with_build(DPU, "B1152")
    large_ms, small_ms = (float(Predictor(t).predict(batch).latency_ms[0]) for t in (DPU, small))
    cycles = 32 * 9 * np.array([4 * 6 * 6, 8 * 8 * 8])
    assert small_ms - large_ms == pytest.approx(float(np.diff(cycles)[0]) / 300e3, rel=1e-3)
    assert small.abilities.granularity.int8 == 12
    wide = make_batch((ARRAY,), {**columns, "cout": 97})
    more = float(Predictor(small).predict(wide).latency_ms[0]) - small_ms
    assert more == pytest.approx(32 * 9 * 8 * 8 / 300e3, rel=0.1)  # one more step of twelve channels


def test_another_build_is_unvalidated_and_its_interval_wider() -> None:
    batch = make_batch((ARRAY,), {"cin": 64, "cout": 64, "out_h": 28, "out_w": 28})
    small = load_target("zcu104@b512")
    measured, scaled = (Predictor(t).predict(batch) for t in (DPU, small))
    assert (DPU.validation.status, small.validation.status) == ("validated", "unvalidated")
    assert "no B512 was measured" in scaled.backing
    widths = [float(p.high_ms[0] / p.latency_ms[0]) for p in (measured, scaled)]
    assert widths[1] > widths[0]
    assert small.device.peak_macs_per_cycle_core["int8"].value == 256
    assert "B512" in small.title
    assert "B4096" not in small.title
