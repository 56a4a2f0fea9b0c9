"""Fit the wave model to V100 TensorRT convolutions and scale it to other GPUs by data-sheet peaks.

    .venv/bin/python scripts/fit_gpu.py             # held-out errors, and the targets rewritten
    .venv/bin/python scripts/fit_gpu.py --dry-run   # errors only

Held out: shapes (all batches of one shape together), five folds, per precision. What nobody here can measure
is the T4 itself: int8 takes the shape of the fp16 tensor-core kernels, as V100 has no integer tensor cores,
scaled by the ratio of peaks. HAWQ-V3's published T4 latencies of ResNet layers are a check of that shape,
after one scale factor for the framework (TVM) and batch, which the publication leaves open.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hw_profiles.costs.base import Shapes
from hw_profiles.costs.gpu import depthwise_features, matrix_features
from hw_profiles.fitting import (
    Key,
    Row,
    constants_yaml,
    log_sigma,
    predict_ns,
    replace_block,
    solve,
)
from hw_profiles.kernel import KernelBatch, KernelKind, make_batch
from hw_profiles.predictor import Predictor
from hw_profiles.target import DATA_FOLDER, TARGETS_FOLDER, forget_targets, load_target

TARGET = "gpu-t4"
COMMAND = "python scripts/fit_gpu.py"
V100_PROCESSORS = 80.0


@dataclass(frozen=True)
class Gpu:
    """Data-sheet peaks (hardware_facts.csv): TMAC/s, GB/s, multiprocessors; `unknown` is the factor either
    way (90 %) that scaling from a V100 leaves, guessed wider the further a GPU is from it."""

    fp32: float
    fp16: float
    int8: float
    memory: float
    processors: float
    unknown: float


V100 = Gpu(
    7.85, 62.5, 62.5, 900.0, V100_PROCESSORS, 1.0
)  # int8 takes the shape of fp16's tensor-core kernels
GPUS = {
    "gpu-t4": Gpu(4.05, 32.5, 65.0, 320.0, 40.0, 1.5),
    "gpu-a100": Gpu(9.75, 156.0, 312.0, 2039.0, 108.0, 1.5),
    "gpu-h100": Gpu(33.5, 494.5, 989.5, 3350.0, 132.0, 2.0),
    "jetson-orin-nano": Gpu(0.64, 5.0, 10.0, 68.0, 8.0, 2.0),
    "jetson-nano": Gpu(0.118, 0.2359, 0.2359, 25.6, 1.0, 2.5),
}
FOLDS = 5


@dataclass(frozen=True)
class Op:
    """One measured convolution: its shape, ms by precision."""

    shape: tuple[float, ...]
    batch: KernelBatch
    ms: dict[str, float]
    depthwise: bool


def load() -> list[Op]:
    """The measured convolutions kept under data/."""
    ops = []
    with gzip.open(DATA_FOLDER / "v100_trt_conv.csv.gz", "rt", encoding="utf-8") as file:
        file.readline()
        for r in csv.DictReader(file):
            batch, cin, side, cout, kernel, stride = (
                float(r[c]) for c in ("batch", "in_c", "in_h", "out_c", "kernel", "stride")
            )
            depthwise = r["conv_type"] == "Depthwise"
            out = np.ceil(side / stride)
            columns = {
                "batch": [batch], "cin": [cin], "cout": [cout], "groups": [cin if depthwise else 1.0],
                "kernel_h": [kernel], "kernel_w": [kernel], "stride_h": [stride], "stride_w": [stride],
                "in_h": [side], "in_w": [side], "out_h": [out], "out_w": [out],
            }  # fmt: skip
            kinds = [KernelKind("Conv", weight_bearing=True)]
            ms = {p: float(r[f"{p}_ms"]) for p in ("fp32", "fp16", "int8") if r[f"{p}_ms"]}
            ops.append(Op((cin, side, cout, kernel, stride), make_batch(kinds, columns), ms, depthwise))
    return ops


def row_of(op: Op, precision: str) -> Row:
    """Counts of one convolution under the wave model."""
    zero = np.zeros((1, 1))
    s = Shapes(op.batch, [0], (zero, zero))
    if op.depthwise:
        table, features = f"depthwise.{precision}", depthwise_features(s, precision)
    else:
        window, stride = op.shape[3], op.shape[4]
        form = "pointwise" if window == 1 else ("square" if window == 3 and stride == 1 else "window")
        table, features = f"{form}.{precision}", matrix_features(s, precision, V100_PROCESSORS)
    return {
        **{(table, name): float(count[0, 0]) for name, count in features.items()},
        ("launch", "overhead"): 1.0,
    }


def fit(ops: Sequence[Op], precision: str) -> dict[Key, float]:
    """Constants of one precision on the V100, relative errors weighted alike."""
    chosen = [op for op in ops if precision in op.ms]
    times = np.array([op.ms[precision] * 1e6 for op in chosen])
    return solve([row_of(op, precision) for op in chosen], times, 1.0 / times)


def held_out(ops: Sequence[Op], precision: str) -> tuple[np.ndarray, np.ndarray]:
    """|log errors| of the model and of the MACs-only line with launch, shapes left out in folds."""
    shapes = sorted({op.shape for op in ops})
    order = {shape: i % FOLDS for i, shape in enumerate(np.random.default_rng(0).permutation(len(shapes)))}
    fold = {shape: order[i] for i, shape in enumerate(shapes)}
    errors, baseline = [], []
    for f in range(FOLDS):
        train = [op for op in ops if fold[op.shape] != f and precision in op.ms]
        test = [op for op in ops if fold[op.shape] == f and precision in op.ms]
        constants = fit(train, precision)
        line = _line(train, precision)
        for op in test:
            measured = op.ms[precision] * 1e6
            errors.append(abs(np.log(predict_ns(row_of(op, precision), constants) / measured)))
            guess = line[0] * float(op.batch.macs().sum()) + line[1]
            baseline.append(abs(np.log(max(guess, 1.0) / measured)))
    return np.array(errors), np.array(baseline)


def _line(ops: Sequence[Op], precision: str) -> np.ndarray:
    times = np.array([op.ms[precision] * 1e6 for op in ops])
    matrix = np.array([[float(op.batch.macs().sum()), 1.0] for op in ops]) / times[:, None]
    return np.asarray(np.linalg.lstsq(matrix, np.ones(len(times)), rcond=None)[0])


def hawq() -> dict[str, np.ndarray]:
    """|log errors| of T4 int8 layers of ResNet-18 and -50 against published ones, after one scale."""
    predictor = Predictor(load_target(TARGET))
    with (DATA_FOLDER / "hawq_v3_t4.json").open(encoding="utf-8") as file:
        published = json.load(file)["networks"]
    found = {}
    for name, layers in published.items():
        columns = {
            c: [float(layer[i]) for layer in layers]
            for i, c in enumerate(("cin", "cout", "kernel_h", "stride_h", "out_h"))
        }
        columns |= {
            "kernel_w": columns["kernel_h"],
            "stride_w": columns["stride_h"],
            "out_w": columns["out_h"],
        }
        kinds = [KernelKind("Conv", precision="int8", weight_bearing=True)] * len(layers)
        batch = make_batch(kinds, {**columns, "batch": 8.0})
        predicted = predictor.predict(batch).kernel_ms[0]
        ratio = np.log(predicted / np.array([float(layer[5]) for layer in layers]))
        found[name] = np.abs(ratio - np.median(ratio))
        print(
            f"HAWQ-V3 {name}: TVM takes {np.exp(-np.median(ratio)):.1f}x the predicted time (batch 8 assumed)"
        )
    return found


def write(name: str, gpu: Gpu, constants: dict[Key, float], errors: np.ndarray) -> None:
    """A target's constants and interval."""
    path = TARGETS_FOLDER / f"{name}.yaml"
    peaks = f"ratio of data-sheet peaks V100 / {name.removeprefix('gpu-')}, hardware_facts.csv"
    scale = {("scale", f"compute_{p}"): getattr(V100, p) / getattr(gpu, p) for p in ("fp32", "fp16", "int8")}
    scale |= {("scale", "memory"): V100.memory / gpu.memory, ("scale", "processors"): gpu.processors}
    source = "V100 TensorRT convolutions, fitted by scripts/fit_gpu.py"
    reason = f"scaled from V100 by peaks: x{gpu.unknown:g} either way, unmeasured"
    text = [
        "  interval:",
        f'    log_sigma: {{value: {log_sigma(errors):.4g}, source: "V100 shapes held out, {COMMAND}"}}',
        f'    runtime_factor: {{value: {gpu.unknown}, source: "{reason}"}}',
        constants_yaml({**constants, **scale}, {"": source, "scale": peaks}),
    ]
    replace_block(path, "fitted", "\n".join(text), indent="  ")


def write_backing(name: str, errors: np.ndarray, layers: np.ndarray) -> None:
    """What a prediction rests on; TensorRT was measured on a V100 only, so the target stays unvalidated."""
    backing = (
        f"V100 TensorRT kernels (held-out median error {np.median(errors):.0%}) scaled by data-sheet peaks"
    )
    if name == TARGET:
        backing += f"; published T4 int8 layers agree within {np.median(layers):.0%} after one scale"
    text = f'validation: {{status: unvalidated}}\nbacking: "{backing}"'
    replace_block(TARGETS_FOLDER / f"{name}.yaml", "validation", text)


def all_constants(ops: Sequence[Op]) -> dict[Key, float]:
    """fp32 and fp16 as fitted; int8 with fp16's tensor-core shape; memory traffic from depthwise kernels."""
    single, half = fit(ops, "fp32"), fit(ops, "fp16")
    out = {**single, **half}
    out |= {
        (table.replace("fp16", "int8"), name): v
        for (table, name), v in half.items()
        if table.endswith("fp16")
    }
    moved = max(half["depthwise.fp16", "read"], half["depthwise.fp16", "written"])
    out["simple", "moved"] = moved
    out["launch", "overhead"] = half["launch", "overhead"]
    return out


def main() -> None:
    """Fit, report, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    ops = load()
    print(
        f"{'V100, shapes held out':24s} {'ops':>6s} {'median':>8s} {'p90':>8s}   MACs and launch: median, p90"
    )
    found = {}
    for precision in ("fp32", "fp16", "int8"):
        e, b = held_out(ops, precision)
        found[precision] = e
        print(f"{precision:24s} {len(e):6d} {np.median(e):8.1%} {np.quantile(e, 0.9):8.1%}   ", end="")
        print(f"{np.median(b):8.1%} {np.quantile(b, 0.9):8.1%}")
    if not arguments.dry_run:
        for name, gpu in GPUS.items():
            write(name, gpu, all_constants(ops), found["fp16"])
            write_backing(name, found["fp16"], np.ones(1))
        forget_targets()
    layers = hawq()
    for name, e in layers.items():
        print(
            f"T4 int8 {name}: median {np.median(e):.1%}, p90 {np.quantile(e, 0.9):.1%} over {len(e)} layers"
        )
    if not arguments.dry_run:
        write_backing(TARGET, found["fp16"], np.concatenate(list(layers.values())))
        forget_targets()


if __name__ == "__main__":
    main()
