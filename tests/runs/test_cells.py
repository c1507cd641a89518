"""How a cell ended is read with a check, and a study survives whatever stands there instead."""

import json
from functools import partial

import pytest
from hypothesis import given, settings

from damage import QUICK, as_json, bytewise, complaint, structural
from hydraprune.core.files import write_json
from hydraprune.runs.cells import Done, Failure, read_end
from hydraprune.runs.files import DONE, FAILED

WHOLE = {
    DONE: {"labels": {"seed": "0"}, "seconds": 1.5, "recipe": {"name": "tiny"}},
    FAILED: {"error": "it broke", "trace": "...", "time": 2.5, "labels": {"seed": "0"}},
}
KINDS = {DONE: Done, FAILED: Failure}


@pytest.mark.parametrize("name", WHOLE)
def test_what_was_written_is_read(tmp_path, name):
    assert read_end(KINDS[name], tmp_path / name) is None
    write_json(tmp_path / name, WHOLE[name] | {"more": "from another version"})
    assert read_end(KINDS[name], tmp_path / name).plain() == WHOLE[name]


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_damaged_is_one_error_with_a_remedy(tmp_path, name):
    def read(content):
        (tmp_path / name).write_bytes(content)
        said = complaint(partial(read_end, KINDS[name]), tmp_path / name)
        assert said is None or str(tmp_path / name) in said
        assert said is None or "remove it, and the same study runs the cell again" in said
        return said is None

    @settings(QUICK, max_examples=60)
    @given(bytewise(json.dumps(WHOLE[name]).encode()))
    def by_bytes(content):
        read(content)

    @settings(QUICK, max_examples=60)
    @given(structural(WHOLE[name]))
    def by_values(value):
        read(as_json(value))

    by_bytes()
    by_values()
    assert not read(b"{}")
    assert not read(b'{"time": "1", "error": "x", "seconds": null}')
