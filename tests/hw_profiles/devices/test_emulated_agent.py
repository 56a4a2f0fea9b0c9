"""The agent under emulation: it knows that it is, starts its workers there, and answers as here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from hw_profiles.devices import agent
from hw_profiles.devices.contract import Work
from hw_profiles.devices.emulated_agent import EmulatedAgent, interpreter
from hw_profiles.devices.emulation import Machine
from hw_profiles.devices.network import HttpDevice
from hw_profiles.devices.replies import read_facts
from hw_profiles.devices.testing import check_device
from hw_profiles.errors import DeviceError
from hw_profiles.profiles import ProfileStore
from tests.hw_profiles.devices.emulated_networks import built_sysroot, float_network

FACTS = {
    "device": "aarch64-part-0xd08-2-cores", "chip": "aarch64 part 0xd08", "cores": 2, "isa": "arm64-neon",
    "runtime": "onnxruntime", "runtime_version": "1.32.0", "clock_ghz": 1.8,
}  # fmt: skip


def test_python_knows_itself_by_the_script_that_starts_the_emulator(tmp_path: Path) -> None:
    emulator = tmp_path / "qemu-here"  # takes what qemu-user takes, and emulates nothing
    emulator.write_text('#!/bin/bash\nname=$2\nshift 2\nexec -a "$name" "$@"\n')
    emulator.chmod(0o755)
    script = interpreter(Machine("here", (str(emulator), sys.executable, "-s"), (), ""), tmp_path)
    code = "import subprocess, sys; print(sys.executable, flush=True); sys.argv[1:] and subprocess.run("
    code += "[sys.executable, '-c', 'import sys; print(sys.executable)'])"
    done = subprocess.run([str(script), "-c", code, "again"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(script), str(script)]


@pytest.mark.parametrize(
    ("comm", "smaps", "found"),
    [
        ("python3", "7f00-7f01 r--p 0 0:0 1  /usr/lib/qemu-aarch64/libc.so.6\nRss: 4 kB", ""),
        ("qemu-aarch64", "", "qemu-aarch64"),
        ("python3", "7f00-7f01 r-xp 0 0:0 1  /usr/bin/qemu-arm-static\nRss: 4 kB", "qemu-arm-static"),
    ],
)
def test_what_emulates_is_seen(monkeypatch: pytest.MonkeyPatch, comm: str, smaps: str, found: str) -> None:
    files = {"/proc/self/comm": f"{comm}\n", "/proc/self/smaps": f"{smaps}\n"}
    monkeypatch.setattr(agent, "_text", lambda path: files[path])
    assert agent.emulator() == found


def test_an_emulation_is_filed_apart_from_the_board() -> None:
    board, emulated = (read_facts({**FACTS, "emulated": by}, "raspberry-pi-4") for by in ("", "qemu-aarch64"))
    assert board.device == "raspberry-pi-4"
    assert emulated.device == "emulated raspberry-pi-4"
    assert ProfileStore().path(board, 4) != ProfileStore().path(emulated, 4)
    assert read_facts({**FACTS, "emulated": "qemu-aarch64"}).device == "emulated aarch64-part-0xd08-2-cores"
    assert agent.facts()["emulated"] == ""  # of whoever runs this


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"Did you mean 'cortex-a76'\?"):
        EmulatedAgent("cortex-a67")
    with pytest.raises(DeviceError, match="no arm64 sysroot"), EmulatedAgent(sysroot=tmp_path):
        pass


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_answers_as_here_and_passes_the_conformance_suite() -> None:
    x = np.random.default_rng(1).standard_normal((1, 3, 16, 16)).astype(np.float32)
    model = float_network()
    with EmulatedAgent("cortex-a72", built_sysroot()) as running:
        with HttpDevice(running.address, running.token, "raspberry-pi-4") as device:
            facts = device.facts()
            (sample,) = device.measure(
                [Work("net", model, runs=8, answers=True, memory=True, inputs={"x": x})]
            )
        check_device(lambda: HttpDevice(running.address, running.token, "raspberry-pi-4"))
    assert (facts.device, facts.emulated) == ("emulated raspberry-pi-4", "qemu-aarch64")
    assert (facts.isa, facts.clock_ghz) == ("arm64-neon", 1.8)
    assert sample.unit == "ms"
    assert sample.peak_memory_bytes
    assert sample.outputs is not None
    (expected,) = onnxruntime.InferenceSession(model).run(None, {"x": x})
    np.testing.assert_allclose(sample.outputs[0], expected, atol=1e-5)
