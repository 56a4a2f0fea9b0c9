"""Everything a search needs, resolved from its configuration before anything is paid for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from agents.contract import Budget, Losses, Problem, Relaxation
from compressors.loose import bytes_of
from compressors.policy import ResolvedPolicy
from compressors.space import Abilities, PolicySpace
from hw_profiles.predictor import Predictor
from hw_profiles.target import Target, load_target

from .abilities import abilities_of, base_policy_of
from .builds import chosen_build
from .errors import InputError, UsageError, did_you_mean
from .estimate import Estimator
from .exporters import exporter_of
from .lowering import Lowering
from .profile import known_predictor
from .ranges import AUTO, chosen_ranges
from .score import Score, Scorer, interval
from .study import priced
from .task import Task, load_task, prepared, score_network

if TYPE_CHECKING:
    from agents.past import PastStudy
    from hw_profiles.devices.contract import Device

    from .config import RunConfig

#: Median relative error up to which agents propose by estimates; beyond it by exact costs, which take longer.
ESTIMATED = 0.15


@dataclass
class Setup:
    """One problem, ready to be searched. Prices change when measurements correct the predictor."""

    config: RunConfig
    task: Task
    target: Target
    scorer: Scorer
    space: PolicySpace
    lowering: Lowering
    base_policy: ResolvedPolicy
    base_costs: dict[str, float]
    base_score: Score
    budget: Budget
    estimator: Estimator | None = None
    device: Device | None = None
    measured: dict[str, float] = field(default_factory=dict)
    profile_note: str = ""
    build_note: str = ""
    ranges_note: str = ""
    past: Callable[[], Sequence[PastStudy]] | None = None
    timings: dict[str, float] = field(default_factory=dict)
    known_losses: Losses | None = None
    known_around: dict[tuple[int, ...], Losses] = field(default_factory=dict)
    #: Called with the losses once they are known, unless a journal held them.
    tell_losses: Callable[[Losses, tuple[int, ...] | None], object] | None = None

    _relaxed: Relaxation | None = field(default=None, repr=False)

    @property
    def problem(self) -> Problem:
        """The problem as agents see it, with today's prices."""
        return Problem(
            space=self.space,
            budget=self.budget,
            costs=self.costs,
            base_accuracy=self.base_score.value,
            higher_is_better=self.task.metric.higher_is_better,
            objective=self.config.objective,
            losses=self.losses,
            losses_around=self.losses_around,
            evaluations=self.config.evaluations,
            estimates=self.estimates if self.estimator is not None else None,
            relaxation=self.relaxation,
            past=self.past,
        )

    def losses(self) -> Losses:
        """What each change alone loses (`search.sensitivity`); worked out when first asked for."""
        if self.known_losses is None:
            from .sensitivity import measured_once

            start = time.perf_counter()
            self.known_losses = measured_once(self)
            self._told(self.known_losses, None, start)
        return self.known_losses

    def losses_around(self, at: Sequence[int]) -> Losses:
        """As `losses`, with the other coordinates at the value indices ``at`` (d,)."""
        key = tuple(int(v) for v in at)
        if key not in self.known_around:
            from .sensitivity import measured_around

            start = time.perf_counter()
            self.known_around[key] = measured_around(self, key)
            self._told(self.known_around[key], key, start)
        return self.known_around[key]

    def _told(self, losses: Losses, at: tuple[int, ...] | None, start: float) -> None:
        self.timings["sensitivity"] = self.timings.get("sensitivity", 0.0) + time.perf_counter() - start
        if self.tell_losses is not None:
            self.tell_losses(losses, at)

    def relaxation(self) -> Relaxation:
        """The network differentiable in the choices; built when first asked for."""
        if self._relaxed is None:
            from .relaxed import relaxed_network

            self._relaxed = relaxed_network(self.scorer, self.space, self.config.seed)
        return self._relaxed

    def estimates(self, policies: Sequence[ResolvedPolicy]) -> dict[str, NDArray[np.float64]]:
        """Quick estimates of what `costs` gives, by which agents propose."""
        if self.estimator is None:
            return self.costs(policies)
        table = self.estimator.costs(policies, self.budget.limits)
        if self.config.risk is not None:
            table["latency_high_ms"] = table["latency_ms"] * self.lowering.predictor.quantile_factor(
                self.config.risk
            )
        return table

    def costs(self, policies: Sequence[ResolvedPolicy]) -> dict[str, NDArray[np.float64]]:
        """Prices of many policies, measured where they were; ``latency_high_ms`` is the bound of a risk."""
        table = self.predicted(policies)
        for i, policy in enumerate(policies if self.measured else ()):
            ms = self.measured.get(policy.digest)
            if ms is not None:  # a measurement is no estimate: it is the price, and its own bound
                for name in ("latency_ms", "latency_low_ms", "latency_high_ms"):
                    if name in table:
                        table[name][i] = ms
        return table

    def predicted(self, policies: Sequence[ResolvedPolicy]) -> dict[str, NDArray[np.float64]]:
        """As `costs`, without regard to what was measured."""
        table = {name: np.array(values) for name, values in self.lowering.costs(policies).items()}
        if self.config.risk is not None:
            table["latency_high_ms"] = table["latency_ms"] * self.lowering.predictor.quantile_factor(
                self.config.risk
            )
        return table

    def corrected(self, predictor: Predictor, measured: Mapping[str, float] | None = None) -> None:
        """Take a corrected predictor and latencies by policy digest: prices, base and budget follow."""
        self.lowering.predictor = predictor
        self.measured.update(measured or {})
        self.base_costs = priced(self.costs, [self.base_policy])[0]
        self.budget = self.config.budget(self.base_costs)

    @property
    def emulated(self) -> str:
        """A sentence where the device at hand is an emulation, else ""."""
        facts = None if self.device is None else self.device.facts()
        if facts is None or not facts.emulated:
            return ""
        return f"{self.target.name} is emulated ({facts.emulated}): measured times are the emulation's"

    def priced(self, policy: ResolvedPolicy) -> dict[str, float]:
        """Costs of one policy by name."""
        return priced(self.costs, [policy])[0]

    def predicted_of(self, policy: ResolvedPolicy) -> dict[str, float]:
        """Costs of one policy by name, all predicted."""
        return priced(self.predicted, [policy])[0]


def load_setup(config: RunConfig, task: Task | None = None, target: Target | None = None) -> Setup:
    """Task, target, network, space, prices and budget of a configuration with one target.

    Raises the errors of each part; with ``strict`` an InputError for a layer that must be left alone.
    """
    start = time.perf_counter()
    task = prepared(task) if task is not None else load_task(config.task_spec())
    target = target if target is not None else load_target(config.target[0])
    exporter_of(target).require()
    abilities = _abilities(config, target)
    _check_choices(config)
    scorer = Scorer.of(task, abilities.numerics, abilities.criterion)
    structure = scorer.network.structure
    target, build_note = chosen_build(config, target, scorer.network)
    abilities = _abilities(config, target)  # another build counts channels in other steps
    batch = config.batch if config.batch is not None else target.default_batch
    ranges, ranges_note = chosen_ranges(config.ranges, abilities, target, scorer.network, batch)
    abilities = replace(abilities, ranges=ranges)
    _check_skip(config.skip, [x.name for x in structure.layers])
    space = PolicySpace(structure, abilities)
    stuck = untouched(space) if config.strict else []
    if stuck:
        name, reason = stuck[0]
        more = f" (and {len(stuck) - 1} more layers)" if len(stuck) > 1 else ""
        raise InputError(
            f"--strict: nothing can be done to layer {name!r}: {reason}{more}.",
            "Leave --strict out to search the rest.",
        )
    if space.dimension == 0:
        raise InputError(
            f"nothing of task {task.name!r} can be compressed for {target.name}.",
            "See `search --dry-run` for the reasons, layer by layer.",
        )
    device = device_at_hand(config, target)
    predictor, note = known_predictor(Predictor(target, config.threads), device)
    lowering = Lowering(structure, target, batch, config.threads, scorer.network.weights, predictor)
    base = base_policy_of(space, target)
    scores = score_network(task, task.network, task.validation)
    mean, std, low, high = interval(scores)
    setup = Setup(
        config,
        task,
        target,
        scorer,
        space,
        lowering,
        base,
        {},
        Score(mean, std, low, high, len(scores), 0.0),
        Budget(),
    )
    setup.device, setup.profile_note, setup.build_note = device, note, build_note
    setup.ranges_note = ranges_note
    setup.base_costs = setup.priced(base)
    setup.budget = config.budget(setup.base_costs)
    if setup.budget.max_memory_bytes is None:  # peak memory is a fact of a whole template
        estimator = Estimator.learned(space, lowering)
        setup.estimator = estimator if estimator.error <= ESTIMATED else None
    setup.timings["set-up"] = time.perf_counter() - start
    return setup


def _abilities(config: RunConfig, target: Target) -> Abilities:
    return replace(
        abilities_of(target, config.methods, config.bits, config.min_keep, config.skip),
        criterion=config.criterion,
        scales=config.scales,
    )


def device_at_hand(config: RunConfig, target: Target) -> Device | None:
    """Where networks of this target can be timed: this machine, what `--host` names, or nowhere (None).

    A worker of the cluster at `--ray-address` that has the target as a resource comes first.
    Raises UsageError for a runtime that devices do not run.
    """
    if config.ray_address is not None and target.name != "local" and target.runtime.name == "onnxruntime":
        from .cluster import device_worker

        worker = device_worker(config.ray_address, target.name, config.host, config.token)
        if worker is not None:
            return worker
    if target.name == "local" and config.host is None:
        from hw_profiles.devices.local import LocalDevice

        return LocalDevice()
    if config.host is None:
        return None
    if target.runtime.name != "onnxruntime":
        raise UsageError(
            f"devices run onnxruntime, and {target.name} is a target of {target.runtime.name}.",
            "Leave --host out, or search the device's target for onnxruntime.",
        )
    from hw_profiles.devices.opening import open_device

    device = open_device(target.name, config.host, config.token)
    if device.unit != "ms":
        raise UsageError(
            f"--host {config.host} counts {device.unit}, not time: no latency can be measured there.",
            "`search profile --host` takes it: a profile of instructions.",
        )
    return device


def _check_choices(config: RunConfig) -> None:
    """Before anything is evaluated; a task's own file may have registered more."""
    from compressors.importance import CRITERIA
    from compressors.quantize import RANGES, WEIGHT_SCALES

    chosen = ((CRITERIA, config.criterion), (RANGES, config.ranges), (WEIGHT_SCALES, config.scales))
    for known, name in chosen:
        if name not in known and (known is not RANGES or name != AUTO):
            near = did_you_mean(name, known) or f"There are {', '.join(known)}."
            raise UsageError(f"unknown {known.kind} {name!r}. {near}", "See `search methods`.")


def untouched(space: PolicySpace) -> list[tuple[str, str]]:
    """(name, bytes that stay and why) of what bears weights and no choice changes; what the user skips aside.

    Layers, and weights that are multiplied by an operation that is not a layer. Embeddings, tables, norms
    and scales do not count: they are listed in the structure's notes.
    """
    structure, abilities = space.structure, space.abilities
    reached: set[str] = set()
    for c in space.choices:
        if c.kind == "keep":
            reached.update(structure.group[c.subject].layers)
        elif c.kind == "removed":
            reached.update(structure.block[c.subject].layers)
        elif c.kind in ("rank", "weight_bits"):
            reached.add(c.subject)
    if any(c.kind == "act_bits" for c in space.choices):
        reached |= {
            x.name for x in structure.layers if "bits" not in x.fixed and abilities.has_integer_kernel(x)
        }
    params = structure.graph.params
    found = [
        (
            x.name,
            f"{bytes_of(params[x.weight])} bytes stay as they are: "
            + ("; ".join(f"{k}: {why}" for k, why in x.fixed.items()) or "the target has no kernels for it"),
        )
        for x in structure.layers
        if x.name not in reached
    ]
    found += [(x.subject, x.reason) for x in structure.loose if x.weighs]
    return [(name, why) for name, why in found if not any(fnmatchcase(name, p) for p in abilities.skip)]


def _check_skip(patterns: Sequence[str], layers: Sequence[str]) -> None:
    """A pattern that means no layer is a slip of the pen, and would be found out by the result only."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in layers):
            near = did_you_mean(pattern, layers) or f"There are {', '.join(layers[:8])}."
            raise UsageError(f"--skip {pattern!r} matches no layer. {near}")


__all__ = ["Setup", "base_policy_of", "device_at_hand", "load_setup", "untouched"]
