"""Targets: a device and its runtime, as frozen values read from YAML. Every constant has a source."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hw_profiles.errors import BadTargetError, UnknownTargetError
from hw_profiles.safe_yaml import read_yaml_file

TARGETS_FOLDER = Path(__file__).parent / "targets"
DATA_FOLDER = Path(__file__).parent / "data"
SCHEMA_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Constant(_Frozen):
    """A number and where it comes from: a data sheet, a paper, or the command that measured it."""

    value: float = Field(allow_inf_nan=False)
    source: str = Field(min_length=3)


class Device(_Frozen):
    """Facts of the hardware. Bandwidth in GB/s, caches in bytes, clock in GHz."""

    chip: str
    cores: int = Field(ge=1)
    clock_ghz: Constant
    core_cache_bytes: Constant | None = None
    last_cache_bytes: Constant | None = None
    memory_gb_per_s: Constant | None = None
    peak_macs_per_cycle_core: dict[str, Constant] = {}


class Runtime(_Frozen):
    """The program that executes the network, and how its kernel templates are obtained.

    "host": ask the onnxruntime of this machine, default session. "host-without-nchwc": the same, as a
    stand-in for the arm64 onnxruntime, whose graphs have no NCHWc kernels. "program": the layers of the file
    that is written, where the runtime executes them as they stand (ncnn). "rules": fusion rules by hand.
    "x86-avx2": the host's version on an AVX2 processor, emulated where the host is another.
    """

    name: Literal["onnxruntime", "ncnn", "tensorrt", "vitis-ai", "bitfusion-simulator", "haq-simulator"]
    templates: Literal["host", "host-without-nchwc", "x86-avx2", "program", "rules"]
    version: str = ""


class NumericsFacts(_Frozen):
    """How the runtime rounds. An accuracy belongs to the numerics it was measured with."""

    activations: Literal["u8-affine", "s8-symmetric", "power-of-two", "float"]
    weight_bits_range: tuple[int, int] = (2, 8)
    per_channel_weights: bool = True
    reduced_range_weights: bool = False
    bias_bits: int = 32
    quantises_between: bool = Field(
        False,
        description="float layers between dequantise and quantise are made integer when the file is loaded",
    )
    between_asymmetric: bool = Field(
        False, description="and get one weight scale and one offset for the whole tensor, unlike all others"
    )
    at_reads: bool = Field(
        False, description="activations are rounded where an integer layer reads them, and nowhere else"
    )
    narrow_codes: bool = Field(False, description="symmetric activation codes leave the lowest one out")


class Granularity(_Frozen):
    """Channel multiples at which the kernels are fast."""

    fp32: int = Field(1, ge=1)
    int8: int = Field(1, ge=1)
    depthwise: int = Field(1, ge=1)


class AbilitiesFacts(_Frozen):
    """What a policy may choose here. `integer_precisions` are (weight bits, activation bits) with kernels;
    `integer_ops` are kinds of layer with integer kernels ("conv", "depthwise", "linear")."""

    granularity: Granularity
    integer_precisions: tuple[tuple[int, int], ...]
    values_only_weight_bits: bool = False
    integer_ops: tuple[str, ...] = ("conv", "depthwise", "linear")
    float_kinds: tuple[str, ...] = Field((), description="kinds of layer among them that have none after all")
    dynamic_ops: tuple[str, ...] = Field(
        (),
        description="kinds of layer with integer kernels that find the range of what they read in every run",
    )


class Interval(_Frozen):
    """Spread of a prediction in natural-log space.

    `log_sigma`: held-out error of the model, as a standard deviation. `runtime_factor`: what an unknown
    runtime or board adds, as a factor either way at 90 %; dropped once the device has been measured.
    """

    log_sigma: Constant
    runtime_factor: Constant


class Cost(_Frozen):
    """Name of the cost model in `hw_profiles.costs` and its constants, by kernel class and feature."""

    model: Literal["cpu", "arm", "gpu", "bitfusion", "dpu", "bitserial"]
    constants: dict[str, dict[str, Constant]]
    table: str | None = None
    interval: Interval


class Validation(_Frozen):
    """How far predictions were off on what the fit had not seen; `status` "unvalidated" without rows."""

    status: Literal["validated", "unvalidated"]
    median_error: float | None = None
    worst_error: float | None = None
    held_out: str = ""
    command: str = ""


class Energy(_Frozen):
    """Picojoules per MAC by precision and per byte moved; absent means energy is unavailable."""

    mac_pj: dict[str, Constant]
    cache_pj_per_byte: Constant
    memory_pj_per_byte: Constant
    note: str


class Resource(_Frozen):
    """Blocks of one kind that a build takes of the chip, depending on its other options."""

    least: int = Field(ge=0)
    most: int = Field(ge=0)


class Build(_Frozen):
    """One size of an FPGA's core. It does `pixels` x `channels` x `channels` MACs a cycle: pixels of a row,
    input and output channels. `bram36` counts block RAMs of 36 kbit, without UltraRAM."""

    name: str
    pixels: int = Field(ge=1)
    channels: int = Field(ge=1)
    dsp: Resource
    bram36: Resource


class Builds(_Frozen):
    """Sizes that the core comes in. The target's constants are of `measured`; `scaling` is the factor, either
    way at 90 %, by which another may be off. `source` says where sizes and resources were published."""

    measured: str
    scaling: Constant
    source: str = Field(min_length=3)
    known: tuple[Build, ...]


class Target(_Frozen):
    """A device, its runtime, what it can exploit, and what it costs. See `hw_profiles/targets/*.yaml`."""

    schema_version: Literal[1] = 1
    name: str
    aliases: tuple[str, ...] = ()
    title: str
    kind: Literal["cpu", "gpu", "fpga"]
    isa: str = ""
    device: Device
    runtime: Runtime
    default_threads: int = Field(1, ge=1)
    default_batch: int = Field(1, ge=1)
    base_precision: Literal["fp32", "fp16", "w8a8"] = "fp32"
    numerics: NumericsFacts
    abilities: AbilitiesFacts
    cost: Cost
    validation: Validation
    energy: Energy | None = None
    builds: Builds | None = None
    backing: str = Field(description="what a prediction rests on, one line for the user")

    @property
    def board(self) -> str:
        """The device's name: what stands before the slash of ``device/runtime``, or all of it."""
        return self.name.partition("/")[0]


def load_target(name: str | Path) -> Target:
    """The target of a name, an alias, or the path of a user's own YAML file; ``name@build`` of a device that
    comes in several."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return _read(path)
    names = _index()
    device, at, build = str(name).rpartition("@")
    if at and device in names:
        from hw_profiles.builds import with_build

        return with_build(load_target(device), build)
    if str(name) not in names:
        raise UnknownTargetError(str(name), names)
    if names[str(name)] == "local":
        from hw_profiles.local import local_target

        return local_target()
    return _shipped(names[str(name)])


def list_targets() -> list[str]:
    """Names of the shipped targets, without aliases."""
    return sorted({*_index().values()})


def target_schema() -> dict[str, Any]:
    """JSON Schema of a target file."""
    return Target.model_json_schema()


def forget_targets() -> None:
    """Read target files anew from now on: a fit has rewritten one."""
    _index.cache_clear()
    _files.cache_clear()
    _shipped.cache_clear()


def siblings(target: Target) -> list[str]:
    """Names of the shipped targets of the same device with another runtime."""
    return [n for n in list_targets() if n != target.name and n.partition("/")[0] == target.board]


@lru_cache(maxsize=1)
def _index() -> dict[str, str]:
    """Name or alias -> name. Files may be called otherwise than the target: names may hold a slash."""
    found = {"local": "local"}
    for name, (_, aliases) in _files().items():
        found |= dict.fromkeys((name, *aliases), name)
    return found


@lru_cache(maxsize=1)
def _files() -> dict[str, tuple[Path, tuple[str, ...]]]:
    """Name -> (file, aliases) of the shipped targets, told from their first lines: whole files take long."""
    found = {}
    for path in sorted(TARGETS_FOLDER.glob("*.yaml")):
        head = yaml.safe_load(path.read_text(encoding="utf-8").partition("\nkind:")[0])
        found[str(head["name"])] = (path, tuple(head.get("aliases") or ()))
    return found


@lru_cache(maxsize=64)
def _shipped(name: str) -> Target:
    return _read(_files()[name][0])


def _read(path: Path) -> Target:
    try:
        data = read_yaml_file(path)
    except OSError as error:
        raise BadTargetError(f"cannot read the target file {str(path)!r}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadTargetError(f"target file {str(path)!r} is not YAML: {error}".splitlines()[0]) from error
    if not isinstance(data, dict):
        raise BadTargetError(
            f"target file {str(path)!r} must hold a mapping: name, device, runtime, cost, ..."
        )
    data.pop("sources", None)  # holds the anchors that constants refer to
    try:
        return Target.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "(top)"
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise BadTargetError(f"target file {str(path)!r}: {where}: {first['msg']}{more}") from error
