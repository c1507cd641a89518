"""Names to classes, imported only when used; other packages add theirs by entry points."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import core_schema

from hydraprune.core.errors import SpecError
from hydraprune.core.spec import Spec, nearest, said, sentence

S = TypeVar("S", bound=Spec)


class Registry(Generic[S]):
    """A table `name -> "module:Class"` of one noun ("objective", "pruner", ...).

    A package outside adds a method by an entry point in the group `hydraprune.<noun>`, named as the method and
    pointing at its class.
    """

    def __init__(self, noun: str, base: type[S], table: dict[str, str]) -> None:
        self.noun = noun
        self._base = base
        self._table = dict(table)
        for entry in entry_points(group=f"hydraprune.{noun}"):
            if entry.name in self._table:
                raise SpecError(f"the plug-in {entry.value!r} takes the name of the {noun} {entry.name!r}; rename it")
            self._table[entry.name] = entry.value

    def names(self) -> list[str]:
        """All names, in the order of the table."""
        return list(self._table)

    def get(self, name: str) -> type[S]:
        """The class called `name`.

        Raises:
            SpecError: if there is none; the message names the nearest.
        """
        if name not in self._table:
            raise SpecError(f"unknown {self.noun} {name!r}; {nearest(name, self._table)}")
        module, _, attribute = self._table[name].partition(":")
        found = getattr(import_module(module), attribute)
        if not issubclass(found, self._base):
            raise SpecError(f"{self._table[name]} is no {self._base.__name__}; register a subclass of it")
        return found

    def make(self, values: Any, where: str) -> S:
        """Build from `{"kind": name, **settings}` or from a bare name, or pass an instance through.

        Raises:
            SpecError: for an unknown kind, a bad setting or a bare class; the message quotes the path below `where`.
        """
        try:
            return self._make(values)
        except ValidationError as error:
            raise SpecError(sentence(error, where)) from None
        except ValueError as error:
            raise SpecError(f"{where}: {error}") from None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Lets a spec hold any of these methods: `objective: Annotated[Objective, OBJECTIVES]`."""
        return core_schema.no_info_plain_validator_function(
            self._make, serialization=core_schema.plain_serializer_function_ser_schema(lambda method: method.plain())
        )

    def _make(self, values: Any) -> S:
        # Pydantic takes a ValueError, or a ValidationError with its paths, and puts its own path before it.
        if isinstance(values, self._base):
            return values
        if isinstance(values, type) and issubclass(values, self._base):
            raise ValueError(f"{values.__name__} is a class; call it: {values.__name__}(...)")
        if isinstance(values, str):
            values = {"kind": values}
        if not isinstance(values, dict) or "kind" not in values:
            shown = repr(values) if isinstance(values, dict) else said(values)
            raise ValueError(f"expected {{kind: ...}}, got {shown}; kinds: {', '.join(self._table)}")
        try:
            found = self.get(str(values["kind"]))
        except SpecError as error:
            raise ValueError(str(error)) from None
        return found.model_validate(values)
