"""A cluster that is there already: its workers evaluate, a board of its own measures."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import search
from hw_profiles.devices.contract import DeviceFacts, Work
from hw_profiles.devices.ray_device import RayDevice
from hw_profiles.devices.simulated import SimulatedDevice
from hw_profiles.devices.testing import check_device
from hw_profiles.errors import DeviceError
from hw_profiles.probes import probe
from search.cli import main
from search.cluster import connect, disconnect
from search.results import read_results
from tests.hw_profiles.devices.servers import TOKEN, http_agent

BOARD = "raspberry-pi-4"
QUICK = {"task": "mnist5k-lenet300", "recover": "0", "threads": 1, "profile": "0s", "accept_unstable": True}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two nodes, the second with a board."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    cluster.add_node(num_cpus=1, resources={BOARD: 1})
    yield cluster.address
    cluster.shutdown()


@pytest.mark.parametrize(
    ("given", "code", "part"),
    [
        ("ray://head:10001", 2, "neither host:port nor auto"),
        ("head", 2, "neither host:port nor auto"),
        ("127.0.0.1:1", 3, "no Ray cluster at 127.0.0.1:1"),
    ],
)
def test_addresses_that_lead_nowhere(
    given: str, code: int, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--target", "raspberry-pi", "--task", "mnist5k-lenet300", "--evaluations", "2", "--quiet"]
    assert main([*words, "--ray-address", given]) == code
    text = capsys.readouterr().err
    assert part in text
    assert len(text.strip().splitlines()) <= 2


@pytest.mark.slow
def test_a_board_that_a_worker_owns_conforms(address: str) -> None:
    connect(address)
    check_device(lambda: RayDevice(BOARD, SimulatedDevice))
    disconnect()


class Named(SimulatedDevice):  # type: ignore[misc]
    """A board that tells its process."""

    def facts(self) -> DeviceFacts:
        return DeviceFacts("pid", str(os.getpid()), 1, "simulated", "onnxruntime", "0.0")


@pytest.mark.slow
def test_a_dead_board_worker_is_an_error_and_is_there_again(address: str) -> None:
    connect(address)
    works = [Work("one", probe("lenet", 0), runs=8)]
    with RayDevice(BOARD, Named) as device:
        first = list(device.measure(works))
        os.kill(int(device.facts().chip), signal.SIGKILL)
        with pytest.raises(DeviceError, match=f"has {BOARD} died"):
            list(device.measure(works))
        again = list(device.measure(works))
    assert first[0].wall == again[0].wall
    disconnect()


@pytest.mark.slow
def test_a_search_evaluates_in_the_cluster_and_measures_on_its_board(address: str, tmp_path: Path) -> None:
    values: dict[str, Any] = {**QUICK, "target": BOARD, "max_latency": "0.6x", "evaluations": 6}
    with http_agent() as host:
        search.run(
            ray_address=address, workers=2, host=host, token=TOKEN, measure="front",
            out=str(tmp_path / "run"), **values,
        )  # fmt: skip
    results = read_results(tmp_path / "run" / "results.json")
    assert results["search"]["evaluated"] == 6
    assert results["points"]
    assert all(p["measured"]["latency_ms"]["source"] == "measured" for p in results["points"])
