"""Parquet folders and the hub: fixtures written here, and real CIFAR-10 where it is at hand."""

import io
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hydraprune.core.errors import DataError
from hydraprune.data import SOURCES
from hydraprune.data.parquet import columns, read_table

CIFAR10 = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10" / "plain_text"
real = pytest.mark.skipif(not CIFAR10.is_dir(), reason="the reference copy of CIFAR-10 is not here")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HYDRAPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pictures(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def encoded(image: np.ndarray) -> dict[str, object]:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}


def table(images: list, labels: list, column: str = "image") -> pa.Table:
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    return pa.table({column: pa.array(images, kind), "label": labels})


@pytest.fixture
def folder(tmp_path) -> Path:
    """SVHN as on the hub, forty training and ten test images; the training set in two files."""
    root = tmp_path / "svhn" / "cropped_digits"
    root.mkdir(parents=True)
    rows = [encoded(image) for image in pictures(40)]
    labels = [number % 10 for number in range(40)]
    pq.write_table(table(rows[:25], labels[:25]), root / "train-00000-of-00002.parquet")
    pq.write_table(table(rows[25:], labels[25:]), root / "train-00001-of-00002.parquet")
    pq.write_table(
        table([encoded(image) for image in pictures(10)], list(range(10))), root / "test-00000-of-00001.parquet"
    )
    return root.parent


def svhn(folder: Path, **settings):
    return SOURCES.make({"kind": "svhn", "path": str(folder), **settings}, "data")


def images(split) -> torch.Tensor:
    return torch.cat([batch.x for batch in split.batches(64, seed=0).epoch(0)])


def test_a_parquet_folder_gives_the_pixels_that_were_stored(folder):
    data = svhn(folder, validation=0).load()
    expected = torch.from_numpy(pictures(40)).permute(0, 3, 1, 2) / 255
    assert torch.equal(images(data.train), expected)
    assert data.train.labels.tolist() == [number % 10 for number in range(40)]
    assert torch.equal(images(data.test), torch.from_numpy(pictures(10)).permute(0, 3, 1, 2) / 255)
    assert (data.shape, data.classes) == ((3, 32, 32), tuple("0123456789"))


def test_decoded_images_are_cached_and_the_folder_stays_as_it_was(folder, cache, monkeypatch):
    before = sorted(folder.rglob("*"))
    first = images(svhn(folder).load().train)
    assert len(list(cache.iterdir())) == 2
    monkeypatch.setattr("hydraprune.data.parquet.decoded", lambda *_: pytest.fail("decoded twice"))
    assert torch.equal(images(svhn(folder).load().train), first)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda _: b"", lambda _: b"\xff" * 64])
def test_a_damaged_cache_is_built_anew(folder, cache, damage):
    first = images(svhn(folder).load().train)
    for file in cache.iterdir():
        file.write_bytes(damage(file.read_bytes()))
    assert torch.equal(images(svhn(folder).load().train), first)
    assert all(file.stat().st_size > 3 * 32 * 32 * 10 for file in cache.iterdir())


def test_other_content_is_not_served_from_the_cache(folder):
    svhn(folder).load()
    file = next(folder.rglob("test*.parquet"))
    pq.write_table(table([encoded(image) for image in pictures(20)], [0, 1] * 10), file)
    assert len(svhn(folder).load().test) == 20


def test_a_cache_that_cannot_be_written_does_no_harm(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("HYDRAPRUNE_CACHE", str(tmp_path / "file"))
    assert len(svhn(folder).load().test) == 10


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"data\.path '.*nowhere' is not a folder; give one with train"):
        svhn(tmp_path / "nowhere").load()


def test_a_folder_without_the_split_names_what_it_has(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no train\*\.parquet but no parquet file"):
        svhn(tmp_path / "empty").load()
    next(folder.rglob("test*.parquet")).rename(folder / "extra.parquet")
    with pytest.raises(DataError, match=r"no test\*\.parquet but train-00000-of-00002\.parquet, .*extra\.parquet"):
        svhn(folder).load()


@pytest.mark.parametrize(
    "damage", [lambda raw: raw[: len(raw) // 2], lambda _: b"", lambda raw: b"\0" * 2000 + raw[2000:]]
)
def test_a_damaged_parquet_file_is_named(folder, damage):
    file = next(folder.rglob("train-00001*.parquet"))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet is damaged .*fetch it again"):
        svhn(folder).load()


PICTURE = encoded(pictures(1)[0])
SMALL = encoded(pictures(1, size=28)[0])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (table([PICTURE], [0], "img"), r"train-0\.parquet has no column 'image' but img, label"),
        (pa.table({"image": ["a.png"], "label": [0]}), "column 'image' is string; expected a struct"),
        (table([PICTURE], ["zero"]), "labels of type string; every row needs"),
        (table([PICTURE, PICTURE], [0, None]), "1 without label"),
        (table([PICTURE, {"bytes": None, "path": "b.png"}], [0, 1]), "1 rows without image bytes"),
        (table([PICTURE, {"bytes": b"GIF?", "path": None}], [0, 1]), r"row 1 of .*train-0\.parquet cannot be decoded"),
        (table([PICTURE, {**PICTURE, "bytes": PICTURE["bytes"][:500]}], [0, 1]), "row 1 of .* cannot be decoded"),
        (table([PICTURE, SMALL], [0, 1]), r"row 1 of .* is 28x28 pixels, row 0 of .* 32x32; resize"),
        (table([PICTURE] * 2, [0, 10]), r"label 10 of train image 1 is outside 0\.\.9"),
        (table([PICTURE] * 2, [0, -1]), "label -1 of image 1 is negative"),
        (table([SMALL] * 2, [0, 1]), r"test images are \(3, 32, 32\), train images \(3, 28, 28\)"),
    ],
)
def test_tables_of_other_things_are_refused(tmp_path, rows, message):
    pq.write_table(rows, tmp_path / "train-0.parquet")
    pq.write_table(table([PICTURE], [0]), tmp_path / "test-0.parquet")
    with pytest.raises(DataError, match=message):
        svhn(tmp_path, validation=0).load()


def test_the_hub_serves_the_same_tables(monkeypatch):
    asked = []

    def load_dataset(repository: str, config: str, split: str) -> datasets.Dataset:
        asked.append((repository, config, split))
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
        rows = {"img": [Image.fromarray(image) for image in pictures(20)], "label": [*range(10)] * 2}
        return datasets.Dataset.from_dict(rows, features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = SOURCES.make({"kind": "cifar10", "validation": 0}, "data").load()
    assert asked == [("uoft-cs/cifar10", "plain_text", "train"), ("uoft-cs/cifar10", "plain_text", "test")]
    assert torch.equal(images(data.train), torch.from_numpy(pictures(20)).permute(0, 3, 1, 2) / 255)
    assert (data.classes[0], data.classes[9]) == ("airplane", "truck")
    SOURCES.make("cifar10", "data").load()
    assert len(asked) == 2  # the second time the cache serves, without network


def test_without_network_the_folder_is_offered(monkeypatch):
    def load_dataset(*_: str, **__: str) -> datasets.Dataset:
        raise ConnectionError("Couldn't reach 'ufldl-stanford/svhn' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"cannot fetch ufldl-stanford/svhn .*Couldn't reach.*give data\.path"):
        SOURCES.make("svhn", "data").load()


@real
def test_real_cifar10_has_its_counts_and_classes():
    for split, each in (("train", 5000), ("test", 1000)):
        file = CIFAR10 / f"{split}-00000-of-00001.parquet"
        content, labels = columns(split, read_table(file), "img")
        assert len(content) == 10 * each
        assert labels.bincount().tolist() == [each] * 10


@real
def test_real_cifar10_images_load(tmp_path):
    rows = read_table(CIFAR10 / "test-00000-of-00001.parquet")
    pq.write_table(rows.slice(0, 600), tmp_path / "train-0.parquet")
    pq.write_table(rows.slice(600, 200), tmp_path / "test-0.parquet")
    data = SOURCES.make({"kind": "cifar10", "path": str(tmp_path), "samples": 500}, "data").load()
    assert (len(data.train), len(data.validation), len(data.test)) == (450, 50, 200)
    file = io.BytesIO(rows["img"][600]["bytes"].as_py())
    assert torch.equal(images(data.test)[0], torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255)


def test_a_flipped_byte_in_the_cache_is_found(folder, cache):
    first = images(svhn(folder).load().train)
    (file,) = cache.glob("svhn-train-*")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert torch.equal(images(svhn(folder).load().train), first)
    assert file.read_bytes() != content
