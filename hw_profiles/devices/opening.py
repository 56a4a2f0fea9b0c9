"""Opening a device by its address."""

from __future__ import annotations

import os
import re
import urllib.parse
from typing import Any

from hw_profiles.devices.contract import Device
from hw_profiles.errors import DeviceError

TOKEN_VARIABLE = "TAILORBIRD_TOKEN"


def open_device(
    target_name: str = "local", host: str | None = None, token: str | None = None, **options: Any
) -> Device:
    """The device at `host`, filed under `target_name`. Nothing is contacted before it is asked something.

    None: this machine; `http://...`: an agent that runs there (`token`, or the variable TAILORBIRD_TOKEN);
    `tvm://host:port`: a TVM RPC server; `user@host[:port]` or `ssh://...`: over SSH; `emulated:cortex-a72`:
    a core that is not here, which counts instructions. `options` go to the device's class: python,
    known_hosts, client_keys; key, target, compiler. Raises DeviceError (exit 5).
    """
    name = None if target_name == "local" else target_name
    if host is None:
        if name is not None:
            raise DeviceError(f"{name!r} is another device: give --host user@address or http://address:port")
        from hw_profiles.devices.local import LocalDevice

        return LocalDevice()
    if host.startswith("emulated:"):
        from hw_profiles.devices.emulated import EmulatedArm

        return EmulatedArm(host.removeprefix("emulated:"))
    scheme, _, rest = host.partition("://") if "://" in host else ("ssh", "", host)
    if scheme in ("http", "https"):
        from hw_profiles.devices.network import HttpDevice

        return HttpDevice(host, token or os.environ.get(TOKEN_VARIABLE, ""), name, **options)
    if scheme == "tvm":
        from hw_profiles.devices.tvm_rpc import TvmRpcDevice

        parts = urllib.parse.urlsplit(host)
        if not parts.hostname:
            raise DeviceError(f"{host!r} is no address; it looks like tvm://127.0.0.1:9090")
        return TvmRpcDevice(parts.hostname, parts.port or 9090, name, **options)
    if scheme == "ssh" and ("@" in rest or "://" in host or re.search(r"[.:]|^[\w-]+$", rest)):
        from hw_profiles.devices.ssh import SshDevice

        return SshDevice(rest.rstrip("/"), name, **options)
    raise DeviceError(f"{host!r} is no device's address; use user@host, http://host:port or tvm://host:port")


__all__ = ["TOKEN_VARIABLE", "open_device"]
