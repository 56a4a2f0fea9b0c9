"""`search --target NAME`: the search itself."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.cli_support import Interrupted, answer, as_typed, merged, say, session, stop_on_interrupt, way_on
from search.errors import UsageError

if TYPE_CHECKING:
    from search.config import RunConfig
    from search.console import Progress
    from search.results import Results


def _option(panel: str, text: str, metavar: str | None = None, *names: str) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel, show_default=False)


def _flag(panel: str, text: str, name: str, *more: str) -> Any:
    return typer.Option(name, *more, help=text, rich_help_panel=panel, show_default=False)


PROBLEM, BUDGET, SPACE = "Problem", "Budget", "Policy space"
SEARCH, DEVICE, OUTPUT = "Search", "Device", "Output"

Target = Annotated[
    str | None,
    _option(PROBLEM, "Device: see `search targets`, or a YAML file.", "NAME[,NAME]", "--target", "-t"),
]
Task = Annotated[
    str | None, _option(PROBLEM, "Network and data: see `search tasks`, or file.py:function.", "NAME")
]
Model = Annotated[str | None, _option(PROBLEM, "Your network: package.module:callable.", "CALLABLE")]
Checkpoint = Annotated[str | None, _option(PROBLEM, "Its weights: safetensors or a torch file.", "FILE")]
Data = Annotated[str | None, _option(PROBLEM, "An .npz file or an image folder.", "PATH")]
Metric = Annotated[str | None, _option(PROBLEM, "A metric's name, or module:function.", "NAME")]
Config = Annotated[
    Path | None, _option(PROBLEM, "Values for all flags, such as a run's config.yaml.", "FILE")
]
Sets = Annotated[
    list[str] | None, _option(PROBLEM, "One value of the config; may be repeated.", "KEY=VALUE", "--set")
]
Threads = Annotated[int | None, _option(DEVICE, "Threads of one inference.", "N")]
Batch = Annotated[int | None, _option(DEVICE, "Samples of one inference.", "N")]
Host = Annotated[str | None, _option(DEVICE, "Where it is: user@host, http://host:port.", "ADDRESS")]
Token = Annotated[str | None, _option(DEVICE, "Of the agent at an http:// host.", "TEXT")]
AcceptUnstable = Annotated[bool, _flag(DEVICE, "Keep measurements that do not repeat.", "--accept-unstable")]
Json = Annotated[bool, _flag(OUTPUT, "One JSON document on stdout, on failure too.", "--json")]
Debug = Annotated[bool, _flag(OUTPUT, "A traceback with every error.", "--debug")]
Quiet = Annotated[bool, _flag(OUTPUT, "No progress and no notes.", "--quiet", "-q")]
Verbose = Annotated[bool, _flag(OUTPUT, "A line for every evaluation.", "--verbose", "-v")]
Out = Annotated[str | None, _option(OUTPUT, "Write to exactly this folder.", "DIR")]


# Numbers are taken as text, so that the config judges them all and its messages show the value.
def search_command(
    ctx: typer.Context,
    target: Target = None,
    task: Task = None,
    model: Model = None,
    checkpoint: Checkpoint = None,
    data: Data = None,
    metric: Metric = None,
    config: Config = None,
    set_: Sets = None,
    max_latency: Annotated[str | None, _option(BUDGET, "3ms, or 0.5x (the default).", "TIME")] = None,
    max_size: Annotated[str | None, _option(BUDGET, "Of the weights: 200kB, or 0.25x.", "SIZE")] = None,
    max_memory: Annotated[str | None, _option(BUDGET, "Peak of the activations: 1MB.", "SIZE")] = None,
    max_energy: Annotated[str | None, _option(BUDGET, "Of one inference: 5mJ, or 0.5x.", "ENERGY")] = None,
    max_macs: Annotated[str | None, _option(BUDGET, "40MMACs, or 0.5x.", "MACS")] = None,
    max_dsp: Annotated[str | None, _option(BUDGET, "DSP slices of an FPGA's core.", "N")] = None,
    max_bram: Annotated[str | None, _option(BUDGET, "Its block RAMs of 36 kbit.", "N")] = None,
    max_drop: Annotated[
        str | None, _option(BUDGET, "Points; then the latency is minimised.", "POINTS")
    ] = None,
    risk: Annotated[str | None, _option(BUDGET, "0.9 judges the latency's upper bound.", "SHARE")] = None,
    methods: Annotated[
        str | None, _option(SPACE, "See `search methods`; prune,quantize,factorize,depth.", "LIST")
    ] = None,
    bits: Annotated[str | None, _option(SPACE, "Weight bits to choose from, such as 4,8.", "LIST")] = None,
    min_keep: Annotated[str | None, _option(SPACE, "Smallest share of channels kept.", "SHARE")] = None,
    skip: Annotated[
        list[str] | None, _option(SPACE, "Layers left alone: 'head.*'; repeatable.", "GLOB")
    ] = None,
    strict: Annotated[bool, _flag(SPACE, "What cannot be compressed is an error.", "--strict")] = False,
    agent: Annotated[str | None, _option(SEARCH, "Who proposes: see `search agents`.", "NAME")] = None,
    evaluations: Annotated[str | None, _option(SEARCH, "Policies to evaluate.", "N")] = None,
    timeout: Annotated[str | None, _option(SEARCH, "Search no longer than 10m.", "TIME")] = None,
    recover: Annotated[str | None, _option(SEARCH, "Short fine-tuning, 45s; 0 for none.", "TIME")] = None,
    seed: Annotated[str | None, _option(SEARCH, "The same seed, the same search.", "N")] = None,
    workers: Annotated[str | None, _option(SEARCH, "Processes that evaluate.", "N")] = None,
    ray_address: Annotated[
        str | None, _option(SEARCH, "The Ray cluster they run in: host:port.", "ADDRESS")
    ] = None,
    deterministic: Annotated[
        bool, _flag(SEARCH, "The same trials for any number of workers.", "--deterministic")
    ] = False,
    evaluation_timeout: Annotated[
        str | None, _option(SEARCH, "One evaluation takes no longer: 60s.", "TIME")
    ] = None,
    pool: Annotated[
        str | None, _option(SEARCH, "Shared accuracies: a file, postgresql://user@host/db, or off.", "PATH")
    ] = None,
    threads: Threads = None,
    batch: Batch = None,
    host: Host = None,
    token: Token = None,
    profile: Annotated[str | None, _option(DEVICE, "Measure kernels so long first: 2m.", "TIME")] = None,
    measure: Annotated[str | None, _option(DEVICE, "never, final, front or active.", "WHEN")] = None,
    accept_unstable: AcceptUnstable = False,
    out: Out = None,
    resume: Annotated[str | None, _option(OUTPUT, "Go on with a run: folder, id, 'latest'.", "RUN")] = None,
    warm_start: Annotated[str | None, _option(OUTPUT, "Learn a run's outcomes first.", "RUN")] = None,
    dry_run: Annotated[
        bool, _flag(OUTPUT, "Resolve all, score one policy, estimate time.", "--dry-run")
    ] = False,
    json_: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    debug: Debug = False,
    version: Annotated[bool, _flag(OUTPUT, "Show the version.", "--version")] = False,
) -> None:
    """Finds, layer by layer, how far to prune, quantise and factorise a network so that it fits a device.

    `search --target raspberry-pi` searches; the commands below do the rest, each with its own --help.
    """
    given = merged({key: ctx.params[key] for key in ctx.params if key in _CONFIG_FLAGS})
    if ctx.invoked_subcommand is not None:
        _refuse_flags_before(ctx.invoked_subcommand, {**given, "set": set_, "config": config})
        return
    if version:
        say(f"tailorbird {_version()}")
        return
    session.quiet, session.verbose = quiet, verbose
    if not given and not set_ and config is None:
        say(ctx.get_help())
        return
    run_all(resolve(given, set_ or [], config))


#: Parameters of the command that are fields of the config.
_CONFIG_FLAGS = frozenset(inspect.signature(search_command).parameters) - {
    "ctx", "config", "set_", "json_", "quiet", "verbose", "debug", "version",
}  # fmt: skip


def resolve(flags: Mapping[str, Any], sets: list[str], file: Path | None) -> RunConfig:
    """The config of this call; with `--resume` the run's own, changed where that is allowed."""
    from search.config import load_config, read_sets, resumed_config
    from search.group import find_group, resumed_group

    if flags.get("resume") is None:
        return load_config(flags, sets, file)
    if file is not None:
        raise UsageError("--resume and --config exclude each other.", "A run has its own config.yaml.")
    changed, group = {**read_sets(sets), **flags}, find_group(flags["resume"])
    return resumed_config(changed) if group is None else resumed_group(group, changed)


def run_all(config: RunConfig) -> None:
    """Searches for every target; prints each result. Raises Interrupted after Ctrl-C."""
    if len(config.target) > 1 and not config.dry_run:
        from search.cli_together import run_together

        both = sys.stdout.isatty() and sys.stderr.isatty()
        run_together(config, header=session.quiet or session.json or not both)
        return
    from search import engine
    from search.cli_progress import make_progress
    from search.console import render

    engine.check(config)
    documents = []
    configs = config.for_each_target()
    for one in configs:
        before = _journal_of(one)
        progress = make_progress(session.quiet or session.json, session.verbose)
        with stop_on_interrupt(progress.note) as stop:
            try:
                result = engine.run(one, progress, stop, command=as_typed(sys.argv[1:]))
            except KeyboardInterrupt:
                session.resume_hint = way_on(one, before, _journal_of(one))
                raise
            finally:
                progress.close()
        if result.results["run"]["state"] == "interrupted":
            raise _interrupted(result.folder, result.results)
        documents.append(result.results)
        if not session.json:
            say(render(result.results, result.folder, header=_wants_header(progress)))
            if one.dry_run:
                say(estimate(one, result.results))
        if stop.is_set() and len(documents) < len(configs):
            raise Interrupted(f"interrupted after {len(documents)} of {len(configs)} targets")
    if session.json:
        answer(documents[0] if len(documents) == 1 else {"runs": documents}, str)


def _journal_of(config: RunConfig) -> Path | None:
    """The journal that a run of this config appends to, if it is there; by its real path."""
    from search.runfolder import JOURNAL, LATEST, RUNS

    path = Path(config.resume or config.out or RUNS / LATEST, JOURNAL)
    return path.resolve() if path.is_file() else None


def estimate(config: RunConfig, results: Results) -> str:
    """How long the whole run would take, from what one evaluation took."""
    from search.units import format_seconds

    timings, done = results.get("timings") or {}, results["search"]["evaluated"]
    each = timings.get("search", 0.0) / max(1, done)
    search = min(each * config.evaluations / config.workers, config.timeout_seconds or float("inf"))
    whole = sum(timings.values()) + search + config.recover_seconds
    parts = (
        f"{config.evaluations} evaluations of {each:.2f} s, recovery {format_seconds(config.recover_seconds)}"
    )
    return f"estimate  about {format_seconds(whole)} in all: {parts}"


def _wants_header(progress: Progress) -> bool:
    """Whether stdout needs the header lines; not where a person has just seen them on the same terminal."""
    from search.console import Silent

    return isinstance(progress, Silent) or not (sys.stdout.isatty() and sys.stderr.isatty())


def _interrupted(folder: Path, results: Mapping[str, Any]) -> Interrupted:
    done, planned = results["search"]["evaluated"], results["search"]["planned"]
    return Interrupted(
        f"interrupted after {done} of {planned} evaluations, state saved in {folder}",
        f"Go on with `search --resume {folder}`.",
    )


def _refuse_flags_before(command: str, given: Mapping[str, Any]) -> None:
    for key in merged(given):
        flag = "--" + key.replace("_", "-")
        raise UsageError(
            f"{flag} stands before the command.", f"Write it behind: `search {command} {flag} ...`."
        )


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("tailorbird")
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "0+unknown"
