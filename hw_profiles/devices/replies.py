"""What a device replied, checked before anything believes it: frames in, values of the contract out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from hw_profiles.devices.agent import FrameError, unpack_array
from hw_profiles.devices.contract import Condition, DeviceFacts, KernelRecord, Sample, Work
from hw_profiles.errors import DeviceError


def plain(text: str, most: int = 200) -> str:
    """Text from outside as one printable line."""
    return "".join(c if c.isprintable() else "?" for c in text[: most + 1])[:most]


Line = Annotated[str, Field(max_length=500), AfterValidator(lambda text: plain(text, 500))]
Positive = Annotated[float, Field(gt=0.0, le=1e9, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=1 << 48)]


class _Reply(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


_Told = TypeVar("_Told", bound=_Reply)


class FactsReply(_Reply):
    """`DeviceFacts` as they travel."""

    device: Line
    chip: Line
    cores: int = Field(ge=1, le=65536)
    isa: Line
    runtime: Line
    runtime_version: Line
    clock_ghz: Positive | None = None
    memory_bytes: Count | None = None
    system: Line = ""
    emulated: Line = ""


class ConditionReply(_Reply):
    """`Condition` as it travels."""

    clock_ghz: Positive | None = None
    temperature_c: float | None = Field(None, ge=-100.0, le=300.0, allow_inf_nan=False)
    governor: Line | None = None
    throttled: bool | None = None
    load: float | None = Field(None, ge=0.0, le=1e6, allow_inf_nan=False)


Shape = Annotated[list[Count], Field(max_length=16)]
Shapes = Annotated[list[dict[str, Shape]], Field(max_length=100_000)]


class _Event(_Reply):
    cat: Literal["Node"]
    name: str = Field(max_length=2000)
    dur: float = Field(ge=0.0, le=1e12, allow_inf_nan=False)
    args: dict[Literal["input_type_shape", "output_type_shape"], Shapes] = {}


class _Record(_Reply):
    optimised: Count
    events: list[_Event] = Field(max_length=1_000_000)
    runs: int = Field(ge=1, le=100_000)


Runs = Annotated[list[Positive], Field(max_length=1_000_000)]


class _SampleReply(_Reply):
    key: str = Field(max_length=2000)
    threads: int = Field(ge=1, le=65536)
    cpu: Runs = []
    wall: Runs = []
    load_ms: Positive | None = None
    peak_memory_bytes: Count | None = None
    before: ConditionReply = ConditionReply()
    after: ConditionReply = ConditionReply()
    record: _Record | None = None
    outputs: list[dict[str, Any]] | None = Field(None, max_length=1000)
    error: Line = ""


def read_facts(head: Any, name: str | None = None) -> DeviceFacts:
    """Facts of a reply; `name` replaces what the device calls itself. Raises DeviceError.

    An emulated device keeps that word in its name: what it measures is filed apart from the real one's.
    """
    told = _checked(FactsReply, head).model_dump()
    device = name or told["device"]
    return DeviceFacts(**{**told, "device": f"emulated {device}" if told["emulated"] else device})


def read_condition(head: Any) -> Condition:
    """Condition of a reply. Raises DeviceError."""
    return Condition(**_checked(ConditionReply, head).model_dump())


def read_sample(head: Any, blobs: Sequence[bytes], works: Sequence[Work]) -> Sample:
    """The sample of a reply, which answers one of `works`. Raises DeviceError."""
    told = _checked(_SampleReply, head)
    work = next((work for work in works if work.key == told.key), None)
    if work is None:
        raise DeviceError(
            f"the device answers nonsense: a sample of {plain(told.key, 60)!r}, never asked for"
        )
    odd = len(told.cpu) not in (0, len(told.wall)) or (told.cpu and told.threads != 1)
    if told.threads != work.threads or odd or bool(told.error) == bool(told.wall):
        raise DeviceError(
            f"the device answers nonsense: {work.key!r} with {told.threads} threads, {len(told.cpu)} CPU and "
            f"{len(told.wall)} wall times, error {told.error!r}"
        )
    try:
        outputs = None if told.outputs is None else tuple(unpack_array(o, blobs) for o in told.outputs)
        record = None
        if told.record is not None:
            events = tuple(event.model_dump() for event in told.record.events)
            record = KernelRecord(blobs[told.record.optimised], events, told.record.runs)
    except (FrameError, IndexError) as error:
        raise DeviceError(f"the device answers nonsense for {work.key!r}: {error}") from error
    return Sample(
        key=work.key,
        unit="ms",
        threads=work.threads,
        cpu=tuple(told.cpu),
        wall=tuple(told.wall),
        load_ms=told.load_ms,
        peak_memory_bytes=told.peak_memory_bytes,
        before=Condition(**told.before.model_dump()),
        after=Condition(**told.after.model_dump()),
        record=record,
        outputs=outputs,
        error=told.error,
    )


def _checked(schema: type[_Told], head: Any) -> _Told:
    try:
        return schema.model_validate(head)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = plain(".".join(str(part) for part in first["loc"]), 80) or "the whole"
        raise DeviceError(f"the device answers nonsense: {where}: {first['msg']}") from None


__all__ = ["ConditionReply", "FactsReply", "plain", "read_condition", "read_facts", "read_sample"]
