"""Why a policy is what it is: what each of its choices saves and risks, and what the next step would cost.

Latencies are exact costs of whole policies that differ in one coordinate; losses are those measured one by
one. Nothing here proposes anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressors.policy import FLOAT, ResolvedPolicy
from compressors.space import Choice

from .contract import Losses
from .loss_table import LossTable, loss_table
from .pricing import Indices, Pricer

Floats = NDArray[np.float64]
#: (ms, nats) that a step adds; both signed.
Step = tuple[float, float]

#: Latencies closer than this share of the policy's do not differ.
SAME = 1e-6


@dataclass(frozen=True)
class Explanation:
    """One coordinate of a policy, or a layer without any (kind "fixed").

    ``latency_ms``: what going back to the uncompressed value would add, negative where that is quicker;
    ``value``: as resolved, "gone" in a removed block; ``risk``: loss of the chosen value in nats, NaN where
    the coordinate was not measured; ``step_down`` and ``step_up``: what the next smaller and the next larger
    value would add in ms and nats, None where there is none; ``why``: one line on why the choice stands.
    """

    name: str
    kind: str
    subject: str
    value: str
    latency_ms: float
    risk: float
    step_down: Step | None
    step_up: Step | None
    why: str


@dataclass(frozen=True)
class _Prices:
    """Exact costs, by name, of the policy and of its neighbours by single changes, by (coordinate, value)."""

    here: Mapping[str, float]
    changed: Mapping[tuple[int, int], Mapping[str, float]]
    key: str

    def adds(self, i: int, value: int) -> float:
        """Milliseconds that setting coordinate i to ``value`` adds."""
        found = self.changed.get((i, value))
        return 0.0 if found is None else float(found[self.key] - self.here[self.key])


def explain(pricer: Pricer, indices: Indices, losses: Losses) -> list[Explanation]:
    """Explain the policy of value indices (d,), coordinate by coordinate, then layers that no choice reaches.

    ``losses`` as `Problem.losses` gives them; without any, risks and loss steps are NaN. Prices about three
    policies a coordinate exactly.
    """
    table = loss_table(pricer.problem, losses)
    # What was filled in from the prior alone is no measurement: it has no unit.
    loss = np.where(table.measured.any(axis=1, keepdims=True) & _any(losses), table.loss, np.nan)
    prices = _priced(pricer, indices)
    steps = [_steps(prices, loss, indices, i, int(top)) for i, top in enumerate(pricer.top)]
    counted = table.counted(indices[None])[0]
    best = _best_up(pricer, steps, counted)
    policy, found = pricer.policy(indices), []
    for i, choice in enumerate(pricer.space.choices):
        if not counted[i]:
            block = _remover(pricer, table, indices, i)
            gone = f"stands in {block}, which is removed"
            row = Explanation(choice.name, choice.kind, choice.subject, "gone", 0.0, 0.0, None, None, gone)
        else:
            value = _resolved(choice, policy) or _words(choice, int(indices[i]), pricer)
            why = _why(pricer, prices, indices, i, steps[i], best)
            back, risk = prices.adds(i, int(pricer.top[i])), float(loss[i, indices[i]])
            row = Explanation(choice.name, choice.kind, choice.subject, value, back, risk, *steps[i], why)
        found.append(row)
    return found + _fixed(pricer)


def _resolved(choice: Choice, policy: ResolvedPolicy) -> str:
    """The bits a choice resolved to, which are not always those asked for; "" for other kinds."""
    bits = {"weight_bits": policy.weight_bits, "act_bits": policy.act_bits}.get(choice.kind, {})
    found = bits.get(choice.subject)
    return "" if found is None else "float" if found == FLOAT else f"{found} bits"


def _any(losses: Losses) -> bool:
    return any(np.isfinite(row[:-1]).any() for row in losses.values() if len(row))


def _priced(pricer: Pricer, indices: Indices) -> _Prices:
    wanted: dict[tuple[int, int], Indices] = {}
    for i, (at, top) in enumerate(zip(indices, pricer.top, strict=True)):
        for value in {int(at) - 1, int(at) + 1, int(top)} - {int(at)}:
            if 0 <= value <= top:
                row = indices.copy()
                row[i] = value
                wanted[i, value] = row
    policies = [pricer.policy(indices), *(pricer.policy(row) for row in wanted.values())]
    costs = pricer.problem.costs(policies)
    rows = [{n: float(c[k]) for n, c in costs.items()} for k in range(len(policies))]
    return _Prices(rows[0], dict(zip(wanted, rows[1:], strict=True)), pricer.budget.latency_key)


def _steps(
    prices: _Prices, loss: Floats, indices: Indices, i: int, top: int
) -> tuple[Step | None, Step | None]:
    """(down, up) of coordinate i."""
    at = int(indices[i])
    both = [
        (prices.adds(i, value), float(loss[i, value] - loss[i, at])) if 0 <= value <= top else None
        for value in (at - 1, at + 1)
    ]
    return both[0], both[1]


def _best_up(
    pricer: Pricer, steps: list[tuple[Step | None, Step | None]], counted: NDArray[np.bool_]
) -> tuple[float, str] | None:
    """Most loss regained per millisecond by any step up, and whose it is: the price of latency here."""
    rates = [
        (-up[1] / up[0], choice.name)
        for choice, (_, up), on in zip(pricer.space.choices, steps, counted, strict=True)
        if on and up is not None and up[0] > 0 and np.isfinite(up[1])
    ]
    return max(rates, default=None)


def _why(
    pricer: Pricer,
    prices: _Prices,
    indices: Indices,
    i: int,
    steps: tuple[Step | None, Step | None],
    best: tuple[float, str] | None,
) -> str:
    if indices[i] == pricer.top[i]:
        return _why_left(pricer, prices, indices, i, steps[0], best)
    adds = prices.adds(i, int(pricer.top[i]))
    if adds <= SAME * prices.here[prices.key]:
        return "uncompressed it would be no slower: a change without need, or one that others rest on"
    top = prices.changed[i, int(pricer.top[i])]
    broken = pricer.budget.why_not(top)
    if broken:
        up = prices.changed.get((i, int(indices[i]) + 1), top)
        where = "one step up" if pricer.budget.why_not(up) else "uncompressed"
        return f"{where} the budget breaks: {pricer.budget.why_not(up) or broken}"
    return f"saves {adds:.4g} ms; uncompressed alone it would still fit the budget"


def _why_left(
    pricer: Pricer,
    prices: _Prices,
    indices: Indices,
    i: int,
    down: Step | None,
    best: tuple[float, str] | None,
) -> str:
    """Why a coordinate was left as it is."""
    if down is None:
        return "no choice: one value is offered"
    if -down[0] <= SAME * prices.here[prices.key]:
        return f"a step down saves nothing ({down[0]:+.3g} ms){_first_saving(pricer, indices, i)}"
    if not np.isfinite(down[1]):
        return f"a step down would save {-down[0]:.3g} ms; what it loses was not measured"
    broken = pricer.budget.why_not(prices.changed[i, int(indices[i]) - 1])
    if broken:
        return f"a step down breaks the budget: {broken}"
    rate = down[1] / -down[0]
    if best is None:
        return f"nothing has to be saved here: a step down costs {rate:.3g} nats per ms"
    if rate >= best[0]:
        return f"not worth it: a step down costs {rate:.3g} nats per ms, {best[1]} would buy {best[0]:.3g}"
    return (
        f"cheap by its own loss, {rate:.3g} nats per ms: {best[1]} would buy {best[0]:.3g} for the time saved"
    )


def _first_saving(pricer: Pricer, indices: Indices, i: int) -> str:
    """Where the staircase has its next tread, by the pricer's prices."""
    rows = np.repeat(indices[None], int(indices[i]) + 1, axis=0)
    rows[:, i] = np.arange(len(rows))[::-1]
    latency = pricer.latency(rows)
    saving = np.flatnonzero(latency < latency[0] * (1 - SAME))
    if not len(saving):
        return ", nor does any value below"
    row = int(saving[0])
    words = _words(pricer.space.choices[i], int(rows[row, i]), pricer)
    return f"; the first that does, {words}, saves {latency[0] - latency[row]:.3g} ms"


def _remover(pricer: Pricer, table: LossTable, indices: Indices, i: int) -> str:
    above = np.flatnonzero(table.hides[:, i] & (indices == 0))
    return pricer.space.choices[int(above[0])].subject


def _words(choice: Choice, at: int, pricer: Pricer) -> str:
    """The value of a choice in words."""
    value = choice.values[at]
    if choice.kind == "keep":
        return f"{value} of {pricer.space.structure.group[choice.subject].size} channels"
    if choice.kind == "removed":
        return "removed" if value is True else "kept"
    if choice.kind == "rank":
        return f"{value[0]} at {value[1]:g}" if isinstance(value, tuple) else "dense"
    return "float" if value == FLOAT else f"{value} bits"


def _fixed(pricer: Pricer) -> list[Explanation]:
    """Layers that no coordinate reaches, each with the reason."""
    space = pricer.space
    reached: set[str] = set()
    for c in space.choices:
        if c.kind == "keep":
            reached.update(space.structure.group[c.subject].layers)
        elif c.kind == "removed":
            reached.update(space.structure.block[c.subject].layers)
        else:
            reached.add(c.subject)
    bits = any(c.kind == "act_bits" for c in space.choices)
    found = []
    for layer in space.structure.layers:
        if layer.name in reached or (
            bits and "bits" not in layer.fixed and space.abilities.has_integer_kernel(layer)
        ):
            continue
        why = "; ".join(f"{knob}: {reason}" for knob, reason in layer.fixed.items())
        found.append(
            Explanation(
                f"fixed:{layer.name}", "fixed", layer.name, "as it is", 0.0, 0.0, None, None,
                f"no choice: {why or 'nothing that is searched changes it on this target'}",
            )
        )  # fmt: skip
    return found
