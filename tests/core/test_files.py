"""Files are whole or absent, and damage is found before it is used."""

import copy
import errno
import json
import os
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings

from damage import QUICK, bytewise, complaint
from hydraprune.core import files
from hydraprune.core.errors import CheckpointError, SpecError, TrainingError
from hydraprune.core.files import (
    inside,
    output_file,
    output_folder,
    read_json,
    read_lines,
    read_text,
    read_yaml,
    write_atomically,
    write_json,
)
from hydraprune.core.sealed import seal
from hydraprune.core.tensors import load_tensors, save_tensors

LAUGHS = b"".join(b"a%d: &a%d [%s]\n" % (i, i, b",".join([b"*a%d" % (i - 1) if i else b"1"] * 10)) for i in range(12))
"""Aliases of aliases: a few lines that stand for 10**12 values."""
META = {"epoch": 3, "history": [{"loss": 0.1, "lr": 1e-05}], "key": "ä", "none": None, "z": 1, "a": {"y": [1, 2]}}


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["fsync", "replace", "mkstemp", "chmod"])
@pytest.mark.parametrize("earlier", [b"earlier", None])
def test_a_full_disk_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch, where, earlier):
    path = tmp_path / "model.safetensors"
    if earlier is not None:
        path.write_bytes(earlier)
    owner = {"fsync": files.os, "mkstemp": files.tempfile}.get(where, Path)
    monkeypatch.setattr(owner, where, full)
    with pytest.raises(TrainingError) as caught:
        write_atomically(path, b"later")
    assert str(path) in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert "run the same command again" in str(caught.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == ({path.name: earlier} if earlier else {})


def test_the_disk_has_the_content_before_the_name(tmp_path, monkeypatch):
    """A crash between the two must not leave a name without content."""
    done = []
    monkeypatch.setattr(files.os, "fsync", lambda handle: done.append(("fsync", os.fstat(handle).st_size)))
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append(("replace", to.name)), replace(self, to))[1])
    write_atomically(tmp_path / "a", b"12345")
    assert done == [("fsync", 5), ("replace", "a")]


def test_a_folder_that_cannot_be_made_is_a_training_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="cannot write"):
        write_atomically(tmp_path / "file" / "below", b"")


def test_json_round_trips_and_is_refused_where_broken(tmp_path):
    path = tmp_path / "run" / "meta.json"
    write_json(path, META)
    assert read_json(path) == META
    assert json.loads(path.read_text()) == META | {"digest": seal(META)}
    path.write_text(path.read_text()[:-5])
    with pytest.raises(CheckpointError, match=r"meta\.json is unreadable"):
        read_json(path)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(CheckpointError, match="unreadable"):
        read_json(path)
    with pytest.raises(CheckpointError, match=r"none\.json is missing"):
        read_json(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"a: [1", "expected"),
        (b"\xff\xfe", "utf-8"),
        (b"[" * 5000, "nested too deeply"),
        (b"&a [*a, *a]", "nested too deeply|stands for more than"),
        (LAUGHS, "stands for more"),
    ],
)
def test_yaml_that_is_none_or_stands_for_too_much_is_refused(tmp_path, content, reason):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"recipe.yaml is unreadable .*({reason}).*; take another"):
        read_yaml(path, "take another")


def test_errors_show_nothing_of_what_yaml_holds(tmp_path):
    path = tmp_path / "recipe.yaml"
    for content in ("canary: [canary", "canary\n: canary: canary", "- canary\ncanary: 1"):
        path.write_text(content)
        with pytest.raises(CheckpointError, match=r"unreadable \(line \d: ") as caught:
            read_yaml(path)
        assert "canary" not in str(caught.value)


@pytest.mark.parametrize(("depth", "fine"), [(60, True), (70, False), (400, False), (200_000, False)])
def test_what_is_read_can_be_walked_through(tmp_path, depth, fine):
    for reader in (read_json, read_yaml):
        (tmp_path / "file").write_text("[" * depth + "]" * depth)
        if fine:
            copy.deepcopy(reader(tmp_path / "file"))
            continue
        with pytest.raises(CheckpointError, match="it is nested too deeply"):
            reader(tmp_path / "file")
        if depth == 400:
            break  # YAML's own parser is slow at more


@pytest.mark.parametrize("path", ["../x", "link", "link/x", "/etc/passwd", "a/../../x", "round", "a\0b", "sub/link2"])
def test_paths_that_leave_a_folder_are_refused(tmp_path, path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path)
    (root / "sub" / "link2").symlink_to("../../x")
    (root / "round").symlink_to("round")
    with pytest.raises(CheckpointError, match=r"leads outside of .*root, so it is not read"):
        inside(root, root / path)


def test_paths_that_stay_in_a_folder_are_given_back(tmp_path, monkeypatch):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "link").symlink_to("sub")
    (tmp_path / "other").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    for folder in (root, Path("root"), tmp_path / "other"):
        for path in ("sub/missing", "link", "link/missing", "sub/../x", ""):
            assert inside(folder, folder / path) == folder / path


def test_lines_are_read_up_to_one_that_is_being_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert read_lines(path) == {1: {"a": 1}, 2: {"a": 2}}
    for bad, reason in (("[1]", "no mapping"), ("{", "Expecting"), ("[" * 100_000, "nested too deeply")):
        path.write_text(f'{{"a": 1}}\n{bad}\n')
        with pytest.raises(CheckpointError, match=f"metrics.jsonl:2 is unreadable .*{reason}"):
            read_lines(path)


def leftover(folder, name, host=files.HOST, pid=2**22 + 1, age=0.0):
    """As a killed process leaves it; no process has that number."""
    path = folder / f".{name}.{host}.{pid}.ab12cd_9.tmp"
    path.write_text("half")
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def test_what_killed_writers_left_is_swept_and_nothing_else(tmp_path):
    (tmp_path / "below").mkdir()
    gone = [
        leftover(tmp_path, "a.json"),
        leftover(tmp_path, "b", pid=10**30),
        leftover(tmp_path, "c", "elsewhere", 1, 1e5),
    ]
    kept = [
        leftover(tmp_path, "mine", pid=os.getpid()),
        leftover(tmp_path, "living", pid=os.getppid()),
        leftover(tmp_path, "remote", "elsewhere"),
        leftover(tmp_path / "below", "deeper"),
    ]
    for name in (".bashrc", "a.json", ".a.tmp", "state.tmp"):
        (tmp_path / name).write_text("")
        kept.append(tmp_path / name)
    files.sweep(tmp_path)
    files.sweep(tmp_path / "nowhere")
    assert not [path for path in gone if path.exists()]
    assert all(path.exists() for path in kept)


def test_a_write_sweeps_what_was_left_of_the_same_file(tmp_path):
    mine, other = leftover(tmp_path, "a.json"), leftover(tmp_path, "b.json")
    write_atomically(tmp_path / "a.json", b"whole")
    assert not mine.exists()
    assert other.exists()
    long = "x" * 200
    mine = leftover(tmp_path, long[: files.SHOWN])
    write_atomically(tmp_path / long, b"whole")
    assert not mine.exists()


def test_a_file_that_is_being_written_says_who_writes_it(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(files.os, "fsync", lambda handle: seen.extend(os.listdir(tmp_path)))
    write_atomically(tmp_path / "a.json", b"")
    assert files.TEMPORARY.fullmatch(seen[0]).groupdict() == {
        "name": "a.json",
        "host": files.HOST,
        "pid": str(os.getpid()),
    }


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("", "has no name; give one"),
        ("x" * 300, "File name too long; choose another folder"),
        ("a\0b", "null byte; choose another folder"),
        ("file", "file is a file; choose another folder, or move the file"),
        ("file/below/more", "Not a directory; choose another folder"),
    ],
)
def test_a_folder_that_cannot_be_written_into_is_refused_before_it_is_touched(tmp_path, monkeypatch, out, reason):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match=reason) as caught:
        output_folder(out)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]
    assert output_folder("new/folder") == Path("new/folder")
    with pytest.raises(SpecError, match="has no name"):
        output_file("")
    with pytest.raises(SpecError, match="is a file"):
        output_file("file/page.html")


def test_a_folder_without_permission_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(SpecError, match=r"may not be written; choose another folder"):
        output_folder(tmp_path / "new")


READERS = {"text": read_text, "json": read_json, "yaml": read_yaml, "lines": read_lines, "tensors": load_tensors}


@pytest.mark.parametrize("kind", READERS)
def test_whatever_is_changed_in_a_file_is_read_or_one_error(tmp_path, kind):
    path = tmp_path / f"file.{kind}"
    if kind == "tensors":
        save_tensors(path, {"weight": torch.ones(3), "long": torch.tensor(7)}, META)
    else:
        path.write_text(json.dumps(META, ensure_ascii=False) + "\n")
    whole = path.read_bytes()

    @settings(QUICK, max_examples=60)
    @given(bytewise(whole))
    def check(content):
        path.write_bytes(content)
        said = complaint(READERS[kind], path)
        assert said is None or str(path) in said
        assert said is not None or kind != "tensors" or content == whole

    check()
