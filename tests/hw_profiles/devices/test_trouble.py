"""Devices in trouble, over real lines: one clear message, exit code 5, nothing lost, nothing left behind."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import numpy as np
import pytest

from hw_profiles.devices import Work, agent, open_device
from hw_profiles.devices.agent import write_frame
from hw_profiles.devices.network import HttpDevice
from hw_profiles.devices.ssh import SshDevice
from hw_profiles.errors import DeviceError
from hw_profiles.probes import probe
from hw_profiles.profiles import ProfileStore
from hw_profiles.profiling import Progress, profile
from tests.hw_profiles.devices.servers import (
    TOKEN,
    SshServer,
    http_agent,
    raw_server,
    restless_line,
    ssh_server,
)

WORKS = [Work(f"lenet {i}", probe("lenet", i), runs=8) for i in range(4)]
FACTS = {
    "device": "a-board", "chip": "a chip", "cores": 4, "isa": "arm64-neon", "runtime": "onnxruntime",
    "runtime_version": "1.32.0", "clock_ghz": 1.5, "memory_bytes": 1 << 30, "system": "",
}  # fmt: skip


@contextlib.contextmanager
def _agent_process(folder: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`agent.py serve` as a user starts it; gives the process and its address."""
    token = folder / "token"
    token.write_text(TOKEN + "\n", encoding="utf-8")
    command = [sys.executable, "-P", agent.__file__, "serve", "--port", str(port), "--token-file", str(token)]
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            yield process, process.stderr.readline().split()[1]
        finally:
            process.kill()


def _fails(ask: Callable[[], object], *parts: str) -> None:
    """It ends in one or two lines with exit code 5 that hold every part, and nothing unprintable."""
    with pytest.raises(DeviceError) as caught:
        ask()
    text = str(caught.value)
    assert caught.value.exit_code == 5
    assert all(part in text for part in parts), text
    assert len(text) < 700
    assert len(text.splitlines()) <= 2
    assert text.replace("\n", "").isprintable()


def test_agent_killed_half_way_and_started_again(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path / "store")
    with _agent_process(tmp_path) as (process, url):

        def kill(progress: Progress) -> None:
            if progress.measured == 2:
                process.kill()
                process.wait()

        device = HttpDevice(url, TOKEN, "a-board")
        _fails(
            lambda: profile(
                device, WORKS, store, batch=1, progress=kill, pauses=(0.0,), accept_unstable=True
            ),
            "2 networks measured now and 0 before are kept; run the same again to go on",
            "Connection refused",
        )
    with _agent_process(tmp_path) as (_, url):
        report = profile(HttpDevice(url, TOKEN, "a-board"), WORKS, store, repeats=0, accept_unstable=True)
    assert (report.held, report.measured) == (2, 2)


def test_ssh_line_cut_half_way_comes_back_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "there"))
    store, cuts = ProfileStore(tmp_path / "store"), []
    with ssh_server(tmp_path) as server, _ssh(server) as device:

        def cut(progress: Progress) -> None:
            if progress.measured == 2 and not cuts:
                cuts.append(progress.key)
                server.cut()

        report = profile(
            device, WORKS, store, batch=1, progress=cut, pauses=(0.1, 0.1), repeats=0, accept_unstable=True
        )
        assert (report.measured, report.failed, report.refused) == (4, {}, {})
        assert _left(tmp_path / "there", 1)  # the agent that runs now; the one before went with its line
    assert cuts == ["lenet 1"]
    assert _left(tmp_path / "there", 0) == []
    assert len(store.open(device.facts(), 1).rows) == 4


@pytest.mark.parametrize("noticed", [False, True])
def test_ssh_agent_killed_leaves_nothing(
    noticed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "there"))
    with ssh_server(tmp_path) as server, _ssh(server) as device:
        device.facts()
        first = _left(tmp_path / "there")
        assert len(first) == 1
        os.kill(int(first[0].split("-")[1]), signal.SIGKILL)
        if noticed:  # the line's end is there before the next request
            assert device._line is not None
            device._run(device._line.process.channel.wait_closed(), 20.0)
        _fails(device.condition, "stopped answering", "illed")
        assert _left(tmp_path / "there") == []
        assert device.condition().load is not None  # the next request starts another
        assert len(_left(tmp_path / "there")) == 1
    assert _left(tmp_path / "there") == []


def test_what_a_dead_agent_left_goes_with_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "there"
    monkeypatch.setenv("TMPDIR", str(there))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name in (f"tailorbird-{ended.pid}-abc", f"tailorbird-{os.getpid()}-abc", "somebody-elses"):
        (there / name).mkdir(parents=True)
    with ssh_server(tmp_path) as server, _ssh(server) as device:
        device.facts()
    assert sorted(path.name for path in there.iterdir()) == [
        "somebody-elses",
        f"tailorbird-{os.getpid()}-abc",
    ]


def _left(folder: Path, expected: int | None = None) -> list[str]:
    """Our folders; where a number is expected, after those that are on their way out have gone."""
    for _ in range(200):
        found = [path.name for path in folder.iterdir() if path.name.startswith("tailorbird-")]
        if expected is None or len(found) == expected:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{found} were left")


def _ssh(server: SshServer, **options: Any) -> SshDevice:
    chosen = {"python": sys.executable, "known_hosts": server.known_hosts, "client_keys": [server.client_key]}
    return SshDevice(server.address, "a-board", **{**chosen, **options})


def test_host_keys_and_logins(tmp_path: Path) -> None:
    other = asyncssh.generate_private_key("ssh-ed25519")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with ssh_server(tmp_path / "a") as server, ssh_server(tmp_path / "b") as stranger:
        entry = server.known_hosts.read_text(encoding="utf-8").split()[0]
        for kind in ("ssh-ed25519", "ecdsa-sha2-nistp256"):
            key = other if kind == "ssh-ed25519" else asyncssh.generate_private_key(kind)
            changed = tmp_path / "changed"
            changed.write_text(f"{entry} {key.export_public_key().decode()}", encoding="utf-8")
            with _ssh(server, known_hosts=changed) as device:
                _fails(device.facts, "has changed", f"ssh-keygen -R '{entry}'", "not connected")
        for unknown in (tmp_path / "none", stranger.known_hosts):
            with _ssh(server, known_hosts=unknown) as device:
                _fails(device.facts, f"is not in {unknown.name}", "compare its fingerprint", "not connected")
        with _ssh(server, client_keys=[stranger.client_key]) as device:
            _fails(device.facts, "refuses the login")
        with _ssh(server, python="/no/such/python") as device:
            _fails(device.facts, "does not start", "not found", "needs /no/such/python with numpy")
        with _ssh(server, python="echo") as device:
            _fails(device.facts, "answers nonsense: not a frame")
    with _ssh(server) as device:
        _fails(device.facts, "cannot reach me@127.0.0.1", "over SSH")


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("changed", [False, True])
def test_a_line_cut_before_the_host_says_why(changed: bool, reset: bool, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ssh_server(tmp_path))
        behind = int(server.address.rpartition(":")[2])
        port = stack.enter_context(restless_line(behind, 1, reset=reset))
        key = asyncssh.generate_private_key("ecdsa-sha2-nistp256") if changed else server.host_key
        entry = f"[127.0.0.1]:{port}"
        hosts = tmp_path / "hosts"
        hosts.write_text(f"{entry} {key.export_public_key().decode()}", encoding="utf-8")
        address = f"me@127.0.0.1:{port}"
        options = {"python": sys.executable, "client_keys": [server.client_key], "known_hosts": hosts}
        device = stack.enter_context(SshDevice(address, **options))  # type: ignore[arg-type]
        if changed:
            _fails(device.facts, "has changed", f"ssh-keygen -R '{entry}'", "not connected")
        else:
            _fails(device.facts, f"cannot reach {address}", "onnection ")
            assert device.facts().cores > 0


def test_wrong_tokens_and_addresses() -> None:
    with http_agent() as url:
        _fails(HttpDevice(url, "not the token of the tests").facts, "refuses the token", url)
    _fails(HttpDevice(url, TOKEN).facts, "cannot reach", url, "agent.py serve")
    _fails(lambda: HttpDevice(url, ""), "wants a token")
    _fails(lambda: HttpDevice("http://x/../../etc", TOKEN), "no agent's address")
    _fails(lambda: HttpDevice(url, "a\r\nb"), "wants a token")
    for host in ("ftp://board", "-oProxyCommand=x", "pi@", "a b", "tvm://", "ssh://-x"):
        _fails(lambda host=host: open_device("raspberry-pi-4", host).facts(), host.removeprefix("ssh://"))  # type: ignore[misc]
    _fails(lambda: open_device("raspberry-pi-4"), "give --host")


def _http(body: bytes, status: str = "200 OK", length: int | None = None) -> bytes:
    size = f"Content-Length: {len(body) if length is None else length}\r\n"
    return f"HTTP/1.1 {status}\r\n{size}Connection: close\r\n\r\n".encode() + body


def _frames(*heads: dict[str, Any], blobs: tuple[bytes, ...] = ()) -> bytes:
    stream = io.BytesIO()
    for head in heads:
        write_frame(stream, head, blobs)
    return stream.getvalue()


def _npz() -> bytes:
    """64 MB of zeros in 64 kB."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../a.npy", bytes(64 << 20))
    return stream.getvalue()


SAMPLE = {"key": "lenet 0", "threads": 1, "cpu": [1.0, 1.0], "wall": [1.0, 1.0]}
ARRAY = {"dtype": "float32", "shape": [1 << 40], "blob": 0}
RECORD = {"optimised": 0, "events": [{"cat": "Node", "name": "x_kernel_time", "dur": 1.0}], "runs": 1}


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "answers nonsense"),
        (b"", "answers nonsense"),
        (_http(b"<html>hello</html>"), "not a frame: it starts with b'<htm'"),
        (_http(b"TBF1\xff\xff\xff\xff" + b"x" * 100), "a head of 4294967295 bytes"),
        (_http(b"TBF1\x00\x00\x00\x05{nope"), "not JSON"),
        (_http(_frames({"x": 1})), "stopped answering half-way"),
        (_http(_frames({"sample": SAMPLE})[:-20]), "cut short"),
        (_http(b"", "302 Found\r\nLocation: http://127.0.0.1:1/"), "HTTP 302"),
        (_http(b"", "500 \x1b[2J\x1b]0;owned\x07"), "HTTP 500"),
        (_http(gzip.compress(bytes(1 << 20))), "not a frame"),
        (_http(_frames({"fault": "\x1b[31mred\n" * 100})), "refuses: ?[31mred?"),
        (_http(_frames({"fault": {"a": ["b"]}})), "refuses: {'a': ['b']}"),
        (_http(_frames({"sample": "../../etc/passwd"})), "answers nonsense"),
        (_http(_frames({"sample": {**SAMPLE, "key": "../../etc/passwd"}})), "never asked for"),
        (_http(_frames({"sample": {**SAMPLE, "cpu": ["1"]}})), "cpu.0: "),
        (_http(_frames({"sample": {**SAMPLE, "wall": [-1.0, 1.0]}})), "wall.0: "),
        (_http(_frames({"sample": {**SAMPLE, "wall": []}})), "answers nonsense"),
        (_http(_frames({"sample": {**SAMPLE, "threads": 4}})), "answers nonsense"),
        (_http(_frames({"sample": {**SAMPLE, "load_ms": 1e300}})), "load_ms: "),
        (_http(_frames({"sample": {**SAMPLE, "peak_memory_bytes": 1 << 80}})), "peak_memory_bytes: "),
        (_http(_frames({"sample": {**SAMPLE, "before": {"clock_ghz": "fast"}}})), "before.clock_ghz: "),
        (_http(_frames({"sample": {**SAMPLE, "outputs": [ARRAY]}}, blobs=(b"1234",))), "not an array"),
        (_http(_frames({"sample": {**SAMPLE, "outputs": [ARRAY]}}, blobs=(_npz(),))), "not an array"),
        (_http(_frames({"sample": {**SAMPLE, "outputs": [{"dtype": "O"}]}}, blobs=(b"",))), "not an array"),
        (_http(_frames({"sample": {**SAMPLE, "record": RECORD}})), "answers nonsense for 'lenet 0'"),
        (_http(_frames({"sample": {**SAMPLE, "record": {**RECORD, "events": ["x"]}}})), "record.events.0: "),
        (_http(_frames({"sample": SAMPLE}, {"sample": SAMPLE})), "'lenet 0' twice"),
        (_http(_frames({"sample": SAMPLE}, {"done": True})), "left out 1 of 2 networks"),
        (_http(_frames(*[{"at": 0}] * 5000)), "talks without end"),
    ],
)  # fmt: skip
def test_hostile_replies_are_one_message(reply: bytes, told: str) -> None:
    with raw_server(lambda line, _: line.sendall(reply)) as url:
        device = HttpDevice(url, TOKEN, "a-board", patience=5.0)
        _fails(lambda: list(device.measure(WORKS[:2])), told)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cores": 0}, "cores: "),
        ({"chip": None}, "chip: "),
        ({"device": "x" * 100_000}, "device: "),
        ({"clock_ghz": float("1e308")}, "clock_ghz: "),
    ],
)
def test_hostile_facts(change: dict[str, Any], told: str) -> None:
    body = _http(_frames({"facts": {**FACTS, **change}}))
    with raw_server(lambda line, _: line.sendall(body)) as url:
        _fails(HttpDevice(url, TOKEN).facts, told)


def test_names_that_devices_give_themselves_stay_in_the_store(tmp_path: Path) -> None:
    body = _http(_frames({"facts": {**FACTS, "device": "../../../evil\n\x1b", "runtime": "/etc"}}))
    with raw_server(lambda line, _: line.sendall(body)) as url:
        facts = HttpDevice(url, TOKEN).facts()
    assert facts.device == "../../../evil??"
    path = ProfileStore(tmp_path).path(facts, 1)
    assert path.relative_to(tmp_path).parts == ("evil", "etc-1.32.0-1t-1.5ghz.jsonl") or re.fullmatch(
        r"[a-z.-]*evil", path.parent.name
    )
    assert path.parent.parent == tmp_path


@pytest.mark.parametrize("graph", [np.random.default_rng(0).bytes(2000), b"", probe("lenet", 0)])
def test_kernels_that_make_no_sense_are_an_error_and_nothing_is_stored(tmp_path: Path, graph: bytes) -> None:
    store = ProfileStore(tmp_path)

    def answer(line: socket.socket, asked: dict[str, Any]) -> None:
        """As an agent would, but for the graph that it says it ran."""
        if asked["do"] == "measure":
            sample = {**SAMPLE, "key": asked["works"][0]["key"], "record": RECORD}
            line.sendall(_http(_frames({"sample": sample}, blobs=(graph,)) + _frames({"done": True})))
        else:
            line.sendall(_http(_frames({asked["do"]: FACTS if asked["do"] == "facts" else {}})))

    with raw_server(answer) as url:
        device = HttpDevice(url, TOKEN, "a-board")
        _fails(lambda: profile(device, WORKS[:1], store, pauses=()), "make no sense", "0 before are kept")
    assert store.all() == []


def test_a_device_that_falls_silent() -> None:
    def hold(line: socket.socket, _: object) -> None:
        line.sendall(_http(_frames({"at": 0}), length=10_000))
        with contextlib.suppress(TimeoutError):
            line.recv(1)

    with raw_server(hold) as url:
        device = HttpDevice(url, TOKEN, patience=0.3)
        _fails(lambda: list(device.measure(WORKS[:1])), "shows no sign of life for 0.3 s")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncssh", None)
    with open_device("raspberry-pi-4", "pi@raspberrypi.local") as device:
        _fails(device.facts, "SSH needs asyncssh", "tailorbird[device]")
