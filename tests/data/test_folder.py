"""Image folders read by workers: against Pillow, the same with any number of workers, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hydraprune.core.errors import DataError
from hydraprune.core.objective import Batch
from hydraprune.data import SOURCES

IMAGENETTE = Path(__file__).resolve().parents[3] / "shared" / "data" / "imagenette"
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes, eight training and three test images each, of several sizes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                size = (30 + 3 * number, 40 - 2 * number, 3)
                image = Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8))
                image.save(tmp_path / split / name / f"{number}.png")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def load(folder: Path, **settings):
    return SOURCES.make({"kind": "images", "path": str(folder), "size": 28, "workers": 0, **settings}, "data").load()


def same(a: list[Batch], b: list[Batch]) -> bool:
    return all(torch.equal(p.x, q.x) and torch.equal(p.y, q.y) for p, q in zip(a, b, strict=True))


def test_evaluation_resizes_the_shorter_side_and_cuts_the_centre(folder):
    data = load(folder, validation=0)
    assert (data.shape, data.classes, len(data.train), len(data.test)) == ((3, 28, 28), ("cat", "dog"), 16, 6)
    batch = next(data.test.batches(2, seed=0).epoch(0))
    image = Image.open(folder / "val" / "cat" / "1.png")  # 38 wide, 33 high
    resized = np.asarray(image.resize((int(32 * 38 / 33), 32), Image.Resampling.BILINEAR))
    assert torch.equal(batch.x[1], torch.from_numpy(resized[2:30, 4:32].copy()).permute(2, 0, 1) / 255)
    assert batch.y.tolist() == [0, 0]
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_training_crops_change_with_the_epoch_and_leave_the_global_random_numbers_alone(folder):
    batches = load(folder).train.batches(4, seed=0, augment=True)
    state = torch.get_rng_state()
    first, second, again = (list(batches.epoch(number)) for number in (0, 1, 0))
    assert torch.equal(torch.get_rng_state(), state)
    assert same(first, again)
    assert not torch.equal(first[0].x, second[0].x)
    assert all(batch.x.min() >= 0 and batch.x.max() <= 1 for batch in first)


def test_without_flip_crops_are_the_same_or_mirrored(folder):
    both = [load(folder, flip=flip).train.batches(14, seed=0, augment=True) for flip in (True, False)]
    mirrored, straight = (next(batches.epoch(0)).x for batches in both)
    turned = (mirrored != straight).flatten(1).any(1)
    assert torch.equal(mirrored[turned], straight[turned].flip(3))
    assert 0 < turned.sum() < 14


def test_workers_live_on_and_survive_an_abandoned_epoch(folder):
    alone, helped = (
        load(folder, workers=workers).train.batches(4, seed=0, augment=True, shuffle=True) for workers in (0, 2)
    )
    next(helped.epoch(5))
    for number in (0, 1):
        assert same(list(alone.epoch(number)), list(helped.epoch(number)))


def test_two_epochs_at_a_time_are_refused(folder):
    batches = load(folder).train.batches(4, seed=0)
    early = batches.epoch(0)
    next(early)
    next(batches.epoch(1))
    with pytest.raises(DataError, match="a later epoch of these batches has begun"):
        next(early)


def test_subsets_keep_order(folder):
    train = load(folder, validation=0).train
    assert train.subset([15, 0]).labels.tolist() == [1, 0]
    picked = next(train.subset([15, 0]).batches(2, seed=0).epoch(0))
    whole = next(train.batches(16, seed=0).epoch(0))
    assert torch.equal(picked.x, whole.x[[15, 0]])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_damaged_image_is_named(folder, workers, content):
    file = folder / "val" / "cat" / "0.png"
    file.write_bytes(file.read_bytes()[:300] if content is None else content)
    batches = load(folder, workers=workers).test.batches(2, seed=0)
    with pytest.raises(
        DataError, match=r"^\S*val/cat/0\.png cannot be decoded as an image \(.*\); restore it or take it out$"
    ):
        list(batches.epoch(0))


def test_a_test_folder_comes_before_val(folder):
    (folder / "val" / "dog" / "0.png").unlink()
    (folder / "val").rename(folder / "test")
    (folder / "val").mkdir()
    assert len(load(folder).test) == 5


def test_missing_folders_are_named(folder, tmp_path):
    with pytest.raises(DataError, match=r"data\.path is missing"):
        SOURCES.make("images", "data").load()
    with pytest.raises(DataError, match=r"nowhere/train is not a folder; data\.path needs train/CLASS"):
        load(tmp_path / "nowhere")
    (folder / "val").rename(folder / "holdout")
    with pytest.raises(DataError, match="val is not a folder"):
        load(folder)


def test_classes_must_be_the_same_and_filled(folder):
    (folder / "val" / "eel").mkdir()
    with pytest.raises(DataError, match=r"class 'eel', which .*train has not"):
        load(folder)
    (folder / "train" / "eel").mkdir()
    with pytest.raises(DataError, match=r"train/eel holds no image \(\.bmp, \.jpeg"):
        load(folder)


def test_images_must_lie_in_folders_of_their_classes(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / split / "0.png")
    with pytest.raises(DataError, match="train holds no folder; put the images of each class"):
        load(tmp_path)


@pytest.mark.skipif(not IMAGENETTE.is_dir(), reason="the reference photographs are not here")
def test_photographs_stream_alike_with_and_without_workers():
    batches = [
        load(IMAGENETTE, size=64, workers=workers).train.batches(8, seed=0, augment=True, shuffle=True).epoch(0)
        for workers in (0, 2)
    ]
    first = [[next(each) for _ in range(2)] for each in batches]
    assert same(*first)
    assert first[0][0].x.shape == (8, 3, 64, 64)


def test_digests_follow_the_files_and_not_where_they_lie(folder, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("HYDRAPRUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
    first = load(folder).digests()
    moved = tmp_path_factory.mktemp("moved") / "copy"
    shutil.copytree(folder, moved)
    assert load(moved).digests() == load(folder).digests() == first
    file = moved / "val" / "cat" / "0.png"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    changed = load(moved).digests()
    assert [name for name in first if changed[name] != first[name]] == ["test"]
    monkeypatch.setattr("hydraprune.data.cache.digest_of", lambda _: pytest.fail("read twice"))
    assert load(moved).digests() == changed
