"""A whole search for ncnn: its files answer in a process that has ncnn and numpy alone."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import search
from search.console import footer_lines, sibling_text, verified_text
from search.results import Number, Sibling, read_results

_ALONE = """
import json, sys
for name in ("torch", "onnx", "onnxruntime", "search", "compressors", "hw_profiles"):
    sys.modules[name] = None
import ncnn
import numpy as np

folder, data = sys.argv[1:]
net = ncnn.Net()
net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
net.load_param(f"{folder}/model.ncnn.param")
net.load_model(f"{folder}/model.ncnn.bin")
found = []
for x in np.load(data):
    run = net.create_extractor()
    run.input("in0", ncnn.Mat(np.ascontiguousarray(x)))
    found.append(int(np.argmax(np.array(run.extract("out0")[1]))))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_a_search_for_ncnn_ends_with_files_that_run_alone(tmp_path):
    pytest.importorskip("ncnn", reason="the extra ncnn is not installed")
    out = tmp_path / "run"
    result = search.run("digits32", target="raspberry-pi-4/ncnn", evaluations=6, recover=0, out=str(out))
    document = read_results(out / "results.json")
    assert document["verification"]["passed"]
    assert document["verification"]["runtime"].startswith("ncnn ")
    assert document["verification"]["file"] == "model.ncnn.param"
    assert {"model.ncnn.param", "model.ncnn.bin", "policy.json", "weights.safetensors"} <= set(
        document["files"]
    )
    assert "model.onnx" not in document["files"]
    assert [s["target"] for s in document["siblings"]] == ["raspberry-pi-4"]
    assert document["siblings"][0]["latency_ms"]["source"] == "predicted"
    assert not document["events"]
    text = "\n".join(footer_lines(document, out))
    assert "also      raspberry-pi-4: " in text
    assert "search measure" not in text
    assert "model.ncnn.param in ncnn" in (out / "report.html").read_text()
    test = search.load_task("digits32").test
    np.save(tmp_path / "x.npy", test.inputs[0].numpy())
    done = subprocess.run(
        [sys.executable, "-c", _ALONE, str(out), str(tmp_path / "x.npy")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    right = np.mean(np.array(json.loads(done.stdout)) == test.targets.numpy())
    assert right == pytest.approx(
        next(p for p in document["points"] if p["picked"])["test"]["value"], abs=0.003
    )
    assert result.best is not None


def test_lines_on_other_runtimes():
    latency = Number(value=1.9, source="predicted", low=1.5, high=2.4)
    other = Sibling(
        target="pi/x", runtime="x", network="the picked network", latency_ms=latency, verdict="0.61x, faster"
    )
    assert sibling_text(other) == "pi/x: 1.90 ms (1.5-2.4) predicted for the picked network: 0.61x, faster"
    without = Sibling(target="pi/x", runtime="x", network="the base network", why="no kernels")
    assert sibling_text(without) == "pi/x: not priced: no kernels"


def test_the_verified_line_names_the_file():
    check = {"passed": True, "agree": 9, "samples": 9, "runtime": "ncnn 1", "file": "model.ncnn.param"}
    assert verified_text(check, "it").startswith("model.ncnn.param in ncnn 1: same answers as it on 9 of 9")
    del check["file"]
    assert verified_text(check, "it").startswith("model.onnx in ncnn 1")
