"""Verification: right files pass, wrong values, precisions and shapes are refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from compressors.apply import compress
from compressors.compressed import WeightCode
from compressors.network import Network
from compressors.policy import Policy
from compressors.resolve import Numerics
from compressors.space import Abilities, PolicySpace
from search.errors import InputError
from search.export_onnx import export_model
from search.kernels_found import Difference, read_kernels
from search.verify import Verification, VerificationError, _compared, check_weights, verify
from tests.search.lowering_networks import Residual, Zoo, prepared


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    x = torch.randn(64, 1, 16, 16)
    return Network.from_module(prepared(Residual()), (x[:1],), (x,)), x


def _compressed(network: Network, policy: Policy | None = None, **abilities):
    space = PolicySpace(network.structure, Abilities(**abilities))
    return compress(network, space.resolve(policy or space.uniform(1.0, 8)), Numerics())


def _changed(model: bytes, name: str, change) -> bytes:
    proto = onnx.load_from_string(model)
    at = next(i for i in proto.graph.initializer if i.name == name)
    at.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(at).copy()), name))
    return proto.SerializeToString()


def test_right_files_pass(residual):
    network, x = residual
    for policy in (Policy(), Policy(act_bits={"stem.0": 8}), Policy(keep={"a.0": 0.5})):
        compressed = _compressed(network, policy)
        found = verify(compressed, export_model(compressed), (x,))
        assert found.passed
        assert found.agree >= found.samples - 1 == 63
        assert found.kernels_checked == 7
        assert found.facts()["runtime"].startswith("onnxruntime 1.")


def test_wrong_values_are_refused(residual):
    network, x = residual
    compressed = _compressed(network, Policy())
    model = export_model(compressed)
    for name in ("head.weight", "head.bias"):
        wrong = _changed(model, name, lambda w: np.roll(w, 1, axis=0))
        with pytest.raises(VerificationError, match="other top-1 answers") as caught:
            verify(compressed, wrong, (x,))
        assert caught.value.exit_code == 1
    broken = _changed(model, "head.weight", lambda w: w * np.float32("nan"))
    with pytest.raises(VerificationError, match="64 of 64"):
        verify(compressed, broken, (x,))


def test_wrong_precision_is_refused(residual):
    network, x = residual
    integer = _compressed(network)
    layer = "a.0.weight"
    floating = dataclasses.replace(integer, codes={k: v for k, v in integer.codes.items() if k != layer})
    with pytest.raises(VerificationError, match=r"a\.0\.weight.* on integers, the policy leaves it in float"):
        check_weights(floating, read_kernels(export_model(integer)))
    # between integer tensors the default optimiser quantises a float convolution by itself
    with pytest.raises(VerificationError, match="on integers, the policy leaves it in float"):
        check_weights(floating, read_kernels(export_model(floating)))
    dense = _compressed(network, Policy())
    with pytest.raises(VerificationError, match="integer in the policy"):
        check_weights(integer, read_kernels(export_model(dense)))
    more = dataclasses.replace(dense, codes={"head.weight": WeightCode(torch.ones(10), 0, 8, 127)})
    assert check_weights(more, read_kernels(export_model(dense))) == 7
    assert verify(integer, export_model(integer), (x,)).kernels_checked == 7


def test_wrong_shape_is_refused(residual):
    network, _ = residual
    whole, half = _compressed(network), _compressed(network, Policy(keep={"a.0": 0.5}, act_bits={}))
    space = PolicySpace(network.structure, Abilities())
    narrow = dataclasses.replace(space.uniform(1.0, 8), keep={"a.0": 0.5})
    pruned = _compressed(network, narrow)
    with pytest.raises(VerificationError, match="has shape"):
        check_weights(whole, read_kernels(export_model(pruned)))
    assert check_weights(half, read_kernels(export_model(half))) == 7


def test_float_answers_are_compared_by_relative_error():
    torch.manual_seed(0)

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Conv2d(2, 8, 3, padding=1)
            self.up = torch.nn.ConvTranspose2d(8, 4, 2, 2)
            self.b = torch.nn.Conv2d(4, 1, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.up(torch.relu(self.a(x)))))

    x = torch.randn(20, 2, 8, 8)
    network = Network.from_module(Decoder().eval(), (x[:1],), (x,))
    for policy in (Policy(), None):
        compressed = _compressed(network, policy)
        model = export_model(compressed)
        found = verify(compressed, model, (x,))
        assert not found.classification
        assert found.passed
        assert found.agree == 20
        assert "relative" in found.facts()["text"]
    dense = _compressed(network, Policy())
    with pytest.raises(VerificationError, match="other outputs"):
        verify(dense, _changed(export_model(dense), "b.bias", lambda v: v + np.float32(0.1)), (x,))


def test_a_float_transposed_convolution_keeps_its_weights():
    """onnxruntime would round the weights of what stands between integers, kernel or no kernel."""
    torch.manual_seed(0)
    x = torch.randn(8, 3, 8, 8)
    network = Network.from_module(prepared(Zoo()), (x[:1],), (x,))
    compressed = _compressed(network)
    assert "up.weight" not in compressed.codes
    kernels = read_kernels(export_model(compressed))
    up = next(k for k in kernels if k.op == "ConvTranspose")
    assert up.weights == ("up.weight",)
    assert up.precision == "fp32"
    assert verify(compressed, export_model(compressed), (x,)).passed


def test_one_sample_or_a_thousandth_may_differ():
    one = Verification(359, 358, 0.1, 0.1, True, "onnxruntime", 3)
    assert one.passed
    assert not dataclasses.replace(one, agree=357).passed
    assert dataclasses.replace(one, samples=5000, agree=4995).passed
    assert not dataclasses.replace(one, samples=5000, agree=4994).passed
    assert one.facts() == {"passed": True, "agree": 358, "samples": 359, "runtime": "onnxruntime"}


def test_of_quantised_networks_some_samples_may_be_decided_by_a_rounding():
    expected = np.random.default_rng(0).normal(size=(100, 10)).astype(np.float32)
    winner = expected.argmax(1)
    rows = np.arange(100)
    expected[rows, winner] = 3.0
    expected[rows, (winner + 1) % 10] = np.where(rows < 6, 2.99, 2.0)
    for other, ties, passes in ((range(5), 5, True), (range(7), 6, False), (range(6, 8), 0, False)):
        found = expected.copy()
        at = list(other)
        found[at, (winner[at] + 1) % 10] = 3.01
        for quantised in (True, False):
            result = _compared([expected], [found], quantised, 0)
            assert result.passed == (passes and quantised)
            if quantised:
                assert (result.agree, result.ties) == (100 - len(at), ties)
                assert result.facts().get("ties", 0) == ties


def test_files_that_do_not_load(residual):
    network, x = residual
    with pytest.raises(VerificationError, match="does not load"):
        verify(_compressed(network), b"no model", (x,))
    with pytest.raises(InputError, match="cannot load"):
        read_kernels(b"no model")
    assert (
        str(Difference("Conv fp32 4→4 elements", ("a",), 1, 0))
        == "Conv fp32 4→4 elements at a: priced 1, found 0"
    )


def test_embeddings_are_judged_by_their_direction_not_by_their_largest_number() -> None:
    rng = np.random.default_rng(0)
    value = rng.normal(size=(40, 64)).astype(np.float32)
    value /= np.linalg.norm(value, axis=1, keepdims=True)
    near = value + 0.04 * np.abs(value).mean() * rng.normal(size=value.shape).astype(np.float32)
    tied = value.copy()
    tied[:, 1] = tied[:, 0] = np.abs(value).max(1) + 1e-3  # two largest numbers, all but equal
    tied /= np.linalg.norm(tied, axis=1, keepdims=True)
    swapped = tied.copy()
    swapped[:, 1] += 1e-3
    for expected, found in ((value, near), (tied, swapped)):
        result = _compared([expected], [found], True, 0)
        assert not result.classification
        assert result.agree == 40
        assert result.passed
    assert not _compared([value], [near], False, 0).passed  # float answers must be the same
    turned = near.copy()
    turned[3] = -turned[3]
    result = _compared([value], [turned], True, 0)
    assert not result.passed
    logits = 3 * rng.normal(size=(40, 64)).astype(np.float32)  # of all lengths: classes
    assert _compared([logits], [logits], True, 0).classification
