"""Lowering: priced kernels are those of the real file, sizes and prices follow, templates are remembered."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch

from compressors.apply import compress
from compressors.network import Network
from compressors.policy import Policy
from compressors.resolve import Numerics
from compressors.space import Abilities, PolicySpace
from hw_profiles.kernel import COLUMNS
from hw_profiles.onnx_kernels import kernels_of
from hw_profiles.target import load_target
from search.abilities import abilities_of
from search.estimate import Estimator
from search.export_onnx import export_model
from search.kernels_found import compare, read_kernels
from search.lowering import Lowering
from search.lowering_onnx import predict_onnx
from search.lowering_shapes import Source
from search.lowering_template import Dim, from_json, to_json
from search.templates import TemplateStore, exact_template, optimised
from tests.search.lowering_networks import Residual, Zoo, prepared

X86 = "x86-avx512-vnni"


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    x = torch.randn(16, 1, 16, 16)
    return Network.from_module(prepared(Residual()), (x[:1],), (x,))


@pytest.fixture(scope="module")
def zoo():
    torch.manual_seed(0)
    x = torch.randn(16, 3, 8, 8)
    return Network.from_module(prepared(Zoo()), (x[:1],), (x,))


def _resolved(space: PolicySpace, count: int, seed: int = 0):
    """Random policies, from mostly dense to fully random."""
    rng = np.random.default_rng(seed)
    found = [space.resolve(Policy()), space.resolve(space.uniform(1.0, 8))]
    while len(found) < count:
        free = rng.random(space.dimension) < rng.random()
        found.append(space.resolve(space.decode(np.where(free, rng.random(space.dimension), 1.0))))
    return found


def _lowering(network: Network, tmp_path, target: str = X86, **more) -> Lowering:
    store = TemplateStore(tmp_path / "templates")
    return Lowering(network.structure, load_target(target), weights=network.weights, store=store, **more)


def _same_kernels(network, lowering, policies, loose: frozenset[str] = frozenset()) -> int:
    checked = 0
    for policy in policies:
        model = export_model(compress(network, policy, Numerics()))
        found, priced = kernels_of(model), lowering.kernels([policy])[0][1]
        assert [k.op for k in priced.kinds] == [k.op for k in found.kinds]
        assert [k.precision for k in priced.kinds] == [k.precision for k in found.kinds]
        assert [k.fused for k in priced.kinds] == [k.fused for k in found.kinds]
        for column in COLUMNS:
            at = [i for i, k in enumerate(found.kinds) if k.op not in loose]
            np.testing.assert_allclose(priced[column][0, at], found[column][0, at], err_msg=column)
        assert not compare(priced, read_kernels(model))
        checked += len(found.kinds)
    return checked


def test_template_and_real_export_agree(residual, tmp_path):
    space = PolicySpace(residual.structure, Abilities())
    policies = _resolved(space, 14)
    assert any(p.removed for p in policies)
    assert any(p.factors for p in policies)
    assert _same_kernels(residual, _lowering(residual, tmp_path), policies) > 150


def test_every_operation_agrees(zoo, tmp_path):
    # kernels_of takes the first operand as the data, which for these two is a scale, or turned round
    loose = frozenset({"QLinearConcat", "FusedMatMul"})
    space = PolicySpace(zoo.structure, Abilities())
    assert _same_kernels(zoo, _lowering(zoo, tmp_path), _resolved(space, 6), loose) > 150


@pytest.mark.slow
def test_integer_convolutions_are_those_of_the_policy(tmp_path):
    """200 random policies of the digits network: what the default optimiser makes integer is theirs."""
    from search.tasks.networks import resnet20

    torch.manual_seed(0)
    x = torch.randn(8, 1, 32, 32)
    network = Network.from_module(prepared(resnet20()), (x[:1],), (x,))
    lowering = _lowering(network, tmp_path)
    space = PolicySpace(network.structure, abilities_of(load_target(X86)))
    integer = 0
    for policy in _resolved(space, 200):
        tucker = [f.rank for f in policy.factors.values() if f.method == "tucker2"]
        if any(b > 9 * a for a, b in tucker):
            continue  # more outputs than the core's inputs span
        compressed = compress(network, policy, Numerics())
        nodes = optimised(export_model(compressed)).graph.node
        found = sum(n.op_type == "QLinearConv" for n in nodes)
        priced = sum(k.op == "QLinearConv" for k in lowering.template(policy).kinds)
        weights = sum(n.op == "conv" and n.inputs[1] in compressed.codes for n in compressed.graph.nodes)
        assert found == priced == weights
        integer += found
    assert integer > 300


def test_many_at_once_cost_what_each_costs(residual, tmp_path):
    lowering = _lowering(residual, tmp_path, batch=2)
    space = PolicySpace(residual.structure, Abilities())
    policies = _resolved(space, 12)
    together = lowering.costs(policies)
    for i, policy in enumerate(policies):
        alone = lowering.costs([policy])
        for name, values in together.items():
            np.testing.assert_allclose(values[i], alone[name][0], rtol=1e-12)
    assert {"latency_ms", "latency_low_ms", "latency_high_ms", "size_bytes", "memory_bytes", "macs"} <= set(
        together
    )
    assert (together["latency_low_ms"] < together["latency_ms"]).all()
    assert (together["latency_ms"] < together["latency_high_ms"]).all()
    parts = lowering.explain(policies[2])
    assert sum(k.milliseconds for k in parts) <= together["latency_ms"][2]


def test_closed_forms(residual, tmp_path):
    """MACs, bytes and peak memory of the dense network, counted by hand."""
    lowering = _lowering(residual, tmp_path)
    space = PolicySpace(residual.structure, Abilities())
    dense, integer = space.resolve(Policy()), space.resolve(space.uniform(1.0, 8))
    macs = 256 * 16 * 9 + 2 * 256 * 16 * 16 * 9 + 64 * 32 * 16 * 9 + 64 * 32 * 32 * 9 + 64 * 32 * 16 + 320
    weights = 16 * 9 + 2 * 16 * 16 * 9 + 32 * 16 * 9 + 32 * 32 * 9 + 32 * 16 + 320
    channels = 16 * 3 + 32 * 3 + 10
    found = lowering.costs([dense, integer])
    assert found["macs"].tolist() == [macs, macs]
    assert found["size_bytes"].tolist() == [4 * (weights + channels), weights + 8 * channels]
    assert found["memory_bytes"][0] == 3 * 16 * 256 * 4  # residual, branch in, branch out
    assert found["memory_bytes"][1] < found["memory_bytes"][0] / 2


def test_pruning_lowers_every_price(residual, tmp_path):
    lowering = _lowering(residual, tmp_path)
    space = PolicySpace(residual.structure, Abilities(granularity=16))
    found = lowering.costs([space.resolve(space.uniform(k)) for k in (0.25, 0.5, 1.0)])
    for name in ("size_bytes", "macs", "memory_bytes"):
        assert (np.diff(found[name]) >= 0).all()
    assert found["macs"][0] < found["macs"][2] / 2


def test_templates_are_kept_on_disk_and_bad_files_ignored(residual, tmp_path):
    space = PolicySpace(residual.structure, Abilities())
    policies = _resolved(space, 4)
    first = _lowering(residual, tmp_path)
    expected = first.costs(policies)["latency_ms"]
    again = _lowering(residual, tmp_path)
    np.testing.assert_array_equal(again.costs(policies)["latency_ms"], expected)
    assert first.asked == 4
    assert again.asked == 0
    files = sorted((tmp_path / "templates").rglob("*.json"))
    assert len(files) == 4
    for broken, text in zip(files, ("", "{}", '{"kernels": 3}', "null"), strict=True):
        broken.write_text(text)
    third = _lowering(residual, tmp_path)
    np.testing.assert_array_equal(third.costs(policies)["latency_ms"], expected)
    assert third.asked == 4


def test_template_json_round_trip(zoo, tmp_path):
    policy = PolicySpace(zoo.structure, Abilities()).resolve(Policy(act_bits={"first": 8}))
    template = _lowering(zoo, tmp_path).template(policy)
    again = from_json(json.loads(json.dumps(to_json(template))))
    assert again == template
    assert again.source == "host"
    assert len(again.kinds) > 20


def test_the_stand_in_for_arm_has_no_blocked_kernels(residual, tmp_path):
    lowering = _lowering(residual, tmp_path, "raspberry-pi-4")
    policies = _resolved(PolicySpace(residual.structure, Abilities()), 6)
    for policy in policies:
        kinds = lowering.template(policy).kinds
        assert not any("nchwc" in k.domain for k in kinds)
        model = export_model(compress(residual, policy, Numerics()))
        assert not compare(lowering.kernels([policy])[0][1], read_kernels(model, "host-without-nchwc"))
    assert any(k.op == "FusedConv" for k in lowering.template(policies[0]).kinds)


@pytest.mark.parametrize(
    ("target", "adds", "relus"),
    [("gpu-t4", 2, 5), ("fpga-bitfusion", 0, 3)],  # between integers an add is a kernel of its own
)
def test_rules(residual, tmp_path, target, adds, relus):
    lowering = _lowering(residual, tmp_path, target)
    space = PolicySpace(residual.structure, abilities_of(load_target(target)))
    dense = lowering.template(space.resolve(Policy()))
    assert dense.source == "rules"
    bearing = [k for k in dense.kinds if k.weight_bearing]
    assert [k.layer for k in bearing if k.op == "Conv"] == ["stem.0", "a.0", "a.3", "short.0", "b.0", "b.3"]
    assert sum("add" in k.fused for k in bearing) == adds
    assert sum("relu" in k.fused for k in bearing) == relus
    costs = lowering.costs(_resolved(space, 8))
    assert (costs["latency_ms"] > 0).all()
    assert costs["macs"][0] == costs["macs"][1]


def test_rules_take_the_bits_of_the_policy(residual, tmp_path):
    lowering = _lowering(residual, tmp_path, "fpga-bitfusion")
    space = PolicySpace(residual.structure, abilities_of(load_target("fpga-bitfusion")))
    eight, four = (
        lowering.kernels([space.resolve(space.uniform(1.0, a, w))])[0][1] for a, w in ((8, 8), (4, 4))
    )
    at = [i for i, k in enumerate(four.kinds) if k.op == "Conv"]
    assert {four.kinds[i].precision for i in at} == {"w4a4"}
    assert (four["weight_bits"][0, at] == 4).all()
    assert (eight["weight_bits"][0, at] == 8).all()
    assert four.weight_bytes().sum() == eight.weight_bytes().sum() / 2


class NormBehind(torch.nn.Module):
    """A batch-norm behind an activation, which no convolution can take up, as CREPE has them."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Conv2d(1, 32, (9, 1), (2, 1))
        self.b = torch.nn.Conv2d(32, 16, (5, 1), padding=(2, 0))
        self.first, self.second = torch.nn.BatchNorm2d(32), torch.nn.BatchNorm2d(16)
        self.head = torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 1, 64, 1) to (N, 4)."""
        x = torch.max_pool2d(self.first(torch.relu(self.a(x))), (2, 1))
        return self.head(self.second(torch.relu(self.b(x))).mean((2, 3)))


def test_a_batch_norm_that_runs_as_a_convolution_is_read(tmp_path):
    x = torch.randn(16, 1, 64, 1)
    network = Network.from_module(prepared(NormBehind()), (x[:1],), (x,))
    lowering = _lowering(network, tmp_path)
    space = PolicySpace(network.structure, abilities_of(load_target(X86)))
    policies = _resolved(space, 12)
    assert not any(lowering.template(p).exact for p in policies)
    kinds = lowering.template(policies[0]).kinds
    if any(k.domain == "com.microsoft.nchwc" for k in kinds):  # this machine has blocked kernels
        assert [k.layer for k in kinds if k.op == "Conv"] == ["a", "batch_norm", "b", "batch_norm_1"]
    for policy in policies:
        model = export_model(compress(network, policy, Numerics()))
        assert not compare(lowering.kernels([policy])[0][1], read_kernels(model))
        source = Source(network.structure.graph, {}, {"conv2d": "a", "conv2d_1": "b", "linear": "head"}, 1)
        run = exact_template(read_kernels(model), source, "host")  # what is left where nothing can be read
        if policy.act_bits:
            continue
        layers = [k.kind.layer for k in run.kernels if k.kind.weight_bearing and k.kind.layer]
        assert set(layers) == {"a", "b", "head"}
    estimator = Estimator.learned(space, lowering)
    estimated = estimator.costs(policies)["latency_ms"]
    np.testing.assert_allclose(estimated, lowering.costs(policies)["latency_ms"], rtol=0.2)
    assert estimator.error < 0.05


def test_estimates_know_that_weights_of_a_large_network_leave_the_cache(tmp_path):
    class Large(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Sequential(
                torch.nn.Conv2d(1, 256, 3), torch.nn.ReLU(), torch.nn.Conv2d(256, 384, 3), torch.nn.ReLU(),
                torch.nn.Conv2d(384, 384, 3), torch.nn.ReLU(), torch.nn.Conv2d(384, 10, 1),
            )  # fmt: skip

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x).mean((2, 3))

    x = torch.randn(8, 1, 10, 10)
    network = Network.from_module(Large().eval(), (x[:1],), (x,))
    lowering = _lowering(network, tmp_path)
    space = PolicySpace(network.structure, Abilities())
    estimator = Estimator.learned(space, lowering)
    policies = [space.resolve(space.uniform(r, b)) for r in (1.0, 0.8, 0.6, 0.4, 0.2) for b in (8, None)]
    exact = lowering.costs(policies)["latency_ms"]
    held = [lowering.kernels([p])[0][1].held_bytes()[0] for p in policies]
    bends = lowering.predictor.bends
    assert min(held) < bends[0] < bends[1] < max(held)
    np.testing.assert_allclose(estimator.costs(policies)["latency_ms"], exact, rtol=0.01)


def test_a_size_no_rule_covers_is_priced_from_a_run(tmp_path):
    class Running(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Conv2d(1, 16, 3, padding=1)
            self.b = torch.nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.relu(self.a(x))
            return self.b(y) * torch.topk(y, 1, dim=3)[0]

    x = torch.randn(8, 1, 8, 8)
    network = Network.from_module(Running().eval(), (x[:1],), (x,))
    lowering = _lowering(network, tmp_path)
    space = PolicySpace(network.structure, Abilities())
    policies = [space.resolve(Policy()), space.resolve(Policy(keep={"b": 0.5}))]
    costs = lowering.costs(policies)
    assert (costs["latency_ms"] > 0).all()
    assert "TopK" in {k.op for k in lowering.template(policies[0]).kinds}
    assert "TopK" in lowering.unknown_operations(policies[0])


def test_learning_replaces_a_template(residual, tmp_path):
    lowering = _lowering(residual, tmp_path)
    space = PolicySpace(residual.structure, Abilities())
    dense, integer = space.resolve(Policy()), space.resolve(space.uniform(1.0, 8))
    before = lowering.costs([dense])["latency_ms"][0]
    other = export_model(compress(residual, integer, Numerics()))
    assert compare(lowering.kernels([dense])[0][1], read_kernels(other))
    lowering.learn(dense, other)
    assert not compare(lowering.kernels([dense])[0][1], read_kernels(other))
    assert lowering.costs([dense])["latency_ms"][0] != before
    assert _lowering(residual, tmp_path).costs([dense])["latency_ms"][0] != before


def test_any_onnx_file_is_priced_like_its_policy(residual, tmp_path):
    policy = PolicySpace(residual.structure, Abilities()).resolve(Policy())
    path = tmp_path / "model.onnx"
    path.write_bytes(export_model(compress(residual, policy, Numerics())))
    for name in (X86, "raspberry-pi-4"):
        lowering = _lowering(residual, tmp_path, name)
        batch, memory, size = predict_onnx(path, load_target(name))
        expected = lowering.costs([policy])
        np.testing.assert_allclose(
            lowering.predictor.predict(batch).latency_ms, expected["latency_ms"], rtol=1e-6
        )
        assert memory == expected["memory_bytes"][0]
        assert size == pytest.approx(expected["size_bytes"][0], rel=0.01)
    gpu, _, _ = predict_onnx(path, load_target("gpu-t4"), batch=4)
    assert {k.precision for k in gpu.kinds if k.weight_bearing} == {"fp16"}
    assert gpu.macs().sum() == 4 * lowering.costs([policy])["macs"][0]


def test_an_operation_without_model_is_reported(tmp_path):
    node = onnx.helper.make_node("Det", ["x"], ["y"], name="det")
    x = onnx.helper.make_tensor_value_info("x", 1, ["n", 3, 3])
    graph = onnx.helper.make_graph([node], "g", [x], [onnx.helper.make_tensor_value_info("y", 1, ["n"])])
    path = tmp_path / "det.onnx"
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9), path
    )
    batch, memory, size = predict_onnx(path, load_target(X86))
    assert [k.op for k in batch.kinds] == ["Det"]
    assert size == 0
    assert memory == 4 * (9 + 1)


def test_dims():
    size = Dim(0.0, (("g", 2.0),)).plus(Dim(3.0)).times(4.0)
    assert size.at({"g": 5}) == 52
    assert Dim(0.0, (("g", 1.0),)).rounded(16).at({"g": 17}) == 32
    assert Dim(17.0).rounded(16) == Dim(32.0)
    assert Dim(0.0, (("g", 1.0),), 16).rounded(0).at({"g": 17}) == 17
