"""One pool of evaluations: what is known of policies, kept for every search that could use it.

An accuracy is a fact about a resolved policy under one task, one kind of numerics and one version of the
compression (`Context`). The pool keeps the `Evidence` behind it in a store, so that a search, be it with
another budget, agent, seed or target of the same numerics, takes what is there and computes what is missing.
Whether the pool had a policy changes how long a search takes and nothing else.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from compressors.policy import ResolvedPolicy
from compressors.version import COMPRESSOR_VERSION

from .errors import TailorbirdError
from .evaluate import Evaluator, Finished, Job
from .evidence import EVIDENCE_VERSION, Evidence, Score, judge
from .look import estimate
from .pool_address import OFF, open_store

if TYPE_CHECKING:
    from .score import Scorer

#: Packages whose arithmetic an accuracy's last bits depend on.
ARITHMETIC = ("torch", "numpy", "scipy", "tensorly")
#: Characters of one field of a context, at most.
LONGEST = 4000


class StoreError(TailorbirdError):
    """A store that cannot be read or written. The search goes on without it."""


@dataclass(frozen=True)
class Context:
    """All that an accuracy depends on besides the policy.

    ``task``: `search.task.fingerprint`; ``network``: the traced graph's digest; ``numerics``: their key;
    ``compressor``: versions of the compression and of the way it is scored; ``calibration``: digest of the
    calibration data as the compression holds it; ``recovery``: what was trained after the compression;
    ``arithmetic``: versions, instruction set and threads, which the last bits depend on.
    """

    task: str
    network: str
    numerics: str
    compressor: str
    calibration: str
    arithmetic: str
    recovery: str = "none"

    def to_json(self) -> str:
        """Canonical JSON text."""
        return json.dumps(asdict(self), sort_keys=True)

    @cached_property
    def digest(self) -> str:
        """sha256 (first 32 hex digits) of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:32]

    @classmethod
    def from_dict(cls, doc: Any) -> Context:
        """Read the document of `to_json`. Raises ValueError for anything else."""
        names = {f.name for f in fields(cls)}
        if not isinstance(doc, Mapping) or set(doc) != names:
            raise ValueError(f"not a context: it must hold {', '.join(sorted(names))}")
        wrong = next((n for n, v in doc.items() if not isinstance(v, str) or len(v) > LONGEST), None)
        if wrong is not None:
            raise ValueError(f"not a context: {wrong} is no text of at most {LONGEST} characters")
        return cls(**doc)

    @classmethod
    def of(cls, scorer: Scorer) -> Context:
        """The context of what a scorer scores."""
        from compressors.prefix import content

        from .task import fingerprint

        digest = hashlib.sha256()
        for x in scorer.network.calibration:
            digest.update(content(x))
        return cls(
            fingerprint(scorer.task),
            scorer.network.structure.graph.digest,
            scorer.numerics.key,
            f"{COMPRESSOR_VERSION}/{EVIDENCE_VERSION}",
            digest.hexdigest()[:32],
            arithmetic(scorer.runtime),
        )


def arithmetic(runtime: bool) -> str:
    """Versions, instruction set and threads of this process. ``runtime``: onnxruntime computes answers."""
    from importlib import metadata

    import torch

    from .templates import runtime_key

    versions = [f"{p} {metadata.version(p)}" for p in ARITHMETIC]
    machine = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return "; ".join([*versions, f"onnxruntime {runtime_key()}" if runtime else "simulated", machine])


@dataclass(frozen=True)
class Entry:
    """One row of a store: what is known of a policy in a context."""

    context: Context
    policy: ResolvedPolicy
    evidence: Evidence


class Store(ABC):
    """Evidence by context and policy. `search.pool_testing.check_store` is its conformance suite.

    Several processes may use one store at once. What is damaged counts as not there.
    """

    #: What a person calls it; never with a password.
    place: str
    #: What a person should hear of: what was recovered when the store was opened or used.
    notes: list[str]

    @abstractmethod
    def get(self, context: Context, policy: ResolvedPolicy) -> Evidence | None:
        """What is known of a policy; None where nothing is. Raises StoreError."""

    @abstractmethod
    def put(self, context: Context, policy: ResolvedPolicy, evidence: Evidence) -> None:
        """Add to what is known, which stays as it is. It is there for all once this returns.

        Raises StoreError; what was known before is then still known.
        """

    def put_all(self, entries: Iterable[Entry]) -> None:
        """As `put`, for many. Where it fails some may be there, each of them whole."""
        for e in entries:
            self.put(e.context, e.policy, e.evidence)

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """All that is sound, by the digests of context and policy, without keeping it. Raises StoreError."""

    @abstractmethod
    def counts(self) -> list[tuple[Context, int]]:
        """Every context and how many policies are known in it, by the context's digest. Raises StoreError."""

    @abstractmethod
    def size_bytes(self) -> int:
        """What it takes on its disk. Raises StoreError."""

    @abstractmethod
    def close(self) -> None:
        """Give it free; more than once does no harm."""


class Pool:
    """The part of a store that one scorer can use; without a store nothing is known or kept.

    ``tell`` hears of trouble, once: a store that fails is left alone from then on.

    Attributes:
        found: evaluations whose scores followed from what the pool knew.
        computed: evaluations of which something, or everything, had to be computed.
        estimates: what first looks said of the metric, by the policy's digest, as far as they passed through.
    """

    def __init__(
        self, store: Store | None, scorer: Scorer, tell: Callable[[str], None] = lambda text: None
    ) -> None:
        self.scorer = scorer
        self.found = self.computed = 0
        self.estimates: dict[str, float] = {}
        self._store = store
        self._readable = self._writable = store is not None
        self._tell = tell
        self._hear()

    @cached_property
    def context(self) -> Context:
        """What this pool's evidence is about."""
        return Context.of(self.scorer)

    def known(self, policy: ResolvedPolicy) -> Evidence | None:
        """What is known of a policy, None where nothing is."""
        if self._store is None or not self._readable:
            return None
        try:
            found = self._store.get(self.context, policy)
        except StoreError as problem:
            self._readable = self._writable = False
            self._tell(f"{problem.message} The search goes on without it.")
            return None
        self._hear()
        return None if found is None or not found.fits(self.scorer.terms) else self._seen(policy, found)

    def learn(self, policy: ResolvedPolicy, evidence: Evidence) -> None:
        """Keep what was found out about a policy."""
        self._seen(policy, evidence)
        if self._store is None or not self._writable:
            return
        try:
            self._store.put(self.context, policy, evidence)
        except StoreError as problem:
            self._writable = False
            self._tell(f"{problem.message} What is found from now on is not kept.")
        self._hear()

    def verdict(self, job: Job) -> Finished | Job:
        """A job's end, where it follows from what is known; else the job with what is known."""
        known = self.known(job.policy)
        verdict = None if known is None else judge(known, self.scorer.terms, job.bar)
        if isinstance(verdict, Score):
            self.found += 1
            return Finished(job, verdict, evidence=known)
        self.computed += 1
        return replace(job, known=known)

    def score(self, policy: ResolvedPolicy, bar: float | None = None) -> Score:
        """As `Scorer.score`."""
        known = self.known(policy)
        score, evidence = self.scorer.examined(policy, bar, known)
        if evidence != known:
            self.learn(policy, evidence)
        return score

    def close(self) -> None:
        """Give the store free."""
        if self._store is not None:
            self._store.close()

    @property
    def summary(self) -> str:
        """One line for a person; "" where nothing was asked of it."""
        total = self.found + self.computed
        if self._store is None or not total:
            return ""
        kept = "" if self._writable else ", not all of which could be kept"
        return f"{self.found} of {total} evaluations were known, {self.computed} computed{kept}"

    def _seen(self, policy: ResolvedPolicy, evidence: Evidence) -> Evidence:
        if evidence.look is not None:
            self.estimates[policy.digest] = estimate(evidence.look, self.scorer.terms.count)[0]
        return evidence

    def _hear(self) -> None:
        while self._store is not None and self._store.notes:
            self._tell(self._store.notes.pop(0))


class PooledEvaluator(Evaluator):
    """An evaluator before which the pool is asked, and which adds to it.

    This process alone reads and writes the pool; workers are sent what is known and send back what they
    found.
    """

    def __init__(self, inner: Evaluator, pool: Pool) -> None:
        self.inner = inner
        self.pool = pool
        self.workers = inner.workers
        self._ready: deque[Finished] = deque()

    def submit(self, jobs: Sequence[Job]) -> None:
        missing = []
        for job in jobs:
            verdict = self.pool.verdict(job)
            if isinstance(verdict, Finished):
                self._ready.append(verdict)
            else:
                missing.append(verdict)
        if missing:
            self.inner.submit(missing)

    def completed(self) -> list[Finished]:
        if self._ready:
            found = list(self._ready)
            self._ready.clear()
            return found
        return [self._kept(f) for f in self.inner.completed()]

    def withdraw(self) -> list[Job]:
        found = self.inner.withdraw()
        self.pool.computed -= len(found)
        return found

    def close(self) -> None:
        self.inner.close()
        self.pool.close()

    def _kept(self, finished: Finished) -> Finished:
        if finished.evidence is not None and finished.evidence != finished.job.known:
            self.pool.learn(finished.job.policy, finished.evidence)
        return replace(finished, job=replace(finished.job, known=None))


def open_pool(place: str | None, scorer: Scorer, tell: Callable[[str], None] = lambda text: None) -> Pool:
    """The pool at ``place``: as for `open_store`, "off" for none.

    A place that cannot be used is told of, and the pool is then an empty one that keeps nothing.
    """
    if place == OFF:
        return Pool(None, scorer, tell)
    try:
        store = open_store(place)
    except StoreError as problem:
        tell(f"{problem.message} The search goes on without it.")
        return Pool(None, scorer, tell)
    return Pool(store, scorer, tell)


__all__ = [
    "OFF",
    "Context",
    "Entry",
    "Pool",
    "PooledEvaluator",
    "Store",
    "StoreError",
    "open_pool",
]
