"""Help in plain text, flags grouped by what they are about. rich's help alone would take 0.2 s."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


def _write_options(params: list[Any], ctx: Any, formatter: Any) -> None:
    groups: dict[str, list[tuple[str, str]]] = {}
    for param in params:
        record = param.get_help_record(ctx)
        if record is not None:
            title = getattr(param, "rich_help_panel", None) or "Other"
            if getattr(param, "param_type_name", "") == "argument":
                title = "Arguments"
            groups.setdefault(title, []).append(record)
    other = groups.pop("Other", None)
    for title, records in [*groups.items(), *([("Other", other)] if other else [])]:
        with formatter.section(title):
            formatter.write_dl(records)


class GroupedCommand(TyperCommand):
    """A command whose help groups its options by their panel."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_options(self.get_params(ctx), ctx, formatter)


class GroupedGroup(TyperGroup):
    """The same for the command that has the others below it; in the order they were added."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        _write_options(self.get_params(ctx), ctx, formatter)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(self.commands)
