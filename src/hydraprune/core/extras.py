"""Packages that only some commands and methods need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hydraprune.core.errors import MissingError


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Around imports that `what` needs, of packages that the extra `name` of this one installs.

    Raises:
        MissingError: if one of them is missing or broken.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise MissingError(
            f"{what} needs the package {package}; install it by `pip install 'hydraprune[{name}]'`"
        ) from error
