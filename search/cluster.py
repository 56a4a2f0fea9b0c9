"""A Ray cluster: this machine's own, for as long as somebody needs it, or one that is there already."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from .errors import InputError, UsageError

if TYPE_CHECKING:
    from hw_profiles.devices.contract import Device

#: Seconds that a cluster's head may take to accept a connection.
REACHED_WITHIN = 5.0
#: How an address says that it is the cluster which runs on this machine.
AUTO = "auto"

_users = 0


class ClusterError(InputError):
    """A Ray cluster that is not there, or cannot run what is needed."""


def connect(address: str | None = None, cpus: int = 1) -> Any:
    """The module `ray`, connected: to the cluster at ``address``, else to one of our own with ``cpus``.

    Each call needs its `disconnect`. A program that was connected before stays so, whatever the address.
    Raises UsageError for what is no address, ClusterError where nobody answers.
    """
    global _users
    if address is not None:
        check_address(address)
    import ray

    if _users or not ray.is_initialized():
        if not _users:
            _start(ray, address, cpus)
        _users += 1
    return ray


def disconnect() -> None:
    """Ends what `connect` began, once nobody needs it any more."""
    global _users
    if _users:
        _users -= 1
        if not _users:
            import ray

            ray.shutdown()


def device_worker(address: str, name: str, host: str | None, token: str | None) -> Device | None:
    """The device that a node of the cluster has as resource ``name``; None where none has.

    ``host`` and ``token``: where that node finds it, as `--host` and `--token`.
    """
    from hw_profiles.devices.ray_device import RayDevice, open_there

    ray = connect(address)
    if name not in ray.cluster_resources():
        disconnect()
        return None
    return RayDevice(name, partial(open_there, name, host, token))


@contextmanager
def borrowed(device: Device | None) -> Iterator[None]:
    """Gives a device of `device_worker` back at the end; others are their owner's."""
    try:
        yield
    finally:
        if _users and device is not None:
            from hw_profiles.devices.ray_device import RayDevice

            if isinstance(device, RayDevice):
                device.close()
                disconnect()


@contextmanager
def kept(workers: int, address: str | None) -> Iterator[None]:
    """One cluster for all that a run does with several workers, rather than one for each of its parts."""
    if workers <= 1 and address is None:
        yield
        return
    connect(address, cpus=workers)
    try:
        yield
    finally:
        disconnect()


def check_address(address: str) -> None:
    """Refuse what is no `host:port` or `auto`. Raises UsageError."""
    host, _, port = address.rpartition(":")
    if address != AUTO and not (host and port.isdigit() and "/" not in host):
        raise UsageError(
            f"--ray-address {address!r} is neither host:port nor {AUTO}.",
            "The search runs inside the cluster: give the head's address, such as 10.0.0.1:6379.",
        )


def _start(ray: Any, address: str | None, cpus: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)  # its notices would stand among ours
    if address not in (None, AUTO):
        _knock(str(address))
    try:
        ray.init(
            address="local" if address is None else address,
            num_cpus=None if address else cpus,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as problem:
        raise _nobody(address or "this machine", str(problem)) from problem


def _knock(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED_WITHIN).close()
    except (OSError, OverflowError) as problem:
        raise _nobody(address, str(problem)) from problem


def _nobody(address: str, why: str) -> ClusterError:
    line = (why.strip().splitlines() or ["no answer"])[0]
    return ClusterError(f"no Ray cluster at {address}: {line}.", "Start one: ray start --head.")


__all__ = [
    "AUTO",
    "ClusterError",
    "borrowed",
    "check_address",
    "connect",
    "device_worker",
    "disconnect",
    "kept",
]
