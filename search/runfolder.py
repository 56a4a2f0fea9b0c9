"""A run's folder: where it is, its name, and writing into it so that a file is there whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.errors import InputError, ResumeError, did_you_mean

RUNS = Path("runs")
LATEST = "latest"

CONFIG = "config.yaml"
ENV = "env.json"
JOURNAL = "journal.jsonl"
RESULTS = "results.json"
FRONT = "front.csv"
POLICY = "policy.json"
MODEL = "model.onnx"
WEIGHTS = "weights.safetensors"
REPORT = "report.html"
FIGURES = "figures"
#: In the folder above the runs of several targets that were searched together.
TOGETHER = "together.json"

#: What a run that was killed before its first record may leave; a folder with nothing else is empty.
_LEFT_BEHIND = frozenset({f".{JOURNAL}.lock", f"{JOURNAL}.tmp"})

#: Characters of a folder's name, at most, as the usual file systems have it.
_LONGEST_NAME = 255

#: A folder that holds one of these beside a policy is an export.
_MODELS = frozenset({MODEL, "model.ncnn.param"})

#: Packages whose versions a result depends on.
PACKAGES = (
    "tailorbird", "torch", "onnxruntime", "onnx", "onnxscript", "numpy", "scipy", "scikit-learn", "optuna",
    "torch-pruning", "tensorly", "ray", "apache-tvm", "apache-tvm-ffi", "safetensors", "ncnn",
)  # fmt: skip


def recovered_name(digest: str) -> str:
    """The file with the weights of a recovered network that was not picked."""
    return f"recovered-{digest}.safetensors"


@dataclass(frozen=True)
class RunFolder:
    """A folder that one run's files lie in.

    Attributes:
        path: as the user may type it, relative to the working folder where it was given so.
    """

    path: Path

    @property
    def id(self) -> str:
        """The run's name: the folder's, behind the one of its group."""
        path = self.path.resolve()
        return f"{path.parent.name}/{path.name}" if (path.parent / TOGETHER).is_file() else path.name

    @property
    def journal(self) -> Path:
        return self.path / JOURNAL

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def results(self) -> Path:
        return self.path / RESULTS

    def sweep(self) -> None:
        """Removes drafts that a killed process left; only for the one who holds the journal."""
        with contextlib.suppress(OSError):
            for draft in self.path.glob(".*.tmp"):
                draft.unlink(missing_ok=True)

    def file(self, name: str) -> Path:
        """Where a file of this name lies."""
        return self.path / name

    def write(self, name: str, content: str | bytes) -> Path:
        """Writes one file atomically."""
        return atomic_write(self.path / name, content)

    def write_json(self, name: str, document: Mapping[str, Any]) -> Path:
        """Writes a JSON document atomically; NaN and infinity, which JSON lacks, are refused."""
        text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
        return self.write(name, text + "\n")

    def write_csv(self, name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Path:
        """Writes a table atomically; what a row lacks stays empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return self.write(name, text.getvalue())

    @classmethod
    def create(cls, target: str, out: Path | None = None, root: Path = RUNS) -> RunFolder:
        """A new folder: exactly `out`, or one below `root` called after the time and the target.

        In the second case `root/latest` points to it from now on. Raises InputError.
        """
        if out is not None:
            return cls(claim(out))
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug(target)}"
        with told_clearly("create", root / name):
            root.mkdir(parents=True, exist_ok=True)
            for number in range(1, 1000):
                path = root / (name if number == 1 else f"{name}-{number}")
                with contextlib.suppress(FileExistsError):
                    path.mkdir()
                    break
            _point_to(root, path.name)
            sync_folder(root)
        return cls(path)

    @classmethod
    def find(cls, name: str | Path, root: Path = RUNS) -> RunFolder:
        """The run of a path, an id, or `latest`. Raises ResumeError with the near match."""
        path = Path(name)
        if str(name) == LATEST and not path.exists():
            path = latest_run(root)
        for candidate in (path, root / path):
            if is_run(candidate):
                check_links(candidate)
                return cls(candidate)
        group = next((p for p in (path, root / path) if (p / TOGETHER).is_file()), None)
        if group is not None:
            runs = ", ".join(str(p.parent) for p in sorted(group.glob(f"*/{JOURNAL}")))
            raise ResumeError(f"{str(name)!r} holds the runs of several targets.", f"Name one: {runs}.")
        known = [p.name for p in sorted(root.glob("*")) if is_run(p)] if root.is_dir() else []
        if path.is_dir():
            raise ResumeError(f"{str(name)!r} holds no run.", f"A run's folder holds {JOURNAL}.")
        near = did_you_mean(str(name), known) or (
            f"The newest is {known[-1]!r}." if known else "There are none yet."
        )
        raise ResumeError(
            f"no run {str(name)!r} here. {near}", "Name a run by its folder, its id, or 'latest'."
        )


def is_run(path: Path) -> bool:
    """Whether a search wrote this folder."""
    return (path / JOURNAL).is_file() or (path / RESULTS).is_file()


def check_links(path: Path) -> None:
    """Raises ResumeError where something in a run's folder is a link: it could lead anywhere, and a search
    makes none."""
    found = next((p for p in sorted(path.iterdir()) if p.is_symlink()), None)
    if found is not None:
        raise ResumeError(
            f"{found.name!r} in the run {str(path)!r} is a link.", "Put the file itself there, or remove it."
        )


def claim(path: Path, again: bool = False) -> Path:
    """Makes `path` a folder to write into: new, empty, or (`again`) one that an export went to before.

    Raises InputError where there is something of somebody else's, or of another run.
    """
    check_free(path, again)
    with told_clearly("create", path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass  # a read-only folder is found before the search, not after it
    return path


def check_free(path: Path, again: bool = False) -> None:
    """Raises what `claim` would raise, as far as it shows without writing."""
    check_writable(path)
    with told_clearly("read", path):
        names = {p.name for p in path.iterdir()} - _LEFT_BEHIND if path.is_dir() else set()
    if not names or (again and POLICY in names and names & _MODELS and JOURNAL not in names):
        return
    if is_run(path) or (path / TOGETHER).is_file():
        raise InputError(
            f"--out {str(path)!r} holds a run already.",
            f"Go on with --resume {path}, or choose another folder.",
        )
    raise InputError(f"--out {str(path)!r} is not empty and not ours.", "Choose a new or an empty folder.")


def check_writable(path: Path) -> None:
    """Raises InputError unless `path` is, or can become, a folder that this user may write to."""
    with told_clearly("create", path):
        if path.exists() and not path.is_dir():
            raise InputError(f"--out {str(path)!r} is a file.", "Give a folder.")
        there = next(p for p in (path, *path.absolute().parents) if p.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def slug(text: str) -> str:
    """A name that may stand in a path: what is not a letter, digit, dot or dash becomes a dash."""
    return re.sub(
        r"[^A-Za-z0-9.]+", "-", Path(text).stem if text.endswith((".yaml", ".yml")) else text
    ).strip("-.")


def atomic_write(path: Path, content: str | bytes) -> Path:
    """Writes a file under a temporary name, fsyncs it, and moves it into place."""
    with atomic_path(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` for a library to write to; moved into place at the end."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with told_clearly("write", path):
            draft.unlink(missing_ok=True)  # a link of that name would lead elsewhere
            yield draft
            descriptor = os.open(draft, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            draft.replace(path)
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes sure that a name just made in `folder` survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def told_clearly(action: str, path: Path) -> Iterator[None]:
    """Turns what the operating system says about `path` into one clear InputError."""
    try:
        yield
    except OSError as error:
        what = error.strerror or type(error).__name__
        raise InputError(f"cannot {action} {str(path)!r}: {what}.", _advice(error)) from error


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "Make room. What was written before is whole."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "Choose a folder you may write to with --out."
    return "Check the path."


def _point_to(root: Path, name: str) -> None:
    """Lets `latest` point to a run; a small text file where the file system knows no links."""
    draft = root / f".{LATEST}.{os.getpid()}.tmp"
    draft.unlink(missing_ok=True)
    try:
        draft.symlink_to(name, target_is_directory=True)
    except OSError:
        draft.write_text(name + "\n", encoding="utf-8")
    draft.replace(root / LATEST)


def latest_run(root: Path) -> Path:
    """Where `latest` points to."""
    pointer = root / LATEST
    if pointer.is_symlink():
        return root / pointer.readlink().name
    if pointer.is_file():
        with pointer.open(encoding="utf-8", errors="replace") as file:
            return root / Path(file.read(_LONGEST_NAME).strip()).name  # a name, never a way out of the folder
    return pointer


def environment(threads: int | None = None) -> dict[str, Any]:
    """What a result depends on besides its config: versions, processor, threads; no host or user names."""
    from importlib import metadata

    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "schema_version": 1,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": threads,
        "packages": versions,
    }


def cpu_model() -> str:
    """The processor's name, as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()
