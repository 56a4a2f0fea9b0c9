"""Folders of the user's own: apart from every run's, and believed only where nobody else may write."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from search.errors import InputError
from search.journal import Journal
from search.private import OLD, check_private, claimed, forget, place_of
from search.runfolder import JOURNAL, RunFolder


def run_in(path: Path, **header: object) -> tuple[RunFolder, Journal]:
    path.mkdir()
    return RunFolder(path), Journal.create(path / JOURNAL, dict(header))


def test_places_follow_from_the_journal_and_lie_in_no_run_folder(tmp_path: Path) -> None:
    folder, journal = run_in(tmp_path / "run", id="../../elsewhere")
    with journal:
        place = place_of(folder, journal)
        journal.append("event", {"kind": "recovery", "trials": "../../elsewhere", "folder": str(tmp_path)})
        assert place_of(folder, journal) == place
        copied = RunFolder(Path(shutil.copytree(folder.path, tmp_path / "copy")))
        assert place_of(copied, journal) != place
        assert place_of(copied, journal).parent == place.parent
    assert not place.is_relative_to(tmp_path)
    assert place.name.isalnum()
    with Journal.open(folder.journal) as again:
        assert place_of(folder, again) == place


def test_what_others_may_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "recovery"
    place = root / "abc"
    assert not claimed(place, again=True)
    assert root.stat().st_mode & 0o777 == place.stat().st_mode & 0o777 == 0o700
    (place / "state").touch()
    assert claimed(place, again=True)
    for path in (root, place):
        for mode in (0o770, 0o702, 0o777):
            path.chmod(mode)
            with pytest.raises(InputError, match="not this user's alone"):
                claimed(place, again=True)
        path.chmod(0o700)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(InputError, match="not this user's alone"):
            claimed(place, again=True)
    link = root / "link"
    link.symlink_to(place, target_is_directory=True)
    with pytest.raises(InputError, match="not this user's alone"):
        claimed(link, again=True)
    file = root / "file"
    file.touch()
    with pytest.raises(InputError):
        check_private(file)


def test_what_is_forgotten_is_gone_and_nothing_else(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "recovery", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    claimed(root / "a", again=False)
    (root / "a" / "state").touch()
    forget(root / "a")
    assert not (root / "a").exists()
    forget(root / "a")
    (root / "b").symlink_to(elsewhere, target_is_directory=True)
    forget(root / "b")
    assert [p.name for p in elsewhere.iterdir()] == ["kept"]
    assert not (root / "b").exists()
    claimed(root / "c", again=False)
    (root / "c" / "state").touch()
    assert not claimed(root / "c", again=False)


def test_what_an_abandoned_run_left_is_dropped(tmp_path: Path) -> None:
    root = tmp_path / "recovery"
    for name in ("old", "young"):
        claimed(root / name, again=False)
    then = time.time() - OLD - 1
    os.utime(root / "old", (then, then))
    claimed(root / "another", again=False)
    assert sorted(p.name for p in root.iterdir()) == ["another", "young"]
