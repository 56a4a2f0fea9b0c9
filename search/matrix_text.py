"""The policy x device matrix as text and as cells of a table, drawn from the results document alone."""

from __future__ import annotations

from search.console import table
from search.results import Cell, Matrix, MatrixRow
from search.units import format_metric, format_ms

#: Columns of a table at most, the first one included; more targets stand below.
COLUMNS = 6


def matrix_cells(matrix: Matrix, unit: str) -> list[list[str]]:
    """The table's cells, heading first: a row for each picked policy, then the common one."""
    targets = [cell["target"] for cell in matrix["rows"][0]["cells"]]
    rows = [["picked for", *targets]]
    rows += [[_name(row), *(_cell(cell, unit) for cell in row["cells"])] for row in _rows(matrix)]
    return rows


def matrix_lines(matrix: Matrix, metric: str, unit: str) -> list[str]:
    """What is printed: title, table, what the marks mean, which policy serves all."""
    cells = matrix_cells(matrix, unit)
    lines = [f"Every target's policy on every target: {metric} not recovered, latency as for the budget"]
    for start in range(1, len(cells[0]), COLUMNS - 1):
        part = [[row[0], *row[start : start + COLUMNS - 1]] for row in cells]
        lines += [f"  {line}" for line in table(part, left=(0,))]
    every = [cell for row in _rows(matrix) for cell in row["cells"]]
    if any(not cell["feasible"] for cell in every):
        lines.append("  (!) outside that target's budget")
    if any(not cell["same"] for cell in every):
        lines.append("  ~ the nearest policy that this target executes")
    return [*lines, common_line(matrix, metric, unit), cost_line(matrix)]


def common_line(matrix: Matrix, metric: str, unit: str) -> str:
    """Which policy serves every target."""
    common = matrix["common"]
    if common is None:
        return "common    no policy was found that every target executes as it is, inside all budgets"
    cells = common["cells"]
    worst = max(cells, key=lambda cell: cell["drop"])
    score = format_metric(worst["validation"]["value"], unit)
    return f"common    {cells[0]['digest']}: {metric} {score} or better on all, inside all budgets"


def cost_line(matrix: Matrix) -> str:
    """How many evaluations it took."""
    further = f", and {matrix['further']} for this table" if matrix["further"] else ""
    return f"evaluated {matrix['evaluations']} policies for {len(matrix['rows'])} targets{further}"


def _rows(matrix: Matrix) -> list[MatrixRow]:
    common = matrix["common"]
    return matrix["rows"] if common is None else [*matrix["rows"], common]


def _name(row: MatrixRow) -> str:
    return row["policy"] if row["policy"] != "common" else "(common)"


def _cell(cell: Cell, unit: str) -> str:
    latency = cell["costs"].get("latency_ms")
    shown = "" if latency is None else f"  {format_ms(latency['value'])}"
    near = "" if cell["same"] else "~ "
    held = "" if cell["feasible"] else " (!)"
    return f"{near}{format_metric(cell['validation']['value'], unit)}{shown}{held}"


__all__ = ["common_line", "cost_line", "matrix_cells", "matrix_lines"]
