"""A cost model corrected by a profile: refitted loop counts, a learned residual, calibrated intervals.

Three layers, each held to the one before where nothing was measured: the target's constants, refitted
(`hw_profiles.refit`); one smooth function of the shapes per kind of kernel (`hw_profiles.residual`); and the
spread of whole networks, calibrated by conformal prediction (`hw_profiles.conformal`).

    model = learn(profile, target)                  # seconds; deterministic
    predictor = Predictor(target).profiled(profile)  # the same, kept beside the profile and taken up again
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from hw_profiles import threaded
from hw_profiles.conformal import Calibration, calibrate
from hw_profiles.costs import CostModel, Costs, cost_model
from hw_profiles.costs.cpu import cache_bytes
from hw_profiles.costs.threads import longest_part
from hw_profiles.errors import UnsupportedSettingError
from hw_profiles.kernel import Array, KernelBatch
from hw_profiles.local import VECTOR_FACTORS, slower
from hw_profiles.refit import NETWORK, Flat, design, flatten, nearest, refit
from hw_profiles.residual import Observed, Residual, View, cells_of, features, fit_residual, touched_bytes
from hw_profiles.target import Target, load_target
from hw_profiles.threaded import Single, after_divided, fit_numbers, fixed_us, kernel_us, own_us, touching

#: Networks below which nothing is left out to calibrate: the interval stays the prior's, then narrows.
LEAST_TO_CALIBRATE = 12
#: Relative spread of a measurement beyond which its error is its own: it calibrates no interval.
STEADY = 0.05
FOLDS = 5
#: Kernels faster than this tell nothing by themselves: the profiler counts whole microseconds, and with
#: several threads it adds 2 to 3 of its own to each.
LEAST_KERNEL_US, LEAST_DIVIDED_US = 2.0, 4.0
#: The same where several threads rest on one: a kernel's own time is what the profiler says less 3 to 4.
LEAST_OWN_US, LEAST_OWN_SHARE = 12.0, 0.3
_LEAST_US = 0.05


class Measured(Protocol):
    """One network: its kernels (1, K), ms, relative sigma, and its kernels' raw microseconds or None."""

    @property
    def batch(self) -> KernelBatch: ...
    @property
    def ms(self) -> float: ...
    @property
    def sigma(self) -> float: ...
    @property
    def kernel_us(self) -> Array | None: ...


@dataclass(frozen=True, eq=False)
class Observation:
    """One measured network, see `Measured`."""

    batch: KernelBatch
    ms: float
    sigma: float
    kernel_us: Array | None = None


@dataclass(frozen=True, eq=False)
class Learned:
    """What was learned of a target from a profile. `networks` and `kernels` were measured; `error` is the
    median relative error of networks left out of the fit (NaN where too few to leave any out).

    Several threads may rest on what one thread was measured to take, `single`: `numbers` say what becomes of
    it (`hw_profiles.threaded`), and the residual is on that.
    """

    target: Target
    threads: int
    residual: Residual
    calibration: Calibration
    networks: int
    kernels: int
    error: float
    origin: Mapping[str, str] = field(default_factory=dict)
    single: Learned | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    _model: CostModel = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_model", cost_model(self.target))

    def price(self, batch: KernelBatch) -> tuple[Costs, Array]:
        """(costs with the residual in them, (P,) difficulty: expected log spread of each network)."""
        costs, sigma, scatter, numbers = self._priced(self.view(batch), spread=True)
        kernel = costs.busy_us + costs.overhead_us
        return costs, spread(kernel, costs.network_us, sigma, scatter, numbers)

    def costs(self, batch: KernelBatch) -> Costs:
        """Costs with the residual in them alone, which takes a third of the time."""
        return self._priced(self.view(batch), spread=False)[0]

    def view(self, batch: KernelBatch) -> View:
        """Kernels as the learned functions see them."""
        return View(batch, *cache_bytes(self.target))

    def _priced(self, view: View, spread: bool) -> tuple[Costs, Array, Array, NDArray[np.intp]]:
        costs = self._before(view)
        factor, sigma, scatter, numbers = self.residual(view, self.threads, spread)
        grown = np.exp(factor)
        learned = replace(
            costs,
            busy_us=np.maximum(costs.busy_us, _LEAST_US - costs.overhead_us) * grown,
            overhead_us=costs.overhead_us * grown,
            network_us=costs.network_us * float(np.exp(self.residual.fixed)),
        )
        return learned, sigma, scatter, numbers

    def _before(self, view: View) -> Costs:
        """Costs without the residual. What one thread takes is of the same target (`learn`)."""
        if self.single is None:
            return self._model.price(view.batch, self.threads)
        costs = self.single._priced(view, spread=False)[0]
        part = view.part(self.threads)
        alone = Single(
            costs.busy_us + costs.overhead_us,
            part,
            after_divided(part, touching(view.batch)),
            costs.classes,
            costs.network_us,
        )
        return replace(
            costs,
            busy_us=kernel_us(self.numbers, alone),
            overhead_us=np.zeros(view.batch.shape[1]),
            network_us=fixed_us(self.numbers, alone),
        )

    @property
    def backing(self) -> str:
        """What a prediction rests on, one line."""
        kernels = f" and {self.kernels} kernels" if self.kernels else ""
        what = f"{self.networks} networks{kernels} measured"
        device = self.origin.get("device", "")
        what += f" on {device}" if device else ""
        what += f" on {self.origin['date']}" if self.origin.get("date") else ""
        what += f" with {self.origin['runtime']}" if self.origin.get("runtime") else ""
        threads = f", {self.threads} thread{'s' * (self.threads > 1)}"
        if self.single is not None:
            threads += f", and {self.single.networks} with one"
        known = f", held-out median error {self.error:.1%}" if np.isfinite(self.error) else ""
        return what + threads + known


def spread(
    kernel_us: Array, network_us: float, sigma: Array, scatter: Array, numbers: NDArray[np.intp]
) -> Array:
    """(P,) expected standard deviation of a network's log latency.

    Kernels of one kind err together (their function is off), their scatter adds up as if independent.
    """
    total = kernel_us.sum(axis=1) + network_us
    share = kernel_us / total[:, None]
    alike = np.zeros((len(total), int(numbers.max()) + 1))
    rows = np.broadcast_to(np.arange(len(total))[:, None], numbers.shape)
    np.add.at(alike, (rows.ravel(), numbers.ravel()), (share * sigma).ravel())
    return np.asarray(np.sqrt((alike**2).sum(axis=1) + ((share * scatter) ** 2).sum(axis=1)))


def learn(
    measured: Sequence[Measured],
    target: Target,
    threads: int = 1,
    seed: int = 0,
    origin: Mapping[str, str] | None = None,
    *,
    calibrated: bool = True,
    single: Learned | None = None,
) -> Learned:
    """Fit everything to measured networks; none give the target as it is. Deterministic by seed.

    `single`: what was learned of one thread. Several threads then rest on it.

    Without `calibrated` nothing is left out (six times faster) and intervals stay the prior's: for planning.

    Raises UnsupportedSettingError for a target that is no CPU: others are corrected by whole networks.
    """
    loops = loops_of(target)
    if not measured:
        prior = Calibration.of_prior(target.cost, threads)
        return Learned(target, threads, Residual(), prior, 0, 0, float("nan"), dict(origin or {}))
    target = loops
    flat = flatten([(m.batch, m.ms, m.sigma) for m in measured], [m.kernel_us for m in measured], target)
    single = single if threads > 1 and single is not None and single.networks else None
    flat = _scaled(flat, target) if single is None else flat
    model = _fit(flat, target, threads, seed, single)
    errors, levels = (
        _left_out(flat, target, threads, seed, single) if calibrated else (np.zeros(0), np.zeros(0))
    )
    if len(errors):
        steady = flat.sigma <= STEADY
        if steady.sum() >= LEAST_TO_CALIBRATE:
            errors, levels = errors[steady], levels[steady]
    calibration = calibrate(errors, levels, target.cost, threads)
    error = float(np.median(np.abs(np.expm1(errors)))) if len(errors) else float("nan")
    kernels = int(np.isfinite(flat.kernel_us).sum())
    return replace(
        model, calibration=calibration, networks=len(flat), kernels=kernels, error=error,
        origin=dict(origin or {}),
    )  # fmt: skip


def loops_of(target: Target) -> Target:
    """The target with the cost model whose constants belong to single kernels, which a profile can refit.

    A model of whole published networks ("arm") has none: the loops of `costs.cpu` take its place, scaled to
    the core's vectors, as soon as kernels were measured. Raises UnsupportedSettingError for what is no CPU.
    """
    if target.cost.model == "cpu":
        return target
    if target.kind != "cpu":
        raise UnsupportedSettingError(
            f"profiles correct CPU targets; {target.name} has the cost model {target.cost.model!r}"
        )
    cost = slower(load_target("x86-avx512-vnni").cost, *VECTOR_FACTORS["arm64"])
    return target.model_copy(update={"cost": cost})


def _scaled(flat: Flat, target: Target) -> Flat:
    """Kernels' raw microseconds made to sum to the network's: the profiler adds some to each of them.

    What it adds is taken off evenly, the rest scaled; the fixed cost of a run belongs to no kernel. Kernels
    that take less than the profiler's clock can tell are left to the sums.
    """
    constant = target.cost.constants.get("network", {}).get("overhead")
    fixed = constant.value * 1e-3 if constant is not None else 0.0
    raw = flat.kernel_us + 0.5  # it rounds down
    whole = np.maximum(flat.network_us - fixed, 0.5 * flat.network_us)
    count = np.maximum(np.bincount(flat.owner, minlength=len(flat)), 1)
    added = np.maximum(0.0, (flat.sums(raw) - whole) / count)
    least = np.full(len(flat), np.inf)
    np.fmin.at(least, flat.owner, raw)
    trimmed = np.maximum(raw - np.minimum(added, least)[flat.owner], 0.2)
    times = trimmed * (whole / flat.sums(trimmed))[flat.owner]
    return replace(flat, kernel_us=times)


def _audible(flat: Flat, price_us: Array, threads: int) -> Flat:
    """Without the times of kernels that are expected to take less than the profiler can tell.

    Expected, not measured: of those at the border the measured ones would be left in when too long.
    """
    least = LEAST_KERNEL_US if threads == 1 else LEAST_DIVIDED_US
    return replace(flat, kernel_us=np.where(price_us >= least, flat.kernel_us, np.nan))


def _fit(flat: Flat, target: Target, threads: int, seed: int, single: Learned | None = None) -> Learned:
    """What a profile teaches, without calibration."""
    unknown = Calibration.of_prior(target.cost, threads)
    if single is not None:
        numbers, residual = _fit_threaded(flat, threads, seed, single)
        return Learned(
            single.target, threads, residual, unknown, 0, 0, float("nan"), single=single, numbers=numbers
        )
    fitted, residual = _fit_alone(flat, target, threads, seed)
    return Learned(fitted, threads, residual, unknown, 0, 0, float("nan"))


def _fit_threaded(flat: Flat, threads: int, seed: int, single: Learned) -> tuple[dict[str, float], Residual]:
    """(numbers, residual) of several threads: numbers from whole networks, the rest from kernels as well."""
    priced = [single.costs(flat.network(n)) for n in range(len(flat))]
    part = longest_part(flat.batch, threads)
    alone = Single(
        np.concatenate([(c.busy_us + c.overhead_us)[0] for c in priced])[None],
        part,
        flat.after_divided(part),
        np.concatenate([c.classes for c in priced]),
        priced[0].network_us,
    )
    numbers = fit_numbers(flat.owner, flat.network_us, alone)
    price, fixed = (
        np.maximum(kernel_us(numbers, alone)[0], _LEAST_US),
        max(fixed_us(numbers, alone), _LEAST_US),
    )
    seen = Observed(
        price, fixed, flat.owner, _own_us(flat, part, price, fixed), flat.network_us, flat.sigma
    )  # fmt: skip
    names, found = cells_of(flat.batch, flat.cold, part)
    x = _shapes(flat, cache_bytes(single.target)[0])
    return numbers, fit_residual(names, found[0], x, seen, seed, threaded.SHAPE_SIGMA, threaded.POINTS)


def _own_us(flat: Flat, part: Array, price_us: Array, fixed_us: float) -> Array:
    """(n,) what kernels of steady networks take on several threads, NaN where the profiler cannot tell."""
    profiled = flat.kernel_us + 0.5  # it rounds down
    excess = flat.sums(profiled) + fixed_us - flat.network_us
    excess = np.where(flat.sigma <= STEADY, excess, np.nan)
    own = own_us(flat.owner, profiled, excess, flat.network_us, part[0] < 1.0, touching(flat.batch))
    told = (price_us >= LEAST_OWN_US) & (own > LEAST_OWN_SHARE * price_us) & np.isfinite(excess[flat.owner])
    return np.where(told, own, np.nan)


def _shapes(flat: Flat, core_bytes: float) -> NDArray[np.float32]:
    touched = flat.sums(touched_bytes(flat.batch)[0])[flat.owner][None]
    return np.asarray(features(flat.batch, flat.cold[0], core_bytes, touched)[0])


def _fit_alone(flat: Flat, target: Target, threads: int, seed: int) -> tuple[Target, Residual]:
    counts = design(flat, target, threads)
    first = counts.nanoseconds(nearest(counts.entries, target)) * 1e-3
    common = float(np.median(flat.network_us / flat.sums(np.maximum(first, _LEAST_US))))
    fitted = refit(_audible(flat, first * common, threads), target, threads)
    constants = nearest((*counts.entries, NETWORK), fitted)
    price = counts.nanoseconds(constants)
    flat = _audible(flat, price * 1e-3, threads)
    part = None if threads == 1 else longest_part(flat.batch, threads)
    names, numbers = cells_of(flat.batch, flat.cold, part)
    seen = Observed(
        np.maximum(price * 1e-3, _LEAST_US), max(constants[NETWORK] * 1e-3, _LEAST_US),
        flat.owner, flat.kernel_us, flat.network_us, flat.sigma,
    )  # fmt: skip
    x = _shapes(flat, cache_bytes(target)[0])
    return fitted, fit_residual(names, numbers[0], x, seen, seed)


def _left_out(
    flat: Flat, target: Target, threads: int, seed: int, single: Learned | None = None
) -> tuple[Array, Array]:
    """(log errors, difficulty) of networks left out of the fit in turn, (N,) each."""
    count = len(flat)
    if count < LEAST_TO_CALIBRATE:
        return np.zeros(0), np.zeros(0)
    fold = np.random.default_rng(seed).permutation(count) % FOLDS
    errors, levels = np.zeros(count), np.zeros(count)
    for i in range(FOLDS):
        model = _fit(flat.take(np.flatnonzero(fold != i)), target, threads, seed, single)
        for n in np.flatnonzero(fold == i):
            costs, level = model.price(flat.network(int(n)))
            total = float(np.sum(costs.busy_us + costs.overhead_us)) + costs.network_us
            errors[n], levels[n] = np.log(flat.network_us[n] / total), level[0]
    return errors, levels


__all__ = ["Learned", "Measured", "Observation", "learn", "spread"]
