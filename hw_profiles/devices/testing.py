"""Conformance suite for devices: run `check_device` on your own before you trust what it measures.

from hw_profiles.devices.testing import check_device
check_device(lambda: MyDevice("..."))       # silent, or ConformanceError with everything that is wrong
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from hw_profiles.devices.contract import Condition, Device, Sample, Work
from hw_profiles.errors import DeviceError
from hw_profiles.probes import probe
from hw_profiles.testing import ConformanceError

#: Answers of another runtime than onnxruntime differ by rounding: relative, for float networks.
ANSWERS_WITHIN = 1e-3


def check_device(make: Callable[[], Device]) -> None:
    """Run every check on devices that `make` opens; raises ConformanceError naming all that fail."""
    failures = []
    for name, check in CHECKS.items():
        try:
            with make() as device:
                failures += [f"{name}: {message}" for message in check(device)]
        except DeviceError as error:
            failures.append(f"{name}: {error}")
    if failures:
        raise ConformanceError(f"the device fails {len(failures)} checks:\n" + "\n".join(failures))


def matrix_network(weights: np.ndarray) -> bytes:
    """y = x @ weights as ONNX, x of shape (1, n): its answers can be computed by hand."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "matrix",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, weights.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, weights.shape[1]])],
        [numpy_helper.from_array(weights.astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def _check_facts(device: Device) -> Iterator[str]:
    """A device knows what it is, and stays it."""
    facts = device.facts()
    for name in ("device", "chip", "isa", "runtime", "runtime_version"):
        if not getattr(facts, name):
            yield f"facts().{name} is empty"
    if facts.cores < 1:
        yield f"facts().cores is {facts.cores}"
    if device.facts() != facts:
        yield "facts() changed between two calls"
    if not isinstance(device.condition(), Condition):
        yield "condition() is no Condition"


def _check_samples(device: Device) -> Iterator[str]:
    """Every work gets its sample, in the device's unit, with the runs that were asked for."""
    rng = np.random.default_rng(0)
    small, large = (matrix_network(rng.standard_normal((n, n)) / n) for n in (64, 1024))
    works = [Work("small", small, runs=12, rounds=3), Work("large", large, runs=10)]
    found = {sample.key: sample for sample in device.measure(works)}
    if found.keys() != {"small", "large"}:
        yield f"samples of {sorted(found)} for works 'large', 'small'"
        return
    for work in works:
        yield from _wrong(found[work.key], work, device)
    if not any(sample.error for sample in found.values()) and found["small"].best >= found["large"].best:
        yield f"a small network takes {found['small'].best}, one 256 times as large {found['large'].best}"
    if list(device.measure([])):
        yield "samples without works"


def _wrong(sample: Sample, work: Work, device: Device) -> Iterator[str]:
    if sample.error:
        yield f"{work.key}: {sample.error}"
        return
    wanted = work.runs // work.rounds * work.rounds
    if sample.unit != device.unit or sample.threads != work.threads:
        yield f"{work.key}: {sample.unit}, {sample.threads} threads; asked {device.unit}, {work.threads}"
    if device.unit == "ms" and len(sample.runs) < wanted:
        yield f"{work.key}: {len(sample.runs)} runs; asked {wanted}"
    if not all(np.isfinite(run) and run > 0.0 for run in (*sample.cpu, *sample.wall)):
        yield f"{work.key}: runs that are not positive numbers"
    if sample.cpu and (work.threads > 1 or len(sample.cpu) != len(sample.wall)):
        yield f"{work.key}: CPU time of {len(sample.cpu)} runs with {work.threads} threads"
    if not sample.verdict()[1]:
        yield f"{work.key}: a verdict without a reason"


def _check_threads(device: Device) -> Iterator[str]:
    """With several threads the wall clock counts; what counts instructions may refuse them, in words."""
    works = [Work("two", probe("lenet", 0), threads=2, runs=8), Work("one", probe("lenet", 0), runs=8)]
    found = {sample.key: sample for sample in device.measure(works)}
    if found.keys() != {"one", "two"}:
        yield f"samples of {sorted(found)} for works 'two', 'one'"
        return
    refused = device.unit == "instructions" and "thread" in found["two"].error and not found["two"].runs
    for work in works[1:] if refused else works:
        yield from _wrong(found[work.key], work, device)


def _check_failures(device: Device) -> Iterator[str]:
    """A network that does not run is an error of its own, and takes nothing else down."""
    works = [Work("junk", b"not a model", runs=4), Work("good", probe("lenet", 1), runs=4)]
    found = {sample.key: sample for sample in device.measure(works)}
    if found.keys() != {"junk", "good"}:
        yield f"samples of {sorted(found)} for works 'good', 'junk'"
        return
    if not found["junk"].error or found["junk"].runs:
        yield "junk was measured"
    if found["junk"].verdict()[0]:
        yield "junk is called stable"
    if found["good"].error:
        yield f"a good network failed beside junk: {found['good'].error}"


def _check_answers(device: Device) -> Iterator[str]:
    """Answers are those of the network for the inputs that were given."""
    rng = np.random.default_rng(0)
    weights, x = rng.standard_normal((24, 8)), rng.standard_normal((1, 24)).astype(np.float32)
    work = Work("matrix", matrix_network(weights), runs=4, answers=True, inputs={"x": x})
    for sample in device.measure([work]):
        if sample.outputs is None or len(sample.outputs) != 1:
            yield f"no answers: {sample.error or sample.outputs}"
        elif not np.allclose(sample.outputs[0], x @ weights, rtol=ANSWERS_WITHIN, atol=ANSWERS_WITHIN):
            yield f"wrong answers: {np.abs(sample.outputs[0] - x @ weights).max()} off"


def _check_kernels(device: Device) -> Iterator[str]:
    """A record of kernels, where the runtime has one, is that of the network."""
    from hw_profiles.onnx_kernels import read_record

    for sample in device.measure([Work("kernels", probe("lenet", 0), runs=8, kernels=True)]):
        if sample.error:
            yield sample.error
        elif sample.record is not None:
            found = read_record(sample.record)
            kernels = found.batch.shape[1]
            if found.kernel_us.shape != (sample.record.runs, kernels):
                yield f"times of shape {found.kernel_us.shape} for {sample.record.runs} x {kernels}"
            if sum(kind.weight_bearing for kind in found.batch.kinds) != 4:
                yield "LeNet has 4 weight-bearing layers, the record another number"
            if not float(found.kernel_us.sum()) > 0.0:
                yield "kernels take no time"


def _check_leaving(device: Device) -> Iterator[str]:
    """One may stop half-way, ask again, and close twice."""
    works = [Work(f"work{i}", probe("lenet", i), runs=4) for i in range(3)]
    half = device.measure(works)
    first = next(iter(half))
    if hasattr(half, "close"):
        half.close()
    again = sorted(sample.key for sample in device.measure(works))
    if first.key not in again or len(again) != 3:
        yield f"after stopping half-way it measures {again}"
    device.close()
    device.close()


CHECKS: dict[str, Callable[[Device], Iterator[str]]] = {
    "facts": _check_facts,
    "samples": _check_samples,
    "threads": _check_threads,
    "failures": _check_failures,
    "answers": _check_answers,
    "kernels": _check_kernels,
    "leaving": _check_leaving,
}

__all__ = ["ANSWERS_WITHIN", "CHECKS", "check_device", "matrix_network"]
