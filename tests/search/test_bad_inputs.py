"""Bad input of every kind: one clear message, the right exit code, no traceback, nothing lost."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from onnx import TensorProto, helper
from torch import nn

import hw_profiles
from search.cli import main

SMALL = ("--evaluations=3", "--recover=0")
TARGET = "--target=raspberry-pi"

NETWORKS = """
import torch
from torch import nn


def good():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
    )


class Wayward(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3), nn.Conv2d(1, 16, 5, padding=1)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        y = self.a(x) if x.sum() > 0 else self.b(x)
        return self.head(y.mean((2, 3)))


def wayward():
    return Wayward()


def spoilt():
    network = good()
    with torch.no_grad():
        network[3].weight[0, 0, 0, 0] = float("nan")
    return network


def flat():
    return nn.Sequential(nn.Flatten(), nn.Linear(7, 4))


def bare():
    return nn.Sequential(nn.ReLU(), nn.Flatten())


def raising():
    raise RuntimeError("the disk with the weights is not mounted")


def other():
    return "a network"
"""


@dataclass(frozen=True)
class Place:
    """A working folder with a user's files in it."""

    path: Path

    def data(self, name: str = "data.npz", **arrays: object) -> str:
        """An .npz file of 80 small images in four classes, with some arrays replaced."""
        rng = np.random.default_rng(0)
        usual: dict[str, object] = {
            "x": rng.random((80, 1, 10, 10), dtype=np.float32),
            "y": np.arange(80) % 4,
        }
        given = {k: v for k, v in {**usual, **arrays}.items() if v is not None}
        np.savez(self.path / name, **given)  # type: ignore[arg-type]
        return f"--data={name}"

    def write(self, name: str, content: str | bytes) -> str:
        """A file of the user's; its name."""
        (self.path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return name

    def model(self, name: str = "good", **arrays: object) -> list[str]:
        """Flags of a search of one of the networks above."""
        self.write("nets.py", NETWORKS)
        return [TARGET, f"--model=nets.py:{name}", self.data(**arrays), *SMALL]

    def onnx_file(self, name: str = "net.onnx") -> str:
        """One convolution."""
        weight = helper.make_tensor("w", TensorProto.FLOAT, (4, 1, 3, 3), np.zeros(36, np.float32))
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["y"])],
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 1, 8, 8))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, 4, 6, 6))],
            [weight],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        return self.write(name, model.SerializeToString())


Given = Callable[[Place], list[str]]


def checkpoint(place: Place, change: Callable[[dict[str, torch.Tensor]], object]) -> list[str]:
    """A search with weights that were changed in some way."""
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip
    torch.save(change(dict(network.state_dict())), place.path / "weights.pt")
    return [*place.model(), "--checkpoint=weights.pt"]


def without(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {k: v for k, v in state.items() if k != name}


def policy(place: Place, **changes: object) -> list[str]:
    """`apply` with a policy document that was changed."""
    document = {
        "schema_version": 1, "network": "0123456789abcdef", "groups": {}, "layers": {}, "tensors": {},
        "removed": [], "criterion": "obs", "ranges": "mse", **changes,
    }  # fmt: skip
    place.write("policy.json", json.dumps(document))
    flags = [a for a in place.model() if a not in SMALL]
    return ["apply", "--policy=policy.json", "--out=applied", *flags]


def external(place: Place, location: str) -> list[str]:
    """`predict` on a file whose weights lie elsewhere."""
    model = onnx.load(place.path / place.onnx_file())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    place.write("net.onnx", model.SerializeToString())
    return ["predict", "--onnx=net.onnx", TARGET]


class Innocent:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch owned",)


CASES: dict[str, tuple[int, str, Given]] = {
    # the device
    "unknown target": (2, "unknown target 'toaster'", lambda p: ["--target=toaster"]),
    "near miss": (2, "Did you mean 'raspberry-pi-4'", lambda p: ["--target=rasberry-pi-4"]),
    "target of unknown field": (3, "colour", lambda p: ["--target=" + target_file(p, colour="red")]),
    "target that is no YAML": (3, "t.yaml", lambda p: ["--target=" + p.write("t.yaml", "a: [1, {")]),
    "target file missing": (3, "nowhere.yaml", lambda p: ["--target=nowhere.yaml"]),
    "no target": (2, "which device", lambda p: ["--max-latency=0.5x"]),
    "bits the target lacks": (2, "3", lambda p: [*p.model(), "--bits=3"]),
    "threads beyond the device": (2, "64", lambda p: [*p.model(), "--threads=64"]),
    # the network
    "data-dependent control flow": (3, "trace", lambda p: p.model("wayward")),
    "NaN weights": (3, "3.weight", lambda p: p.model("spoilt")),
    "wrong input shape": (3, "shape", lambda p: p.model("flat")),
    "no weights": (3, "no weights", lambda p: p.model("bare")),
    "no network": (3, "must return a torch.nn.Module", lambda p: p.model("other")),
    "network raises": (3, "not mounted", lambda p: p.model("raising")),
    "no such function": (3, "Did you mean 'good'", lambda p: p.model("godo")),
    "unknown task": (3, "Did you mean 'digits32'", lambda p: [TARGET, "--task=digits23"]),
    "unknown metric": (3, "Did you mean 'top1'", lambda p: [*p.model(), "--metric=topp1"]),
    # data and weights
    "data missing": (3, "there is no data", lambda p: [*p.model(), "--data=none.npz"]),
    "data is no zip": (3, "junk.npz", lambda p: [*p.model(), "--data=" + p.write("junk.npz", 9 * "junk")]),
    "data of objects": (
        3, "Python objects", lambda p: p.model(x=np.array([Innocent()] * 8, dtype=object), y=None)),
    "data empty": (3, "empty", lambda p: p.model(x=np.zeros((0, 1, 10, 10), np.float32), y=np.zeros(0, int))),
    "data NaN": (3, "finite", lambda p: p.model(x=np.full((80, 1, 10, 10), np.nan, np.float32))),
    "labels too many": (3, "label", lambda p: p.model(y=np.arange(80))),
    "lengths differ": (3, "entries", lambda p: p.model(y=np.arange(79) % 4)),
    "checkpoint lacks a key": (
        3, "lacks '3.weight'", lambda p: checkpoint(p, lambda s: without(s, "3.weight"))),
    "checkpoint has more": (
        3, "the network has not", lambda p: checkpoint(p, lambda s: {**s, "9.weight": torch.zeros(2)})),
    "checkpoint of other shapes": (
        3, "has shape", lambda p: checkpoint(p, lambda s: {**s, "3.weight": torch.zeros(24, 8, 3, 3)})),
    "checkpoint is a pickle": (
        3, "plain tensors", lambda p: [
            *p.model(), "--checkpoint=" + p.write("w.pt", pickle.dumps({"a": Innocent()}))]),
    "checkpoint missing": (3, "there is no checkpoint", lambda p: [*p.model(), "--checkpoint=w.pt"]),
    # the budget
    "budget without unit": (2, "has no unit", lambda p: [*p.model(), "--max-latency=3"]),
    "budget of another unit": (2, "--max-size", lambda p: [*p.model(), "--max-size=3ms"]),
    "budget zero": (2, "--max-latency 0ms", lambda p: [*p.model(), "--max-latency=0ms"]),
    "budget negative": (2, "--max-latency", lambda p: [*p.model(), "--max-latency=-3ms"]),
    "budget NaN": (2, "nanms", lambda p: [*p.model(), "--max-latency=nanms"]),
    "budget out of reach": (4, "Smallest reachable latency", lambda p: [*p.model(), "--max-latency=1us"]),
    "budget the target cannot judge": (
        2, "energy", lambda p: [*p.model(), "--max-energy=0.5x", "--target=" + target_file(p, energy=None)]),
    "drop negative": (2, "--max-drop", lambda p: [*p.model(), "--max-drop=-1"]),
    "risk of one": (2, "--risk", lambda p: [*p.model(), "--risk=1.0"]),
    # how to search
    "unknown agent": (2, "Did you mean 'random'", lambda p: [*p.model(), "--agent=radnom"]),
    "unknown method": (2, "Did you mean 'prune'", lambda p: [*p.model(), "--methods=prun"]),
    "seed negative": (2, "--seed -1", lambda p: [*p.model(), "--seed=-1"]),
    "no evaluations": (2, "--evaluations 0", lambda p: [*p.model(), "--evaluations=0"]),
    "skip of nothing there": (2, "head.*", lambda p: [*p.model(), "--skip=head.*"]),
    "unknown config key": (2, "Did you mean 'seed'", lambda p: [
        *p.model(), "--config=" + p.write("c.yaml", "sede: 1\n")]),
    "config is no YAML": (3, "is not YAML", lambda p: [
        *p.model(), "--config=" + p.write("c.yaml", "a: [1, {")]),
    "config is a list": (3, "key: value", lambda p: [
        *p.model(), "--config=" + p.write("c.yaml", "- 1\n- 2\n")]),
    "set without =": (2, "has no '='", lambda p: [*p.model(), "--set", "seed"]),
    # where to
    "out is a file": (3, "is a file", lambda p: [*p.model(), "--out=" + p.write("taken", "mine")]),
    "out is not empty": (3, "not empty", lambda p: [*p.model(), "--out=."]),
    "resume of nothing": (6, "no run 'nothing'", lambda p: ["--resume=nothing"]),
    "warm start from nothing": (6, "no run 'nothing'", lambda p: [*p.model(), "--warm-start=nothing"]),
    # policies
    "policy for another network": (3, "network", policy),
    "policy of another schema": (3, "schema", lambda p: policy(p, schema_version=99)),
    "policy with a text for a number": (3, "groups", lambda p: policy(p, groups={"0": "many"})),
    "policy is a list": (3, "policy", lambda p: [
        *policy(p)[:1], "--policy=" + p.write("list.json", "[1, 2]"), *policy(p)[2:]]),
    "policy is no JSON": (3, "is not JSON", lambda p: [
        *policy(p)[:1], "--policy=" + p.write("broken.json", "{"), *policy(p)[2:]]),
    "policy missing": (3, "cannot read", lambda p: [
        *policy(p)[:1], "--policy=none.json", *policy(p)[2:]]),
    # other people's networks
    "ONNX missing": (3, "there is no file", lambda p: ["predict", "--onnx=none.onnx", TARGET]),
    "ONNX that is none": (3, "net.onnx", lambda p: [
        "predict", "--onnx=" + p.write("net.onnx", "PK" + 100 * "y"), TARGET]),
    "ONNX cut short": (3, "net.onnx", lambda p: [
        "predict", "--onnx=" + p.write("net.onnx", (p.path / p.onnx_file()).read_bytes()[:90]), TARGET]),
    "ONNX empty": (3, "net.onnx", lambda p: ["predict", "--onnx=" + p.write("net.onnx", b""), TARGET]),
    "ONNX with data elsewhere": (3, "data", lambda p: external(p, "../../secret.bin")),
    "ONNX with data missing": (3, "External data", lambda p: external(p, "weights.bin")),
    "measure what is none": (3, "net.onnx", lambda p: ["measure", p.write("net.onnx", "nothing")]),
    "measure of nothing": (6, "no run", lambda p: ["measure", "latest"]),
    "report of nothing": (6, "no run", lambda p: ["report", "latest"]),
}  # fmt: skip


def target_file(place: Place, **changes: object) -> str:
    """A user's copy of a shipped target, changed; a field given as None is left out."""
    text = (Path(hw_profiles.__file__).parent / "targets" / "raspberry-pi-4.yaml").read_text()
    document = {**yaml.safe_load(text), "name": "mine", "aliases": [], **changes}
    return place.write("mine.yaml", yaml.safe_dump({k: v for k, v in document.items() if v is not None}))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name: str, place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    code, part, given = CASES[name]
    arguments = given(place)
    before = sorted(p.name for p in place.path.iterdir())
    capfd.readouterr()
    found = main(arguments)
    shown = capfd.readouterr()
    assert (found, part in shown.err) == (code, True), shown.err
    assert shown.out == ""
    assert 1 <= len(shown.err.splitlines()) <= 2, shown.err
    assert "Traceback" not in shown.err
    assert all(len(line) < 400 for line in shown.err.splitlines())
    after = sorted(p.name for p in place.path.iterdir() if p.name != "__pycache__")
    assert after == before, "something was written"
    assert main([*arguments, "--json"]) == code
    shown = capfd.readouterr()
    error = json.loads(shown.out)["error"]
    assert error["exit_code"] == code
    assert part in f"{error['message']} {error['hint']}"
    assert shown.err == ""
