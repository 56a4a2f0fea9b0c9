"""Where Ray Tune keeps its trials: a folder of the driver's machine, which all nodes of a cluster reach.

Ray Tune asks for storage that all nodes share. Where the cluster has several nodes, an actor beside the
driver hands out and takes in the files of that one folder.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pyarrow
from pyarrow import fs

from .errors import InputError

#: Where the actor of `storage` is found by those who have its name.
NAMESPACE = "tailorbird"


class Entry(NamedTuple):
    """What lies at a path: "file", "folder" or "nothing"; bytes of a file, modified at, s since the epoch."""

    path: str
    kind: str
    size: int
    modified: float


class Folder:
    """The files below one folder, by absolute paths; every other path raises InputError."""

    def __init__(self, root: str) -> None:
        self._root = Path(root).resolve()

    def entry(self, path: str) -> Entry:
        """What is there."""
        place = self._inside(path)
        if not place.exists():
            return Entry(path, "nothing", 0, 0.0)
        status = place.stat()
        kind = "folder" if place.is_dir() else "file"
        return Entry(path, kind, status.st_size if kind == "file" else 0, status.st_mtime)

    def entries(self, path: str, below: bool) -> list[Entry] | None:
        """What a folder holds, or all below it; None where there is no such folder."""
        place = self._inside(path)
        if not place.is_dir():
            return None
        return [self.entry(str(p)) for p in sorted(place.rglob("*") if below else place.iterdir())]

    def read(self, path: str) -> bytes:
        """A file's content. Raises FileNotFoundError."""
        return self._inside(path).read_bytes()

    def write(self, path: str, content: bytes) -> None:
        """Write a file, or what it replaces."""
        self._inside(path).write_bytes(content)

    def make(self, path: str) -> None:
        """Make a folder and those above it."""
        self._inside(path).mkdir(parents=True, exist_ok=True)

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with all it holds."""
        place = self._inside(path)
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink()

    def move(self, source: str, to: str) -> None:
        """Give a file or folder another name."""
        self._inside(source).replace(self._inside(to))

    def _inside(self, path: str) -> Path:
        place = Path("/", path).resolve()
        if not place.is_relative_to(self._root):
            raise InputError(f"{path!r} does not lie in the folder of the trials.")
        return place


class Remote(fs.FileSystemHandler):  # type: ignore[misc]
    """What pyarrow asks of a file system, answered by the actor called ``name``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._actor: Any = None

    def __getstate__(self) -> str:
        return self.name

    def __setstate__(self, name: str) -> None:
        self.name, self._actor = name, None

    def __reduce__(self) -> tuple[type[Remote], tuple[str]]:
        return Remote, (self.name,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Remote) and other.name == self.name

    def __hash__(self) -> int:
        return hash(self.name)

    def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        if self._actor is None:
            self._actor = ray.get_actor(self.name, NAMESPACE)
        return ray.get(getattr(self._actor, method).remote(*arguments))

    def get_type_name(self) -> str:
        return "tailorbird"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: Sequence[str]) -> list[Any]:
        return [_info(self._ask("entry", path)) for path in paths]

    def get_file_info_selector(self, selector: Any) -> list[Any]:
        found = self._ask("entries", selector.base_dir, selector.recursive)
        if found is None and not selector.allow_not_found:
            raise FileNotFoundError(selector.base_dir)
        return [_info(entry) for entry in found or []]

    def create_dir(self, path: str, recursive: bool) -> None:
        self._ask("make", path)

    def delete_dir(self, path: str) -> None:
        self._ask("remove", path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        for entry in self._ask("entries", path, False) or []:
            self._ask("remove", entry.path)

    def delete_root_dir_contents(self) -> None:
        raise InputError("the folder of the trials is not emptied by trials.")

    def delete_file(self, path: str) -> None:
        self._ask("remove", path)

    def move(self, src: str, dest: str) -> None:
        self._ask("move", src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self._ask("write", dest, self._ask("read", src))

    def open_input_stream(self, path: str) -> Any:
        return pyarrow.BufferReader(self._ask("read", path))

    def open_input_file(self, path: str) -> Any:
        return pyarrow.BufferReader(self._ask("read", path))

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return pyarrow.PythonFile(_Sent(self, path), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        raise InputError("nothing is appended to a checkpoint.")


class _Sent(io.BytesIO):
    """A file that is sent when it is closed."""

    def __init__(self, remote: Remote, path: str) -> None:
        super().__init__()
        self._remote, self._path = remote, path

    def close(self) -> None:
        if not self.closed:
            self._remote._ask("write", self._path, self.getvalue())
        super().close()


def _info(entry: Entry) -> Any:
    kind = {"file": fs.FileType.File, "folder": fs.FileType.Directory, "nothing": fs.FileType.NotFound}
    size = entry.size if entry.kind == "file" else None
    return fs.FileInfo(entry.path, kind[entry.kind], size=size, mtime=entry.modified or None)


@contextmanager
def storage(place: Path) -> Iterator[Any]:
    """A file system for Ray Tune, below ``place``; None, its own, where the cluster is one machine."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if sum(bool(node["Alive"]) for node in ray.nodes()) < 2:
        yield None
        return
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    name = f"trials-{uuid4().hex}"
    actor: Any = (
        ray.remote(Folder)
        .options(name=name, namespace=NAMESPACE, num_cpus=0, scheduling_strategy=here)
        .remote(str(place))
    )
    try:
        yield fs.PyFileSystem(Remote(name))
    finally:
        with suppress(Exception):
            ray.kill(actor)


__all__ = ["Folder", "Remote", "storage"]
