"""Every device passes the conformance suite, over real sockets; the suite notices broken rules."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hw_profiles.devices import Condition, Device, DeviceFacts, Sample, Work
from hw_profiles.devices.local import LocalDevice
from hw_profiles.devices.network import HttpDevice
from hw_profiles.devices.simulated import SimulatedDevice
from hw_profiles.devices.ssh import SshDevice
from hw_profiles.devices.testing import check_device
from hw_profiles.testing import ConformanceError
from tests.hw_profiles.devices.servers import TOKEN, http_agent, ssh_server


def test_simulated() -> None:
    check_device(SimulatedDevice)


def test_this_machine() -> None:
    check_device(LocalDevice)


@pytest.mark.slow
def test_http() -> None:
    with http_agent() as url:
        check_device(lambda: HttpDevice(url, TOKEN, "a-board"))


@pytest.mark.slow
def test_ssh(tmp_path: Path) -> None:
    with ssh_server(tmp_path) as server:
        check_device(
            lambda: SshDevice(
                server.address,
                "a-board",
                python=sys.executable,
                known_hosts=server.known_hosts,
                client_keys=[server.client_key],
            )
        )


@pytest.mark.slow
def test_tvm_rpc() -> None:
    from tvm.rpc.server import Server

    from hw_profiles.devices.tvm_rpc import TvmRpcDevice

    server = Server(host="127.0.0.1", port=9190, silent=True)
    try:
        check_device(lambda: TvmRpcDevice("127.0.0.1", server.port, "a-board"))
    finally:
        server.terminate()


class _Liar(Device):
    """Breaks a rule of every check."""

    def __init__(self) -> None:
        self._honest = SimulatedDevice()
        self._asked = 0

    def facts(self) -> DeviceFacts:
        self._asked += 1
        return replace(self._honest.facts(), chip="", cores=self._asked - 1)

    def condition(self) -> Condition:
        return self._honest.condition()

    def measure(self, works: Sequence[Work]) -> Iterator[Sample]:
        for sample in self._honest.measure(works):
            if sample.key == "work2":
                continue
            wall = (1.0, -1.0)
            outputs = None if sample.outputs is None else (np.asarray(sample.outputs[0]) + 1,)
            yield replace(sample, cpu=(0.5,), wall=wall, error="", outputs=outputs)


def test_the_suite_names_every_broken_rule() -> None:
    with pytest.raises(ConformanceError) as caught:
        check_device(_Liar)
    told = str(caught.value)
    for part in (
        "facts: facts().chip is empty",
        "facts: facts().cores is 0",
        "facts: facts() changed",
        "samples: small: 1 runs; asked 12",
        "samples: small: runs that are not positive",
        "samples: a small network takes 0.5, one 256 times as large 0.5",
        "threads: two: CPU time of 1 runs with 2 threads",
        "failures: junk was measured",
        "answers: wrong answers",
        "leaving: after stopping half-way it measures ['work0', 'work1']",
    ):
        assert part in told
