import dataclasses

import numpy as np
import pytest

from agents.explain import Explanation, explain
from agents.loss_table import loss_table
from agents.pricing import Pricer
from agents.solver import allocate
from agents.toys import ToyAccuracy, toy_losses, toy_problem, toy_space


@pytest.fixture(scope="module")
def explained() -> tuple[Pricer, np.ndarray, dict[str, np.ndarray], dict[str, Explanation]]:
    space = toy_space(2, 32, bits=((8, 8), (4, 8)))
    accuracy = ToyAccuracy(space.structure)
    problem = toy_problem(space, share=0.1, measured=accuracy)
    pricer, losses = Pricer(problem), dict(toy_losses(space, accuracy))
    indices = allocate(pricer, loss_table(problem), problem.budget)
    assert indices is not None
    return pricer, indices, losses, {e.name: e for e in explain(pricer, indices, losses)}


def test_numbers_are_those_of_whole_policies(explained) -> None:  # type: ignore[no-untyped-def]
    pricer, indices, losses, found = explained
    here = pricer.exact(indices)["latency_ms"]
    counted = loss_table(pricer.problem, losses).counted(indices[None])[0]
    assert counted.any()
    assert not counted.all()
    for i, c in enumerate(pricer.space.choices):
        e = found[c.name]
        assert (e.kind, e.subject) == (c.kind, c.subject)
        assert e.why != ""
        assert "\n" not in e.why
        if not counted[i]:
            assert "removed" in e.why
            assert (e.latency_ms, e.step_down, e.step_up) == (0.0, None, None)
            continue
        for value, adds in (
            (int(pricer.top[i]), e.latency_ms),
            (int(indices[i]) - 1, e.step_down and e.step_down[0]),
            (int(indices[i]) + 1, e.step_up and e.step_up[0]),
        ):
            if not 0 <= value <= pricer.top[i]:
                assert adds is None
                continue
            row = indices.copy()
            row[i] = value
            assert adds == pytest.approx(pricer.exact(row)["latency_ms"] - here, abs=1e-12)
        assert e.risk == pytest.approx(losses[c.name][indices[i]], abs=1e-6)
        if e.step_up is not None:
            expected = losses[c.name][indices[i] + 1] - losses[c.name][indices[i]]
            assert e.step_up[1] == pytest.approx(expected, abs=1e-3)


def test_reasons_say_what_the_budget_and_the_prices_say(explained) -> None:  # type: ignore[no-untyped-def]
    pricer, indices, _, found = explained
    whys = {}
    for i, c in enumerate(pricer.space.choices):
        e = found[c.name]
        if e.step_up is not None and "budget breaks" in e.why:
            row = indices.copy()
            row[i] += 1 if "one step up" in e.why else pricer.top[i] - row[i]
            assert pricer.problem.budget.why_not(pricer.exact(row))
        if "saves nothing" in e.why:
            assert e.step_down is not None
            assert e.step_down[0] >= -1e-9
        if "not worth it" in e.why:
            assert e.step_down is not None
            ups = [
                -o.step_up[1] / o.step_up[0]
                for o in found.values()
                if o.step_up is not None and o.step_up[0] > 0
            ]
            assert e.step_down[1] / -e.step_down[0] >= max(ups) * (1 - 1e-9)
        whys[e.why.split(" ")[0]] = e.name
    assert len(whys) >= 3


def test_without_losses_risks_are_unknown_and_layers_without_choices_are_named() -> None:
    space = toy_space(2, 32, methods=("factorize",))
    problem = toy_problem(space, share=0.8)
    pricer = Pricer(problem)
    found = explain(pricer, pricer.top, {})
    assert all(np.isnan(e.risk) for e in found if e.kind != "fixed")
    assert all("not measured" in e.why or "saves nothing" in e.why for e in found if e.kind != "fixed")
    fixed = [e for e in found if e.kind == "fixed"]
    reached = {c.subject for c in space.choices}
    assert {e.subject for e in fixed} == {x.name for x in space.structure.layers} - reached
    assert all(e.why.startswith("no choice") for e in fixed)
    assert dataclasses.asdict(found[0])["name"] == space.choices[0].name
