"""Export of the chosen network, with proof: verified answers, kernels found against kernels priced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import summary
from .candidates import Candidate
from .export_onnx import export_model
from .exporters import Files, exporter_of
from .kernels_found import compare
from .results import Results, Verification
from .runfolder import MODEL, POLICY, WEIGHTS, RunFolder
from .score import Score, interval, score_compressed
from .setup import Setup
from .stored import to_bytes
from .timing import TRIES, Stopwatch, measure_models, measures
from .verify import verify

if TYPE_CHECKING:
    from hw_profiles.measure import Measurement


@dataclass(frozen=True)
class Delivered:
    """The delivered candidate, what the runtime said of it, and the files written."""

    candidate: Candidate
    verification: Verification
    test: Score | None
    base_test: Score | None
    files: list[str]
    timings: dict[str, Measurement] = field(default_factory=dict)

    def into(self, results: Results) -> None:
        """Enter verification, test scores, measured latencies and files into the document."""
        results["verification"] = self.verification
        results["files"] = self.files
        point = next(p for p in results["points"] if p["picked"])
        if self.test is not None:
            point["test"] = summary.score_facts(self.test)
        if self.base_test is not None:
            results["base"]["test"] = summary.score_facts(self.base_test)
        for name, found in self.timings.items():
            entry = {"base": results["base"], "picked": point, "int8": results.get("plain_int8")}.get(name)
            if entry is not None:
                entry["measured"] = summary.measured(found.latency_ms, found.load_ms)


def deliver(
    setup: Setup, candidate: Candidate, folder: RunFolder, watch: Stopwatch, event: Callable[..., None]
) -> Delivered:
    """Write a candidate's files after they have been verified in their runtime on the whole validation set.

    Raises VerificationError when answers or kernels are not the policy's: nothing is then called final.
    """
    exporter = exporter_of(setup.target)
    made = exporter.write(candidate.compressed)
    task = setup.task
    proof = verify(candidate.compressed, made, task.validation.inputs, exporter)
    _check_kernels(setup, candidate, made, event)
    timings = _timed(setup, made, watch, event)
    files = write_files(folder, candidate, made)
    test = base_test = None
    if task.test is not None:
        scores = score_compressed(candidate.compressed, task.test, task.metric)
        test = Score(*interval(scores), len(scores), 0.0)
        base_test = _base_test(setup)
    return Delivered(candidate, proof.facts(), test, base_test, files, timings)


def write_files(folder: RunFolder, candidate: Candidate, made: Files) -> list[str]:
    """The runtime's files, policy.json, weights.safetensors; each appears whole or not at all."""
    for name, content in made.items():
        folder.write(name, content)
    folder.write(POLICY, candidate.compressed.policy.to_json() + "\n")
    folder.write(WEIGHTS, to_bytes(candidate.compressed))
    return [*made, POLICY, WEIGHTS]


def _check_kernels(setup: Setup, candidate: Candidate, made: Files, event: Callable[..., None]) -> None:
    """Compare the kernels priced with those in the final files; learn what differs and price again."""
    if setup.target.runtime.templates == "rules":
        return
    policy = candidate.compressed.policy
    priced = setup.lowering.kernels([policy])[0][1].row(0)
    found = exporter_of(setup.target).kernels(made, setup.target.runtime.templates)
    differences = compare(priced, found)
    if not differences:
        return
    before = setup.priced(policy)["latency_ms"]
    setup.lowering.learn(policy, made)
    after = setup.priced(policy)["latency_ms"]
    event(
        "kernels",
        f"{len(differences)} kernels of the file are not those priced ({differences[0]}); "
        f"priced again: {before:.3f} ms → {after:.3f} ms",
    )


def _timed(setup: Setup, made: Files, watch: Stopwatch, event: Callable[..., None]) -> dict[str, Measurement]:
    """The delivered file beside the uncompressed and the all-integer one, interleaved, on the device.

    Other work only ever adds time. So an unsteady measurement, and one that breaks a budget that the policy
    held before, is repeated, and the least counts. What then is over the budget is told as an event.
    """
    if not measures(setup):
        return {}
    from compressors.apply import compress

    network, numerics = setup.scorer.network, setup.scorer.numerics
    space = setup.space
    int8 = space.resolve(space.uniform(1.0, max(space.abilities.act_bits, default=None)))
    models = [export_model(compress(network, p, numerics)) for p in (setup.base_policy, int8)]
    known = setup.measured.get(setup.base_policy.digest)
    best: list[Measurement] = []
    for _ in range(TRIES):
        found = measure_models(setup, [*models, made[MODEL]])
        best = [min(pair, key=lambda m: m.latency_ms) for pair in zip(best or found, found, strict=True)]
        # as every measurement of a run: in units of the uncompressed network's first one
        scaled = best if known is None else [m.scaled(known / best[0].latency_ms) for m in best]
        if watch.within(scaled[-1].latency_ms) and all(m.stable for m in found):
            break
    if not watch.within(scaled[-1].latency_ms):
        event(
            "budget",
            f"the delivered file takes {scaled[-1].latency_ms:.3f} ms at least in {TRIES} measurements, over "
            f"the {watch.limit_ms:.3f} ms it was searched for",
        )
    return dict(zip(("base", "int8", "picked"), scaled, strict=True))


def _base_test(setup: Setup) -> Score:
    from .task import score_network

    task = setup.task
    if task.test is None:
        raise ValueError("the task has no test data")
    scores = score_network(task, task.network, task.test)
    return Score(*interval(scores), len(scores), 0.0)
