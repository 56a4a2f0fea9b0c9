"""Dynamic ranges from policy to file: answers as simulated, kernels as priced, chosen where they win."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
import torch

from compressors.apply import compress
from compressors.network import Network
from compressors.policy import DYNAMIC
from compressors.simulate import answers
from compressors.space import PolicySpace
from hw_profiles.target import load_target
from search.abilities import abilities_of
from search.answers import Answers
from search.errors import InputError, UsageError, VerificationError
from search.export_onnx import export_model
from search.exporters import exporter_of
from search.integers import exact
from search.kernels_found import compare, read_kernels
from search.lowering import Lowering
from search.lowering_onnx import predict_onnx
from search.ranges import AUTO, STATIC, chosen_ranges
from search.siblings import in_precisions_of
from search.stored import from_file, to_bytes
from search.task import Split
from search.tasks.metrics import METRICS
from search.tasks.networks_text import EncoderSize, SentenceEncoder
from search.templates import TemplateStore
from search.verify import verify
from tests.search.lowering_networks import Residual, prepared

X86 = load_target("x86-avx512-vnni")
TOKENS = 12


def _encoder(size: EncoderSize, tokens: int, samples: int) -> tuple[Network, tuple[torch.Tensor, ...]]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = SentenceEncoder(size).eval()
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.1 * torch.randn_like(p))
        ids = torch.randint(0, size.vocabulary, (samples, tokens))
        mask = (torch.arange(tokens) < torch.randint(3, tokens + 1, (samples, 1))).float()
    return Network.from_module(module, (ids[:1], mask[:1]), (ids, mask)), (ids, mask)


@pytest.fixture(scope="module")
def encoder():
    return _encoder(EncoderSize(50, 16, 32, 4, 2, 64), TOKENS, 16)


@pytest.fixture(scope="module")
def space(encoder):
    return PolicySpace(encoder[0].structure, replace(abilities_of(X86), ranges=DYNAMIC))


def _policies(space: PolicySpace, count: int):
    rng = np.random.default_rng(1)
    found = [space.resolve(space.dense), space.resolve(space.uniform(1.0, 8))]
    bits = np.array([c.kind == "act_bits" for c in space.choices])
    while len(found) < count:
        x = np.where(rng.random(space.dimension) < np.where(bits, 0.7, 0.2), rng.random(space.dimension), 1.0)
        found.append(space.resolve(space.decode(x)))
    return found


def test_files_answer_as_simulated_and_run_the_kernels_that_were_priced(encoder, space, tmp_path):
    network, inputs = encoder
    lowering = Lowering(network.structure, X86, weights=network.weights, store=TemplateStore(tmp_path))
    policies = _policies(space, 10)
    assert any(p.factors for p in policies)
    seen: set[str] = set()
    for policy in policies:
        compressed = compress(network, policy, space.abilities.numerics)
        model = export_model(compressed)
        found = verify(compressed, model, inputs)
        assert found.agree == found.samples == 16
        assert found.relative_error < 2e-3
        kernels = read_kernels(model)
        assert compare(lowering.kernels([policy])[0][1].row(0), kernels) == []
        seen |= {k.op for k in kernels if k.precision == "int8"}
        assert not lowering.unknown_operations(policy)
    assert seen == {"DynamicQuantizeLinear", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}


def test_every_kernel_of_dynamic_ranges_has_a_price(encoder, space, tmp_path):
    network, _ = encoder
    lowering = Lowering(network.structure, X86, weights=network.weights, store=TemplateStore(tmp_path))
    parts = lowering.explain(space.resolve(space.uniform(1.0, 8)))
    dynamic = [p for p in parts if p.op in ("DynamicQuantizeLinear", "DynamicQuantizeMatMul")]
    assert {p.op for p in dynamic} == {"DynamicQuantizeLinear", "DynamicQuantizeMatMul"}
    assert all(p.milliseconds > 1e-4 for p in dynamic)
    tables = X86.cost.constants  # of their own, not those that stand in
    assert {"quantise_dynamic", "gemm.int8_dynamic"} <= set(tables)


def test_what_the_file_leads_to_can_be_learned(encoder, space, tmp_path):
    network, _ = encoder
    lowering = Lowering(network.structure, X86, weights=network.weights, store=TemplateStore(tmp_path))
    policy = space.resolve(space.uniform(0.5, 8))
    before = lowering.costs([policy])
    lowering.learn(policy, export_model(compress(network, policy, space.abilities.numerics)))
    for name, value in lowering.costs([policy]).items():
        np.testing.assert_allclose(value, before[name], rtol=1e-9, err_msg=name)


def test_a_file_that_is_given_several_samples_at_once_answers_otherwise(encoder, space):
    """Why such files are verified and scored one sample at a time."""
    network, inputs = encoder
    compressed = compress(network, space.resolve(space.uniform(1.0, 8)), space.abilities.numerics)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    model = exact(export_model(compressed), compressed.numerics)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    ours = answers(compressed, inputs)[0].numpy()
    together = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})[0]
    alone = np.concatenate(
        [
            session.run(None, {n: x[i : i + 1].numpy() for n, x in zip(names, inputs, strict=True)})[0]
            for i in range(16)
        ]
    )
    near, far = (float(np.abs(x - ours).max()) for x in (alone, together))
    assert far > 3 * near


def test_scores_are_those_of_the_runtime(encoder, space):
    network, inputs = encoder
    compressed = compress(network, space.resolve(space.uniform(1.0, 8)), space.abilities.numerics)
    with torch.no_grad():
        wanted = answers(compress(network, space.resolve(space.dense), space.abilities.numerics), inputs)
    split = Split(inputs, wanted[0])
    scored = [Answers(compressed, METRICS["cosine"], runtime) for runtime in (True, False)]
    theirs, ours = (a.scores(split) for a in scored)
    assert scored[0].runtime
    torch.testing.assert_close(theirs, ours, atol=1e-3, rtol=0)


def test_another_file_is_refused(encoder, space):
    network, inputs = encoder
    policy = space.resolve(space.uniform(1.0, 8))
    compressed = compress(network, policy, space.abilities.numerics)
    floats = compress(network, space.resolve(space.dense), space.abilities.numerics)
    with pytest.raises(VerificationError):
        verify(compressed, export_model(floats), inputs)
    with pytest.raises(InputError, match="ncnn does not round"):
        exporter_of("ncnn").write(compressed)


def test_compressed_networks_are_stored_and_read_back(encoder, space, tmp_path):
    network, inputs = encoder
    compressed = compress(network, space.resolve(space.uniform(0.5, 8)), space.abilities.numerics)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(to_bytes(compressed))
    again = from_file(path, network, space.abilities.numerics)
    assert again.activations == compressed.activations
    torch.testing.assert_close(answers(again, inputs)[0], answers(compressed, inputs)[0], rtol=0, atol=0)


def test_a_target_without_such_kernels_prices_the_policy_in_float(space):
    policy = space.resolve(space.uniform(0.5, 8))
    plain, told = in_precisions_of(load_target("raspberry-pi-4"), policy)
    assert told == " in float"
    assert set(plain.act_bits.values()) == {32}
    assert in_precisions_of(X86, policy) == (policy, "")


def test_onnxruntimes_own_dynamic_files_are_priced(encoder, space, tmp_path):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    network, _ = encoder
    numerics = space.abilities.numerics
    model = tmp_path / "float.onnx"
    model.write_bytes(export_model(compress(network, space.resolve(space.dense), numerics)))
    quantize_dynamic(model, tmp_path / "int8.onnx", per_channel=True, weight_type=QuantType.QInt8)
    batch, _, _ = predict_onnx(tmp_path / "int8.onnx", X86)
    assert "DynamicQuantizeMatMul" in {k.op for k in batch.kinds}


# -- the choice


def test_convolutions_keep_fixed_ranges():
    torch.manual_seed(0)
    x = torch.randn(16, 1, 16, 16)
    network = Network.from_module(prepared(Residual()), (x[:1],), (x,))
    assert chosen_ranges(AUTO, abilities_of(X86), X86, network, 1) == (STATIC, "")


def test_an_encoder_gets_what_is_no_slower_and_loses_less():
    network, inputs = _encoder(EncoderSize(50, 64, 256, 8, 1, 1024), 64, 16)
    able = abilities_of(X86)
    ranges, why = chosen_ranges(AUTO, able, X86, network, 1)
    lowering = Lowering(network.structure, X86, weights=network.weights)
    exact = answers(
        compress(
            network,
            PolicySpace(network.structure, able).resolve(PolicySpace(network.structure, able).dense),
            able.numerics,
        ),
        inputs,
    )[0]
    times, errors = {}, {}
    for name in (STATIC, DYNAMIC):
        space = PolicySpace(network.structure, replace(able, ranges=name))
        policy = space.resolve(space.uniform(1.0, 8))
        times[name] = lowering.costs([policy])["latency_ms"][0]
        errors[name] = float((answers(compress(network, policy, able.numerics), inputs)[0] - exact).norm())
    wins = times[DYNAMIC] <= times[STATIC] and errors[DYNAMIC] < errors[STATIC]
    assert (ranges == DYNAMIC) == wins
    assert bool(why) == wins
    assert chosen_ranges(AUTO, able, X86, network, 2) == (STATIC, "")
    assert chosen_ranges(AUTO, replace(able, methods=frozenset({"prune"})), X86, network, 1) == (STATIC, "")
    assert chosen_ranges("minmax", able, X86, network, 1) == ("minmax", "")


def test_dynamic_ranges_are_refused_where_they_cannot_be(encoder):
    network, _ = encoder
    pi = load_target("raspberry-pi-4")
    with pytest.raises(UsageError, match="no kernels that find ranges"):
        chosen_ranges(DYNAMIC, abilities_of(pi), pi, network, 1)
    with pytest.raises(UsageError, match="share one range"):
        chosen_ranges(DYNAMIC, abilities_of(X86), X86, network, 4)
    assert chosen_ranges(AUTO, abilities_of(pi), pi, network, 1) == (STATIC, "")
    assert chosen_ranges(DYNAMIC, abilities_of(X86), X86, network, 1) == (DYNAMIC, "")
