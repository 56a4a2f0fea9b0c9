"""Published measurements kept under data/: rows of boards, and their networks as kernels."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from hw_profiles.costs.arm import COUNTS, counts_of, overhead_count
from hw_profiles.kernel import Array, KernelBatch, KernelKind, make_batch
from hw_profiles.target import DATA_FOLDER

_OPS = {
    "Pooling": "MaxPool", "Eltwise": "Add", "BinaryOp": "Add", "Concat": "Concat", "Slice": "Concat",
    "Crop": "Concat", "Padding": "Concat", "ShuffleChannel": "Transpose", "Permute": "Transpose",
    "ReLU": "Relu", "HardSwish": "HardSwish", "HardSigmoid": "Relu", "BatchNorm": "Relu", "Interp": "Resize",
    "Swish": "Sigmoid", "Sigmoid": "Sigmoid", "GELU": "Sigmoid", "Softmax": "Softmax", "LRN": "Softmax",
    "LayerNorm": "LayerNormalization", "Reduction": "ReduceMean",
}  # fmt: skip
_CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise", "DeconvolutionDepthWise")
_DENSE = ("InnerProduct", "Gemm", "MultiHeadAttention")
#: Classes of the published detectors (VOC with background).
_DETECTED_CLASSES = 21.0
NAMES = tuple(COUNTS)


@dataclass(frozen=True)
class Row:
    """One published latency of a whole network, batch 1. `cores` is "all", "big" or "little"."""

    device: str
    chip: str
    run: str
    threads: int
    cores: str
    precision: str
    model: str
    ms: float

    @property
    def setting(self) -> str:
        """What was held the same between rows: device, threads, cores, precision and run."""
        return f"{self.device}|{self.threads}|{self.cores}|{self.precision}|{self.run}"

    @property
    def is_paddle(self) -> bool:
        """Whether Paddle-Lite was measured rather than ncnn."""
        return self.run == "paddle"


def read_csv(name: str) -> Iterator[dict[str, str]]:
    """Records of a file under data/; its first line says where it comes from."""
    path: Path = DATA_FOLDER / name
    with (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8") as file
    ):
        file.readline()
        yield from csv.DictReader(file)


@lru_cache(maxsize=1)
def ncnn_rows() -> tuple[Row, ...]:
    """ncnn on 64-bit Arm CPUs."""
    return tuple(
        Row(r["device"], r["chip"], r["run"], int(r["threads"]), r["cores"] or "all", r["precision"],
            r["model"],
            float(r["min_ms"]))
        for r in read_csv("ncnn_arm.csv.gz")
    )  # fmt: skip


@lru_cache(maxsize=1)
def paddle_rows() -> tuple[Row, ...]:
    """Paddle-Lite on phones, one thread on a big core, armv8."""
    return tuple(
        Row(r["device"], r["chip"], "paddle", 1, "big", r["precision"], r["model"], float(r["ms"]))
        for r in read_csv("paddle_arm.csv")
    )


def _size(text: str) -> tuple[float, float, float]:
    parts = [float(p) for p in text.split("x")] if text else [1.0]
    a, b, c = (*parts, 1.0, 1.0, 1.0)[:3]
    return a, b, c


def _layer(record: dict[str, str]) -> tuple[KernelKind, dict[str, float]] | None:
    """A layer of a published network as a kernel, or None where it does nothing at run time."""
    kind = record["type"]
    cin, in_h, in_w = _size(record["in_shape"])
    cout, out_h, out_w = _size(record["out_shape"])
    row = {"in_elements": float(record["in_elems"] or 0), "out_elements": float(record["out_elems"] or 0)}
    row |= {"cin": cin, "cout": cout, "in_h": in_h, "in_w": in_w, "out_h": out_h, "out_w": out_w}
    row |= dict.fromkeys(("kernel_h", "kernel_w", "stride_h", "stride_w", "groups", "batch"), 1.0)
    row["weight_elements"] = 0.0
    if kind in _CONVOLUTIONS:
        window = [float(k) for k in record["kernel"].split("x")]
        row |= {"kernel_h": window[-1], "kernel_w": window[0], "groups": float(record["groups"] or 1)}
        row |= {"stride_h": float(record["stride"]), "stride_w": float(record["stride"])}
        row["weight_elements"] = float(record["weights"])
        return KernelKind("Conv", weight_bearing=True), row
    if kind in _DENSE:
        rows = max(1.0, round(float(record["macs"]) / max(float(record["weights"]), 1.0)))
        row |= {"cin": float(record["weights"]) / float(record["cout"]), "cout": float(record["cout"])}
        row |= {"out_h": rows, "out_w": 1.0, "weight_elements": float(record["weights"])}
        return KernelKind("Gemm", weight_bearing=True), row
    return (KernelKind(_OPS[kind]), row) if kind in _OPS else None


@dataclass(frozen=True)
class Network:
    """A published network: kernels (1, K), counts (len(NAMES),) with Winograd, and the six plain features."""

    name: str
    batch: KernelBatch
    counts: Array
    six: Array
    macs: float


@lru_cache(maxsize=1)
def ncnn_networks() -> dict[str, Network]:
    """The networks of ncnn's benchmark, by name."""
    groups: dict[str, list[dict[str, str]]] = {}
    for record in read_csv("ncnn_layers.csv.gz"):
        groups.setdefault(record["model"], []).append(record)
    return {name: _network(name, records) for name, records in groups.items()}


def _network(name: str, records: list[dict[str, str]]) -> Network:
    layers = [layer for r in records if (layer := _layer(r)) is not None]
    batch = make_batch([k for k, _ in layers], {c: [row[c] for _, row in layers] for c in layers[0][1]})
    counts = network_counts(batch, winograd=True)[0]
    counts[NAMES.index("detection")] = _comparisons(records)
    return Network(name, batch, counts, six_features(batch), float(batch.macs().sum()))


def _comparisons(records: list[dict[str, str]]) -> float:
    """Comparisons of sorting all boxes of all classes, where a network ends in a detection layer."""
    if all(r["type"] != "DetectionOutput" for r in records):
        return 0.0
    boxes = sum(_size(r["out_shape"])[0] for r in records if r["type"] == "PriorBox") / 4.0
    return float(_DETECTED_CLASSES * boxes * np.log2(max(boxes, 2.0)))


def network_counts(batch: KernelBatch, winograd: bool) -> Array:
    """(P, len(NAMES)) counts of whole networks by the Arm model, in the order of NAMES."""
    out = np.zeros((len(batch), len(NAMES)))
    for (form, _), (index, counts) in counts_of(batch, winograd).items():
        for name, count in counts.items():
            out[:, NAMES.index(name)] += np.broadcast_to(count, (len(batch), len(index))).sum(axis=1)
        out[:, NAMES.index("overhead")] += overhead_count(form) * len(index)
    return out


def six_features(batch: KernelBatch) -> Array:
    """(6,) the plain additive baseline: MACs of 1x1, 3x3 stride 1, grouped, other; elements; kernels."""
    macs, window = batch.macs()[0], (batch["kernel_h"] * batch["kernel_w"])[0]
    conv = np.array([k.op == "Conv" for k in batch.kinds])
    thin = conv & (batch["groups"][0] > 1.0)
    point = conv & ~thin & (window == 1.0)
    square = conv & ~thin & (window == 9.0) & (batch["stride_h"][0] == 1.0)
    parts = [float(macs[m].sum()) for m in (point, square, thin, ~(point | square | thin))]
    return np.array([*parts, float(batch["out_elements"].sum()), float(len(batch.kinds))])
