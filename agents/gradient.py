"""Architecture weights trained by gradient on the relaxed network, costs on target as constraints.

After ProxylessNAS (Cai et al. 2019): a distribution over every coordinate's values is trained with the
network differentiable in it and the expected latency differentiable too; policies are then drawn from it.

| differences from the paper | |
|---|---|
| candidates | values of a policy (channels, ranks, bits, blocks) of a trained network, not new blocks |
| weights | stay as they are; the paper trains weights and architecture in turns (1) |
| sampling (section 3.2, eq. 3-4) | Gumbel-softmax with falling temperature, not two binary paths (2) |
| latency (eq. 6) | multilinear extension of *any* predictor, by first-order differences around drawn \
policies, not a sum over layers |
| trade-off (eq. 7) | every limit is a constraint with a multiplier by dual ascent, not a fixed exponent |
| REINFORCE (section 3.3.2) | on top: evaluated outcomes move the trained logits, with a moving baseline |
| result | the most probable policy first, then draws at falling temperature, from a ladder of budgets whose \
logits warm-start one another; each repaired to hold its budget by exact costs |

(1) What compression does to a trained network's weights, reconstruction and recalibration, is part of the
relaxation instead.
(2) Jang et al. 2017. Two paths save the memory of all others; here all values of a layer share one
convolution. Not straight-through one-hot gates either: a trained network's loss is informative near it only;
dozens of coordinates drawn at once at high temperature are a broken network, whose gradient points nowhere,
where the soft mixture stays near the trained network until the temperature falls.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np

from .architecture import Floats, Logits, Separable, Trained, Trainer
from .base import SequentialAgent
from .contract import LIMITS, Budget, Problem
from .design import settle
from .ladder import ladder
from .pricing import Indices
from .repair import descend, expected_losses, repair

#: Steps of the first training, and of each tighter budget's, which starts from the one before.
STEPS, MORE = 160, 40
#: Budgets relative to the problem's; without limits, to the uncompressed network's latency; for least
#: latency the range that may still hold the drop.
TIGHTER = (1.0, 0.85, 0.7, 0.55)
UNLIMITED = (1.0, 0.7, 0.5, 0.35)
LATENCIES = (0.85, 0.66, 0.52, 0.4, 0.31, 0.24, 0.19)
#: Every so many suggestions one goes to a tighter budget.
TIGHTER_EVERY = 4
#: Batches that judge a start and a rounding.
JUDGED = 2
#: From the mode to a policy: multipliers tried, in units of the trained ones, and rounds of single changes
#: for each, every one of which prices all values of all coordinates.
FACTORS, ROUNDS = (0.5, 2.0), 3
#: Step of the policy gradient for an outcome one mean deviation better than the baseline; memory of both.
LEARN, BASELINE = 0.15, 0.8
#: Coordinates in which a draw differs from the most probable policy: at the end, and more at the start as a
#: share of all.
CHANGES, MORE_CHANGES = 1.5, 0.12


@dataclass(frozen=True)
class Rung:
    """One budget of the ladder; ``share`` of the costs that rung 0 of the ladder allows."""

    share: float
    budget: Budget


@dataclass
class _Learned:
    """A rung's logits after the first ``count`` outcomes."""

    count: int
    logits: Logits
    baseline: float | None = None
    deviation: float = 0.0


class GradientAgent(SequentialAgent):
    """Trains architecture weights once per budget, lazily, then draws from them and learns a little."""

    name = "gradient"
    summary = "architecture weights trained by gradient on the relaxed network (as ProxylessNAS)"

    def __init__(self, problem: Problem, seed: int = 0) -> None:
        super().__init__(problem, seed)
        self._trained: list[Trained | None] = []
        self._learned: dict[int, _Learned] = {}
        self._settled: dict[tuple[int, bytes], Indices | None] = {}

    def propose(self, number: int, attempt: int, rng: np.random.Generator) -> tuple[Indices, str] | None:
        rung = self._rung(number)
        found = self._from(rung, number, attempt, rng)
        if found is None and rung > 0:
            found = self._from(0, number, attempt, rng)
        if found is None:
            drawn = repair(self.pricer, self.pricer.top, loss=self._prior, rng=rng)
            return None if drawn is None else (drawn, "gradient: the trained network, repaired to the budget")
        return found

    def _from(
        self, rung: int, number: int, attempt: int, rng: np.random.Generator
    ) -> tuple[Indices, str] | None:
        """The most probable policy of a rung, or where that is known a draw; None when none is feasible."""
        trained = self._training(rung)
        if trained is None:
            return None
        logits, budget = self._logits(rung, trained), self.rungs[rung].budget
        mode, best = logits.mode, self._rounding(rung, logits, trained)
        words = f"at {self.rungs[rung].share:.3g} of the budget"
        if best is not None and not self.known(best):
            return best, f"gradient: most probable policy {words}"
        left = 1.0 - min(1.0, number / max(1, self.problem.evaluations))
        changes = (CHANGES + MORE_CHANGES * len(mode) * left) * 1.6**attempt
        start = logits.sample(rng, min(changes, 0.9 * len(mode)))
        drawn = settle(self.pricer, start, budget, trained.loss * np.exp(rng.normal(0.0, 0.3, len(mode))))
        return None if drawn is None else (drawn, f"gradient: drawn {words}")

    def _rounding(self, rung: int, logits: Logits, trained: Trained) -> Indices | None:
        """A policy inside the rung's budget for the mode, remembered.

        Of the trained logits by `_rounded`; of those that outcomes have moved, that one with what they moved.
        """
        mode, first, budget = logits.mode, trained.logits.mode, self.rungs[rung].budget
        key = (rung, mode.tobytes())
        if key not in self._settled:
            if (mode == first).all():
                self._settled[key] = self._rounded(trained.logits, budget, trained)
            else:
                start = self._rounding(rung, trained.logits, trained)
                moved = mode if start is None else np.where(mode == first, start, mode)
                self._settled[key] = settle(self.pricer, moved, budget, trained.loss)
        return self._settled[key]

    def _rounded(self, logits: Logits, budget: Budget, trained: Trained) -> Indices | None:
        """A policy inside the budget for the mode: of several roundings the one of least relaxed loss.

        The mode, and descents from it that trade what a change costs against its log-probability or its
        trained slope, for multipliers about the trained ones; each settled inside the budget by exact costs.
        """
        mode, unlikely = logits.mode, -np.log(np.maximum(logits.probabilities(), 1e-12))
        starts = [mode]
        for table, unit in (
            (unlikely, 1.0 / max(sum(trained.multipliers.values()), 1e-12)),
            (trained.slopes, 1.0),
        ):
            for factor in FACTORS:
                value = partial(self._lagrangian, table, budget, trained, factor * unit)
                starts.append(descend(self.pricer, mode, value, ROUNDS))
        ends = [settle(self.pricer, s, budget, trained.loss) for s in starts]
        held = {e.tobytes(): e for e in ends if e is not None}
        return min(held.values(), key=self._judged, default=None)

    def _lagrangian(
        self, table: Floats, budget: Budget, trained: Trained, factor: float, rows: Indices
    ) -> Floats:
        """Sum of ``table`` (d, V) over policies (P, d) plus the excess over limits, weighed; (P,)."""
        over = budget.violations(self.pricer.price(rows))
        weights = np.array([factor * trained.multipliers.get(n, 0.0) for n in budget.limits])
        found: Floats = table[np.arange(rows.shape[1]), rows].sum(axis=1) + over @ weights
        return found

    def _judged(self, indices: Indices) -> float:
        """The relaxed loss of one policy, nats a sample."""
        return float(np.mean([self.trainer.one_hot(indices, b) for b in range(JUDGED)]))

    # -- the ladder

    @cached_property
    def base(self) -> float:
        """Latency that shares refer to where there is no limit: the uncompressed network's, or the limit."""
        limit = self.problem.budget.max_latency_ms or np.inf
        return float(min(self.pricer.latency(self.pricer.top[None])[0], limit))

    @cached_property
    def rungs(self) -> list[Rung]:
        """Budgets from the widest to the tightest."""
        budget = self.problem.budget
        if self.problem.objective == "latency":
            return [Rung(s, replace(budget, max_latency_ms=s * self.base)) for s in LATENCIES]
        if not budget.limits:
            tight = [Rung(s, replace(budget, max_latency_ms=s * self.base)) for s in UNLIMITED[1:]]
            return [Rung(1.0, budget), *tight]
        return [Rung(s, _scaled(budget, s)) for s in TIGHTER]

    def _rung(self, number: int) -> int:
        """Which budget suggestion ``number`` is for."""
        if self.problem.objective == "latency":
            return self._least(number)
        turn, left = divmod(number, TIGHTER_EVERY)
        return 1 + turn % (len(self.rungs) - 1) if left == TIGHTER_EVERY - 1 else 0

    def _least(self, number: int) -> int:
        """For least latency: bisection until a rung that held the drop lies next to one that did not."""
        floor = self.problem.gain(self.problem.base_accuracy) - (self.problem.budget.max_drop or 0.0) / 100.0
        at = [(self._nearest(t.indices), t.gain >= floor - 1e-12) for t in self.told]
        held = max((r for r, ok in at if ok), default=-1)
        failed = min((r for r, ok in at if not ok and r > held), default=len(self.rungs))
        if failed - held > 1:
            return (held + failed) // 2
        return max(0, held) if number % 2 or failed == len(self.rungs) else failed

    def _nearest(self, indices: Indices) -> int:
        """The rung whose budget a policy comes closest to."""
        if self.problem.objective == "accuracy" and self.problem.budget.limits:
            load = 1.0 + float(self.pricer.excess(indices[None])[0])
        else:
            load = float(self.pricer.latency(indices[None])[0]) / self.base
        shares = np.log([r.share for r in self.rungs])
        return int(np.argmin(np.abs(shares - np.log(max(load, 1e-12)))))

    # -- training

    @cached_property
    def trainer(self) -> Trainer:
        """Trains on the problem's relaxation, or where there is none on the sum of what values lose."""
        made = self.problem.relaxation
        return Trainer(self.pricer, Separable.of(self.problem) if made is None else made())

    @cached_property
    def _prior(self) -> Floats:
        """Losses to repair by before anything is trained; measured ones only where those are trained on."""
        known = (
            self.problem
            if self.problem.relaxation is None
            else dataclasses.replace(self.problem, losses=None)
        )
        return expected_losses(known)

    def _training(self, rung: int) -> Trained | None:
        """The rung's training: from the start for the first, from the one before for the others."""
        while len(self._trained) <= rung:
            k = len(self._trained)
            before = self._trained[-1] if k else None
            self._trained.append(self._first() if before is None else self._next_rung(k, before))
        return self._trained[rung]

    def _first(self) -> Trained | None:
        """Rung ``len(self._trained)`` from its own start; None when that budget cannot be met."""
        k = len(self._trained)
        budget = self.rungs[k].budget
        if not budget.limits or not len(self.pricer.top):
            return self._untrained()
        start = self._start(budget)
        if start is None:
            return None
        centre, scale = start
        return self.trainer.train(
            Logits.around(self.pricer, centre),
            budget,
            STEPS,
            scale,
            self._rng(k),
            dict.fromkeys(budget.limits, scale),
        )

    def _untrained(self) -> Trained:
        """Around the uncompressed network, which no limit excludes."""
        logits = Logits.around(self.pricer, self.pricer.top)
        far = 1.0 - np.arange(logits.values.shape[1]) / np.maximum(self.pricer.top, 1)[:, None]
        return Trained(logits, {}, self._prior[:, None] * np.maximum(far, 0.0) ** 2)

    def _next_rung(self, k: int, before: Trained) -> Trained | None:
        if not before.multipliers:  # nothing was trained for an unlimited budget
            return self._first()
        budget = self.rungs[k].budget
        if repair(self.pricer, before.logits.mode, budget=budget, loss=before.loss, refill=False) is None:
            return None
        softened = Logits(before.logits.values / 2.0)
        scale = max(sum(before.multipliers.values()), 1e-9)
        return self.trainer.train(softened, budget, MORE, scale, self._rng(k), before.multipliers)

    def _rng(self, k: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, 2**31, k))

    def _start(self, budget: Budget) -> tuple[Indices, float] | None:
        """The uniform policy inside a budget with the least relaxed loss, and that loss in nats.

        One per precision: costs need not fall with the bits of a single tensor, so that no sequence of small
        changes may lead from one precision to another.
        """
        rows = ladder(self.pricer)
        excess = self.pricer.excess(np.stack([r.indices for r in rows]), budget)
        first: dict[str, Indices] = {}
        for row, over in zip(rows, excess, strict=True):
            if over <= 0:
                first.setdefault(row.precision, row.indices)
        starts = list(first.values())
        if not starts:
            smallest = {r.precision: r.indices for r in rows}.values()
            tried = [repair(self.pricer, i, budget=budget, loss=self._prior) for i in smallest]
            starts = [i for i in tried if i is not None]
        if not starts:
            return None
        losses = [self._judged(i) for i in starts]
        best = int(np.argmin(losses))
        return starts[best], max(losses[best], 1e-9)

    # -- learning from outcomes

    def _logits(self, rung: int, trained: Trained) -> Logits:
        """The rung's logits, moved by every outcome told so far that is nearest to its budget (REINFORCE)."""
        state = self._learned.setdefault(rung, _Learned(0, trained.logits))
        for told in self.told[state.count :]:
            if self._nearest(told.indices) == rung:
                _reinforce(state, told.indices, told.gain)
        state.count = len(self.told)
        return state.logits


def _reinforce(state: _Learned, indices: Indices, gain: float) -> None:
    """One step along ``advantage * grad log p`` (Williams 1992), the advantage in mean deviations."""
    if state.baseline is None:
        state.baseline = gain
        return
    ahead = gain - state.baseline
    if state.deviation > 0:
        p = state.logits.probabilities()
        slope = -p
        slope[np.arange(len(indices)), indices] += 1.0
        state.logits = state.logits.moved(LEARN * float(np.clip(ahead / state.deviation, -2.0, 2.0)) * slope)
    state.deviation = BASELINE * state.deviation + (1 - BASELINE) * abs(ahead)
    state.baseline += (1 - BASELINE) * ahead


def _scaled(budget: Budget, share: float) -> Budget:
    """Every limit that is set times ``share``."""
    limits = {n: share * limit for n in LIMITS if (limit := getattr(budget, n)) is not None}
    return replace(budget, **limits)


__all__ = ["GradientAgent", "Rung"]
