"""The policy x device matrix: what one target's picked policy is worth on the others."""

from __future__ import annotations

from collections.abc import Sequence

from agents.contract import Outcome
from agents.joined import Exchange
from compressors.policy import ResolvedPolicy
from compressors.translate import translated

from .pool import Pool, open_pool
from .results import Cell, Matrix, MatrixRow
from .results import Score as ScoreFacts
from .setup import Setup
from .summary import numbers, score_facts

COMMON = "common"


def matrix_of(
    setups: Sequence[Setup], picked: Sequence[ResolvedPolicy], exchange: Exchange, paid: int
) -> Matrix:
    """Every picked policy on every target, as that target executes it, not recovered.

    ``exchange`` has a party for each setup. What was not evaluated yet is evaluated now.
    """
    pools = [open_pool(s.config.pool, s.scorer) for s in setups]
    try:
        known = [{o.policy.digest: o for o, _ in party.complete} for party in exchange.parties]
        cells = [
            [_cell(s, pool, p, k) for s, pool, k in zip(setups, pools, known, strict=True)] for p in picked
        ]
    finally:
        for pool in pools:
            pool.close()
    rows = [
        MatrixRow(policy=s.target.name, cells=[cell for cell, _ in row])
        for s, row in zip(setups, cells, strict=True)
    ]
    found = exchange.best_common()
    common = None if found is None else _common(setups, found[0], known)
    serving = [r["cells"] for r in rows if all(c["same"] and c["feasible"] for c in r["cells"])]
    serving += [] if common is None else [common["cells"]]
    if serving:
        common = MatrixRow(policy=COMMON, cells=max(serving, key=lambda cells: _worst(setups, cells)))
    further = sum(new for row in cells for _, new in row)
    return Matrix(rows=rows, common=common, evaluations=paid, further=further)


def _worst(setups: Sequence[Setup], cells: Sequence[Cell]) -> float:
    """The least gain of a policy on any target."""
    return min(s.problem.gain(c["validation"]["value"]) for s, c in zip(setups, cells, strict=True))


def _cell(setup: Setup, pool: Pool, policy: ResolvedPolicy, known: dict[str, Outcome]) -> tuple[Cell, bool]:
    """A policy on a target, and whether that took another evaluation."""
    here = translated(policy, setup.space)
    outcome = known.get(here.policy.digest)
    if outcome is not None:
        return _of_outcome(setup, outcome, here.exact), False
    score = pool.score(here.policy)
    known[here.policy.digest] = Outcome(
        here.policy, score.value, setup.priced(here.policy), score.std, score.low, score.high
    )
    return _made(setup, here.policy, here.exact, score_facts(score)), True


def _common(
    setups: Sequence[Setup], policy: ResolvedPolicy, known: Sequence[dict[str, Outcome]]
) -> MatrixRow:
    cells = [_of_outcome(s, k[policy.digest], True) for s, k in zip(setups, known, strict=True)]
    return MatrixRow(policy=COMMON, cells=cells)


def _of_outcome(setup: Setup, outcome: Outcome, same: bool) -> Cell:
    score = ScoreFacts(
        value=outcome.accuracy or 0.0,
        samples=len(setup.task.validation),
        low=outcome.accuracy_low,
        high=outcome.accuracy_high,
    )
    return _made(setup, outcome.policy, same, score)


def _made(setup: Setup, policy: ResolvedPolicy, same: bool, score: ScoreFacts) -> Cell:
    costs = setup.priced(policy)
    drop = setup.problem.drop(score["value"])
    return Cell(
        target=setup.target.name,
        digest=policy.digest,
        same=same,
        costs=numbers(costs),
        feasible=not setup.budget.why_not(costs) and setup.problem.holds_drop(score["value"]),
        validation=score,
        drop=drop,
    )


__all__ = ["COMMON", "matrix_of"]
