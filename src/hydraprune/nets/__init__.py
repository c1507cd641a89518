"""Networks: ordinary modules that know nothing of pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydraprune.core.lazy import lazy

if TYPE_CHECKING:
    from hydraprune.nets.built_in import names
    from hydraprune.nets.spec import Net

__all__ = ["Net", "names"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy(__name__)
