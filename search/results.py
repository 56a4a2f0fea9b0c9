"""What a run found, as one JSON document: `results.json`.

The command line and the report are drawn from this document alone, so that they say the same at any
later time. Every cost says where it comes from: `predicted` by a cost model, `measured`, or `exact` (it
follows from the policy, such as MACs). Accuracies are always measured, on the split that their key
names. A metric's value is in the metric's own unit (0..1 for top-1), drops are in points (0.01 of that
unit, larger is worse).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict  # pydantic cannot check typing's before Python 3.12

from search.errors import InputError
from search.safe_json import read_json

SCHEMA_VERSION = 1
#: Bytes of a file that is read: a run of a hundred thousand evaluations has a tenth.
RESULTS_BYTES = 256 << 20

Source = Literal["predicted", "measured", "exact"]


class Number(TypedDict):
    """A cost in the unit its key names. `low` and `high` bound it with the run's confidence."""

    value: float
    source: Source
    low: NotRequired[float | None]
    high: NotRequired[float | None]


class Score(TypedDict):
    """A metric's value over `samples` samples, `low` and `high` its confidence interval."""

    value: float
    samples: int
    low: NotRequired[float | None]
    high: NotRequired[float | None]


class LayerRow(TypedDict):
    """What was decided for one layer. MACs for one sample; latencies are predicted, in ms."""

    name: str
    op: str
    shape: str  # such as "16→32 3x3 /2", of the uncompressed layer
    macs: float
    macs_after: float
    channels: int
    channels_after: int  # 0 where the layer is removed
    weight_bits: int  # 32: float
    act_bits: int  # 32: float
    removed: bool
    factor: NotRequired[str | None]  # such as "tucker2 8,12"
    rank_ratio: NotRequired[float | None]  # share of the full rank, None where dense
    latency_ms: NotRequired[float | None]
    latency_after_ms: NotRequired[float | None]
    reason: NotRequired[str]  # why it was left alone, "" where it was not


class KernelTime(TypedDict):
    """One kernel as the runtime executes it. `layer` is None for what belongs to no layer (reorders)."""

    kernel: str
    precision: str
    latency_ms: float
    layer: NotRequired[str | None]


class Network(TypedDict):
    """The uncompressed network, a baseline, or the common part of a point of the front.

    `costs` and `measured` map `latency_ms`, `size_bytes`, `memory_bytes`, `energy_mj`, `macs` (and,
    measured, `load_ms`) to numbers.
    `validation` is what the search judged by, after recovery if there was one.
    """

    name: str
    costs: dict[str, Number]
    validation: NotRequired[Score | None]
    test: NotRequired[Score | None]
    drop: NotRequired[float | None]
    measured: NotRequired[dict[str, Number]]
    feasible: NotRequired[bool]


class Point(Network):
    """A point of the Pareto front; the numbers count from 1, as in the table."""

    number: int
    digest: str
    picked: bool
    complete: bool  # evaluated on the whole validation set
    policy: NotRequired[dict[str, Any]]
    searched: NotRequired[Score | None]  # before recovery
    layers: NotRequired[list[LayerRow]]
    kernels: NotRequired[list[KernelTime]]
    evaluation: NotRequired[int]  # which evaluation found it


class RunFacts(TypedDict):
    """`state`: "complete", or "interrupted" where it can be resumed. `command`: what was typed."""

    id: str
    created: str  # local time, ISO 8601
    version: str
    seed: int
    state: Literal["complete", "interrupted"]
    command: list[str]
    versions: NotRequired[dict[str, str]]
    cpu: NotRequired[str]


class TaskFacts(TypedDict):
    """`macs` for one sample; `samples` maps calibration, validation, test, train to their sizes."""

    name: str
    network: str
    parameters: int
    macs: float
    metric: str
    metric_unit: str
    higher_is_better: bool
    samples: dict[str, int]
    fingerprint: NotRequired[str]


class TargetFacts(TypedDict):
    """`backing`: what a prediction rests on. `confidence` of every predicted interval."""

    name: str
    title: str
    threads: int
    batch: int
    backing: str
    confidence: float
    validated: bool
    numerics: NotRequired[str]
    base_precision: NotRequired[str]


class LimitFacts(TypedDict):
    """A limit in the unit of its cost, and as the user wrote it."""

    limit: float
    written: str


class BudgetFacts(TypedDict):
    """`limits` by cost name; `max_drop` in points.

    `risk`: the confidence of the upper bound that is judged; None judges the point estimate.
    """

    objective: Literal["accuracy", "latency"]
    limits: dict[str, LimitFacts]
    max_drop: NotRequired[float | None]
    risk: NotRequired[float | None]


class SearchFacts(TypedDict):
    """Counts of the search.

    Of the `evaluated` outcomes, `feasible` held the budget, `stopped` were given up early and `reused` came
    from a cache or an earlier run; `rejected` policies were never evaluated. Of `disagreed` the runtime
    answered otherwise than the simulation, by which they were scored.
    """

    agent: str
    summary: str
    layers: int
    dimension: int
    log10_policies: float
    planned: int
    evaluated: int
    feasible: int
    rejected: NotRequired[int]
    stopped: NotRequired[int]
    reused: NotRequired[int]
    disagreed: NotRequired[int]


class Step(TypedDict):
    """One evaluation of the search, in order. `origin`: why it was proposed."""

    number: int
    accuracy: float | None
    latency_ms: float | None
    feasible: bool
    origin: NotRequired[str]


class Verification(TypedDict):
    """The exported file against the searched network, in the runtime, on `samples` validation samples."""

    passed: bool
    agree: int
    samples: int
    runtime: str
    file: NotRequired[str]  # the model's
    text: NotRequired[str]
    ties: NotRequired[int]  # samples of another class that was as good as equal


class Event(TypedDict):
    """Something that turned out otherwise than priced. `point` is a point's number."""

    kind: str
    text: str
    point: NotRequired[int | None]


class Note(TypedDict):
    """What was left alone, and why."""

    subject: str
    reason: str


class Sibling(TypedDict):
    """A network on another runtime of the same device: its predicted latency, or `why` there is none."""

    target: str
    runtime: str
    network: str  # "the picked network", "the base network", followed by " in float" where bits were left out
    latency_ms: NotRequired[Number]
    verdict: NotRequired[str]  # such as "0.61x, faster"
    why: NotRequired[str]


class Change(TypedDict):
    """What a step to the next value would add, in ms and in nats (None: not measured); both signed."""

    latency_ms: float
    risk: float | None


class Explained(TypedDict):
    """One choice of the picked policy, or a layer that has none (kind "fixed").

    `layer` is the first one concerned, "" where there is none. `latency_ms`: what going back to the
    uncompressed value would add, by the prices of the run. `risk`: the loss of this choice alone, the KL
    divergence from the uncompressed network's answers in nats a sample, or its analogue (None: not
    measured). Steps go to the next smaller and the next larger value, None where there is none.
    """

    name: str
    kind: str
    subject: str
    layer: str
    value: str
    latency_ms: float
    risk: float | None
    step_down: Change | None
    step_up: Change | None
    why: str


class Proxy(TypedDict):
    """How a cheap stand-in ranked `policies` that were scored in full: Spearman, with a 95 % interval."""

    name: str
    policies: int
    spearman: float
    low: float
    high: float


class Cell(TypedDict):
    """A policy on one target. ``same``: as it was made for the other; else the nearest it executes."""

    target: str
    digest: str
    same: bool
    costs: dict[str, Number]
    feasible: bool  # by this target's budget
    validation: Score  # under this target's numerics, not recovered
    drop: float


class MatrixRow(TypedDict):
    """A policy on every target. ``policy``: the target it was picked for, or "common"."""

    policy: str
    cells: list[Cell]


class Matrix(TypedDict):
    """Targets searched together: each one's picked policy on all of them.

    ``common``: one policy that every target executes as it is, inside all budgets, with the highest worst
    metric; None where none was found. ``evaluations`` that the targets' studies paid for, and further ones
    for this table.
    """

    rows: list[MatrixRow]
    common: MatrixRow | None
    evaluations: int
    further: int


class Results(TypedDict):
    """The whole document. `kernels` are the uncompressed network's; `timings` are seconds by phase."""

    schema_version: int
    run: RunFacts
    task: TaskFacts
    target: TargetFacts
    budget: BudgetFacts
    search: SearchFacts
    base: Network
    points: list[Point]
    plain_int8: NotRequired[Network | None]
    uniform: NotRequired[list[Network]]
    picked: NotRequired[int | None]  # number of a point
    kernels: NotRequired[list[KernelTime]]
    verification: NotRequired[Verification | None]
    events: NotRequired[list[Event]]
    siblings: NotRequired[list[Sibling]]
    matrix: NotRequired[Matrix | None]
    notes: NotRequired[list[Note]]
    explanation: NotRequired[list[Explained]]  # of the picked point, in the order of the layers
    proxies: NotRequired[list[Proxy]]
    steps: NotRequired[list[Step]]
    timings: NotRequired[dict[str, float]]
    files: NotRequired[list[str]]


class Prediction(TypedDict):
    """What `search predict` says of one ONNX file. `unknown`: operations that have no cost."""

    onnx: str
    target: str
    threads: int
    batch: int
    costs: dict[str, Number]
    confidence: float
    backing: str
    validated: bool
    kernels: list[KernelTime]
    unknown: list[str]


class Timing(TypedDict):
    """One network timed on a device; times in ms, memory in bytes (None where it could not be told).

    `min_cpu_ms`, the least CPU time of one inference, repeats best; `p50_ms` and `p95_ms` are wall time.
    """

    name: str
    load_ms: float
    p50_ms: float
    p95_ms: float
    min_cpu_ms: float
    memory_bytes: float | None
    predicted_ms: NotRequired[float | None]


class Measurement(TypedDict):
    """What `search measure` says; the networks took turns, the first is what the others are compared with."""

    device: NotRequired[str]
    runtime: str
    threads: int
    batch: int
    repeats: int
    soak_seconds: NotRequired[float]  # how long the networks ran before they were timed
    throttled: NotRequired[float | None]  # share of measurements that the device throttled in, where it tells
    stable: bool
    why: NotRequired[str]  # why it is unstable
    apart: NotRequired[str]  # what the run's predictions are of, where they are not of what was timed
    networks: list[Timing]


class Applied(TypedDict):
    """What `search apply` or `search export` made."""

    digest: str
    costs: NotRequired[dict[str, Number]]
    validation: NotRequired[Score | None]
    verification: NotRequired[Verification | None]
    metric: NotRequired[str]
    metric_unit: NotRequired[str]
    events: NotRequired[list[Event]]
    files: list[str]


def picked_point(results: Results) -> Point | None:
    """The point that was chosen, None where there is none."""
    return next((p for p in results["points"] if p["picked"]), None)


def check_results(document: Any, name: str = "the results") -> Results:
    """The document, once it follows the schema. Raises InputError naming the first thing that is wrong."""
    from pydantic import TypeAdapter, ValidationError

    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(f"{name} has schema version {version!r}; this version reads {SCHEMA_VERSION}.")
    try:
        return TypeAdapter(Results).validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise InputError(f"{name} does not follow its schema: {where}: {first['msg']}.") from error


def read_results(path: Path) -> Results:
    """Reads and checks `results.json`. Raises InputError."""
    document = read_json(path, RESULTS_BYTES, "A run writes it when it ends; resume it first.")
    return check_results(document, repr(str(path)))


def results_schema() -> dict[str, Any]:
    """JSON Schema of `results.json`."""
    from pydantic import TypeAdapter

    return TypeAdapter(Results).json_schema()
