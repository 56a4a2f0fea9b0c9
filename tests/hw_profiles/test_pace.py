"""Which runs count where a device has fast and slow phases."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from hw_profiles.devices import Sample, Work
from hw_profiles.pace import Pace

ANCHOR = Work("anchor", b"", threads=2, runs=8, rounds=4)


def sample(rounds: Sequence[float], threads: int = 2) -> Sample:
    """Two runs a round, the second a little slower."""
    times = tuple(t * f for t in rounds for f in (1.0, 1.01))
    return Sample("one", "ms", threads, cpu=times if threads == 1 else (), wall=times)


def pace(*batches: Sequence[float]) -> Pace:
    found = Pace(ANCHOR)
    for rounds in batches:
        found.begin()
        found.tell(sample(rounds))
    return found


def test_runs_of_rounds_in_which_the_anchor_was_slow_are_left_out() -> None:
    found = pace((1.0, 1.02, 1.2, 1.0)).calm(sample((5.0, 6.0, 7.0, 5.1)), 4)
    assert found.wall == pytest.approx((5.0, 5.05, 5.1, 5.151))  # the second round ended slowly


def test_a_batch_that_is_slow_in_every_round_is_called_so_and_loses_nothing() -> None:
    slow = pace((1.0, 1.0, 1.0, 1.0), (1.2, 1.2, 1.3, 1.2))
    assert "20.0% slower" in slow.slow()
    assert len(slow.calm(sample((5.0, 6.0, 7.0, 5.1)), 4).wall) == 8
    assert pace((1.2, 1.2, 1.2, 1.2), (1.0, 1.2, 1.2, 1.2)).slow() == ""


def test_what_was_measured_before_the_device_became_faster_is_outdated_once() -> None:
    found = pace((1.2, 1.2, 1.2, 1.2))
    found.took("early")
    found.begin()
    found.tell(sample((1.0, 1.0, 1.0, 1.0)))
    found.took("late")
    assert found.outdated() == ["early"]
    assert found.outdated() == []


CANNOT = [(sample((5.0, 6.0, 7.0, 5.1), threads=1), 4), (sample((5.0, 6.0, 7.0)), 3), (sample((5.0,) * 5), 4)]


@pytest.mark.parametrize(("given", "rounds"), CANNOT)
def test_a_sample_that_the_anchors_rounds_say_nothing_of_stays_as_it_is(given: Sample, rounds: int) -> None:
    assert pace((1.0, 1.2, 1.2, 1.0)).calm(given, rounds) is given
