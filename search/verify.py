"""Proof that the exported files are the searched network: their answers and kernels in their runtime."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from search.errors import VerificationError
from search.exporters import Exporter, Files, exporter_of
from search.kernels_found import FoundKernel
from search.results import Verification as Facts

if TYPE_CHECKING:
    from torch import Tensor

    from compressors.compressed import Compressed
    from compressors.graph import Node

#: Share of samples whose top-1 answer may differ (one sample is always allowed).
TOP1_SHARE = 0.001
#: Relative root-mean-square error allowed: of float networks, of quantised ones, and of quantised ones whose
#: answers are classes (a code that rounds the other way moves logits, but must not move answers).
FLOAT_ERROR, INTEGER_ERROR, LOGIT_ERROR = 1e-4, 2e-2, 1e-1
#: Relative error allowed of one sample's embedding, a vector of fixed length: a cosine of at least 0.98. Of
#: all embeddings together `LOGIT_ERROR` is allowed.
DIRECTION_ERROR = 0.2
#: Relative spread of lengths below which rows are taken for embeddings of fixed length.
LENGTH_SPREAD = 1e-3
#: Two classes are as good as equal within this share of the deviation of a sample's answers: less than what
#: roundings the other way move. Of quantised networks so many samples may be decided otherwise by that.
TIE, TIES_SHARE = 0.05, 0.05
BATCH = 128


@dataclass(frozen=True)
class Verification:
    """What was found. ``agree`` of ``samples`` give the same answer: the same class, or outputs within
    tolerance; ``ties``: of the others those whose two classes are as good as equal in the searched network;
    ``max_difference`` is absolute, ``relative_error`` root-mean-square over all outputs."""

    samples: int
    agree: int
    max_difference: float
    relative_error: float
    classification: bool
    runtime: str
    kernels_checked: int
    file: str = ""
    ties: int = 0

    @property
    def passed(self) -> bool:
        """Whether the file may be called final."""
        differ = self.samples - self.agree
        if self.classification:
            excused = min(self.ties, math.floor(TIES_SHARE * self.samples))
            return differ - excused <= max(1, math.floor(TOP1_SHARE * self.samples))
        return differ == 0

    def facts(self) -> Facts:
        """As stored in results.json."""
        found = Facts(passed=self.passed, agree=self.agree, samples=self.samples, runtime=self.runtime)
        if self.file:
            found["file"] = self.file
        if not self.classification:
            found["text"] = f"outputs within {self.relative_error:.2g} (relative, root mean square)"
        if self.ties:
            found["ties"] = self.ties
        return found


def verify(
    compressed: Compressed, files: Files | bytes, inputs: Sequence[Tensor], exporter: Exporter | None = None
) -> Verification:
    """Compare the simulation with the runtime's answers on all samples, and kernels with the policy.

    ``files`` are the exporter's, loaded as a user loads them; without an exporter, an ONNX model in
    onnxruntime's default session. ``inputs`` are the validation samples, (N, ...) each. Raises
    VerificationError when answers differ or when a weight-bearing operation does not run in the precision or
    shape of the policy.
    """
    exporter = exporter if exporter is not None else exporter_of("onnxruntime")
    if isinstance(files, bytes):
        files = {exporter.names[0]: files}
    expected, found = _answers(compressed, files, inputs, exporter)
    checked = check_weights(compressed, exporter.kernels(files)) if exporter.executes(compressed) else 0
    result = _compared(expected, found, bool(compressed.activations), checked)
    runtime, apart = exporter.version(), exporter.apart(compressed.numerics) if compressed.activations else ""
    result = replace(result, runtime=f"{runtime} ({apart})" if apart else runtime, file=exporter.names[0])
    if not result.passed:
        differ = result.samples - result.agree
        what = "top-1 answers" if result.classification else "outputs"
        raise VerificationError(
            f"the exported file gives other {what} than the searched network on {differ} of "
            f"{result.samples} samples (largest difference {result.max_difference:.3g}).",
            f"The file is not final; report the policy and the version of {exporter.runtime}.",
        )
    return result


def _answers(
    compressed: Compressed, files: Files, inputs: Sequence[Tensor], exporter: Exporter
) -> tuple[list[Any], list[Any]]:
    import torch

    from compressors.simulate import simulate

    ours: list[list[Any]] = []
    one = 1 if compressed.dynamic else None  # a runtime finds ranges of all that it is given at once
    parts = list(_batches(inputs, compressed.graph.fixed_batch or one))
    with torch.no_grad():
        theirs = list(exporter.answers(files, parts, compressed.graph, compressed.numerics))
        ours = [[t.numpy() for t in simulate(compressed, part)] for part in parts]
    return (
        [np.concatenate(c) for c in zip(*ours, strict=True)],
        [np.concatenate(c) for c in zip(*theirs, strict=True)],
    )


def _batches(inputs: Sequence[Tensor], fixed: int | None) -> Iterator[tuple[Tensor, ...]]:
    step, total = fixed or BATCH, len(inputs[0])
    end = total - total % step if fixed else total
    for i in range(0, end, step):
        yield tuple(x[i : i + step].contiguous() for x in inputs)


def _compared(expected: Sequence[Any], found: Sequence[Any], quantised: bool, checked: int) -> Verification:
    first, other = expected[0], found[0]
    directions = _are_directions(first)
    classification = first.ndim == 2 and first.shape[1] > 1 and not directions
    pairs = [(a, b) for a, b in zip(expected, found, strict=True) if a.dtype.kind == "f"]
    difference = max((float(np.abs(a - b).max(initial=0.0)) for a, b in pairs), default=0.0)
    errors = [_relative(a, b) for a, b in pairs]
    relative = max(errors, default=0.0)
    shapes = all(a.shape == b.shape for a, b in zip(expected, found, strict=True))
    samples, agree, ties = len(first), 0, 0
    if not shapes or not np.isfinite(difference):
        pass
    elif classification:
        if relative <= (LOGIT_ERROR if quantised else FLOAT_ERROR):
            agree = int((first.argmax(1) == other.argmax(1)).sum())
            ties = _ties(first, other) if quantised else 0
    elif directions and quantised:
        each = np.linalg.norm(first - other, axis=1) / np.linalg.norm(first, axis=1)
        agree = int((each <= DIRECTION_ERROR).sum()) if relative <= LOGIT_ERROR else 0
    else:
        agree = samples if relative <= (INTEGER_ERROR if quantised else FLOAT_ERROR) else 0
    return Verification(samples, agree, difference, relative, classification, "", checked, ties=ties)


def _ties(expected: Any, found: Any) -> int:
    """Samples (N, C) of another class whose two classes differ by next to nothing in what is expected."""
    rows = np.arange(len(expected))
    ours, theirs = expected.argmax(1), found.argmax(1)
    margin = expected[rows, ours] - expected[rows, theirs]
    return int(((ours != theirs) & (margin <= TIE * expected.std(axis=1))).sum())


def _are_directions(value: Any) -> bool:
    """Whether an output (N, C) holds vectors of one length, as normalised embeddings do."""
    if value.ndim != 2 or value.shape[1] < 2 or len(value) < 3 or value.dtype.kind != "f":
        return False
    length = np.linalg.norm(value, axis=1)
    return bool(length.std() <= LENGTH_SPREAD * length.mean())


def _relative(expected: Any, found: Any) -> float:
    scale = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64)))) or 1.0
    return float(np.sqrt(np.mean(np.square(expected - found, dtype=np.float64)))) / scale


# -- kernels


def check_weights(compressed: Compressed, kernels: Sequence[FoundKernel]) -> int:
    """Compare precision and shape of every weight-bearing kernel with the policy; returns how many.

    Integer kernels are known by the name of their weight; what is left has to be as many float kernels
    of the same kind as the policy has float layers. Raises VerificationError.
    """
    graph = compressed.graph
    integer = {
        n.inputs[1]: n for n in graph.nodes if n.name in compressed.layer_of and _is_integer(compressed, n)
    }
    seen: set[str] = set()
    floats = 0
    for k in kernels:
        if k.op == "DequantizeLinear" and not k.inputs:
            _refuse(f"the runtime dequantises the weights of {k.name!r} anew in every run")
        if not k.weight_bearing:
            continue
        param = k.weights[0].split("/")[0]
        if k.precision != "int8":
            floats += 1
            continue
        if param not in integer:
            _refuse(f"the runtime executes {k.weights[0]!r} on integers, the policy leaves it in float")
        _check_shape(k, graph.params[param].shape)
        seen.add(param)
    missing = [compressed.layer_of[n.name] for p, n in integer.items() if p not in seen]
    if missing:
        _refuse(f"layer {missing[0]!r} is integer in the policy, but the runtime executes it in float")
    wanted = [n for n in graph.nodes if n.name in compressed.layer_of and not _is_integer(compressed, n)]
    if floats < len(wanted):
        _refuse(f"the policy has {len(wanted)} float weight-bearing operations, the runtime runs {floats}")
    _check_shapes([graph.params[n.inputs[1]].shape for n in wanted], kernels)
    return len(seen) + len(wanted)


def _check_shapes(wanted: Sequence[tuple[int, ...]], kernels: Sequence[FoundKernel]) -> None:
    """Shapes of float weights, where the runtime does not lay them out anew in blocks."""
    plain = [k for k in kernels if k.weight_bearing and k.domain == "ncnn"]
    found = Counter(tuple(sorted(k.weight_shape)) for k in plain)
    missing = Counter(tuple(sorted(shape)) for shape in wanted) - found
    if plain and missing:
        _refuse(f"the policy has a float weight of shape {next(iter(missing))}, the runtime has none such")


def _is_integer(compressed: Compressed, n: Node) -> bool:
    return n.inputs[0] in compressed.activations and n.inputs[1] in compressed.codes


def _check_shape(k: FoundKernel, shape: tuple[int, ...]) -> None:
    if sorted(k.weight_shape) != sorted(shape):
        _refuse(f"weight {k.weights[0]!r} has shape {k.weight_shape} in the runtime, {shape} in the policy")


def _refuse(message: str) -> None:
    raise VerificationError(
        f"{message}.", "The file is not final; report the policy and the version of the runtime."
    )


__all__ = ["Verification", "VerificationError", "check_weights", "verify"]
