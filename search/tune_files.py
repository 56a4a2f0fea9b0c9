"""Where Ray Tune keeps its trials: a folder of the driver's machine, which all nodes of a cluster reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def storage(place: Path) -> Iterator[Any]:
    """A file system for Ray Tune; None, its own, where the cluster is this machine."""
    yield None
