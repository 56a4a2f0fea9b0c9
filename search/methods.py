"""What may be done to a network, by name: the methods of `--methods`, and what `search methods` lists."""

from __future__ import annotations

from collections.abc import Iterable

from search.errors import UsageError, did_you_mean

#: Method to one line. Together they are the default.
SUMMARIES = {
    "prune": "channels are removed, group by group",
    "quantize": "weights and activations in integers, as far as the target has kernels for them",
    "factorize": "layers are split by the factorisations marked *",
    "depth": "whole residual blocks are removed",
}
METHODS = tuple(SUMMARIES)


def known_methods() -> tuple[str, ...]:
    """Names that `--methods` takes: `METHODS`, and every factorisation scheme by its own name."""
    from compressors.factors import FACTORISATIONS

    return (*METHODS, *FACTORISATIONS)


def check_methods(names: Iterable[str]) -> None:
    """Raise UsageError with the near match for a name that is no method."""
    known = known_methods()
    for name in names:
        if name not in known:
            near = did_you_mean(name, known)
            raise UsageError(
                f"unknown method {name!r}. {near}".rstrip(),
                f"Methods: {', '.join(known)} (see `search methods`).",
            )


def list_methods() -> list[dict[str, str]]:
    """Everything that is registered: kind, name, one line, and ``default``: "*" where nothing else is said.

    Kinds are named as what chooses them: ``--methods``, ``--set criterion=``, ``ranges=`` and ``scales=``.
    """
    from compressors.factors import FACTORISATIONS
    from compressors.importance import CRITERIA
    from compressors.policy import DYNAMIC, Policy
    from compressors.quantize import RANGES, WEIGHT_SCALES
    from search.ranges import AUTO, STATIC

    usual = Policy()
    found = [_row("method", name, text, True) for name, text in SUMMARIES.items()]
    found += [
        _row("factorisation", n, FACTORISATIONS.summary(n), f.default) for n, f in FACTORISATIONS.items()
    ]
    found += [_row("criterion", n, text, n == usual.criterion) for n, text in CRITERIA.summaries().items()]
    found.append(_row("ranges", AUTO, f"{STATIC}, or {DYNAMIC} where that is no slower and loses less", True))
    found += [_row("ranges", n, text, False) for n, text in RANGES.summaries().items()]
    found += [_row("scales", n, text, n == usual.scales) for n, text in WEIGHT_SCALES.summaries().items()]
    return found


def _row(kind: str, name: str, summary: str, default: bool) -> dict[str, str]:
    return {"kind": kind, "name": name, "default": "*" if default else "", "summary": summary}
