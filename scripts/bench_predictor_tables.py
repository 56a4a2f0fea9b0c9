"""Tables of single operations and of the DPU, for scripts/bench_predictor.py --published.

Each is left out and predicted: Pixel 1 layers by network, V100 convolutions, BitFusion and bit-serial layers
by tenths of the entries ("leave 10 % out"), DPU networks one by one within families. Beside the model of the
product stands the same model with its residual learned (gradient boosting on the shapes), and a linear fit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import fit_bitserial
import fit_fpga
import fit_gpu
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.ensemble import HistGradientBoostingRegressor

from hw_profiles.costs.arm import conv_counts
from hw_profiles.costs.base import Shapes
from hw_profiles.costs.bitserial import combine
from hw_profiles.fitting import Row, predict_ns, solve
from hw_profiles.haq import haq_table
from hw_profiles.kernel import Array, KernelKind, make_batch
from hw_profiles.published import read_csv

FOLDS = 10
#: How far residuals carry between like layers (log2 of channels, of sizes), and their shrinkage.
_NEAR = (1.0, 0.3, 0.8)
Rows = NDArray[np.intp]
Fitter = Callable[[Rows], Callable[[Rows], Array]]


def main_tables() -> None:
    """Print all of them."""
    pixel_1()
    print(
        f"\n{'leave 10 % out':34s} {'entries':>7s} {'model':>8s} {'median':>7s} {'+ learned':>10s} "
        f"{'linear':>9s}  (MAPE)"
    )
    v100()
    bitfusion()
    bit_serial()
    vitis()


# --- Pixel 1 ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """One layer of a MobileNetV1 on the Pixel 1: its kind, log2 (cin, cout, out), stride, counts, mean ms."""

    net: str
    op: str
    where: Array
    counts: Array
    ms: float


def pixel_layers() -> list[Layer]:
    """The published layers, mean of the runs."""
    groups: dict[tuple[str, int], list[dict[str, str]]] = {}
    for r in read_csv("pixel1_layers.csv"):
        groups.setdefault((r["net"], int(r["idx"])), []).append(r)
    found = []
    for (net, _), records in sorted(groups.items()):
        r = records[0]
        cin, cout, k, stride, out = (float(r[c]) for c in ("cin", "cout", "k", "stride", "out"))
        groups_ = cin if r["op"] == "dw" else 1.0
        columns = {
            "cin": cin, "cout": cout, "kernel_h": k, "kernel_w": k, "stride_h": stride, "stride_w": stride,
            "out_h": out, "out_w": out, "groups": groups_,
        }  # fmt: skip
        batch = make_batch([KernelKind("Conv", weight_bearing=True)], columns)
        s = Shapes(batch, [0], (np.zeros((1, 1)), np.zeros((1, 1))))
        counts = [float(c[0, 0]) for c in conv_counts(s, winograd=False).values()]
        plain = [float(batch.macs()[0, 0]), float(s.out_elements[0, 0]), float(s.weight_elements[0, 0]), 1.0]
        where = np.array([np.log2(cin), np.log2(cout), np.log2(out), stride])
        ms = float(np.mean([float(x["avg_ms"]) for x in records]))
        found.append(Layer(net, r["op"], where, np.array(counts + plain), ms))
    return found


def _line_fit(layers: list[Layer]) -> Array:
    matrix = np.stack([x.counts / x.ms for x in layers])
    norms = np.linalg.norm(matrix, axis=0)
    norms[norms == 0.0] = 1.0
    held = 1e-3 * np.eye(matrix.shape[1])
    found, _ = nnls(
        np.vstack([matrix / norms, held]), np.concatenate([np.ones(len(layers)), np.zeros(len(held))])
    )
    return np.asarray(found / norms)


def _near_residual(layer: Layer, others: list[Layer], line: Array) -> float:
    """Log residual at a layer, carried over from layers of the same kind and like shape."""
    channels, size, shrink = _NEAR
    top = bottom = 0.0
    for other in others:
        apart = layer.where - other.where
        far = (apart[0] ** 2 + apart[1] ** 2) / channels**2 + (apart[2] ** 2 + 4.0 * apart[3] ** 2) / size**2
        weight = float(np.exp(-far / 2.0))
        top += weight * float(np.log(other.ms / (other.counts @ line)))
        bottom += weight
    return top / (bottom + shrink)


def pixel_1() -> None:
    """Each of the four networks left out."""
    layers = pixel_layers()
    print(
        "\nPixel 1, TFLite, one thread, MobileNetV1 by layer, a network left out (baseline 8.1 % and 2.7 %)"
    )
    print(f"{'':34s} {'per layer, mean':>16s} {'median':>7s} {'end to end':>11s} {'speed-up over 1.0':>18s}")
    totals: dict[str, tuple[float, float]] = {}
    every: list[float] = []
    for net in dict.fromkeys(x.net for x in layers):
        errors, predicted, measured = [], 0.0, 0.0
        for op in ("conv", "dw", "pw"):
            train = [x for x in layers if x.net != net and x.op == op]
            line = _line_fit(train)
            for x in (y for y in layers if y.net == net and y.op == op):
                ms = float(x.counts @ line) * float(np.exp(_near_residual(x, train, line)))
                errors.append(abs(ms / x.ms - 1.0))
                predicted, measured = predicted + ms, measured + x.ms
        every += errors
        totals[net] = (predicted, measured)
        print(
            f"{net:34s} {np.mean(errors):16.1%} {np.median(errors):7.1%} {predicted / measured - 1.0:11.1%}"
        )
    worst = max(abs(p / m - 1.0) for p, m in totals.values())
    dense = totals["mobilenet"]
    pruned = [abs((p / dense[0]) / (m / dense[1]) - 1.0) for n, (p, m) in totals.items() if n != "mobilenet"]
    print(
        f"{'all':34s} {np.mean(every):16.1%} {np.median(every):7.1%} {worst:11.1%} "
        f"{np.max(pruned):18.1%}  (worst)"
    )


# --- tables of operations --------------------------------------------------------------------------------


def _folds(count: int) -> Array:
    return np.asarray(np.random.default_rng(0).permutation(count) % FOLDS)


def _tenths(name: str, measured: Array, features: Array, model: Fitter, line: Fitter) -> None:
    """MAPE of model, model with learned residual, and line, each entry predicted without its tenth."""
    fold = _folds(len(measured))
    guesses = np.zeros((3, len(measured)))
    for f in range(FOLDS):
        train, test = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
        price = model(train)
        guesses[0, test] = price(test)
        residual = np.log(measured[train] / price(train))
        known = np.column_stack([features, np.log(price(np.arange(len(measured))))])
        learned = HistGradientBoostingRegressor(max_iter=150, learning_rate=0.1, random_state=0)
        learned.fit(known[train], residual)
        guesses[1, test] = guesses[0, test] * np.exp(learned.predict(known[test]))
        guesses[2, test] = line(train)(test)
    e = np.abs(guesses / measured - 1.0)
    print(
        f"{name:34s} {len(measured):7d} {e[0].mean():8.1%} {np.median(e[0]):7.1%} {e[1].mean():10.1%} "
        f"{e[2].mean():9.1%}"
    )


def _linear(columns: Mapping[str, Array], measured: Array) -> Fitter:
    """Least squares of relative errors on some counts and a constant."""
    matrix = np.column_stack([*columns.values(), np.ones(len(measured))])

    def fit(train: Rows) -> Callable[[Rows], Array]:
        weighted = matrix[train] / measured[train, None]
        norms = np.linalg.norm(weighted, axis=0)
        norms[norms == 0.0] = 1.0
        found = np.linalg.lstsq(weighted / norms, np.ones(len(train)), rcond=None)[0] / norms
        return lambda rows: np.asarray(np.maximum(matrix[rows] @ found, 1e-9))

    return fit


def v100() -> None:
    """TensorRT convolutions: the wave model of the GPU targets."""
    ops = fit_gpu.load()
    for precision in ("fp32", "fp16", "int8"):
        mine = [op for op in ops if precision in op.ms]
        rows = [fit_gpu.row_of(op, precision) for op in mine]
        measured = np.array([op.ms[precision] * 1e6 for op in mine])
        shape = np.array([[*op.shape, float(op.batch["batch"][0, 0]), float(op.depthwise)] for op in mine])
        plain = {
            "macs": np.array([float(op.batch.macs().sum()) for op in mine]),
            "elements": np.array(
                [float((op.batch["in_elements"] + op.batch["out_elements"]).sum()) for op in mine]
            ),
        }

        def model(train: Rows, rows: list[Row] = rows, measured: Array = measured) -> Callable[[Rows], Array]:
            constants = solve([rows[i] for i in train], measured[train], 1.0 / measured[train])
            return lambda asked: np.array([predict_ns(rows[i], constants) for i in asked])

        _tenths(f"V100 TensorRT {precision}", measured, shape, model, _linear(plain, measured))


def bitfusion() -> None:
    """APQ's table: latency and energy."""
    for form in fit_fpga.FORMS:
        table = fit_fpga.load(form)
        features = np.column_stack([np.log(table.compute), *(np.log(v + 1.0) for v in table.memory.values())])
        plain = {"macs": table.macs, "weights": table.memory["weights"], "inputs": table.memory["inputs"]}

        def latency(train: Rows, table: fit_fpga.Table = table) -> Callable[[Rows], Array]:
            chosen = np.isin(np.arange(len(table)), train)
            cycles = fit_fpga.cycles_of(table, fit_fpga.fit_cycles(table, chosen))
            return lambda asked: np.asarray(cycles[asked])

        def energy(train: Rows, table: fit_fpga.Table = table, form: str = form) -> Callable[[Rows], Array]:
            found = fit_fpga.fit_energy(table, np.isin(np.arange(len(table)), train), form)
            joules = np.asarray(sum(found[f"energy.{form}", n] * v for n, v in table.energy.items()))
            return lambda asked: np.asarray(joules[asked])

        for name, model, measured in (
            ("latency", latency, table.cycles),
            ("energy", energy, table.picojoules),
        ):
            _tenths(f"APQ BitFusion {form}, {name}", measured, features, model, _linear(plain, measured))


def bit_serial() -> None:
    """HAQ's table."""
    for form, entries in fit_bitserial.load().items():
        features = np.column_stack([np.log(v + 1.0) for v in entries.stages.values()])

        def model(train: Rows, entries: fit_bitserial.Entries = entries) -> Callable[[Rows], Array]:
            chosen = np.isin(np.arange(len(entries.cycles)), train)
            cycles = combine(entries.stages, fit_bitserial.fit(entries.take(chosen)))
            return lambda asked: np.asarray(cycles[asked])

        line = _linear({"products": entries.products}, entries.cycles)
        _tenths(f"HAQ bit-serial {form}", entries.cycles, features, model, line)
    shapes, table = haq_table()
    print(f"  HAQ's table: {len(shapes)} layers, sum at 8/8 {table[:, 7, 7].sum():,.0f} cycles")


# --- DPU -------------------------------------------------------------------------------------------------

#: Families of the Vitis AI model zoo: name -> rows whose name begins so.
FAMILIES = {
    "yolov2_voc, pruned": ("yolov2_voc",),
    "refinedet, pruned": ("refinedet_baseline", "refinedet_pruned"),
    "resnet_v1": ("resnet_v1_",),
    "resnet_v2": ("resnet_v2_",),
    "efficientnet-edgetpu": ("efficientnet-edgetpu-",),
    "Mobilenet_v1": ("Mobilenet_v1",),
    "VGG and Inception_v4": ("vgg_", "Inception_v4"),
}  # fmt: skip


def vitis() -> None:
    """Within families of networks on the ZCU104's DPU: ms = a + b GOP, each network left out."""
    rows = [r for r in read_csv("vitis_zcu104.csv") if r["version"] == "v2.0"]
    print(
        f"\n{'DPU, a network left out':34s} {'rows':>5s} {'a, ms':>7s} {'b, ms/GOP':>10s} "
        f"{'a+bG mean':>10s} {'worst':>7s} {'bG mean':>8s}"
    )
    for name, starts in FAMILIES.items():
        chosen = [r for r in rows if r["model"].startswith(starts)]
        points = sorted({(float(r["gops"]), float(r["ms"])) for r in chosen})
        if len(points) < 3:
            continue
        gops, ms = np.array(points).T
        b, a = _weighted_line(gops, ms)
        errors, plain = [], []
        for i in range(len(gops)):
            keep = np.arange(len(gops)) != i
            slope, start = _weighted_line(gops[keep], ms[keep])
            errors.append(abs((start + slope * gops[i]) / ms[i] - 1.0))
            plain.append(abs(np.median(ms[keep] / gops[keep]) * gops[i] / ms[i] - 1.0))
        print(
            f"{name:34s} {len(gops):5d} {a:7.2f} {b:10.3f} {np.mean(errors):10.1%} "
            f"{np.max(errors):7.1%} {np.mean(plain):8.1%}"
        )
    _pruned_pairs(rows)


def _pruned_pairs(rows: list[dict[str, str]]) -> None:
    """Speed-up of pruned over dense within the two families, the pruned network left out."""
    found = []
    for start, dense in (("yolov2_voc_pruned", "yolov2_voc"), ("refinedet_pruned", "refinedet_baseline")):
        points = {
            r["model"]: (float(r["gops"]), float(r["ms"]))
            for r in rows
            if r["model"].startswith((start, dense))
        }
        for name, (gops, ms) in points.items():
            if name == dense:
                continue
            others = np.array([v for n, v in points.items() if n != name]).T
            slope, begin = _weighted_line(others[0], others[1])
            found.append(abs((begin + slope * gops) / ms - 1.0))
    print(
        f"{'pruned over dense, speed-up error':34s} {len(found):5d} {'mean':>18s} "
        f"{np.mean(found):10.1%} {np.max(found):7.1%}"
    )


def _weighted_line(gops: Array, ms: Array) -> tuple[float, float]:
    """(slope, intercept) by least squares of relative errors, neither negative."""
    found, _ = nnls(np.stack([gops / ms, 1.0 / ms], axis=1), np.ones(len(ms)))
    return float(found[0]), float(found[1])
