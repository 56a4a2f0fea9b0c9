from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from search import runfolder
from search.errors import InputError, ResumeError
from search.journal import Journal
from search.runfolder import RunFolder, atomic_path, atomic_write, claim


def test_names_latest_and_find(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    first = RunFolder.create("raspberry-pi-4", root=root)
    second = RunFolder.create("my boards/odd name.yaml", root=root)
    assert first.id.endswith("-raspberry-pi-4")
    assert second.id.endswith("-odd-name")
    assert (root / "latest").resolve() == second.path.resolve()
    with pytest.raises(ResumeError, match="There are none yet"):
        RunFolder.find(first.id, root)
    for run in (first, second):
        Journal.create(run.journal, {}).close()
    assert RunFolder.find("latest", root).id == second.id
    assert RunFolder.find(first.id, root).path == root / first.id
    assert RunFolder.find(first.path, root).path == first.path
    with pytest.raises(ResumeError, match="Did you mean"):
        RunFolder.find(first.id[:-1] + "5", root)
    with pytest.raises(ResumeError, match="holds no run"):
        RunFolder.find(tmp_path, root)


def test_two_runs_in_one_second_have_two_folders(tmp_path: Path) -> None:
    folders = {RunFolder.create("local", root=tmp_path).path for _ in range(3)}
    assert len(folders) == 3
    assert all(f.is_dir() for f in folders)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_symlink()) == ["latest"]


def test_latest_without_links_is_a_text_file(tmp_path: Path) -> None:
    run = RunFolder.create("local", root=tmp_path)
    Journal.create(run.journal, {}).close()
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").write_text(run.id + "\n")
    assert RunFolder.find("latest", tmp_path).id == run.id
    newer = RunFolder.create("local", root=tmp_path)
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "latest").resolve() == newer.path.resolve()


def test_out_is_exact_and_never_over_something(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b"
    assert RunFolder.create("local", out).path == out
    assert list(out.iterdir()) == []
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty and not ours"):
        RunFolder.create("local", out)
    other = RunFolder.create("local", tmp_path / "c")
    Journal.create(other.journal, {}).close()
    with pytest.raises(InputError, match="holds a run already"):
        RunFolder.create("local", other.path)
    with pytest.raises(InputError, match="is a file"):
        RunFolder.create("local", out / "notes.txt")


def test_an_export_may_be_repeated(tmp_path: Path) -> None:
    out = claim(tmp_path / "export", again=True)
    for name in (runfolder.POLICY, runfolder.MODEL):
        atomic_write(out / name, "x")
    assert claim(out, again=True) == out
    with pytest.raises(InputError, match="not ours"):
        claim(out)


def _fail_while_writing(path: Path) -> None:
    with atomic_path(path) as draft:
        draft.write_text("half")
        raise KeyError


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.write("a.txt", "old")
    with pytest.raises(KeyError):
        _fail_while_writing(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "old"
    run.write_json("r.json", {"x": 1.5, "name": "µ"})
    assert json.loads((tmp_path / "r.json").read_text()) == {"x": 1.5, "name": "µ"}
    with pytest.raises(ValueError, match="not JSON compliant"):
        run.write_json("r.json", {"x": float("nan")})
    run.write_csv("f.csv", ("a", "b"), [{"a": 1, "b": 2, "c": 3}, {"a": 4}])
    assert (tmp_path / "f.csv").read_text() == "a,b\n1,2\n4,\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "f.csv", "r.json"]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "big.bin"
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from search.errors import InputError
        from search.runfolder import atomic_write

        path = Path(sys.argv[1])
        atomic_write(path, "old")
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        try:
            atomic_write(path, "x" * 1000)
        except InputError as error:
            sys.stdout.write(str(error))
    """)
    assert resource.RLIMIT_FSIZE >= 0
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert "cannot write" in done.stdout
    assert "Make room" in done.stdout
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["big.bin"]


def test_a_read_only_place_is_found_before_the_search() -> None:
    place = Path("/proc/self/nothing")  # not even root may create a folder there
    with pytest.raises(InputError) as caught:
        RunFolder.create("local", place)
    assert caught.value.exit_code == 3
    assert len(str(caught.value).splitlines()) == 2
    with pytest.raises(InputError, match="cannot write"):
        atomic_write(Path("/proc/self/nothing.txt"), "x")


def test_environment_names_versions_and_nobody() -> None:
    env = runfolder.environment(threads=2)
    assert env["packages"]["torch"]
    assert env["threads"] == 2
    assert env["cores"] == os.cpu_count()
    assert env["cpu"]
    assert set(env) == {"schema_version", "python", "system", "cpu", "cores", "threads", "packages"}
    assert env["system"].count(" ") == 1
    assert json.loads(json.dumps(env)) == env
