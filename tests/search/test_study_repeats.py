"""What a study must repeat to the last bit: prices and suggestions, whatever was priced before or beside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agents.registry import make_agent
from search.config import load_config
from search.setup import Setup, load_setup
from tests.search.own_task import flags


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    task = flags(tmp_path_factory.mktemp("task"))[1].removeprefix("--task=")
    return load_setup(load_config({"target": "raspberry-pi", "task": task, "max_latency": "0.9x"}))


def test_prices_do_not_depend_on_company(setup: Setup) -> None:
    rng = np.random.default_rng(3)
    points = rng.random((24, setup.space.dimension))
    policies = [setup.space.resolve(setup.space.decode(x)) for x in points]
    for prices in (setup.costs, setup.estimates):
        together = prices(policies)
        backwards = prices(policies[::-1])
        for name, values in together.items():
            alone = np.array([prices([p])[name][0] for p in policies])
            np.testing.assert_array_equal(values, alone, err_msg=name)
            np.testing.assert_array_equal(values, backwards[name][::-1], err_msg=name)


def test_estimates_are_near_the_costs(setup: Setup) -> None:
    rng = np.random.default_rng(4)
    policies = [setup.space.resolve(setup.space.decode(x)) for x in rng.random((40, setup.space.dimension))]
    ratio = setup.estimates(policies)["latency_ms"] / setup.costs(policies)["latency_ms"]
    assert 0.98 < float(np.median(ratio)) < 1.02
    assert float(np.percentile(np.abs(ratio - 1.0), 90)) < 0.15


def test_suggestions_do_not_depend_on_what_was_priced_before(setup: Setup, tmp_path: Path) -> None:
    first, second = (make_agent("joint", setup.problem, 5) for _ in range(2))
    rng = np.random.default_rng(6)
    for x in rng.random((30, setup.space.dimension)):
        setup.estimates([setup.space.resolve(setup.space.decode(x))])
    for _ in range(4):
        a, b = first.suggest()[0], second.suggest()[0]
        assert a == b
        assert setup.budget.why_not(setup.priced(a.policy)) == ""
