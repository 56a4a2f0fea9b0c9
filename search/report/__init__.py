"""The report of a run: `write_report(folder)` makes `report.html` from `results.json`."""

from search.report.page import render_page, write_report

__all__ = ["render_page", "write_report"]
