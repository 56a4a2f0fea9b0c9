"""Several threads, told from what one thread takes: what is not divided, the longest part, the wait.

One thread's times are measured cleanly (processor time, which other work does not disturb) and many of them
in a minute; several threads' neither. So a kernel's time on several threads starts from its time on one, by
few numbers a class of cost which networks measured with several threads tell:

    not divided    serial x time, + after where what it reads was written divided: its data lie with others
    divided        longest x (longest part of the time) + rest x (what others do meanwhile) + wait

and a run's fixed cost is that of one thread, times a factor. Where nothing was measured a divided kernel
takes its longest part, and nothing waits. Times of single kernels under the profiler tell the rest apart,
once what it adds to each is taken off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from hw_profiles.costs.base import CLASSES, Index
from hw_profiles.kernel import VIEW_OPS, Array, KernelBatch

#: Pseudo-networks that hold every number to where it starts.
_HELD = 0.3
#: Standard deviation of what remains for functions of the shapes to learn: less than where nothing is known.
SHAPE_SIGMA = 0.15
#: Inducing points of these functions: they are smoother, and are evaluated on top of others.
POINTS = 32
#: Relative spread beyond which a network counts less (Cauchy), and rounds of weighing.
_SPREAD, _ROUNDS = 0.06, 6
START: Mapping[str, float] = {
    "fixed": 1.0, "once": 0.0, "serial": 1.0, "after": 0.0,
    **{f"longest_{c}": 1.0 for c in CLASSES}, **{f"{n}_{c}": 0.0 for n in ("rest", "wait") for c in CLASSES},
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Single:
    """Kernels as one thread runs them: times (P, K) in microseconds, the share of each that the busiest of
    several threads does (P, K), whether the one before was divided (P, K), and classes of cost (K,).

    `fixed_us` is a run's fixed cost on one thread.
    """

    us: Array
    part: Array
    after: Array
    classes: Index
    fixed_us: float


def touching(batch: KernelBatch) -> NDArray[np.bool_]:
    """(K,) whether a kernel touches data; changes of shape do not."""
    return np.array([kind.op not in VIEW_OPS for kind in batch.kinds], dtype=bool)


def after_divided(part: Array, touching: NDArray[np.bool_], first: Index | None = None) -> Array:
    """(P, K) 1 for kernels that read what a divided one wrote; `touching` (K,) says which touch data at all.

    What touches none (a change of shape) hands on what came before. `first` (K,) is the place of the first
    kernel of each one's network, 0 by default.
    """
    places = np.arange(part.shape[1])
    last = np.maximum.accumulate(np.where(touching, places, -1))
    before = np.concatenate([[-1], last[:-1]])
    known = touching & (before >= (0 if first is None else first))
    found = np.zeros(part.shape)
    found[:, known] = part[:, before[known]] < 1.0
    return found


def shares(single: Single) -> dict[str, Array]:
    """(P, K) what each number is multiplied by."""
    divided = single.part < 1.0
    found = {
        "serial": np.where(divided, 0.0, single.us),
        "after": np.where(divided, 0.0, single.after),
    }
    for i, name in enumerate(CLASSES):
        mine = divided & (single.classes == i)
        if mine.any():
            found[f"longest_{name}"] = np.where(mine, single.us * single.part, 0.0)
            found[f"rest_{name}"] = np.where(mine, single.us * (1.0 - single.part), 0.0)
            found[f"wait_{name}"] = np.where(mine, 1.0, 0.0)
    return found


def kernel_us(numbers: Mapping[str, float], single: Single) -> Array:
    """(P, K) microseconds on several threads."""
    total = np.zeros(single.us.shape)
    for name, amount in shares(single).items():
        total += numbers[name] * amount
    return total


def fixed_us(numbers: Mapping[str, float], single: Single) -> float:
    """A run's fixed cost on several threads, in microseconds."""
    return numbers["fixed"] * single.fixed_us + numbers["once"]


def fit_numbers(owner: Index, measured_us: Array, single: Single) -> dict[str, float]:
    """The numbers that whole networks tell: non-negative least squares of relative errors, outliers
    discounted.

    Kernels (1, n) of all networks one after the other, `owner` (n,) says whose; `measured_us` is (N,).
    """
    count = len(measured_us)
    names = list(START)
    sums = np.zeros((count, len(names)))
    for name, amount in shares(single).items():
        sums[:, names.index(name)] = np.bincount(owner, weights=amount[0], minlength=count)
    sums[:, names.index("fixed")] = single.fixed_us
    sums[:, names.index("once")] = 1.0
    start = np.array([START[name] for name in names])
    weight = np.ones(count)
    found = start
    for _ in range(_ROUNDS):
        rows = np.vstack([sums * (weight / measured_us)[:, None], _HELD * np.eye(len(names))])
        found = nnls(rows, np.concatenate([weight, _HELD * start]))[0]
        error = np.log(np.maximum(sums @ found, 1e-3) / measured_us)
        weight = 1.0 / np.sqrt(1.0 + (error / _SPREAD) ** 2)
    return dict(zip(names, map(float, found), strict=True))


def own_us(
    owner: Index, profiled_us: Array, excess_us: Array, measured_us: Array, divided: NDArray[np.bool_],
    touching: NDArray[np.bool_],
) -> Array:  # fmt: skip
    """(n,) what kernels take of their own: their times under the profiler less what that adds to each.

    It adds so much to a divided kernel, to one that is not, and to one that touches no data; how much tells
    `excess_us` (N,), by which the kernels of a network exceed the `measured_us` of all. NaN is unknown.
    """
    count = len(measured_us)
    kinds = np.stack([divided, ~divided & touching, ~divided & ~touching]).astype(float)
    known = np.isfinite(excess_us)
    if not known.any():
        return np.full(len(owner), np.nan)
    sums = np.stack([np.bincount(owner, weights=kind, minlength=count) for kind in kinds], axis=1)[known]
    excess, weight = np.maximum(excess_us[known], 0.0), 1.0 / measured_us[known]
    found = np.zeros(len(kinds))
    for _ in range(_ROUNDS):
        found = nnls(sums * weight[:, None], excess * weight)[0]
        error = (sums @ found - excess) / measured_us[known]
        weight = 1.0 / measured_us[known] / np.sqrt(1.0 + (error / _SPREAD) ** 2)
    return np.asarray(profiled_us - found @ kinds)


__all__ = ["START", "Single", "after_divided", "fit_numbers", "fixed_us", "kernel_us", "own_us", "touching"]
