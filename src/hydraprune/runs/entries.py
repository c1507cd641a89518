"""Values out of files that may be damaged: each is checked where it is read, and one that does not fit is left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import ConfigDict, model_validator

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.core.spec import Spec

Told = Callable[[str], None]
"""Gets a line about each value that is left out."""
S = TypeVar("S", bound=Spec)
REMEDY = "restore the file, or measure again"


class Entry(Spec):
    """Base of what is read from a file that others write, and may write more into."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        return values


def parsed(kind: type[S], value: Any, where: str, remedy: str = REMEDY) -> S:
    """`value` as an entry of that kind.

    Raises:
        CheckpointError: if it does not fit; it names the entry, what is wrong, and the `remedy`.
    """
    try:
        return kind.parse(value, where)
    except SpecError as error:
        text = " ".join(str(error).split())
        raise CheckpointError(f"{text[:300]}{'...' * (len(text) > 300)}; {remedy}") from None


def each(kind: type[S], values: Any, where: str, told: Told) -> list[S]:
    """The entries of a list that fit.

    Raises:
        CheckpointError: if it is no list.
    """
    if not isinstance(values, list):
        raise CheckpointError(f"{where} holds no list; {REMEDY}")
    found = []
    for number, value in enumerate(values):
        try:
            found.append(parsed(kind, value, f"{where}[{number}]"))
        except CheckpointError as error:
            told(str(error))
    return found


def named(kind: type[S], values: Any, where: str, told: Told) -> dict[str, S]:
    """The entries of a mapping that fit.

    Raises:
        CheckpointError: if it is no mapping.
    """
    found = {}
    for name, value in mapping(values, where).items():
        try:
            found[name] = parsed(kind, value, f"{where}: {name}")
        except CheckpointError as error:
            told(str(error))
    return found


def mapping(value: Any, where: str) -> dict[str, Any]:
    """`value`, which is a mapping with names that can be printed.

    Raises:
        CheckpointError: if it is not.
    """
    if not isinstance(value, dict) or not all(isinstance(name, str) and _printable(name) for name in value):
        raise CheckpointError(f"{where} holds no mapping with names; {REMEDY}")
    return value


DEPTH, LARGEST = 32, 2**62
"""How deeply plain values may be nested, and the largest integer among them."""


def plain(value: Any, depth: int = DEPTH) -> Any:
    """`value`, which is made of mappings, lists, text and finite numbers.

    Raises:
        ValueError: if it is not, saying why.
    """
    if depth == 0:
        raise ValueError("it is nested too deeply")
    if isinstance(value, dict):
        if not all(isinstance(name, str) for name in value):
            raise ValueError("it has a name that is no text")
        return {plain(name): plain(inner, depth - 1) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner, depth - 1) for inner in value]
    if isinstance(value, str) and not _printable(value):
        raise ValueError("it has a letter that cannot be written")
    if isinstance(value, int | float) and not abs(value) <= LARGEST:
        raise ValueError("it has a number beyond reason")
    if not isinstance(value, str | int | float | None):
        raise ValueError(f"it has a {type(value).__name__}")
    return value


def _printable(text: str) -> bool:
    """Whether it is Unicode; JSON can name halves of letters."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
