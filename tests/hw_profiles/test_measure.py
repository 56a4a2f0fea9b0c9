"""Measuring and reading kernels of real ONNX networks with onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hw_profiles.errors import MeasurementError
from hw_profiles.kernel import ASYMMETRIC
from hw_profiles.measure import measure_latency, peak_memory
from hw_profiles.onnx_kernels import execute, kernels_of
from hw_profiles.probes import FAMILIES, probe


def test_measurements_judge_themselves(tmp_path: Path) -> None:
    small, large = probe("lenet", 0), probe("resnet20", 3)
    path = tmp_path / "large.onnx"
    path.write_bytes(large)
    first, second = measure_latency([small, path], repeats=12, rounds=3)
    for found in (first, second):
        assert found.source == "measured"
        assert found.runs == 12
        assert 0.0 < found.latency_ms == found.cpu_min_ms
        assert found.wall_min_ms <= found.wall_p50_ms <= found.wall_p95_ms
        assert "halves of 12 runs" in found.why
        assert found.load_ms > 0.0
    assert first.latency_ms < second.latency_ms


def test_several_threads_use_the_wall_clock() -> None:
    found = measure_latency([probe("lenet", 0)], [None], threads=2, repeats=4, rounds=2)[0]
    assert found.cpu_min_ms is None
    assert found.latency_ms == found.wall_min_ms
    assert found.threads == 2


def test_what_cannot_run_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(MeasurementError, match=r"cannot run 'bad\.onnx'") as caught:
        measure_latency([path])
    assert caught.value.exit_code == 3
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(MeasurementError, match="2 inputs for 1 models"):
        measure_latency([path], [None, None])


@pytest.mark.slow
def test_peak_memory_is_that_of_the_network() -> None:
    small, large = peak_memory(probe("lenet", 0)), peak_memory(probe("plain", 4))
    assert small > 0
    assert large > 0
    assert small < 500e6


@pytest.mark.parametrize(
    "family", [*FAMILIES, "resnet20/int8", "mobile/int8", "encoder/int8", "factorised/mixed"]
)
def test_kernels_of_probes_have_the_macs_of_their_graph(family: str) -> None:
    batch = kernels_of(probe(family, 1))
    assert batch.shape[0] == 1
    macs, weights = batch.macs()[0], batch["weight_elements"][0]
    bearing = np.array([k.weight_bearing for k in batch.kinds])
    assert bearing.sum() >= 2
    assert (macs[bearing] >= weights[bearing]).all()
    assert (batch["out_elements"] > 0).all()
    assert {k.precision for k in batch.kinds} <= {"fp32", "int8"}


def test_probes_are_pure_and_integer_ones_run_integer_kernels() -> None:
    assert probe("mobile/int8", 2) == probe("mobile/int8", 2)
    assert probe("mobile/int8", 2) != probe("mobile/int8", 3)
    kinds = kernels_of(probe("resnet20/int8", 0)).kinds
    assert sum(k.op == "QLinearConv" for k in kinds) == 21
    assert all(k.op != "Conv" for k in kinds)


def test_layers_that_the_runtime_quantises_by_itself_have_an_offset() -> None:
    mixed = [k for k in kernels_of(probe("resnet20/mixed", 7)).kinds if k.op == "QLinearConv"]
    whole = [k for k in kernels_of(probe("resnet20/int8", 7)).kinds if k.op == "QLinearConv"]
    assert any(ASYMMETRIC in k.fused for k in mixed)
    assert not any(ASYMMETRIC in k.fused for k in whole)


def test_every_run_gives_every_kernel_a_time() -> None:
    found = execute(probe("lenet/int8", 1), runs=3)
    assert found.kernel_us.shape == (3, found.batch.shape[1])
    assert (found.kernel_us >= 0.0).all()
    with pytest.raises(MeasurementError, match="cannot run"):
        execute(b"junk")
