"""Short recovery of a chosen policy: distillation from the uncompressed network, best checkpoint kept.

First the float network learns, then, where bits are few, the folded network learns on with rounding in the
loop (`search.distil`). What comes out is quantised like any policy. A recovery trains up to one comparison on
validation data at a time; between two of them it can be put on disk and taken up again (`search.recovering`).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from compressors.apply import finish, reduced
from compressors.compressed import Compressed
from compressors.errors import NumericsError
from compressors.network import Network
from compressors.policy import ResolvedPolicy
from compressors.resolve import Numerics

from .distil import CPU, TRYING, Distiller, Stage, float_stage, folded, one_cycle, rounded_stage
from .memory import give_back
from .recovering import MOMENTS, Best, State
from .score import interval, score_compressed

if TYPE_CHECKING:
    from search.task import Task

#: Checkpoints compared on validation data over a stage, shared by its cycles.
CHECKPOINTS = 6
#: Share of the time that the float network gets where bits are few.
FLOAT_SHARE = 0.6


@dataclass(frozen=True)
class Recovered:
    """The best checkpoint of a recovery; ``before`` and ``after`` are validation metric values.

    ``floats`` are the float network's weights it came from, to go on from there.
    """

    compressed: Compressed
    floats: Mapping[str, Tensor]
    before: float
    after: float
    steps: int
    seconds: float


def recover(
    task: Task,
    network: Network,
    policy: ResolvedPolicy,
    numerics: Numerics,
    seconds: float,
    seed: int = 0,
    stop: threading.Event | None = None,
    floats: Mapping[str, Tensor] | None = None,
) -> Recovered:
    """Train one policy's network for about ``seconds``; never returns worse than it started with.

    Batches come from ``task.batches(seed, 64)``, smaller ones where steps are slow; labels are used only
    where the task has a loss. With ``floats`` of an earlier recovery of the same policy it goes on from
    there.
    """
    one = Recovery(task, network, policy, numerics, seconds, seed=seed, floats=floats)
    while not one.over:
        one.advance(stop)
    found = one.result
    del one
    give_back()
    return found


@dataclass(frozen=True)
class _Part:
    """So many seconds of one kind of stage, with so many comparisons."""

    rounded: bool
    seconds: float
    comparisons: int


class Recovery:
    """One policy's recovery under way.

    Args:
        seconds: of training, comparisons included.
        floats: the float network's weights to begin with; by default those of the compression.
        shares: of the seconds, which sum to 1: a learning-rate cycle through all stages each.
        rate: multiplies the learning rate, which is the best of some that are tried at the start.
        device: where steps are computed.
        most_threads: that a step may take; all by default.
        state: where another process left off.
    """

    def __init__(
        self,
        task: Task,
        network: Network,
        policy: ResolvedPolicy,
        numerics: Numerics,
        seconds: float,
        *,
        seed: int = 0,
        floats: Mapping[str, Tensor] | None = None,
        shares: Sequence[float] = (1.0,),
        rate: float = 1.0,
        device: torch.device = CPU,
        most_threads: int | None = None,
        state: State | None = None,
    ) -> None:
        self.task, self.network, self.policy, self.numerics = task, network, policy, numerics
        self._parts = _parts(policy, seconds, shares)
        self._rate, self._device = rate, device
        self._began = time.perf_counter()
        if state is None:
            weights = dict(floats) if floats is not None else reduced(network, policy)
            first = self._scored(finish(network, policy, numerics, weights))
            state = State(weights, first, first, first.value)
        self.state = state
        self._last: Mapping[str, Tensor] = state.floats
        # another process goes on with other batches: those it had seen would have to be drawn in vain
        self._distiller = Distiller(task, network, (seed + state.steps) % 2**32, device, most_threads)
        self._enter(state.leaves)

    @property
    def over(self) -> bool:
        """Whether there is nothing more to do."""
        return self.state.part >= len(self._parts)

    @property
    def progress(self) -> float:
        """Share of the training that is done, 0..1."""
        if self.over:
            return 1.0
        part = self._parts[self.state.part]
        done = sum(p.seconds for p in self._parts[: self.state.part]) + min(self.state.spent, part.seconds)
        return done / (sum(p.seconds for p in self._parts) or 1.0)

    @property
    def result(self) -> Recovered:
        """The best so far."""
        s = self.state
        return Recovered(s.best.compressed, s.floats, s.before, s.best.value, s.steps, self.seconds)

    @property
    def seconds(self) -> float:
        """Wall time that this recovery took, in all processes."""
        return self.state.earlier + time.perf_counter() - self._began

    def left(self) -> State:
        """Where it stands, for another process to go on."""
        return self.state.at(self._stage, self._adam, self.seconds)

    def advance(self, stop: threading.Event | None = None) -> None:
        """Train up to the next comparison on validation data. With ``stop`` set it comes to its end."""
        s, stage, part = self.state, self._stage, self._parts[self.state.part]
        length = part.seconds
        if stage is None or length <= 0 or not stage.trained:
            self._leave()
            return
        start = time.perf_counter() - s.spent
        adam = self._optimiser(stage)
        while not (over := time.perf_counter() - start >= length or (stop is not None and stop.is_set())):
            done = (time.perf_counter() - start) / length
            if not self._distiller.step(stage, adam, self._rate * s.rate * stage.rate * one_cycle(done)):
                over = True
                break
            s.steps += 1
            if done * part.comparisons > s.checks + 1:
                s.checks += 1
                break
        self._compare(stage)
        s.spent = time.perf_counter() - start
        if over:
            self._leave()

    # -- stages

    def _enter(self, leaves: Mapping[str, Tensor] | None) -> None:
        """Set up the stage of the present part; ``leaves``: as they are in the middle of it."""
        self._adam: torch.optim.Adam | None = None
        self._diverged = False
        self._stage: Stage | None = None
        if self.over:
            return
        where = (self.network, self.policy, self.numerics)
        if self._parts[self.state.part].rounded:
            start = folded(*where[:2], self._last) if leaves is None else leaves
            self._stage = rounded_stage(*where, start, self.state.reference.compressed, self._device)
        else:
            self._stage = float_stage(*where, self.state.floats if leaves is None else leaves, self._device)

    def _leave(self) -> None:
        """This part is done; on to the next."""
        s, stage = self.state, self._stage
        if stage is not None and not self._parts[s.part].rounded:
            self._last = s.floats if self._diverged else stage.weights()
            if s.reference.value != s.cycle_before:
                s.floats = self._last
        s.part, s.spent, s.checks, s.moments = s.part + 1, 0.0, 0, {}
        if not self.over and not self._parts[s.part].rounded:  # a new cycle, from what was learned
            s.reference = self._scored(finish(self.network, self.policy, self.numerics, s.floats))
            s.cycle_before = s.reference.value
        self._enter(None)

    def _optimiser(self, stage: Stage) -> torch.optim.Adam:
        if self._adam is None:
            s, length = self.state, self._parts[self.state.part].seconds
            step_seconds = self._distiller.warm(stage, length)
            if math.isnan(s.rate):
                s.rate = self._distiller.tried_rate(stage, TRYING * length, step_seconds)
            self._adam = self._distiller.optimiser(stage)
            for name, leaf in stage.trained.items():
                kept = {k: s.moments[f"{k}/{name}"] for k in MOMENTS if f"{k}/{name}" in s.moments}
                if kept:
                    self._adam.state[leaf].update({k: v.to(self._device) for k, v in kept.items()})
        return self._adam

    # -- comparing

    def _compare(self, stage: Stage) -> None:
        """Keep what is trained where it is better; what diverged is no network."""
        self._diverged = not stage.finite
        if self._diverged:
            return
        try:
            found = self._scored(stage.network())
        except NumericsError:  # answers are no numbers any more
            self._diverged = True
            return
        self.state.reference = self._better(found, self.state.reference)
        self.state.best = self._better(found, self.state.best)

    def _better(self, new: Best, old: Best) -> Best:
        higher = self.task.metric.higher_is_better
        better = new.value >= old.value if higher else new.value <= old.value
        return new if better and math.isfinite(new.value) else old

    def _scored(self, compressed: Compressed) -> Best:
        scores = score_compressed(compressed, self.task.validation, self.task.metric)
        return Best(compressed, interval(scores)[0])


def _parts(policy: ResolvedPolicy, seconds: float, shares: Sequence[float]) -> list[_Part]:
    """What is trained for how long: the float network, then with rounding in the loop where bits are few."""
    few = any(b < 8 for b in (*policy.weight_bits.values(), *policy.act_bits.values()))
    kinds = ((False, FLOAT_SHARE), (True, 1.0 - FLOAT_SHARE)) if few else ((False, 1.0),)
    return [
        _Part(rounded, seconds * share * part, max(2, round(CHECKPOINTS * share)))
        for share in shares
        for rounded, part in kinds
    ]
