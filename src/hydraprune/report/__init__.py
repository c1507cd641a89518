"""Run folders as tables, pictures and a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydraprune.core.lazy import lazy

if TYPE_CHECKING:
    from hydraprune.report.artifacts import against_size, speeds
    from hydraprune.report.experiment import rows
    from hydraprune.report.page import write_page
    from hydraprune.report.picture import draw, paint
    from hydraprune.report.summary import Row, as_markdown, as_table
    from hydraprune.runs.records import read_records

__all__ = [
    "Row",
    "against_size",
    "as_markdown",
    "as_table",
    "draw",
    "paint",
    "read_records",
    "rows",
    "speeds",
    "write_page",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__)
