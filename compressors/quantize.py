"""Linear quantisation of weights and activations, as the target's runtime rounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .compressed import ActivationCode, Code, DynamicCode, WeightCode
from .errors import NumericsError
from .graph import Graph
from .policy import DYNAMIC
from .registry import Registry
from .resolve import Numerics

#: Values looked at when an activation's range is found.
SAMPLE = 16384
Range = Callable[[Tensor, int, Numerics], tuple[float, float]]
RANGES: Registry[Range] = Registry("range method", ("compressors.quantize",))


def range_method(name: str) -> Callable[[Range], Range]:
    """Register a way to find an activation's range (low, high) from sampled values."""

    def register(function: Range) -> Range:
        RANGES.register(name, function)
        return function

    return register


#: (rows (channels, values), bits, largest code) to one scale a channel, (channels,), positive.
WeightScale = Callable[[Tensor, int, int], Tensor]
WEIGHT_SCALES: Registry[WeightScale] = Registry("weight scale", ("compressors.quantize",))


def weight_scale(name: str) -> Callable[[WeightScale], WeightScale]:
    """Register a way to find the scales of symmetric integer weights."""

    def register(function: WeightScale) -> WeightScale:
        WEIGHT_SCALES.register(name, function)
        return function

    return register


@range_method("minmax")
def minmax(sample: Tensor, bits: int, numerics: Numerics) -> tuple[float, float]:
    """Smallest and largest value seen."""
    return float(sample.min()), float(sample.max())


@range_method(DYNAMIC)
def dynamic(sample: Tensor, bits: int, numerics: Numerics) -> tuple[float, float]:
    """Smallest and largest value of every sample, found when the network runs."""
    return minmax(sample, bits, numerics)


@range_method("percentile")
def percentile(sample: Tensor, bits: int, numerics: Numerics) -> tuple[float, float]:
    """The 0.05 % and 99.95 % quantiles."""
    ends = torch.quantile(sample.double(), torch.tensor([0.0005, 0.9995], dtype=torch.float64))
    return float(ends[0]), float(ends[1])


@range_method("mse")
def mse(sample: Tensor, bits: int, numerics: Numerics) -> tuple[float, float]:
    """The shrunk min-max range whose rounding error on the sample is smallest (Banner et al. 2019)."""
    low, high = float(sample.min()), float(sample.max())
    best, chosen = math.inf, (low, high)
    for shrink in _SHRINKS[8 if bits >= 8 else 4]:
        ends = (low * shrink, high * shrink)
        error = float((sample - fake_quantize(sample, activation_code(ends, bits, numerics))).square().sum())
        if error < best:
            best, chosen = error, ends
    return chosen


_SHRINKS = {8: (1.0, 0.9, 0.8, 0.7), 4: tuple(1.0 - 0.06 * i for i in range(14))}


def sample_of(values: Tensor) -> Tensor:
    """At most `SAMPLE` values of a tensor, evenly spaced, its extremes included."""
    flat = _flat(values.detach())
    if flat.numel() == 0:
        raise NumericsError("an activation to be quantised is empty")
    if flat.numel() <= SAMPLE:
        return flat
    step = flat.numel() // SAMPLE
    while math.gcd(step, math.prod(values.shape[1:])) != 1:  # else some channels or columns are never seen
        step -= 1
    return torch.cat([flat[::step], *(end[None] for end in torch.aminmax(flat))])


def _flat(values: Tensor) -> Tensor:
    """All values in the order of memory, without a copy where they are dense."""
    if values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last):
        values = values.permute(0, 2, 3, 1)
    return values.reshape(-1)


def find_code(values: Tensor, bits: int, numerics: Numerics, method: str) -> ActivationCode:
    """Quantiser for an activation seen on calibration data."""
    found = RANGES.find(method)
    sample = sample_of(values)
    _check_finite(sample)
    return activation_code(found(sample, bits, numerics), bits, numerics)


def code_of(values: Tensor, bits: int, numerics: Numerics, method: str, graph: Graph, tensor: str) -> Code:
    """As `find_code`, or a code without a range where ``method`` leaves that to the runtime."""
    if method != DYNAMIC:
        return find_code(values, bits, numerics, method)
    if numerics.activations != "u8-affine":
        raise NumericsError(f"dynamic ranges are u8-affine, this runtime rounds to {numerics.activations}")
    _check_finite(sample_of(values))
    return DynamicCode.of(bits, graph, tensor)


def _check_finite(sample: Tensor) -> None:
    if not bool(torch.isfinite(sample).all()):
        raise NumericsError("an activation to be quantised holds NaN or infinite values")


def activation_code(ends: tuple[float, float], bits: int, numerics: Numerics) -> ActivationCode:
    """Quantiser for a range (low, high); zero is always a code (Jacob et al. 2018, eq. 1)."""
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    if numerics.activations == "u8-affine":
        steps = (1 << bits) - 1
        scale = _float32(max(high - low, 1e-8) / steps)
        zero = min(max(round(-low / scale), 0), steps)
        return ActivationCode(scale, zero, bits, 0, steps)
    most = (1 << (bits - 1)) - 1
    scale = max(-low, high, 1e-8) / most
    if numerics.activations == "power-of-two":
        scale = 2.0 ** math.ceil(math.log2(scale))
    return ActivationCode(_float32(scale), 0, bits, -most if numerics.narrow else -most - 1, most)


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


def fake_quantize(x: Tensor, code: Code) -> Tensor:
    """Round to the nearest code as ONNX QuantizeLinear does, saturate, and back to float.

    x is divided by the scale (not multiplied with its inverse), rounded with ties to even, then shifted by
    the zero point: inputs that lie on a grid are often exact ties. Gradients pass straight through inside
    the range and are zero outside.
    """
    if isinstance(code, DynamicCode):
        codes, scale = dynamic_codes(x, code)
        rounded = codes.mul_(scale)
        return x + (rounded - x).detach() if torch.is_grad_enabled() and x.requires_grad else rounded
    low, high = code.low - code.zero_point, code.high - code.zero_point
    rounded = torch.div(x.detach(), code.scale).round_().clamp_(low, high).mul_(code.scale)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return rounded
    inside = x.clamp(low * code.scale, high * code.scale)
    return inside + (rounded - inside).detach()


def dynamic_codes(x: Tensor, code: DynamicCode) -> tuple[Tensor, Tensor]:
    """Codes less their zero point, shaped as x, and the scale of every sample, which broadcasts to x.

    scale = (high - low) / (2^bits - 1), zero point = round(-low / scale), low <= 0 <= high (ONNX operator
    DynamicQuantizeLinear); scale 1 where all values are 0, as onnxruntime has it.
    """
    x = x.detach()
    rows = x.reshape(1, -1)
    if code.axis is not None:
        rows = x.movedim(code.axis, 0).reshape(
            code.runs, -1, code.units // code.runs, rows.shape[1] // x.shape[code.axis]
        )
        rows = rows.movedim(1, 0).flatten(1)
    low, high = torch.aminmax(rows, dim=1)
    low, high = low.clamp_max(0.0), high.clamp_min(0.0)
    scale = torch.where(high > low, (high - low) / code.high, 1.0)
    zero = torch.round(-low / scale).clamp_(0, code.high)
    if code.axis is not None:
        wide = [-1 if d == code.axis else 1 for d in range(x.dim())]
        along = (code.runs, len(scale), code.units // code.runs)
        scale, zero = (v[None, :, None].expand(along).reshape(wide) for v in (scale, zero))
    return torch.div(x, scale).round_().clamp_(-zero, code.high - zero), scale


def quantize_weight(
    weight: Tensor, bits: int, axis: int, numerics: Numerics, method: str = "mse"
) -> tuple[Tensor, WeightCode]:
    """Rounded weight and its quantiser: symmetric, one scale an output channel, found by ``method``."""
    if not bool(torch.isfinite(weight).all()):
        raise NumericsError("a weight to be quantised holds NaN or infinite values")
    high = max(1, (1 << (bits - 1 - numerics.weight_reserve)) - 1)
    rows = weight.detach().transpose(0, axis).reshape(weight.shape[axis], -1)
    scale = WEIGHT_SCALES.find(method)(rows, bits, high)
    shape = [1] * weight.dim()
    shape[axis] = -1
    wide = scale.reshape(shape)
    codes = torch.clamp(torch.round(weight.detach() / wide), -high, high)
    return codes * wide, WeightCode(scale, axis, bits, high)


def _largest(rows: Tensor) -> Tensor:
    return rows.abs().amax(1).clamp_min(1e-12)


@weight_scale("mse")
def least_squares_scale(rows: Tensor, bits: int, high: int) -> Tensor:
    """The scale with the least squared rounding error below 8 bits; at 8 bits that of the largest weight."""
    top = _largest(rows)
    chosen = top / high
    if bits >= 8:
        return chosen
    best = torch.full_like(top, math.inf)
    for i in range(24):
        scale = top * (1.0 - 0.03 * i) / high
        codes = torch.clamp(torch.round(rows / scale[:, None]), -high, high)
        error = (rows - codes * scale[:, None]).square().sum(1)
        better = error < best
        best = torch.where(better, error, best)
        chosen = torch.where(better, scale, chosen)
    return chosen


@weight_scale("largest")
def largest_scale(rows: Tensor, bits: int, high: int) -> Tensor:
    """The scale at which the largest weight of a channel is the largest code; nothing is clipped."""
    return _largest(rows) / high


def quantize_bias(bias: Tensor, input_scale: float, weight: WeightCode, bits: int) -> tuple[Tensor, Tensor]:
    """Bias rounded to integers of scale input_scale * weight scale, and that scale per channel."""
    scale = weight.scale * input_scale
    limit = float((1 << (bits - 1)) - 1)
    codes = torch.clamp(torch.round(bias.detach().double() / scale.double()), -limit, limit)
    return (codes * scale.double()).to(bias.dtype), scale
