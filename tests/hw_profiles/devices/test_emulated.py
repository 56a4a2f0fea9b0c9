"""Emulated processors: what can be said without an emulator, and (slow) what the emulated cores do."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from hw_profiles.devices import emulated_guest, sysroot
from hw_profiles.devices.contract import DeviceFacts, Work
from hw_profiles.devices.emulated import (
    CLASSES,
    CORES,
    EmulatedArm,
    EmulatedX86,
    InstructionSample,
    _Emulated,
    count_events,
)
from hw_profiles.devices.emulation import Guest, GuestDied, GuestRefused, Machine
from hw_profiles.devices.sysroot import BUILD_COMMAND, PLUGIN_SOURCES, SYSROOT_VERSION, Sysroot
from hw_profiles.errors import DeviceError
from hw_profiles.onnx_kernels import kernels_of, read_record
from tests.hw_profiles.devices.emulated_networks import (
    built_sysroot,
    convolved,
    float_network,
    integer_network,
)

#: Instruction words as an assembler makes them, and the classes besides "all".
WORDS = {
    0x4E22CC20: {"simd", "fmla"},  # fmla v0.4s, v1.4s, v2.4s
    0x4EA2CC20: {"simd", "fmla"},  # fmls v0.4s, v1.4s, v2.4s
    0x4F821020: {"simd", "fmla"},  # fmla v0.4s, v1.4s, v2.s[0]
    0x4E420C20: {"simd", "fmla"},  # fmla v0.8h, v1.8h, v2.8h
    0x4E22D420: {"simd"},  # fadd v0.4s, v1.4s, v2.4s
    0x6E22DC20: {"simd"},  # fmul v0.4s, v1.4s, v2.4s
    0x4E829420: {"simd", "dot"},  # sdot v0.4s, v1.16b, v2.16b
    0x6E829420: {"simd", "dot"},  # udot v0.4s, v1.16b, v2.16b
    0x4F82E020: {"simd", "dot"},  # sdot v0.4s, v1.16b, v2.4b[0]
    0x4E829C20: {"simd", "dot"},  # usdot v0.4s, v1.16b, v2.16b
    0x4E82A420: {"simd", "matrix"},  # smmla v0.4s, v1.16b, v2.16b
    0x6E82A420: {"simd", "matrix"},  # ummla v0.4s, v1.16b, v2.16b
    0x0E628020: {"simd", "multiply_wide"},  # smlal v0.4s, v1.4h, v2.4h
    0x0F422020: {"simd", "multiply_wide"},  # smlal v0.4s, v1.4h, v2.h[0]
    0x6E22C020: {"simd", "multiply_wide"},  # umull2 v0.8h, v1.16b, v2.16b
    0x4E629420: {"simd"},  # mla v0.8h, v1.8h, v2.8h
    0x3DC00020: {"load_store", "vector_memory"},  # ldr q0, [x1]
    0xAD400400: {"load_store", "vector_memory"},  # ldp q0, q1, [x0]
    0x4C407800: {"load_store", "vector_memory"},  # ld1 {v0.4s}, [x0]
    0xF9400020: {"load_store"},  # ldr x0, [x1]
    0xA9BF7BFD: {"load_store"},  # stp x29, x30, [sp, #-16]!
    0xD65F03C0: {"branch"},  # ret
    0x54000000: {"branch"},  # b.eq .
    0xD4000001: {"branch"},  # svc #0
    0x8B020020: {"integer"},  # add x0, x1, x2
    0xD2800020: {"integer"},  # mov x0, #1
    0x9B020C20: {"integer"},  # madd x0, x1, x2, x3
}


def _compiler() -> str:
    found = shutil.which("gcc") or shutil.which("cc")
    if found is None:
        pytest.skip("no C compiler here")
    return found


def test_classes_of_instruction_words(tmp_path):
    library = tmp_path / "classes.so"
    header = str(PLUGIN_SOURCES[1])
    subprocess.run([_compiler(), "-shared", "-fPIC", "-x", "c", header, "-o", str(library)], check=True)
    classify = ctypes.CDLL(str(library)).a64_classify
    for word, expected in WORDS.items():
        counts = (ctypes.c_uint64 * len(CLASSES))()
        classify(ctypes.c_uint32(word), counts)
        found = {name for name, n in zip(CLASSES, counts, strict=True) if n}
        assert found == {"all", *expected}, f"{word:#010x}"


def test_names_of_classes_stand_in_the_order_of_the_counter():
    text = PLUGIN_SOURCES[1].read_text(encoding="utf-8")
    listed = text[text.index("enum {") : text.index("A64_CLASSES\n")].split("\n")
    names = [line.strip().split(",")[0].removeprefix("A64_").lower() for line in listed if "A64_" in line]
    assert tuple(names) == CLASSES
    assert len(CLASSES) == emulated_guest.CLASSES


def test_counter_compiles_once_and_a_broken_one_is_named(tmp_path, monkeypatch):
    _compiler()
    made = sysroot.compile_counter(tmp_path)
    before = made.stat().st_mtime_ns
    assert sysroot.compile_counter(tmp_path) == made
    assert made.stat().st_mtime_ns == before
    assert [p.name for p in tmp_path.iterdir()] == [made.name]
    broken = tmp_path / "broken.c"
    broken.write_text("int main(void) { return undeclared; }")
    monkeypatch.setattr(sysroot, "PLUGIN_SOURCES", (broken, broken))
    with pytest.raises(DeviceError, match="does not compile") as caught:
        sysroot.compile_counter(tmp_path)
    assert caught.value.exit_code == 5


def test_what_is_missing_is_named_with_the_command(tmp_path, monkeypatch):
    with pytest.raises(DeviceError, match=BUILD_COMMAND):
        Sysroot.find(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(DeviceError, match=BUILD_COMMAND):
        Sysroot.find(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"sysroot_version": SYSROOT_VERSION + 1}))
    with pytest.raises(DeviceError, match=f"version {SYSROOT_VERSION + 1}"):
        Sysroot.find(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="apt-get install qemu-user"):
        sysroot.emulator("aarch64")
    with pytest.raises(DeviceError, match=r"Did you mean 'cortex-a72'\?"):
        EmulatedArm("cortex_a72")
    with EmulatedArm(sysroot=tmp_path / "none") as device, pytest.raises(DeviceError, match=BUILD_COMMAND):
        list(device.measure([Work("net", b"")]))


def test_script_says_what_is_missing_and_builds_nothing_twice(tmp_path):
    script = Path(__file__).parents[3] / "scripts" / "arm_sysroot.py"
    folder = tmp_path / "sysroot"
    environment = {**os.environ, "PATH": str(tmp_path)}

    def run() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), "--folder", str(folder)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    nothing = run()
    assert nothing.returncode == 3
    assert "qemu-user" in nothing.stderr
    assert "apt-get install" in nothing.stderr
    assert not folder.exists()
    folder.mkdir()
    manifest = {"sysroot_version": SYSROOT_VERSION, "onnxruntime": onnxruntime.__version__}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    there = run()
    assert there.returncode == 0
    assert there.stdout.strip() == str(folder)
    assert "already" in there.stderr
    (folder / "manifest.json").write_text(json.dumps({**manifest, "onnxruntime": "1.0"}))
    assert run().returncode == 3  # of another version: it would be built again


def test_every_core_has_a_view_of_its_own(tmp_path):
    for name in ("usr/lib", "etc", "proc"):
        (tmp_path / "root" / name).mkdir(parents=True)
    (tmp_path / "root" / "lib").symlink_to("usr/lib")
    (tmp_path / "root" / "usr" / "lib" / "libc.so").write_text("code")
    (tmp_path / "manifest.json").write_text(json.dumps({"sysroot_version": SYSROOT_VERSION}))
    found = Sysroot.find(tmp_path)
    views = {core.name: found.view(core) for core in CORES.values()}
    parts = {}
    for name, view in views.items():
        assert (view / "lib" / "libc.so").read_text() == "code"
        text = (view / "proc" / "cpuinfo").read_text()
        assert text.count("processor") == 4
        parts[name] = next(line.split()[-1] for line in text.splitlines() if line.startswith("CPU part"))
        assert (view / "sys/devices/system/cpu/possible").read_text() == "0-3\n"
    assert parts == {"cortex-a53": "0xd03", "cortex-a72": "0xd08", "cortex-a76": "0xd0b"}
    assert ["asimddp" in (v / "proc/cpuinfo").read_text() for v in views.values()] == [False, False, True]
    stamp = (views["cortex-a72"] / "proc/cpuinfo").stat().st_mtime_ns
    assert sysroot.make_view(tmp_path, CORES["cortex-a72"]) == views["cortex-a72"]  # the later one gives way
    assert (views["cortex-a72"] / "proc/cpuinfo").stat().st_mtime_ns == stamp
    assert sorted(p.name for p in (tmp_path / "cores").iterdir()) == sorted(CORES)


def test_counts_by_kernel_sum_up_to_a_run():
    nodes = [{"cat": "Node", "name": f"n{i}_kernel_time", "args": {"op_name": "Conv"}} for i in range(3)]
    spent, gap, profiler = (1000, 5000, 300), 70, 40
    marks, now = [(10 * i,) * len(CLASSES) for i in range(3)], 30
    for each in spent:
        marks += [(now,) * len(CLASSES), (now + each + profiler,) * len(CLASSES)]
        now += each + profiler + gap
    marks += [(now + i,) * len(CLASSES) for i in range(5)]
    found = count_events(nodes, marks, whole=float(sum(spent)))
    assert [event["dur"] for event in found] == list(spent)
    assert found[1]["args"]["instructions"]["dot"] == 5000 + profiler
    assert found[0]["name"] == "n0_kernel_time"
    later = [(now + 1000 * i,) * len(CLASSES) for i in range(6, 9)]  # the end of a run has more now and then
    assert count_events(nodes, [*marks, *later], whole=float(sum(spent))) == found
    with pytest.raises(DeviceError, match=r"only 14 looks .* of 4 kernels, not 16 or more"):
        count_events([*nodes, nodes[0]], marks, whole=6300.0)
    with pytest.raises(DeviceError, match="of the 100000 instructions"):
        count_events(nodes, marks, whole=1e5)


def test_a_sample_tells_its_classes():
    rows = tuple(tuple(1000 * r + i for i in range(len(CLASSES))) for r in (1, 2, 3))
    sample = InstructionSample("net", "instructions", 1, wall=(1000.0, 2000.0, 3000.0), counts=rows)
    assert sample.best == 1000.0
    assert sample.by_class("dot") == 2000 + CLASSES.index("dot")
    assert list(sample.classes) == list(CLASSES)
    assert sample.clock == "instructions"
    with pytest.raises(KeyError, match="no class 'mul'"):
        sample.by_class("mul")


# -- the guest's side of the pipe, run by this very Python


def _here(script: str = "") -> Machine:
    """A machine that is not emulated: the guest's protocol alone. A counter that stands still."""
    return Machine("here", (sys.executable, *(("-c", script) if script else ())), (), "no emulator")


def test_guest_answers_refuses_and_goes_on(tmp_path):
    guest = Guest(_here(), patience_s=60.0)
    try:
        assert guest.facts["onnxruntime"] == onnxruntime.__version__
        path = guest.write("net.onnx", float_network())
        with pytest.raises(GuestRefused, match="NoSuchFile"):
            guest.ask("load", key="a", model=path + "x", inputs=None)
        guest.ask("load", key="a", model=path, inputs=None)
        assert guest.ask("run", key="a", runs=2) == {"counts": [[0] * len(CLASSES)] * 2}
        assert guest.ask("answer", key="a", folder=str(guest.folder)) == {"outputs": 1}
        optimised = str(guest.folder / "optimised.onnx")
        guest.ask("optimise", model=path, to=optimised, disabled="")
        ops = [n.op_type for n in onnx.load(optimised).graph.node]
        assert "Relu" not in ops  # fused
        assert ops.count("Conv") + ops.count("FusedConv") == 2
        guest.ask("unload", key="a")
        with pytest.raises(GuestRefused, match="KeyError"):
            guest.ask("run", key="a", runs=1)
        folder = guest.folder
    finally:
        guest.close()
    assert not folder.exists()


def test_a_guest_that_dies_hangs_or_babbles_is_named():
    for script, message in (
        ("import sys; sys.exit('no such core')", "exit code 1.*no such core"),
        ("import os; os.kill(os.getpid(), 11)", "signal 11"),
        ("input(); print('hello')", "not JSON"),
    ):
        with pytest.raises(DeviceError, match=message) as caught:
            Guest(_here(script))
        assert "the emulated here does not start" in str(caught.value)
    reply = "import json, time; input(); print(json.dumps({'onnxruntime': '1'}), flush=True); time.sleep(60)"
    guest = Guest(_here(reply), patience_s=0.3)
    with pytest.raises(GuestDied, match="no answer to 'run' within"):
        guest.ask("run", key="a", runs=1)
    guest.close()
    with pytest.raises(DeviceError, match="cannot start"):
        Guest(Machine("none", ("/no/such/emulator",), (), ""))


class _Dying(_Emulated):
    """A device on this very Python whose guest dies whenever it is to run the network "bad"."""

    def _machine(self) -> Machine:
        return _here()

    def facts(self) -> DeviceFacts:
        return DeviceFacts("dying", "", 1, "", "onnxruntime", onnxruntime.__version__)

    def _load(self, guest, entry) -> None:
        super()._load(guest, entry)
        if entry.work.key == "bad":
            guest._process.kill()


def test_a_network_that_brings_the_guest_down_is_an_error_of_its_own():
    works = [Work(key, float_network(), runs=4, rounds=2, answers=True) for key in ("first", "bad", "last")]
    with _Dying(60.0) as device:
        found = {s.key: s for s in device.measure(works)}
        assert "the guest died at 'answer' (signal 9)" in found["bad"].error
        assert found["bad"].runs == ()
        for key in ("first", "last"):
            assert not found[key].error
            assert len(found[key].runs) == 4
        np.testing.assert_array_equal(found["first"].outputs[0], found["last"].outputs[0])
        folder = device._guest.folder
        assert not any(p.is_dir() for p in folder.iterdir())
    assert not folder.exists()


# -- under the emulator


@pytest.fixture(scope="module")
def built() -> Path:
    return built_sysroot()


@pytest.mark.slow
@pytest.mark.parametrize("core", sorted(CORES))
def test_answers_and_counts_of_a_core(built, core):
    model, x = float_network(), np.random.default_rng(1).standard_normal((1, 3, 16, 16)).astype(np.float32)
    works = [
        Work("net", model, runs=8, kernels=True, answers=True, inputs={"x": x}),
        Work("junk", b"not a model"),
        Work("two threads", model, threads=2),
        Work("wide", float_network(32), runs=5, rounds=2),
    ]
    with EmulatedArm(core, built) as device:
        found = {s.key: s for s in device.measure(works)}
        optimised = onnx.load_from_string(device.optimised(model))
    net, wide = found["net"], found["wide"]
    assert isinstance(net, InstructionSample)
    assert isinstance(wide, InstructionSample)
    (expected,) = onnxruntime.InferenceSession(model).run(None, {"x": x})
    np.testing.assert_allclose(net.outputs[0], expected, atol=1e-5)
    assert net.verdict()[0], net.verdict()
    assert len(net.runs) == 8
    assert len(wide.runs) == 5
    assert (net.unit, net.cpu) == ("instructions", ())
    macs = 256 * 9 * 16 * (3 + 16)
    assert net.by_class("fmla") >= macs / 4  # four floats an instruction
    assert net.by_class("fmla") < 1.3 * macs / 4
    assert wide.best > 2.0 * net.best
    assert "InvalidArgument" in found["junk"].error or "InvalidProtobuf" in found["junk"].error
    assert "1 thread only" in found["two threads"].error
    assert [n.op_type for n in optimised.graph.node] == ["FusedConv", "Conv", "GlobalAveragePool"]
    kernels = read_record(net.record)
    assert [k.op for k in kernels.batch.kinds] == ["FusedConv", "Conv", "GlobalAveragePool"]
    assert 0.9 * net.best < kernels.kernel_us.sum() < 1.1 * net.best
    assert kernels.kernel_us.argmax() == 1


@pytest.mark.slow
def test_a_guest_that_is_killed_takes_nothing_else_down(built):
    works = [Work(f"net{i}", float_network(16, i), runs=4, rounds=2) for i in range(3)]
    with EmulatedArm("cortex-a72", built) as device:
        before = [s.best for s in device.measure(works)]
        device._guest._process.kill()
        device._guest._process.wait()
        after = list(device.measure(works))
        assert not any(s.error for s in after)
        np.testing.assert_allclose([s.best for s in after], before, rtol=1e-3)
        rest = device.measure(works)
        impatient = EmulatedArm("cortex-a72", built, patience_s=0.001)
        with impatient:
            hasty = list(impatient.measure(works[:1]))
        assert "no answer" in hasty[0].error
        assert len(list(rest)) == 3


@pytest.mark.slow
def test_two_cores_at_once_share_a_sysroot(built):
    """Integer kernels differ: only the A76 has dot products; each core sees its own /proc."""
    model = integer_network()
    with EmulatedArm("cortex-a72", built) as old, EmulatedArm("cortex-a76", built) as new:
        x = np.random.default_rng(2).integers(0, 256, (1, 32, 14, 14)).astype(np.uint8)
        work = Work("int8", model, runs=2, rounds=1, answers=True, inputs={"x": x})
        a, b = (next(iter(d.measure([work]))) for d in (old, new))
        a_again = next(iter(old.measure([work])))
    assert a.by_class("dot") == a_again.by_class("dot") == 0
    assert b.by_class("dot") > 0
    assert a.by_class("multiply_wide") > 0
    assert b.best < a.best
    for sample in (a, b):
        np.testing.assert_array_equal(sample.outputs[0], convolved(x, 127))


@pytest.mark.slow
def test_integers_of_avx2_saturate_with_eight_bits_and_not_with_seven():
    """Without VNNI two u8 x s8 products add in 16 bits: 2 * 255 * 127 does not fit, 2 * 255 * 63 does."""
    if shutil.which("qemu-x86_64") is None:
        pytest.skip("no qemu-x86_64; apt-get install qemu-user")
    x = np.random.default_rng(2).integers(0, 256, (1, 32, 14, 14)).astype(np.uint8)
    works = [
        Work(str(limit), integer_network(limit), runs=1, answers=True, inputs={"x": x}) for limit in (127, 63)
    ]
    with EmulatedX86() as device:
        found = {s.key: s for s in device.measure(works)}
    np.testing.assert_array_equal(found["63"].outputs[0], convolved(x, 63))
    wrong = found["127"].outputs[0] != convolved(x, 127)
    assert wrong.mean() > 0.01


@pytest.mark.slow
def test_another_x86(tmp_path, monkeypatch):
    if shutil.which("qemu-x86_64") is None:
        pytest.skip("no qemu-x86_64; apt-get install qemu-user")
    monkeypatch.setenv("TAILORBIRD_ARM_SYSROOT", str(tmp_path / "none"))
    model, x = float_network(), np.random.default_rng(1).standard_normal((1, 3, 16, 16)).astype(np.float32)
    with EmulatedX86() as device:
        work = Work("net", model, runs=4, kernels=True, answers=True, inputs={"x": x})
        sample = next(iter(device.measure([work])))
        ops = [n.op_type for n in onnx.load_from_string(device.optimised(model)).graph.node]
        assert device.facts().isa == "x86-64-avx2"
    assert not sample.error
    (expected,) = onnxruntime.InferenceSession(model).run(None, {"x": x})
    np.testing.assert_allclose(sample.outputs[0], expected, atol=1e-5)
    assert sample.verdict()[0], sample.verdict()
    assert sum(k.weight_bearing for k in kernels_of(model).kinds) == 2
    assert ops.count("Conv") + ops.count("FusedConv") == 2
