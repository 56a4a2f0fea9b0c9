"""The Arm model fitted to all published boards at once: settings, groups, prior, and what is held out.

A setting is a device with its threads, cores and precision. Float settings are fitted first; 8-bit ones as
ratios to the float constants of the same device, threads and cores. Groups share a table: float ones by precision and
one thread or several, 8-bit ones by whether the cores are of the generation with half-precision arithmetic
(Armv8.2: most of them have dot products too) and by one thread or several.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hw_profiles.fleet import Fleet, Noise, Prior, Spread, fit_fleet
from hw_profiles.kernel import Array
from hw_profiles.published import NAMES, Row, ncnn_networks, ncnn_rows

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
#: Prior of the constants in units of one multiply-accumulate of a 1x1 convolution: four lanes multiply at once,
#: so an element loaded and stored costs a few, an exponential a dozen, a kernel's launch some microseconds.
RATIOS = {
    "pointwise": 1.0, "winograd": 1.0, "dense": 1.1, "grouped": 1.3, "product": 1.2,
    "taps": 2.0, "taps_strided": 3.0, "taps_wide": 2.0,
    "read": 1.5, "written": 4.0, "moved": 3.0, "spread": 3.0, "element": 4.0, "special": 12.0,
    "transform": 3.0, "gather": 2.0, "weights": 4.0, "weights_winograd": 4.0, "weights_row": 8.0,
    "overhead": 25000.0, "groups": 5000.0, "detection": 10.0,
}  # fmt: skip
#: 8-bit over float arithmetic before anything is seen: ncnn gains 1.1 to 1.5 times on Raspberry Pis.
_INTEGER_GAIN = 0.8


def _prior(log_constants: Array) -> Prior:
    at = {name: i for i, name in enumerate(NAMES)}
    return Prior(
        log_constants=log_constants,
        blocks=tuple(tuple(at[n] for n in block) for block in _BLOCKS),
        arithmetic=tuple(at[n] for n in ARITHMETIC),
    )


FLOAT_PRIOR = _prior(np.log(np.array([RATIOS[n] for n in NAMES])))
INTEGER_PRIOR = replace(
    _prior(np.log(np.array([_INTEGER_GAIN if n in ARITHMETIC else 1.0 for n in NAMES]))),
    board=Spread(0.15, 0.1, 0.1), group=Spread(0.2, 0.1, 0.1), table=Spread(0.3, 0.15, 0.15), speed=0.1,
)  # fmt: skip


@dataclass(frozen=True)
class Board:
    """One setting: its key, precision, threads, group, and (N,) milliseconds by network, NaN where unknown."""

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
    for row in ncnn_rows() if rows is None else rows:
        found.setdefault(row.setting, {})[row.model] = row
    groups: dict[tuple[str, bool], int] = {}
    floats, index = [], {}
    for key, by_model in sorted(found.items()):
        one = next(iter(by_model.values()))
        if one.precision != "int8" and len(by_model) >= LEAST_ROWS:
            group = groups.setdefault((one.precision, one.threads > 1), len(groups))
            index[one.device, one.threads, one.cores, one.run] = len(floats)
            floats.append(_board(key, one, group, by_model, names))
    integers, pairs = [], dict[tuple[str, bool], int]()
    for key, by_model in sorted(found.items()):
        one = next(iter(by_model.values()))
        at = index.get((one.device, one.threads, one.cores, one.run))
        if one.precision == "int8" and at is not None:
            group = pairs.setdefault((floats[at].precision, one.threads > 1), len(pairs))
            integers.append(replace(_board(key, one, group, by_model, names), sibling=at))
    return Boards(names, counts, tuple(floats), tuple(integers))


def _board(key: str, one: Row, group: int, by_model: dict[str, Row], names: Sequence[str]) -> Board:
    ms = np.array([by_model[n].ms if n in by_model else np.nan for n in names])
    return Board(key, one.device, one.threads, one.cores, one.precision, group, ms)


def fit_boards(boards: Boards, integers: bool = True) -> BoardFit:
    """Float constants of all settings, then 8-bit ones as ratios to them."""
    floats = _fit(boards, boards.floats, FLOAT_PRIOR, None)
    if not integers or not boards.integers:
        return BoardFit(boards, floats, None)
    base = floats.log_constants[[board.sibling for board in boards.integers]]
    return BoardFit(boards, floats, _fit(boards, boards.integers, INTEGER_PRIOR, base))


def _fit(boards: Boards, settings: Sequence[Board], prior: Prior, base: Array | None) -> Fleet:
    ms = np.stack([board.ms for board in settings])
    counts = np.broadcast_to(boards.counts, (len(settings), *boards.counts.shape))
    return fit_fleet(ms, counts, [board.group for board in settings], prior, Noise(), base)


def left_out_networks(boards: Boards) -> tuple[Array, Array]:
    """Log predictions (D, N) of float and 8-bit settings, each network by a fit that saw it nowhere."""
    floats = np.full((len(boards.floats), len(boards.networks)), np.nan)
    integers = np.full((len(boards.integers), len(boards.networks)), np.nan)
    for n, name in enumerate(boards.networks):
        fitted = fit_boards(boards.without_network(name))
        floats[:, n] = fitted.log_ms("floats")[:, n]
        integers[:, n] = fitted.log_ms("integers")[:, n]
    return floats, integers
