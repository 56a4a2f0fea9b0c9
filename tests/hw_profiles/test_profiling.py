"""Profiling: what is held is not measured again, what is unsteady is repeated, and lost devices come back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hw_profiles import profiling
from hw_profiles.devices import Condition, Work
from hw_profiles.devices.local import LocalDevice
from hw_profiles.devices.simulated import SimulatedDevice, Trouble, by_size
from hw_profiles.errors import DeviceError, StoreError
from hw_profiles.probes import probe
from hw_profiles.profiles import ProfileStore
from hw_profiles.profiling import MOST_VISITS, Progress, advice, model_hash, profile

WORKS = [Work(f"lenet {i}", probe("lenet", i), runs=8) for i in range(6)]


def test_only_what_is_not_held_is_measured(tmp_path: Path) -> None:
    store, seen = ProfileStore(tmp_path), list[Progress]()
    first = profile(SimulatedDevice(), WORKS[:3], store, progress=seen.append)
    assert (first.measured, first.held, first.ended) == (3, 0, "done")
    assert [(p.measured, p.key) for p in seen] == [(1, "lenet 0"), (2, "lenet 1"), (3, "lenet 2")]
    device = SimulatedDevice()
    twice = [*WORKS[:4], replace(WORKS[3], key="the same under another name")]
    second = profile(device, twice, store)
    assert (second.measured, second.held, device.given) == (1, 4, 1)
    other = profile(device, [replace(work, threads=2) for work in WORKS[:2]], store)
    assert (other.measured, other.held, len(other.paths)) == (2, 0, 1)
    newer = SimulatedDevice(facts=replace(device.facts(), runtime_version="0.1"))
    assert profile(newer, WORKS[:1], store).measured == 1
    held = store.open(device.facts(), 1)
    truth = {model_hash(work): by_size(work) for work in WORKS}
    assert len(held.networks) == 4
    for model, row in held.measured.items():
        assert 1.0 <= row.best / truth[model] < 1.02


def test_a_planner_sees_each_batch_before_the_next(tmp_path: Path) -> None:
    store, device, sizes = ProfileStore(tmp_path), SimulatedDevice(), list[int]()

    def plan() -> Iterator[Work]:
        for work in WORKS:
            sizes.append(len(store.open(device.facts(), 1).measured))
            yield work

    profile(device, plan(), store, batch=2)
    assert sizes == [0, 0, 2, 2, 4, 4]


@pytest.mark.parametrize("what", ["unplugged", "crashed"])
def test_a_lost_device_is_tried_again(tmp_path: Path, what: Trouble) -> None:
    device, store = SimulatedDevice(trouble={2: what, 4: what}), ProfileStore(tmp_path)
    report = profile(device, WORKS, store, pauses=(0.0,))
    assert (report.measured, report.failed, report.refused) == (6, {}, {})
    assert device.given == 8
    assert len(store.open(device.facts(), 1).rows) == 6


def test_a_device_that_stays_lost_keeps_what_it_gave(tmp_path: Path) -> None:
    store, gone = ProfileStore(tmp_path), SimulatedDevice(trouble=dict.fromkeys(range(4, 99), "unplugged"))
    with pytest.raises(DeviceError) as caught:
        profile(gone, WORKS, store, pauses=(0.0, 0.0))
    assert caught.value.exit_code == 5
    assert "simulated is gone: unplugged" in str(caught.value)
    assert "4 networks measured now and 0 before are kept; run the same again to go on" in str(caught.value)
    report = profile(SimulatedDevice(), WORKS, store)
    assert (report.held, report.measured) == (4, 2)
    rows = store.open(gone.facts(), 1).rows
    assert len({row.model for row in rows}) == len(rows) == 6


def test_unsteady_samples_are_repeated_then_refused_or_kept(tmp_path: Path) -> None:
    once = SimulatedDevice(trouble={1: "unstable"})
    report = profile(once, WORKS[:3], ProfileStore(tmp_path / "a"))
    assert (report.measured, report.refused, once.given) == (3, {}, 4)
    trouble: dict[int, Trouble] = {0: "unstable", 3: "unstable", 4: "unstable"}
    store = ProfileStore(tmp_path / "b")
    report = profile(SimulatedDevice(trouble=trouble), WORKS[:3], store)
    assert report.measured == 2
    assert list(report.refused) == ["lenet 0"]
    assert "halves of 8 runs" in report.refused["lenet 0"]
    assert len(store.open(once.facts(), 1).rows) == 2
    report = profile(
        SimulatedDevice(trouble={0: "unstable", 1: "unstable", 2: "unstable"}), WORKS[:1], store,
        accept_unstable=True,
    )  # fmt: skip
    kept = store.open(once.facts(), 1).measured[model_hash(WORKS[0])]
    assert (report.unstable_kept, report.refused, kept.stable) == (1, {}, False)
    assert kept.why.startswith("unstable, because")
    assert kept.sigma >= 0.03


def test_wall_times_are_measured_until_two_batches_agree(tmp_path: Path) -> None:
    works = [replace(work, threads=2) for work in WORKS[:3]]
    device, store = SimulatedDevice(trouble={0: "shared", 4: "shared"}), ProfileStore(tmp_path / "a")
    report = profile(device, works, store)
    # All once, all again, then the two that a slow phase had hit.
    assert (report.measured, report.refused, device.given) == (3, {}, 3 + 3 + 2)
    held = store.open(device.facts(), 2).measured
    for work in works:
        row = held[model_hash(work)]
        assert row.stable
        assert row.best < 1.02 * by_size(work)
        assert len(row.runs) == 16
        assert row.sigma < 0.05
    faster = SimulatedDevice(drift=-0.07)
    report = profile(faster, works[:1], ProfileStore(tmp_path / "b"))
    assert (report.measured, faster.given) == (1, MOST_VISITS)  # no two agree: what is least so far stands
    assert profile(faster, works[:1], ProfileStore(tmp_path / "b")).held == 1
    restless = SimulatedDevice(trouble=dict.fromkeys(range(99), "unstable"), drift=-0.07)
    report = profile(restless, works[:2], ProfileStore(tmp_path / "c"), accept_unstable=True)
    assert (report.measured, report.unstable_kept) == (2, 2)


def test_what_one_batch_saw_is_stored_before_another_agrees(tmp_path: Path) -> None:
    store, works = ProfileStore(tmp_path), [replace(work, threads=2) for work in WORKS[:4]]
    gone = SimulatedDevice(trouble=dict.fromkeys(range(4, 99), "unplugged"))
    with pytest.raises(DeviceError, match="4 networks measured now"):
        profile(gone, works, store, batch=4, pauses=())
    assert profile(SimulatedDevice(), works, store).held == 4


def test_throttling_is_waited_out_or_named(tmp_path: Path) -> None:
    calm = SimulatedDevice(trouble={0: "throttled"})
    store = ProfileStore(tmp_path / "a")
    report = profile(calm, WORKS[:2], store, cool_seconds=0.0)
    assert (report.measured, report.refused, calm.given) == (2, {}, 3)
    assert store.open(calm.facts(), 1).measured[model_hash(WORKS[0])].best < 1.02 * by_size(WORKS[0])
    hot = SimulatedDevice(trouble=dict.fromkeys(range(99), "throttled"))
    with pytest.raises(DeviceError) as caught:
        profile(hot, WORKS[:2], ProfileStore(tmp_path / "b"), cool_seconds=0.0)
    assert caught.value.exit_code == 5
    assert "2 networks refused" in str(caught.value)
    assert "because the device throttled" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


def test_networks_that_fail_there_are_not_tried_again(tmp_path: Path) -> None:
    store, device = ProfileStore(tmp_path), SimulatedDevice(trouble={1: "failed"})
    report = profile(device, WORKS[:3], store)
    assert report.failed == {"lenet 1": "it does not run here"}
    assert report.measured == 2
    again = profile(device, WORKS[:3], store)
    assert (again.held, again.measured, again.failed) == (3, 0, {})
    assert store.open(device.facts(), 1).failures == {model_hash(WORKS[1]): "it does not run here"}


def test_budget_and_stop_end_between_samples(tmp_path: Path) -> None:
    store, stop = ProfileStore(tmp_path), threading.Event()
    report = profile(SimulatedDevice(), WORKS, store, batch=2, budget_seconds=0.0)
    assert (report.measured, report.ended) == (0, "budget")
    restless = SimulatedDevice(trouble={1: "unstable"})

    def slowly(_: Progress) -> None:
        time.sleep(0.3)

    report = profile(restless, WORKS, ProfileStore(tmp_path / "b"), budget_seconds=0.5, progress=slowly)
    assert (report.measured, report.ended, report.refused) == (5, "budget", {})
    assert restless.given == 6

    def after_three(progress: Progress) -> None:
        if progress.measured == 3:
            stop.set()

    report = profile(SimulatedDevice(), WORKS, store, batch=2, progress=after_three, stop=stop)
    assert (report.measured, report.ended) == (3, "stopped")
    report = profile(SimulatedDevice(), WORKS, store)
    assert (report.measured, report.held, report.ended) == (3, 3, "done")


def test_a_store_that_cannot_be_written_is_no_lost_device(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    device = SimulatedDevice()
    with pytest.raises(StoreError) as caught:
        profile(device, WORKS, ProfileStore(tmp_path / "file"), pauses=(0.0,))
    assert caught.value.exit_code == 5
    assert device.given == 1


def test_advice_names_what_disturbs() -> None:
    facts = SimulatedDevice().facts()
    assert advice(facts, Condition(1.5, 40.0, "performance", False, 0.5)) == []
    assert advice(facts, Condition()) == []
    told = advice(facts, Condition(1.5, 85.0, "powersave", True, 3.0))
    assert [any(word in text for text in told) for word in ("powersave", "throttles", "3.0 on 4")] == [
        True
    ] * 3


def test_this_machine(tmp_path: Path) -> None:
    works = [Work(f, probe(f, 1), runs=24) for f in ("lenet", "resnet20/int8")] + [Work("bad", b"junk")]
    store = ProfileStore(tmp_path)
    with LocalDevice() as device:
        report = profile(device, works, store, repeats=0, accept_unstable=True)
        again = profile(device, works, store)
    assert (report.measured, again.measured, again.held) == (2, 0, 3)
    assert list(report.failed) == ["bad"]
    held = store.open(device.facts(), 1)
    assert held.precisions == {"fp32", "int8"}
    for (batch, ms, sigma), row in zip(held.networks, held.measured.values(), strict=True):
        assert batch.macs().sum() > 1e5
        assert 0.0 < ms == row.best <= row.median
        assert 0.0 < sigma < 1.0
        assert row.load_ms is not None
    assert held.stale(device.facts(), 1) == ""


def _phases(slow: range, factor: float = 1.3) -> SimulatedDevice:
    """A device that is slower while it gives certain samples, halves of each of which agree."""
    device = SimulatedDevice(noise=0.002)
    device.truth = lambda work: by_size(work) * (factor if device.given - 1 in slow else 1.0)
    return device


ANCHOR = Work("anchor", probe("resnet20", 0), runs=8)


def _off(device: SimulatedDevice, store: ProfileStore) -> list[float]:
    """Of what is held: measured against the truth of a calm device."""
    held = store.open(device.facts(), 1).measured
    return [held[model_hash(work)].best / by_size(work) for work in WORKS if model_hash(work) in held]


def test_a_slow_phase_is_seen_by_the_anchor_and_measured_again(tmp_path: Path) -> None:
    blind, seeing = _phases(range(2, 5)), _phases(range(3, 7))
    stores = ProfileStore(tmp_path / "blind"), ProfileStore(tmp_path / "seeing")
    assert profile(blind, WORKS, stores[0], batch=2).refused == {}
    assert max(_off(blind, stores[0])) > 1.25  # and called stable
    report = profile(seeing, WORKS, stores[1], batch=2, anchor=ANCHOR, slow_seconds=0.0)
    assert (report.measured, report.refused) == (6, {})
    assert max(_off(seeing, stores[1])) < 1.02
    assert seeing.given > 6 + 3
    assert len(stores[1].open(seeing.facts(), 1).rows) == 6  # what came in the slow phase was not stored


def test_a_slow_phase_is_waited_for_and_costs_no_tries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "SLOW_PAUSE", 0.001)
    device, store = _phases(range(3, 30)), ProfileStore(tmp_path)
    report = profile(device, WORKS, store, batch=2, anchor=ANCHOR)
    assert (report.measured, report.refused) == (6, {})
    assert max(_off(device, store)) < 1.02
    # a batch with its anchor, the same while it is slow, 24 looks and the last one, then all that is left
    assert device.given == 3 + 3 + 25 + 5


def test_what_was_measured_before_a_device_became_faster_is_measured_again(tmp_path: Path) -> None:
    device, store = _phases(range(6)), ProfileStore(tmp_path)
    report = profile(device, WORKS, store, batch=2, anchor=ANCHOR, slow_seconds=0.0)
    assert (report.measured, report.refused) == (6, {})
    assert max(_off(device, store)) < 1.02
    rows = store.open(device.facts(), 1).rows
    assert len(rows) == 6 + 4  # two batches were slow, and both measurements of a network are kept


def test_a_phase_that_does_not_end_is_refused_or_kept_with_its_reason(tmp_path: Path) -> None:
    slow = _phases(range(3, 999))
    report = profile(slow, WORKS[:4], ProfileStore(tmp_path / "a"), batch=2, anchor=ANCHOR, slow_seconds=0.0)
    assert report.measured == 2
    assert sorted(report.refused) == ["lenet 2", "lenet 3"]
    assert "slower than it was" in report.refused["lenet 2"]
    store = ProfileStore(tmp_path / "b")
    slow = _phases(range(3, 999))
    report = profile(slow, WORKS[:4], store, batch=2, anchor=ANCHOR, accept_unstable=True, slow_seconds=0.0)
    assert (report.measured, report.unstable_kept) == (4, 2)
    row = store.open(slow.facts(), 1).measured[model_hash(WORKS[2])]
    assert not row.stable
    assert "slower than it was" in row.why


def test_what_the_budget_left_unsteady_is_kept_where_that_is_accepted(tmp_path: Path) -> None:
    def slowly(_: Progress) -> None:
        time.sleep(0.3)

    trouble: dict[int, Trouble] = {1: "unstable"}
    for accept, measured in ((False, 5), (True, 6)):
        report = profile(
            SimulatedDevice(trouble=trouble), WORKS, ProfileStore(tmp_path / str(accept)), budget_seconds=0.5,
            progress=slowly, accept_unstable=accept,
        )  # fmt: skip
        assert (report.measured, report.unstable_kept, report.ended) == (measured, int(accept), "budget")
