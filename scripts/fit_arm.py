"""Fit raspberry-pi-4 and raspberry-pi-4/ncnn to published ncnn measurements of Cortex-A72 boards.

    .venv/bin/python scripts/fit_arm.py             # held-out errors, and the target's constants rewritten
    .venv/bin/python scripts/fit_arm.py --dry-run   # errors only

Rows: Raspberry Pi 4 (1 and 4 threads) and the Cortex-A72 pair of an RK3399 (1 thread, one factor between the
boards), float and int8. A network is left out on every board and at every precision when it is predicted.
The model is additive over layers, with a handful of constants shared by the tables, since there are twenty
networks only. ncnn runs 3x3 convolutions by Winograd; onnxruntime on Arm does not, so that the target's 3x3
constant is that of the plain matrix product. raspberry-pi-4/ncnn takes every constant as fitted, Winograd's
too, and divides each among threads as fitted: its prices of the published networks are those of the fit.
"""

from __future__ import annotations

import argparse
import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear

from hw_profiles.fitting import (
    Key,
    Row,
    constants_yaml,
    design_rows,
    log_sigma,
    replace_block,
    solve,
)
from hw_profiles.kernel import Array, KernelBatch, KernelKind, make_batch
from hw_profiles.target import DATA_FOLDER, TARGETS_FOLDER

TARGET, NCNN = "raspberry-pi-4", "raspberry-pi-4.ncnn"
COMMAND = "python scripts/fit_arm.py"
PI, RK = "Raspberry Pi 4 Model B", "Rockchip RK3399"
L2_BYTES = 1048576.0
#: Two frameworks on one board differ by about this factor; ncnn was measured, onnxruntime runs.
RUNTIME_FACTOR = 1.5
_OPS = {
    "Pooling": "MaxPool", "Eltwise": "Add", "BinaryOp": "Add", "Concat": "Concat", "Slice": "Concat",
    "Crop": "Concat", "Padding": "Concat", "ShuffleChannel": "Transpose", "Permute": "Transpose",
    "ReLU": "Relu", "HardSwish": "HardSwish", "HardSigmoid": "Relu", "BatchNorm": "Relu", "Interp": "Resize",
    "Swish": "Sigmoid", "Sigmoid": "Sigmoid", "GELU": "Sigmoid", "Softmax": "Softmax", "LRN": "Softmax",
    "LayerNorm": "LayerNormalization", "Reduction": "ReduceMean",
}  # fmt: skip
_CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise", "DeconvolutionDepthWise")
_DENSE = ("InnerProduct", "Gemm", "MultiHeadAttention")
#: Constants of the model: (table, feature) -> shared parameter. What is not named costs nothing by itself.
_MACS = {(f"plain.{form}", "macs") for form in ("dense", "pointwise", "grouped")} | {("gemm.float", "macs")}
_TRANSCENDENTAL = ("special", "softmax", "erf", "norm", "skipnorm")


def share(key: Key) -> str | None:
    """The parameter a constant belongs to."""
    table, feature = key
    if key in _MACS:
        return "matrix" if table != "gemm.float" else "gemm"
    if feature == "overhead" and table != "view":
        return "overhead"
    if table == "plain.depthwise" and feature == "taps":
        return "depthwise"
    if table == "winograd" and feature == "macs":
        return "winograd"
    if feature in ("weight_core", "weight"):
        return "weights" if feature == "weight_core" else None
    if table in _TRANSCENDENTAL and feature == "read":
        return "special"
    if feature in ("read", "written"):
        return "simple"
    if feature == "moved":
        return {"winograd": "transform", "plain.depthwise": "spread"}.get(table, "moved")
    return None


@dataclass(frozen=True)
class Measured:
    """One published row."""

    device: str
    threads: int
    model: str
    precision: str
    ms: float


def measured() -> list[Measured]:
    """The published rows of Cortex-A72 boards."""
    with (DATA_FOLDER / "ncnn_cortex_a72.csv").open(encoding="utf-8") as file:
        file.readline()
        return [
            Measured(r["device"], int(r["threads"]), r["model"], r["precision"], float(r["min_ms"]))
            for r in csv.DictReader(file)
        ]


def _size(text: str) -> tuple[float, float, float]:
    parts = [float(p) for p in text.split("x")] if text else [1.0]
    return (*parts, 1.0, 1.0, 1.0)[:3]  # type: ignore[return-value]


def _layer(record: dict[str, str]) -> tuple[KernelKind, dict[str, float]] | None:
    """A layer of a published network as a kernel, or None where it does nothing at run time."""
    kind, elements = record["type"], (float(record["in_elems"] or 0), float(record["out_elems"] or 0))
    cin, in_h, in_w = _size(record["in_shape"])
    cout, out_h, out_w = _size(record["out_shape"])
    row = {"in_elements": elements[0], "out_elements": elements[1], "cin": cin, "cout": cout}
    row |= {"in_h": in_h, "in_w": in_w, "out_h": out_h, "out_w": out_w, "kernel_h": 1.0, "kernel_w": 1.0}
    row |= {"stride_h": 1.0, "stride_w": 1.0, "groups": 1.0, "weight_elements": 0.0, "batch": 1.0}
    if kind in _CONVOLUTIONS:
        window = [float(k) for k in record["kernel"].split("x")]
        row |= {"kernel_h": window[-1], "kernel_w": window[0], "groups": float(record["groups"] or 1)}
        row |= {"stride_h": float(record["stride"]), "stride_w": float(record["stride"])}
        row["weight_elements"] = float(record["weights"])
        return KernelKind("FusedConv", "com.microsoft", weight_bearing=True), row
    if kind in _DENSE:
        rows = float(record["macs"]) / max(float(record["weights"]), 1.0)
        rows = max(1.0, round(rows))
        row |= {"cin": float(record["weights"]) / float(record["cout"]), "cout": float(record["cout"])}
        row |= {"out_h": rows, "out_w": 1.0, "weight_elements": float(record["weights"])}
        return KernelKind("Gemm", weight_bearing=True), row
    return (KernelKind(_OPS[kind]), row) if kind in _OPS else None


def networks() -> dict[str, tuple[KernelBatch, Row]]:
    """Published networks: their kernels and parameter counts, Winograd convolutions told apart."""
    groups: dict[str, list[dict[str, str]]] = {}
    with gzip.open(DATA_FOLDER / "ncnn_layers.csv.gz", "rt", encoding="utf-8") as file:
        file.readline()
        for record in csv.DictReader(file):
            groups.setdefault(record["model"], []).append(record)
    found = {}
    for model, records in groups.items():
        layers = [layer for r in records if (layer := _layer(r)) is not None]
        batch = make_batch([k for k, _ in layers], {c: [row[c] for _, row in layers] for c in layers[0][1]})
        found[model] = (batch, parameters(batch))
    return found


def parameters(batch: KernelBatch) -> Row:
    """Counts by shared parameter of a network; the key's second part is the class for thread scaling."""
    counts: Row = {}
    for k, row in enumerate(design_rows(batch, L2_BYTES, L2_BYTES)):
        for key, count in row.items():
            fast = key[1] in ("macs", "moved") and _is_winograd(batch, k)
            name = share(("winograd", key[1]) if fast else key)
            if name:
                counts[name, ""] = counts.get((name, ""), 0.0) + count
    return counts


def _is_winograd(batch: KernelBatch, k: int) -> bool:
    c = {
        name: float(batch[name][0, k])
        for name in ("kernel_h", "kernel_w", "stride_h", "groups", "cin", "cout")
    }
    square = c["kernel_h"] == c["kernel_w"] == 3.0 and c["stride_h"] == c["groups"] == 1.0
    return batch.kinds[k].op == "FusedConv" and square and min(c["cin"], c["cout"]) >= 8.0


@dataclass(frozen=True)
class Fit:
    """Constants of one thread (ns), the RK3399's factor, what four threads divide, and int8 ratios."""

    one: dict[Key, float]
    board: float
    serial: dict[str, float]
    ratio: dict[str, float]

    def parts(self, counts: Row, threads: int, precision: str) -> dict[str, float]:
        """Nanoseconds by parameter."""
        out = {}
        for key, count in counts.items():
            value = count * self.one.get(key, 0.0)
            if precision == "int8":
                value *= self.ratio.get(key[0], 1.0)
            share_left = self.serial.get(key[0], 1.0)
            out[key[0]] = value * (share_left + (1.0 - share_left) / threads)
        if threads > 1:
            out["wait"] = counts["overhead", ""] * self.serial.get("wait", 0.0) * _WAIT_UNIT
        return out

    def ms(self, counts: Row, row: Measured) -> float:
        """Milliseconds of a published row."""
        total = sum(self.parts(counts, row.threads, row.precision).values()) * 1e-6
        return total * (self.board if row.device == RK else 1.0)


def fit(rows: Sequence[Measured], counts: dict[str, Row]) -> Fit:
    """Constants from rows: one thread float first, then the share four threads leave, then int8 ratios."""
    single = [r for r in rows if r.threads == 1 and r.precision == "fp32"]
    board = _board(single)
    times = np.array([r.ms * 1e6 / (board if r.device == RK else 1.0) for r in single])
    one = solve([counts[r.model] for r in single], times, 1.0 / times, ridge=0.02)
    partial = Fit(one, board, {}, {})
    serial = _serial(partial, [r for r in rows if r.threads == 4 and r.precision == "fp32"], counts)
    partial = Fit(one, board, serial, {})
    return Fit(
        one,
        board,
        serial,
        _ratios(partial, [r for r in rows if r.precision == "int8" and r.threads == 1], counts),
    )


def _board(rows: Sequence[Measured]) -> float:
    """Time on the RK3399 over that on the Pi 4, median over networks both have."""
    pi = {r.model: r.ms for r in rows if r.device == PI}
    return float(np.median([r.ms / pi[r.model] for r in rows if r.device == RK and r.model in pi]))


#: Nanoseconds in which the wait of threads for each other, once a kernel, is counted.
_WAIT_UNIT = 1000.0
#: Parameters that scale alike with threads, and that 8-bit weights and activations change alike.
_THREAD_GROUPS = (
    ("matrix",),
    ("winograd",),
    ("gemm",),
    ("depthwise", "spread", "moved", "transform", "simple", "special", "weights"),
)
_INT8_GROUPS = (("matrix", "gemm", "weights"), ("winograd",), ("depthwise", "spread", "moved", "transform"))
#: Share that stays serial, and int8 over float time, before anything has been seen; held with this weight.
_SERIAL_PRIOR, _SERIAL_WEIGHT = (0.2, 0.4, 0.2, 0.4, 20.0), (0.2, 0.2, 0.2, 0.2, 0.0)
_RATIO_PRIOR, _RATIO_WEIGHT = (0.85, 0.85, 0.85), (0.5, 0.5, 0.5)


def _serial(fitted: Fit, rows: Sequence[Measured], counts: dict[str, Row]) -> dict[str, float]:
    matrix, target = [], []
    for r in rows:
        parts = fitted.parts(counts[r.model], 1, "fp32")
        sums = [sum(parts.get(p, 0.0) for p in group) * 1e-6 / r.ms for group in _THREAD_GROUPS]
        waits = counts[r.model]["overhead", ""] * _WAIT_UNIT * 1e-6 / r.ms
        matrix.append([*(s * 0.75 for s in sums), waits])
        target.append(1.0 - sum(sums) / 4.0)
    groups = (*_THREAD_GROUPS, ("wait",))
    return _grouped(matrix, target, groups, _SERIAL_PRIOR, _SERIAL_WEIGHT, (1.0, 1.0, 1.0, 1.0, 1e3))


def _ratios(fitted: Fit, rows: Sequence[Measured], counts: dict[str, Row]) -> dict[str, float]:
    matrix, target = [], []
    for r in rows:
        parts = fitted.parts(counts[r.model], r.threads, "fp32")
        scale = 1e-6 * (fitted.board if r.device == RK else 1.0) / r.ms
        sums = [sum(parts.get(p, 0.0) for p in group) * scale for group in _INT8_GROUPS]
        matrix.append(sums)
        target.append(1.0 - (sum(parts.values()) * scale - sum(sums)))
    return _grouped(matrix, target, _INT8_GROUPS, _RATIO_PRIOR, _RATIO_WEIGHT, (2.0,) * 3)


def _grouped(
    matrix: list[list[float]], target: list[float], groups: Sequence[Sequence[str]],
    prior: Sequence[float], weight: Sequence[float], top: Sequence[float],
) -> dict[str, float]:  # fmt: skip
    """Bounded least squares, one value per group, held towards a prior."""
    a = np.vstack([np.array(matrix), np.diag(weight)])
    b = np.concatenate([target, np.array(weight) * np.array(prior)])
    found = lsq_linear(a, b, bounds=(np.full(len(groups), 0.02), np.array(top))).x
    return {name: float(value) for group, value in zip(groups, found, strict=True) for name in group}


def held_out(
    rows: Sequence[Measured], counts: dict[str, Row], macs: dict[str, float]
) -> dict[str, list[list[float]]]:
    """Leave-one-network-out |log errors| of the model and of MACs alone, by setting of the Pi 4."""
    found: dict[str, list[list[float]]] = {}
    for model in sorted({r.model for r in rows}):
        train = [r for r in rows if r.model != model]
        fitted = fit(train, counts)
        for r in rows:
            if r.model != model or r.device != PI:
                continue
            alike = [t for t in train if (t.device, t.threads, t.precision) == (PI, r.threads, r.precision)]
            rate = float(np.median([t.ms / macs[t.model] for t in alike]))
            errors = [abs(np.log(p / r.ms)) for p in (fitted.ms(counts[model], r), rate * macs[model])]
            name = f"{r.threads} thread{'s' if r.threads > 1 else ''} {r.precision}"
            found.setdefault(name, []).append([float(e) for e in errors])
    return found


def constants(fitted: Fit) -> dict[Key, float]:
    """The target's constants: every feature of every table takes its shared parameter."""
    one = {name: value for (name, _), value in fitted.one.items()}
    return {**_float_constants(one), **_integer_constants(one, fitted.ratio), **_simple_constants(one)}


def _table(name: str, **values: float) -> dict[Key, float]:
    return {(name, feature): value for feature, value in values.items()}


def _float_constants(one: dict[str, float]) -> dict[Key, float]:
    launch, matrix = (
        one["overhead"],
        {"macs": one["matrix"], "moved": one["moved"], "weight_core": one["weights"]},
    )
    return {
        # A gathered float is written and read again, at the price of an element-wise operation.
        **_table("plain.dense", **matrix, gather=4.0 * one["simple"], overhead=launch),
        **_table("plain.pointwise", **matrix, overhead=launch),
        **_table("plain.depthwise", taps=one["depthwise"], moved=one["spread"], overhead=launch),
        **_table("gemm.float", macs=one["gemm"], weight_core=one["weights"], overhead=launch),
    }


def _integer_constants(one: dict[str, float], ratio: dict[str, float]) -> dict[Key, float]:
    """Integer elements are a quarter as wide, but are rounded back: what was fitted is time per element."""
    launch = one["overhead"]
    matrix = {"macs": one["matrix"] * ratio["matrix"], "moved": 4.0 * one["moved"] * ratio["moved"]}
    matrix["weight_core"] = 4.0 * one["weights"] * ratio["weights"]
    taps = one["depthwise"] * ratio["depthwise"]
    moved = 4.0 * one["spread"] * ratio["spread"]
    gemm = {"macs": one["gemm"] * ratio["gemm"], "weight_core": matrix["weight_core"]}
    return {
        **_table("int8.dense", **matrix, gather=one["simple"], overhead=launch),
        **_table("int8.pointwise", **matrix, overhead=launch),
        **_table("int8.depthwise", taps=taps, left_taps=taps, moved=moved, overhead=launch),
        **_table("gemm.int8", **gemm, overhead=launch),
    }


def _simple_constants(one: dict[str, float]) -> dict[Key, float]:
    launch, byte = one["overhead"], one["simple"]
    out: dict[Key, float] = {}
    plain = ("add", "map", "concat", "transpose", "pool", "reduce", "reorder_in", "reorder_out", "unknown")
    for name in plain:
        out |= _table(name, read=byte, written=byte, overhead=launch)
    for name in ("qadd", "qconcat", "qtranspose", "qpool", "qreduce", "qtable"):
        out |= _table(name, read=4.0 * byte, written=4.0 * byte, overhead=launch)
    for name in ("quantise", "dequantise"):
        out |= _table(name, read=byte, written=byte, overhead=launch)
    out |= _table("special", read=one["special"] + byte, written=byte, overhead=launch)
    return out | {("network", "overhead"): launch, ("view", "overhead"): 0.0}


def ncnn_constants(fitted: Fit) -> dict[Key, float]:
    """Constants of the runtime that was measured: Winograd kept apart, shares of threads by feature."""
    one = {name: value for (name, _), value in fitted.one.items()}
    serial, launch = fitted.serial, one["overhead"]
    out = {k: v for k, v in constants(fitted).items() if not k[0].startswith("plain.")}
    out["network", "overhead"] = 0.0  # published times are those of the layers
    tables = {
        "ncnn.dense": ("matrix", "moved"), "ncnn.pointwise": ("matrix", "moved"),
        "ncnn.grouped": ("matrix", "moved"), "ncnn.winograd": ("winograd", "transform"),
    }  # fmt: skip
    for table, (macs, moved) in tables.items():
        out |= _table(table, macs=one[macs], moved=one[moved], weight_core=one["weights"], overhead=launch)
    out |= _table("ncnn.depthwise", taps=one["depthwise"], moved=one["spread"], overhead=launch)
    for name in (*tables, "ncnn.depthwise"):
        out |= {
            (name.replace("ncnn", "ncnn8"), feature): out[name, feature] * fitted.ratio.get(parameter, 1.0)
            for feature, parameter in _parameters(name, tables).items()
        }
    shares = {"macs": "matrix", "winograd.macs": "winograd", "moved": "moved", "taps": "depthwise"}
    shares["weight_core"] = "weights"
    rest = {"macs": "gemm", "weight_core": "weights"}
    for family in ("ncnn", "ncnn8"):
        out |= {(f"{family}/parallel", k): 1.0 - serial[p] for k, p in shares.items()}
    for family in ("gemm.float", "gemm.int8"):
        out |= {(f"{family}/parallel", k): 1.0 - serial[p] for k, p in rest.items()}
    return out


def _parameters(table: str, tables: dict[str, tuple[str, str]]) -> dict[str, str]:
    """Shared parameter of each feature of one of ncnn's tables."""
    if table == "ncnn.depthwise":
        return {"taps": "depthwise", "moved": "spread", "overhead": "overhead"}
    macs, moved = tables[table]
    return {"macs": macs, "moved": moved, "weight_core": "weights", "overhead": "overhead"}


_CLASSES = {
    "conv_float": "matrix", "conv_int": "matrix", "gemm": "gemm", "depthwise": "depthwise",
    "memory": "simple", "reorder": "simple",
}  # fmt: skip


def write(fitted: Fit, errors: dict[str, list[list[float]]]) -> None:
    """Constants, interval and validation of both targets."""
    every = np.array([e[0] for found in errors.values() for e in found])
    reason = "two frameworks on one board differ by about 1.5x; ncnn was measured, onnxruntime runs"
    told = "runtime factor unknown", "; onnxruntime unmeasured"
    _write(TARGET, constants(fitted), fitted, every, (RUNTIME_FACTOR, reason), told)
    same = "ncnn was measured and ncnn runs"
    _write(NCNN, ncnn_constants(fitted), fitted, every, (1.0, same), ("of this runtime", ""))


def _write(
    name: str,
    values: dict[Key, float],
    fitted: Fit,
    every: Array,
    factor: tuple[float, str],
    told: tuple[str, str],
) -> None:
    path = TARGETS_FOLDER / f"{name}.yaml"
    source = "ncnn benchmark README @ a4d2ea1d44 (BSD-3), Cortex-A72 rows, fitted by scripts/fit_arm.py"
    values |= {("parallel", name): 1.0 - fitted.serial[p] for name, p in _CLASSES.items()}
    values["parallel", "wait"] = fitted.serial["wait"] * _WAIT_UNIT
    text = [
        "  interval:",
        f'    log_sigma: {{value: {log_sigma(every):.4g}, source: "held-out networks, {COMMAND}"}}',
        f'    runtime_factor: {{value: {factor[0]}, source: "{factor[1]}"}}',
        constants_yaml(values, {"": source}),
    ]
    replace_block(path, "fitted", "\n".join(text), indent="  ")
    validation = [
        "validation:",
        "  status: validated",
        f"  median_error: {float(np.median(every)):.3f}",
        f"  worst_error: {float(every.max()):.3f}",
        f'  held_out: "{len(every)} ncnn rows of the Pi 4, a network left out{told[1]}"',
        f'  command: "{COMMAND}"',
        f'backing: "{len(every)} published ncnn measurements (held-out median error {np.median(every):.1%}), '
        f'{told[0]}"',
    ]
    replace_block(path, "validation", "\n".join(validation))


def main() -> None:
    """Fit, report, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    rows, nets = measured(), networks()
    rows = [r for r in rows if r.model in nets]
    counts = {name: row for name, (_, row) in nets.items()}
    macs = {name: float(batch.macs().sum()) for name, (batch, _) in nets.items()}
    fitted = fit(rows, counts)
    print("constants, ns:", {k[0]: round(v, 4) for k, v in fitted.one.items()})
    print(f"RK3399 / Pi 4: {fitted.board:.2f}; serial shares {fitted.serial}; int8 / float {fitted.ratio}")
    errors = held_out(rows, counts, macs)
    print(f"\n{'Pi 4, one network left out':28s} {'rows':>5s} {'median':>8s} {'worst':>8s}   MACs only")
    for name, found in errors.items():
        e = np.array(found)
        print(f"{name:28s} {len(e):5d} {np.median(e[:, 0]):8.1%} {e[:, 0].max():8.1%}   ", end="")
        print(f"{np.median(e[:, 1]):8.1%} {e[:, 1].max():8.1%}")
    if not arguments.dry_run:
        write(fitted, errors)


if __name__ == "__main__":
    main()
