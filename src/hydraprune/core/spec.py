"""Frozen, validated settings: the class that runs is the class that a recipe validates."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fractions import Fraction
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from hydraprune.core.errors import SpecError


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the closest known name, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names) or 'none'}"


def _number(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return float(Fraction(value.replace(" ", "")))
    except (ValueError, ArithmeticError):
        raise ValueError(f"{value!r} is not a number or a fraction such as 8/255") from None


Number = Annotated[float, BeforeValidator(_number)]
"""A float that may be written as a fraction, such as `8/255`."""


Share = Annotated[float, Field(ge=0, le=1, strict=True)]
"""A measured share; no text and no truth value stands for it."""
Count = Annotated[int, Field(ge=0, le=2**62, strict=True)]
"""A measured number of things."""
Real = Annotated[float, Field(ge=-1e30, le=1e30, strict=True)]
"""A measured number that can be reckoned and drawn with."""


class Spec(BaseModel):
    """Base of every setting: immutable, no unknown keys, built from Python or from YAML alike.

    A method is its own spec: it declares `kind: Literal["its-name"] = "its-name"` and its fields, and is callable.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SpecError(sentence(error, type(self).__name__)) from None

    # Tells pydantic to validate nested settings by itself, so that an error's path starts at the outermost.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key {str(key)!r}; {nearest(str(key), cls.model_fields)}")
        return values

    @classmethod
    def parse(cls, values: Any, where: str) -> Self:
        """Validate `values` (a mapping read from YAML or JSON); errors quote the path below `where`.

        Raises:
            SpecError: naming each bad value, its path and what was expected.
        """
        if not isinstance(values, dict):
            raise SpecError(f"{where}: expected a mapping of settings, got {values!r}")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SpecError(sentence(error, where)) from None

    def plain(self) -> dict[str, Any]:
        """The settings as JSON-ready values, defaults included."""
        return self.model_dump(mode="json")


def sentence(error: ValidationError, where: str) -> str:
    """Every complaint of pydantic on one line, each with its path below `where`."""
    lines = []
    for item in error.errors(include_url=False):
        path = ".".join([where, *(str(part) for part in item["loc"])])
        message = item["msg"].removeprefix("Value error, ")
        value = item["input"]
        shown = "" if isinstance(value, dict | list | BaseModel) or repr(value) in message else f" (got {value!r})"
        lines.append(f"{path}: {message}{shown}")
    return "; ".join(dict.fromkeys(lines))
