"""Grids of recipes: every combination is a run, what they share is trained once, and tables compare them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydraprune.core.lazy import lazy

if TYPE_CHECKING:
    from hydraprune.study.schema import Cell, Study, load_study, names
    from hydraprune.study.settle import standing
    from hydraprune.study.table import differences, results, study_in
    from hydraprune.study.work import run_study

__all__ = ["Cell", "Study", "differences", "load_study", "names", "results", "run_study", "standing", "study_in"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__)
