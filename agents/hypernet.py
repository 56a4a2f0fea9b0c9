"""A network from (coordinates of a problem, budget) to a policy, trained on what past studies found good.

One small network is shared by all coordinates of all problems, however many they have: it reads the features
of a coordinate and of the budget, and what the same network made of all coordinates, averaged (Zaheer et al.
2017, Deep Sets, theorem 2). It answers with a distribution over where in its range the coordinate should be.
torch is imported when a network is trained.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .features import BUDGET, KINDS, Features, budget_features
from .past import Elite, PastStudy

if TYPE_CHECKING:
    from torch import Generator, Tensor

Floats = NDArray[np.float64]

#: Points of a coordinate's range, 0 to 1, that probabilities are given for.
BINS = 9
MEMBERS = 4
HIDDEN = 16
STEPS, BATCH = 200, 16
LEARNING_RATE, WEIGHT_DECAY = 5e-3, 0.3
#: Standard deviations of noise on standardised features in training, of coordinates and of the network: few
#: networks are there to learn from, and each is easily told from all others by the latter.
JITTER, BLUR = 0.7, 3.0
#: Evaluations from which a study is believed fully.
FULL = 50
#: Trained networks kept in a process.
KEPT = 4
_KEPT: dict[str, HyperNet] = {}


@dataclass(frozen=True)
class Examples:
    """What is learned from, E policies of problems with at most D coordinates; ``digest`` of the studies.

    ``study`` (E,) position of each one's problem; ``rows`` (S, D, F) and ``there`` (S, D) coordinates of each
    problem and whether there is one; ``context`` (E, C) features of network and budget; ``labels``
    (E, D, BINS) places of coordinates; ``counts`` (E, D) whether it means something; ``weight`` (E,), sum 1.
    """

    study: NDArray[np.int64]
    rows: Floats
    there: NDArray[np.bool_]
    context: Floats
    labels: Floats
    counts: NDArray[np.bool_]
    weight: Floats
    digest: str


def place(fraction: float) -> Floats:
    """A place in 0..1 as weights of the two nearest of the BINS points, (BINS,), sum 1."""
    at = min(max(fraction, 0.0), 1.0) * (BINS - 1)
    found: Floats = np.maximum(0.0, 1.0 - np.abs(np.arange(BINS) - at))
    return found


def examples(studies: Sequence[PastStudy]) -> Examples:
    """Every elite of every study, as the answer to the budget that it just holds.

    The budget of an example is not the one that was searched with but the policy's own costs, for the limits
    that there were: so one study shows what is good at many budgets (Andrychowicz et al. 2017, hindsight).
    Networks count alike, however often each was searched. The order of the studies does not matter.
    """
    used = sorted((s for s in studies if s.elites and s.coordinates), key=lambda s: s.digest)
    width = max((len(s.coordinates) for s in used), default=0)
    size = len(used[0].rows[0]) if used else 0
    rows = np.zeros((len(used), width, size))
    there = np.zeros((len(used), width), dtype=bool)
    study, context, labels, counts, weight = [], [], [], [], []
    trust = [min(1.0, s.evaluations / FULL) for s in used]
    for k, s in enumerate(used):
        d = len(s.coordinates)
        rows[k, :d], there[k, :d] = np.array(s.rows), True
        alike = sum(t for t, o in zip(trust, used, strict=True) if o.network == s.network)
        for e in s.elites:
            study.append(k)
            context.append(np.concatenate([s.overall, budget_features(held(s, e))]))
            known = [f is not None for f in e.fractions]
            counts.append(np.array([*known, *(width - d) * [False]]))
            own = [np.zeros(BINS) if f is None else place(f) for f in e.fractions]
            labels.append(np.stack([*own, *(width - d) * [np.zeros(BINS)]]))
            weight.append(trust[k] / max(alike, 1e-12) / len(s.elites))
    total = np.array(weight) / max(sum(weight), 1e-300)
    return Examples(
        np.array(study, dtype=np.int64), rows, there, np.array(context), np.array(labels), np.array(counts),
        total, digest_of(used),
    )  # fmt: skip


def digest_of(studies: Sequence[PastStudy]) -> str:
    """What tells one set of studies from another, in whatever order."""
    return " ".join(sorted(s.digest for s in studies))


def held(study: PastStudy, elite: Elite) -> dict[str, float]:
    """The tightest budget, as shares, that a policy of a study holds: of what was limited, or latency."""
    limited = [c for c in study.budget if c in elite.shares] or ["latency_ms"]
    return {c: elite.shares[c] for c in limited if c in elite.shares}


def trained(studies: Sequence[PastStudy]) -> HyperNet:
    """The network of these studies; those asked for last are kept, since several agents may learn alike."""
    key = digest_of(studies)
    found = _KEPT.pop(key, None) or HyperNet(studies)
    _KEPT[key] = found
    while len(_KEPT) > KEPT:
        _KEPT.pop(next(iter(_KEPT)))
    return found


class HyperNet:
    """An ensemble of such networks, trained when made: deterministic, a second or two.

    Each member sees its own random batches of the examples. Raises ValueError without any.
    """

    def __init__(self, studies: Sequence[PastStudy]) -> None:
        data = examples(studies)
        if not len(data.study):
            raise ValueError("no study to learn from")
        columns = data.rows[data.there]
        self._rows = (columns.mean(0), _spread(columns))
        self._context = (data.context.mean(0), _spread(data.context))
        self._usual = _usual(data)
        self._weights = self._trained(data, zlib.crc32(data.digest.encode()))

    def distributions(self, found: Features, shares: Mapping[str, float]) -> Floats:
        """Each member's probabilities of each coordinate's places, (MEMBERS, d, BINS), sum 1."""
        import torch

        context = np.concatenate([found.network, budget_features(shares)])
        x, c = _standard(found.coordinates, self._rows), _standard(context, self._context)
        with torch.no_grad():
            rows = torch.from_numpy(x).float().expand(MEMBERS, 1, *x.shape)
            around = torch.from_numpy(c).float().expand(MEMBERS, 1, len(c))
            there = torch.ones(MEMBERS, 1, len(x), dtype=torch.bool)
            logits = _forward(self._weights, rows, around, there)
            logits = logits + torch.from_numpy(found.coordinates[:, : len(KINDS)] @ self._usual)
            answer: Floats = torch.softmax(logits[:, 0].double(), -1).numpy()
        return answer

    def surprise(self, study: PastStudy) -> float:
        """Cross entropy of a study's elites under the ensemble's mean, nats a coordinate; lower is better."""
        found = Features(np.array(study.rows), np.array(study.overall))
        total, count = 0.0, 0
        for e in study.elites:
            p = self.distributions(found, held(study, e)).mean(0)
            for i, f in enumerate(e.fractions):
                if f is not None:
                    total -= float(place(f) @ np.log(np.maximum(p[i], 1e-12)))
                    count += 1
        return total / max(count, 1)

    def _trained(self, data: Examples, seed: int) -> list[Tensor]:
        import torch

        generator = torch.Generator().manual_seed(seed)
        rows, context = data.rows, _standard(data.context, self._context)
        rows = np.where(data.there[:, :, None], _standard(rows, self._rows), 0.0)
        x, c = torch.from_numpy(rows).float(), torch.from_numpy(context).float()
        there, labels = torch.from_numpy(data.there), torch.from_numpy(data.labels).float()
        counts, study = torch.from_numpy(data.counts), torch.from_numpy(data.study)
        usual = torch.from_numpy(data.rows[:, :, : len(KINDS)] @ self._usual).float()
        blur = torch.zeros(c.shape[1])
        blur[: c.shape[1] - len(BUDGET)] = BLUR
        weights = _initial(x.shape[2], c.shape[1], generator)
        optimiser = torch.optim.AdamW(weights, LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=STEPS)
        chances = torch.from_numpy(data.weight).expand(MEMBERS, -1)
        for _ in range(STEPS):
            batch = torch.multinomial(chances, BATCH, replacement=True, generator=generator)
            of = study[batch]
            noisy = x[of] + JITTER * torch.randn(x[of].shape, generator=generator)
            around = c[batch] + blur * torch.randn(c[batch].shape, generator=generator)
            logits = usual[of] + _forward(weights, noisy, around, there[of])
            loss = -(labels[batch] * torch.log_softmax(logits, -1)).sum(-1)
            per = (loss * counts[batch]).sum(-1) / counts[batch].sum(-1).clamp(min=1)
            optimiser.zero_grad()
            per.mean(-1).sum().backward()  # members learn apart: the sum is over them
            optimiser.step()
            schedule.step()
        return [w.detach() for w in weights]


def _usual(data: Examples) -> Floats:
    """Logarithms of how often each place is chosen, by kind alone, (kinds, BINS): what is left is learned.

    A tenth of it is spread evenly, since that of a kind seldom seen is not known.
    """
    kinds = data.rows[data.study][:, :, : len(KINDS)] * (data.counts * data.weight[:, None])[..., None]
    often = np.einsum("edk,edb->kb", kinds, data.labels)
    share = often / np.maximum(often.sum(1, keepdims=True), 1e-300)
    found: Floats = np.log(0.9 * share + 0.1 / BINS)
    return found


def _initial(rows: int, context: int, generator: Generator) -> list[Tensor]:
    """Weights of all members: of coordinates and context, of both with the mean of all, of the answer."""
    import torch

    def drawn(fan: int, out: int) -> Tensor:
        made = torch.randn(MEMBERS, fan, out, generator=generator)
        return made.div_(fan**0.5)

    def zeros(out: int) -> Tensor:
        return torch.zeros(MEMBERS, 1, out)

    made = [
        drawn(rows + context, HIDDEN),
        zeros(HIDDEN),
        drawn(2 * HIDDEN, HIDDEN),
        zeros(HIDDEN),
        drawn(HIDDEN, BINS).mul_(0.1),
        zeros(BINS),
    ]
    return [w.requires_grad_() for w in made]


def _forward(weights: Sequence[Tensor], rows: Tensor, context: Tensor, there: Tensor) -> Tensor:
    """Logits (M, B, D, BINS) of coordinates (M, B, D, F) in context (M, B, C); ``there`` (M, B, D)."""
    import torch

    w1, b1, w2, b2, w3, b3 = weights
    m, b, d, f = rows.shape
    own = (rows.reshape(m, b * d, f) @ w1[:, :f] + b1).reshape(m, b, d, -1)
    hidden = torch.nn.functional.silu(own + (context @ w1[:, f:])[:, :, None])
    mask = there[..., None].to(hidden.dtype)
    mean = (hidden * mask).sum(2) / mask.sum(2).clamp(min=1)
    size = hidden.shape[-1]
    mixed = (hidden.reshape(m, b * d, size) @ w2[:, :size] + b2).reshape(m, b, d, -1)
    mixed = torch.nn.functional.silu(mixed + (mean @ w2[:, size:])[:, :, None])
    logits: Tensor = (mixed.reshape(m, b * d, -1) @ w3 + b3).reshape(m, b, d, -1)
    return logits


def _spread(values: Floats) -> Floats:
    """Standard deviations; infinite where a feature never differed: nothing was learned of it."""
    found: Floats = values.std(0)
    return np.where(found > 1e-6, found, np.inf)


def _standard(values: Floats, by: tuple[Floats, Floats]) -> Floats:
    """Standardised, and cut off where nothing like it was ever seen."""
    found: Floats = np.clip((values - by[0]) / by[1], -4.0, 4.0)
    return found


__all__ = ["BINS", "HyperNet", "examples", "held", "place", "trained"]
