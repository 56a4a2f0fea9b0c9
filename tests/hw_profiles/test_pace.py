"""What counts where a device has fast and slow phases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from hw_profiles.devices import KernelRecord, Sample, Work
from hw_profiles.pace import Pace, Visits

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


def test_a_batch_that_is_slow_all_the_time_is_called_so() -> None:
    slow = pace((1.0, 1.0, 1.0, 1.0), (1.2, 1.2, 1.3, 1.2))
    assert "20.0% slower" in slow.slow()
    assert pace((1.2, 1.2, 1.2, 1.2), (1.0, 1.2, 1.2, 1.2)).slow() == ""


def test_what_was_measured_before_the_device_became_faster_is_outdated_once() -> None:
    found = pace((1.2, 1.2, 1.2, 1.2))
    found.took("early")
    found.begin()
    found.tell(sample((1.0, 1.0, 1.0, 1.0)))
    found.took("late")
    assert found.outdated() == ["early"]
    assert found.outdated() == []


def test_a_time_counts_when_two_batches_have_seen_it() -> None:
    visits = Visits()
    visits.tell(sample((8.5, 8.4, 8.5, 8.6)))
    assert not visits.agreed
    visits.tell(sample((5.0, 8.4, 8.5, 5.1)))
    assert not visits.agreed
    visits.tell(sample((8.6, 5.2, 5.3, 8.4)))
    assert visits.agreed
    assert visits.sample.best == pytest.approx(5.0)
    assert visits.sample.wall == (*sample((5.0, 8.4, 8.5, 5.1)).wall, *sample((8.6, 5.2, 5.3, 8.4)).wall)
    assert visits.sample.verdict()[0]


def test_kernels_that_one_batch_told_stay_whichever_was_faster() -> None:
    record = KernelRecord(b"graph", ({"dur": 3},), 1)
    visits = Visits()
    visits.tell(replace(sample((8.5, 8.4, 8.5, 8.6)), record=record))
    visits.tell(sample((5.0, 8.4, 8.5, 5.1)))
    assert visits.least.best == pytest.approx(5.0)
    assert visits.least.record == visits.sample.record == record
    assert Visits([sample((1.0, 1.0))]).least.record is None
