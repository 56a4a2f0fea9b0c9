"""The configuration of a run: every decision a user can make, complete and re-usable as `config.yaml`.

Where a value comes from, the strongest first: a flag, `--set key=value`, `--config FILE.yaml`, the default.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from search.errors import InputError, ResumeError, TailorbirdError, UsageError, did_you_mean
from search.methods import METHODS, check_methods
from search.pool_address import without_password
from search.units import COST_KINDS, Limit, parse_limit, parse_points, parse_seconds

if TYPE_CHECKING:
    from agents.contract import Budget
    from search.task import TaskSpec

Measure = Literal["never", "final", "front", "active"]

#: Field of the config to the cost it limits.
LIMITS: Mapping[str, str] = {
    "max_latency": "latency_ms",
    "max_size": "size_bytes",
    "max_memory": "memory_bytes",
    "max_energy": "energy_mj",
    "max_macs": "macs",
}
#: Characters of a value that a message repeats.
LONGEST_SHOWN = 200
#: What concerns one call and not the search; not stored.
ONE_CALL = ("out", "resume", "dry_run", "token", "ray_address")
#: What may change when a run is resumed. All else is the goal, which may not.
MAY_CHANGE = (
    "evaluations",
    "timeout",
    "recover",
    "workers",
    "evaluation_timeout",
    "pool",
    "measure",
    "profile",
    "host",
    "accept_unstable",
    *ONE_CALL,
)


class RunConfig(BaseModel):
    """One run. Quantities are kept as written, with their units; the methods below give numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    target: tuple[str, ...] = Field(min_length=1, description="devices: names, or paths of YAML files")
    task: str = Field("digits32", description="a built-in task, or file.py:function that returns a Task")
    model: str | None = Field(None, description="package.module:callable that returns the network")
    checkpoint: str | None = Field(None, description="its weights: safetensors, or a torch file of tensors")
    data: str | None = Field(None, description="an .npz file or an image folder")
    data_size: tuple[int, int] | None = Field(None, description="height, width of an image folder's images")
    mean: tuple[float, ...] = Field((), description="per channel, subtracted from the inputs")
    std: tuple[float, ...] = Field((), description="per channel, divides the inputs")
    metric: str | None = Field(None, description="a metric's name, or module:function")

    max_latency: str | None = Field(None, description="3ms, or 0.5x of the uncompressed network")
    max_size: str | None = Field(None, description="of the weights: 200kB, or 0.25x")
    max_memory: str | None = Field(None, description="peak of the activations: 1MB, or 0.5x")
    max_energy: str | None = Field(None, description="of one inference: 5mJ, or 0.5x")
    max_macs: str | None = Field(None, description="40MMACs, or 0.5x")
    max_dsp: int | None = Field(None, ge=1, description="DSP slices that an FPGA's core may take")
    max_bram: int | None = Field(None, ge=1, description="block RAMs of 36 kbit that it may take")
    max_drop: float | None = Field(None, description="points; turns the search into: least latency")
    risk: float | None = Field(None, gt=0, lt=1, description="0.9 judges the upper bound of the latency")

    methods: tuple[str, ...] = Field(METHODS, min_length=1, description="what may be done to a layer")
    criterion: str = Field("obs", description="which channels stay: see `search methods`")
    ranges: str = Field(
        "auto", description="how ranges of integer activations are found; auto: mse or dynamic"
    )
    scales: str = Field("mse", description="how the scales of integer weights are found")
    bits: tuple[int, ...] | None = Field(None, description="weight bits to choose from; all the target has")
    min_keep: float = Field(0.125, gt=0, le=1, description="smallest share of channels kept in a group")
    skip: tuple[str, ...] = Field((), description="patterns of layers left alone, such as 'head.*'")
    strict: bool = Field(False, description="a layer that cannot be compressed is an error")

    agent: str = Field("joint", description="who proposes the policies")
    evaluations: int = Field(100, ge=1, description="how many policies to evaluate")
    timeout: str | None = Field(None, description="search no longer than this: 45s, 10m")
    recover: str = Field("45s", description="short fine-tuning of what was found; 0 leaves it out")
    seed: int = Field(0, ge=0, lt=2**32, description="the same seed, the same search")
    workers: int = Field(1, ge=1, le=256, description="processes that evaluate")
    ray_address: str | None = Field(None, description="the Ray cluster they run in: host:port, or auto")
    deterministic: bool = Field(False, description="the same trials for any number of workers")
    evaluation_timeout: str | None = Field(None, description="one evaluation may take no longer: 60s")
    warm_start: str | None = Field(None, description="a run whose outcomes are learned first")
    pool: str | None = Field(
        None,
        repr=False,
        description="keeps and shares accuracies: a file, postgresql://user@host/db, or off",
    )

    threads: int | None = Field(None, ge=1, description="of one inference; the target's usual number")
    batch: int | None = Field(None, ge=1, description="of one inference; the target's usual number")
    host: str | None = Field(None, description="where the device is: user@host, or http://host:port")
    token: str | None = Field(None, description="of the agent at an http:// host; or TAILORBIRD_TOKEN")
    profile: str | None = Field(
        None, description="first measure kernels so long: 2m; by default where a host has no profile yet"
    )
    measure: Measure | None = Field(None, description="what is timed; front where a device is at hand")
    accept_unstable: bool = Field(False, description="keep measurements that do not repeat")

    out: str | None = Field(None, description="exactly this folder")
    resume: str | None = Field(None, description="go on with this run")
    dry_run: bool = Field(False, description="resolve everything, score one policy, estimate the time")

    @field_validator("target", "methods", "skip", "bits", "mean", "std", "data_size", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """`a,b` and a single value are lists too."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @field_validator("methods", mode="after")
    @classmethod
    def _methods_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return (*(m for m in METHODS if m in value), *sorted({m for m in value if m not in METHODS}))

    @field_validator("bits", mode="after")
    @classmethod
    def _known_bits(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        for bits in value or ():
            if not 2 <= bits <= 8:
                raise UsageError(
                    f"--bits {bits} is out of range.", "Weights take 2 to 8 bits; write --bits 4,8."
                )
        return tuple(sorted(set(value))) if value else None

    @field_validator(*LIMITS, mode="before")
    @classmethod
    def _limit(cls, value: Any, info: Any) -> Any:
        if value is None:
            return None
        kind = COST_KINDS[LIMITS[info.field_name]]
        return parse_limit(value, kind, _flag(info.field_name)).written

    @field_validator("pool", mode="before")
    @classmethod
    def _place(cls, value: Any) -> Any:
        if value is False:  # what YAML makes of a bare off
            return "off"
        if value is True or value == "":
            raise UsageError(
                f"--pool {value!s} is neither a file nor off.", "Leave it out for the usual one."
            )
        return value

    @field_serializer("pool", when_used="json")
    def _without_password(self, value: str | None) -> str | None:
        """What is stored and shown of a pool's address."""
        return None if value is None else without_password(value)

    @field_validator("max_drop", mode="before")
    @classmethod
    def _points(cls, value: Any) -> Any:
        return None if value is None else parse_points(value, "--max-drop")

    @field_validator("timeout", "evaluation_timeout", "recover", mode="before")
    @classmethod
    def _time(cls, value: Any, info: Any) -> Any:
        limits = info.field_name != "recover"
        if value is None and limits:
            return None
        seconds = parse_seconds(value, _flag(info.field_name))
        if seconds == 0 and limits:
            raise UsageError(f"{_flag(info.field_name)} 0 leaves no time to search.", "Write 45s or 10m.")
        return str(value).strip()

    @field_validator("ray_address", mode="after")
    @classmethod
    def _cluster(cls, value: str | None) -> str | None:
        if value is not None:
            from search.cluster import check_address

            check_address(value)
        return value

    @model_validator(mode="after")
    def _known_methods(self) -> Self:
        if self.model is None and ":" not in self.task:  # a user's own code may register more
            check_methods(self.methods)
        return self

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.model is None:
            for name in ("checkpoint", "data", "data_size", "mean", "std"):
                if getattr(self, name):
                    raise UsageError(
                        f"{_flag(name)} needs a network.", "Give --model package.module:callable as well."
                    )
        elif self.task != "digits32":
            raise UsageError(f"--task {self.task} and --model {self.model} exclude each other.", "Give one.")
        return self

    @property
    def objective(self) -> Literal["accuracy", "latency"]:
        """Least latency where `max_drop` is given, else the best metric inside the budget."""
        return "accuracy" if self.max_drop is None else "latency"

    @property
    def limits(self) -> dict[str, Limit]:
        """Cost name to limit. Half the latency where nothing else was asked for."""
        given = {
            cost: parse_limit(getattr(self, name), COST_KINDS[cost], _flag(name))
            for name, cost in LIMITS.items()
            if getattr(self, name) is not None
        }
        if not given and self.max_drop is None:
            return {"latency_ms": Limit("0.5x", 0.5, relative=True)}
        return given

    def budget(self, base: Mapping[str, float]) -> Budget:
        """The budget in numbers, `base` being the uncompressed network's costs by name."""
        from agents.contract import LIMITS as FIELDS
        from agents.contract import Budget

        field = {cost: name for name, cost in FIELDS.items()}
        found: dict[str, float] = {}
        for cost, limit in self.limits.items():
            if limit.relative and cost not in base:
                flag = next(_flag(name) for name, limited in LIMITS.items() if limited == cost)
                raise UsageError(f"{flag} {limit.written}: this target gives no {cost}.", "Leave it out.")
            found[field[cost]] = limit.resolve(base.get(cost, 0.0))
        return Budget(**found, max_drop=self.max_drop, risk=self.risk)

    @property
    def timeout_seconds(self) -> float | None:
        """How long to search, in seconds; None without a limit."""
        return None if self.timeout is None else parse_seconds(self.timeout, "--timeout")

    @property
    def evaluation_seconds(self) -> float | None:
        """How long one evaluation may take, in seconds; None without a limit."""
        limit = self.evaluation_timeout
        return None if limit is None else parse_seconds(limit, "--evaluation-timeout")

    @property
    def profile_seconds(self) -> float | None:
        """How long to measure kernels before the search; None where it was left open."""
        return None if self.profile is None else parse_seconds(self.profile, "--profile")

    @property
    def recover_seconds(self) -> float:
        """How long to recover, in seconds."""
        return parse_seconds(self.recover, "--recover")

    @staticmethod
    def in_process(name: str) -> str:
        """What `task` says of a Task that no other process can build."""
        return f"<{name}>"

    def task_spec(self) -> TaskSpec:
        """From which the task is built. Raises InputError where only a Python program has it."""
        from search.task import TaskSpec

        if self.task.startswith("<"):
            raise InputError(
                f"the task {self.task} was made by a Python program.",
                "Go on there: search.run(task, resume=FOLDER), or result.export(folder).",
            )
        return TaskSpec(
            name="" if self.model else self.task,
            model=self.model,
            checkpoint=self.checkpoint,
            data=self.data,
            metric=self.metric,
            data_size=self.data_size,
            mean=self.mean,
            std=self.std,
        )

    def for_each_target(self) -> list[RunConfig]:
        """One config a target; with several, `out` gets a folder below for each."""
        if len(self.target) == 1:
            return [self]
        from search.runfolder import slug

        return [
            self.model_copy(
                update={"target": (t,), "out": None if self.out is None else str(Path(self.out, slug(t)))}
            )
            for t in self.target
        ]

    def to_yaml(self) -> str:
        """The whole config but what concerns one call, with a comment for every key."""
        document = self.model_dump(mode="json", exclude=set(ONE_CALL))
        lines = ["# Everything this run was asked to do. Again: search --config config.yaml"]
        for key, value in document.items():
            listed = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=1_000_000)
            text = f"{key}: {listed.strip()[1:-1]}"
            lines.append(f"{text}  # {RunConfig.model_fields[key].description}")
        return "\n".join(lines) + "\n"

    def with_changes(self, flags: Mapping[str, Any]) -> RunConfig:
        """This run's config, resumed with other flags. Raises ResumeError where they change the goal."""
        changed = make_config({**self.model_dump(), **{k: v for k, v in flags.items() if v is not None}})
        for name in type(self).model_fields:
            old, new = getattr(self, name), getattr(changed, name)
            if old != new and name not in MAY_CHANGE:
                raise ResumeError(
                    f"{_flag(name)} {_shown(new)} changes the goal of this run, which has {_shown(old)}.",
                    "Start anew with --warm-start instead of --resume: it takes over what was evaluated.",
                )
        return changed


def load_config(
    flags: Mapping[str, Any], sets: Sequence[str] = (), file: Path | None = None, text: str = "--target"
) -> RunConfig:
    """The config of flags over `--set` over a file over the defaults. What is None was not given.

    Raises UsageError, or InputError for a file that cannot be read.
    """
    values: dict[str, Any] = {} if file is None else read_yaml(file)
    values.update(read_sets(sets))
    values.update({key: value for key, value in flags.items() if value is not None})
    if not values.get("target"):
        raise UsageError(
            f"which device? {text} is missing.", "Try --target=local; `search targets` lists them all."
        )
    return make_config(values)


def resumed_config(flags: Mapping[str, Any]) -> RunConfig:
    """The config of the run that ``flags["resume"]`` names, changed where that is allowed.

    Raises ResumeError where there is no such run or the goal would change.
    """
    from search.journal import Journal
    from search.runfolder import RunFolder

    folder = RunFolder.find(flags["resume"])
    # The journal's header, not config.yaml: it is there as soon as there is anything to resume.
    config = Journal.read(folder.journal)[0].data.get("config", {})
    if not isinstance(config, dict):
        raise ResumeError(
            f"the journal of {folder.id} holds no config.", "There is nothing to resume; start anew."
        )
    latest: dict[str, Any] = {}  # what the last --resume changed
    with contextlib.suppress(TailorbirdError):
        latest = read_yaml(folder.config)
    values = {**config, **{key: latest[key] for key in MAY_CHANGE if key in latest}}
    stored = make_config({key: value for key, value in values.items() if key not in ONE_CALL})
    return stored.with_changes({**flags, "resume": str(folder.path)})


def make_config(values: Mapping[str, Any]) -> RunConfig:
    """A checked config. Raises UsageError with one line for the first thing that is wrong."""
    try:
        return RunConfig.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "config"
        wrong = f"{_flag(name)} {_shown(first['input'])}: {_lower(first['msg'])}."
        raise UsageError(wrong, _meaning(name)) from error


def read_yaml(file: Path) -> dict[str, Any]:
    """A config file's keys and values. Raises InputError, or UsageError for an unknown key."""
    from hw_profiles.safe_yaml import read_yaml_file

    try:
        document = read_yaml_file(file)
    except OSError as error:
        raise InputError(f"cannot read --config {str(file)!r}: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"--config {str(file)!r} is not YAML: {first}.") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InputError(f"--config {str(file)!r} must hold `key: value` lines.")
    return {known_key(str(key), f"--config {file}"): value for key, value in document.items()}


def read_sets(sets: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts; a value is read as YAML. Raises UsageError."""
    found: dict[str, Any] = {}
    for text in sets:
        from hw_profiles.safe_yaml import parse_yaml

        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text!r} has no '='.", "Write --set key=value.")
        try:
            found[known_key(key.strip(), "--set")] = parse_yaml(value)
        except yaml.YAMLError as error:
            raise UsageError(
                f"--set {text!r}: the value is not YAML.", "Quote it: --set 'key=\"...\"'."
            ) from error
    return found


def known_key(key: str, where: str) -> str:
    """The config's name of a key, dashes or underscores. Raises UsageError with the near match."""
    name = key.replace("-", "_")
    if name not in RunConfig.model_fields:
        near = did_you_mean(name, RunConfig.model_fields) or "`search --help` lists them."
        raise UsageError(f"{where}: unknown key {key!r}. {near}")
    return name


def config_schema() -> dict[str, Any]:
    """JSON Schema of `config.yaml`."""
    return RunConfig.model_json_schema()


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        shown = ",".join(map(str, value)) or "nothing"
    else:
        shown = "nothing" if value is None else str(value)
    return shown if len(shown) <= LONGEST_SHOWN else shown[:LONGEST_SHOWN] + "..."


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _meaning(name: str) -> str | None:
    field = RunConfig.model_fields.get(name)
    return None if field is None else f"It is: {field.description}."
