"""The commands besides the search itself. Each calls one function of the engine and prints what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from search import cli_run as flags
from search.cli_support import answer, merged

Run = Annotated[str, typer.Argument(help="A run: its folder, its id, or 'latest'.", metavar="RUN")]


def targets(json_: flags.Json = False, debug: flags.Debug = False) -> None:
    """List devices, and what their predictions rest on."""
    from hw_profiles.target import list_targets, load_target

    found = []
    for name in list_targets():
        t = load_target(name)
        status, error = t.validation.status, t.validation.median_error
        found.append(
            {
                "name": t.name,
                "aliases": list(t.aliases),
                "title": t.title,
                "kind": t.kind,
                "runtime": t.runtime.name,
                "validation": status if error is None else f"{100 * error:.1f} % median error",
                "backing": t.backing,
            }
        )

    def text() -> str:
        rows = [["target", "also", "device", "prediction"]]
        rows += [
            [str(f["name"]), ", ".join(f["aliases"]), str(f["title"]), str(f["validation"])] for f in found
        ]
        return _table(rows)

    answer({"targets": found}, text)


def tasks(json_: flags.Json = False, debug: flags.Debug = False) -> None:
    """List the built-in tasks (yours: --task file.py:function)."""
    from search.task import list_tasks

    _named("tasks", "task", list_tasks())


def agents(json_: flags.Json = False, debug: flags.Debug = False) -> None:
    """List the agents; the first is the default."""
    from agents.registry import list_agents

    _named("agents", "agent", list_agents())


def methods(json_: flags.Json = False, debug: flags.Debug = False) -> None:
    """List what may be done to a network; * is done by default."""
    from search.methods import list_methods

    found = list_methods()
    rows = [["kind", "name", "", "what it is"]]
    rows += [[f["kind"], f["name"], f["default"], f["summary"]] for f in found]
    answer({"methods": found}, lambda: _table(rows))


def _named(key: str, one: str, summaries: dict[str, str]) -> None:
    listed = [{"name": name, "summary": summary} for name, summary in summaries.items()]
    answer({key: listed}, lambda: _table([[one, "what it is"], *([n, s] for n, s in summaries.items())]))


def _table(rows: list[list[str]]) -> str:
    from search.console import table

    return "\n".join(table(rows, left=range(len(rows[0]))))


def predict(
    onnx: Annotated[Path, typer.Option(help="Any ONNX network.", metavar="FILE")],
    target: Annotated[str, typer.Option("--target", "-t", help="Device.", metavar="NAME")],
    threads: flags.Threads = None,
    batch: flags.Batch = None,
    json_: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Predict what any ONNX network costs on a target."""
    from search import engine
    from search.console import render_prediction

    found = engine.predict(onnx, target, threads=threads, batch=batch)
    answer(found, lambda: render_prediction(found))


def apply(
    policy: Annotated[Path, typer.Option(help="A policy.json.", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="Write to this folder.", metavar="DIR")],
    target: flags.Target = None,
    task: flags.Task = None,
    model: flags.Model = None,
    checkpoint: flags.Checkpoint = None,
    data: flags.Data = None,
    metric: flags.Metric = None,
    config: flags.Config = None,
    set_: flags.Sets = None,
    json_: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Make a compressed network from its policy alone."""
    from search import engine
    from search.config import load_config
    from search.console import render_applied

    given = {
        "target": target,
        "task": task,
        "model": model,
        "checkpoint": checkpoint,
        "data": data,
        "metric": metric,
    }
    found = engine.apply_policy(policy, load_config(merged(given), set_ or [], config), out)
    answer(found, lambda: render_applied(found, out))


def profile(
    target: Annotated[str, typer.Option("--target", "-t", help="Device.", metavar="NAME")] = "local",
    host: flags.Host = None,
    token: flags.Token = None,
    time: Annotated[str, typer.Option(help="Measure so long: 5m, 90s.", metavar="TIME")] = "5m",
    task: flags.Task = None,
    threads: flags.Threads = None,
    accept_unstable: flags.AcceptUnstable = False,
    add: Annotated[
        Path | None,
        typer.Option(help="Merge a profile that somebody shared; measures nothing.", metavar="FILE"),
    ] = None,
    share: Annotated[
        Path | None, typer.Option(help="Write the profile to share it: .jsonl or .jsonl.gz.", metavar="FILE")
    ] = None,
    json_: flags.Json = False,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
) -> None:
    """Measure kernels on a device; predictions for it rest on them from then on. Goes on where it was."""
    from search.cli_profile import run_profile

    run_profile(target, host, token, time, task, threads, accept_unstable, add, share, quiet)


def measure(
    what: Annotated[str, typer.Argument(help="A run, or an ONNX file.", metavar="RUN|FILE")],
    host: flags.Host = None,
    token: flags.Token = None,
    soak: Annotated[
        str | None, typer.Option(help="Run so long first: 60s on a --host, 0 here.", metavar="TIME")
    ] = None,
    accept_unstable: flags.AcceptUnstable = False,
    threads: flags.Threads = None,
    batch: flags.Batch = None,
    json_: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Time a run's networks, or an ONNX file, on this machine or on a --host."""
    from search import engine
    from search.console import render_measurement
    from search.units import parse_seconds

    found = engine.measure_run(
        what,
        threads,
        batch,
        host,
        token,
        None if soak is None else parse_seconds(soak, "--soak"),
        accept_unstable,
    )
    answer(found, lambda: render_measurement(found))


def export(
    run: Run,
    point: Annotated[int, typer.Option(help="Number of a point, as in the table.", metavar="N", min=1)],
    out: Annotated[
        Path | None, typer.Option(help="Write to this folder; else into the run's.", metavar="DIR")
    ] = None,
    json_: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Export any point of a run's front, verified."""
    from search import engine
    from search.console import render_applied
    from search.runfolder import RunFolder

    folder = RunFolder.find(run).path
    found, where = engine.export_point(folder, point, out)
    answer(found, lambda: render_applied(found, where))


def report(run: Run, json_: flags.Json = False, debug: flags.Debug = False) -> None:
    """Print a run's result and write its report.html again."""
    from search.console import render
    from search.report import write_report
    from search.results import read_results
    from search.runfolder import RunFolder

    folder = RunFolder.find(run)
    results = read_results(folder.results)
    path = write_report(folder.path)
    answer(
        {"report": str(path), "results": results}, lambda: f"{render(results, folder.path)}report    {path}\n"
    )


def doctor(
    threats: Annotated[
        bool, typer.Option("--threats", help="Show what input from outside can do, and what holds it.")
    ] = False,
    json_: flags.Json = False,
    debug: flags.Debug = False,
) -> None:
    """Check this machine: versions, processor, folders, clock."""
    if threats:
        from search.safety import THREATS, page

        answer({"threats": [t.to_dict() for t in THREATS]}, page)
        return
    from search.doctor import examine

    findings = examine()
    good = all(f.good for f in findings)
    document: dict[str, Any] = {"good": good, "findings": [f.to_dict() for f in findings]}
    rows = [["ok" if f.good else "BAD", f.name, f.text] for f in findings]
    answer(document, lambda: _table(rows))
    if not good:
        raise typer.Exit(1)


#: In the order that the help shows them.
COMMANDS = (targets, tasks, agents, methods, predict, apply, profile, measure, export, report, doctor)
