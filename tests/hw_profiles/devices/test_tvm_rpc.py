"""TVM's RPC: code for other machines, objects linked over there, servers that are gone."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hw_profiles.devices import Work, open_device
from hw_profiles.devices.testing import check_device
from hw_profiles.devices.tvm_rpc import TARGETS, TvmRpcDevice
from hw_profiles.errors import DeviceError
from hw_profiles.probes import probe

pytestmark = pytest.mark.slow
_ELF_AARCH64 = 183


@pytest.fixture
def port() -> Iterator[int]:
    """A TVM RPC server on loopback."""
    from tvm.rpc.server import Server

    server = Server(host="127.0.0.1", port=9190, silent=True)
    yield server.port
    server.terminate()


def test_conformance(port: int) -> None:
    check_device(lambda: TvmRpcDevice("127.0.0.1", port, "a-board"))


def test_objects_are_linked_by_the_server(port: int) -> None:
    work = Work("lenet", probe("lenet", 0), runs=4, answers=True)
    found = []
    for compiler in (None, "no-such-compiler-gcc"):
        with TvmRpcDevice("127.0.0.1", port, target="llvm", compiler=compiler) as device:
            assert device.facts().runtime == "tvm"
            found += list(device.measure([work]))
    assert [sample.error for sample in found] == ["", ""]
    first, second = (sample.outputs for sample in found)
    assert first is not None
    assert second is not None
    assert np.array_equal(first[0], second[0])


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_code_is_the_targets(tmp_path: Path, name: str) -> None:
    device = TvmRpcDevice("127.0.0.1", 1, name, target=TARGETS[name][0], compiler="no-such-compiler-gcc")
    inputs = device._compile(Work("lenet", probe("lenet", 0)), tmp_path / "work.tar")
    assert [value.shape[0] for value in inputs] == [1]
    with tarfile.open(tmp_path / "work.tar") as archive:
        objects = [member for member in archive.getmembers() if member.name.endswith(".o")]
        heads = [archive.extractfile(member).read(20) for member in objects]  # type: ignore[union-attr]
    assert objects
    for head in heads:
        assert head[:4] == b"\x7fELF"
        assert int.from_bytes(head[18:20], "little") == _ELF_AARCH64


def test_a_server_that_is_gone() -> None:
    from tvm.rpc.server import Server

    with pytest.raises(DeviceError, match=r"cannot reach .*tvm://127.0.0.1:1: .*rpc_server") as caught:
        open_device("raspberry-pi-4", "tvm://127.0.0.1:1").facts()
    assert caught.value.exit_code == 5
    server = Server(host="127.0.0.1", port=9190, silent=True)
    with TvmRpcDevice("127.0.0.1", server.port, "a-board") as device:
        samples = device.measure([Work("one", probe("lenet", 0), runs=4, threads=n) for n in (1, 2)])
        assert next(samples).error == ""
        server.terminate()
        with pytest.raises(DeviceError, match=r"is gone|cannot reach"):
            next(samples)
