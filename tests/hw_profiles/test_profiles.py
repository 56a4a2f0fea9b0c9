"""Profiles: what they hold, how they merge, and that files survive crashes, full disks and strangers."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hw_profiles.devices import DeviceFacts, Work
from hw_profiles.devices.simulated import SimulatedDevice
from hw_profiles.errors import BadProfileError, StoreError
from hw_profiles.kernel import COLUMNS
from hw_profiles.onnx_kernels import kernels_of
from hw_profiles.probes import probe
from hw_profiles.profile_rows import FailureRow, NetworkRow, row_of
from hw_profiles.profiles import Profile, ProfileStore
from hw_profiles.profiling import model_hash

FACTS = DeviceFacts("a-board", "a chip", 4, "arm64-neon", "onnxruntime", "1.32.0", 1.5)


def rows_of(*works: Work, seed: int = 0, **options: object) -> list[NetworkRow]:
    """Rows of works on a simulated device."""
    device = SimulatedDevice(seed=seed, **options)  # type: ignore[arg-type]
    samples = device.measure([replace(work, kernels=True) for work in works])
    rows = [
        row_of(sample, model_hash(work), "2026-01-01") for sample, work in zip(samples, works, strict=True)
    ]
    return [row for row in rows if isinstance(row, NetworkRow)]


def work_of(family: str, seed: int = 0) -> Work:
    """A probe as a work."""
    return Work(f"{family} {seed}", probe(family, seed))


def test_networks_and_kernels_come_back(tmp_path: Path) -> None:
    works = [work_of("lenet"), work_of("resnet20/int8"), work_of("factorised/mixed")]
    rows, store = rows_of(*works), ProfileStore(tmp_path)
    store.append(FACTS, 1, rows[:1])
    store.append(FACTS, 1, rows[1:])
    found = store.open(FACTS, 1)
    assert found.facts == FACTS
    assert found.rows == tuple(rows)
    assert found.notes == ()
    for work, row, (batch, ms, sigma) in zip(works, rows, found.networks, strict=True):
        asked = kernels_of(work.model)
        # the runtime names the reorders that it adds as it likes
        assert [replace(kind, layer="") for kind in batch.kinds] == [
            replace(k, layer="") for k in asked.kinds
        ]
        assert all(np.array_equal(batch[name], asked[name]) for name in COLUMNS)
        assert ms == row.best == pytest.approx(min(row.runs))
        assert 0.003 <= sigma < 0.03
    assert len(found.kernels) == sum(len(row.kinds) for row in rows)
    first = found.kernels[0]
    assert first.kind == found.networks[0][0].kinds[0]
    assert first.columns["cout"] == found.networks[0][0]["cout"][0, 0]
    assert first.model == model_hash(works[0])
    spent = sum(kernel.microseconds for kernel in found.kernels if kernel.model == first.model)
    assert spent == pytest.approx(0.02e3 + len(works[0].model) * 1e-3, rel=1e-3)  # the simulated truth
    assert found.precisions == {"fp32", "int8"}


def test_the_best_stable_measurement_counts() -> None:
    work = work_of("lenet")
    calm, noisy = rows_of(work, noise=0.02), rows_of(work, trouble={0: "unstable"})
    better = [row.model_copy(update={"runs": [0.9 * min(row.runs)], "id": ""}).addressed() for row in noisy]
    found = Profile(FACTS, 1, rows=(*noisy, *calm, *better))
    assert [row.stable for row in (*noisy, *calm, *better)] == [False, True, False]
    assert found.measured[model_hash(work)] is calm[0]
    assert noisy[0].sigma >= 0.03


def test_merging_is_a_union_and_names_conflicts() -> None:
    rows = rows_of(work_of("lenet", 0), work_of("lenet", 1), work_of("lenet", 2))
    one, two = Profile(FACTS, 1, rows=tuple(rows[:2])), Profile(FACTS, 1, rows=tuple(rows[1:]))
    both = one.merge(two)
    assert both.digest == two.merge(one).digest == Profile(FACTS, 1, rows=tuple(rows)).digest
    assert both.merge(one).digest == both.digest != one.digest
    assert both.notes == ()
    slow = rows_of(work_of("lenet", 0), seed=1, drift=0.5, truth=lambda work: 9.0)
    told = one.merge(Profile(FACTS, 1, rows=tuple(slow))).notes
    assert len(told) == 1
    assert told[0].startswith("lenet 0: ")
    assert told[0].endswith("apart; the lesser counts")
    other = Profile(replace(FACTS, chip="another", runtime_version="1.20.0", clock_ghz=1.8), 2)
    with pytest.raises(BadProfileError) as caught:
        one.merge(other)
    for part in (
        "chip 'a chip' against 'another'",
        "'1.32.0' against '1.20.0'",
        "1.5 against 1.8 GHz",
        "1 against 2",
    ):
        assert part in str(caught.value)
    assert caught.value.exit_code == 3


def test_stale_profiles_are_named() -> None:
    mine = Profile(FACTS, 1)
    assert mine.stale(FACTS, 1) == mine.stale(replace(FACTS, clock_ghz=1.4996)) == ""
    text = mine.stale(replace(FACTS, runtime_version="1.33.0", clock_ghz=1.8), 4)
    assert text == (
        "the profile of a-board is stale: it was measured with onnxruntime 1.32.0, "
        "and the device now has 1.33.0; at 1.50 GHz, and the clock now is 1.80; with 1 thread, not 4"
    )
    assert "not tvm" in mine.stale(replace(FACTS, runtime="tvm"))
    assert "'another'" in mine.stale(replace(FACTS, chip="another"))


def test_finding_prefers_what_is_current(tmp_path: Path) -> None:
    store, rows = ProfileStore(tmp_path), rows_of(work_of("lenet", 0), work_of("lenet", 1))
    old = replace(FACTS, runtime_version="1.20.0")
    store.append(old, 1, rows)
    found = store.find(FACTS, threads=1)
    assert found is not None
    assert "1.20.0, and the device now has 1.32.0" in found.stale
    store.append(FACTS, 1, rows[:1])
    store.append(FACTS, 4, rows)
    found = store.find(FACTS, threads=1)
    assert found is not None
    assert (found.stale, found.profile.facts, found.profile.threads) == ("", FACTS, 1)
    named = store.find("a-board", "1.20.0", 1)
    assert named is not None
    assert (named.stale, named.profile.facts) == ("", old)
    assert store.find("another-board") is None
    assert store.find("a-board", runtime="tvm") is None
    assert len(store.all()) == 3


def test_a_cut_line_is_dropped_and_written_over(tmp_path: Path) -> None:
    store, rows = ProfileStore(tmp_path), rows_of(work_of("lenet", 0), work_of("lenet", 1))
    store.append(FACTS, 1, rows)
    path = store.path(FACTS, 1)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (1, len(lines[2]) // 2, len(lines[2]) - 1):
        path.write_bytes(b"".join(lines[:2]) + lines[2][:cut])
        found = store.open(FACTS, 1)
        assert [row.key for row in found.rows] == ["lenet 0"]
        assert "cut short" in found.notes[0]
        store.append(FACTS, 1, rows[1:])
        assert path.read_bytes() == whole
    path.write_bytes(lines[0][:20])
    store.append(FACTS, 1, rows)
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda text: text.replace('"clock":"cpu"', '"clock":"cup"', 1), "clock: "),
        (lambda text: text.replace('"key":"lenet 0"', '"key":"lenet 7"', 1), "changed or damaged"),
        (lambda text: text.replace('"schema_version":1', '"schema_version":2', 1), "schema_version: "),
        (lambda text: text.replace('"stable":true', '"stable":true,"extra":1', 1), "extra: "),
        (lambda text: "{" * 100_000 + "\n", "line 1: "),
        (lambda text: "", "is empty"),
        (lambda text: text.replace('"id":"', '"id":"","other":"', 1), "line 2"),
        (lambda text: text.replace('"load_ms":5.0', '"load_ms":NaN', 1), "load_ms: "),
    ],
)
def test_damage_is_named_with_its_line(tmp_path: Path, damage: object, told: str) -> None:
    store = ProfileStore(tmp_path)
    store.append(FACTS, 1, rows_of(work_of("lenet", 0)))
    path = store.path(FACTS, 1)
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")  # type: ignore[operator]
    with pytest.raises(BadProfileError) as caught:
        Profile.load(path)
    assert told in str(caught.value)
    assert caught.value.exit_code == 3
    assert len(str(caught.value).splitlines()) == 1


def test_sharing_packed_files(tmp_path: Path) -> None:
    rows = rows_of(work_of("lenet", 0), work_of("lenet", 1))
    failure = FailureRow(model="0" * 64, key="odd", error="no kernel").addressed()
    mine = Profile(FACTS, 1, rows=(*rows, failure))
    mine.save(tmp_path / "a.jsonl.gz")
    Profile(FACTS, 1, rows=(failure, *reversed(rows))).save(tmp_path / "b.jsonl.gz")
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    back = Profile.load(tmp_path / "a.jsonl.gz")
    assert back.digest == mine.digest
    assert back.failures == {"0" * 64: "no kernel"}
    store = ProfileStore(tmp_path / "store")
    store.append(FACTS, 1, rows[:1])
    assert store.add(back).digest == mine.digest
    assert store.open(FACTS, 1).digest == mine.digest
    size = store.path(FACTS, 1).stat().st_size
    store.add(back)
    assert store.path(FACTS, 1).stat().st_size == size
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl.gz", "b.jsonl.gz", "store"]


def test_bombs_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.jsonl.gz"
    monkeypatch.setattr("hw_profiles.profile_rows.FILE_LIMIT", 4 << 20)
    path.write_bytes(gzip.compress(b" " * (64 << 20)))
    assert path.stat().st_size < 1 << 17
    with pytest.raises(BadProfileError, match="unpacks to more than 4 MB"):
        Profile.load(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadProfileError, match="no whole gzip file"):
        Profile.load(path)
    with pytest.raises(BadProfileError, match="cannot read"):
        Profile.load(tmp_path / "none.jsonl")


@pytest.mark.parametrize("name", ["../../etc/cron.d/x", "/etc/passwd", "..", "", "\0", "C:\\x", "a" * 5000])
def test_names_lead_nowhere_else(tmp_path: Path, name: str) -> None:
    store = ProfileStore(tmp_path / "store")
    path = store.path(replace(FACTS, device=name, runtime=name, runtime_version=name), 1)
    assert path.resolve().parent.parent == store.folder.resolve()
    assert len(path.name) < 255
    assert not path.name.startswith(".")


_FULL = """
import resource, signal, sys
from hw_profiles.profiles import Profile, ProfileStore
from hw_profiles.errors import StoreError
shared, folder = sys.argv[1:]
profile, store = Profile.load(shared), ProfileStore(folder)
store.append(profile.facts, 1, profile.rows[:1])
size = store.path(profile.facts, 1).stat().st_size
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 1000, size + 1000))
try:
    store.append(profile.facts, 1, profile.rows[1:])
except StoreError as error:
    print(error.exit_code, str(error))
try:
    profile.save(folder + "/copy.jsonl")
except StoreError as error:
    print(error.exit_code, str(error))
"""


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    rows = rows_of(work_of("lenet", 0), work_of("lenet", 1))
    shared, folder = tmp_path / "shared.jsonl", tmp_path / "store"
    Profile(FACTS, 1, rows=tuple(sorted(rows, key=lambda row: row.id))).save(shared)
    command = [sys.executable, "-c", _FULL, str(shared), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("5 cannot write the profile")
    assert "What was measured before is kept" in first
    assert second.startswith("5 cannot write the profile")
    found = ProfileStore(folder).open(FACTS, 1)
    assert len(found.rows) == 1
    assert found.notes == ()
    assert not list(folder.glob("*copy*"))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(StoreError, match="Not a directory"):
        ProfileStore(tmp_path / "file").append(FACTS, 1, rows_of(work_of("lenet")))


def _append(folder: str, shared: str, parity: int) -> None:
    profile, store = Profile.load(shared), ProfileStore(folder)
    for row in profile.rows[parity::2]:
        store.append(profile.facts, 1, [row])


def test_two_processes_append_to_one_file(tmp_path: Path) -> None:
    row = rows_of(work_of("lenet"))[0]
    many = [row.model_copy(update={"key": f"copy {i}"}).addressed() for i in range(40)]
    mine = Profile(FACTS, 1, rows=tuple(many))
    mine.save(tmp_path / "shared.jsonl")
    context = multiprocessing.get_context("spawn")
    ran = [
        context.Process(target=_append, args=(str(tmp_path / "s"), str(tmp_path / "shared.jsonl"), parity))
        for parity in (0, 1)
    ]
    for process in ran:
        process.start()
    for process in ran:
        process.join()
    assert [process.exitcode for process in ran] == [0, 0]
    path = ProfileStore(tmp_path / "s").path(FACTS, 1)
    assert Profile.load(path).digest == mine.digest
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["header"] + ["network"] * 40
