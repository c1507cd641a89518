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
from safetensors.torch import save_file

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
from hydraprune.core.tensors import load_tensors, pack_mask, save_tensors, unpack_mask

LAUGHS = b"".join(b"a%d: &a%d [%s]\n" % (i, i, b",".join([b"*a%d" % (i - 1) if i else b"1"] * 10)) for i in range(12))
"""Aliases of aliases: a few lines that stand for 10**12 values."""
META = {"epoch": 3, "history": [{"loss": 0.1, "lr": 1e-05}], "key": "ä", "none": None, "z": 1, "a": {"y": [1, 2]}}


def samples() -> dict[str, torch.Tensor]:
    base = torch.randn(4, 6)
    return {
        "float": base,
        "view": base[1:3],  # shares memory with the first
        "transposed": base.t(),
        "channels_last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "double": torch.randn(3, dtype=torch.float64),
        "half": torch.randn(3).half(),
        "bfloat": torch.randn(5).bfloat16(),
        "long": torch.tensor(7),
        "bool": torch.tensor([True, False, True]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "nan": torch.tensor([float("nan"), float("inf")]),
        "empty": torch.zeros(0, 3),
    }


def test_tensors_and_meta_round_trip(tmp_path):
    saved, path = samples(), tmp_path / "deep" / "er" / "model.safetensors"
    save_tensors(path, saved, META)
    loaded, meta = load_tensors(path)
    assert meta == META
    assert loaded.keys() == saved.keys()
    for name, value in saved.items():
        assert loaded[name].dtype == value.dtype
        assert not loaded[name].requires_grad
        torch.testing.assert_close(loaded[name], value.detach(), rtol=0, atol=0, equal_nan=True)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o644


def test_equal_content_makes_equal_files(tmp_path):
    saved = samples()
    for number in range(4):
        save_tensors(tmp_path / str(number), saved, META)
    assert len({(tmp_path / str(number)).read_bytes() for number in range(4)}) == 1


def test_no_tensors_and_no_meta_round_trip(tmp_path):
    save_tensors(tmp_path / "x", {}, {})
    assert load_tensors(tmp_path / "x") == ({}, {})


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


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path):
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"weight": torch.randn(3), "bits": torch.tensor([5], dtype=torch.uint8)}, {"epoch": 3})
    whole = path.read_bytes()
    assert len(whole) > 8 + 13
    unnoticed = []
    for position in range(len(whole)):
        for bit in {0, position % 8}:  # the lowest turns a digit into another
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                load_tensors(path)
                unnoticed.append((position, bit))
            except CheckpointError:
                pass
    assert unnoticed == []


@pytest.mark.parametrize(
    ("old", "new"), [(b'"F32"', b'"I32"'), (b"[2,3]", b"[3,2]"), (b'"weight"', b'"wieght"'), (b"epoch", b"epoxy")]
)
def test_an_edited_header_is_found(tmp_path, old, new):
    path = tmp_path / "model.safetensors"
    save_tensors(path, {"weight": torch.randn(2, 3)}, {"epoch": 3})
    whole = path.read_bytes()
    assert whole.count(old) == 1
    path.write_bytes(whole.replace(old, new))
    with pytest.raises(CheckpointError, match="has been altered: its checksum does not match"):
        load_tensors(path)


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = tmp_path / "model.safetensors"
    save_tensors(path, samples(), META)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="corrupt or truncated"):
        load_tensors(path)


def test_missing_and_foreign_files_are_refused_with_a_remedy(tmp_path):
    with pytest.raises(CheckpointError, match="is missing; give the folder of a finished stage"):
        load_tensors(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="corrupt"):
        load_tensors(tmp_path)
    for number, metadata in enumerate([None, {"format": "pt"}]):
        path = tmp_path / f"foreign{number}.safetensors"
        save_file({"weight": torch.zeros(2)}, path, metadata)
        with pytest.raises(CheckpointError, match=r"is no hydraprune checkpoint.*--weights"):
            load_tensors(path)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "pickle.pt")
    with pytest.raises(CheckpointError, match="corrupt"):
        load_tensors(tmp_path / "pickle.pt")


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


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (9,), (3, 5), (2, 3, 3, 3), (0, 4)])
def test_masks_round_trip_as_packed_bits(shape):
    mask = torch.rand(shape) < 0.3
    packed = pack_mask(mask)
    assert packed.dtype == torch.uint8
    assert packed.shape == ((mask.numel() + 7) // 8,)
    assert torch.equal(unpack_mask(packed, shape), mask)


def test_bits_are_packed_most_significant_first():
    assert pack_mask(torch.tensor([[True, False, False], [False, True, False]])).tolist() == [0b10001000]


@pytest.mark.parametrize("shape", [(8,), (17,), (3, 3, 3)])
def test_a_mask_of_another_size_is_refused(shape):
    with pytest.raises(CheckpointError, match="does not fit a weight of shape"):
        unpack_mask(pack_mask(torch.ones(9, dtype=torch.bool)), shape)
    with pytest.raises(CheckpointError):
        unpack_mask(torch.zeros(2), (9,))


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


@pytest.mark.parametrize("header", [b"[]", b"{}", b"null", b'["x"]', b'["x", 1]', b"[" * 5000])
def test_a_header_that_says_nothing_is_one_error(tmp_path, header):
    save_file({"a": torch.ones(1)}, tmp_path / "x", {files.HEADER: header.decode()})
    with pytest.raises(CheckpointError, match="has been altered"):
        load_tensors(tmp_path / "x")


@pytest.mark.parametrize("said", ["[1]", "1", "{", "[" * 5000])
def test_meta_that_is_no_mapping_is_one_error(tmp_path, said):
    tensors = {"a": torch.ones(1)}
    save_file(tensors, tmp_path / "x", {files.HEADER: json.dumps([files._digest(tensors, said), said])})
    with pytest.raises(CheckpointError, match="has been altered"):
        load_tensors(tmp_path / "x")
