"""A Ray cluster: this machine's own, for as long as somebody needs it, or one that is there already."""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from .errors import InputError, UsageError

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


__all__ = ["AUTO", "ClusterError", "check_address", "connect", "disconnect"]
