"""Run folders as tables, pictures and a page."""

from hydraprune.report.page import write_page
from hydraprune.report.picture import draw
from hydraprune.report.summary import as_markdown, as_table, rows
from hydraprune.runs.records import read_records

__all__ = ["as_markdown", "as_table", "draw", "read_records", "rows", "write_page"]
