"""Conformance suite for targets: run `check_target` on your own YAML file before you trust its prices.

from hw_profiles.testing import check_target
check_target("my_board.yaml")       # silent, or ConformanceError with everything that is wrong
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from hw_profiles.errors import HwProfilesError
from hw_profiles.kernel import KernelBatch, KernelKind, make_batch
from hw_profiles.predictor import Predictor
from hw_profiles.target import Target, load_target

#: An operation that no runtime has: a cost model must name it and still price it.
NO_SUCH_OP = "ConformanceProbe"
#: More work at the same alignment may come out cheaper by this much: a fit is not exact.
HAIR = 0.02


class ConformanceError(HwProfilesError):
    """A target that breaks the contract; the message lists every failed check."""

    exit_code = 3


def check_target(target: str | Path | Target) -> None:
    """Run every check; raises ConformanceError naming all that fail."""
    loaded = target if isinstance(target, Target) else load_target(target)
    failures = [f"{name}: {message}" for name, check in CHECKS.items() for message in check(loaded)]
    if failures:
        raise ConformanceError(
            f"target {loaded.name!r} fails {len(failures)} checks:\n" + "\n".join(failures)
        )


def sample_batch(target: Target, policies: int = 5, seed: int = 0) -> KernelBatch:
    """A small network's kernels in the target's precisions, (policies, K), widths in steps of 16."""
    rng = np.random.default_rng(seed)
    kinds = tuple(kind for precision in precisions(target) for kind in _template(precision))
    width = 16.0 * rng.integers(1, 9, (policies, 1)).astype(np.float64)
    columns: dict[str, object] = {"batch": float(target.default_batch), "cin": width, "cout": width}
    window = [
        3.0 if k.op in ("Conv", "FusedConv", "QLinearConv", "MaxPool") and "wide" in k.layer else 1.0
        for k in kinds
    ]
    side = [1.0 if "Gemm" in k.op else 14.0 for k in kinds]
    groups = np.where(["thin" in k.layer for k in kinds], width, 1.0)
    columns |= {"kernel_h": window, "kernel_w": window, "out_h": side, "out_w": side, "groups": groups}
    return make_batch(kinds, columns)


def precisions(target: Target) -> tuple[str, ...]:
    """Kernel precisions that the target executes."""
    if target.base_precision == "w8a8":
        return tuple(f"w{w}a{a}" for w, a in target.abilities.integer_precisions)
    return (
        (target.base_precision, "int8") if target.abilities.integer_precisions else (target.base_precision,)
    )


def _template(precision: str) -> tuple[KernelKind, ...]:
    integer = precision == "int8"
    conv, gemm, add = ("QLinearConv", "QGemm", "QLinearAdd") if integer else ("Conv", "Gemm", "Add")
    domain = "com.microsoft" if integer else ""
    return (
        KernelKind(conv, domain, precision, "wide", weight_bearing=True),
        KernelKind(conv, domain, precision, "point", weight_bearing=True),
        KernelKind(conv, domain, precision, "thin wide", weight_bearing=True),
        KernelKind(add, domain, precision, "add"),
        KernelKind("MaxPool", "", precision, "pool wide"),
        KernelKind(gemm, domain, precision, "head", weight_bearing=True),
    )


def _check_sources(target: Target) -> Iterator[str]:
    """Every constant says where it comes from, and the backing says what a prediction rests on."""
    for table, entries in target.cost.constants.items():
        for name, constant in entries.items():
            if len(constant.source.split()) < 2:
                yield f"cost.constants.{table}.{name}: source {constant.source!r} names nothing"
    if len(target.backing.split()) < 3:
        yield f"backing {target.backing!r} does not say what a prediction rests on"


def _check_validation(target: Target) -> Iterator[str]:
    """An error figure comes with the command that prints it; without one the target says unvalidated."""
    validation = target.validation
    if validation.status == "validated" and (validation.median_error is None or not validation.command):
        yield "status is validated, but median_error or command is missing"
    if validation.status == "unvalidated" and validation.median_error is not None:
        yield "status is unvalidated, but a median_error is claimed"


def _check_positive(target: Target) -> Iterator[str]:
    """Latencies are positive and finite, the interval is around them."""
    for threads in sorted({1, target.default_threads}):
        batch = sample_batch(target)
        found = Predictor(target, threads).predict(batch)
        if not (np.isfinite(found.latency_ms).all() and (found.latency_ms > 0.0).all()):
            yield f"latency with {threads=} is not positive: {found.latency_ms.tolist()}"
        if not ((found.low_ms <= found.latency_ms).all() and (found.latency_ms <= found.high_ms).all()):
            yield f"the interval with {threads=} does not contain the latency"
        if (found.kernel_ms <= 0.0).any():
            free = [batch.kinds[k].op for k in np.flatnonzero((found.kernel_ms <= 0.0).any(axis=0))]
            yield f"kernels without a price: {', '.join(sorted(set(free)))}"
        if found.unknown:
            yield f"no model for everyday operations: {', '.join(found.unknown)}"


def _check_monotone(target: Target) -> Iterator[str]:
    """On a CPU more MACs at the same alignment never cost less."""
    if target.kind != "cpu":
        return
    for precision in precisions(target):
        kind = _template(precision)[0]
        width = 16.0 * np.arange(1, 17)[:, None]
        for name, columns in (
            ("output channels", {"cin": 64.0, "cout": width}),
            ("input channels", {"cin": width, "cout": 64.0}),
        ):
            batch = make_batch(
                (kind,), {**columns, "kernel_h": 3.0, "kernel_w": 3.0, "out_h": 14.0, "out_w": 14.0}
            )
            latency = Predictor(target).predict(batch).latency_ms
            if (np.diff(latency) < -HAIR * latency[:-1]).any():
                yield f"{kind.op} {precision}: latency falls with more {name}"


def _check_unknown(target: Target) -> Iterator[str]:
    """An operation without a model is named and priced."""
    batch = make_batch((KernelKind(NO_SUCH_OP),), {"cin": 64.0, "out_h": 28.0, "out_w": 28.0})
    found = Predictor(target).predict(batch)
    if found.unknown != (NO_SUCH_OP,) or NO_SUCH_OP not in found.backing:
        yield f"an unknown operation is not named: unknown={found.unknown}"
    if not float(found.kernel_ms[0, 0]) > 0.0:
        yield "an unknown operation is free"


def _check_rows(target: Target) -> Iterator[str]:
    """Policies priced together and one by one cost the same."""
    batch, predictor = sample_batch(target, seed=1), Predictor(target)
    together = predictor.predict(batch)
    for i in range(len(batch)):
        alone = predictor.predict(batch.row(i))
        single, joint = float(alone.latency_ms[0]), float(together.latency_ms[i])
        if not np.allclose(alone.kernel_ms[0], together.kernel_ms[i], rtol=1e-9):
            yield f"policy {i} costs {single} ms alone, {joint} ms in a batch"
        if together.energy_mj is None or alone.energy_mj is None:
            continue
        if not np.isclose(alone.energy_mj[0], together.energy_mj[i], rtol=1e-9):
            yield f"policy {i} takes other energy alone than in a batch"


def _check_correction(target: Target) -> Iterator[str]:
    """One measurement moves the prediction to it and narrows no interval to nothing."""
    batch, predictor = sample_batch(target, 1), Predictor(target)
    measured = 1.7 * float(predictor.predict(batch).latency_ms[0])
    found = predictor.corrected([(batch, measured)]).predict(batch)
    if not abs(float(found.latency_ms[0]) / measured - 1.0) < 0.1:
        yield f"corrected by {measured} ms it still predicts {float(found.latency_ms[0])} ms"
    if not float(found.low_ms[0]) < float(found.latency_ms[0]) < float(found.high_ms[0]):
        yield "a single measurement leaves no uncertainty"


CHECKS: dict[str, Callable[[Target], Iterator[str]]] = {
    "sources": _check_sources,
    "validation": _check_validation,
    "positive": _check_positive,
    "monotone": _check_monotone,
    "unknown": _check_unknown,
    "rows": _check_rows,
    "correction": _check_correction,
}
