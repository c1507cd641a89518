"""Frozen, validated settings: the class that runs is the class that a recipe validates."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from hydraprune.core.errors import SpecError
from hydraprune.core.sealed import unsealed, with_digest


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error sentence: the closest known name, in small letters or capitals, or all of them."""
    names = {known.lower(): known for known in sorted(known, reverse=True)}
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    return f"did you mean {names[close[0]]!r}?" if close else f"known: {', '.join(sorted(names.values())) or 'none'}"


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first of `names`, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def said(value: Any) -> str:
    """What `value` is, in a few words of an error sentence."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str | int | float | BaseModel | None):
        return repr(value)
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {', '.join(map(repr, value)) or 'nothing'}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {', '.join(type(part).__name__ for part in value) or 'nothing'}"
    return f"a {type(value).__name__}"


def whole(value: Any, name: str, least: int = 0) -> int:
    """`value` as an int, for arguments that are no settings: a seed, a number of epochs.

    Raises:
        SpecError: unless it is a whole number of at least `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise SpecError(f"{name} is {said(value)}; give a whole number of at least {least}")
    return number


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a number")
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
Several = Annotated[int, Field(ge=1, le=2**62, strict=True)]
"""A measured number of things, of which there is one at least."""
Real = Annotated[float, Field(ge=-1e30, le=1e30, strict=True)]
"""A measured number that can be reckoned and drawn with."""


class Spec(BaseModel):
    """Base of every setting: immutable, no unknown keys, built from Python or from YAML alike.

    A method is its own spec: it declares `kind: Literal["its-name"] = "its-name"` and its fields, and is callable.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)

    def __init__(self, *positional: Any, **values: Any) -> None:
        if positional:
            raise SpecError(f"{type(self).__name__} takes its settings by name{self._such_as(positional[0])}")
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

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool):
            annotation = cls.model_fields[str(info.field_name)].annotation
            kinds = {annotation, *get_args(annotation)}
            if kinds & {int, float} and bool not in kinds:
                raise ValueError(f"{value} is not a number")
        return value

    @classmethod
    def _such_as(cls, value: Any) -> str:
        """The end of an error sentence: how a bare `value` may have been meant."""
        if isinstance(value, Mapping):
            return f", such as {cls.__name__}(**{value!r})"
        needed = [name for name, field in cls.model_fields.items() if field.is_required()]
        names = needed or [name for name in cls.model_fields if (name == "kind") == isinstance(value, str)]
        return f", such as {cls.__name__}({names[0]}={value!r})" if names else f": {cls.__name__}()"

    @classmethod
    def make(cls, value: Any, where: str) -> Self:
        """`value` if it has this type already, or made of a mapping of settings; `where` is what it was given for.

        Raises:
            SpecError: for anything else; the message says how to write it.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            return cls.parse(dict(value), where)
        if isinstance(value, type):
            raise SpecError(f"{where} is the class {value.__name__}; call it: {value.__name__}(...)")
        bare = isinstance(value, str | int | float) and not isinstance(value, bool)
        raise SpecError(
            f"{where} is {said(value)}; give {cls.__name__}(...) or its settings by name"
            + (cls._such_as(value) if bare else "")
        )

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

    def require(self) -> None:
        """See that the packages are there that this method, and those in its settings, need.

        Raises:
            MissingError: if one is not; it says how to install it.
        """
        for value in vars(self).values():
            for part in value if isinstance(value, list | tuple) else [value]:
                if isinstance(part, Spec):
                    part.require()

    def plain(self) -> dict[str, Any]:
        """The settings as JSON-ready values, defaults included."""
        return self.model_dump(mode="json")


class Sealed(Spec):
    """A record in a file: it is written with its digest, and refused where that is not of its entries.

    One without a digest, such as another program makes, is taken as it is.
    """

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, values: Any) -> Any:
        return unsealed(values) if isinstance(values, dict) else values

    def plain(self) -> dict[str, Any]:
        return with_digest(super().plain())


def sentence(error: ValidationError, where: str) -> str:
    """Every complaint of pydantic on one line, each with its path below `where`."""
    lines = []
    for item in error.errors(include_url=False):
        path = ".".join([where, *(str(part) for part in item["loc"])])
        message = item["msg"].removeprefix("Value error, ")
        value = item["input"]
        shown = "" if isinstance(value, dict | list | BaseModel) or repr(value) in message else f" (got {said(value)})"
        lines.append(f"{path}: {message}{shown}")
    return "; ".join(dict.fromkeys(lines))
