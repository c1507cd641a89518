"""Named variables of a recipe: one word for settings that change together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from pydantic import Field, model_validator

from hydraprune.core.spec import Spec
from hydraprune.pruners import PRUNERS

FAMILY = {None: "one-shot", "scores": "learned", "weights": "moving"}
"""What cases call a pruner, by what it trains."""


class Variable(Spec):
    """A word for a setting, such as `sparsity` for `stages.prune.budget.sparsity`; written as that path, or with cases.

    Args:
        path: the setting that takes the value.
        cases: what else is set, by value: `{0.99: {path.to.key: value}}`. Of a pruner also by what it is: `one-shot`,
            `learned` or `moving`.

    Sample: `variables: {sparsity: stages.prune.budget.sparsity}`
    """

    path: str = Field(pattern=r"^\w+(\.[\w-]+)*$")
    cases: dict[str, dict[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _written(cls, values: Any) -> Any:
        if isinstance(values, str):
            return {"path": values}
        if isinstance(values, dict) and isinstance(values.get("cases"), Mapping):
            return values | {"cases": {short_name(value): changes for value, changes in values["cases"].items()}}
        return values

    def paths(self) -> list[str]:
        """Every setting that it may change."""
        return [self.path, *(path for changes in self.cases.values() for path in changes)]

    def changes(self, value: Any) -> dict[str, Any]:
        """path.to.key -> what is set there, for a value of the variable."""
        found: dict[str, Any] = {self.path: value}
        if self.path.rpartition(".")[2] == "pruner":
            kind = str(value.get("kind") if isinstance(value, Mapping) else value)
            found |= self.cases.get(FAMILY[PRUNERS.get(kind).over], {}) | self.cases.get(kind, {})
        for case, changes in self.cases.items():  # the closest comes last
            if case == short_name(value) or _number(case) == _number(value) is not None:
                found |= changes
        return found


def _number(value: Any) -> float | None:
    """The number that is written as `1e-3`, `0.001` or `1/1000`."""
    try:
        return float(Fraction(str(value)))
    except (ValueError, ArithmeticError):
        return None


def short_name(value: Any) -> str:
    """A short name of a value, fit for a folder."""
    if isinstance(value, list) and len(value) == 1:
        return short_name(value[0])
    if isinstance(value, Mapping):
        own = {key: inner for key, inner in value.items() if key != "kind"}
        parts = [str(value["kind"])] if "kind" in value else []
        value = "-".join([*parts, *(f"{key}-{short_name(inner)}" for key, inner in own.items())])
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^\w.+-]+", "-", text).rstrip("-")
