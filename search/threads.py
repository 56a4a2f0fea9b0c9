"""How many threads compute: one where results must repeat, else the fastest number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with ``count`` threads inside the block, with as many as before after it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def single_threaded(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function with one thread of torch and of numpy's linear algebra.

    The last bits of a convolution depend on the number of threads, so accuracies are computed with one: the
    same policy then scores the same on machines of any size. Small networks lose little, and on a busy
    machine one thread is many times faster than several that wait for each other.
    """

    @wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        import scipy.linalg  # noqa: F401  its library can be limited once it is loaded
        from threadpoolctl import threadpool_limits

        with torch_threads(1), threadpool_limits(1, "blas"):
            return function(*args, **kwargs)

    return inner
