"""A changed figure in a file is found."""

import hashlib
import json

import pytest

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.core.files import read_json, read_lines, write_json
from hydraprune.core.results import Record
from hydraprune.core.sealed import seal

RECORD = {"stage": "prune", "sparsity": 0.9, "kept": 1, "total": 10, "clean_accuracy": 0.5, "samples": 8, "seed": 0}


def record(**changes):
    return Record(**RECORD, seconds=1.5, robust_accuracy={"pgd-50x10": 0.25}, **changes)


def test_the_digest_is_that_of_canonical_json():
    entries = {"b": [1, 2.5, None], "a": {"\u00e9": True, "digest": "inner"}, "digest": "of all others"}
    text = '{"a":{"digest":"inner","\\u00e9":true},"b":[1,2.5,null]}'
    assert seal(entries) == hashlib.sha256(text.encode()).hexdigest()
    assert seal({0.5: 1, 10: 2}) == seal({"10": 2, "0.5": 1})


def test_a_record_comes_back_and_a_changed_one_does_not():
    values = json.loads(json.dumps(record().plain()))
    assert Record.parse(values, "record") == record()
    assert Record.parse({key: value for key, value in values.items() if key != "digest"}, "record") == record()
    for change in ({"clean_accuracy": 0.6}, {"digest": "0" * 64}, {"digest": None}, {"robust_accuracy": {}}):
        with pytest.raises(SpecError, match=r"record: it has been altered: its digest is not that of its entries"):
            Record.parse(values | change, "record")
    with pytest.raises(SpecError, match="unknown key 'digesu'"):
        Record.parse({key.replace("digest", "digesu"): value for key, value in values.items()}, "record")


def test_a_mapping_in_a_file_is_sealed(tmp_path):
    path = tmp_path / "claim.json"
    write_json(path, {"accuracy": 0.25, "1": {"2": "x"}})
    assert read_json(path) == {"accuracy": 0.25, "1": {"2": "x"}}
    text = path.read_text()
    path.write_text(text.replace("0.25", "0.26"))
    with pytest.raises(CheckpointError, match=r"claim.json is unreadable \(it has been altered: .*; measure again"):
        read_json(path, "measure again")
    path.write_text('{"accuracy": 0.5}')
    assert read_json(path) == {"accuracy": 0.5}
    with pytest.raises(CheckpointError, match="it has no digest: it is of an earlier version, or was altered"):
        read_json(path, sealed=True)


def test_a_file_of_a_later_version_is_refused_and_one_that_says_none_is_read(tmp_path):
    path = tmp_path / "claim.json"
    newer = {"accuracy": 0.25, "schema": 2}
    path.write_text(json.dumps(newer | {"digest": seal(newer)}))
    complaint = "its schema is 2 and this hydraprune knows 1; install a newer hydraprune"
    with pytest.raises(CheckpointError, match=rf"claim\.json: {complaint}"):
        read_json(path)
    path.write_text(path.read_text() + "\n")
    with pytest.raises(CheckpointError, match=rf"claim\.json:1: {complaint}"):
        read_lines(path)
    newer = record().plain() | {"schema": 2}
    with pytest.raises(SpecError, match=complaint):
        Record.parse(newer | {"digest": seal(newer)}, "record")
    path.write_text('{"accuracy": 0.25, "schema": "two"}')
    with pytest.raises(CheckpointError, match="its schema is 'two', and no number"):
        read_json(path)
    path.write_text('{"accuracy": 0.25}')
    assert read_json(path) == {"accuracy": 0.25}
