"""A device that a worker of a Ray cluster owns: the node with the board says so by a resource of its name.

    ray start --address HEAD --resources '{"raspberry-pi-4": 1}'

An actor on that node opens the device as `open_device` does from there and measures what it is sent. The
resource lets one actor have the board at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, final

from hw_profiles.devices.contract import Condition, Device, DeviceFacts, Sample, Unit, Work
from hw_profiles.errors import DeviceError

#: On the board's node: its address as in `--host`; where it is not set, the node is the board.
HOST_VARIABLE = "TAILORBIRD_HOST"
#: Seconds after which a board that others have, or that does not start, is given up.
READY_WITHIN = 120.0


def open_there(name: str, host: str | None = None, token: str | None = None) -> Device:
    """The device at ``host``, else at the address that this machine has for it, else this machine.

    It is filed under ``name``.
    """
    from hw_profiles.devices.local import LocalDevice
    from hw_profiles.devices.opening import open_device

    address = host or os.environ.get(HOST_VARIABLE)
    return LocalDevice(name) if not address else open_device(name, address, token)


class DeviceWorker:
    """What runs in the actor that owns a board."""

    def __init__(self, opened: Callable[[], Device]) -> None:
        self._device = opened()

    def unit(self) -> Unit:
        """What its samples are in."""
        return self._device.unit

    def facts(self) -> DeviceFacts:
        """As the device says."""
        return self._device.facts()

    def condition(self) -> Condition:
        """As the device says."""
        return self._device.condition()

    def measure(self, works: Sequence[Work]) -> Iterator[Sample]:
        """Each sample as soon as it is known."""
        yield from self._device.measure(works)

    def close(self) -> None:
        """Leave nothing behind on the board."""
        self._device.close()


@final
class RayDevice(Device):
    """The device that `opened` gives on a node with ``resource``; Ray is connected already.

    An actor that dies is an error of what it was asked, and is started anew for what it is asked next.
    """

    def __init__(self, resource: str, opened: Callable[[], Device]) -> None:
        import ray

        if not ray.is_initialized():
            raise DeviceError(f"{resource}: not connected to a Ray cluster.")
        self._ray = ray
        self._name = resource
        self._opened = opened
        self._actor: Any = self._started()
        self._facts: DeviceFacts | None = None
        self.unit = self._answer(self._actor.unit.remote(), READY_WITHIN)

    def _started(self) -> Any:
        remote: Any = self._ray.remote
        return remote(num_cpus=0, resources={self._name: 1})(DeviceWorker).remote(self._opened)

    def facts(self) -> DeviceFacts:
        """What the device is; asked once."""
        if self._facts is None:
            self._facts = self._answer(self._actor.facts.remote())
        return self._facts

    def condition(self) -> Condition:
        """Its state now."""
        found: Condition = self._answer(self._actor.condition.remote())
        return found

    def measure(self, works: Sequence[Work]) -> Iterator[Sample]:
        """Samples as they come."""
        for ref in self._actor.measure.options(num_returns="streaming").remote(list(works)):
            sample: Sample = self._answer(ref)
            yield sample

    def close(self) -> None:
        """End the actor, which gives the board free."""
        if self._actor is not None:
            with suppress(DeviceError):
                self._answer(self._actor.close.remote(), READY_WITHIN)
            self._ray.kill(self._actor)
            self._actor = None

    def _answer(self, ref: Any, within: float | None = None) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref, timeout=within)
        except errors.GetTimeoutError as problem:
            raise DeviceError(
                f"the worker that has {self._name} does not answer, or others use it."
            ) from problem
        except errors.RayTaskError as problem:
            if isinstance(problem.cause, DeviceError):
                raise problem.cause from problem
            raise DeviceError(f"{self._name}: {_last_line(problem)}") from problem
        except errors.RayError as problem:
            self._actor = self._started()
            raise DeviceError(f"the worker that has {self._name} died: {_last_line(problem)}") from problem


def _last_line(problem: Exception) -> str:
    return (str(problem).strip().splitlines() or [type(problem).__name__])[-1]


__all__ = ["HOST_VARIABLE", "DeviceWorker", "RayDevice", "open_there"]
