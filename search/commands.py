"""What is done with results and single networks: predict, apply, measure, export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressors.apply import compress
from compressors.policy import ResolvedPolicy
from hw_profiles.predictor import Predictor
from hw_profiles.target import load_target

from . import summary
from .candidates import Candidate, score_now
from .config import RunConfig, make_config, read_yaml
from .errors import DeviceError, InputError, UsageError
from .export_onnx import export_model
from .exporters import exporter_of
from .kernels_found import compare
from .results import Applied, Event, KernelTime, Measurement, Prediction, Timing, read_results
from .runfolder import CONFIG, MODEL, POLICY, WEIGHTS, RunFolder, claim, recovered_name
from .safe_json import read_json
from .setup import Setup, load_setup
from .stored import from_file
from .templates import stand_in
from .threads import single_threaded
from .verify import verify

if TYPE_CHECKING:
    from compressors.compressed import Compressed
    from hw_profiles.devices.contract import Device

    from .task import Task

#: Timed runs of one network, and how long a board warms up before it is timed.
RUNS = 200
SOAK_SECONDS = 60.0


def predict(onnx: Path, target: str, threads: int | None = None, batch: int | None = None) -> Prediction:
    """Price any ONNX file on a target. Raises InputError, target and lowering errors."""
    from .lowering_onnx import predict_onnx

    if not onnx.is_file():
        raise InputError(f"there is no file {str(onnx)!r}.")
    device = load_target(target)
    predictor = Predictor(device, threads)
    found, memory, size = predict_onnx(onnx, device, batch or device.default_batch)
    prediction = predictor.predict(found)
    costs = {
        "latency_ms": float(prediction.latency_ms[0]),
        "latency_low_ms": float(prediction.low_ms[0]),
        "latency_high_ms": float(prediction.high_ms[0]),
        "memory_bytes": memory,
        "size_bytes": size,
        "macs": float(found.macs().sum()) / (batch or device.default_batch),
    }
    if prediction.energy_mj is not None:
        costs["energy_mj"] = float(prediction.energy_mj[0])
    kernels = [
        KernelTime(kernel=k.op, precision=k.precision, latency_ms=float(ms), layer=k.layer or None)
        for k, ms in zip(found.kinds, prediction.kernel_ms[0], strict=True)
    ]
    return Prediction(
        onnx=str(onnx),
        target=device.name,
        threads=predictor.threads or 1,
        batch=batch or device.default_batch,
        costs=summary.numbers(costs),
        confidence=summary.CONFIDENCE,
        backing="; ".join(filter(None, (prediction.backing, stand_in(device)))),
        validated=device.validation.status == "validated",
        kernels=kernels,
        unknown=list(prediction.unknown),
    )


def read_policy(path: Path) -> ResolvedPolicy:
    """A policy file, checked. Raises InputError, PolicyError."""
    return ResolvedPolicy.from_dict(read_json(path))


@single_threaded
def apply_policy(policy: Path, config: RunConfig, out: Path) -> Applied:
    """Make a network from its policy alone, export and verify it. Raises PolicyError when it does not fit."""
    resolved = read_policy(policy)
    setup = load_setup(config)
    setup.space.check(resolved)
    folder = RunFolder(claim(out, again=True))
    compressed = compress(setup.scorer.network, resolved, setup.scorer.numerics)
    return _apply(setup, compressed, folder)


def _apply(setup: Setup, compressed: Compressed, folder: RunFolder) -> Applied:
    from agents.contract import Outcome

    from .deliver import write_files

    exporter = exporter_of(setup.target)
    made = exporter.write(compressed)
    proof = verify(compressed, made, setup.task.validation.inputs, exporter)
    score = score_now(setup, compressed)
    costs = setup.priced(compressed.policy)
    outcome = Outcome(compressed.policy, score.value, costs)
    events: list[Event] = []
    if setup.target.runtime.templates != "rules":
        priced = setup.lowering.kernels([compressed.policy])[0][1].row(0)
        events = [
            Event(kind="kernels", text=str(d))
            for d in compare(priced, exporter.kernels(made, setup.target.runtime.templates))
        ]
    files = write_files(folder, Candidate(outcome, compressed, score, False), made)
    return Applied(
        digest=compressed.policy.digest,
        costs=summary.numbers(costs),
        validation=summary.score_facts(score),
        verification=proof.facts(),
        metric=setup.task.metric.name,
        metric_unit=setup.task.metric.unit,
        events=events,
        files=files,
    )


def _without_host(folder: RunFolder) -> RunConfig:
    """A run's config less its device, which need not be there any more, and whose token is stored nowhere."""
    return make_config({**read_yaml(folder.config), "host": None})


@single_threaded
def export_point(run: Path, number: int, out: Path | None, task: Task | None = None) -> tuple[Applied, Path]:
    """Export point ``number`` of a run's front into ``out``, by default a folder of the run's.

    Recovered networks are exported as they were recovered. ``task``: the run's, where its config cannot
    build it again.
    """
    folder = RunFolder(run)
    results = read_results(folder.results)
    point = next((p for p in results["points"] if p["number"] == number), None)
    if point is None:
        raise InputError(f"run {folder.id} has no point {number}.", f"It has 1 to {len(results['points'])}.")
    setup = load_setup(_without_host(folder), task)
    resolved = ResolvedPolicy.from_dict(point.get("policy"))
    where = out if out is not None else run / f"point-{number}"
    target = RunFolder(claim(where, again=True))
    stored = folder.file(WEIGHTS) if point["picked"] else folder.file(recovered_name(resolved.digest))
    if stored.is_file():
        compressed = from_file(stored, setup.scorer.network, setup.scorer.numerics)
    else:
        compressed = compress(setup.scorer.network, resolved, setup.scorer.numerics)
    return _apply(setup, compressed, target), where


@single_threaded
def measure_run(
    what: str,
    threads: int | None = None,
    batch: int | None = None,
    host: str | None = None,
    token: str | None = None,
    soak_seconds: float | None = None,
    accept_unstable: bool = False,
) -> Measurement:
    """Time a run's networks (uncompressed, all-integer, delivered), or one ONNX file, here or on a device.

    ``soak_seconds``: run the networks so long first, so that a board is as warm as in use; by default a
    minute on another device, nothing here. Raises DeviceError (exit 5) for one that cannot be reached or is
    too unsteady, unless ``accept_unstable``.
    """
    from hw_profiles.devices.opening import open_device

    path = Path(what)
    if path.suffix == ".onnx":
        if not path.is_file():
            raise InputError(f"there is no file {what!r}.")
        from .onnx_input import check_onnx

        check_onnx(path)
        found = _ToTime([path.name], [path.read_bytes()], [None], None, threads or 1, "local")
    else:
        found = _of_run(RunFolder.find(what), threads, batch, host is None)
    soak = soak_seconds if soak_seconds is not None else (0.0 if host is None else SOAK_SECONDS)
    with open_device("local" if host is None else found.target, host, token) as device:
        return _timed_on(device, found, batch or 1, soak, host is None, accept_unstable or host is None)


@dataclass(frozen=True)
class _ToTime:
    """Networks to be timed, each with its name and prediction; one feed for all."""

    names: list[str]
    models: list[bytes]
    predicted: list[float | None]
    feed: dict[str, Any] | None
    threads: int
    target: str
    apart: str = ""  # why the run's predictions are of something else


def _timed_on(
    device: Device, found: _ToTime, batch: int, seconds: float, here: bool, accept: bool
) -> Measurement:
    from hw_profiles.devices.contract import Work
    from hw_profiles.devices.soak import soak
    from hw_profiles.errors import DeviceError as LostError

    works = [
        Work(name, model, found.threads, RUNS, inputs=found.feed)
        for name, model in zip(found.names, found.models, strict=True)
    ]
    if device.unit != "ms":
        raise UsageError(
            f"the device counts {device.unit}, not time.", "Give the address of a board: --host."
        )
    facts = device.facts()
    try:
        rows = soak(device, works, seconds)
    except LostError as problem:
        if here:  # this machine is not lost: the file is to blame
            raise InputError(str(problem)) from problem
        raise
    unstable = next((r.why for r in rows if not r.stable), None)
    if unstable is not None and not accept:
        raise DeviceError(
            f"{facts.device} measures too unsteadily: {unstable}.",
            "Free it of other work, cool it, or keep such measurements with --accept-unstable.",
        )
    document = Measurement(
        device=facts.device,
        runtime=f"{facts.runtime} {facts.runtime_version}",
        threads=found.threads,
        batch=batch,
        repeats=RUNS,
        soak_seconds=seconds,
        throttled=rows[0].throttled_share,
        stable=unstable is None,
        networks=[
            Timing(
                name=r.key,
                load_ms=r.load_ms or 0.0,
                p50_ms=r.p50_ms,
                p95_ms=r.p95_ms,
                min_cpu_ms=r.best_ms,
                memory_bytes=r.peak_memory_bytes,
                predicted_ms=predicted,
            )
            for r, predicted in zip(rows, found.predicted, strict=True)
        ],
    )
    if found.apart:
        document["apart"] = found.apart
    if unstable is not None:
        document["why"] = unstable
    return document


def _of_run(folder: RunFolder, threads: int | None, batch: int | None, here: bool) -> _ToTime:
    results = read_results(folder.results)
    model = folder.file(MODEL)
    runtime = load_target(read_yaml(folder.file(CONFIG))["target"][0]).runtime.name
    if not model.is_file() and MODEL not in exporter_of(runtime).names:
        raise InputError(
            f"run {folder.id} is for {runtime}; `search measure` times onnxruntime's files only."
        )
    if not model.is_file():
        raise InputError(f"run {folder.id} holds no {MODEL}.", f"Finish it with --resume {folder.path}.")
    setup = load_setup(_without_host(folder))
    space = setup.space
    int8 = space.resolve(space.uniform(1.0, max(space.abilities.act_bits, default=None)))
    network, numerics = setup.scorer.network, setup.scorer.numerics
    models = [export_model(compress(network, p, numerics)) for p in (setup.base_policy, int8)]
    policy = read_policy(folder.file(POLICY))
    elsewhere = here and setup.target.name != "local"
    counted = threads or (1 if elsewhere else setup.config.threads or setup.target.default_threads)
    apart = _apart(setup, counted, batch or 1, here)
    predicted: list[float | None] = [
        None if apart else setup.predicted_of(p)["latency_ms"] for p in (setup.base_policy, int8, policy)
    ]
    feed = {
        name: x[:1].expand(batch or 1, *x.shape[1:]).contiguous().numpy()
        for name, x in zip(space.structure.graph.inputs, setup.task.example, strict=True)
    }
    target = results["target"]["name"]
    return _ToTime(
        ["uncompressed", "all-integer", folder.id],
        [*models, model.read_bytes()],
        predicted,
        feed,
        counted,
        target,
        apart,
    )


def _apart(setup: Setup, threads: int, batch: int, here: bool) -> str:
    """What a run's predictions are of, where that is not what is timed; "" where both can be compared."""
    from hw_profiles.devices.local import LocalDevice

    target, config = setup.target, setup.config
    meant = config.threads or target.default_threads
    if here and target.name != "local":
        with LocalDevice() as device:
            if device.facts().isa != target.isa:
                return f"{target.name}, not this machine"
    if (threads, batch) != (meant, setup.lowering.batch):
        return f"{meant} thread{'s' * (meant > 1)} and batch {setup.lowering.batch}"
    return ""


__all__ = ["apply_policy", "export_point", "measure_run", "predict", "read_policy"]
