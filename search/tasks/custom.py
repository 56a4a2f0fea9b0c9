from __future__ import annotations
from search.task import Metric, Task, TaskSpec


def from_parts(spec: TaskSpec) -> tuple[Task, TaskSpec]:
    raise KeyError


def from_function(name: str) -> tuple[Task, str]:
    raise KeyError


def find_metric(name: str) -> Metric:
    raise KeyError
