"""Every exporter against one contract, and ncnn's files: right ones pass, wrong ones are refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from compressors.apply import compress
from compressors.network import Network
from compressors.policy import FLOAT, Policy
from compressors.simulate import answers
from compressors.space import PolicySpace
from hw_profiles.target import load_target
from search.abilities import abilities_of
from search.errors import InputError, UsageError
from search.exporters import EXPORTERS, Exporter, NcnnExporter, exporter_of
from search.exporters.ncnn_files import BIN, PARAM
from search.kernels_found import compare
from search.lowering import Lowering
from search.siblings import in_precisions_of, verdict
from search.verify import VerificationError, verify
from tests.compressors.networks import networks
from tests.search.lowering_networks import Residual, prepared

NCNN = "raspberry-pi-4/ncnn"


def needs(exporter: Exporter) -> None:
    """Skip where the exporter's runtime is not installed."""
    try:
        exporter.version()
    except ImportError:
        pytest.skip(f"the extra {exporter.extra} is not installed")


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    x = torch.randn(48, 1, 16, 16)
    return Network.from_module(prepared(Residual()), (x[:1],), (x,)), x


def float_policies(network: Network, count: int, seed: int = 0):
    """Random policies that leave everything in float, with the space they come from."""
    abilities = abilities_of(load_target(NCNN), methods=("prune", "factorize", "depth"))
    space = PolicySpace(network.structure, abilities)
    rng = np.random.default_rng(seed)
    drawn = [space.resolve(space.decode(rng.random(space.dimension))) for _ in range(count)]
    return [space.resolve(space.dense), *drawn], abilities.numerics


@pytest.mark.parametrize("name", sorted(EXPORTERS))
def test_contract(name, residual):
    exporter = EXPORTERS[name]
    needs(exporter)
    network, x = residual
    policies, numerics = float_policies(network, 2)
    for policy in policies:
        compressed = compress(network, policy, numerics)
        files = exporter.write(compressed)
        assert tuple(files) == exporter.names
        assert files == exporter.write(compressed), "writing is not deterministic"
        (first, second) = exporter.answers(files, [(x[:20],), (x[20:],)], compressed.graph)
        wanted = answers(compressed, (x,))[0].numpy()
        np.testing.assert_allclose(np.concatenate([first[0], second[0]]), wanted, atol=1e-4)
        kernels = exporter.kernels(files)
        bearing = [k for k in kernels if k.weight_bearing]
        assert len(bearing) == len(compressed.layer_of)
        assert all(k.inputs and k.outputs and k.outputs[0][0] == 1 for k in kernels)
        found = verify(compressed, files, (x,), exporter)
        assert found.agree == found.samples == 48
        assert found.facts()["file"] == exporter.names[0]
        assert found.runtime == exporter.version()
        assert found.runtime.startswith(name)
    assert exporter_of(name) is exporter
    with pytest.raises(InputError, match=exporter.names[-1].replace(".", r"\.")):
        exporter.kernels({k: files[k] for k in exporter.names[:-1]})


def test_runtimes_without_an_exporter_get_the_portable_file():
    assert exporter_of(load_target("gpu-t4")).names == ("model.onnx",)
    assert exporter_of(load_target(NCNN)) is EXPORTERS["ncnn"]


def test_wrong_ncnn_files_are_refused(residual):
    needs(EXPORTERS["ncnn"])
    network, x = residual
    policies, numerics = float_policies(network, 3, seed=3)
    exporter = NcnnExporter()
    whole = compress(network, policies[0], numerics)
    files = exporter.write(whole)
    tail = np.frombuffer(files[BIN][-1280:], np.float32)
    for wrong in (
        {**files, BIN: files[BIN][:-1280] + np.roll(tail, 32).tobytes()},
        {**files, PARAM: files[PARAM].replace(b" 9=1", b"", 1)},
    ):
        with pytest.raises(VerificationError, match="gives other top-1 answers than the searched network"):
            verify(whole, wrong, (x,), exporter)
    for wrong, what in (
        ({**files, BIN: files[BIN][:2000]}, "does not load model.ncnn.bin"),
        ({**files, PARAM: b"7767517\n0 0\nno such"}, "does not load model.ncnn.param|cannot compute"),
        ({**files, PARAM: files[PARAM].replace(b"Pooling", b"Poolong")}, "does not load model.ncnn.param"),
    ):
        with pytest.raises(VerificationError, match=what):
            verify(whole, wrong, (x,), exporter)
    pruned = next(p for p in policies[1:] if min(p.kept.values()) < 16)
    with pytest.raises(VerificationError):
        verify(whole, exporter.write(compress(network, pruned, numerics)), (x,), exporter)


def test_integers_are_not_written_as_ncnn_files(residual):
    network, _ = residual
    abilities = abilities_of(load_target("raspberry-pi-4"))
    space = PolicySpace(network.structure, abilities)
    compressed = compress(network, space.resolve(space.uniform(1.0, 8)), abilities.numerics)
    assert compressed.activations
    with pytest.raises(InputError, match="ncnn does not round activations as u8-affine"):
        NcnnExporter().write(compressed)


def test_integers_in_ncnn(residual):
    """Convolutions hand codes on, the residual sum stays float, and every answer is the simulation's."""
    needs(EXPORTERS["ncnn"])
    network, x = residual
    abilities = abilities_of(load_target(NCNN))
    space = PolicySpace(network.structure, abilities)
    policy = space.resolve(space.uniform(1.0, 8))
    compressed = compress(network, policy, abilities.numerics)
    assert {c.low for c in compressed.activations.values()} == {-127}
    files = NcnnExporter().write(compressed)
    found = verify(compressed, files, (x,), NcnnExporter())
    assert found.passed
    assert found.relative_error < 1e-3
    assert found.kernels_checked == 7
    kernels = NcnnExporter().kernels(files)
    assert [k.precision for k in kernels if k.weight_bearing] == ["int8"] * 7
    assert {k.precision for k in kernels if not k.weight_bearing} == {"fp32"}
    rows = [r.split() for r in files[PARAM].decode().splitlines()[2:]]
    terms = [w for r in rows for w in r if w in ("8=1", "8=101")]
    assert terms.count("8=101") == 2  # from the first to the second convolution of each block
    assert len(files[BIN]) < 0.3 * len(NcnnExporter().write(_dense(network))[BIN])
    lowering = Lowering(network.structure, load_target(NCNN), weights=network.weights)
    assert not compare(lowering.kernels([policy])[0][1].row(0), kernels)
    integer, dense = lowering.costs([policy, space.resolve(space.dense)])["latency_ms"]
    assert integer < dense


def _dense(network: Network):
    policies, numerics = float_policies(network, 0)
    return compress(network, policies[0], numerics)


@pytest.mark.parametrize("name", ["inverted-residual", "inception", "transformer", "grouped", "conv1d"])
def test_mixed_precision_in_ncnn(name):
    needs(EXPORTERS["ncnn"])
    module, example = networks()[name]()
    x = tuple(torch.randn(32, *e.shape[1:], generator=torch.Generator().manual_seed(1)) for e in example)
    network = Network.from_module(module.eval(), example, x)
    abilities = abilities_of(load_target(NCNN))
    space = PolicySpace(network.structure, abilities)
    rng = np.random.default_rng(1)
    lowering = Lowering(network.structure, load_target(NCNN), weights=network.weights)
    seen: set[str] = set()
    for _ in range(3):
        policy = space.resolve(space.decode(rng.random(space.dimension)))
        compressed = compress(network, policy, abilities.numerics)
        files = NcnnExporter().write(compressed)
        found = verify(compressed, files, x, NcnnExporter())
        assert found.passed
        kernels = NcnnExporter().kernels(files)
        assert not compare(lowering.kernels([policy])[0][1].row(0), kernels)
        seen |= {k.op for k in kernels if k.precision == "int8"}
        assert lowering.unknown_operations(policy) == ()
    assert "Convolution1D" not in seen
    assert seen


@pytest.mark.parametrize("name", sorted(networks()))
def test_priced_kernels_are_those_ncnn_runs(name):
    needs(EXPORTERS["ncnn"])
    module, example = networks()[name]()
    x = tuple(torch.randn(8, *e.shape[1:], generator=torch.Generator().manual_seed(1)) for e in example)
    network = Network.from_module(module.eval(), example, x)
    policies, numerics = float_policies(network, 2)
    lowering = Lowering(network.structure, load_target(NCNN), weights=network.weights)
    for policy in policies:
        compressed = compress(network, policy, numerics)
        files = NcnnExporter().write(compressed)
        found = verify(compressed, files, x, NcnnExporter())
        assert found.passed
        assert found.relative_error < 1e-4
        priced = lowering.kernels([policy])[0][1].row(0)
        assert not compare(priced, NcnnExporter().kernels(files))
        assert lowering.unknown_operations(policy) == ()
        assert lowering.costs([policy])["latency_ms"][0] > 0


def test_one_template_prices_all_widths(residual):
    network, _ = residual
    policies, _ = float_policies(network, 12, seed=5)
    lowering = Lowering(network.structure, load_target(NCNN), weights=network.weights)
    together = lowering.costs(policies)
    for i, policy in enumerate(policies):
        alone = Lowering(network.structure, load_target(NCNN), weights=network.weights).costs([policy])
        assert {k: v[i] for k, v in together.items()} == pytest.approx({k: v[0] for k, v in alone.items()})
    assert together["macs"].argmax() == 0
    with pytest.raises(UsageError, match=r"one sample at a time.*\n.*--batch 1"):
        Lowering(network.structure, load_target(NCNN), batch=2).costs(policies[:1])


def test_learned_kernels_take_the_place_of_a_template(residual):
    needs(EXPORTERS["ncnn"])
    network, _ = residual
    policies, numerics = float_policies(network, 1)
    lowering = Lowering(network.structure, load_target(NCNN), weights=network.weights)
    before = lowering.costs(policies[:1])["latency_ms"][0]
    files = NcnnExporter().write(compress(network, policies[0], numerics))
    learned = lowering.learn(policies[0], files)
    assert learned.exact
    assert [k.kind.op for k in learned.kernels] == [k.op for k in NcnnExporter().kernels(files)]
    assert lowering.costs(policies[:1])["latency_ms"][0] == pytest.approx(before)


def test_a_missing_runtime_is_told_before_anything_is_searched(monkeypatch):
    from search.config import load_config
    from search.setup import load_setup

    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(InputError, match=r"ncnn is not installed.*pip install 'tailorbird\[ncnn\]'"):
        load_setup(load_config({"target": NCNN}, text="target"))
    EXPORTERS["onnxruntime"].require()


def test_policies_are_priced_in_precisions_the_other_runtime_has(residual):
    network, _ = residual
    onnx = load_target("raspberry-pi-4")
    facts = onnx.abilities.model_copy(update={"integer_precisions": ()})
    floats = onnx.model_copy(update={"abilities": facts})
    space = PolicySpace(network.structure, abilities_of(onnx))
    integer = space.resolve(space.uniform(0.5, 8))
    plain, form = in_precisions_of(floats, integer)
    assert form == " in float"
    assert set(plain.weight_bits.values()) | set(plain.act_bits.values()) == {FLOAT}
    assert plain.kept == integer.kept
    assert in_precisions_of(onnx, integer) == (integer, "")
    dense = space.resolve(Policy())
    assert in_precisions_of(floats, dense)[1] == ""
    assert in_precisions_of(load_target(NCNN), integer) == (integer, "")


def test_verdict_needs_intervals_apart():
    def costs(ms: float, factor: float) -> dict[str, float]:
        return {"latency_ms": ms, "latency_low_ms": ms / factor, "latency_high_ms": ms * factor}

    assert verdict(costs(4.0, 1.5), costs(2.9, 1.7)) == "0.72x, too close to tell"
    assert verdict(costs(4.0, 1.1), costs(2.9, 1.1)) == "0.72x, faster"
    assert verdict(costs(2.0, 1.2), costs(3.0, 1.2)) == "1.50x, slower"
