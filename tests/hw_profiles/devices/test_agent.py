"""The agent: frames, what it checks, what it refuses, and that nothing of it stays behind."""

from __future__ import annotations

import ast
import http.client
import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from hw_profiles.devices import agent
from hw_profiles.devices.agent import FrameError, Jobs, pack_array, read_frame, unpack_array, write_frame
from hw_profiles.devices.contract import Work
from hw_profiles.devices.local import LocalDevice
from hw_profiles.devices.testing import matrix_network
from hw_profiles.errors import DeviceError
from hw_profiles.probes import probe
from tests.hw_profiles.devices.servers import TOKEN, http_agent

FILE = Path(agent.__file__)


def test_it_is_one_file_for_old_pythons() -> None:
    tree = ast.parse(FILE.read_text(encoding="utf-8"), feature_version=(3, 9))
    imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module}
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime"}
    assert not imported & {"pickle", "marshal", "shelve", "zipfile", "tarfile", "zlib"}


def test_frames_come_back() -> None:
    stream, blobs = io.BytesIO(), list[bytes]()
    arrays = [np.arange(6, dtype=t).reshape(2, 3) for t in ("float32", "int64", "uint8")]
    arrays += [np.array(2.5), np.zeros((0, 4), np.float16), np.ones((2, 2))[:, ::2].astype(">f8")]
    write_frame(stream, {"arrays": [pack_array(a, blobs) for a in arrays]}, blobs)
    write_frame(stream, {"last": True})
    stream.seek(0)
    head, parts = read_frame(stream) or ({}, [])
    for sent, spec in zip(arrays, head["arrays"], strict=True):
        back = unpack_array(spec, parts)
        assert back.dtype == sent.dtype.newbyteorder("=")
        assert back.shape == sent.shape
        assert np.array_equal(back, sent)
    assert read_frame(stream) == ({"last": True}, [])
    assert read_frame(stream) is None


def _frame(head: bytes, rest: bytes = b"") -> bytes:
    return b"TBF1" + len(head).to_bytes(4, "big") + head + rest


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", "not a frame"),
        (b"TBF1\xff\xff\xff\xff{}", "a head of 4294967295 bytes"),
        (_frame(b"{"), "not JSON"),
        (_frame(b"[" * 200_000), "not JSON"),
        (_frame(b"1" * 5000), "not JSON"),
        (_frame(b"[1]"), "does not tell its blobs"),
        (_frame(b'{"blobs":[-1]}'), "does not tell its blobs"),
        (_frame(b'{"blobs":[true]}'), "does not tell its blobs"),
        (_frame(b'{"blobs":[99999999999999]}'), "a frame of"),
        (_frame(b'{"blobs":[10]}', b"123"), "cut short: 7 of 10"),
        (b"TBF1\x00", "cut short"),
    ],
)
def test_what_is_no_frame_is_refused_before_it_is_read(sent: bytes, told: str) -> None:
    with pytest.raises(FrameError, match=told):
        read_frame(io.BytesIO(sent))


@pytest.mark.parametrize(
    "spec",
    [
        {"dtype": "object", "shape": [1], "blob": 0},
        {"dtype": "float32", "shape": [1 << 40], "blob": 0},
        {"dtype": "float32", "shape": [-1], "blob": 0},
        {"dtype": "float32", "shape": [3], "blob": 0},
        {"dtype": "float32", "shape": [2], "blob": 7},
        {"dtype": ",loat32", "shape": [2], "blob": 0},
        {"dtype": "U4", "shape": [1], "blob": 0},
        {"dtype": "float32,float32", "shape": [1], "blob": 0},
        {"shape": [2], "blob": 0},
        "../../etc/passwd",
        None,
    ],
)
def test_what_is_no_array_is_refused(spec: object) -> None:
    with pytest.raises(FrameError):
        unpack_array(spec, [b"\0" * 8])
    with pytest.raises(FrameError):
        pack_array(np.array([object()]), [])


def test_a_network_that_kills_its_worker_is_named_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = agent.subprocess.Popen
    killed = []

    def start(*args: object, **options: object) -> object:
        worker = ran(*args, **options)  # type: ignore[call-overload]
        if len(killed) < 2:
            killed.append(worker.pid)
            os.kill(worker.pid, signal.SIGSEGV)
        return worker

    monkeypatch.setattr(agent.subprocess, "Popen", start)
    works = [Work("first", probe("lenet", 0), runs=4), Work("second", probe("lenet", 1), runs=4)]
    with LocalDevice() as device:
        found = {sample.key: sample for sample in device.measure(works)}
    assert found["first"].error == f"the runtime died on it (signal {signal.SIGSEGV.value})"
    assert found["second"].error == ""
    assert len(killed) == 2


def test_a_silent_worker_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "_python", lambda: [sys.executable, "-c", "import time; time.sleep(60)"])
    jobs, start = Jobs(patience=0.2), time.monotonic()
    request = {"do": "measure", "works": [{"key": "k", "threads": 1, "model": 0}]}
    replies = [head for head, _ in jobs.answer(request, [b"m"])]
    assert replies[-1] == {"done": True}
    assert "no sign of life for 0.2 s" in replies[-2]["sample"]["error"]
    assert time.monotonic() - start < 20.0


def test_a_full_disk_there_is_not_the_networks_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site = tmp_path / "sitecustomize.py"
    site.write_text(
        "import collections, shutil\n"
        "shutil.disk_usage = lambda path: collections.namedtuple('U', 'total used free')(1, 1, 3 << 20)\n",
        encoding="utf-8",
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    plain, recorded = (
        Work("plain", probe("lenet", 0), runs=4),
        Work("k", probe("lenet", 0), runs=4, kernels=True),
    )
    with LocalDevice() as device:
        assert [sample.error for sample in device.measure([plain])] == [""]
        with pytest.raises(
            DeviceError, match="refuses: no space left in the temporary folder: 3 MB"
        ) as caught:
            list(device.measure([recorded]))
    assert caught.value.exit_code == 5


def test_weights_in_other_files_are_refused() -> None:
    model = onnx.load_from_string(matrix_network(np.eye(4)))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../../etc/passwd"
    with LocalDevice() as device:
        sample = next(iter(device.measure([Work("thief", model.SerializeToString(), runs=2)])))
    assert "its weights are in another file" in sample.error
    assert sample.runs == ()


def _post(url: str, body: bytes, token: str = TOKEN, **headers: str) -> tuple[int, str]:
    host = url.removeprefix("http://")
    line = http.client.HTTPConnection(host, timeout=20)
    try:
        line.request("POST", "/", body, {"Authorization": f"Bearer {token}", **headers})
        reply = line.getresponse()
        reply.read()
        return reply.status, reply.reason
    finally:
        line.close()


def test_runs_in_which_a_clock_stood_still_are_not_counted() -> None:
    cpu, wall = [1e-5] * 500, [2e-5] * 500
    assert agent.counted(cpu, wall) == (cpu, wall)
    assert agent.counted([0.0, *cpu], [3e-5, *wall]) == (cpu, wall)
    assert agent.counted([0.0] * 10 + cpu, [3e-5] * 10 + wall) == ([], [3e-5] * 10 + wall)


def test_the_server_refuses_before_it_reads() -> None:
    body = io.BytesIO()
    write_frame(body, {"do": "facts"})
    with http_agent(limit=1 << 16) as url:
        assert _post(url, body.getvalue())[0] == 200
        assert _post(url, body.getvalue(), token="another token of 16")[0] == 401
        assert _post(url, body.getvalue(), token="")[0] == 401
        assert _post(url, b"x" * (1 << 17))[0] == 413
        assert _post(url, b"junk" * 10) == (400, "not a frame: it starts with b'junk'")
        assert _post(url, b"")[0] == 400
        assert _post(url, _frame(b'{"blobs":[60000]}'))[0] == 400
        assert _post(url, body.getvalue(), **{"Transfer-Encoding": "chunked"})[0] in (200, 400, 411)
        assert _post(url, body.getvalue())[0] == 200


def test_the_server_takes_one_job_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "_BUSY_SECONDS", 0.0)
    slow, quick = io.BytesIO(), io.BytesIO()
    work = {"key": "k", "threads": 1, "runs": 20_000, "rounds": 1000, "model": 0}
    write_frame(slow, {"do": "measure", "works": [work]}, [probe("lenet", 0)])
    write_frame(quick, {"do": "facts"})
    with http_agent() as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as line:
            body = slow.getvalue()
            head = f"POST / HTTP/1.1\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
            line.sendall(head.encode() + body)
            assert line.recv(4096).startswith(b"HTTP/1.0 200")
            assert _post(url, quick.getvalue()) == (409, "another job is running; try again when it is done")
        monkeypatch.setattr(agent, "_BUSY_SECONDS", 20.0)
        assert _post(url, quick.getvalue())[0] == 200  # who hangs up ends the job


@pytest.mark.parametrize("bind", ["0.0.0.0", "8.8.8.8", "::", "example.org"])
def test_open_addresses_need_force(bind: str) -> None:
    with pytest.raises(ValueError, match="open to more than this machine"):
        agent.serve(TOKEN, bind)
    with pytest.raises(ValueError, match="16 at least"):
        agent.serve("short")
    done = subprocess.run(
        [sys.executable, "-P", str(FILE), "serve", "--bind", bind],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"agent: {bind} is open to more")


def test_from_file_to_file(tmp_path: Path) -> None:
    with (tmp_path / "request").open("wb") as file:
        work = {"key": "k", "threads": 1, "runs": 4, "rounds": 2, "model": 0, "memory": True}
        write_frame(file, {"do": "measure", "works": [work]}, [probe("lenet", 0)])
    command = [sys.executable, "-P", str(FILE), "once", str(tmp_path / "request"), str(tmp_path / "reply")]
    subprocess.run(command, check=True)
    with (tmp_path / "reply").open("rb") as file:
        heads = []
        while (frame := read_frame(file)) is not None:
            heads.append(frame[0])
    sample = heads[-2]["sample"]
    assert heads[-1] == {"done": True}
    assert len(sample["cpu"]) == len(sample["wall"]) == 4
    assert sample["peak_memory_bytes"] > 1 << 16


def test_nothing_stays_when_the_line_is_cut(tmp_path: Path) -> None:
    places = dict.fromkeys(("TMPDIR", "HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"), str(tmp_path))
    environment = {**os.environ, **places}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    command = [sys.executable, "-P", str(FILE), "stdio"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        hello = read_frame(process.stdout)
        assert hello is not None
        assert hello[0] == {"hello": str(FILE.parent)}
        work = {"key": "k", "threads": 1, "runs": 1_000_000, "rounds": 100_000, "model": 0}
        write_frame(process.stdin, {"do": "measure", "works": [work]}, [probe("lenet", 0)])
        while (read_frame(process.stdout) or ({}, []))[0].get("at") is None:
            pass
        assert len(list(tmp_path.iterdir())) == 1
        process.stdin.close()
        while process.stdout.read(1 << 16):
            pass
        assert process.wait(20) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_nobody_reads_and_the_line_is_cut(tmp_path: Path) -> None:
    command = [sys.executable, "-P", str(FILE), "stdio"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as process:
        assert process.stdin is not None
        work = {"key": "k", "threads": 1, "runs": 1_000_000, "rounds": 1_000_000, "model": 0}
        write_frame(process.stdin, {"do": "measure", "works": [work]}, [probe("lenet", 0)])
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(4)  # by now it waits for somebody to read its signs of life
        process.stdin.close()
        assert process.wait(30) == 1
    assert list(tmp_path.iterdir()) == []


def test_facts_and_condition_of_boards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pi = "processor : 0\nFeatures : fp asimd evtstrm crc32 cpuid\nCPU part : 0xd08\n"
    assert agent.isa_of(pi, "aarch64") == "arm64-neon"
    assert agent.isa_of(pi.replace("crc32", "asimddp"), "aarch64") == "arm64-dotprod"
    assert agent.isa_of("flags : avx2 avx512f avx512_vnni", "x86_64") == "avx512-vnni"
    assert agent.isa_of("", "riscv64") == "riscv64"
    fake = tmp_path / "vcgencmd"
    fake.write_text("#!/bin/sh\necho throttled=$BITS\n", encoding="utf-8")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("BITS", "0x50000")  # under-voltage and throttling some time since boot, not now
    mark = agent.throttle_mark()
    assert agent.condition()["throttled"] is False
    assert agent.condition(since=mark)["throttled"] is False
    assert agent.condition(since=0)["throttled"] is True
    monkeypatch.setenv("BITS", "0x50005")
    assert agent.condition()["throttled"] is True


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="needs Linux")
def test_a_worker_is_confined() -> None:
    """It may take most of the memory and not all, and leaves neither cores nor large files."""
    jobs = Jobs()
    work = {"key": "k", "threads": 1, "runs": 50, "rounds": 2, "model": 0}
    limits: dict[str, str] = {}
    for head, _ in jobs.answer({"do": "measure", "works": [work]}, [probe("lenet", 0)]):
        if "at" in head and jobs._worker is not None:
            text = Path(f"/proc/{jobs._worker.pid}/limits").read_text(encoding="utf-8")
            limits = {line[:25].strip(): line[26:46].strip() for line in text.splitlines()[1:]}
    assert limits["Max core file size"] == "0"
    assert int(limits["Max file size"]) == 2 * agent.FRAME_LIMIT
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0.5 * memory < int(limits["Max data size"]) < memory
