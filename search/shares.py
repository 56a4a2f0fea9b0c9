"""What each of several trainings that run at once may ask a cluster for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

#: Fractions of a CPU or GPU are rounded down to so many: a share of all must not be asked for twice.
_GRAINS = 10_000


@dataclass(frozen=True)
class Share:
    """CPUs and GPUs of one training: whole ones, or a fraction of one."""

    cpus: float
    gpus: float = 0.0


def share_of(nodes: Sequence[Mapping[str, float]], count: int, most_cpus: int) -> Share:
    """The largest share with which ``count`` trainings run at once.

    ``nodes``: what each node of the cluster has, by Ray's names ("CPU", "GPU"); a training lies on one node.
    ``most_cpus``: that all of them together may take. GPUs come first: as large a part of one as all can
    have. Where the CPUs are on nodes without a GPU, or there is none, trainings do without.
    """
    for gpus in (*_fractions(count), 0.0):
        for cpus in _cpus(nodes, count, most_cpus):
            if sum(_fitting(node, cpus, gpus) for node in nodes) >= count:
                return Share(cpus, gpus)
    return Share(_grain(1.0 / count))  # nodes without a CPU at present: the cluster may grow


def _cpus(nodes: Sequence[Mapping[str, float]], count: int, most: int) -> Iterator[float]:
    """CPUs that a training may ask for, the most first."""
    largest = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    yield from (float(n) for n in range(int(min(largest, most / count)), 0, -1))
    yield from (f for f in _fractions(max(count, 64)) if f * count <= most and f < 1.0)


def _fractions(most: int) -> Iterator[float]:
    return (_grain(1.0 / parts) for parts in range(1, most + 1))


def _grain(value: float) -> float:
    return math.floor(value * _GRAINS) / _GRAINS


def _fitting(node: Mapping[str, float], cpus: float, gpus: float) -> int:
    """Trainings that a node has room for."""
    room = int(node.get("CPU", 0.0) / cpus + 1e-9)
    return min(room, int(node.get("GPU", 0.0) / gpus + 1e-9)) if gpus else room


__all__ = ["Share", "share_of"]
