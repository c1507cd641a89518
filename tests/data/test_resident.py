"""Resident images: augmentation against a slow per-image reference, and what is refused."""

import numpy as np
import pytest
import torch

from hydraprune.core.errors import DataError
from hydraprune.data import Resident
from hydraprune.data.resident import shifted


def crop(image: np.ndarray, top: int, left: int, flip: int, padding: int) -> np.ndarray:
    """One image (C, H, W): frame with zeros, cut, mirror."""
    _, height, width = image.shape
    framed = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    cut = framed[:, top : top + height, left : left + width]
    return cut[:, :, ::-1] if flip else cut


@pytest.mark.parametrize(("shape", "padding"), [((3, 32, 32), 4), ((1, 8, 8), 1), ((2, 5, 9), 3), ((1, 4, 4), 0)])
def test_shifted_is_frame_cut_mirror(shape, padding):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (50, *shape), dtype=np.uint8)
    top, left = rng.integers(0, 2 * padding + 1, (2, 50))
    flip = rng.integers(0, 2, 50)
    expected = np.stack([crop(*each, padding) for each in zip(images, top, left, flip, strict=True)])
    got = shifted(*map(torch.from_numpy, (images, top, left, flip)), padding)
    assert np.array_equal(got.numpy(), expected)


def test_augmentation_draws_every_crop_and_both_mirrors():
    image = torch.arange(1, 17, dtype=torch.uint8).view(1, 1, 4, 4)
    batches = Resident(image, torch.tensor([0]), flip=True, padding=1).batches(1, seed=0, augment=True)
    possible = {
        crop(image[0].numpy(), top, left, flip, 1).tobytes() for top in range(3) for left in range(3) for flip in (0, 1)
    }
    seen = {next(batches.epoch(number)).x.mul(255).round().byte().numpy().tobytes() for number in range(300)}
    assert len(possible) == 18
    assert seen == possible


def test_without_flip_and_padding_augmentation_changes_nothing():
    pixels = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    plain = next(Resident(pixels, torch.zeros(6, dtype=torch.int64)).batches(6, seed=0, augment=True).epoch(0))
    assert torch.equal(plain.x, pixels / 255)


def test_flip_off_leaves_the_crops_as_they_are():
    pixels = torch.randint(0, 256, (32, 1, 6, 6), dtype=torch.uint8)
    labels = torch.zeros(32, dtype=torch.int64)
    both = [Resident(pixels, labels, flip=flip, padding=2).batches(32, seed=4, augment=True) for flip in (True, False)]
    mirrored, straight = (next(batches.epoch(0)).x for batches in both)
    same = (mirrored == straight).flatten(1).all(1)
    turned = (mirrored == straight.flip(3)).flatten(1).all(1)
    assert (same | turned).all()
    assert 4 < turned.sum() < 28


def test_floats_become_the_nearest_bytes_and_come_back():
    levels = torch.arange(256).view(1, 1, 16, 16) / 255
    images = Resident.from_float(levels.double(), torch.tensor([0], dtype=torch.int32))
    batch = next(images.batches(1, seed=0).epoch(0))
    assert torch.equal(batch.x, levels)
    assert batch.y.dtype == torch.int64


def test_subsets_keep_order_labels_and_settings():
    images = Resident(torch.arange(5, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(5) * 10)
    assert images.subset([3, 1]).labels.tolist() == [30, 10]
    assert images.take(2).labels.tolist() == [0, 10]
    assert len(images.take(99)) == 5
    assert images.subset(torch.tensor([3])).batches(1, seed=0).epoch(0).__next__().x.item() == pytest.approx(3 / 255)
    assert images.shape == (1, 1, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, 1.5], r"pixels span 0 to 1\.5; divide"),
        ([-0.25, 1.0], r"pixels span -0\.25 to 1"),
        ([0.5, float("nan")], "pixels span nan to nan"),
        ([0.5, float("inf")], r"pixels span 0\.5 to inf"),
    ],
)
def test_floats_outside_the_pixel_range_are_refused(values, message):
    with pytest.raises(DataError, match=message):
        Resident.from_float(torch.tensor(values).view(2, 1, 1, 1), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("pixels", "labels", "message"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2).long(), r"images are torch\.float32 \(2, 1, 4, 4\); give uint8"),
        (torch.zeros(2, 4, 4).byte(), torch.zeros(2).long(), r"\(2, 4, 4\); give uint8 \(N, C, H, W\)"),
        (
            torch.zeros(2, 1, 4, 4).byte(),
            torch.zeros(3).long(),
            r"labels are torch\.int64 \(3,\); give one .* 2 images",
        ),
        (torch.zeros(2, 1, 4, 4).byte(), torch.zeros(2), r"labels are torch\.float32"),
        (torch.zeros(2, 1, 4, 4).byte(), torch.tensor([3, -1]), "label -1 of image 1 is negative"),
    ],
)
def test_other_types_and_shapes_are_refused(pixels, labels, message):
    with pytest.raises(DataError, match=message):
        Resident(pixels, labels)


def test_negative_padding_is_refused():
    with pytest.raises(DataError, match="padding -1"):
        Resident(torch.zeros(1, 1, 2, 2).byte(), torch.tensor([0]), padding=-1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_device_gives_the_same_batches():
    pixels = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    passes = []
    for device in ("cpu", "cuda"):
        images = Resident(pixels, torch.arange(64), flip=True, padding=4)
        passes.append(list(images.batches(24, seed=1, augment=True, shuffle=True, device=device).epoch(2)))
    for here, there in zip(*passes, strict=True):
        assert there.x.is_cuda
        assert torch.equal(here.x, there.x.cpu())
        assert torch.equal(here.y, there.y.cpu())
