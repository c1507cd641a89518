"""Damage to files: bytes that changed, and values that do not belong where they are."""

import copy
import json
import math

from hypothesis import settings, strategies

from hydraprune.core.errors import HydrapruneError

QUICK = settings(derandomize=True, deadline=None, database=None)
"""The same examples every time."""
ODD = [
    None,
    True,
    -1,
    0,
    10**400,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    "0.5",
    "",
    "\ud800",
    "\0",
    [],
    {},
    [[]],
    "../x",
]
"""Values that stand where others are expected."""


def bytewise(content: bytes) -> strategies.SearchStrategy[bytes]:
    """`content` with a bit flipped, cut off, or with a range removed, doubled or replaced by other bytes."""
    size = len(content)
    places = strategies.integers(0, size)
    ranges = strategies.tuples(places, strategies.integers(1, max(1, size // 4)))
    flipped = strategies.tuples(strategies.integers(0, size - 1), strategies.integers(0, 7)).map(
        lambda bit: content[: bit[0]] + bytes([content[bit[0]] ^ 1 << bit[1]]) + content[bit[0] + 1 :]
    )
    return strategies.one_of(
        flipped,
        places.map(lambda end: content[:end]),
        ranges.map(lambda r: content[: r[0]] + content[sum(r) :]),
        ranges.map(lambda r: content[: sum(r)] + content[r[0] :]),
        strategies.tuples(places, strategies.binary(min_size=1, max_size=8)).map(
            lambda new: content[: new[0]] + new[1] + content[new[0] :]
        ),
        strategies.binary(max_size=40),
    )


def paths(value: object, path: tuple = ()) -> list[tuple]:
    """Where the values inside of `value` are."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [deeper for key, inner in parts for deeper in paths(inner, (*path, key))]


def structural(value: object) -> strategies.SearchStrategy[object]:
    """`value` with an entry dropped, doubled, replaced by an odd one, or two entries swapped; or all of it odd."""
    inside = strategies.sampled_from(paths(value))
    return strategies.one_of(
        strategies.builds(lambda path: _changed(value, path, "drop"), inside),
        strategies.builds(lambda path: _changed(value, path, "double"), inside),
        strategies.builds(lambda path, odd: _changed(value, path, "set", odd), inside, strategies.sampled_from(ODD)),
        strategies.builds(lambda one, other: _changed(value, one, "set", _at(value, other)), inside, inside),
        strategies.sampled_from(ODD),
    )


def _at(value: object, path: tuple) -> object:
    for key in path:
        value = value[key]
    return copy.deepcopy(value)


def _changed(value: object, path: tuple, how: str, new: object = None) -> object:
    value = copy.deepcopy(value)
    place = value
    for key in path[:-1]:
        place = place[key]
    key = path[-1]
    if how == "set":
        place[key] = new
    elif how == "drop":
        del place[key]
    elif isinstance(place, list):
        place.insert(key, copy.deepcopy(place[key]))
    else:
        place[f"{key} "] = copy.deepcopy(place[key])
    return value


def complaint(call, *arguments):
    """The error of one line that a call ends in; None if it ends well."""
    try:
        call(*arguments)
    except HydrapruneError as error:
        text = str(error)
    else:
        return None
    assert text
    assert "\n" not in text
    return text


def as_json(value: object) -> bytes:
    """As a file; NaN and infinity as Python writes them."""
    return json.dumps(value).encode()
