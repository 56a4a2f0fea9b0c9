"""Fit the Arm boards' targets to all published ncnn and Paddle-Lite rows of 64-bit Arm CPUs at once.

    .venv/bin/python scripts/fit_boards.py             # held-out errors; constants of the targets rewritten
    .venv/bin/python scripts/fit_boards.py --dry-run   # errors only
    .venv/bin/python scripts/fit_boards.py --ncnn      # and the boards as ncnn targets, NAME.ncnn.yaml

Rows: some ninety settings of forty boards (hw_profiles/boards.py); a network is left out on all of them, at
every precision, when it is predicted. A target runs onnxruntime, ncnn was measured: the constants are the
same, except that onnxruntime has no Winograd, and the interval takes in that two frameworks on one board
differ by about 1.5 times. As ncnn targets the same boards have no such factor.
Boards without rows of their own take a relative's constants scaled by data sheets and stay unvalidated.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hw_profiles.boards import ARITHMETIC, Board, BoardFit, Boards, all_boards, fit_boards, left_out_networks
from hw_profiles.fitting import Key, constants_yaml, log_sigma, replace_block
from hw_profiles.kernel import Array
from hw_profiles.published import NAMES
from hw_profiles.target import TARGETS_FOLDER, forget_targets, load_target

COMMAND = "python scripts/fit_boards.py"
#: Two frameworks on one board differ by about this factor; ncnn was measured, onnxruntime runs.
RUNTIME_FACTOR = 1.5
_DIFFER = "two frameworks on one board differ by about 1.5x"
_NOT_IN_TARGETS = ("detection",)
#: ncnn runs half precision where the core has it; onnxruntime's float kernels are fp32. Constants of float
#: kernels but for launches take this factor: Paddle-Lite measured both on Cortex-A76 and A77 phones.
_HALF = "Paddle-Lite, fp32 over fp16 on Cortex-A76 and A77 phones"


@dataclass(frozen=True)
class Plan:
    """How a target's constants come about: the device of the rows, cores, and a speed relative to it.

    `slower` multiplies all constants, with its reason; `held_back` widens the interval (a factor either
    way at 90 %) of a board without rows. `half` tells that the float rows are fp16 ones.
    """

    target: str
    device: str
    cores: str = "all"
    half: bool = False
    slower: float = 1.0
    reason: str = ""
    held_back: float = 1.0
    float_precision: str = ""


PLANS = (
    Plan("raspberry-pi-3", "Raspberry Pi 3 Model B+"),
    Plan("raspberry-pi-4", "Raspberry Pi 4 Model B"),
    Plan("raspberry-pi-5", "Raspberry Pi 5", half=True),
    Plan("raspberry-pi-zero-2-w", "Raspberry Pi Zero 2 W"),
    Plan("pixel-3", "Xiaomi MI8", cores="big", float_precision="fp32"),
    Plan("rk3588", "Raspberry Pi 5", half=True, slower=2.4 / 2.35,
         reason="clocks of the same Cortex-A76: Raspberry Pi 5 2.4 GHz, RK3588 2.35 GHz", held_back=1.8),
)  # fmt: skip


def settings(boards: Boards, plan: Plan, precision: str) -> list[Board]:
    """The settings of a plan's device, "float" or "int8", by threads."""
    chosen = boards.integers if precision == "int8" else boards.floats
    found = [b for b in chosen if b.device == plan.device and b.cores == plan.cores]
    if precision != "int8" and plan.float_precision:
        found = [b for b in found if b.precision == plan.float_precision]
    return sorted(found, key=lambda b: b.threads)


def half_factor(boards: Boards) -> float:
    """fp32 over fp16 time where Paddle-Lite measured both, median over phones and networks."""
    halves = {b.device: b.ms for b in boards.floats if b.key.endswith("paddle") and b.precision == "fp16"}
    singles = {b.device: b.ms for b in boards.floats if b.key.endswith("paddle") and b.precision == "fp32"}
    dot = [
        d for d in halves if d in singles and "MI8" not in d
    ]  # the MI8's Cortex-A75 is the generation before
    return float(np.nanmedian(np.concatenate([singles[d] / halves[d] for d in dot])))


def thread_scaling(fitted: BoardFit, precision: str) -> Array:
    """(K,) constants at four threads over those at one, median over all boards that have both."""
    chosen = fitted.boards.integers if precision == "int8" else fitted.boards.floats
    one = {(b.device, b.cores, b.precision): b for b in chosen if b.threads == 1}
    pairs = [
        (one[key], b) for b in chosen if b.threads == 4 and (key := (b.device, b.cores, b.precision)) in one
    ]
    ratios = [np.log(fitted.constants(b) / fitted.constants(a)) for a, b in pairs]
    return np.asarray(np.exp(np.median(np.stack(ratios), axis=0)))


def tables(fitted: BoardFit, plan: Plan, runtime: str) -> dict[Key, float]:
    """Constants of a target in nanoseconds per count, tables by precision and threads."""
    out: dict[Key, float] = {}
    for precision in ("float", "int8"):
        found = {
            b.threads: fitted.constants(b) * plan.slower for b in settings(fitted.boards, plan, precision)
        }
        if 1 in found and 4 not in found:
            found[4] = found[1] * thread_scaling(fitted, precision)
        for threads, constants in found.items():
            values = constants * 1e6
            if precision == "float" and plan.half and runtime == "onnxruntime":
                values = np.where(
                    np.isin(NAMES, ("overhead", "groups")), values, values * half_factor(fitted.boards)
                )
            out |= {
                (f"{precision}@{threads}", n): float(v)
                for n, v in zip(NAMES, values, strict=True)
                if n not in _NOT_IN_TARGETS
            }
    return out


def errors_of(boards: Boards, plan: Plan, held_out: tuple[Array, Array]) -> Array:
    """|log errors| of held-out networks on a plan's device, all precisions and threads."""
    every = []
    for chosen, predicted in zip((boards.floats, boards.integers), held_out, strict=True):
        names = {b.key for p in ("float", "int8") for b in settings(boards, plan, p)}
        every += [np.abs(predicted[i] - np.log(b.ms)) for i, b in enumerate(chosen) if b.key in names]
    joined = np.concatenate(every)
    return np.asarray(joined[np.isfinite(joined)])


def write(fitted: BoardFit, plan: Plan, errors: Array, runtime: str) -> None:
    """Constants, interval, validation and backing of one target file."""
    path = TARGETS_FOLDER / (
        f"{plan.target}.yaml" if runtime == "onnxruntime" else f"{plan.target}.ncnn.yaml"
    )
    framework = "Paddle-Lite" if plan.device.startswith("Xiaomi") else "ncnn"
    other = runtime != framework
    factor = np.exp(np.hypot(np.log(RUNTIME_FACTOR if other else 1.0), np.log(plan.held_back)))
    reason = (
        f"{_DIFFER}; {framework} was measured, {runtime} runs" if other else "the runtime that was measured"
    )
    if plan.held_back > 1.0:
        reason += f"; no rows of this board, a relative's: x{plan.held_back:g}"
    source = f"{framework} rows of {plan.device}, fitted with all boards by scripts/fit_boards.py"
    source += f"; x{plan.slower:.3g}, {plan.reason}" if plan.slower != 1.0 else ""
    floats = source
    if plan.half and runtime == "onnxruntime":
        floats += f"; x{half_factor(fitted.boards):.3g}, {_HALF}"
    sources = {"": source} | {f"float@{t}": floats for t in (1, 4)}
    text = [
        "  interval:",
        f'    log_sigma: {{value: {log_sigma(errors):.4g}, source: "held-out networks, {COMMAND}"}}',
        f'    runtime_factor: {{value: {factor:.3g}, source: "{reason}"}}',
        constants_yaml(tables(fitted, plan, runtime), sources),
    ]
    replace_block(path, "fitted", "\n".join(text), indent="  ")
    replace_block(path, "validation", "\n".join(_validation(plan, framework, errors, other)))


def _validation(plan: Plan, framework: str, errors: Array, other: bool) -> list[str]:
    median = float(np.median(errors))
    unknown = "runtime factor unknown" if other else "of this runtime"
    if plan.held_back > 1.0:
        backing = (
            f"a relative's {len(errors)} published {framework} measurements ({plan.device}, held-out median "
        )
        return [
            "validation: {status: unvalidated}",
            f'backing: "{backing}error {median:.1%}), scaled by clock"',
        ]
    return [
        "validation:",
        "  status: validated",
        f"  median_error: {median:.3f}",
        f"  worst_error: {float(errors.max()):.3f}",
        f'  held_out: "{len(errors)} {framework} rows of {plan.device}, a network left out on all boards"',
        f'  command: "{COMMAND}"',
        f'backing: "{len(errors)} published {framework} measurements (held-out median error '
        f'{median:.1%}), {unknown}"',
    ]


def write_ncnn_skeleton(name: str) -> None:
    """NAME.ncnn.yaml beside NAME.yaml: the same board under ncnn; one that is there changes its model."""
    path = TARGETS_FOLDER / f"{name}.ncnn.yaml"
    if path.exists():
        text = path.read_text(encoding="utf-8").replace("  model: cpu\n", "  model: arm\n")
        path.write_text(text, encoding="utf-8")
        return
    text = (TARGETS_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    half = any(p.target == name and p.half for p in PLANS)
    aliases = ", ".join(f"{alias}/ncnn" for alias in load_target(name).aliases)
    changes = {
        r"^name: .*$": f"name: {name}/ncnn",
        r"^aliases: .*$": f"aliases: [{aliases}]",
        r"^(title: .*)onnxruntime": r"\1ncnn",
        r"^runtime: .*$": "runtime: {name: ncnn, templates: program}",
        r"^base_precision: .*$": f"base_precision: {'fp16' if half else 'fp32'}",
        r"^numerics:\n(  .*\n)+": "numerics:\n  activations: float\n",
        r"^  integer_precisions: .*$": "  integer_precisions: []  # ncnn's int8 kernels are not written yet",
        r"^  integer_ops: .*$": "  integer_ops: []",
    }
    for pattern, replacement in changes.items():
        text = re.sub(pattern, replacement, text, count=1, flags=re.MULTILINE)
    path.write_text(text, encoding="utf-8")


def report(boards: Boards, held_out: tuple[Array, Array], plans: Sequence[Plan]) -> None:
    """Held-out errors by target."""
    print(f"{'target':24s} {'rows of':28s} {'rows':>5s} {'median':>8s} {'p90':>8s} {'worst':>8s}")
    for plan in plans:
        e = errors_of(boards, plan, held_out)
        print(f"{plan.target:24s} {plan.device:28s} {len(e):5d} {np.median(e):8.1%} ", end="")
        print(f"{np.quantile(e, 0.9):8.1%} {e.max():8.1%}")


def show_constants(fitted: BoardFit) -> None:
    """Constants of the Raspberry Pi 4 in nanoseconds, for the eye."""
    values = tables(fitted, PLANS[1], "ncnn")
    for name in NAMES:
        found = [values.get((t, name)) for t in ("float@1", "float@4", "int8@1", "int8@4")]
        if found[0] is not None:
            kind = "arithmetic" if name in ARITHMETIC else ""
            print(f"  {name:18s} " + " ".join(f"{v:10.4g}" for v in found if v is not None) + f"  {kind}")


def main() -> None:
    """Fit, report, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--ncnn", action="store_true", help="write the boards as ncnn targets too")
    arguments = parser.parse_args()
    boards = all_boards()
    fitted = fit_boards(boards)
    print(f"fp32 over fp16, Paddle-Lite on Cortex-A76/A77: {half_factor(boards):.2f}")
    print("Raspberry Pi 4, ns a count: float at 1 and 4 threads, 8-bit at 1 and 4")
    show_constants(fitted)
    held_out = left_out_networks(boards)
    report(boards, held_out, PLANS)
    if arguments.dry_run:
        return
    for plan in PLANS:
        errors = errors_of(boards, plan, held_out)
        write(fitted, plan, errors, "onnxruntime")
        if arguments.ncnn:
            write_ncnn_skeleton(plan.target)
            write(fitted, plan, errors, "ncnn")
    forget_targets()
    for plan in PLANS:
        load_target(plan.target)


if __name__ == "__main__":
    main()
