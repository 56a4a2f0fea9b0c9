"""Emulated ARM: the same answers as here, int8 against fp32 in instructions, counts that repeat.

    python scripts/bench_emulated.py [networks ... | all] [--cores cortex-a72,cortex-a76] [--samples 16]

Networks are `digits32` and the hand-written ones of scripts/roundtrip.py, trained for seconds; each is
exported by the product as fp32, int8 and mixed (a random policy). Printed:

  answers   outputs under emulation against this machine's onnxruntime on the same inputs. fp32 must be within
            1e-4 of the largest output; integer networks too, which they are if no integer differs. Where one
            does, the first tensor whose integers differ is named, with how many and by how much.
  ratios    fp32 / int8 executed instructions of single layers: as counted by hand beforehand, a whole run
            between float tensors (conversions included), the kernel alone; and by kind over the networks.
  repeats   the same network in two fresh guests; both must be within 0.1 %.

`haswell` among the cores is x86-64 with AVX2 and no VNNI, whose integers differ where pairs of products
saturate: there the network is exported with 7-bit weights as well. Instruction counts, not time. Exits with
1 if a float answer is off or a count does not repeat.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from emulated_layers import LAYERS, layer_models  # noqa: E402
from roundtrip_networks import Case, trained_case  # noqa: E402

from compressors.apply import compress  # noqa: E402
from compressors.network import Network  # noqa: E402
from compressors.space import PolicySpace  # noqa: E402
from hw_profiles.devices.contract import Work  # noqa: E402
from hw_profiles.devices.emulated import EmulatedArm, EmulatedX86, InstructionSample  # noqa: E402
from hw_profiles.errors import DeviceError  # noqa: E402
from hw_profiles.kernel import MATMUL_OPS, KernelKind  # noqa: E402
from hw_profiles.measure import session_options  # noqa: E402
from hw_profiles.onnx_kernels import read_record  # noqa: E402
from hw_profiles.target import load_target  # noqa: E402
from search.abilities import abilities_of  # noqa: E402
from search.export_onnx import export_model  # noqa: E402
from tests.compressors.networks import networks  # noqa: E402

DEFAULT_NETWORKS = ("digits32", "residual", "inverted-residual", "inception", "transformer")
FLOAT_WITHIN, REPEATS_WITHIN = 1e-4, 1e-3
TARGET, HASWELL = "raspberry-pi-4", "haswell"
Emulated = EmulatedArm | EmulatedX86


@dataclass
class Answer:
    """One exported network on one core against this machine. Differences relative to the largest output."""

    network: str
    precision: str
    core: str
    worst: float = 0.0
    equal_samples: int = 0
    samples: int = 0
    same_class: int = 0
    instructions: float = 0.0
    first_difference: str = ""
    error: str = ""
    by_kind: dict[str, float] = field(default_factory=dict)


def opened(name: str) -> Emulated:
    """The emulated core of a name."""
    return EmulatedX86() if name == HASWELL else EmulatedArm(name)


def exported(case: Case, reduced: bool = False) -> dict[str, bytes]:
    """The network as fp32, int8, under a random policy that has both; int8 with 7-bit weights if asked."""
    target = load_target(TARGET)
    abilities = abilities_of(target)
    network = Network.from_module(case.network, case.example, case.calibration)
    space = PolicySpace(network.structure, abilities)
    rng = np.random.default_rng(0)
    policies = {
        "fp32": space.resolve(space.uniform(1.0)),
        "int8": space.resolve(space.uniform(1.0, 8)),
        "mixed": space.resolve(space.decode(rng.random(space.dimension))),
    }
    found = {name: export_model(compress(network, p, abilities.numerics)) for name, p in policies.items()}
    if reduced:
        narrow = replace(abilities.numerics, weight_reserve=1)
        found["int8 w7"] = export_model(compress(network, policies["int8"], narrow))
    return found


def digits_case() -> Case:
    """The default task."""
    from search.tasks.digits import digits32

    task = digits32()
    return Case("digits32", task.network, task.example, task.calibration, task.validation.inputs)


def feed_of(model: bytes, tensors: Sequence[torch.Tensor], samples: int) -> dict[str, NDArray[Any]]:
    """The first validation samples by input name."""
    names = [i.name for i in onnx.load_from_string(model).graph.input]
    return {n: x[:samples].numpy() for n, x in zip(names, tensors, strict=True)}


def here(model: bytes, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """This machine's answers."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, session_options(1), providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feed)))


def kind_name(kind: KernelKind, row: Mapping[str, float]) -> str:
    """Kind of a kernel for tables: dense, pointwise and depthwise convolutions apart."""
    if kind.op.endswith("Conv"):
        if row["groups"] > 1:
            return "depthwise" if row["groups"] == row["cin"] else "grouped"
        return "conv 1x1" if row["kernel_h"] * row["kernel_w"] == 1 else "conv dense"
    names = {
        "QLinearAdd": "add", "Add": "add", "QuantizeLinear": "convert", "DequantizeLinear": "convert",
    }  # fmt: skip
    return "linear" if kind.op in MATMUL_OPS else names.get(kind.op, "other")


def by_kind(sample: InstructionSample) -> dict[str, float]:
    """Instructions by kind of kernel."""
    found: dict[str, float] = defaultdict(float)
    if sample.record is None:
        return {}
    execution = read_record(sample.record)
    for i, kind in enumerate(execution.batch.kinds):
        row = {c: float(execution.batch[c][0, i]) for c in ("groups", "cin", "kernel_h", "kernel_w")}
        found[kind_name(kind, row)] += float(execution.kernel_us[0, i])
    return dict(found)


def answers(case: Case, cores: Mapping[str, Emulated], samples: int) -> Iterator[Answer]:
    """All precisions of one network on all cores."""
    models = exported(case, HASWELL in cores)
    feeds = {p: feed_of(m, case.validation, samples) for p, m in models.items()}
    single = {p: {n: x[:1] for n, x in feed.items()} for p, feed in feeds.items()}
    works = [Work(f"{p} all", m, runs=1, rounds=1, answers=True, inputs=feeds[p]) for p, m in models.items()]
    works += [
        Work(f"{p} one", m, runs=2, rounds=1, kernels=True, inputs=single[p]) for p, m in models.items()
    ]
    for core, device in cores.items():
        found = {s.key: s for s in device.measure(works)}
        for precision, model in models.items():
            row = Answer(case.name, precision, core)
            many, one = found[f"{precision} all"], found[f"{precision} one"]
            row.error = many.error or one.error
            if not row.error:
                assert isinstance(one, InstructionSample)
                row.instructions, row.by_kind = one.best, by_kind(one)
                compare(row, many.outputs or (), here(model, feeds[precision]))
                if row.worst > FLOAT_WITHIN and precision != "fp32":
                    row.first_difference = first_difference(model, feeds[precision], device)
            yield row


def compare(row: Answer, found: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]]) -> None:
    """Put differences of the first output (others count for `worst`) into a row."""
    for a, b in zip(found, expected, strict=True):
        row.worst = max(row.worst, float(np.abs(a - b).max() / max(float(np.abs(b).max()), 1e-12)))
    a, b = found[0].reshape(len(found[0]), -1), expected[0].reshape(len(expected[0]), -1)
    row.samples = len(a)
    scale = max(float(np.abs(b).max()), 1e-12)
    row.equal_samples = int((np.abs(a - b).max(axis=1) <= FLOAT_WITHIN * scale).sum())
    row.same_class = int((a.argmax(axis=1) == b.argmax(axis=1)).sum())


def first_difference(model: bytes, feed: Mapping[str, NDArray[Any]], device: Emulated) -> str:
    """The first integer tensor of a file on which emulation and this machine differ, and what made it."""
    proto = onnx.load_from_string(model)
    made = [(n.output[0], n) for n in proto.graph.node if n.op_type == "QuantizeLinear"]
    known = {o.name for o in proto.graph.output}
    for name, _ in made:
        if name not in known:
            proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    exposed = proto.SerializeToString()
    sample = next(
        iter(device.measure([Work("exposed", exposed, runs=1, rounds=1, answers=True, inputs=feed)]))
    )
    if sample.error or sample.outputs is None:
        return f"(exposed: {sample.error})"
    names = [o.name for o in proto.graph.output]
    theirs = dict(zip(names, sample.outputs, strict=True))
    ours = dict(zip(names, here(exposed, feed), strict=True))
    producer = {o: n for n in proto.graph.node for o in n.output}
    for name, node in made:
        apart = theirs[name].astype(np.int64) - ours[name].astype(np.int64)
        if np.any(apart):
            behind = producer.get(node.input[0])
            what = behind.op_type if behind is not None else "the input"
            share = f"{np.count_nonzero(apart)} of {apart.size} integers"
            return f"{name} (after {what}): {share}, by at most {np.abs(apart).max()}"
    return "no integer differs with all of them exposed: fusion decides"


def layer_ratios(cores: Mapping[str, Emulated]) -> list[dict[str, Any]]:
    """fp32 / int8 instructions of single layers: whole runs with float ends, and the kernels alone."""
    works = [
        Work(f"{layer.name} {p}", m, runs=1, rounds=1, kernels=p != "int8 between floats")
        for layer in LAYERS
        for p, m in layer_models(layer).items()
    ]
    rows: list[dict[str, Any]] = [{"layer": layer.name, "known": layer.known} for layer in LAYERS]
    for core, device in cores.items():
        found = {}
        for sample in device.measure(works):
            if sample.error:
                raise DeviceError(f"{sample.key} on {core}: {sample.error}")
            found[sample.key] = sample.best
            if sample.record is not None:
                found[f"{sample.key} kernel"] = float(read_record(sample.record).kernel_us.max())
        for row in rows:
            name = row["layer"]
            whole = found[f"{name} fp32"] / found[f"{name} int8 between floats"]
            row[core] = (whole, found[f"{name} fp32 kernel"] / found[f"{name} int8 kernel"])
    return rows


def repeats(case: Case, core: str) -> dict[str, float]:
    """Relative difference of counts between two fresh guests, by precision."""
    works = [Work(p, m, runs=4, rounds=2) for p, m in exported(case).items()]
    found = []
    for _ in range(2):
        with opened(core) as device:
            found.append({s.key: s.best for s in device.measure(works)})
    return {p: abs(found[0][p] / found[1][p] - 1.0) for p in found[0]}


def layer_table(rows: Sequence[Mapping[str, Any]], cores: Sequence[str]) -> list[str]:
    """Ratios of single layers, three columns a core."""
    lines = [f"{'fp32 / int8 instructions':26s}" + "".join(f"{c:>30s}" for c in cores)]
    lines.append(f"{'one layer':26s}" + f"{'by hand':>12s}{'whole':>9s}{'kernel':>9s}" * len(cores))
    for row in rows:
        parts = [f"{row['known'].get(c, float('nan')):12.2f}{row[c][0]:9.2f}{row[c][1]:9.2f}" for c in cores]
        lines.append(f"  {row['layer']:24s}" + "".join(parts))
    return lines


def kind_table(rows: Sequence[Answer], cores: Sequence[str]) -> list[str]:
    """fp32 / int8 instructions by kind of kernel, summed over the networks."""
    total: dict[tuple[str, str, str], float] = defaultdict(float)
    for row in rows:
        for kind, count in row.by_kind.items():
            total[row.core, row.precision, kind] += count
    lines = [f"{'kernels of the networks':24s}" + "".join(f"{c:>14s}" for c in cores)]
    for kind in ("conv dense", "conv 1x1", "depthwise", "grouped", "linear", "add"):
        parts = []
        for core in cores:
            a, b = total[core, "fp32", kind], total[core, "int8", kind]
            parts.append(f"{a / b:14.2f}" if a and b else f"{'-':>14s}")
        lines.append(f"  {kind:22s}" + "".join(parts))
    whole = [
        sum(r.instructions for r in rows if (r.core, r.precision) == (c, "fp32"))
        / sum(r.instructions for r in rows if (r.core, r.precision) == (c, "int8"))
        for c in cores
    ]
    lines.append(f"  {'whole networks':22s}" + "".join(f"{w:14.2f}" for w in whole))
    return lines


def table(rows: Sequence[Answer]) -> list[str]:
    """Answers, one line each."""
    lines = [
        f"{'network':20s} {'export':7s} {'core':11s} {'M instr.':>9s} {'worst':>9s} {'same to 1e-4':>12s} "
        f"{'same class':>10s}"
    ]
    for r in rows:
        lines.append(
            f"{r.network:20s} {r.precision:7s} {r.core:11s} {r.instructions / 1e6:9.2f} {r.worst:9.1e} "
            f"{r.equal_samples:6d}/{r.samples:<5d} {r.same_class:5d}/{r.samples:<4d}"
            + (f"  ERROR {r.error}" if r.error else "")
        )
        if r.first_difference:
            lines.append(f"    first: {r.first_difference}")
    return lines


@dataclass
class Results:
    """All that was found; `layers` as `layer_ratios` gives them, `repeats` relative differences."""

    cores: list[str]
    answers: list[Answer] = field(default_factory=list)
    layers: list[dict[str, Any]] = field(default_factory=list)
    repeats: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Every network ran, float answers agree, counts repeat."""
        good = all(not r.error and (r.precision != "fp32" or r.worst <= FLOAT_WITHIN) for r in self.answers)
        return good and all(d <= REPEATS_WITHIN for d in self.repeats.values())

    def text(self) -> str:
        """The tables."""
        lines = [*table(self.answers), "", *layer_table(self.layers, self.cores), ""]
        apart = ", ".join(f"{p} {d:.4%}" for p, d in self.repeats.items())
        lines += [*kind_table(self.answers, self.cores), "", f"counts of two fresh guests apart: {apart}"]
        return "\n".join(lines)


def measured(chosen: Sequence[str], names: list[str], samples: int) -> Results:
    """Everything, network by network; what is known of each is shown at once. Raises DeviceError."""
    found = Results(names)
    cores: dict[str, Emulated] = {}
    began = time.perf_counter()
    try:
        cores |= {name: opened(name) for name in names}
        found.layers = layer_ratios(cores)
        for name in chosen:
            case = digits_case() if name == "digits32" else trained_case(name, *networks()[name]())
            of_network = list(answers(case, cores, samples))
            found.answers += of_network
            print("\n".join(table(of_network)), file=sys.stderr)
            print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            if not found.repeats:
                found.repeats = repeats(case, names[0])
    finally:
        for device in cores.values():
            device.close()
    return found


def main() -> int:
    """Run and print; 0 when float answers agree and counts repeat."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", default=DEFAULT_NETWORKS)
    parser.add_argument("--cores", default="cortex-a72,cortex-a76")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = ["digits32", *networks()]
    chosen = known if given.networks == ["all"] else given.networks
    unknown = [name for name in chosen if name not in known]
    if unknown:
        parser.error(f"unknown network {unknown[0]!r}; there are {', '.join(known)}")
    try:
        found = measured(chosen, given.cores.split(","), given.samples)
    except DeviceError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return problem.exit_code
    print(json.dumps(asdict(found), indent=1) if given.json else found.text())
    return 0 if found.passed else 1


if __name__ == "__main__":
    sys.exit(main())
