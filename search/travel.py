"""Python values on their way to other processes, their large tensors apart from the rest.

What is packed is put in Ray's object store once. Tensors of a megabyte or more are then read where they lie,
in memory that all workers of a machine share and nobody may write; smaller ones are every worker's own.
"""

from __future__ import annotations

import io
import pickle
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from .task import TaskSpec

#: Bytes from which on a tensor is shared.
SHARED_BYTES = 1 << 20


@dataclass(frozen=True)
class Layout:
    """How a shared tensor lies in its bytes; ``dtype`` as torch names it."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Packed:
    """A value: pickled, and the bytes of its shared tensors, a uint8 array (bytes,) each."""

    body: bytes
    shared: tuple[NDArray[np.uint8], ...]

    @property
    def size_bytes(self) -> int:
        """All of it."""
        return len(self.body) + sum(x.nbytes for x in self.shared)


def pack(value: Any, by_value: tuple[ModuleType, ...] = ()) -> Packed:
    """A value ready to travel. Functions of the modules ``by_value`` and of a program's own file go along.

    Raises InputError for what cannot be pickled.
    """
    from ray.cloudpickle import CloudPickler

    shared: list[tuple[Tensor, Tensor]] = []

    base: type[pickle.Pickler] = CloudPickler

    class Pickler(base):  # type: ignore[valid-type,misc]
        def persistent_id(self, obj: Any) -> Any:
            if not _is_shared(obj):
                return None
            found = next((i for i, (x, _) in enumerate(shared) if x is obj), len(shared))
            if found == len(shared):
                shared.append((obj, _dense(obj)))
            dense = shared[found][1]
            return found, Layout(str(dense.dtype).removeprefix("torch."), tuple(dense.shape), dense.stride())

    file = io.BytesIO()
    try:
        with _along(by_value):
            Pickler(file, protocol=5).dump(value)
    except (pickle.PicklingError, TypeError, AttributeError) as problem:
        line = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise InputError(
            f"the task cannot be sent to workers: {line}.",
            "Define its metric as a function of a module, or search with --workers 1.",
        ) from problem
    return Packed(file.getvalue(), tuple(_bytes_of(x) for _, x in shared))


def unpack(packed: Packed) -> Any:
    """The value that was packed, by this program in another process."""

    class Unpickler(pickle.Unpickler):  # what comes is of our own driver
        def persistent_load(self, pid: Any) -> Any:
            index, layout = pid
            return _tensor(packed.shared[index], layout)

    return Unpickler(io.BytesIO(packed.body)).load()


def own_modules(spec: TaskSpec | None) -> tuple[ModuleType, ...]:
    """The user's own modules that a task came from; those that cannot be loaded here are left out."""
    from .errors import TailorbirdError

    if spec is None:
        return ()
    from .tasks.custom import find_object

    found: dict[str, ModuleType] = {}
    for what, reference in (("task", spec.name), ("model", spec.model), ("metric", spec.metric)):
        if not reference or ":" not in reference:
            continue
        try:
            value = find_object(reference, what, spec.folder)
        except TailorbirdError:  # another machine may not have it; then what was packed must do
            continue
        module = sys.modules.get(getattr(value, "__module__", ""))
        if module is not None and "site-packages" not in (getattr(module, "__file__", None) or ""):
            found[module.__name__] = module
    return tuple(found.values())


def _is_shared(value: Any) -> bool:
    import torch

    if type(value) is not torch.Tensor or value.requires_grad or value.device.type != "cpu":
        return False
    return value.layout == torch.strided and value.numel() * value.element_size() >= SHARED_BYTES


def _dense(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy of one whose values do not fill the memory they span."""
    places = sorted((s, n) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)
    expected = 1
    for stride, size in places:
        if stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor


def _bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    """A dense tensor's bytes, in the order of its strides."""
    import torch

    flat: NDArray[np.uint8] = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()
    return flat


def _tensor(content: NDArray[np.uint8], layout: Layout) -> Tensor:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nobody may write it is what is wanted
        flat = torch.from_numpy(content).view(getattr(torch, layout.dtype))
    return flat.as_strided(layout.shape, layout.stride)


@contextmanager
def _along(modules: tuple[ModuleType, ...]) -> Iterator[None]:
    from ray.cloudpickle import register_pickle_by_value, unregister_pickle_by_value

    for module in modules:
        register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            unregister_pickle_by_value(module)


__all__ = ["SHARED_BYTES", "Packed", "own_modules", "pack", "unpack"]
