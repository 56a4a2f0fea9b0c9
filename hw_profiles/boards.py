"""The Arm model fitted to all published boards at once: settings, groups, prior, and what is held out.

A setting is a device with its threads, cores and precision. Float settings are fitted first; 8-bit ones as
ratios to the float constants of the same device, threads and cores. Groups share a table: float ones by
precision and by one thread or several, 8-bit ones by whether the cores are of the generation with half
precision (Armv8.2: most of them have dot products too) and by threads; ncnn and Paddle-Lite apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hw_profiles.fleet import Fleet, Noise, Prior, Spread, fit_fleet
from hw_profiles.kernel import Array
from hw_profiles.published import NAMES, Row, ncnn_networks, ncnn_rows, paddle_rows

#: Cores of the Paddle-Lite phones that have no dot products.
_WITHOUT_DOT = ("A53", "A72", "A73", "A75")
#: Settings with fewer float rows say too little about a board.
LEAST_ROWS = 4
ARITHMETIC = ("pointwise", "winograd", "dense", "grouped", "product")
_BLOCKS = (
    ARITHMETIC,
    ("taps", "taps_strided", "taps_wide"),
    ("read", "written", "moved", "spread", "element", "special", "transform", "gather", "weights",
     "weights_winograd", "weights_row"),
    ("overhead", "groups", "detection"),
)  # fmt: skip
#: Prior of the constants in units of one multiply-accumulate of a 1x1 convolution: four lanes multiply at
#: once, so an element loaded and stored costs a few, an exponential a dozen, a launch some microseconds.
RATIOS = {
    "pointwise": 1.0, "winograd": 1.0, "dense": 1.1, "grouped": 1.3, "product": 1.2,
    "taps": 2.0, "taps_strided": 3.0, "taps_wide": 2.0,
    "read": 1.5, "written": 4.0, "moved": 3.0, "spread": 3.0, "element": 4.0, "special": 12.0,
    "transform": 3.0, "gather": 2.0, "weights": 4.0, "weights_winograd": 4.0, "weights_row": 8.0,
    "overhead": 25000.0, "groups": 5000.0, "detection": 10.0,
}  # fmt: skip
#: 8-bit over float constants before anything is seen: ncnn gains 1.1 to 1.5 times in arithmetic on Raspberry
#: Pis, and passes every element of a layer twice, rounding it on the way in and scaling it on the way out.
_INTEGER_GAIN, _INTEGER_PASSES = 0.8, 2.0
#: What stays float in an 8-bit network.
_FLOAT_STILL = ("detection", "overhead", "groups")


def _prior(log_constants: Array, fixed: Sequence[str] = ()) -> Prior:
    at = {name: i for i, name in enumerate(NAMES)}
    return Prior(
        log_constants=log_constants,
        blocks=tuple(tuple(at[n] for n in block if n not in fixed) for block in _BLOCKS),
        arithmetic=tuple(at[n] for n in ARITHMETIC),
        fixed=tuple(at[n] for n in fixed),
    )


def _integer_ratio(name: str) -> float:
    if name in ARITHMETIC:
        return _INTEGER_GAIN
    return 1.0 if name in _FLOAT_STILL or name.startswith("taps") else _INTEGER_PASSES


FLOAT_PRIOR = _prior(np.log(np.array([RATIOS[n] for n in NAMES])))
INTEGER_PRIOR = replace(
    _prior(np.log(np.array([_integer_ratio(n) for n in NAMES])), _FLOAT_STILL),
    board=Spread(0.3, 0.2, 0.2), group=Spread(0.4, 0.2, 0.2), table=Spread(1.0, 0.5, 0.5), speed=0.5,
)  # fmt: skip


@dataclass(frozen=True)
class Board:
    """One setting: its key, precision, threads, group, and (N,) milliseconds by network (NaN: unknown)."""

    key: str
    device: str
    threads: int
    cores: str
    precision: str
    group: int
    ms: Array = field(repr=False)
    sibling: int = -1


@dataclass(frozen=True)
class Boards:
    """Float and 8-bit settings over the same N networks; an 8-bit setting's `sibling` is its float one."""

    networks: tuple[str, ...]
    counts: Array = field(repr=False)
    floats: tuple[Board, ...] = field(repr=False)
    integers: tuple[Board, ...] = field(repr=False)

    def without_network(self, name: str) -> Boards:
        """The same with a network left out everywhere: every board, thread count and precision."""
        n = self.networks.index(name)

        def hide(board: Board) -> Board:
            ms = board.ms.copy()
            ms[n] = np.nan
            return replace(board, ms=ms)

        return replace(self, floats=tuple(map(hide, self.floats)), integers=tuple(map(hide, self.integers)))

    def hiding(self, hidden: Iterable[Board]) -> Boards:
        """The same with all rows of some settings left out."""
        keys = {board.key for board in hidden}

        def hide(board: Board) -> Board:
            return replace(board, ms=np.full_like(board.ms, np.nan)) if board.key in keys else board

        return replace(self, floats=tuple(map(hide, self.floats)), integers=tuple(map(hide, self.integers)))


@dataclass(frozen=True)
class BoardFit:
    """Fitted float and 8-bit constants, each (D, K) logarithms of milliseconds per count."""

    boards: Boards
    floats: Fleet
    integers: Fleet | None

    def constants(self, board: Board) -> Array:
        """(K,) milliseconds per count of a setting."""
        if board.precision == "int8":
            assert self.integers is not None
            return np.asarray(np.exp(self.integers.log_constants[self.boards.integers.index(board)]))
        return np.asarray(np.exp(self.floats.log_constants[self.boards.floats.index(board)]))

    def log_ms(self, settings: str) -> Array:
        """(D, N) predicted log milliseconds of all "floats" or "integers"."""
        fleet = self.floats if settings == "floats" or self.integers is None else self.integers
        count = len(fleet.log_constants)
        return fleet.log_ms(np.broadcast_to(self.boards.counts, (count, *self.boards.counts.shape)))


def all_boards(rows: Sequence[Row] | None = None) -> Boards:
    """Settings of the published rows."""
    networks = ncnn_networks()
    names = tuple(sorted(networks))
    counts = np.stack([networks[n].counts for n in names])
    found: dict[str, dict[str, Row]] = {}
    for row in (*ncnn_rows(), *paddle_rows()) if rows is None else rows:
        found.setdefault(row.setting, {})[row.model] = row
    groups: dict[tuple[str, bool, bool], int] = {}
    floats: list[Board] = []
    index: dict[tuple[str, int, str, str], int] = {}
    for key, by_model in sorted(found.items()):
        one = next(iter(by_model.values()))
        if one.precision != "int8" and len(by_model) >= LEAST_ROWS:
            group = groups.setdefault((one.precision, one.threads > 1, one.is_paddle), len(groups))
            index[one.device, one.threads, one.cores, one.run] = len(floats)
            floats.append(_board(key, one, group, by_model, names))
    integers: list[Board] = []
    pairs: dict[tuple[str, bool, bool], int] = {}
    for key, by_model in sorted(found.items()):
        one = next(iter(by_model.values()))
        at = index.get((one.device, one.threads, one.cores, one.run))
        if one.precision == "int8" and at is not None:
            old = one.is_paddle and one.chip.split()[-2] in _WITHOUT_DOT
            group = pairs.setdefault(
                (floats[at].precision, one.threads > 1 or old, one.is_paddle), len(pairs)
            )
            integers.append(replace(_board(key, one, group, by_model, names), sibling=at))
    return Boards(names, counts, tuple(floats), tuple(integers))


def _board(key: str, one: Row, group: int, by_model: dict[str, Row], names: Sequence[str]) -> Board:
    ms = np.array([by_model[n].ms if n in by_model else np.nan for n in names])
    return Board(key, one.device, one.threads, one.cores, one.precision, group, ms)


def fit_boards(
    boards: Boards, integers: bool = True, prior: Prior = FLOAT_PRIOR, noise: Noise | None = None
) -> BoardFit:
    """Float constants of all settings, then 8-bit ones as ratios to them."""
    floats = _fit(boards, boards.floats, prior, None, noise)
    if not integers or not boards.integers:
        return BoardFit(boards, floats, None)
    base = floats.log_constants[[board.sibling for board in boards.integers]]
    return BoardFit(boards, floats, _fit(boards, boards.integers, INTEGER_PRIOR, base))


def _fit(
    boards: Boards, settings: Sequence[Board], prior: Prior, base: Array | None, noise: Noise | None = None
) -> Fleet:
    ms = np.stack([board.ms for board in settings])
    counts = np.broadcast_to(boards.counts, (len(settings), *boards.counts.shape))
    return fit_fleet(ms, counts, [board.group for board in settings], prior, noise or Noise(), base)


def left_out_networks(boards: Boards) -> tuple[Array, Array]:
    """Log predictions (D, N) of float and 8-bit settings, each network by a fit that saw it nowhere."""
    floats = np.full((len(boards.floats), len(boards.networks)), np.nan)
    integers = np.full((len(boards.integers), len(boards.networks)), np.nan)
    for n, name in enumerate(boards.networks):
        fitted = fit_boards(boards.without_network(name))
        floats[:, n] = fitted.log_ms("floats")[:, n]
        integers[:, n] = fitted.log_ms("integers")[:, n]
    return floats, integers
