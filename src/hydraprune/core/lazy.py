"""Packages whose names are imported when they are first used (PEP 562), so that importing them costs nothing."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

Names = Mapping[str, Callable[[], Any]]
"""Each name, and what gives the object that it stands for."""


def lazy(package: str, methods: Callable[[], Names] = dict) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package or module.

    Its names are those that it imports under `if TYPE_CHECKING:`, where tools read them too; its modules; and methods.

    Args:
        package: its `__name__`.
        methods: such as `Registry.classes`.
    """

    @cache
    def names() -> Names:
        return {**_modules(package), **methods(), **_imported(package)}

    def get(name: str) -> Any:
        if name not in names():
            from hydraprune.core.spec import nearest

            raise AttributeError(f"{package} has no {name!r}; {nearest(name, names())}")
        return names()[name]()

    return get, lambda: sorted({*vars(sys.modules[package]), *names()})


def source(module: str) -> ast.Module:
    """The code of a module, which is not imported; packages that it lies in are.

    Raises:
        ImportError: if there is none.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ImportError(f"no module named {module!r}")
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8"))


def _imported(package: str) -> Names:
    found: dict[str, Callable[[], Any]] = {}
    for block in source(package).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for line in block.body:
                if isinstance(line, ast.ImportFrom) and f"{line.module}".startswith("hydraprune."):
                    found |= {a.asname or a.name: partial(_member, f"{line.module}", a.name) for a in line.names}
    return found


def _member(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


def _modules(package: str) -> Names:
    names = [module.name for module in iter_modules(vars(sys.modules[package]).get("__path__", ()))]
    return {name: partial(import_module, f"{package}.{name}") for name in names if not name.startswith("__")}
