#!/usr/bin/env python3
"""Do instructions tell how much faster 8 bits are? ncnn's kernels counted, against published times.

    scripts/bench_instructions.py --wheel FOLDER [--core cortex-a72] [--networks squeezenet,mobilenet,...]

Counts, under an emulated core, the convolutions of ncnn's benchmark networks in fp32 and in int8, as ncnn
runs them. The ratio of their sums is set against the published fp32 / int8 times on boards with that core,
one thread, next to our prior's ratio with the network left out. FOLDER holds ncnn for arm64, from

    pip install --no-deps --target FOLDER --only-binary=:all: --python-version 3.11 --implementation cp \\
        --platform manylinux_2_17_aarch64 --platform manylinux2014_aarch64 ncnn

Takes minutes. Set-up of the emulator: scripts/arm_sysroot.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from hw_profiles.boards import all_boards, left_out_networks  # noqa: E402
from hw_profiles.devices.emulation import COUNTER_BYTES, arm_machine  # noqa: E402
from hw_profiles.devices.sysroot import Sysroot, core_named  # noqa: E402
from hw_profiles.kernel import Array  # noqa: E402
from hw_profiles.published import read_csv  # noqa: E402

#: Boards with the core.
BOARDS = {
    "cortex-a72": ("Raspberry Pi 4 Model B", "Rockchip RK3399"),
    "cortex-a53": ("Raspberry Pi 3 Model B+",),
}
NETWORKS = "squeezenet,mobilenet,resnet18,googlenet"
#: (cin, cout, side in, side out, kernel, stride, groups)
Shape = tuple[int, int, int, int, int, int, int]


def convolutions(network: str) -> Counter[Shape]:
    """The convolutions of a network of ncnn's benchmark, and how often each comes."""
    found: Counter[Shape] = Counter()
    for r in read_csv("ncnn_layers.csv.gz"):
        if r["model"] == network and r["type"] in ("Convolution", "ConvolutionDepthWise"):
            cin, height, _ = (int(float(n)) for n in r["in_shape"].split("x"))
            cout, rows, _ = (int(float(n)) for n in r["out_shape"].split("x"))
            kernel = int(float(r["kernel"].split("x")[0]))
            found[cin, cout, height, rows, kernel, int(float(r["stride"])), int(float(r["groups"] or 1))] += 1
    return found


def job(key: str, shape: Shape, integer: bool) -> dict[str, object]:
    """One layer as ncnn's text; integers come in and go out as such, as inside an integer network."""
    cin, cout, side, rows, kernel, stride, groups = shape
    pad = max(0, -(-((rows - 1) * stride + kernel - side) // 2))
    kind = "Convolution" if groups == 1 else "ConvolutionDepthWise"
    terms = [f"0={cout}", f"1={kernel}", f"3={stride}", f"4={pad}", "5=1", "9=1"]
    terms.append(f"6={cin * cout * kernel**2 // groups}")
    terms += [f"7={groups}"] if groups > 1 else []
    terms += [f"8={102 if groups == 1 else 101}"] if integer else []
    text = f"7767517\n2 2\nInput data 0 1 data\n{kind} layer 1 1 data out {' '.join(terms)}\n"
    return {"key": key, "param": text, "shape": [cin, side, side], "integer": integer}


def counted(core: str, wheel: Path, jobs: list[dict[str, object]]) -> dict[str, int]:
    """Instructions by key."""
    machine = arm_machine(core_named(core), Sysroot.find())
    with tempfile.TemporaryDirectory() as scratch:
        counts, asked, told = (Path(scratch, name) for name in ("counts", "jobs.json", "told.jsonl"))
        counts.write_bytes(b"\0" * COUNTER_BYTES)
        asked.write_text(json.dumps(jobs), encoding="utf-8")
        command = [part.replace("{counts}", str(counts)) for part in machine.command]
        environment = {**dict(machine.environment), "PYTHONPATH": f"/opt/site:{wheel.resolve()}"}
        guest = str(ROOT / "scripts" / "ncnn_guest.py")
        subprocess.run(
            [*command, guest, *map(str, (counts, asked, told))], env=environment, cwd=scratch, check=True
        )
        rows = [json.loads(line) for line in told.read_text(encoding="utf-8").splitlines()]
    return {row["key"]: row["instructions"] for row in rows}


def ratios(core: str, wheel: Path, names: list[str]) -> dict[str, float]:
    """fp32 / int8 instructions of networks' convolutions."""
    networks = {name: convolutions(name) for name in names}
    shapes = sorted(set().union(*networks.values()))
    jobs = [job(f"{i}{mode}", s, mode == "i") for i, s in enumerate(shapes) for mode in "fi"]
    print(f"{len(shapes)} convolutions of {len(names)} networks on an emulated {core}", flush=True)
    found = counted(core, wheel, jobs)
    number = {s: i for i, s in enumerate(shapes)}
    totals = {
        name: [sum(times * found[f"{number[s]}{mode}"] for s, times in layers.items()) for mode in "fi"]
        for name, layers in networks.items()
    }
    return {name: floats / integers for name, (floats, integers) in totals.items()}


def published(core: str) -> Iterator[tuple[str, str, float, float]]:
    """(board, network, fp32 / int8 measured, predicted with the network left out), one thread."""
    boards = all_boards()
    floats, integers = left_out_networks(boards)
    for i, board in enumerate(boards.integers):
        if board.device not in BOARDS[core] or board.threads != 1 or board.cores == "little":
            continue
        plain = boards.floats[board.sibling]
        for k, name in enumerate(boards.networks):
            measured = float(plain.ms[k] / board.ms[k])
            if np.isfinite(measured):
                yield board.device, name, measured, float(np.exp(floats[board.sibling][k] - integers[i][k]))


def main() -> int:
    """Print the ratios and how far each predicts the measured one."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--core", choices=sorted(BOARDS), default="cortex-a72")
    parser.add_argument("--networks", default=NETWORKS)
    given = parser.parse_args()
    counts = ratios(given.core, given.wheel, given.networks.split(","))
    rows = [row for row in published(given.core) if row[1] in counts]
    print(f"{'fp32 / int8':28}{'network':14}{'measured':>9}{'prior':>7}{'instructions':>14}")
    for board, name, measured, prior in rows:
        print(f"{board:28}{name:14}{measured:9.2f}{prior:7.2f}{counts[name]:14.2f}")
    logs = np.log([[measured, prior, counts[name]] for _, name, measured, prior in rows])
    _errors("prior", logs[:, 1] - logs[:, 0])
    _errors("instructions", logs[:, 2] - logs[:, 0])
    _errors("both, geometric mean", logs[:, 1:].mean(axis=1) - logs[:, 0])
    return 0


def _errors(name: str, log_errors: Array) -> None:
    off = np.abs(log_errors)
    print(f"{name:28}median error {np.median(off):.1%}, mean {off.mean():.1%}, bias {log_errors.mean():+.1%}")


if __name__ == "__main__":
    sys.exit(main())
