"""Dynamic ranges: every sample's own, at reads, on linear layers alone; elsewhere all is as it was."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch import Tensor

from compressors.apply import compress
from compressors.compressed import ActivationCode, DynamicCode
from compressors.errors import NumericsError
from compressors.policy import DYNAMIC, FLOAT, ResolvedPolicy, check_document
from compressors.quantize import dynamic_codes, fake_quantize
from compressors.resolve import Numerics
from compressors.sensitivity import measured_losses
from compressors.simulate import simulate
from compressors.space import Abilities, PolicySpace
from tests.compressors.helpers import inputs_for, network_of

ABLE = Abilities(dynamic_ops=frozenset({"linear"}), ranges=DYNAMIC)
#: Digests of all-8-bit and of half-pruned policies as they were before there were dynamic ranges.
DIGESTS = {
    "plain": ("0899d5f1aead61b7", "ad7f8415e7150540"),
    "residual": ("8ab8f0667304a36d", "28e5ed45a49a5598"),
    "inverted-residual": ("4ad0d7a12ff903dd", "99958f4faee25aad"),
    "transformer": ("17ee1325bf7b83b5", "b588a7efc07c28db"),
}


def _space(name: str) -> PolicySpace:
    return PolicySpace(network_of(name).structure, ABLE)


def _onnx(x: Tensor) -> tuple[Tensor, float]:
    """DynamicQuantizeLinear by the operator's definition, for one tensor: (codes less zero point, scale)."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (torch.tensor(high) - torch.tensor(low)) / 255
    zero = torch.clamp(torch.round(0 - torch.tensor(low) / scale), 0, 255)
    return torch.clamp(torch.round(x / scale) + zero, 0, 255) - zero, float(scale)


@pytest.mark.parametrize("shift", [-4.0, 0.0, 0.5, 4.0])
def test_codes_are_those_of_the_operator_sample_by_sample(shift: float) -> None:
    x = (
        torch.randn(5, 7, 9, generator=torch.Generator().manual_seed(1)) * torch.arange(1, 6)[:, None, None]
        + shift
    )
    codes, scales = dynamic_codes(x, DynamicCode(8, 0))
    for i in range(5):
        ours, scale = _onnx(x[i])
        torch.testing.assert_close(codes[i], ours, rtol=0, atol=0)
        assert float(scales[i]) == scale
        assert codes[i].max() - codes[i].min() <= 255


def test_a_sample_may_be_several_rows_or_stand_in_another_dimension() -> None:
    x = torch.randn(6, 4, 8, generator=torch.Generator().manual_seed(2))
    pairs = fake_quantize(x, DynamicCode(8, 0, 2))
    for i in range(0, 6, 2):
        codes, scale = _onnx(x[i : i + 2])
        torch.testing.assert_close(pairs[i : i + 2], codes * scale, rtol=0, atol=0)
    turned = fake_quantize(x.movedim(0, 1).contiguous(), DynamicCode(8, 1, 2))
    torch.testing.assert_close(turned.movedim(1, 0), pairs, rtol=0, atol=0)
    apart = (
        x.reshape(3, 2, 4, 8).movedim(0, 1).reshape(6, 4, 8)
    )  # the first halves of all samples, then the second
    runs = fake_quantize(apart, DynamicCode(8, 0, 2, 2))
    torch.testing.assert_close(runs.reshape(2, 3, 4, 8).movedim(1, 0).reshape(6, 4, 8), pairs, rtol=0, atol=0)
    whole = fake_quantize(x, DynamicCode(8, None))
    codes, scale = _onnx(x)
    torch.testing.assert_close(whole, codes * scale, rtol=0, atol=0)


def test_zeros_stay_zeros_and_gradients_pass() -> None:
    code = DynamicCode(8, 0)
    x = torch.zeros(2, 3, requires_grad=True)
    y = fake_quantize(x, code)
    assert torch.equal(y.detach(), torch.zeros(2, 3))
    y.sum().backward()
    assert torch.equal(x.grad, torch.ones(2, 3))


def test_only_what_linear_layers_read_is_a_choice_and_convolutions_stay_float() -> None:
    space = _space("transformer")
    network = network_of("transformer")
    everything = space.resolve(space.uniform(1.0, 8))
    linear = {x.name for x in network.structure.layers if x.op == "linear"}
    integer = {name for name, bits in everything.weight_bits.items() if bits != FLOAT}
    assert integer == {n for n in linear if "bits" not in network.structure.layer[n].fixed}
    assert len(integer) >= 6
    read = {n.inputs[0] for n in network.structure.graph.nodes if n.op == "linear"}
    groups = {g.name: g for g in network.structure.tensor_groups}
    for choice in space.choices:
        if choice.kind == "act_bits":
            assert read & set(groups[choice.subject].tensors)
    assert _space("plain").abilities.ranges == DYNAMIC
    assert not [c for c in _space("decoder").choices if c.kind == "act_bits"]  # no linear layer at all


def test_answers_do_not_depend_on_the_batch() -> None:
    space, network = _space("transformer"), network_of("transformer")
    compressed = compress(network, space.resolve(space.uniform(1.0, 8)), ABLE.numerics)
    assert compressed.dynamic
    assert all(isinstance(c, DynamicCode) for c in compressed.activations.values())
    assert not compressed.biases  # float: their scale would be the sample's
    x = inputs_for("transformer", 6, seed=3)[0]
    x[0] *= 50.0  # what would widen a range that all shared
    with torch.no_grad():
        alone = torch.cat([simulate(compressed, (x[i : i + 1],))[0] for i in range(6)])[1:]
        (own,) = simulate(compressed, (x,))
        shared = {t: dataclasses.replace(c, axis=None) for t, c in compressed.activations.items()}
        (common,) = simulate(dataclasses.replace(compressed, activations=shared), (x,))
    near, far = (float((y[1:] - alone).norm() / alone.norm()) for y in (own, common))
    assert near <= 0.02  # convolutions sum in another order, so that a code may round the other way
    assert far > 3 * near


def test_rows_of_token_first_networks_are_known_for_what_they_are() -> None:
    """`nn.TransformerEncoderLayer` flattens (tokens, batch, features): a sample is every n-th row."""
    graph = network_of("transformer").structure.graph
    rows = [t for t, k in graph.tensors.items() if k.shape == (-16, 32)]
    assert rows
    assert {DynamicCode.of(8, graph, t) for t in rows} == {DynamicCode(8, 0, 16, 16)}


def test_integers_and_rounded_floats_agree() -> None:
    """Answers computed on codes are those of rounded values in float arithmetic, to float's own precision."""
    space, network = _space("transformer"), network_of("transformer")
    compressed = compress(network, space.resolve(space.uniform(1.0, 8)), ABLE.numerics)
    x = inputs_for("transformer", 4, seed=4)[0]
    with torch.no_grad():
        (codes,) = simulate(compressed, (x,))
    (floats,) = simulate(compressed, (x,))
    assert floats.detach().sub(codes).norm() <= 1e-2 * codes.norm()  # a code may round the other way


def test_a_network_of_a_fixed_batch_has_one_range_for_all_of_it() -> None:
    network, space = network_of("fixed-batch"), _space("fixed-batch")
    compressed = compress(network, space.resolve(space.uniform(1.0, 8)), ABLE.numerics)
    assert {c.axis for c in compressed.activations.values()} <= {None}


def test_policies_say_so_and_read_back() -> None:
    space = _space("transformer")
    static = PolicySpace(space.structure, dataclasses.replace(ABLE, ranges="mse"))
    resolved = space.resolve(space.uniform(1.0, 8))
    document = json.loads(resolved.to_json())
    assert document["ranges"] == DYNAMIC
    assert check_document(document) == ""
    assert ResolvedPolicy.from_dict(document) == resolved
    assert resolved.digest != static.resolve(static.uniform(1.0, 8)).digest
    again = space.resolve(space.decode(space.encode(space.uniform(1.0, 8))))
    assert again == resolved


def test_a_runtime_of_other_codes_has_none() -> None:
    network, space = network_of("transformer"), _space("transformer")
    with pytest.raises(NumericsError, match="u8-affine"):
        compress(network, space.resolve(space.uniform(1.0, 8)), Numerics("s8-symmetric"))


def test_losses_are_measured_with_each_samples_own_ranges() -> None:
    network, space = network_of("transformer"), _space("transformer")
    losses = measured_losses(network, space, samples=4, points=2)
    rounded = {n: v for n, v in losses.items() if n.startswith("act_bits:")}
    assert rounded
    assert all(v[-1] == 0.0 and 0.0 < v[0] < 1.0 for v in rounded.values())


def test_static_policies_are_what_they_were() -> None:
    for name, (integer, half) in DIGESTS.items():
        space = PolicySpace(network_of(name).structure, Abilities(dynamic_ops=frozenset({"linear"})))
        assert space.resolve(space.uniform(1.0, 8)).digest == integer
        assert space.resolve(space.uniform(0.5, 8)).digest == half
        compressed = compress(network_of(name), space.resolve(space.uniform(1.0, 8)), Numerics())
        assert all(isinstance(c, ActivationCode) for c in compressed.activations.values())
