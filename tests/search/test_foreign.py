"""Kernels of another processor: asked under emulation where that is set up, and what stands in where not."""

from __future__ import annotations

import shutil

import onnx
import pytest
import torch

from compressors.apply import compress
from compressors.network import Network
from compressors.resolve import Numerics
from compressors.space import Abilities, PolicySpace
from hw_profiles.target import load_target
from search import foreign as module
from search.export_onnx import export_model
from search.foreign import foreign
from search.kernels_found import compare, read_kernels
from search.lowering import Lowering
from search.templates import BLOCKED, METHODS, TemplateStore, block_size, optimised, runtime_key, stand_in
from tests.search.lowering_networks import Residual, prepared

AVX2 = "x86-avx2"


@pytest.fixture
def fresh():
    """Keys and devices are remembered by process."""
    module._opened.cache_clear()
    runtime_key.cache_clear()
    yield
    module._opened.cache_clear()
    runtime_key.cache_clear()


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    x = torch.randn(16, 1, 16, 16)
    return Network.from_module(prepared(Residual()), (x[:1],), (x,))


def test_only_methods_of_other_processors_are_foreign():
    assert foreign("host") is None
    assert foreign("host-without-nchwc") is None
    assert set(module.PROCESSORS) <= set(METHODS)
    assert set(module.PROCESSORS) < BLOCKED


def test_without_emulator_this_machine_stands_in(fresh, monkeypatch, tmp_path, network):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert foreign(AVX2) is None
    assert runtime_key(AVX2) == runtime_key("host")
    assert block_size(AVX2) == block_size("host")
    space = PolicySpace(network.structure, Abilities())
    model = export_model(compress(network, space.resolve(space.uniform(1.0)), Numerics()))
    ours, stand_in = (optimised(model, method) for method in ("host", AVX2))
    assert [n.op_type for n in ours.graph.node] == [n.op_type for n in stand_in.graph.node]


@pytest.mark.parametrize("name", ["x86-avx512-vnni", AVX2, "raspberry-pi-4", "fpga-bitfusion", "local"])
@pytest.mark.parametrize("features", ["avx2", "avx2,avx512f,avx512_vnni"])
def test_graphs_of_another_processor_are_named_as_such(fresh, monkeypatch, name, features):
    """This machine, made up, is asked for a target: blocks have 8 channels on one, 16 on the other."""
    monkeypatch.setattr("search.templates.runtime_key", lambda method="host": f"1/x86_64/{features}")
    said = stand_in(load_target(name))
    ours, theirs = (16 if "avx512f" in features else 8), {"x86-avx512-vnni": 16, AVX2: 8}.get(name)
    if theirs in (None, ours):
        assert said == ""
    else:
        assert f"have {ours} channels where the target's have {theirs}" in said


@pytest.mark.slow
def test_priced_kernels_are_those_of_the_other_processor(fresh, tmp_path, network):
    if shutil.which("qemu-x86_64") is None or foreign(AVX2) is None:
        pytest.skip(
            "qemu-x86_64 or gcc is missing, or this machine is the other; apt-get install qemu-user gcc"
        )
    target = load_target("x86-avx512-vnni")
    target = target.model_copy(update={"runtime": target.runtime.model_copy(update={"templates": AVX2})})
    store = TemplateStore(tmp_path)
    lowering = Lowering(network.structure, target, weights=network.weights, store=store)
    here = Lowering(network.structure, load_target("x86-avx512-vnni"), weights=network.weights, store=store)
    space = PolicySpace(network.structure, Abilities(granularity=4))
    policies = [space.resolve(space.uniform(keep, bits)) for keep in (1.0, 0.5, 0.3) for bits in (32, 8)]
    other = 0
    for policy in policies:
        model = export_model(compress(network, policy, Numerics()))
        found, priced = read_kernels(model, AVX2), lowering.kernels([policy])[0][1]
        assert not compare(priced, found)
        assert len(found) == len(priced.kinds)
        other += bool(compare(here.kernels([policy])[0][1], found))
        again = lowering.learn(policy, model)
        assert [k.op for k in again.kinds] == [k.op for k in priced.kinds]
    assert other > 0  # or the emulator would not be needed
    assert block_size(AVX2) == 8
    assert "Haswell" in runtime_key(AVX2)
    assert isinstance(optimised(model, AVX2), onnx.ModelProto)
