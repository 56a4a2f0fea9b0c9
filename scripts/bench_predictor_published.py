"""The published half of scripts/bench_predictor.py: Arm boards by network and by device left out.

Protocol of "network left out": when a network is predicted, all its rows are hidden, on every device, at
every thread count and precision. Of "device left out": all rows of the device are hidden; its speed is then
told from devices with the same core by clock ("unseen"), or from one row of its own ("one row": MobileNet,
which is then not scored). Baselines fit each setting by its other rows: MACs only, and six plain features.
The spreads of the model were chosen by the error of all boards with networks left out; a table of its own
shows what is left when they are chosen without the network that is predicted.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls
from scipy.stats import spearmanr

from hw_profiles.boards import (
    FLOAT_PRIOR,
    Board,
    BoardFit,
    Boards,
    all_boards,
    fit_boards,
    left_out_networks,
)
from hw_profiles.fleet import Noise, Prior, Spread
from hw_profiles.kernel import Array
from hw_profiles.published import ncnn_networks, ncnn_rows, paddle_rows

#: Smaller relatives of a network; both are predicted with themselves left out.
RELATIVES = (
    ("mobilenet_v2", "mobilenet"), ("mobilenet_v3", "mobilenet_v2"), ("mnasnet", "mobilenet"),
    ("shufflenet_v2", "shufflenet"), ("resnet18", "resnet50"), ("yolo-fastestv2", "yolo-fastest-1.1"),
    ("squeezenet", "squeezenet_ssd"), ("efficientnet_b0", "efficientnetv2_b0"),
    ("mobilenetv2_yolov3", "mobilenet_yolo"),
)  # fmt: skip
CALIBRATION = "mobilenet"
_PI = "Raspberry Pi"
_HEAD = f"{'':46s} {'rows':>4s} {'MAPE':>7s} {'median':>7s} {'±10%':>5s} {'rank':>5s}"


@dataclass(frozen=True)
class Scored:
    """Predicted and measured ms of a setting's rows, and the baselines' predictions."""

    board: Board
    predicted: Array
    measured: Array
    macs: Array
    six: Array

    @property
    def errors(self) -> Array:
        """|relative errors|."""
        return np.asarray(np.abs(self.predicted / self.measured - 1.0))


def main_published(args: argparse.Namespace) -> None:
    """Print every table, or those of `args.only`."""
    boards = all_boards()
    if args.only in ("", "boards"):
        _networks_left_out(boards)
        _spreads_left_out(boards)
    if args.only in ("", "devices"):
        _devices_left_out(boards)
    if args.only in ("", "tables"):
        from bench_predictor_tables import main_tables

        main_tables()


def _networks_left_out(boards: Boards) -> None:
    floats, integers = left_out_networks(boards)
    scored = [
        s
        for chosen, predicted in ((boards.floats, floats), (boards.integers, integers))
        for i, board in enumerate(chosen)
        if (s := _score(boards, board, predicted[i])) is not None
    ]
    print("Arm boards, a network left out on all devices, thread counts and precisions")
    print(f"{_HEAD}   six: median  MACs: median")
    for s in scored:
        print(_line(_name(s.board), [s]))
    print()
    for name, part in _summaries(scored):
        print(_line(name, part))
    _ratios(boards, floats, integers)


def _spreads_left_out(boards: Boards) -> None:
    """Networks left out once more, each with those spreads that are best for the *other* networks."""
    errors = {}
    for name, (prior, noise) in _alternatives().items():
        predicted = np.full((len(boards.floats), len(boards.networks)), np.nan)
        for n, network in enumerate(boards.networks):
            fitted = fit_boards(boards.without_network(network), False, prior, noise)
            predicted[:, n] = fitted.log_ms("floats")[:, n]
        errors[name] = np.abs(np.expm1(predicted - np.log(np.stack([b.ms for b in boards.floats]))))
    stacked = np.stack(list(errors.values()))
    nested = np.full(stacked.shape[1:], np.nan)
    for n in range(len(boards.networks)):
        best = int(np.argmin(np.nanmedian(np.delete(stacked, n, axis=2), axis=(1, 2))))
        nested[:, n] = stacked[best][:, n]
    pis = np.array([b.device.startswith(_PI) for b in boards.floats])
    print("\nfloat, spreads of the model (median error, a network left out)   all boards  Raspberry Pis")
    for name, e in (*errors.items(), ("chosen without the network that is predicted", nested)):
        print(f"{name:62s} {np.nanmedian(e):10.1%} {np.nanmedian(e[pis]):13.1%}")


def _alternatives() -> dict[str, tuple[Prior, Noise]]:
    """The spreads as they are, and others around them."""
    prior, noise = FLOAT_PRIOR, Noise()
    return {
        "as they are": (prior, noise),
        "network 0.10": (prior, replace(noise, network=0.1)),
        "network 0.06": (prior, replace(noise, network=0.06)),
        "row 0.05": (prior, replace(noise, row=0.05)),
        "row 0.08": (prior, replace(noise, row=0.08)),
        "groups 1.7 times": (replace(prior, group=Spread(0.25, 0.12, 0.25)), noise),
        "boards 1.3 times": (replace(prior, board=Spread(0.35, 0.25, 0.35)), noise),
        "boards 0.7 times": (replace(prior, board=Spread(0.2, 0.15, 0.2)), noise),
        "table 0.75 times": (replace(prior, table=Spread(0.6, 0.2, 0.6)), noise),
    }


def _score(boards: Boards, board: Board, log_ms: Array) -> Scored | None:
    seen = np.flatnonzero(np.isfinite(board.ms) & np.isfinite(log_ms))
    if len(seen) < 4:
        return None
    known = ncnn_networks()
    macs = np.array([known[boards.networks[n]].macs for n in seen])
    six = np.stack([known[boards.networks[n]].six for n in seen])
    measured = board.ms[seen]
    return Scored(board, np.exp(log_ms[seen]), measured, _by_macs(macs, measured), _by_six(six, measured))


def _by_macs(macs: Array, measured: Array) -> Array:
    """(n,) milliseconds by the median rate of a setting's other rows."""
    rates = measured / macs
    return np.array([np.median(np.delete(rates, i)) * macs[i] for i in range(len(macs))])


def _by_six(six: Array, measured: Array) -> Array:
    """(n,) milliseconds by non-negative least squares of six features on a setting's other rows."""
    out = np.zeros(len(measured))
    for i in range(len(measured)):
        keep = np.arange(len(measured)) != i
        matrix = six[keep] / measured[keep, None]
        norms = np.linalg.norm(matrix, axis=0)
        norms[norms == 0.0] = 1.0
        found, _ = nnls(matrix / norms, np.ones(int(keep.sum())))
        out[i] = max(float(six[i] @ (found / norms)), 1e-6)
    return out


def _summaries(scored: Sequence[Scored]) -> Iterator[tuple[str, list[Scored]]]:
    def chosen(pi: bool, precision: str, threads: int | None) -> list[Scored]:
        return [
            s for s in scored
            if (not pi or s.board.device.startswith(_PI))
            and (s.board.precision == "int8") == (precision == "8-bit")
            and (threads is None or s.board.threads == threads)
        ]  # fmt: skip

    for pi in (True, False):
        for precision in ("float", "8-bit"):
            for threads in (1, 4, None):
                name = f"{'Raspberry Pis' if pi else 'all boards'}, {precision}, {threads or 'all'} threads"
                yield name, chosen(pi, precision, threads)


def _name(board: Board) -> str:
    cores = "" if board.cores == "all" else f" {board.cores}"
    return f"{board.device[:30]} {board.threads}t{cores} {board.precision}"


def _line(name: str, scored: Sequence[Scored]) -> str:
    e = np.concatenate([s.errors for s in scored])
    ranks = [float(spearmanr(s.predicted, s.measured).statistic) for s in scored]
    six = np.concatenate([np.abs(s.six / s.measured - 1.0) for s in scored])
    macs = np.concatenate([np.abs(s.macs / s.measured - 1.0) for s in scored])
    return (
        f"{name:46s} {len(e):4d} {e.mean():7.1%} {np.median(e):7.1%} {np.mean(e < 0.1):5.0%} "
        f"{np.median(ranks):5.2f}"
        f"   {np.median(six):11.1%} {np.median(macs):13.1%}"
    )


def _ratios(boards: Boards, floats: Array, integers: Array) -> None:
    """Errors of predicted speed-ups: 8-bit over float, and of smaller relatives."""
    print(
        f"\n{'error of speed-up ratios, networks left out':46s} {'rows':>4s} {'median':>7s} "
        f"{'±10%':>5s}   MACs: median"
    )
    for pi in (True, False):
        e = [
            integers[i] - np.log(b.ms) - (floats[b.sibling] - np.log(boards.floats[b.sibling].ms))
            for i, b in enumerate(boards.integers)
            if not pi or b.device.startswith(_PI)
        ]
        _ratio_line(f"{'Raspberry Pis' if pi else 'all boards'}, 8-bit over float", np.concatenate(e), None)
    known = ncnn_networks()
    for pi in (True, False):
        found, plain = [], []
        for i, b in enumerate(boards.floats):
            if pi and not b.device.startswith(_PI):
                continue
            left = floats[i] - np.log(b.ms)
            for small, large in RELATIVES:
                s, t = boards.networks.index(small), boards.networks.index(large)
                found.append(left[s] - left[t])
                measured = np.log(b.ms[s] / b.ms[t])
                plain.append(np.log(known[small].macs / known[large].macs) - measured)
        name = f"{'Raspberry Pis' if pi else 'all boards'}, smaller over larger relative"
        _ratio_line(name, np.array(found), np.array(plain))


def _ratio_line(name: str, log_errors: Array, macs: Array | None) -> None:
    e = np.abs(np.expm1(log_errors[np.isfinite(log_errors)]))
    baseline = "" if macs is None else f"{np.median(np.abs(np.expm1(macs[np.isfinite(macs)]))):13.1%}"
    print(f"{name:46s} {len(e):4d} {np.median(e):7.1%} {np.mean(e < 0.1):5.0%}   {baseline}")


def _devices_left_out(boards: Boards) -> None:
    """Every device left out: unseen, and with one row of its own."""
    print("\nArm boards, a device left out: unseen (speed by core and clock), and with one row of its own")
    print(
        f"{'':46s} {'rows':>4s} {'unseen: median':>15s} {'±10%':>5s}   {'one row: median':>15s} "
        f"{'±10%':>5s} {'rank':>5s}"
    )
    chips = {row.device: row.chip for row in (*ncnn_rows(), *paddle_rows())}
    every: list[tuple[Board, Array, Array]] = []
    for device in sorted(chips):
        mine = [b for b in (*boards.floats, *boards.integers) if b.device == device]
        fitted = fit_boards(boards.hiding(mine))
        for board in mine:
            every.append((board, *_unseen(boards, fitted, board, chips)))
            if device.startswith(_PI):
                print(_device_line(_name(board), [every[-1]]))
    for pi in (True, False):
        for eight in (False, True):
            part = [
                x
                for x in every
                if (not pi or x[0].device.startswith(_PI)) and (x[0].precision == "int8") == eight
            ]
            name = f"{'Raspberry Pis' if pi else 'all boards'}, {'8-bit' if eight else 'float'}"
            print(_device_line(name, part))


def _unseen(boards: Boards, fitted: BoardFit, board: Board, chips: dict[str, str]) -> tuple[Array, Array]:
    """(log errors unseen, log errors with one row) of a hidden setting's networks."""
    eight = board.precision == "int8"
    chosen = boards.integers if eight else boards.floats
    fleet = fitted.integers if eight and fitted.integers is not None else fitted.floats
    table = fleet.groups[board.group]
    if eight:
        sibling = boards.floats[board.sibling]
        table = table + fitted.floats.groups[sibling.group]
    relative = np.log(boards.counts @ np.exp(table))
    speeds = [
        (_alike(board, other, chips), float(np.nanmedian(np.log(other.ms) - relative)), _clock(other, chips))
        for other in chosen
        if other.device != board.device and other.group == board.group
    ]
    nearest = max((s[0] for s in speeds), default=0)
    close = [speed + np.log(clock) for alike, speed, clock in speeds if alike == nearest]
    raw = relative - np.log(board.ms) + (np.median(close) if close else 0.0) - np.log(_clock(board, chips))
    own = raw[boards.networks.index(CALIBRATION)]
    tuned = raw - own
    tuned[boards.networks.index(CALIBRATION)] = np.nan
    return raw, tuned


def _alike(one: Board, other: Board, chips: dict[str, str]) -> int:
    """How close two settings are: the core counts for two, the thread count for one."""
    return 2 * (_core(one, chips) == _core(other, chips)) + (one.threads == other.threads)


def _core(board: Board, chips: dict[str, str]) -> str:
    found = re.findall(
        r"A\d\d\w*|K[yr]+o\s?\d*|X\d\b|FTC\d+|Carmel|Oryon|x\d+ cores|M\d", chips[board.device]
    )
    return str(found[-1 if board.cores == "little" else 0]).strip() if found else board.device


def _clock(board: Board, chips: dict[str, str]) -> float:
    found = re.findall(r"(\d+(?:\.\d+)?)\s?GHz", chips[board.device])
    return float(found[-1 if board.cores == "little" else 0]) if found else 2.5


def _device_line(name: str, part: Sequence[tuple[Board, Array, Array]]) -> str:
    raw = np.abs(np.expm1(np.concatenate([r[np.isfinite(r)] for _, r, _ in part])))
    tuned = np.abs(np.expm1(np.concatenate([t[np.isfinite(t)] for _, _, t in part])))
    ranks = [
        float(spearmanr((r + np.log(b.ms))[np.isfinite(r)], b.ms[np.isfinite(r)]).statistic)
        for b, r, _ in part
        if np.isfinite(r).sum() > 3
    ]
    one = f"{np.median(tuned):15.1%} {np.mean(tuned < 0.1):5.0%}" if len(tuned) else f"{'-':>15s} {'-':>5s}"
    return (
        f"{name:46s} {len(raw):4d} {np.median(raw):15.1%} {np.mean(raw < 0.1):5.0%}   {one} "
        f"{np.median(ranks):5.2f}"
    )
