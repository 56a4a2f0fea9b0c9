"""The planner: generic probes first, then where the predictor is unsure, and around kernels that matter."""

from __future__ import annotations

from itertools import islice

import numpy as np
import onnx
import pytest

from hw_profiles.kernel import KernelBatch, KernelKind, make_batch
from hw_profiles.learned import Observation, learn
from hw_profiles.onnx_kernels import execute, kernels_of
from hw_profiles.planner import FIRST, Planner, kernel_key, kernel_probe
from hw_profiles.probe_chains import KINDS, random_probe
from tests.hw_profiles.synthetic import PRIOR, measured, networks, truth


def _wanted() -> KernelBatch:
    conv = KernelKind("Conv", "com.microsoft.nchwc", "fp32", fused=("relu",), weight_bearing=True)
    integer = KernelKind("QLinearConv", "com.microsoft", "int8", weight_bearing=True)
    gemm = KernelKind("QGemm", "com.microsoft", "int8", weight_bearing=True)
    add = KernelKind("Add")
    columns = {
        "cin": [[32, 24, 80, 32], [48, 24, 80, 32]], "cout": [[48, 40, 10, 32]],
        "kernel_h": [[3, 1, 1, 1]], "kernel_w": [[3, 1, 1, 1]],
        "out_h": [[14, 7, 1, 14]], "out_w": [[14, 7, 1, 14]],
    }  # fmt: skip
    return make_batch((conv, integer, gemm, add), columns)


def test_the_general_plan_is_the_same_every_time() -> None:
    first, second = (list(islice(Planner(PRIOR).works(), FIRST)) for _ in range(2))
    assert [w.key for w in first] == [w.key for w in second]
    assert [w.model for w in first] == [w.model for w in second]
    assert len({w.model for w in first}) == FIRST
    assert all(w.kernels and w.threads == 1 and w.runs >= 20 for w in first)
    other = list(islice(Planner(PRIOR, seed=1, threads=2).works(), 4))
    assert {w.model for w in other}.isdisjoint(w.model for w in first)
    assert other[0].threads == 2


@pytest.mark.parametrize("kind", list(KINDS))
def test_probes_are_valid_and_run(kind: str) -> None:
    for precision in ("fp32", "int8", "mixed"):
        model = random_probe(5, kind, precision)
        onnx.checker.check_model(onnx.load_from_string(model))
        found = execute(model)
        assert found.batch.kinds
        assert model == random_probe(5, kind, precision)
        integers = any(k.precision == "int8" for k in found.batch.kinds)
        assert integers == (precision != "fp32") or precision == "mixed"


def test_of_several_the_least_known_is_measured() -> None:
    known = measured(networks(30, 100), truth())
    model = learn(known, PRIOR, calibrated=False)
    planner = Planner(PRIOR, batch=4)
    planner.drawn = FIRST
    works = planner.next_batch(model)
    drawn = [random_probe(FIRST + i) for i in range(planner.drawn - FIRST)]
    levels = [float(model.price(kernels_of(probe))[1][0]) for probe in drawn]
    for i, work in enumerate(works):
        three = levels[3 * i : 3 * i + 3]
        assert work.model == drawn[3 * i + int(np.argmax(three))]
    assert len(levels) == 12


def test_kernels_that_matter_get_probes_of_their_own() -> None:
    wanted = _wanted()
    planner = Planner(PRIOR, interest=[wanted], batch=8)
    works = planner.next_batch(None)
    named = [w.key for w in works if w.key.startswith("kernel#")]
    assert set(named) == {kernel_key(wanted, r, k) for r, k in ((0, 0), (1, 0), (0, 1), (0, 2))}
    again = planner.next_batch(None)
    assert not [w.key for w in again if w.key.startswith("kernel#")]
    assert len(works) == len(again) == 8


def test_a_kernel_probe_runs_that_kernel() -> None:
    wanted = _wanted()
    for k in range(3):
        probe = kernel_probe(wanted, 0, k)
        assert probe is not None
        found = execute(probe).batch
        place = [i for i, kind in enumerate(found.kinds) if kind.op == wanted.kinds[k].op]
        assert len(place) == 1
        for name in ("cin", "cout", "kernel_h", "out_h", "out_w", "weight_elements"):
            assert found[name][0, place[0]] == wanted[name][0, k], name
        assert found.kinds[place[0]].fused == wanted.kinds[k].fused
    assert kernel_probe(wanted, 0, 3) is None


def test_what_was_measured_is_asked_for_before_each_batch() -> None:
    seen: list[Observation] = measured(networks(6, 100), truth())
    asked = []

    def known() -> list[Observation]:
        asked.append(len(seen))
        return seen

    planner = Planner(PRIOR, interest=[_wanted()], measured=known, batch=4)
    works = planner.works()
    first = [next(works).key for _ in range(4)]
    assert asked == [6]
    assert sum(key.startswith("kernel#") for key in first) == 2
    next(works)
    assert asked == [6, 6]
