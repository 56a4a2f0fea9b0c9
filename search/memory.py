"""Memory that is freed stays with the process: evaluation allocates the same megabytes again and again."""

from __future__ import annotations

import ctypes
from functools import lru_cache

#: Parameters of glibc's mallopt (malloc.h), and values: blocks up to 32 MiB come from the heap, which is
#: given back to the system above 1 GiB of free memory only.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_SETTINGS = ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 1 << 30), (_TOP_PAD, 64 << 20))


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Spare the page faults of fresh activations, a quarter of a recalibration; False without glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(parameter, value) == 1 for parameter, value in _SETTINGS)


__all__ = ["keep_freed_memory"]
