#!/usr/bin/env python3
"""Against plain INT8, uniform scaling and random search, measured on this machine in one run.

    scripts/bench_local.py [--tasks digits32:0.35x,mnist5k:0.35x,mnist5k-distorted:0.4x] [--seeds 0,1,2]
                           [--evaluations 60] [--recover 30s]

For every task and seed: our search on target local, then agents `uniform` and `random` with the same
evaluations and recovery, and plain INT8 (onnxruntime's quantize_static, u8 activations, s8 weights per
channel). All files are then timed interleaved in default sessions, minimum of CPU time, one thread, and
scored by onnxruntime on the test data; differences in accuracy are paired, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressors.apply import compress
from hw_profiles.measure import measure_latency
from search import engine
from search.config import make_config
from search.errors import TailorbirdError
from search.export_onnx import export_model
from search.setup import Setup, load_setup


@dataclass(frozen=True)
class Entry:
    """One network of the comparison."""

    name: str
    model: bytes
    scores: NDArray[np.float64]


def answers(setup: Setup, model: bytes) -> NDArray[np.float64]:
    """Per-sample scores on the test data by onnxruntime, (N,)."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    test = setup.task.test or setup.task.validation
    names = [i.name for i in session.get_inputs()]
    step = samples_at_once(model)
    parts = [session.run(None, {n: x[i : i + step].numpy() for n, x in zip(names, test.inputs, strict=True)})
             for i in range(0, len(test), step)]  # fmt: skip
    outputs = tuple(torch.from_numpy(np.concatenate(c)) for c in zip(*parts, strict=True))
    return np.asarray(setup.task.metric.score(outputs, test.targets).double().numpy())


def samples_at_once(model: bytes) -> int:
    """One where ranges are found as the file runs, since they would be those of all samples together."""
    return 1 if b"DynamicQuantizeLinear" in model else 64


def plain_int8(setup: Setup, base: bytes) -> bytes:
    """onnxruntime's own static quantisation of the folded float network, of 7 bits where 8 saturate."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    # It advises pre-processing, which a folded network does not need.
    logging.getLogger().setLevel(logging.ERROR)
    names = setup.space.structure.graph.inputs
    samples = [x[:256] for x in setup.task.calibration]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rows: Iterator[dict[str, Any]] = iter(
                {n: x[i : i + 1].numpy() for n, x in zip(names, samples, strict=True)}
                for i in range(len(samples[0]))
            )

        def get_next(self) -> dict[str, Any] | None:
            return next(self.rows, None)

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(base)
        quantize_static(source, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                        reduce_range=bool(setup.scorer.numerics.weight_reserve))  # fmt: skip
        return target.read_bytes()


def found_by(
    agent: str, task: str, limit: str, seed: int, args: argparse.Namespace, folder: Path
) -> bytes | None:
    """The file an agent's run delivers; None when it found nothing that holds the budget."""
    config = make_config({"target": "local", "task": task, "max_latency": limit, "seed": seed, "agent": agent,
                          "evaluations": args.evaluations, "recover": args.recover,
                          "out": str(folder / f"{agent}-{seed}")})  # fmt: skip
    try:
        result = engine.run(config)
    except TailorbirdError as problem:
        print(f"  {agent}: {problem}")
        return None
    for e in result.results.get("events") or []:
        print(f"  {agent}: {e['text']}")
    seconds = (result.results.get("timings") or {}).get("total", 0.0)
    print(f"  {agent}: {seconds:.0f} s", flush=True)
    return (result.folder / "model.onnx").read_bytes()


def compare(task: str, limit: str, seed: int, args: argparse.Namespace) -> bool:
    """One row of the comparison; whether the budget held and plain INT8 did not win on both axes."""
    print(f"\n{task}, budget {limit}, seed {seed}", flush=True)
    setup = load_setup(make_config({"target": "local", "task": task, "seed": seed}))
    base = export_model(compress(setup.scorer.network, setup.base_policy, setup.scorer.numerics))
    models = {"uncompressed": base, "plain INT8": plain_int8(setup, base)}
    with tempfile.TemporaryDirectory() as name:
        for agent in ("uniform", "random", args.agent):
            model = found_by(agent, task, limit, seed, args, Path(name))
            if model is not None:
                models["ours" if agent == args.agent else f"{agent} + INT8"] = model
    entries = [Entry(n, m, answers(setup, m)) for n, m in models.items()]
    feed = {
        n: x[:1].numpy() for n, x in zip(setup.space.structure.graph.inputs, setup.task.example, strict=True)
    }
    times = [
        m.latency_ms for m in measure_latency([e.model for e in entries], [feed] * len(entries), repeats=400)
    ]
    return show(entries, times, float(limit.removesuffix("x")))


def show(entries: list[Entry], times: list[float], factor: float) -> bool:
    """The table of one comparison."""
    ours = next((i for i, e in enumerate(entries) if e.name == "ours"), None)
    print(f"  {'network':18}{'measured ms':>12}{'vs base':>9}{'test':>9}   ours minus this, 95 % interval")
    for entry, ms in zip(entries, times, strict=True):
        text = ""
        if ours is not None and entry.name != "ours":
            difference = 100 * (entries[ours].scores - entry.scores)
            half = 1.96 * float(difference.std(ddof=1)) / np.sqrt(len(difference))
            mean = float(difference.mean())
            text = f"{mean:+.2f} ± {half:.2f} points{'  (tie)' if abs(mean) <= half else ''}"
        print(f"  {entry.name:18}{ms:12.4f}{ms / times[0]:8.3f}x{100 * entry.scores.mean():8.2f} %   {text}")
    if ours is None:
        return False
    held = times[ours] <= 1.05 * factor * times[0]
    int8 = next(i for i, e in enumerate(entries) if e.name == "plain INT8")
    beaten = times[int8] < times[ours] and entries[int8].scores.mean() > entries[ours].scores.mean()
    print(f"  budget {factor * times[0]:.4f} ms: measured {times[ours] / (factor * times[0]):.3f} of it"
          f"{'' if held else '  MISSED'}{'  LOSES TO PLAIN INT8' if beaten else ''}", flush=True)  # fmt: skip
    return held and not beaten


def main() -> int:
    """Compare on every task and seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", default="digits32:0.35x,mnist5k:0.35x,mnist5k-distorted:0.4x")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--evaluations", type=int, default=60)
    parser.add_argument("--recover", default="30s")
    parser.add_argument("--agent", default="joint")
    args = parser.parse_args()
    good = True
    for spec in args.tasks.split(","):
        task, _, limit = spec.partition(":")
        for seed in map(int, args.seeds.split(",")):
            good &= compare(task, limit, seed, args)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
