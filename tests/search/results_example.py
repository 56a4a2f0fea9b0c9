"""Made-up results for the tests of console and report. The numbers are drawn, nothing was searched."""

from __future__ import annotations

import random
from typing import Any

from search.results import Change, Explained, KernelTime, LayerRow, Number, Point, Results, Score, Step


def predicted(value: float, spread: float = 1.45) -> Number:
    return {"value": value, "low": value / spread, "high": value * spread, "source": "predicted"}


def exact(value: float) -> Number:
    return {"value": value, "source": "exact"}


def score(value: float, samples: int = 359) -> Score:
    return {"value": value, "samples": samples, "low": value - 0.012, "high": min(1.0, value + 0.009)}


def costs(latency_ms: float, size_bytes: float, macs: float) -> dict[str, Number]:
    return {"latency_ms": predicted(latency_ms), "size_bytes": exact(size_bytes), "macs": exact(macs)}


def name_of(i: int) -> str:
    if i in (0, 20):
        return "conv1" if i == 0 else "fc"
    return f"layer{1 + (i - 1) // 7}.{(i - 1) % 7 // 2}.conv{1 + i % 2}"


def layers(rng: random.Random) -> list[LayerRow]:
    rows: list[LayerRow] = []
    for i in range(21):
        width = 16 * 2 ** max(0, (i - 1) // 7)
        kept = rng.choice([4, 6, 7, 8]) * width // 8
        bits = 32 if i in (0, 5) else rng.choice([8, 8, 4])
        factored = i in (9, 15, 17)
        macs = 640.0 if i == 20 else 147_456.0 if i == 0 else 2_359_296.0
        rows.append(
            {
                "name": name_of(i),
                "op": "linear" if i == 20 else "conv",
                "shape": f"{width}→{width} 3x3",
                "macs": macs,
                "macs_after": 0.0 if i == 12 else macs * kept / width * (0.45 if factored else 0.8),
                "channels": width,
                "channels_after": 0 if i == 12 else kept,
                "weight_bits": bits,
                "act_bits": 32 if bits == 32 else 8,
                "removed": i == 12,
                "factor": f"tucker2 {kept // 2},{kept // 2}" if factored else None,
                "rank_ratio": 0.5 if factored else None,
                "latency_ms": 0.31,
                "latency_after_ms": 0.0 if i == 12 else 0.31 * kept / width / 1.6,
            }
        )
    return rows


def kernels(scale: float, integer: bool) -> list[KernelTime]:
    main = ("QLinearConv", "w8a8") if integer else ("FusedConv", "fp32")
    found: list[KernelTime] = [
        {
            "kernel": main[0],
            "precision": main[1],
            "layer": f"layer{i}",
            "latency_ms": scale * (0.2 + 0.01 * i),
        }
        for i in range(20)
    ]
    found.append({"kernel": "Add", "precision": main[1], "layer": None, "latency_ms": 0.2 * scale})
    if integer:
        found.append({"kernel": "QuantizeLinear", "precision": "u8", "layer": None, "latency_ms": 0.05})
        found.append({"kernel": "FusedConv", "precision": "fp32", "layer": "conv1", "latency_ms": 0.34})
    found.append({"kernel": "Gemm", "precision": "fp32", "layer": "fc", "latency_ms": 0.02})
    found.append({"kernel": "ReorderOutput", "precision": "fp32", "layer": None, "latency_ms": 0.03 * scale})
    return found


def steps(rng: random.Random) -> list[Step]:
    found: list[Step] = []
    for number in range(1, 201):
        latency = rng.uniform(1.3, 4.2)
        top = 0.986 - 0.09 * max(0.0, 2.6 - latency) ** 2 * rng.uniform(0.2, 0.8)
        value = top - rng.expovariate(60.0 + number) if rng.random() > 0.08 else rng.uniform(0.1, 0.8)
        found.append(
            {"number": number, "accuracy": value, "latency_ms": latency, "feasible": latency <= 3.16}
        )
    found[17]["accuracy"] = None
    return found


def explanation() -> list[Explained]:
    """A few choices of every kind."""
    wide, wide2 = "layer1.0.conv1", "layer2.0.conv2"
    return [
        _choice("act_bits", "x", "", "8 bits", 0.041, 4.9e-8, None, (0.041, -4.9e-8)),
        _choice("keep", "conv1", "conv1", "8 of 16 channels", 0.21, 0.003, (-0.08, 0.011), (0.1, -0.0021)),
        _choice("removed", "layer1.0", wide, "removed", 0.35, 0.0009, None, (0.35, -0.0009)),
        _choice("rank", wide, wide, "tucker2 at 0.25", 0.051, 0.00023, (-0.008, 0.0011), (0.01, None)),
        _choice("act_bits", wide, wide, "8 bits", 0.15, None, None, (0.15, None)),
        _choice("keep", wide2, wide2, "32 of 32 channels", 0.0, 0.0, (-0.1, 0.03), None),
        _choice("fixed", "fc", "fc", "as it is", 0.0, 0.0, None, None),
    ]


def _choice(
    kind: str, subject: str, layer: str, value: str, ms: float, risk: float | None,
    down: tuple[float, float | None] | None, up: tuple[float, float | None] | None,
) -> Explained:  # fmt: skip
    steps = [None if s is None else Change(latency_ms=s[0], risk=s[1]) for s in (down, up)]
    return Explained(
        name=f"{kind}:{subject}", kind=kind, subject=subject, layer=layer, value=value, latency_ms=ms,
        risk=risk, step_down=steps[0], step_up=steps[1], why=f"because of {kind} <{subject}>",
    )  # fmt: skip


def points(rng: random.Random) -> list[Point]:
    raw = [(0.982, 3.02, 212, 21.6), (0.980, 2.61, 190, 18.0), (0.975, 2.2, 151, 14.9)]
    raw += [(0.961, 1.71, 118, 10.2), (0.93, 1.38, 92, 7.7)]
    found: list[Point] = []
    for number, (accuracy, latency, kilobytes, mmacs) in enumerate(raw, 1):
        found.append(
            {
                "name": f"point {number}",
                "number": number,
                "digest": f"{number:x}" * 16,
                "picked": number == 1,
                "complete": True,
                "costs": costs(latency, kilobytes * 1e3, mmacs * 1e6),
                "validation": score(accuracy),
                "drop": 100 * (0.986 - accuracy),
                "feasible": True,
            }
        )
    found[0]["test"], found[0]["searched"] = score(0.978, 360), score(0.974)
    found[0]["layers"], found[0]["kernels"] = layers(rng), kernels(0.38, integer=True)
    return found


def example(**changes: Any) -> Results:
    """A digits32 run on a raspberry-pi-4, the same at every call; `changes` replace top-level keys."""
    rng = random.Random(0)
    document: dict[str, Any] = {
        "schema_version": 1,
        "run": {
            "id": "20261122-203114-raspberry-pi-4",
            "created": "2026-11-22T20:31:14",
            "version": "0.1.0",
            "seed": 0,
            "state": "complete",
            "command": ["search", "--target=raspberry-pi", "--skip", "head.*"],
            "versions": {"onnxruntime": "1.32.0", "torch": "2.13.0"},
            "cpu": "AMD EPYC",
        },
        "task": {
            "name": "digits32",
            "network": "resnet-20",
            "parameters": 271_000,
            "macs": 40.8e6,
            "metric": "top-1",
            "metric_unit": "%",
            "higher_is_better": True,
            "samples": {"calibration": 512, "validation": 359, "test": 360, "train": 1078},
        },
        "target": {
            "name": "raspberry-pi-4",
            "title": "4x Cortex-A72 1.8 GHz, onnxruntime",
            "threads": 4,
            "batch": 1,
            "backing": "prior from 50 published ncnn measurements, runtime factor unknown",
            "confidence": 0.9,
            "validated": True,
        },
        "budget": {"objective": "accuracy", "limits": {"latency_ms": {"limit": 3.16, "written": "0.5x"}}},
        "search": {
            "agent": "joint",
            "summary": "surrogate-assisted local search along the budget",
            "layers": 21,
            "dimension": 60,
            "log10_policies": 34.2,
            "planned": 200,
            "evaluated": 200,
            "feasible": 96,
            "rejected": 1240,
            "stopped": 31,
        },
        "base": {
            "name": "uncompressed",
            "costs": costs(6.31, 1_094_000, 40.8e6),
            "validation": score(0.986),
            "test": score(0.983, 360),
            "drop": 0.0,
        },
        "plain_int8": {
            "name": "plain INT8",
            "costs": costs(3.9, 301_000, 40.8e6),
            "validation": score(0.985),
            "drop": 0.1,
            "feasible": False,
        },
        "uniform": [
            {
                "name": f"uniform {keep}",
                "costs": costs(6.31 * keep**1.2, 1_094_000 * keep, 40.8e6 * keep**2),
                "validation": score(0.986 - 0.06 * (1 - keep) ** 2),
                "drop": 6 * (1 - keep) ** 2,
                "feasible": keep <= 0.5,
            }
            for keep in (0.75, 0.5, 0.25)
        ],
        "points": points(rng),
        "picked": 1,
        "kernels": kernels(1.0, integer=False),
        "verification": {"passed": True, "agree": 359, "samples": 359, "runtime": "onnxruntime 1.32.0"},
        "events": [
            {"kind": "kernel", "text": "layer3.2.conv1 runs as FusedConv, priced as QLinearConv", "point": 1}
        ],
        "notes": [{"subject": "conv1", "reason": "first layer: <3 input channels>"}],
        "explanation": explanation(),
        "steps": steps(rng),
        "timings": {"search": 62.0, "recovery": 45.0, "export": 3.0},
        "files": ["model.onnx", "policy.json", "report.html"],
    }
    document.update(changes)
    return document  # type: ignore[return-value]


def measured_example() -> Results:
    """The same, measured on the device."""
    results = example()
    results["base"]["measured"] = {"latency_ms": {"value": 6.0, "source": "measured"}}
    for p in results["points"]:
        value = 0.9 * p["costs"]["latency_ms"]["value"] + 0.05 * p["number"]
        p["measured"] = {"latency_ms": {"value": value, "source": "measured"}}
    return results
