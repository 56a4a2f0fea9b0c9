"""How well what is cheap ranked the policies of a run, by those that were scored in full.

A search relies on stand-ins for an evaluation: agents on the sum of losses that were measured one by one, the
racing of evaluations on a first look (`search.look`). Both are right only as far as they put policies in the
order of the metric, which each run can tell for itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .explanation import indices_of
from .results import Proxy

if TYPE_CHECKING:
    from .pool import Pool
    from .setup import Setup
    from .study import Entry, Study

#: Policies that a correlation is told of: of fewer it says nothing.
LEAST = 8
_Z_95 = 1.959964


def proxies(setup: Setup, study: Study, pool: Pool, digest: str) -> list[Proxy]:
    """Rank correlations of the run's proxies with the metric, before recovery; [] where too few can be told.

    ``digest``: the evaluated policy around which losses are taken. Looks are those that ``pool`` saw: of
    policies that had a bar. Policies that were given up early are not counted, since their metric is not
    known. They are the worse ones, so that what is left is harder to rank than all.
    """
    complete: dict[str, Entry] = {}
    for e in (*study.known, *study.entries):
        if e.outcome.accuracy is not None and not e.outcome.stopped_early:
            complete.setdefault(e.outcome.policy.digest, e)
    rows = list(complete.values())
    metric = [setup.problem.gain(e.outcome.accuracy) for e in rows if e.outcome.accuracy is not None]
    found = [
        _proxy("sum of single losses", _summed(setup, rows, complete.get(digest)), metric),
        _proxy("first look", _looked(setup, list(complete), pool), metric),
    ]
    return [p for p in found if p is not None]


def correlation(estimates: Sequence[float], truths: Sequence[float]) -> tuple[float, float, float] | None:
    """Spearman's rank correlation with a 95 % interval (Bonett and Wright 2000, eq. 3).

    None for fewer than `LEAST` pairs, or where one side is the same throughout.
    """
    from scipy.stats import spearmanr

    if len(truths) < LEAST or len(set(estimates)) < 2 or len(set(truths)) < 2:
        return None
    rho = float(spearmanr(estimates, truths).statistic)
    at = math.atanh(min(max(rho, -1 + 1e-9), 1 - 1e-9))
    half = _Z_95 * math.sqrt((1 + rho * rho / 2) / (len(truths) - 3))
    return rho, math.tanh(at - half), math.tanh(at + half)


def _proxy(name: str, estimates: Sequence[float], metric: Sequence[float]) -> Proxy | None:
    """``estimates`` are NaN where the proxy says nothing."""
    pairs = [(a, b) for a, b in zip(estimates, metric, strict=True) if math.isfinite(a)]
    found = correlation([a for a, _ in pairs], [b for _, b in pairs])
    if found is None:
        return None
    return Proxy(name=name, policies=len(pairs), spearman=found[0], low=found[1], high=found[2])


def _summed(setup: Setup, rows: Sequence[Entry], centre: Entry | None) -> list[float]:
    """Sums of losses around ``centre``, negative: larger is better."""
    from agents.loss_table import loss_table, separable_loss

    at = None if centre is None else indices_of(setup, centre.suggestion)
    if at is None:
        return [math.nan] * len(rows)
    losses = setup.losses_around([int(v) for v in at])
    if not any(np.isfinite(row[:-1]).any() for row in losses.values() if len(row)):
        return [math.nan] * len(rows)
    table = loss_table(setup.problem, losses)
    places = [indices_of(setup, e.suggestion) for e in rows]
    return [math.nan if p is None else -float(separable_loss(table, p[None])[0]) for p in places]


def _looked(setup: Setup, digests: Sequence[str], pool: Pool) -> list[float]:
    """What looks estimated, larger is better."""
    return [setup.problem.gain(pool.estimates.get(d, math.nan)) for d in digests]


__all__ = ["correlation", "proxies"]
