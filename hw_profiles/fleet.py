"""Fitting one additive model to many boards at once: few rows a board, but boards that rank networks alike.

``t[d, n] = sum_k exp(C[d, k]) x[d, n, k]``: constant k of setting d (a board at one thread count and
precision) times what network n counts. Constants are held towards those of the setting's group, these towards
a common table, and that towards a stated prior. The spreads have blocks: a board has a speed of its own in
all, and one each for arithmetic, memory and overheads; single constants stray little. What a network costs on
every board alike beyond the model (`network`) is an effect of its own while fitting, so that ninety boards
which agree do not count as ninety networks; it is zero for a network that was not seen.
Maximum a posteriori by Gauss-Newton on log times with Student-t residuals (some published rows are off).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hw_profiles.kernel import Array

Index = NDArray[np.intp]
#: Log standard deviation of what is not to be fitted.
_FIXED = 1e-3


@dataclass(frozen=True)
class Spread:
    """Log standard deviations by level: of blocks, of single arithmetic constants, of all other constants."""

    block: float
    arithmetic: float
    single: float


@dataclass(frozen=True)
class Prior:
    """Before anything is seen: log constants (K,), blocks (names -> columns) and spreads by level.

    `board` is the spread of settings within a group, `group` that of groups around the common table, `table`
    that of the common table around `log_constants`; `speed` that of a setting's factor on everything. Columns
    that are `fixed` and in no block follow `speed` alone.
    """

    log_constants: Array
    blocks: tuple[tuple[int, ...], ...]
    arithmetic: tuple[int, ...]
    fixed: tuple[int, ...] = ()
    board: Spread = Spread(0.25, 0.2, 0.3)
    group: Spread = Spread(0.15, 0.07, 0.15)
    table: Spread = Spread(0.8, 0.2, 0.8)
    speed: float = 3.0

    def covariance(self, spread: Spread, speed: float) -> Array:
        """(K, K) covariance of a level."""
        count = len(self.log_constants)
        out = np.full((count, count), speed**2)
        for block in self.blocks:
            out[np.ix_(block, block)] += spread.block**2
        single = np.full(count, spread.single**2)
        single[list(self.arithmetic)] = spread.arithmetic**2
        single[list(self.fixed)] = _FIXED**2
        return np.asarray(out + np.diag(single))


@dataclass(frozen=True)
class Noise:
    """Log standard deviations of a row, of a network on all boards, and of a network within a group."""

    row: float = 0.06
    network: float = 0.08
    network_in_group: float = 0.06
    freedom: float = 4.0


@dataclass(frozen=True)
class Fleet:
    """What was fitted: log constants by setting (D, K), by group (G, K), common (K,); effects of networks
    (N,) and by group (G, N)."""

    log_constants: Array = field(repr=False)
    groups: Array = field(repr=False)
    table: Array = field(repr=False)
    network: Array = field(repr=False)
    network_in_group: Array = field(repr=False)

    def log_ms(self, counts: Array) -> Array:
        """(D, N) log milliseconds of networks with counts (D, N, K)."""
        return np.asarray(np.log(np.einsum("dnk,dk->dn", counts, np.exp(self.log_constants))))


@dataclass
class _State:
    """Arrays of a running fit; `base` is (D, K) what each setting is relative to."""

    seen: NDArray[np.bool_]
    log_ms: Array
    counts: Array
    group: Index
    base: Array
    constants: Array
    groups: Array
    table: Array
    network: Array
    in_group: Array

    def slopes(self) -> tuple[Array, Array]:
        """(log predictions (D, N), their derivatives by log constants (D, N, K))."""
        parts = self.counts * np.exp(self.constants)[:, None, :]
        total = parts.sum(axis=2)
        return np.log(total), parts / total[:, :, None]


def fit_fleet(
    ms: Array,
    counts: Array,
    group: Sequence[int],
    prior: Prior,
    noise: Noise | None = None,
    relative_to: Array | None = None,
    rounds: int = 12,
) -> Fleet:
    """Constants of D settings from (D, N) milliseconds, NaN where unknown, and (D, N, K) counts.

    `group`: (D,) index of each setting's group. `relative_to`: (D, K) log constants which a setting's are a
    ratio to (8-bit to float ones of the same board); the prior then is about that ratio.
    """
    noise = noise or Noise()
    seen = np.isfinite(ms) & (ms > 0.0)
    log_ms = np.log(np.where(seen, ms, 1.0))
    index = np.asarray(group, dtype=np.intp)
    base = np.zeros((len(ms), counts.shape[2])) if relative_to is None else relative_to
    many = int(index.max()) + 1
    constants = base + prior.log_constants
    if relative_to is None:
        constants = constants + _first_speed(seen, log_ms, counts, prior.log_constants)[:, None]
    state = _State(
        seen, log_ms, counts, index, base, constants,
        np.tile(prior.log_constants, (many, 1)), prior.log_constants,
        np.zeros(ms.shape[1]), np.zeros((many, ms.shape[1])),
    )  # fmt: skip
    precision = np.asarray(np.linalg.inv(prior.covariance(prior.board, prior.speed)), dtype=np.float64)
    for _ in range(rounds):
        _fit_settings(state, precision, noise)
        _fit_groups(state, prior, precision, noise)
    return Fleet(state.constants, state.groups, state.table, state.network, state.in_group)


def _first_speed(seen: NDArray[np.bool_], log_ms: Array, counts: Array, prior: Array) -> Array:
    raw = log_ms - np.log(np.maximum(counts @ np.exp(prior), 1e-300))
    return np.array([np.median(r[s]) if s.any() else 0.0 for r, s in zip(raw, seen, strict=True)])


def _fit_settings(state: _State, precision: Array, noise: Noise) -> None:
    """Two damped Gauss-Newton steps of every setting's constants, its group's table held."""
    centre = state.base + state.groups[state.group]
    effect = state.network + state.in_group[state.group]
    for _ in range(2):
        log_total, slopes = state.slopes()
        residual = np.where(state.seen, state.log_ms - effect - log_total, 0.0)
        weight = (noise.freedom + 1.0) / (noise.freedom + (residual / noise.row) ** 2) / noise.row**2
        weight = np.where(state.seen, weight, 0.0)
        curvature = np.matmul((slopes * weight[:, :, None]).transpose(0, 2, 1), slopes) + precision
        pull = np.einsum("dnk,dn->dk", slopes, weight * residual) - (state.constants - centre) @ precision
        step = np.linalg.solve(curvature, pull[:, :, None])[:, :, 0]
        state.constants = state.constants + np.clip(step, -1.0, 1.0)


def _fit_groups(state: _State, prior: Prior, precision: Array, noise: Noise) -> None:
    """Tables of groups and the common one, linearised at the settings; then the effects of networks."""
    log_total, slopes = state.slopes()
    residual = np.where(state.seen, state.log_ms - log_total, 0.0)
    pull = precision.sum(axis=1) / precision.sum()
    own = state.constants - state.base
    speed = (own - state.groups[state.group]) @ pull
    wanted = residual + np.einsum("dnk,dk->dn", slopes, own - speed[:, None])
    inner = prior.covariance(prior.board, 0.0)
    variance = noise.row**2 + ((slopes @ inner) * slopes).sum(axis=2)
    weight = np.where(state.seen, 1.0 / variance, 0.0)
    state.groups, state.table = _tables(state, prior, noise, slopes, wanted, weight)
    _effects(state, noise, residual, weight)


def _tables(
    state: _State, prior: Prior, noise: Noise, slopes: Array, wanted: Array, weight: Array
) -> tuple[Array, Array]:
    many, size = len(state.groups), slopes.shape[2]
    held = np.linalg.inv(prior.covariance(prior.group, 1e-3))
    to_prior = np.linalg.inv(prior.covariance(prior.table, 1e-3))
    matrix, right = np.zeros(((many + 1) * size,) * 2), np.zeros((many + 1) * size)
    top = slice(many * size, (many + 1) * size)
    for g in range(many):
        mine = state.group == g
        total = weight[mine].sum(axis=0)
        safe = np.maximum(total, 1e-9)
        slope = np.einsum("dn,dnk->nk", weight[mine], slopes[mine]) / safe[:, None]
        value = (weight[mine] * wanted[mine]).sum(axis=0) / safe
        spread = 1.0 / safe + noise.network_in_group**2 + noise.network**2
        trust = np.where(total > 0.0, 1.0 / spread, 0.0)
        at = slice(g * size, (g + 1) * size)
        matrix[at, at] += np.einsum("nk,n,nl->kl", slope, trust, slope) + held
        right[at] += np.einsum("nk,n->k", slope, trust * value)
        matrix[at, top] -= held
        matrix[top, at] -= held
        matrix[top, top] += held
    matrix[top, top] += to_prior
    right[top] += to_prior @ prior.log_constants
    found = np.linalg.solve(matrix, right)
    return found[: many * size].reshape(many, size), found[top]


def _effects(state: _State, noise: Noise, residual: Array, weight: Array) -> None:
    for _ in range(3):
        left = weight * (residual - state.in_group[state.group])
        state.network = left.sum(axis=0) / (weight.sum(axis=0) + 1.0 / noise.network**2)
        for g in range(len(state.groups)):
            mine = state.group == g
            left = (weight[mine] * (residual[mine] - state.network)).sum(axis=0)
            state.in_group[g] = left / (weight[mine].sum(axis=0) + 1.0 / noise.network_in_group**2)
