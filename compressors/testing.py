"""Conformance suites: what any registered compressor of each kind has to fulfil.

Run them from a test of your own, e.g. ``check_criterion("my-criterion")`` after the module that registers
it was imported. Each raises `ConformanceError` naming the first rule that does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CompressorError, near
from .execute import run
from .factorize import factorize
from .factors import FACTORISATIONS, factor_shapes
from .graph import ChannelGroup, Structure
from .importance import CRITERIA, Evidence, scores
from .network import Network
from .policy import Factor, Policy, ResolvedPolicy
from .quantize import RANGES, WEIGHT_SCALES, activation_code, fake_quantize, quantize_weight
from .registry import Registry
from .resolve import Numerics
from .skeleton import concrete, unknowns
from .space import Abilities, PolicySpace


class ConformanceError(CompressorError):
    """A registered compressor breaks a rule of its kind."""


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise ConformanceError(rule)


def _registered(name: str, known: Registry[Any]) -> None:
    """The name is there, fits on a command line, and one line says what it stands for."""
    kind = known.kind
    _require(name in known, f"{kind} {name!r} is not registered.{near(name, known)}")
    plain = name.replace("-", "").isalnum() and name.isascii() and name == name.lower()
    _require(plain, f"{kind} {name!r}: a name has lower-case letters, digits and hyphens")
    summary = known.summary(name)
    _require(
        0 < len(summary) <= 120, f"{kind} {name!r}: its docstring begins with {summary!r}, not with a line"
    )


# -- importance criteria


class _Example(nn.Module):
    """Convolutions with and without batch-norm, depthwise, residual add, flatten into linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.branch = nn.Conv2d(12, 12, 1)
        self.hidden, self.head = nn.Linear(12 * 4, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 3, 8, 8) to (b, 5)."""
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.branch(torch.relu(self.depthwise(x)))
        x = nn.functional.max_pool2d(x, 4).flatten(1)
        answer: Tensor = self.head(torch.relu(self.hidden(x)))
        return answer


def _example() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = _Example().eval()
        with torch.no_grad():
            module.norm.weight.uniform_(0.2, 2.0)
        return Network.from_module(module, (torch.randn(2, 3, 8, 8),), (torch.randn(32, 3, 8, 8),))


def check_criterion(name: str) -> None:
    """One finite score a unit; the same every time; weights untouched; no matter how channels are ordered."""
    _registered(name, CRITERIA)
    network = _example()
    before = {k: v.clone() for k, v in network.weights.items()}
    for group in network.structure.groups:
        found = scores(network.evidence, group, name)
        where = f"criterion {name!r}, group {group.name!r}:"
        _require(
            tuple(found.shape) == (group.size,), f"{where} shape {tuple(found.shape)}, not ({group.size},)"
        )
        _require(found.is_floating_point(), f"{where} scores are {found.dtype}, not floating point")
        _require(not found.requires_grad, f"{where} scores carry gradients")
        _require(bool(torch.isfinite(found).all()), f"{where} a score is NaN or infinite")
        again = scores(network.evidence, group, name)
        _require(bool(torch.equal(found, again)), f"{where} two calls differ")
        alone = scores(Evidence(network.structure, network.weights), group, name)
        _require(bool(torch.isfinite(alone).all()), f"{where} a score without gradients is NaN or infinite")
        _require(tuple(alone.shape) == (group.size,), f"{where} scores without gradients have another shape")
        order = torch.arange(group.size).flip(0)
        turned = scores(_reordered(network, group, order).evidence, group, name)
        scale = float(found.abs().max().clamp_min(1e-12))
        _require(
            float((turned - found[order]).abs().max()) <= 1e-3 * scale,
            f"{where} scores depend on the order in which channels are stored",
        )
    same = all(torch.equal(network.weights[k], v) for k, v in before.items())
    _require(same, f"criterion {name!r} changed the weights")


def _reordered(network: Network, group: ChannelGroup, order: Tensor) -> Network:
    """The same network with a group's units stored in another order: unit i is what order[i] was."""
    weights = dict(network.weights)
    for (name, dim), marks in group.slices.items():
        if name not in weights:
            continue
        places = [[p for p, m in enumerate(marks) if m == u] for u in range(group.size)]
        source = torch.arange(len(marks))
        for i, was in enumerate(order.tolist()):
            source[places[i]] = torch.tensor(places[was])
        weights[name] = weights[name].index_select(dim, source)
    return Network(network.structure, weights, network.calibration, network.skeletons)


# -- activation ranges


def _samples() -> Iterator[tuple[str, Tensor]]:
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(4000, generator=g)
    yield "normal", normal
    yield "positive", normal.relu()
    yield "negative", -normal.abs() - 0.1
    yield "with an outlier", torch.cat([normal, torch.tensor([50.0])])
    yield "constant", torch.full((100,), 0.7)
    yield "zero", torch.zeros(100)
    yield "one value", torch.tensor([-3.0])
    yield "tiny", normal * 1e-6
    yield "huge", normal * 1e6


def check_range(name: str) -> None:
    """An ordered, finite range inside the values seen; the same every time; useful at 8 bits."""
    _registered(name, RANGES)
    for scheme in ("u8-affine", "s8-symmetric", "power-of-two"):
        numerics = Numerics(activations=scheme)
        for bits in range(2, 9):
            for what, sample in _samples():
                _check_range_on(
                    name, sample, bits, numerics, f"range {name!r}, {scheme}, {bits} bits, {what}:"
                )
        _, normal = next(_samples())
        coarse, fine = (_range_error(name, normal, bits, numerics) for bits in (4, 8))
        _require(fine <= 0.05, f"range {name!r}, {scheme}: 8 bits lose {fine:.1%} of a normal sample")
        _require(fine <= coarse, f"range {name!r}, {scheme}: 8 bits lose more than 4")


def _check_range_on(name: str, sample: Tensor, bits: int, numerics: Numerics, where: str) -> None:
    before = sample.clone()
    low, high = RANGES[name](sample, bits, numerics)
    ends = torch.tensor([low, high], dtype=torch.float64)
    _require(bool(torch.isfinite(ends).all()), f"{where} the range is ({low}, {high})")
    _require(low <= high, f"{where} the range ({low}, {high}) is upside down")
    slack = 1e-5 * float(sample.abs().max()) + 1e-12
    inside = low >= min(float(sample.min()), 0.0) - slack and high <= max(float(sample.max()), 0.0) + slack
    _require(inside, f"{where} ({low}, {high}) is outside the values seen")
    _require(RANGES[name](sample, bits, numerics) == (low, high), f"{where} two calls differ")
    _require(bool(torch.equal(sample, before)), f"{where} the sample was changed")


def _range_error(name: str, sample: Tensor, bits: int, numerics: Numerics) -> float:
    code = activation_code(RANGES[name](sample, bits, numerics), bits, numerics)
    return float((fake_quantize(sample, code) - sample).norm() / sample.norm())


# -- scales of weights


def check_weight_scale(name: str) -> None:
    """One positive finite scale a channel, by that channel alone; the same every time; useful at 8 bits."""
    _registered(name, WEIGHT_SCALES)
    g = torch.Generator().manual_seed(3)
    rows = torch.randn(12, 90, generator=g) * torch.logspace(-3, 3, 12)[:, None]
    rows[3], rows[4, 1:], rows[5, 0] = 0.0, 0.0, 40.0 * rows[5].abs().max()
    for reserve in (0, 1):
        errors = []
        for bits in range(2, 9):
            high = max(1, (1 << (bits - 1 - reserve)) - 1)
            where = f"weight scale {name!r}, {bits} bits, largest code {high}:"
            _check_scale_on(name, rows, bits, high, where)
            normal = torch.randn(16, 256, generator=torch.Generator().manual_seed(4))
            rounded, _ = quantize_weight(normal, bits, 0, Numerics(weight_reserve=reserve), name)
            errors.append(float((rounded - normal).norm() / normal.norm()))
        _require(errors[-1] <= 0.02, f"weight scale {name!r}: 8 bits lose {errors[-1]:.1%} of normal weights")
        _require(errors[-1] <= errors[2], f"weight scale {name!r}: 8 bits lose more than 4")


def _check_scale_on(name: str, rows: Tensor, bits: int, high: int, where: str) -> None:
    before, function = rows.clone(), WEIGHT_SCALES[name]
    scale = function(rows, bits, high)
    _require(
        tuple(scale.shape) == rows.shape[:1], f"{where} shape {tuple(scale.shape)}, not {rows.shape[:1]}"
    )
    _require(scale.dtype == rows.dtype, f"{where} scales are {scale.dtype}")
    fine = bool(torch.isfinite(scale).all()) and bool((scale > 0).all())
    _require(fine, f"{where} a scale is not positive and finite")
    _require(bool(torch.equal(function(rows, bits, high), scale)), f"{where} two calls differ")
    alone = torch.cat([function(row[None], bits, high) for row in rows])
    same = bool(torch.allclose(alone, scale, rtol=1e-5, atol=0.0))
    _require(same, f"{where} a channel's scale depends on other channels")
    _require(bool(torch.equal(rows, before)), f"{where} the weights were changed")


# -- factorisations


def _layers() -> Iterator[tuple[str, nn.Module, Tensor]]:
    g = torch.Generator().manual_seed(1)
    image, signal = torch.randn(2, 3, 9, 11, generator=g), torch.randn(2, 3, 24, generator=g)

    def between(middle: nn.Module, edge: type[nn.Conv1d] | type[nn.Conv2d]) -> nn.Module:
        return nn.Sequential(edge(3, 12, 1), middle, edge(16, 2, 1)).eval()

    yield "3x3", between(nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d), image
    yield "strided", between(nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.Conv2d), image
    yield "3x5 dilated", between(nn.Conv2d(12, 16, (3, 5), padding=2, dilation=(2, 1)), nn.Conv2d), image
    yield "4x4", between(nn.Conv2d(12, 16, 4, stride=2, padding=1, bias=False), nn.Conv2d), image
    yield "1x1", between(nn.Conv2d(12, 16, 1), nn.Conv2d), image
    yield "conv1d", between(nn.Conv1d(12, 16, 5, padding=2), nn.Conv1d), signal
    yield "transposed", between(nn.ConvTranspose2d(12, 16, 4, stride=2, padding=1), nn.Conv2d), image
    linear = nn.Sequential(nn.Linear(24, 12), nn.Linear(12, 16), nn.Linear(16, 2)).eval()
    yield "linear", linear, signal


def check_factorisation(name: str) -> None:
    """Factors of the announced shapes, finite, the same every time; exact at full rank; better with rank.

    Every kind of layer the policy space offers the method for is tried; there has to be one.
    """
    _registered(name, FACTORISATIONS)
    ratios = FACTORISATIONS[name].ratios
    ordered = len(ratios) > 0 and all(1 > a > b > 0 for a, b in pairwise((*ratios, ratios[-1] / 2)))
    _require(ordered, f"factorisation {name!r}: ratios {ratios} do not fall from below 1 to above 0")
    tried = 0
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(2)
        for what, module, x in _layers():
            network = Network.from_module(module, (x,), (x,))
            if _offers(network.structure, name):
                tried += 1
                _check_layer(name, network, module, x, f"factorisation {name!r}, {what}:")
    _require(tried > 0, f"the policy space offers factorisation {name!r} for no layer")


def _offers(structure: Structure, name: str) -> bool:
    choices = PolicySpace(structure, Abilities(methods=frozenset({name}))).choices
    return any(c.kind == "rank" and c.subject == "1" for c in choices)


def _check_layer(name: str, network: Network, module: nn.Module, x: Tensor, where: str) -> None:
    layer = network.structure.layer["1"]
    weight, turned = network.weights[layer.weight], layer.op == "conv_transpose"
    scheme = FACTORISATIONS[name]
    top = scheme.full_rank(layer.weight_shape)
    _require(len(top) == scheme.ranks, f"{where} it has {len(top)} ranks, not {scheme.ranks}")
    expected: Tensor = module(x)
    errors = []
    for share in (0.25, 0.5, 0.75, 1.0):
        rank = scheme.within(layer.weight_shape, tuple(max(1, round(share * r)) for r in top))
        factor = Factor(name, rank)
        parts = factorize(weight, factor, turned)
        said = factor_shapes(layer, layer.weight_shape, factor)
        _require([tuple(p.shape) for p in parts] == said, f"{where} shapes are not those announced, {said}")
        _require(_sizes_agree(network, factor, said), f"{where} sizes in the network are not {said}")
        fine = all(p.dtype == weight.dtype and bool(torch.isfinite(p).all()) for p in parts)
        _require(fine, f"{where} a factor is not finite, or not of the weight's type")
        again = factorize(weight, factor, turned)
        same = all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))
        _require(same, f"{where} two calls differ")
        found = _answer(network, factor, parts, x)
        _require(found.shape == expected.shape, f"{where} the output has shape {tuple(found.shape)}")
        errors.append(float((found - expected).norm() / expected.norm()))
    _require(errors[-1] <= 1e-4, f"{where} full rank is off by {errors[-1]:.1e}")
    _require(
        all(b <= a * 1.05 + 1e-5 for a, b in pairwise(errors)), f"{where} the error grows with rank: {errors}"
    )
    silent = factorize(torch.zeros_like(weight), Factor(name, tuple(1 for _ in top)), turned)
    _require(all(bool(torch.isfinite(p).all()) for p in silent), f"{where} zero weights")


def _only(network: Network, factor: Factor) -> ResolvedPolicy:
    """Layer "1" at exactly this rank, all else as it was."""
    dense = PolicySpace(network.structure, Abilities()).resolve(Policy())
    policy = ResolvedPolicy(dense.network, dense.kept, {"1": factor}, dense.weight_bits, dense.act_bits)
    PolicySpace(network.structure, Abilities()).check(policy)
    return policy


def _sizes_agree(network: Network, factor: Factor, said: list[tuple[int, ...]]) -> bool:
    policy = _only(network, factor)
    skeleton = network.skeletons.of(policy)
    graph = concrete(skeleton.graph, skeleton, unknowns(policy, network.structure))
    return [graph.params[w].shape for w in skeleton.factor_weights["1"]] == said


def _answer(network: Network, factor: Factor, parts: list[Tensor], x: Tensor) -> Tensor:
    policy = _only(network, factor)
    skeleton = network.skeletons.of(policy)
    graph = concrete(skeleton.unfolded, skeleton, unknowns(policy, network.structure))
    weights = {**network.weights, **dict(zip(skeleton.factor_weights["1"], parts, strict=True))}
    return run(graph, weights, (x,))[0]


#: What an author runs on everything of a kind that is registered.
CHECKS: Mapping[str, tuple[Registry[Any], Callable[[str], None]]] = {
    "factorisation": (FACTORISATIONS, check_factorisation),
    "criterion": (CRITERIA, check_criterion),
    "ranges": (RANGES, check_range),
    "scales": (WEIGHT_SCALES, check_weight_scale),
}

__all__ = [
    "CHECKS",
    "ConformanceError",
    "check_criterion",
    "check_factorisation",
    "check_range",
    "check_weight_scale",
]
