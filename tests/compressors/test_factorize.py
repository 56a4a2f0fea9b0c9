"""Low-rank factorisations: exact at full rank, better with rank, on every kind of layer."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensorly import cp_to_tensor
from tensorly.decomposition import parafac
from torch import Tensor, nn

from compressors.apply import compress, reduced
from compressors.errors import NumericsError, PolicyError
from compressors.execute import run
from compressors.factorize import factorize
from compressors.factors import factor_shapes
from compressors.network import Network
from compressors.policy import Factor, Policy, ResolvedPolicy
from compressors.skeleton import concrete, unknowns
from compressors.space import Abilities, Numerics, PolicySpace
from tests.compressors.helpers import network_of, space_of

#: Stride, padding, dilation and even, uneven or flat kernels.
CONVS: dict[str, tuple[type[nn.Module], dict[str, object]]] = {
    "plain": (nn.Conv2d, {"kernel_size": 3, "padding": 1}),
    "strided": (nn.Conv2d, {"kernel_size": 3, "stride": 2, "padding": 1}),
    "uneven": (nn.Conv2d, {"kernel_size": (3, 5), "stride": (1, 2), "padding": (1, 2)}),
    "dilated": (nn.Conv2d, {"kernel_size": 3, "padding": 2, "dilation": 2}),
    "even": (nn.Conv2d, {"kernel_size": 4, "stride": 2, "padding": 1}),
    "even-same": (nn.Conv2d, {"kernel_size": (4, 3), "padding": "same", "dilation": (1, 2)}),
    "no-bias": (nn.Conv2d, {"kernel_size": 3, "bias": False}),
    "pointwise": (nn.Conv2d, {"kernel_size": 1, "stride": 2}),
    "signal": (nn.Conv1d, {"kernel_size": 5, "stride": 2, "padding": 2}),
    "transposed": (nn.ConvTranspose2d, {"kernel_size": 4, "stride": 2, "padding": 1}),
    "transposed-output-padding": (
        nn.ConvTranspose2d,
        {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    ),
}
CASES = [
    (name, method)
    for name, (kind, options) in CONVS.items()
    for method in ("svd", "spatial", "tucker2", "cp")
    if method == "svd"
    or (kind is nn.Conv2d and name != "pointwise")
    or (method in ("tucker2", "cp") and name == "signal")
]


def network_for(name: str) -> tuple[nn.Module, Tensor, Network]:
    """The convolution alone, between two layers that keep it from being an output."""
    kind, options = CONVS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        one_d = kind is nn.Conv1d
        middle = kind(12, 16, **options)
        edge = nn.Conv1d if one_d else nn.Conv2d
        module = nn.Sequential(edge(4, 12, 1), middle, edge(16, 3, 1)).eval()
        x = torch.randn(2, 4, 20) if one_d else torch.randn(2, 4, 11, 13)
    return module, x, Network.from_module(module, (x,), (x,))


def factored(network: Network, factor: Factor) -> ResolvedPolicy:
    """Layer "1" at exactly this rank."""
    space = PolicySpace(network.structure, Abilities())
    dense = space.resolve(Policy())
    return ResolvedPolicy(dense.network, dense.kept, {"1": factor}, dense.weight_bits, dense.act_bits)


def full_rank(shape: tuple[int, ...], method: str) -> tuple[int, ...]:
    """Ranks at which the factorisation loses nothing; shape (rows, columns, k...)."""
    rows, columns, *k = shape
    if method == "tucker2":
        return (columns, rows)
    if method == "spatial":
        return (min(columns * k[0], rows * k[1]),)
    if method == "cp":
        return (min(columns * rows, math.prod(k) * columns, math.prod(k) * rows),)
    return (min(columns * math.prod(k), rows),)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_full_rank_is_exact(name: str, method: str) -> None:
    module, x, network = network_for(name)
    layer = network.structure.layer["1"]
    policy = factored(network, Factor(method, full_rank(layer.weight_shape, method)))
    skeleton = network.skeletons.of(policy)
    graph = concrete(skeleton.unfolded, skeleton, unknowns(policy, network.structure))
    parts = factorize(network.weights["1.weight"], policy.factors["1"], layer.op == "conv_transpose")
    weights = {**network.weights, **dict(zip(skeleton.factor_weights["1"], parts, strict=True))}
    with torch.no_grad():
        expected = module(x)
        found = run(graph, weights, (x,))[0]
    assert expected.shape == found.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    said = factor_shapes(layer, layer.weight_shape, policy.factors["1"])
    assert [tuple(p.shape) for p in parts] == said
    assert [graph.params[w].shape for w in skeleton.factor_weights["1"]] == said


@pytest.mark.parametrize(("name", "method"), CASES)
def test_error_does_not_grow_with_rank(name: str, method: str) -> None:
    module, x, network = network_for(name)
    layer = network.structure.layer["1"]
    top = full_rank(layer.weight_shape, method)
    with torch.no_grad():
        hidden = module[0](x)
    errors = []
    for share in (0.2, 0.4, 0.6, 0.8, 1.0):
        policy = factored(network, Factor(method, tuple(max(1, round(share * r)) for r in top)))
        skeleton = network.skeletons.of(policy)
        parts = factorize(network.weights["1.weight"], policy.factors["1"], layer.op == "conv_transpose")
        errors.append(_weight_error(network.weights["1.weight"], parts, method, layer.op))
        graph = concrete(skeleton.unfolded, skeleton, unknowns(policy, network.structure))
        small = reduced(network, policy)
        assert run(graph, small, (x,))[0].shape == module(x).shape
    assert hidden.shape[1] == 12
    assert all(a >= b - 1e-9 for a, b in itertools.pairwise(errors))
    assert errors[0] > 0.05
    assert errors[-1] < 1e-5


def _weight_error(weight: Tensor, parts: list[Tensor], method: str, op: str) -> float:
    """Relative error of the product of the factors."""
    if op == "conv_transpose":
        product = torch.einsum("rc,ro...->co...", parts[0].flatten(1), parts[1])
    elif method == "svd":
        product = torch.einsum("ri...,or->oi...", parts[0], parts[1].flatten(1))
    elif method == "spatial":
        product = torch.einsum("rik,orl->oikl", parts[0][..., 0], parts[1][:, :, 0])
    elif method == "cp":
        first, middle, last = parts
        product = torch.einsum("ri,r...,or->oi...", first.flatten(1), middle[:, 0], last.flatten(1))
    else:
        first, core, last = parts
        product = torch.einsum("ri,sr...,os->oi...", first.flatten(1), core, last.flatten(1))
    return float((product - weight).norm() / weight.norm())


def test_svd_reaches_the_bound_of_eckart_and_young() -> None:
    weight = torch.randn(24, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    s = torch.linalg.svdvals(weight.reshape(24, -1).double())
    for r in (1, 7, 20):
        error = _weight_error(weight, factorize(weight, Factor("svd", (r,))), "svd", "conv")
        assert error == pytest.approx(float(s[r:].norm() / s.norm()), rel=1e-4)
    parts = factorize(weight, Factor("svd", (7,)))
    x = torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(1))
    chained = F.conv2d(F.conv2d(x, parts[0], padding=1), parts[1])
    product = torch.einsum("rikl,or->oikl", parts[0], parts[1][:, :, 0, 0])
    torch.testing.assert_close(chained, F.conv2d(x, product, padding=1), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings(
    "ignore:Trying to compute SVD:UserWarning"
)  # tensorly's way to start above full rank
def test_cp_is_as_good_as_least_squares_from_elsewhere_and_than_decoupling() -> None:
    weight = torch.randn(12, 10, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    cube = weight.reshape(12, 10, 9)
    for r in (6, 15, 30):
        parts = factorize(weight, Factor("cp", (r,)))
        error = _weight_error(weight, parts, "cp", "conv")
        theirs = parafac(cube.numpy(), r, init="random", n_iter_max=60, random_state=0)
        other = np.linalg.norm(cp_to_tensor(theirs) - cube.numpy()) / np.linalg.norm(cube.numpy())
        assert error <= 1.05 * other
        slices = torch.linalg.svdvals(cube.transpose(0, 1)).flatten().sort(descending=True).values
        assert error < float(slices[r:].norm() / slices.norm())  # network decoupling, where it starts
        terms = [p.flatten(1).norm(dim=1) for p in (parts[0], parts[1])]
        torch.testing.assert_close(*terms)  # each term evenly over its factors
    x = torch.randn(2, 10, 9, 9, generator=torch.Generator().manual_seed(1)).double()
    first, middle, last = parts
    chained = F.conv2d(F.conv2d(F.conv2d(x, first), middle, padding=1, stride=2, groups=30), last)
    product = torch.einsum("ri,rkl,or->oikl", first[:, :, 0, 0], middle[:, 0], last[:, :, 0, 0])
    torch.testing.assert_close(chained, F.conv2d(x, product, padding=1, stride=2))


def test_cp_is_asked_for_by_name() -> None:
    structure = network_of("residual").structure

    def offered(*methods: str) -> list[tuple[object, ...]]:
        choices = PolicySpace(structure, Abilities(methods=frozenset(methods))).choices
        return [c.values for c in choices if c.kind == "rank"]

    names = [{v[0] for v in values if isinstance(v, tuple)} for values in offered("factorize")]
    assert set().union(*names) == {"svd", "spatial", "tucker2"}
    assert {v[0] for values in offered("cp") for v in values if isinstance(v, tuple)} == {"cp"}
    both = [values for values in offered("factorize", "cp") if ("cp", 0.25) in values]
    assert len(both) == len(offered("cp")) > 0
    shape = structure.layer["units.2.conv1.0"].weight_shape
    for values in both:
        assert values[-1] is None
        assert ("tucker2", 0.125) in values
    sizes = [
        sum(math.prod(s) for s in factor_shapes(structure.layer["units.2.conv1.0"], shape, Factor(m, rank)))
        for m, ratio in next(c.values[:-1] for c in PolicySpace(
            structure, Abilities(methods=frozenset({"factorize", "cp"}))
        ).choices if c.name == "rank:units.2.conv1.0")
        for rank in [tuple(max(1, round(ratio * r)) for r in full_rank(shape, m))]
    ]  # fmt: skip
    assert sizes == sorted(sizes)  # cheapest first, whatever the schemes' ratios


def test_ranks_that_save_nothing_resolve_to_dense() -> None:
    space = space_of("residual")
    dense = space.resolve(Policy())
    assert dense.factors == {}
    for layer in space.structure.layers:
        methods = {v[0] for c in space.choices if c.kind == "rank" and c.subject == layer.name
                   for v in c.values if isinstance(v, tuple)}  # fmt: skip
        for method in methods:
            at_full = space.resolve(Policy(rank={layer.name: (method, 1.0)}))
            assert at_full == dense
            low = space.resolve(Policy(rank={layer.name: (method, 0.125)})).factors
            if low:
                shapes = factor_shapes(layer, layer.weight_shape, low[layer.name])
                assert sum(map(math.prod, shapes)) < math.prod(layer.weight_shape)
    assert space.resolve(Policy(rank={"stem.0": ("svd", 0.125)})) == dense  # three input channels


def test_factors_of_shared_and_normalised_layers_compute_alike() -> None:
    network = network_of("shared-weights")
    space = space_of("shared-weights")
    policy = space.resolve(Policy(rank={"repeat.0": ("spatial", 0.25), "square": ("svd", 0.25)}))
    assert set(policy.factors) == {"repeat.0", "square"}
    skeleton = network.skeletons.of(policy)
    assert len([n for n in skeleton.graph.nodes if skeleton.layer_of.get(n.name) == "repeat.0"]) == 6
    assert len([n for n in skeleton.graph.nodes if skeleton.layer_of.get(n.name) == "square"]) == 4
    weights = reduced(network, policy)
    assert {w for w in weights if ".factor" in w} == {
        *skeleton.factor_weights["repeat.0"],
        *skeleton.factor_weights["square"],
    }


def test_bad_weights_and_methods_are_refused() -> None:
    weight = torch.zeros(8, 8)
    with pytest.raises(PolicyError, match="Did you mean 'svd'"):
        factorize(weight, Factor("svdd", (2,)))
    weight[0, 0] = float("nan")
    with pytest.raises(NumericsError, match="NaN"):
        factorize(weight, Factor("svd", (2,)))
    silent = factorize(torch.zeros(8, 8), Factor("svd", (2,)))
    assert all(bool((p == 0).all()) for p in silent)


def test_tucker_ranks_stay_within_what_the_other_side_spans() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 256, 3, padding=1))
    network = Network.from_module(module.eval(), (torch.zeros(1, 3, 6, 6),), (torch.randn(8, 3, 6, 6),))
    space = PolicySpace(network.structure, Abilities())
    for ratio in (0.125, 0.5, 0.75):
        resolved = space.resolve(Policy(rank={"2": ("tucker2", ratio)}))
        for factor in resolved.factors.values():
            r_in, r_out = factor.rank
            assert r_out <= 9 * r_in
            assert r_in <= 9 * r_out
        compressed = compress(network, resolved, Numerics())
        assert all(torch.isfinite(w).all() for w in compressed.weights.values())
