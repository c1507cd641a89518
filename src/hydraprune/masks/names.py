"""Layers by name or pattern."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from hydraprune.core.errors import PruningError
from hydraprune.core.spec import nearest, said


def fits(name: str, pattern: str) -> bool:
    """Whether `pattern`, such as `layer4.*`, is the canonical name of a weight or that of its layer."""
    return fnmatchcase(name, pattern) or fnmatchcase(layer(name), pattern)


def layer(name: str) -> str:
    """The layer of a weight; of a network that is one layer, the weight."""
    return name.rpartition(".")[0] or name


def known(patterns: Iterable[str], names: Iterable[str]) -> None:
    """See that each pattern fits one of `names`.

    Raises:
        PruningError: naming the nearest.
    """
    names = list(names)
    for pattern in patterns:
        if not any(fits(name, pattern) for name in names):
            layers = dict.fromkeys(map(layer, names))
            raise PruningError(f"no prunable layer is called {pattern!r}; {nearest(pattern, layers)}")


def exempt(patterns: str | Iterable[str], names: Iterable[str]) -> set[str]:
    """Those of `names`, the prunable weights in the order of the model, that are not to be pruned.

    Args:
        patterns: names, patterns, `first` and `last`, or one of these; the last layer is a classifier in most networks.
        names: canonical names.

    Raises:
        PruningError: if a pattern fits none, or is no text.
    """
    names = list(names)
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, Collection) or not all(isinstance(pattern, str) for pattern in patterns):
        raise PruningError(f"exempt is {said(patterns)}; give names of layers, such as ['last']")
    places = {"first": names[0], "last": names[-1]}
    patterns = [places.get(pattern, pattern) for pattern in patterns]
    known(patterns, names)
    return {name for name in names if any(fits(name, pattern) for pattern in patterns)}
