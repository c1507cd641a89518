"""Names to classes, imported only when used; other packages add theirs by entry points."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache, cached_property, partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import core_schema

from hydraprune.core.errors import SpecError
from hydraprune.core.lazy import source
from hydraprune.core.spec import Spec, nearest, said, sentence

S = TypeVar("S", bound=Spec)


class Registry(Generic[S]):
    """A table `name -> "module:Class"` of one noun ("objective", "pruner", ...).

    A package outside adds a method by an entry point in the group `hydraprune.<noun>`, named as the method and
    pointing at its class. A plug-in with a defect is an error where it is used, and nowhere else.

    Args:
        noun: what the methods are.
        base: `module:Class` of which all are subclasses.
        table: of the package.
    """

    def __init__(self, noun: str, base: str, table: dict[str, str]) -> None:
        self.noun = noun
        self._base_entry = EntryPoint(noun, base, "")
        group = f"hydraprune.{noun}"
        self._table = {name: [EntryPoint(name, value, group)] for name, value in table.items()}
        for entry in entry_points(group=group):
            self._table.setdefault(entry.name, []).append(entry)

    def names(self) -> list[str]:
        """All names, in the order of the table."""
        return list(self._table)

    def about(self, name: str) -> str:
        """The first line of what the class says of itself, which is not imported; of a plug-in, where it comes from."""
        entry, *others = self._table[name]
        if others or entry.dist is not None:
            return " and ".join(_origin(one) for one in others or [entry])
        return _about(entry.module).get(entry.attr, "")

    def classes(self) -> dict[str, Callable[[], type[S]]]:
        """The name of each class -> what gives it, as `get` does; of two with one name, the first."""
        found: dict[str, Callable[[], type[S]]] = {}
        for name, (entry, *_) in self._table.items():
            found.setdefault(entry.value.rpartition(":")[2], partial(self.get, name))
        return found

    @cached_property
    def _base(self) -> type[S]:
        return self._base_entry.load()

    def get(self, name: str) -> type[S]:
        """The class called `name`.

        Raises:
            SpecError: if there is none (the message names the nearest), if several have the name, or if what is
                registered is no such class.
        """
        if name not in self._table:
            raise SpecError(f"unknown {self.noun} {name!r}; {nearest(name, self._table)}")
        entry, *others = self._table[name]
        if others:
            takers = " and ".join(_origin(other) for other in others)
            raise SpecError(f"{takers} takes the name of the {self.noun} {name!r}; rename or uninstall it")
        try:
            found = entry.load()
        except (Exception, SystemExit) as error:  # a plug-in may fail in any way it likes
            why = f"{type(error).__name__}: {error}"
            raise SpecError(f"{_origin(entry)}, the {self.noun} {name!r}, cannot be imported ({why})") from error
        if not isinstance(found, type) or not issubclass(found, self._base):
            raise SpecError(f"{_origin(entry)} is no {self._base.__name__}; register a subclass of it")
        if missing := ", ".join(sorted(getattr(found, "__abstractmethods__", ()))):
            raise SpecError(f"{_origin(entry)}, the {self.noun} {name!r}, lacks {missing}; implement it")
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


@cache
def _about(module: str) -> dict[str, str]:
    """Class -> the first line of its docstring."""
    classes = [node for node in source(module).body if isinstance(node, ast.ClassDef)]
    return {node.name: (ast.get_docstring(node) or "").partition("\n")[0] for node in classes}


def _origin(entry: EntryPoint) -> str:
    """Where an entry comes from: its class, and the package that it was installed with."""
    return entry.value if entry.dist is None else f"the plug-in {entry.value} of the package {entry.dist.name}"
