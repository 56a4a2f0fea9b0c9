"""What comes from outside stays data: the tests that the threat model (`search.safety`) names."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml
from onnx import TensorProto, helper
from torch import nn

from hw_profiles.safe_yaml import UnsafeYamlError, parse_yaml
from search import kernels_found
from search.cli import main
from search.cli_support import as_typed
from search.errors import InputError, ResumeError
from search.journal import Journal
from search.onnx_input import check_onnx
from search.report.page import draw_figures, render_page
from search.runfolder import JOURNAL, RunFolder, atomic_write
from search.safety import THREATS, page
from search.tasks import data as data_files
from search.tasks.checkpoint import load_checkpoint
from search.tasks.data import read_data, read_npz
from search.tasks.images import read_images
from tests.search.own_task import flags
from tests.search.results_example import example

ROOT = Path(__file__).parents[2]
PACKAGES = ("search", "agents", "compressors", "hw_profiles")


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return frozenset(n.name for n in tree.body if isinstance(n, ast.FunctionDef))


@pytest.mark.parametrize("threat", THREATS, ids=lambda t: f"{t.subject}: {t.danger}")
def test_every_test_that_the_page_names_exists(threat: object) -> None:
    assert threat.tests  # type: ignore[attr-defined]
    for name in threat.tests:  # type: ignore[attr-defined]
        file, _, test = name.partition("::")
        assert test in names_in(file), name


def test_the_page_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--threats"]) == 0
    shown = capsys.readouterr().out
    assert all(t.subject in shown and t.tests[0] in shown for t in THREATS)
    assert shown.strip() == page().strip()
    assert main(["doctor", "--threats", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["threats"]) == len(THREATS)


# -- code


def _calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(n.func), n) for n in ast.walk(tree) if isinstance(n, ast.Call)]


def _keyword(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(k.value) for k in call.keywords if k.arg == name), None)


def test_nothing_unpickles_or_evaluates() -> None:
    """In all of our source: the one pickled array is that of a package, whose SHA-256 is checked."""
    pickled = []
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for name, call in _calls(ast.parse(path.read_text(encoding="utf-8"))):
                where = f"{path.relative_to(ROOT)}:{call.lineno} {name}"
                assert name not in (
                    "eval",
                    "exec",
                    "os.system",
                    "os.popen",
                    "yaml.load",
                    "yaml.unsafe_load",
                ), where
                assert not name.startswith(("pickle.", "marshal.", "shelve.", "dill.", "joblib.")), where
                assert _keyword(call, "shell") in (None, False), where
                if name == "torch.load":
                    assert _keyword(call, "weights_only") is True, where
                if name == "np.load" and _keyword(call, "allow_pickle") is not False:
                    pickled.append(path.name)
    assert pickled == ["watch.py"]


class Innocent:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch owned",)


def _zip_with(names: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", packing) as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return sink.getvalue()


def _npy(array: np.ndarray) -> bytes:  # type: ignore[type-arg]
    sink = io.BytesIO()
    np.save(sink, array, allow_pickle=True)
    return sink.getvalue()


def test_code_in_data_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, objects = pickle.dumps({"a": Innocent()}), np.array([Innocent()], dtype=object)
    sink = io.BytesIO()
    torch.save({"0.weight": Innocent()}, sink)
    weights = {
        "a.pt": code,
        "b.pt": sink.getvalue(),
        "c.safetensors": code,
        "d.pt": _zip_with({"a/data.pkl": code}),
    }
    for name, content in weights.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError):
            load_checkpoint(nn.Sequential(nn.Linear(3, 2)), tmp_path / name)
    for name, content in {
        "a.npz": _zip_with({"x.npy": _npy(objects)}),
        "b.npz": _npy(objects),
        "c.npz": code,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError):
            read_data(tmp_path / name, None, (), ())
    with pytest.raises(yaml.YAMLError):
        parse_yaml("!!python/object/apply:os.system ['touch owned']")
    assert not (tmp_path / "owned").exists()


def test_names_steer_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "policy.json"
    document = {"schema_version": 1, "network": "n", "groups": {"\x1b[2J\x1b]0;owned\x07": 0}, "layers": {},
                "tensors": {}, "removed": [], "criterion": "obs", "ranges": "mse"}  # fmt: skip
    bad.write_text(json.dumps(document), encoding="utf-8")
    from search.cli_support import report_error
    from search.commands import read_policy

    with pytest.raises(Exception, match="groups") as caught:
        read_policy(bad)
    assert report_error(caught.value) == 3
    shown = capsys.readouterr().err
    assert all(c.isprintable() for c in shown.replace("\n", ""))
    document["groups"] = {"x" * 100_000: 0}
    bad.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(Exception, match="groups") as caught:
        read_policy(bad)
    report_error(caught.value)
    assert len(capsys.readouterr().err) < 600


def test_secrets_are_left_out_of_the_command() -> None:
    typed = ["--host=http://h:1", "--token", "s3cret", "--token=s3cret", "--set", "token=s3cret",
             "--set=token=s3cret", "--pool=postgresql://me:s3cret@h/d", "--seed=1"]  # fmt: skip
    found = as_typed(typed)
    assert "s3cret" not in " ".join(found)
    assert found[:3] == ("search", "--host=http://h:1", "--token")
    assert found[-1] == "--seed=1"
    assert "--pool=postgresql://me@h/d" in found


# -- YAML


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(9)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{','.join(['*' + chr(97 + i)] * 10)}]}}\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (ALIASES, "unfolds into more"),
        (MERGES, "unfolds into more"),
        ("&a [*a]", "inside what it names"),
        ("&a {b: {c: *a}}", "inside what it names"),
        ("[" * 150 + "]" * 150, "too deeply"),
        ("9" * 5000, "cannot be read"),
        ("2026-99-99", "cannot be read"),
        ("x" * (5 << 20), "larger than"),
    ],
)
def test_yaml_bombs(text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnsafeYamlError, match=told):
        parse_yaml(text)
    path = tmp_path / "bomb.yaml"
    path.write_text(text, encoding="utf-8")
    for arguments in ([f"--target={path}"], ["--target=local", f"--config={path}"]):
        assert main([*arguments, "--dry-run"]) == 3
        shown = capsys.readouterr().err
        assert len(shown.splitlines()) <= 2
        assert "Traceback" not in shown


# -- run folders


def _run(folder: Path) -> Path:
    folder.mkdir()
    Journal.create(folder / JOURNAL, {"config": {"target": ["local"]}}).close()
    return folder


@pytest.mark.parametrize("name", ["config.yaml", "results.json", "figures", "model.onnx", "latest", JOURNAL])
def test_links_in_a_run_folder_are_refused(name: str, tmp_path: Path) -> None:
    run, secret = _run(tmp_path / "run"), tmp_path / "secret"
    secret.write_text("mine", encoding="utf-8")
    if name == JOURNAL:
        (run / JOURNAL).replace(secret)
    (run / name).symlink_to(tmp_path if name == "figures" else secret)
    before = secret.read_bytes()
    with pytest.raises(ResumeError, match="is a link"):
        RunFolder.find(run)
    if name == JOURNAL:
        with pytest.raises(InputError, match="cannot open"):
            Journal.open(run / JOURNAL)
    assert secret.read_bytes() == before


def test_a_link_under_a_drafts_name_is_not_written_through(tmp_path: Path) -> None:
    run, secret = tmp_path / "run", tmp_path / "secret"
    run.mkdir()
    secret.write_text("mine", encoding="utf-8")
    for name in (f".policy.json.{os.getpid()}.tmp", f"{JOURNAL}.tmp"):
        (run / name).symlink_to(secret)
    atomic_write(run / "policy.json", "{}")
    Journal.create(run / JOURNAL, {}).close()
    (run / f".{JOURNAL}.lock").unlink()
    (run / f".{JOURNAL}.lock").symlink_to(tmp_path / "made")
    with pytest.raises(InputError, match="cannot lock"):
        Journal.open(run / JOURNAL)
    assert secret.read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "made").exists()
    assert not (run / "policy.json").is_symlink()


@pytest.mark.parametrize("linked", [True, False])
def test_latest_leads_to_no_other_folder(linked: bool, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    _run(tmp_path / "elsewhere")
    latest = runs / "latest"
    latest.symlink_to("../elsewhere") if linked else latest.write_text("../elsewhere\n", encoding="utf-8")
    with pytest.raises(ResumeError, match="no run"):
        RunFolder.find("latest", root=runs)


def test_a_torn_tail_is_said_and_the_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = flags(tmp_path, "--agent=random", "--pool=off")
    out = tmp_path / "run"
    assert main([*words, "--evaluations=2", f"--out={out}"]) == 0
    whole = Journal.read(out / JOURNAL)
    with (out / JOURNAL).open("ab") as file:
        file.write(b'{"crc":"00000000","n":')
    capsys.readouterr()
    assert main([f"--resume={out}", "--evaluations=3"]) == 0
    assert "journal  its last 22 bytes were cut short and are left out" in capsys.readouterr().err
    records = Journal.read(out / JOURNAL)
    assert records[: len(whole)] == whole
    assert sum(r.kind == "evaluated" for r in records) == 3


def _hostile(value: object, key: str = "") -> object:
    """Every text of a document replaced, but for those that a schema lists."""
    if isinstance(value, dict):
        return {k: _hostile(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_hostile(v, key) for v in value]
    kept = key in ("source", "state", "objective", "digest", "kind", "version", "created")
    return value if kept or not isinstance(value, str) else f"{value}\"'><script>alert(1)</script>"


def test_a_report_runs_nothing_of_what_it_shows() -> None:
    document = _hostile(example())
    shown = render_page(document)  # type: ignore[arg-type]
    assert "alert(1)" in shown
    assert "<script" not in shown.replace("&lt;script", "")
    for svg in draw_figures(document).values():  # type: ignore[arg-type]
        ElementTree.fromstring(svg)
        assert "<script" not in svg


def test_a_report_of_a_run_runs_none_of_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = _run(tmp_path / "run")
    (run / "evil.py").write_text("open('owned', 'w').close()\nmake = None\n", encoding="utf-8")
    (run / "config.yaml").write_text("target: local\ntask: run/evil.py:make\n", encoding="utf-8")
    (run / "results.json").write_text(json.dumps(example()), encoding="utf-8")
    assert main(["report", "run"]) == 0
    assert (run / "report.html").exists()
    assert not (tmp_path / "owned").exists()


# -- networks, weights, data


def _onnx_with(folder: Path, location: str, **more: str) -> Path:
    weight = helper.make_tensor("w", TensorProto.FLOAT, (4, 1, 3, 3), np.zeros(36, np.float32))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in "xy"]
    ends[0] = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 1, 8, 8))
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])], "net", ends[:1], ends[1:], [weight]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    tensor = model.graph.initializer[0]
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("../secret.bin", "leads out"),
        ("sub/../../secret.bin", "leads out"),
        ("/etc/passwd", "leads out"),
        ("C:\\secret.bin", "leads out"),
        ("..\\secret.bin", "leads out"),
        ("", "leads out"),
        ("link.bin", "over a link"),
        ("linked/secret.bin", "over a link"),
        ("none.bin", "External data"),
        ("pipe", "External data"),
        ("nul\0byte", "leads out"),
    ],
)
def test_external_data_stays_in_its_folder(
    location: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(144))
    (folder / "weights.bin").write_bytes(bytes(144))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "linked").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    path = _onnx_with(folder, location)
    for arguments in (["predict", f"--onnx={path}", "--target=raspberry-pi"], ["measure", str(path)]):
        assert main(arguments) == 3
        assert told in capsys.readouterr().err
    assert check_onnx(_onnx_with(folder, "weights.bin")).graph.initializer[0].name == "w"
    for more in ({"length": "145"}, {"offset": "-1"}, {"offset": "many"}):
        with pytest.raises(InputError):
            check_onnx(_onnx_with(folder, "weights.bin", **more))


def test_external_data_is_found_wherever_a_tensor_may_stand(tmp_path: Path) -> None:
    outside = TensorProto(name="t", data_location=TensorProto.EXTERNAL, data_type=1, dims=[1])
    outside.external_data.add(key="location", value="../secret.bin")
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=outside)], "inner", [], [])
    branch = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    function = helper.make_function("d", "F", [], ["c"], [inner.node[0]], [helper.make_opsetid("", 17)])
    for nodes, functions in (([branch], []), ([], [function])):
        model = helper.make_model(helper.make_graph(nodes, "net", [], []), functions=functions)
        (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(InputError, match="leads out"):
            check_onnx(tmp_path / "net.onnx")


def test_inputs_without_bounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, (1 << 20, 1 << 20)) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "net", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    assert main(["predict", f"--onnx={tmp_path / 'net.onnx'}", "--target=raspberry-pi"]) == 3
    assert f"{kernels_found.MOST_ELEMENTS}" in capsys.readouterr().err


def test_packed_weights_are_refused(tmp_path: Path) -> None:
    sink = io.BytesIO()
    torch.save({"0.weight": torch.zeros(2, 3), "0.bias": torch.zeros(2)}, sink)
    with zipfile.ZipFile(sink) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (tmp_path / "w.pt").write_bytes(_zip_with(members, zipfile.ZIP_DEFLATED))
    with pytest.raises(InputError, match="packed"):
        load_checkpoint(nn.Sequential(nn.Linear(3, 2)), tmp_path / "w.pt")
    # found by fuzzing: the end of a zip file that says it goes on on another disk
    end = b"PK\x06\x07" + struct.pack("<LQL", 0, 0, 2) + b"PK\x05\x06" + bytes(18)
    (tmp_path / "w.pt").write_bytes(bytes(64) + end)
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(nn.Sequential(nn.Linear(3, 2)), tmp_path / "w.pt")


def test_packed_data_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_files, "LARGEST_BYTES", 1 << 20)
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((2 << 20,), np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 16
    with pytest.raises(InputError, match="unpacks to"):
        read_npz(tmp_path / "bomb.npz")
    # a header that promises what the file does not hold
    head = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 8), }".ljust(117) + b"\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head
    (tmp_path / "liar.npz").write_bytes(_zip_with({"x.npy": array}))
    with pytest.raises(InputError, match=r"no \.npz file"):
        read_npz(tmp_path / "liar.npz")


def test_an_image_of_a_billion_pixels(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + pixels + chunk(b"IEND", b""))
    with pytest.raises(InputError, match="cannot be read"):
        read_images(tmp_path, (8, 8))
