"""Conformance suite for stores of evaluations: `check_store(open_store)` raises at the first breach.

Anyone who writes a store can run it::

    from search.pool_testing import check_store
    check_store(lambda: MyStore(address))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from compressors.policy import ResolvedPolicy

from .errors import TailorbirdError
from .evidence import Evidence
from .look import SAMPLES, Seen
from .pool import Context, Entry, Store

Open = Callable[[], Store]

CONTEXT = Context("task", "network", "u8-affine/w-0/b32", "1/1", "calibration", "torch 0, 1 threads")
POLICY = ResolvedPolicy("network", {"a": 8}, {}, {"conv": 8}, {"x": 8})
OTHER = replace(POLICY, kept={"a": 4})
LOOKED = Evidence(0.25, Seen((1.0, 0.0) * (SAMPLES // 2), (0.125,) * SAMPLES, 0.5))
HALF = Evidence(0.25, None, 1.5, (1.0, 0.0, 1.0) * 21 + (0.0,), (0.75,))
WHOLE = replace(HALF, scores=(*HALF.scores, *(1.0,) * 36), batch_seconds=(0.75, 0.375))
#: Rows that are put at once: more than a store may handle together.
MANY = 1234
FRACTIONS = Evidence(0.1, None, 0.2, (0.1, 1 / 3, 2e-17, 0.0), (0.3,))


class StoreConformanceError(TailorbirdError):
    """A store that breaks its contract; the message says where."""


def check_store(open_store: Open) -> None:
    """Run every check on one empty store, which each call of ``open_store`` opens once more."""
    for check in (_keeps, _apart, _adds, _shares, _lists, _closes):
        check(open_store)


def _need(holds: bool, what: str) -> None:
    if not holds:
        raise StoreConformanceError(what)


def _keeps(open_store: Open) -> None:
    """What was put is there, to the last bit, also for who opens the store later."""
    store = open_store()
    _need(store.get(CONTEXT, POLICY) is None, "something is known in an empty store")
    for i, evidence in enumerate((LOOKED, HALF, WHOLE, FRACTIONS)):
        policy = replace(POLICY, kept={"a": 100 + i})
        store.put(CONTEXT, policy, evidence)
        _need(store.get(CONTEXT, policy) == evidence, f"evidence {i} came back as another")
        later = open_store()
        _need(later.get(CONTEXT, policy) == evidence, f"evidence {i} is not there for who comes later")
        later.close()
    store.close()


def _apart(open_store: Open) -> None:
    """Other policies and other contexts know nothing of it."""
    store = open_store()
    store.put(CONTEXT, POLICY, WHOLE)
    _need(store.get(CONTEXT, OTHER) is None, "a policy is known by another's evidence")
    for name in ("task", "network", "numerics", "compressor", "calibration", "arithmetic", "recovery"):
        elsewhere = replace(CONTEXT, **{name: "another"})
        _need(store.get(elsewhere, POLICY) is None, f"evidence of another {name} is taken for one's own")
    store.close()


def _adds(open_store: Open) -> None:
    """Stages found out one by one are known together, in whatever order; less never replaces more."""
    orders = ((LOOKED, WHOLE), (WHOLE, LOOKED), (HALF, LOOKED, WHOLE), (WHOLE, HALF, LOOKED))
    store = open_store()
    for i, order in enumerate(orders):
        policy = replace(POLICY, kept={"a": 200 + i})
        for evidence in order:
            store.put(CONTEXT, policy, evidence)
        expected = replace(WHOLE, look=LOOKED.look)
        _need(store.get(CONTEXT, policy) == expected, f"order {i} does not add up")
    store.close()


def _shares(open_store: Open) -> None:
    """Two who have it open see what the other puts."""
    one, two = open_store(), open_store()
    first, second = (replace(POLICY, kept={"a": 300 + i}) for i in range(2))
    one.put(CONTEXT, first, LOOKED)
    two.put(CONTEXT, first, HALF)
    two.put(CONTEXT, second, WHOLE)
    _need(one.get(CONTEXT, first) == replace(HALF, look=LOOKED.look), "what two found out does not add up")
    _need(one.get(CONTEXT, second) == WHOLE, "what another puts is not seen")
    one.close()
    _need(two.get(CONTEXT, second) == WHOLE, "one who leaves takes it away from the others")
    two.close()


def _lists(open_store: Open) -> None:
    """All that is there is listed once, in the order of the digests; many are put as one by one."""
    store = open_store()
    elsewhere = replace(CONTEXT, recovery="listed")
    policies = [replace(POLICY, kept={"a": 1000 + i}) for i in range(MANY)]
    store.put(elsewhere, policies[0], LOOKED)
    store.put_all(Entry(elsewhere, p, HALF) for p in policies)
    listed = list(store.entries())
    keys = [(e.context.digest, e.policy.digest) for e in listed]
    _need(keys == sorted(set(keys)), "what is there is not listed once, in the order of its digests")
    found = {e.policy: e.evidence for e in listed if e.context == elsewhere}
    expected = dict.fromkeys(policies, HALF) | {policies[0]: replace(HALF, look=LOOKED.look)}
    _need(found == expected, "what was put together is not listed as it was put")
    _need(dict(store.counts()).get(elsewhere) == MANY, "what is known is not counted")
    _need(sum(n for _, n in store.counts()) == len(listed), "counts and list differ")
    _need(store.size_bytes() > 0, "it takes no room")
    store.close()


def _closes(open_store: Open) -> None:
    store = open_store()
    store.close()
    store.close()


__all__ = ["StoreConformanceError", "check_store"]
