"""Further images in every batch: how many, which, and what is refused."""

import numpy as np
import pytest
import torch

from hydraprune.core.errors import DataError, SpecError
from hydraprune.data.digits import Digits
from hydraprune.data.extra import Extra, Mixed
from hydraprune.data.resident import Resident


def numbered(count, start=0, **settings):
    """Images whose pixels are their number, of class number % 10."""
    pixels = torch.arange(start, start + count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 8, 8).clone()
    return Resident(pixels, torch.arange(count) % 10, **settings)


def split(batch):
    """Numbers of the images, own and extra."""
    numbers = (batch.x[:, 0, 4, 4] * 255).round().int().tolist()
    return [n for n in numbers if n < 100], [n for n in numbers if n >= 100]


@pytest.mark.parametrize(("ratio", "size", "own", "extra"), [(0.5, 8, 4, 4), (0.25, 8, 6, 2), (0.8, 10, 2, 8)])
def test_every_batch_has_its_share_and_an_epoch_is_one_pass(ratio, size, own, extra):
    mixed = Mixed(numbered(24), numbered(150, start=100), ratio)
    batches = mixed.batches(size, seed=3, shuffle=True)
    assert len(batches) == 24 // own
    seen = []
    for batch in batches.epoch(0):
        mine, others = split(batch)
        assert (len(mine), len(others)) == (own, extra)
        assert len({*others}) == extra
        assert all(y == (n if n < 100 else n - 100) % 10 for n, y in zip(mine + others, batch.y, strict=True))
        seen += mine
    assert sorted(seen) == list(range(24))


@pytest.mark.parametrize("size", range(2, 40))
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7])
def test_batches_are_as_large_as_asked_and_the_last_has_the_same_share(size, ratio):
    mixed = Mixed(numbered(90), numbered(150, start=100), ratio)
    if round(ratio * size) in (0, size):
        with pytest.raises(DataError, match="no room for a share"):
            mixed.batches(size, seed=0)
        return
    *full, last = mixed.batches(size, seed=0, shuffle=True).epoch(0)
    for batch in full:
        assert len(batch.x) == size
        assert len(split(batch)[1]) == round(ratio * size)
    mine, others = map(len, split(last))
    assert 0 <= others / mine - round(ratio * size) / (size - round(ratio * size)) < 1 / mine


def test_an_epoch_is_a_function_of_seed_and_number():
    def numbers(seed, epoch):
        mixed = Mixed(numbered(40), numbered(150, start=100), 0.5)
        return [split(batch) for batch in mixed.batches(10, seed=seed, shuffle=True).epoch(epoch)]

    assert numbers(1, 0) == numbers(1, 0)
    assert len({str(numbers(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_processes_get_different_images():
    mixed = Mixed(numbered(40), numbered(150, start=100), 0.5)
    found = [
        [split(batch) for batch in mixed.batches(10, seed=0, shuffle=True, rank=rank, world=2).epoch(0)]
        for rank in (0, 1)
    ]
    for kind in (0, 1):
        first, second = ({n for batch in shares for n in batch[kind]} for shares in found)
        assert len(first) == len(second) == 20
        assert not first & second


def test_few_extra_images_come_again():
    mixed = Mixed(numbered(40), numbered(3, start=100), 0.5)
    for batch in mixed.batches(20, seed=0).epoch(0):
        assert {*split(batch)[1]} == {100, 101, 102}


def test_they_are_augmented_as_the_others():
    plain = Mixed(numbered(20), numbered(20, start=100), 0.5)
    extra = numbered(20, padding=2).like(numbered(20, start=100)._pixels, torch.zeros(20, dtype=torch.int64))
    padded = Mixed(numbered(20, padding=2), extra, 0.5)
    for mixed, moved in ((plain, False), (padded, True)):
        x = torch.cat([batch.x for batch in mixed.batches(10, seed=0, augment=True).epoch(0)])
        bright = x[x.flatten(1).amax(1) >= 100 / 255]
        assert len(bright) == 20
        assert bool((bright == 0).any()) == moved


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "extra.npz"
    rng = np.random.default_rng(0)
    np.savez(path, image=rng.integers(0, 256, (30, 8, 8, 1), np.uint8), label=(np.arange(30) % 10).astype(np.uint8))
    return path


def test_a_source_reads_them(file):
    data = Digits(samples=100, extra={"path": str(file), "ratio": "1/4"}).load()
    assert isinstance(data.train, Mixed)
    assert len(data.train) == 90
    assert not isinstance(data.validation, Mixed)
    stored = {image.tobytes() for image in np.load(file)["image"]}
    for batch in data.train.batches(40, seed=0, shuffle=True).epoch(0):
        known = [(x * 255).round().byte().movedim(0, 2).numpy().tobytes() in stored for x in batch.x]
        assert sum(known) in (10, round(len(batch.x) / 4))
    assert len(data.train.take(7)) == 7
    assert torch.equal(data.train.labels, data.train.take(90).labels)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"image": np.zeros((4, 9, 9, 1), np.uint8), "label": np.zeros(4, int)}, r"4 images of \(1, 9, 9\)"),
        ({"image": np.zeros((4, 8, 8, 1)), "label": np.zeros(4, int)}, r"`image` is float64 .*; store uint8"),
        ({"image": np.zeros((4, 8, 8, 1), np.uint8), "label": np.full(4, 10)}, r"label 10 is outside 0\.\.9"),
        ({"image": np.zeros((4, 8, 8, 1), np.uint8), "label": np.zeros(3, int)}, r"class id"),
        ({"image": np.zeros((0, 8, 8, 1), np.uint8), "label": np.zeros(0, int)}, r"0 images"),
        ({"image": np.zeros((4, 8, 8, 1), np.uint8)}, r"no \.npz file with `image` and `label`"),
        ({"image": np.array([object()]), "label": np.zeros(1, int)}, r"no \.npz file .*allow_pickle"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, content, complaint):
    path = tmp_path / "bad.npz"
    np.savez(path, **content)
    with pytest.raises(DataError, match=complaint):
        Extra(path=str(path)).mixed(numbered(20), 10)


def test_other_mistakes_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.npz is missing"):
        Extra(path=str(tmp_path / "gone.npz")).mixed(numbered(20), 10)
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(DataError, match=r"is no \.npz file"):
        Extra(path=str(tmp_path / "text.npz")).mixed(numbered(20), 10)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"is no \.npz file"):
        Extra(path=str(tmp_path / "array.npy")).mixed(numbered(20), 10)
    with pytest.raises(SpecError, match="less than 1"):
        Extra(path="a", ratio=1)
    with pytest.raises(DataError, match="no room for a share"):
        Mixed(numbered(20), numbered(20), 0.5).batches(1, seed=0)
