"""Recovery in a cluster of several nodes that share no storage: checkpoints come to the driver's folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
from pyarrow import fs

from search.cluster import connect, disconnect
from search.errors import InputError
from search.recover_ray import NAME, Plan, recover_all
from search.tune_files import Folder, storage
from tests.search.recovery_task import make_scorer, policies_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Two nodes with a CPU each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    connect(cluster.address)
    yield cluster.address
    disconnect()
    cluster.shutdown()


def test_files_go_to_the_drivers_folder_and_nowhere_else(address: str, tmp_path: Path) -> None:
    root, here = tmp_path / "place", tmp_path / "here"
    root.mkdir()
    (here / "below").mkdir(parents=True)
    (here / "below" / "b").write_bytes(b"\0" * 3_000_000)
    (here / "a").write_bytes(b"a")
    with storage(root) as files:
        assert files is not None
        there = str(root / "copy")
        files.create_dir(there)
        fs.copy_files(str(here), there, destination_filesystem=files)
        assert (root / "copy" / "below" / "b").stat().st_size == 3_000_000
        kinds = {i.base_name: i.type for i in files.get_file_info(fs.FileSelector(there, recursive=True))}
        assert kinds == {
            "a": fs.FileType.File,
            "below": fs.FileType.Directory,
            "b": fs.FileType.File,
        }
        fs.copy_files(there, str(tmp_path / "back"), source_filesystem=files)
        assert (tmp_path / "back" / "below" / "b").read_bytes() == (here / "below" / "b").read_bytes()
        files.move(f"{there}/a", f"{there}/c")
        with files.open_input_stream(f"{there}/c") as stream:
            assert stream.read() == b"a"
        with pytest.raises(FileNotFoundError):
            files.open_input_file(f"{there}/a")
        assert files.get_file_info(f"{there}/a").type == fs.FileType.NotFound
        files.delete_dir(there)
        assert list(root.iterdir()) == []
        for outside in (str(tmp_path / "here" / "a"), f"{root}/../here/a"):
            with pytest.raises((InputError, pyarrow.ArrowException), match="does not lie"):
                files.open_input_file(outside)
    (root / "link").symlink_to(here, target_is_directory=True)
    with pytest.raises(InputError, match="does not lie"):
        Folder(str(root)).read(str(root / "link" / "a"))


def test_trials_on_two_nodes_are_recovered(address: str, tmp_path: Path) -> None:
    scorer = make_scorer()
    plan = Plan(policies_of(scorer, 0.5, 0.375), 4.0, halving=False)
    told: list[str] = []
    place = tmp_path / "recovery" / "abc"
    arguments = (scorer.task, scorer.network, scorer.numerics, plan, place)
    found = recover_all(*arguments, workers=2, address=address, tell=told.append)
    assert told == []
    assert [one is not None and one.after > one.before for one in found] == [True, True]
    assert len(list((place / NAME).glob("*/checkpoint_*"))) == 4
    again = recover_all(*arguments, workers=2, address=address, again=True, tell=told.append)
    assert told == ["2 of 2 trials had ended before"]
    assert [x and x.after for x in again] == [x and x.after for x in found]
