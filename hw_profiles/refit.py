"""Refitting the loop constants of a CPU cost model to a profile, held to what they were before.

Prices are linear in the constants (`hw_profiles.costs.cpu`): ridge regression under non-negativity, in
relative errors, whose target is the prior's constants times a factor for their class of cost, these held to
one common factor. Nothing measured: nothing changes; a table of constants that no measured kernel uses moves
with its class alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from hw_profiles.correction import class_scales
from hw_profiles.costs import cpu, cpu_loops
from hw_profiles.costs.base import CLASSES, Shapes
from hw_profiles.costs.threads import longest_part
from hw_profiles.kernel import COLUMNS, Array, KernelBatch, activation_width
from hw_profiles.target import Constant, Target
from hw_profiles.threaded import after_divided, touching

Key = tuple[str, str]

#: Pseudo-measurements that hold every constant's share of a kernel's time to the prior's.
SHRINKAGE = 1.0
#: And each constant to the prior's by this share of it: a kernel's 10 % spread over the constant's 70 %.
CONSTANT_WEIGHT = 0.14
#: Networks that tell of a constant which the prior has not, before it gets one.
LEAST_NETWORKS = 20
#: Kernels are known to a fraction of a microsecond: the profiler counts whole ones.
FLOOR_US = 1.5
#: A whole network counts as much as so many kernels: its time is measured directly.
NETWORK_WEIGHT = 4.0
#: Spread of a whole network about the prior scaled class by class: what one network tells of the classes.
PRIOR_SIGMA = 0.15
#: A network's fixed cost (binding inputs, fetching outputs) belongs to no kernel.
NETWORK = ("network", "overhead")
#: What a kernel waits for its threads, where there are several.
WAIT = ("parallel", "wait")


@dataclass(frozen=True, eq=False)
class Flat:
    """Kernels of many networks one after the other: a batch (1, n), whose network each is, their times.

    `owner` (n,) indexes networks; `kernel_us` (n,) is NaN where only the whole was measured; `network_us`
    and `sigma` (N,) are the wholes and their relative spread; `cold` are (1, n) shares, see `cold_shares`.
    """

    batch: KernelBatch
    owner: NDArray[np.intp]
    kernel_us: Array
    network_us: Array
    sigma: Array
    cold: tuple[Array, Array] = field(repr=False)

    def __len__(self) -> int:
        return len(self.network_us)

    def sums(self, values: Array) -> Array:
        """(N,) sums over each network's kernels of values (n,)."""
        return np.asarray(np.bincount(self.owner, weights=values, minlength=len(self)), dtype=np.float64)

    def after_divided(self, part: Array) -> Array:
        """(1, n) as of `threaded.after_divided`: no network's first kernel comes after another's last."""
        first = np.searchsorted(self.owner, np.arange(len(self)))[self.owner]
        return after_divided(part, touching(self.batch), first)

    def network(self, n: int) -> KernelBatch:
        """The kernels of network n, (1, K)."""
        return self.take([n]).batch

    def take(self, networks: Sequence[int] | NDArray[np.intp]) -> Flat:
        """Some of the networks, in the given order."""
        chosen = np.asarray(networks, dtype=np.intp)
        starts = np.searchsorted(self.owner, np.arange(len(self) + 1))
        index = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in chosen] or [np.zeros(0, int)])
        kinds = tuple(self.batch.kinds[i] for i in index)
        batch = KernelBatch(kinds, {name: self.batch.columns[name][:, index] for name in COLUMNS})
        lengths = starts[chosen + 1] - starts[chosen]
        return Flat(
            batch,
            np.repeat(np.arange(len(chosen)), lengths),
            self.kernel_us[index],
            self.network_us[chosen],
            self.sigma[chosen],
            (self.cold[0][:, index], self.cold[1][:, index]),
        )


def flatten(
    networks: Sequence[tuple[KernelBatch, float, float]], kernel_us: Sequence[Array | None], target: Target
) -> Flat:
    """Networks as (batch of one policy, ms, relative sigma), and each one's kernels' microseconds or None."""
    batches = [batch for batch, _, _ in networks]
    columns = {name: np.concatenate([b[name][:1] for b in batches], axis=1) for name in COLUMNS}
    kinds = tuple(kind for b in batches for kind in b.kinds)
    lengths = [len(b.kinds) for b in batches]
    core, last = cpu.cache_bytes(target)
    colds = [cpu.cold_shares(b.row(0), core, last) for b in batches]
    times = [np.full(n, np.nan) if us is None else us for n, us in zip(lengths, kernel_us, strict=True)]
    return Flat(
        KernelBatch(kinds, columns),
        np.repeat(np.arange(len(batches)), lengths),
        np.concatenate(times),
        np.array([ms * 1e3 for _, ms, _ in networks]),
        np.array([sigma for _, _, sigma in networks]),
        tuple(  # type: ignore[arg-type]
            np.repeat([float(cold[i][0, 0]) for cold in colds], lengths)[None, :] for i in (0, 1)
        ),
    )


def tables_of(batch: KernelBatch, cold: tuple[Array, Array]) -> NDArray[np.object_]:
    """(P, K) name of the table of constants that prices each kernel; "" for views."""
    found = np.empty(batch.shape, dtype=object)
    for name, members in cpu.families(batch.kinds).items():
        index = np.asarray(members, dtype=np.intp)
        if name == "simple":
            found[:, index] = [cpu.simple_table(batch.kinds[i]) for i in index]
        elif name.startswith("gemm"):
            found[:, index] = name
        else:
            names = np.array(cpu.variant_tables(name), dtype=object)
            found[:, index] = names[cpu.variants(name, Shapes(batch, index, cold))]
    return found


@dataclass(frozen=True, eq=False)
class Design:
    """Loop counts: per constant the kernels that it prices and how often, threads accounted for."""

    entries: dict[Key, tuple[NDArray[np.intp], Array]]
    tables: NDArray[np.object_]
    kernels: int

    def nanoseconds(self, constants: dict[Key, float]) -> Array:
        """(n,) time of every kernel."""
        total = np.zeros(self.kernels)
        for key, (index, counts) in self.entries.items():
            value = constants.get(key, 0.0)
            if value:
                total[index] += value * counts
        return total


def design(flat: Flat, target: Target, threads: int) -> Design:
    """Loop counts of all kernels, as `CpuCost` would weigh them."""
    batch = flat.batch
    entries: dict[Key, tuple[NDArray[np.intp], Array]] = {}
    tables = tables_of(batch, flat.cold)[0]
    shares = {name: _constant(target, ("parallel", name)) for name in CLASSES}
    classes = cpu.classes_of(batch, tables)
    part = longest_part(batch, threads)[0]
    share = np.array([shares[c] for c in CLASSES])[classes]
    factor = 1.0 - share + share * part
    for table in np.unique(tables.astype(str)):
        index = np.flatnonzero(tables == table)
        cold = (flat.cold[0][:, index], flat.cold[1][:, index])
        shapes = Shapes(batch, index, cold)
        if table in cpu_loops.MODELS:
            features = cpu_loops.MODELS[table](shapes)
        else:
            features = {}
            if table:
                widths = np.array([activation_width(batch.kinds[i]) for i in index]).T
                features = cpu.simple_features(shapes, widths[0], widths[1])
                if "pool" not in table:
                    features.pop("taps", None)  # the same as what is written
        name = table or "view"
        for feature, counts in features.items():
            values = np.broadcast_to(counts, (1, len(index)))[0] * factor[index]
            _put(entries, (name, feature), index, values)
        _put(entries, (name, "overhead"), index, np.ones(len(index)))
    divided = np.flatnonzero(part < 1.0)
    _put(entries, WAIT, divided, np.ones(len(divided)))
    return Design(entries, tables, len(batch.kinds))


def _put(
    entries: dict[Key, tuple[NDArray[np.intp], Array]], key: Key, index: NDArray[np.intp], counts: Array
) -> None:
    if key in entries:
        index, counts = np.concatenate([entries[key][0], index]), np.concatenate([entries[key][1], counts])
    if np.any(counts > 0.0):
        entries[key] = (index, np.asarray(counts))


def nearest(keys: Iterable[Key], target: Target) -> dict[Key, float]:
    """The target's constant of every key; of a table that it lacks, the nearest one's."""
    return {
        key: _constant(target, key if key == WAIT else (cpu.resolved(target, key[0]), key[1])) for key in keys
    }


def _constant(target: Target, key: Key) -> float:
    found = target.cost.constants.get(key[0], {}).get(key[1])
    return found.value if found is not None else 0.0


def refit(flat: Flat, target: Target, threads: int = 1, shrinkage: float = SHRINKAGE) -> Target:
    """The target with constants fitted to kernels and whole networks together."""
    if not len(flat):
        return target
    prior = {
        (table, name): c.value
        for table, entries in target.cost.constants.items()
        if table != "parallel"
        for name, c in entries.items()
    }
    counts = design(flat, target, threads)
    keys = [*counts.entries, NETWORK]
    anchors = nearest(keys, target)
    keys = [key for key in keys if anchors[key] > 0.0 or _often(flat, counts.entries[key])]
    scales = _scales(flat, counts, anchors)
    first = {key: scales[_class(key)] for key in (*prior, *keys)}
    matrix, goal = _equations(flat, counts, keys)
    anchor = np.array([anchors[key] * first[key] for key in keys])
    share = np.sqrt(np.mean(matrix**2, axis=0) * len(matrix) / np.maximum((matrix > 0.0).sum(axis=0), 1))
    share[share == 0.0] = 1.0
    # Variables in units of relative time: the penalty asks for one share of a kernel's time like another.
    relative = np.divide(CONSTANT_WEIGHT, anchor * share, out=np.zeros(len(keys)), where=anchor > 0.0)
    hold = np.sqrt(shrinkage + relative**2)
    stacked = np.vstack([matrix / share, np.diag(hold)])
    wanted = np.concatenate([goal, hold * anchor * share])
    gram, moment = stacked.T @ stacked, stacked.T @ wanted
    root = np.linalg.cholesky(gram + 1e-9 * np.trace(gram) / len(keys) * np.eye(len(keys))).T
    found = nnls(root, np.linalg.solve(root.T, moment), maxiter=50 * len(keys))[0] / share
    values = {key: 0.0 for key in counts.entries if key[1] == "overhead"}
    values |= {key: value * first[key] for key, value in prior.items()}
    values |= dict(zip(keys, map(float, found), strict=True))
    return with_constants(target, values, f"refitted to {len(flat)} networks measured on the device")


def _often(flat: Flat, entry: tuple[NDArray[np.intp], Array]) -> bool:
    """Whether enough networks tell of a constant that the prior has not: few would set it at random."""
    index, amounts = entry
    return len(np.unique(flat.owner[index[amounts > 0.0]])) >= LEAST_NETWORKS


def _class(key: Key) -> int:
    """Index into CLASSES of a constant."""
    return CLASSES.index("overhead") if key[1] == "overhead" or key == WAIT else cpu.class_of_table(key[0])


def _scales(flat: Flat, counts: Design, anchors: dict[Key, float]) -> Array:
    """(C,) factors on the prior's classes of cost that whole networks ask for, held together loosely."""
    parts = np.zeros((len(flat), len(CLASSES)))
    for key, (index, amounts) in counts.entries.items():
        mine = np.bincount(flat.owner[index], weights=amounts, minlength=len(flat))
        parts[:, _class(key)] += anchors[key] * mine
    parts[:, CLASSES.index("overhead")] += anchors[NETWORK]
    return class_scales(parts * 1e-6, flat.network_us * 1e-3, PRIOR_SIGMA)


def _equations(flat: Flat, counts: Design, keys: list[Key]) -> tuple[Array, Array]:
    """Relative-error equations: kernels with a time of their own, then whole networks."""
    measured = flat.kernel_us * 1e3
    known = np.isfinite(measured)
    position = np.cumsum(known) - 1
    rows = int(known.sum())
    matrix = np.zeros((rows + len(flat), len(keys)))
    for j, key in enumerate(keys):
        if key not in counts.entries:
            continue
        index, amounts = counts.entries[key]
        mine = known[index]
        matrix[position[index[mine]], j] = amounts[mine]
        matrix[rows:, j] = np.bincount(flat.owner[index], weights=amounts, minlength=len(flat))
    matrix[rows:, keys.index(NETWORK)] = 1.0
    whole = flat.network_us * 1e3
    goal = np.concatenate([measured[known], whole])
    weights = np.concatenate([1.0 / (measured[known] + FLOOR_US * 1e3), NETWORK_WEIGHT / whole])
    return matrix * weights[:, None], goal * weights


def with_constants(target: Target, values: dict[Key, float], source: str) -> Target:
    """The target with constants replaced; those it had none of are added."""
    constants = {table: dict(entries) for table, entries in target.cost.constants.items()}
    for (table, name), value in values.items():
        constants.setdefault(table, {})[name] = Constant(value=value, source=source)
    return target.model_copy(update={"cost": target.cost.model_copy(update={"constants": constants})})


__all__ = ["NETWORK", "Design", "Flat", "design", "flatten", "nearest", "refit", "with_constants"]
