"""Run folders as tables and pictures."""

from hydraprune.report.summary import as_markdown, as_table, draw, read_records, rows

__all__ = ["as_markdown", "as_table", "draw", "read_records", "rows"]
