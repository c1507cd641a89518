"""Entries that fit are kept, others are told; none of them names a place outside of the run."""

import math

import pytest

from hydraprune.core.errors import CheckpointError
from hydraprune.core.spec import Count, Real, Share
from hydraprune.runs.entries import Entry, each, mapping, named, plain


class Figure(Entry):
    share: Share
    count: Count = 0
    real: Real = 0.0


BAD = [
    {},
    [],
    None,
    {"share": "0.5"},
    {"share": True},
    {"share": 1.5},
    {"share": math.nan},
    {"share": 0.5, "count": -1},
    {"share": 0.5, "count": 1.5},
    {"share": 0.5, "real": math.inf},
    {"share": 0.5, "real": 1e300},
]


def test_what_fits_is_kept_and_the_rest_told():
    told = []
    good = {"share": 1, "of another version": 3}
    assert each(Figure, [good, *BAD, good], "FILE", told.append) == [Figure(share=1.0)] * 2
    assert [text.partition("]")[0] for text in told] == [f"FILE[{number}" for number in range(1, len(BAD) + 1)]
    assert not [text for text in told if "\n" in text or len(text) > 400]
    told.clear()
    assert named(Figure, {"a": good, "b": BAD[3]}, "FILE", told.append) == {"a": Figure(share=1.0)}
    assert [text.partition(".")[0] for text in told] == ["FILE: b"]


@pytest.mark.parametrize("value", [None, 3, "text", {"a": 1}])
def test_what_is_no_list_is_one_error(value):
    with pytest.raises(CheckpointError, match="FILE holds no list"):
        each(Figure, value, "FILE", print)


@pytest.mark.parametrize("value", [None, 3, "text", [1], {1: 2}, {"\ud800": 1}])
def test_what_is_no_mapping_is_one_error(value):
    with pytest.raises(CheckpointError, match="FILE holds no mapping with names"):
        mapping(value, "FILE")


def test_plain_values():
    value = {"a": [1, 2.5, None, True, "x", {"b": []}]}
    assert plain(value) == value
    deep = []
    for _ in range(50):
        deep = [deep]
    for odd in (deep, {1: 2}, math.nan, -math.inf, 10**400, "\ud800", {"\ud800": 1}, b"x", {1, 2}):
        with pytest.raises(ValueError, match="it "):
            plain(odd)
