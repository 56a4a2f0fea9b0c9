"""What was found out about one policy, stage by stage, and the score that follows from it for any bar.

A bar decides how much of a policy is looked at: nothing but a look, some of the validation samples, or all.
What each stage found does not depend on the bar. So `Evidence` keeps the stages, and `judge` derives the
score of *any* bar from them, or names the stage that is missing: an evaluation is a loop of the two, and what
one search found out serves every other search, whatever its budget, agent or target. Equal to the last bit,
``seconds`` included: they are the recorded costs of those stages that an undisturbed evaluation runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from .look import SAMPLES, Seen, Terms, estimate, hopeless, wrong_allowed

if TYPE_CHECKING:
    from torch import Tensor

#: Samples scored at a time behind the full recalibration, where a policy can be given up between them.
BATCH = 64
#: Part of a stored document: to be raised when the order of the samples, the look or the batches change.
EVIDENCE_VERSION = 1
#: Scores of one policy that are believed: ten times as many as ImageNet has validation images.
MOST_SCORES = 500_000
_Z_95 = 1.959964

#: What is to be found out next.
Stage = Literal["look", "batch"]


@dataclass(frozen=True)
class Score:
    """A metric's value on the validation data with a 95 % interval.

    ``stopped_early``: given up after ``samples`` samples because the bar was out of reach; ``value`` is then
    an estimate that does not beat the bar. ``seconds``: what the evaluation takes, see `Clock`.
    ``disagreed``: the runtime answered otherwise than the simulation, which was believed.
    """

    value: float
    std: float
    low: float
    high: float
    samples: int
    seconds: float
    stopped_early: bool = False
    disagreed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Evidence:
    """What is known of one policy. A pure value; more is added by making another.

    ``scores`` (up to N,) of the first validation samples in the order of their difficulty, found in batches
    that took ``batch_seconds``; ``look`` as in `search.look`. ``shrunk_seconds`` and ``compressed_seconds``:
    pruning and factorisation, which look and full evaluation share, and all that follows up to the first
    answer. None: not done yet. ``disagreed``: the scores are the simulation's, against the runtime's answers.
    """

    shrunk_seconds: float | None = None
    look: Seen | None = None
    compressed_seconds: float | None = None
    scores: tuple[float, ...] = ()
    batch_seconds: tuple[float, ...] = ()
    disagreed: bool = False

    def merged(self, other: Evidence) -> Evidence:
        """All that either knows; this one where both do."""
        longer = other if len(other.scores) > len(self.scores) else self
        shrunk = other.shrunk_seconds if self.shrunk_seconds is None else self.shrunk_seconds
        return Evidence(
            shrunk,
            self.look or other.look,
            longer.compressed_seconds,
            longer.scores,
            longer.batch_seconds,
            longer.disagreed,
        )

    def fits(self, terms: Terms) -> bool:
        """Whether this can be of a task with these terms: scores in its batches, none too many."""
        return len(self.scores) == min(terms.count, batch_of(terms) * len(self.batch_seconds)) and (
            len(self.batch_seconds) <= math.ceil(terms.count / batch_of(terms))
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON document; scores that are all right or wrong take a bit each."""
        doc: dict[str, Any] = {"version": EVIDENCE_VERSION, "shrunk_seconds": self.shrunk_seconds}
        if self.look is not None:
            wrong = None if self.look.wrong is None else list(self.look.wrong)
            doc["look"] = {
                "scores": _packed(self.look.scores), "wrong": wrong, "seconds": self.look.seconds
            }  # fmt: skip
        doc["compressed_seconds"] = self.compressed_seconds
        doc["scores"] = _packed(self.scores)
        doc["batch_seconds"] = list(self.batch_seconds)
        if self.disagreed:
            doc["disagreed"] = True
        return doc

    @classmethod
    def from_dict(cls, doc: Mapping[str, Any]) -> Evidence:
        """Read what `to_dict` wrote. Raises ValueError for anything else, and for another version's."""
        try:
            if doc["version"] != EVIDENCE_VERSION:
                raise ValueError(f"evidence of version {doc['version']!r}")
            found = cls(
                _seconds(doc["shrunk_seconds"]),
                None if "look" not in doc else _seen(doc["look"]),
                _seconds(doc["compressed_seconds"]),
                _unpacked(doc["scores"]),
                _times(doc["batch_seconds"]),
                _flag(doc.get("disagreed", False)),
            )
        except (KeyError, TypeError, AttributeError, OverflowError) as problem:
            raise ValueError(f"not evidence: {problem!r}") from problem
        if bool(found.scores) != bool(found.batch_seconds) or (
            found.scores and found.compressed_seconds is None
        ):
            raise ValueError("not evidence: scores without their times")
        return found


def judge(known: Evidence, terms: Terms, bar: float | None) -> Score | Stage:
    """The score that an evaluation with this bar gives, or the stage it needs and nobody has run."""
    seconds = known.shrunk_seconds or 0.0
    if bar is not None and terms.looks:
        if known.look is None:
            return "look"
        seconds += known.look.seconds
        if hopeless(known.look, terms, bar):
            value, std = estimate(known.look, terms.count)
            return _below(value, std, bar, terms, SAMPLES, seconds)
    seconds += known.compressed_seconds or 0.0
    done, batch, wrong = 0, batch_of(terms), 0
    allowed = wrong_allowed(terms.count, bar) if bar is not None and in_batches(terms) else None
    for spent in known.batch_seconds:
        part, seconds = known.scores[done : done + batch], seconds + spent
        done += len(part)
        if allowed is None or not all(s in (0.0, 1.0) for s in part):
            allowed = None  # neither right nor wrong: there is nothing to count
            continue
        wrong += part.count(0.0)
        if wrong > allowed and done < terms.count:
            value, std = _continued(part, done - wrong, done, terms.count)
            assert bar is not None
            return replace(_below(value, std, bar, terms, done, seconds), disagreed=known.disagreed)
    if done < terms.count:
        return "batch"
    return Score(*interval(known.scores), terms.count, seconds, disagreed=known.disagreed)


def in_batches(terms: Terms) -> bool:
    """Whether a policy can be given up between batches: answers are right or wrong, in any number."""
    return terms.stoppable and terms.binary


def batch_of(terms: Terms) -> int:
    """Samples of one batch."""
    return BATCH if in_batches(terms) else terms.count


def interval(scores: Tensor | Sequence[float], z: float = _Z_95) -> tuple[float, float, float, float]:
    """(mean, standard error, low, high) of per-sample scores (N,).

    Wilson's interval for scores that are all 0 or 1, otherwise the normal one.
    """
    import torch

    values = torch.as_tensor(scores, dtype=torch.float64)
    n = len(values)
    mean = float(values.mean())
    if is_binary(values):
        centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
        return mean, math.sqrt(mean * (1 - mean) / n), centre - half, centre + half
    std = float(values.std()) / math.sqrt(n) if n > 1 else 0.0
    return mean, std, mean - z * std, mean + z * std


def is_binary(scores: Tensor) -> bool:
    """Whether every score is 0 or 1: wrong or right."""
    return bool(((scores == 0) | (scores == 1)).all())


class Clock:
    """Seconds that a stage takes on a machine that has nothing else to do.

    The lesser of wall-clock and processor time: a process that computes with one thread waits for nobody
    but the machine's other users, and processor time repeats within a percent however many they are.
    """

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), time.process_time()

    def spent(self) -> float:
        """Seconds since the clock was made."""
        return min(time.perf_counter() - self._wall, time.process_time() - self._processor)


def _continued(last: Sequence[float], right: int, seen: int, count: int) -> tuple[float, float]:
    """Mean and standard error over all samples from the first ``seen``, the hardest.

    Of the rest, which is easier, as many are taken to be right as of the ``last`` batch seen, plus half of
    what is missing: between the two extremes.
    """
    rest = 0.5 + 0.5 * sum(last) / len(last)
    mean = (right + rest * (count - seen)) / count
    return mean, (1.0 - rest) * (count - seen) / count + 0.5 / count


def _below(mean: float, std: float, bar: float, terms: Terms, samples: int, seconds: float) -> Score:
    """An early end: the estimate, not better than the bar."""
    value = min(mean, bar) if terms.higher_is_better else max(mean, bar)
    return Score(value, std, value - _Z_95 * std, value + _Z_95 * std, samples, seconds, True)


# -- as JSON


def _packed(scores: Sequence[float]) -> dict[str, Any] | list[float]:
    if not all(s in (0.0, 1.0) for s in scores):
        return list(scores)
    bits = "".join("1" if s else "0" for s in scores)
    return {"count": len(scores), "bits": f"{int(bits or '0', 2):x}"}


def _unpacked(doc: Any) -> tuple[float, ...]:
    if isinstance(doc, list):
        return _numbers(doc)
    count, text = doc["count"], doc["bits"]
    # Before anything is made of it: a count costs its reader nothing to write, and room to believe.
    if not _is_count(count) or not isinstance(text, str) or len(text) > count // 4 + 1:
        raise ValueError(f"not evidence: bits that are not those of {count!r:.40} scores")
    bits = f"{int(text, 16):0{count}b}" if count else ""
    if len(bits) != count:
        raise ValueError(f"not evidence: {len(bits)} bits for {count} scores")
    return tuple(float(b) for b in bits)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_SCORES


def _numbers(values: Any) -> tuple[float, ...]:
    """Finite numbers, in a list. Raises ValueError."""
    if not isinstance(values, list) or len(values) > MOST_SCORES or not all(map(_is_number, values)):
        raise ValueError("not evidence: a list of finite numbers is something else")
    return tuple(float(v) for v in values)


def _times(values: Any) -> tuple[float, ...]:
    found = _numbers(values)
    if any(v < 0 for v in found):
        raise ValueError("not evidence: a time below 0")
    return found


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"not evidence: {value!r:.40} is neither true nor false")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _seen(doc: Mapping[str, Any]) -> Seen:
    found = Seen(
        _unpacked(doc["scores"]),
        None if doc["wrong"] is None else _numbers(doc["wrong"]),
        *_times([doc["seconds"]]),
    )
    if len(found.scores) != SAMPLES or (found.wrong is not None and len(found.wrong) != SAMPLES):
        raise ValueError(f"not evidence: a look has {SAMPLES} samples")
    return found


def _seconds(value: Any) -> float | None:
    return None if value is None else _times([value])[0]


__all__ = [
    "BATCH",
    "EVIDENCE_VERSION",
    "Clock",
    "Evidence",
    "Score",
    "Stage",
    "batch_of",
    "in_batches",
    "interval",
    "is_binary",
    "judge",
]
