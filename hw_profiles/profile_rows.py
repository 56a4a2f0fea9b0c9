"""The lines of a profile file: what was measured of one network, validated and addressed by its content.

A profile is a text file of JSON lines. The first is the header: schema version, facts of the device, threads,
unit. Every other line is one network, measured or failed, with an `id` that is the hash of its content.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import statistics
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from hw_profiles.devices.contract import STABLE_WITHIN, Sample, Unit
from hw_profiles.devices.replies import ConditionReply, FactsReply, plain
from hw_profiles.errors import BadProfileError, DeviceError
from hw_profiles.kernel import COLUMNS, KernelBatch, KernelKind

SCHEMA_VERSION = 1
#: Bytes of one line (a network of 1,000 kernels has 200 kB) and of a whole file, unpacked.
LINE_LIMIT = 16 << 20
FILE_LIMIT = 256 << 20
#: Minima repeat within 0.3-1.1 % of CPU time across processes (measured on a loaded machine).
_REPEAT_SIGMA = {"cpu": 0.003, "wall": 0.01, "instructions": 0.0003}
_BLOCKS = 4

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Times = Annotated[list[Annotated[float, Field(gt=0.0, allow_inf_nan=False)]], Field(max_length=1_000_000)]
Values = list[Annotated[float, Field(ge=0.0, allow_inf_nan=False)]]


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Header(_Line):
    """First line."""

    kind: Literal["header"] = "header"
    schema_version: Literal[1] = 1
    facts: FactsReply
    threads: int = Field(ge=1)
    unit: Unit = "ms"


class Kind(_Line):
    """A `KernelKind`."""

    op: str = Field(max_length=200)
    domain: str = Field("", max_length=200)
    precision: str = Field("fp32", max_length=40)
    layer: str = Field("", max_length=2000)
    fused: tuple[Annotated[str, Field(max_length=200)], ...] = ()
    weight_bearing: bool = False

    def value(self) -> KernelKind:
        """As cost models take it."""
        return KernelKind(**self.model_dump())


class _Addressed(_Line):
    id: str = ""
    model: Hash
    key: str = Field(max_length=2000)
    measured_at: str = Field("", max_length=40)

    @model_validator(mode="after")
    def _is_what_it_says(self) -> Self:
        if self.id and self.id != self.address():
            raise ValueError("its content is not that of its id: the line was changed or damaged")
        return self

    def address(self) -> str:
        """Hash of everything but the id."""
        return hashlib.sha256(canonical(self.model_dump(exclude={"id"})).encode()).hexdigest()[:32]

    def addressed(self) -> Self:
        """The same with its id."""
        return self.model_copy(update={"id": self.address()})


class FailureRow(_Addressed):
    """A network that does not run there, so that nobody tries again."""

    kind: Literal["failure"] = "failure"
    error: str = Field(max_length=1000)


class NetworkRow(_Addressed):
    """One network measured: raw runs in the profile's unit, its kernels (K) with columns of K values each.

    `kernel_us` is the least microseconds of every kernel under the runtime's profiler; `kinds`, `columns` and
    `kernel_us` are empty where the runtime tells no kernels.
    """

    kind: Literal["network"] = "network"
    clock: Literal["cpu", "wall", "instructions"]
    runs: Times = Field(min_length=1)
    wall: Times = []
    load_ms: float | None = Field(None, ge=0.0, allow_inf_nan=False)
    peak_memory_bytes: int | None = Field(None, ge=0)
    before: ConditionReply = ConditionReply()
    after: ConditionReply = ConditionReply()
    stable: bool
    why: str = Field(max_length=1000)
    kinds: list[Kind] = Field([], max_length=100_000)
    columns: dict[str, Values] = {}
    kernel_us: Values = []

    @model_validator(mode="after")
    def _fits(self) -> Self:
        lengths = {len(values) for values in (*self.columns.values(), self.kernel_us)}
        if self.kinds and (set(self.columns) != set(COLUMNS) or lengths != {len(self.kinds)}):
            raise ValueError(
                f"{len(self.kinds)} kernels, but columns {sorted(self.columns)} of {lengths} values"
            )
        if not self.kinds and (self.columns or self.kernel_us):
            raise ValueError("columns without kernels")
        return self

    @property
    def best(self) -> float:
        """Least run."""
        return min(self.runs)

    @property
    def median(self) -> float:
        """Median run."""
        return statistics.median(self.runs)

    @property
    def sigma(self) -> float:
        """Relative standard deviation of `best`: that of the minima of four blocks of runs, with a floor.

        In wall time the two least of them count: the others may come of a slow phase.
        """
        floor = _REPEAT_SIGMA[self.clock] if self.stable else STABLE_WITHIN[self.clock]
        size = len(self.runs) // _BLOCKS
        if not size:
            return max(floor, STABLE_WITHIN[self.clock])
        minima = [math.log(min(self.runs[i * size : (i + 1) * size])) for i in range(_BLOCKS)]
        if self.clock == "wall":
            minima = sorted(minima)[:2]
        return max(floor, statistics.stdev(minima))

    def batch(self) -> KernelBatch:
        """Its kernels, (1, K)."""
        kinds = tuple(kind.value() for kind in self.kinds)
        return KernelBatch(
            kinds, {name: np.array([self.columns[name]], dtype=np.float64) for name in COLUMNS}
        )


Row = NetworkRow | FailureRow


def row_of(sample: Sample, model: str, measured_at: str, unstable: str = "") -> Row:
    """The line of a sample; `model` is the ONNX file's SHA-256, `unstable` why it is so though its own halves
    agree. Raises DeviceError for a broken record."""
    if sample.error:
        failure = FailureRow(model=model, key=sample.key, measured_at=measured_at, error=sample.error[:1000])
        return failure.addressed()
    stable, why = (False, unstable) if unstable else sample.verdict()
    row = NetworkRow(
        model=model,
        key=sample.key,
        measured_at=measured_at,
        clock=sample.clock,
        runs=[_short(value) for value in sample.runs],
        wall=[_short(value) for value in sample.wall] if sample.cpu else [],
        load_ms=sample.load_ms,
        peak_memory_bytes=sample.peak_memory_bytes,
        before=ConditionReply(**vars(sample.before)),
        after=ConditionReply(**vars(sample.after)),
        stable=stable,
        why=why,
        **_kernels(sample),
    )
    return row.addressed()


def _kernels(sample: Sample) -> dict[str, Any]:
    if sample.record is None:
        return {}
    from hw_profiles.onnx_kernels import read_record

    try:
        found = read_record(sample.record)
        kinds = [
            Kind(**{name: getattr(kind, name) for name in Kind.model_fields}) for kind in found.batch.kinds
        ]
        columns = {name: [_short(v) for v in found.batch[name][0].tolist()] for name in COLUMNS}
        return {
            "kinds": kinds,
            "columns": columns,
            "kernel_us": [_short(v) for v in found.kernel_us.min(axis=0).tolist()],
        }
    except Exception as error:  # a parser meets whatever a device has sent
        text = plain(str(error).splitlines()[0] if str(error) else type(error).__name__)
        raise DeviceError(
            f"the kernels that the device tells of {sample.key!r} make no sense: {text}"
        ) from error


def _short(value: float) -> float:
    """Six decimals: nanoseconds of a millisecond; whole numbers (instructions) stay as they are."""
    rounded = round(float(value), 6)
    return rounded if rounded > 0.0 or value == 0.0 else float(value)


def canonical(value: Any) -> str:
    """One JSON text for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def read_lines(path: Path) -> tuple[Header, list[Row], list[str]]:
    """(header, rows, notes) of a file, packed (`.gz`) or plain. A last line that was cut short is left out.

    Raises BadProfileError for anything else that does not check out.
    """
    lines = _content(path).split(b"\n")
    notes = []
    if lines.pop():
        notes.append(f"the last line of {path.name} was cut short and is left out")
    if not lines:
        raise BadProfileError(f"profile {str(path)!r} is empty")
    header = _parsed(Header, path, 1, lines[0])
    rows: dict[str, Row] = {}
    for number, line in enumerate(lines[1:], 2):
        schema = FailureRow if b'"kind":"failure"' in line else NetworkRow
        row = _parsed(schema, path, number, line)
        if not row.id:
            raise BadProfileError(f"profile {str(path)!r}, line {number}: it has no id")
        rows[row.id] = row
    return header, list(rows.values()), notes


def _content(path: Path) -> bytes:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = bytes(file.read(FILE_LIMIT + 1))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadProfileError(f"profile {str(path)!r} is no whole gzip file: {error}") from error
    except OSError as error:
        raise BadProfileError(f"cannot read the profile {str(path)!r}: {error.strerror or error}") from error
    if len(content) > FILE_LIMIT:
        raise BadProfileError(f"profile {str(path)!r} unpacks to more than {FILE_LIMIT >> 20} MB")
    return content


def _parsed(schema: Any, path: Path, number: int, line: bytes) -> Any:
    try:
        if len(line) > LINE_LIMIT:
            raise BadProfileError(f"profile {str(path)!r}, line {number}: longer than {LINE_LIMIT >> 20} MB")
        return schema.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = plain(".".join(str(part) for part in first["loc"]), 80)
        raise BadProfileError(
            f"profile {str(path)!r}, line {number}: {where + ': ' if where else ''}{plain(first['msg'])}"
        ) from None


def lines_of(rows: Sequence[Row | Header]) -> bytes:
    """Rows as lines of a file."""
    return b"".join(canonical(row.model_dump()).encode() + b"\n" for row in rows)


__all__ = [
    "SCHEMA_VERSION",
    "FailureRow",
    "Header",
    "Kind",
    "NetworkRow",
    "Row",
    "canonical",
    "lines_of",
    "read_lines",
    "row_of",
]
