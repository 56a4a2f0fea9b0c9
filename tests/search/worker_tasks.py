"""Things that score toy policies in workers, and what may go wrong with them. Nothing is trained."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from agents.toys import ToyAccuracy, toy_space
from compressors.policy import ResolvedPolicy
from search.evidence import Evidence, Score

#: What happens to a policy: the worker dies, for good or once (where a file is), hangs, or has no memory.
Trouble = Literal["dies", "dies once", "hangs", "no memory"]
SPACE = toy_space(2)


def toy_policies(count: int, seed: int = 0) -> list[ResolvedPolicy]:
    """Distinct policies of the toy space."""
    rng = np.random.default_rng(seed)
    found: dict[str, ResolvedPolicy] = {}
    while len(found) < count:
        policy = SPACE.resolve(SPACE.decode(rng.random(SPACE.dimension)))
        found[policy.digest] = policy
    return list(found.values())


@dataclass(frozen=True)
class ToyExaminer:
    """The toy accuracy after ``seconds`` of sleep; ``trouble`` by a policy's digest, ``file`` for "once"."""

    seconds: float = 0.0
    trouble: Mapping[str, Trouble] = field(default_factory=dict)
    file: Path | None = None

    def examined(
        self, policy: ResolvedPolicy, bar: float | None = None, known: Evidence | None = None
    ) -> tuple[Score, Evidence]:
        """See `Scorer.examined`."""
        what = self.trouble.get(policy.digest)
        if what == "no memory":
            np.ones(1 << 58, dtype=np.uint8)
        if what == "hangs":
            time.sleep(3600.0)
        if what == "dies" or (what == "dies once" and self.file is not None and self.file.exists()):
            if self.file is not None:
                self.file.unlink(missing_ok=True)
            os.kill(os.getpid(), 9)
        time.sleep(self.seconds)
        value = ToyAccuracy(SPACE.structure)(policy)
        return Score(value, 0.0, value, value, 1, self.seconds), Evidence()


class Unloadable:
    """What no worker can unpack."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return _refuse, ("this machine lacks what it needs",)

    examined = ToyExaminer.examined


def _refuse(why: str) -> None:
    raise RuntimeError(why)
