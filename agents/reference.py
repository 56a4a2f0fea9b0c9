"""The loss table that optimisers start from: around a policy about as small as the budget asks for."""

from __future__ import annotations

from .ladder import ladder, nearest_first
from .loss_table import LossTable, loss_table
from .pricing import Indices, Pricer


def reference(pricer: Pricer) -> Indices:
    """The largest uniform policy inside the budget, of the lowest precision; else nothing compressed."""
    rungs = nearest_first(ladder(pricer))
    return rungs[0].indices if rungs else pricer.top


def losses_near(pricer: Pricer, at: Indices | None = None) -> LossTable:
    """Losses around a policy (default: `reference`), whose sum allocations minimise.

    Where only losses around the whole network can be had, their roots: alone and around the whole network
    small changes lose less than together, and roots add up better.
    """
    problem = pricer.problem
    if problem.losses_around is None:
        table = loss_table(problem)
        return table.tempered(0.5) if problem.losses is not None else table
    where = reference(pricer) if at is None else at
    return loss_table(problem, problem.losses_around([int(v) for v in where]))


__all__ = ["losses_near", "reference"]
