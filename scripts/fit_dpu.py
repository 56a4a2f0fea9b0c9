"""Fit the DPU's model to published latencies of the Vitis AI model zoo on the ZCU104.

    .venv/bin/python scripts/fit_dpu.py             # held-out errors, and the target's constants rewritten
    .venv/bin/python scripts/fit_dpu.py --dry-run   # errors only

Rows: the networks of the zoo (v2.0, one thread, host included) whose layers are known exactly, because ncnn's
benchmark has the same networks; each is left out in turn. The zoo's rows also say how time goes with
operations inside families of networks: see scripts/bench_predictor.py --published.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from hw_profiles.boards import all_boards, fit_boards
from hw_profiles.costs.base import Shapes
from hw_profiles.costs.dpu import ON_DPU, engine_features
from hw_profiles.fitting import Key, Row, constants_yaml, log_sigma, predict_ns, replace_block
from hw_profiles.kernel import COLUMNS, CONV_OPS, MATMUL_OPS, Array, KernelBatch, KernelKind, make_batch
from hw_profiles.published import NAMES, ncnn_networks, read_csv
from hw_profiles.target import TARGETS_FOLDER

TARGET = "fpga-zcu104-dpu"
COMMAND = "python scripts/fit_dpu.py"
#: Networks of the zoo (name, GOP) by ncnn's names, and how they follow from those.
NETWORKS = {
    ("resnet18", 3.65): "resnet18", ("resnet50", 7.7): "resnet50", ("Inception_v1", 3.16): "googlenet",
    ("SqueezeNet", 0.76): "squeezenet", ("Mobilenet_v2", 0.59): "mobilenet_v2",
    ("Mobilenet_v1", 1.14): "mobilenet",
    ("vgg_16", 30.96): "vgg16", ("vgg_19", 39.28): "vgg16+3", ("resnet_v1_101", 14.4): "resnet50+17",
    ("resnet_v1_152", 21.83): "resnet50+36", ("Mobilenet_v1", 0.15): "mobilenet*0.5@160",
    ("Mobilenet_v1", 0.027): "mobilenet*0.25@128",
}  # fmt: skip
_DDR = "hardware_facts.csv: 19.2 GB/s DDR4 of the ZCU104, theoretical, in and out"
_DDR_NS_PER_BYTE = 1.0 / 19.2
#: The engine runs at 300 MHz (Vitis AI model zoo READMEs); a cycle of it cannot be fitted shorter.
CYCLES, _CYCLE_NS = ("engine", "cycles"), 1.0 / 0.3
HOST = "Raspberry Pi 3 Model B+"
_SCALING = f"arrays of CHaiDNN against time inverse to their size, 0.9 quantile, {COMMAND}"


@dataclass(frozen=True)
class Published:
    """A network of the zoo whose layers are known: counts, measured ms, GOP."""

    name: str
    counts: Row
    ms: float
    gops: float


def counts_of(batch: KernelBatch) -> Row:
    """Counts of a network: the engine's, bytes of what only moves, one kernel each, one run."""
    nothing = np.zeros((1, 1))
    features = engine_features(Shapes(batch, list(range(len(batch.kinds))), (nothing, nothing)))
    weighted = np.array([k.op in CONV_OPS or k.op in MATMUL_OPS for k in batch.kinds])
    moves = weighted | np.array([k.op in ON_DPU for k in batch.kinds])
    row: Row = {("engine", n): float(v[0][weighted].sum()) for n, v in features.items() if n != "moved"}
    row["engine", "moved"] = float(features["moved"][0][moves].sum())
    row["engine", "overhead"] = float(moves.sum())
    row["network", "image"] = float(batch["in_elements"][0, 0])
    row["network", "overhead"] = 1.0
    return row


def scaled(batch: KernelBatch, width: float, size: float) -> KernelBatch:
    """A network with its channels (all but the image's and the answer's) and its image scaled."""
    columns = {n: batch[n].copy() for n in COLUMNS if "elements" not in n}
    for name, kept in (("cin", 3.0), ("cout", 1000.0), ("groups", 1.0)):
        columns[name] = np.where(
            columns[name] == kept, kept, np.maximum(1.0, np.round(columns[name] * width))
        )
    for name in ("in_h", "in_w", "out_h", "out_w"):
        columns[name] = np.maximum(1.0, np.round(columns[name] * size))
    return make_batch(batch.kinds, columns)


def deeper(name: str, count: int) -> KernelBatch:
    """What a deeper variant has more: `count` blocks of ResNet's third and second stage, or VGG-19's."""
    if name == "vgg16":
        shapes = [(256, 256, 3, 56), (512, 512, 3, 28), (512, 512, 3, 14)]
    else:
        third = [(1024, 256, 1, 14), (256, 256, 3, 14), (256, 1024, 1, 14)]
        second = [(512, 128, 1, 28), (128, 128, 3, 28), (128, 512, 1, 28)]
        many = (
            4 if count == 36 else 0
        )  # ResNet-152: 8 blocks in the second stage, 36 in the third; -101: 4 and 23
        shapes = second * many + third * (30 if many else count)
    cin, cout, kernel, out = np.array(shapes, dtype=np.float64).T
    kinds = [KernelKind("Conv", weight_bearing=True)] * len(shapes)
    return make_batch(
        kinds, {"cin": cin, "cout": cout, "kernel_h": kernel, "kernel_w": kernel, "out_h": out, "out_w": out}
    )


def network(name: str) -> tuple[Row, float]:
    """(counts, GOP) of ``base``, ``base+layers`` or ``base*width@size``."""
    known = ncnn_networks()
    if "*" in name:
        base, _, rest = name.partition("*")
        width, size = (float(x) for x in rest.split("@"))
        batch = scaled(known[base].batch, width, size / 224.0)
        return counts_of(batch), 2e-9 * float(batch.macs().sum())
    base, _, count = name.partition("+")
    row, macs = counts_of(known[base].batch), known[base].macs
    if count:
        more = deeper(base, int(count))
        added = counts_of(more)
        row = {key: row[key] + (0.0 if key[0] == "network" else added[key]) for key in row}
        macs += float(more.macs().sum())
    return row, 2e-9 * macs


def published() -> list[Published]:
    """Rows of networks that are known exactly."""
    found: dict[str, Published] = {}
    for r in read_csv("vitis_zcu104.csv"):
        name = NETWORKS.get((r["model"], round(float(r["gops"]), 3 if float(r["gops"]) < 0.1 else 2)))
        if name is not None and r["version"] == "v2.0" and name not in found:
            counts, gops = network(name)
            found[name] = Published(name, counts, float(r["ms"]), gops)
    return list(found.values())


def fit(rows: list[Published]) -> dict[Key, float]:
    """Constants in nanoseconds per count by robust least squares on log times (one row of the zoo,
    SqueezeNet's, spends most of its time on the host); the engine's cycle is its clock's."""
    times = np.array([r.ms * 1e6 for r in rows])
    keys = [key for key in rows[0].counts if key != CYCLES]
    matrix = np.array([[r.counts[key] for key in keys] for r in rows])
    engine = np.array([r.counts[CYCLES] for r in rows]) * _CYCLE_NS
    scale = times.mean() / np.maximum(matrix.mean(axis=0), 1.0)

    def residuals(theta: Array) -> Array:
        return np.asarray(np.log((engine + matrix @ (np.exp(theta) * scale)) / times))

    start = np.full(len(keys), np.log(0.05))
    theta = least_squares(residuals, start, loss="soft_l1", f_scale=0.05, bounds=(-12.0, 3.0)).x
    return {CYCLES: _CYCLE_NS} | dict(zip(keys, map(float, np.exp(theta) * scale), strict=True))


def held_out(rows: list[Published]) -> tuple[Array, Array]:
    """|log errors| of the model and of a + b GOP over all of these, each network left out."""
    model, line = [], []
    for i, row in enumerate(rows):
        train = rows[:i] + rows[i + 1 :]
        model.append(abs(np.log(predict_ns(row.counts, fit(train)) * 1e-6 / row.ms)))
        matrix = np.array([[r.gops / r.ms, 1.0 / r.ms] for r in train])
        b, a = np.linalg.lstsq(matrix, np.ones(len(train)), rcond=None)[0]
        line.append(abs(np.log(max(a + b * row.gops, 1e-3) / row.ms)))
    return np.array(model), np.array(line)


def host_constants() -> dict[Key, float]:
    """Nanoseconds per count on the Arm cores, four threads, from the published rows of the same core."""
    fitted = fit_boards(all_boards())
    boards = [b for b in fitted.boards.floats if b.device == HOST and b.threads == 4]
    values = dict(zip(NAMES, fitted.constants(boards[0]) * 1e6, strict=True))
    return {("host", n): float(values[n]) for n in ("element", "special", "product", "overhead")}


def scaling_factor() -> float:
    """How far time is from inverse to an array's size, as a factor either way at 90 %.

    Rows of CHaiDNN, another design, since no DPU but the largest has published latencies: the convolutional
    part of a network on arrays of 128 to 1024 DSPs at one clock, all pairs.
    """
    alike: dict[tuple[str, ...], list[tuple[float, float]]] = defaultdict(list)
    for r in read_csv("chaidnn_arrays.csv"):
        key = (r["chip"], r["mhz"], r["network"], r["bits"])
        alike[key].append((float(r["dsps"]), float(r["ms"])))
    pairs = (pair for rows in alike.values() for pair in itertools.combinations(rows, 2))
    errors = [abs(np.log(a[0] * a[1] / (b[0] * b[1]))) for a, b in pairs]
    return float(np.exp(np.quantile(errors, 0.9)))


def write(constants: dict[Key, float], errors: Array) -> None:
    """Constants, interval, validation, and how far other builds may be off."""
    path = TARGETS_FOLDER / f"{TARGET}.yaml"
    scaling = f'  scaling: {{value: {scaling_factor():.3g}, source: "{_SCALING}"}}'
    replace_block(path, "scaling", scaling, indent="  ")
    every = {**constants, **host_constants(), ("host-transfer", "transfer"): _DDR_NS_PER_BYTE}
    source = "Vitis AI model zoo READMEs (Apache-2.0), ZCU104 v2.0, fitted by scripts/fit_dpu.py"
    core = f"Cortex-A53 of the {HOST} for the chip's own, ncnn rows fitted by scripts/fit_boards.py"
    block = constants_yaml(every, {"": source, "host": core, "host-transfer": _DDR})
    block = _join_host(block)
    text = [
        "  interval:",
        f'    log_sigma: {{value: {log_sigma(errors):.4g}, source: "held-out networks, {COMMAND}"}}',
        '    runtime_factor: {value: 1.0, source: "the DPU and its runtime were measured"}',
        block,
    ]
    replace_block(path, "fitted", "\n".join(text), indent="  ")
    median = float(np.median(errors))
    validation = [
        "validation:",
        "  status: validated",
        f"  median_error: {median:.3f}",
        f"  worst_error: {float(errors.max()):.3f}",
        f'  held_out: "{len(errors)} networks of the Vitis AI model zoo, each left out; none of them '
        f'leaves the DPU"',
        f'  command: "{COMMAND}"',
        f'backing: "{len(errors)} published networks on the DPU (held-out median error {median:.1%}); '
        'host round trips unmeasured"',
    ]
    replace_block(path, "validation", "\n".join(validation))


def _join_host(block: str) -> str:
    """The transfer constant has a source of its own, but belongs to the host's table."""
    lines = block.splitlines()
    at = lines.index("    host-transfer:")
    moved, lines = lines[at + 1], lines[:at] + lines[at + 2 :]
    lines.insert(lines.index("    host:") + 1, moved)
    return "\n".join(lines)


def main() -> None:
    """Fit, report, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    rows = published()
    errors, line = held_out(rows)
    constants = fit(rows)
    print("constants, ns:", {f"{t}.{n}": round(v, 6) for (t, n), v in constants.items()})
    print(f"{'network left out':16s} {'GOP':>7s} {'ms':>8s} {'error':>7s}   a + b GOP")
    for row, e, b in zip(rows, errors, line, strict=True):
        print(f"{row.name:16s} {row.gops:7.2f} {row.ms:8.2f} {e:7.1%}   {b:7.1%}")
    print(f"median {np.median(errors):.1%}, a + b GOP {np.median(line):.1%}")
    print(f"another build: a factor of {scaling_factor():.3g} either way at 90 %")
    if not arguments.dry_run:
        write(constants, errors)


if __name__ == "__main__":
    main()
