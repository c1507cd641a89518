"""Common corruptions against arithmetic of other libraries and plain loops, and the files of the benchmark."""

import colorsys
import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch import nn

from hydraprune.core.errors import DataError, EvaluationError, SpecError
from hydraprune.core.objective import Batch
from hydraprune.data.resident import Resident
from hydraprune.evaluation.corruptions import (
    BENCHMARK,
    CORRUPTIONS,
    SEVERITIES,
    CorruptedBatch,
    Made,
    corrupted,
    corruption_accuracy,
    offered,
    read_files,
)

SIDE = 32
ROUNDING = 0.5 / 255 + 1e-6


def levels(*values):
    """(severity, level) of severities 1 to 5."""
    return list(zip(SEVERITIES, values, strict=True))


@pytest.fixture
def images():
    """Smooth pictures with noise on them, a grey and a black corner."""
    rng = np.random.default_rng(0)
    waves = np.sin(np.arange(SIDE) / 5 + rng.uniform(0, 6, (4, 3, SIDE, 1))) / 3 + 0.5
    bytes_ = (255 * (waves + rng.uniform(-0.15, 0.15, (4, 3, SIDE, SIDE)))).clip(0, 255).astype(np.uint8)
    bytes_[:, :, :2, :2], bytes_[:, :, -2:, -2:] = 100, 0
    return torch.from_numpy(bytes_).float() / 255


@pytest.mark.parametrize(("severity", "factor"), levels(0.75, 0.5, 0.4, 0.3, 0.15))
def test_contrast_is_taken_around_the_mean_of_each_channel(images, severity, factor):
    x = images.double().numpy()
    expected = np.empty_like(x)
    for i in range(len(x)):
        for c in range(3):
            expected[i, c] = x[i, c].mean() + factor * (x[i, c] - x[i, c].mean())
    assert np.abs(corrupted(images, "contrast", severity).numpy() - expected.clip(0, 1)).max() <= ROUNDING


@pytest.mark.parametrize(
    ("name", "part", "changes"),
    [
        ("brightness", 2, levels((1, 0.05), (1, 0.1), (1, 0.15), (1, 0.2), (1, 0.3))),
        ("saturate", 1, levels((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2))),
    ],
)
def test_light_and_colour_change_in_hsv(images, name, part, changes):
    images = images[:1]
    for severity, (factor, shift) in changes:
        found = corrupted(images, name, severity)
        for row in range(0, SIDE, 3):
            for column in (*range(0, SIDE, 5), 1):
                hsv = list(colorsys.rgb_to_hsv(*images[0, :, row, column].tolist()))
                hsv[part] = min(1.0, hsv[part] * factor + shift)
                expected = colorsys.hsv_to_rgb(*hsv)
                assert found[0, :, row, column].tolist() == pytest.approx(expected, abs=ROUNDING)


LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
"""Steps of the cosine transform at quality 50 (ITU-T T.81, table K.1)."""


@pytest.mark.parametrize(("severity", "quality"), levels(80, 65, 58, 50, 40))
def test_jpeg_rounds_the_cosine_transform_of_blocks(images, severity, quality):
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    step = (LUMINANCE * scale + 50) // 100
    grey = images[:, :1]

    def coefficients(x):
        blocks = 255 * x.double().numpy().reshape(len(x), SIDE // 8, 8, SIDE // 8, 8).swapaxes(2, 3) - 128
        return dctn(blocks, axes=(3, 4), norm="ortho")

    compressed = corrupted(grey, "jpeg_compression", severity)
    before, after = coefficients(grey), coefficients(compressed)
    inside = ((compressed > 0) & (compressed < 1)).numpy().reshape(len(grey), SIDE // 8, 8, SIDE // 8, 8).all((2, 4))
    assert inside.mean() > 0.4
    # Pixels are rounded to bytes, which moves each coefficient by about 0.3.
    multiple = step * np.round(after / step)
    assert np.abs(after - multiple)[inside].max() <= 1.5
    assert (np.abs(multiple - before) <= step / 2 + 1.5)[inside].all()


@pytest.mark.parametrize(("severity", "size"), levels(30, 28, 27, 24, 20))
def test_pixelate_averages_what_has_its_centre_in_the_box(images, severity, size):
    def resized(x, to):
        ratio = x.shape[0] / to
        places = [
            [j for j in range(x.shape[0]) if abs(j + 0.5 - (i + 0.5) * ratio) <= max(ratio, 1) / 2] for i in range(to)
        ]
        rows = np.stack([x[place].mean(0) for place in places])
        return np.floor(np.stack([np.floor(rows + 0.5)[:, place].mean(1) for place in places], 1) + 0.5)

    found = corrupted(images, "pixelate", severity)
    for i in range(2):
        for c in range(3):
            channel = 255 * images[i, c].double().numpy().round(9)
            expected = resized(resized(channel, size), SIDE)
            assert np.abs(255 * found[i, c].numpy() - expected).max() <= 2.01  # Pillow rounds after each direction
    assert (found - images).abs().mean() > 0.01


@pytest.mark.parametrize(("severity", "sigma"), levels(0.4, 0.6, 0.7, 0.8, 1.0))
def test_blur_is_a_normalised_gaussian_with_repeated_borders(images, severity, sigma):
    reach = math.floor(4 * sigma + 0.5)
    weights = np.array([math.exp(-(t**2) / (2 * sigma**2)) for t in range(-reach, reach + 1)])
    weights /= weights.sum()
    x = images.double().numpy()
    framed = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")
    expected = np.zeros_like(x)
    for a, down in enumerate(weights):
        for b, across in enumerate(weights):
            expected += down * across * framed[:, :, a : a + SIDE, b : b + SIDE]
    assert np.abs(corrupted(images, "gaussian_blur", severity).numpy() - expected).max() <= ROUNDING


def test_gaussian_noise_has_its_deviation():
    grey = torch.full((32, 3, SIDE, SIDE), 128 / 255)
    for severity, sigma in levels(0.04, 0.06, 0.08, 0.09, 0.10):
        change = corrupted(grey, "gaussian_noise", severity) - grey
        assert change.std().item() == pytest.approx(sigma, rel=0.02)
        assert change.mean().item() == pytest.approx(0, abs=0.002)


def test_shot_noise_counts_photons():
    for severity, photons in levels(500, 250, 100, 75, 50):
        for value in (51, 128):
            grey = torch.full((32, 3, SIDE, SIDE), value / 255)
            change = corrupted(grey, "shot_noise", severity) - grey
            assert change.std().item() == pytest.approx(math.sqrt(value / 255 / photons), rel=0.03)
            assert change.mean().item() == pytest.approx(0, abs=0.002)
    black = torch.zeros(1, 3, SIDE, SIDE)
    assert torch.equal(corrupted(black, "shot_noise", 5), black)


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise"])
def test_noise_follows_from_seed_severity_and_image_alone(images, name):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    whole = corrupted(images, name, 3, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    parts = [corrupted(images[:3], name, 3, seed=1), corrupted(images[3:], name, 3, seed=1, first=3)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, corrupted(images, name, 3, seed=2))
    twice = corrupted(images[:1].expand(2, -1, -1, -1), name, 3)
    assert not torch.equal(twice[0], twice[1])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_stay_images_and_suffer_more(images, name):
    kept = images.clone()
    found = [corrupted(images, name, severity) for severity in SEVERITIES]
    assert torch.equal(images, kept)
    for x in found:
        assert (x.dtype, x.shape) == (torch.float32, images.shape)
        assert torch.equal((255 * x).round() / 255, x)
        assert 0 <= x.min() <= x.max() <= 1
    if name != "saturate":  # which begins with less colour and ends with more
        change = [(x - images).abs().mean().item() for x in found]
        assert change == sorted(change)
        assert change[0] > 0


def test_grey_images_are_corrupted_too():
    grey = Resident.from_float(torch.rand(5, 1, 8, 8), torch.zeros(5, dtype=torch.int64))
    (batch,) = grey.batches(5, seed=0).epoch(0)
    assert offered(3) == list(CORRUPTIONS)
    assert offered(1) == [name for name in CORRUPTIONS if name != "saturate"]
    for name in offered(1):
        assert corrupted(batch.x, name, 5).shape == batch.x.shape
    brighter = corrupted(batch.x, "brightness", 2)
    assert torch.allclose(brighter, (batch.x + 0.1).clamp(max=1), atol=ROUNDING)


@pytest.mark.parametrize(
    ("shape", "name", "severity", "message"),
    [
        ((1, 3, 8, 8), "gausian_noise", 1, "no corruption 'gausian_noise' .*did you mean 'gaussian_noise'"),
        ((1, 3, 8, 8), "snow", 1, "no corruption 'snow'"),
        ((1, 1, 8, 8), "saturate", 1, "no corruption 'saturate' of images of 1 channels"),
        ((1, 3, 8, 8), "contrast", 0, "severity 0 of 'contrast': choose 1 to 5"),
        ((1, 3, 8, 8), "contrast", 6, "severity 6"),
        ((1, 4, 8, 8), "contrast", 1, "1 or 3 channels, these have 4"),
    ],
)
def test_what_is_not_offered_is_refused(shape, name, severity, message):
    with pytest.raises(SpecError, match=message):
        corrupted(torch.rand(shape), name, severity)


class Bright(nn.Module):
    """Class 1 for images brighter than a half."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        brightness = self.scale * x.mean((1, 2, 3))
        return torch.stack([torch.full_like(brightness, 0.5), brightness], 1)


def test_accuracy_of_each_corruption_is_that_of_its_images():
    values = torch.tensor([10, 90, 110, 118, 125, 140, 200])
    x = (values[:, None, None, None] / 255).expand(-1, 3, 8, 8).contiguous()
    y = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    batches = Resident.from_float(x, y).batches(3, seed=0)
    parts = Made(batches, ["brightness", "contrast"], seed=0)
    seen = []
    found = corruption_accuracy(Bright(), parts, progress=seen.append)
    assert len(seen) == len(parts) == 3 * 2 * 5
    # Brightness adds 13, 26, 38, 51, 77 of 255 to grey; one of class 0 is lost where it passes 127.5.
    wrong = [sum(v + 255 * shift > 127.5 for v in values[:5].tolist()) for shift in (0.05, 0.1, 0.15, 0.2, 0.3)]
    assert wrong == [2, 3, 4, 4, 4]
    assert found.accuracy["brightness"] == [(7 - lost) / 7 for lost in wrong]
    assert found.accuracy["contrast"] == [1.0] * 5
    assert found.samples == 7
    expected = np.mean([found.accuracy["brightness"], found.accuracy["contrast"]])
    assert found.mean_accuracy == pytest.approx(expected)


def test_batches_change_nothing():
    x, y = torch.rand(11, 3, 8, 8), torch.arange(11) % 2
    found = [
        corruption_accuracy(Bright(), Made(Resident.from_float(x, y).batches(size, seed=0), offered(3), seed=3))
        for size in (4, 11)
    ]
    assert found[0] == found[1]


def test_bad_labels_and_no_images():
    with pytest.raises(DataError, match="labels run from 7 to 7, but the network has 2 classes"):
        corruption_accuracy(Bright(), [CorruptedBatch("fog", 1, Batch(torch.rand(1, 3, 8, 8), torch.tensor([7])))])
    with pytest.raises(EvaluationError, match="no images"):
        corruption_accuracy(Bright(), [])


N, SMALL = 6, 8


@pytest.fixture
def folder(tmp_path):
    """A small CIFAR-10-C: each file has images of one grey per corruption, severity and image."""
    rng = np.random.default_rng(1)
    np.save(tmp_path / "labels.npy", np.tile(np.array([0, 1, 1, 0, 1, 0], np.uint8), 5))
    for name in BENCHMARK:
        grey = rng.integers(0, 256, (5 * N, 1, 1, 1), np.uint8)
        np.save(tmp_path / f"{name}.npy", np.broadcast_to(grey, (5 * N, SMALL, SMALL, 3)))
    np.save(tmp_path / "saturate.npy", np.zeros(3))  # one of the four for tuning, which are not read
    return tmp_path


@pytest.mark.parametrize("samples", [None, 4, 100])
def test_the_folder_is_read_by_severity(folder, samples):
    files = read_files(folder, (3, SMALL, SMALL), samples, 4)
    count = min(samples or N, N)
    assert files.samples == count
    parts = list(files)
    assert len(parts) == len(files)
    found = corruption_accuracy(Bright(), files)
    assert list(found.accuracy) == list(BENCHMARK)
    assert found.samples == count
    labels, every = np.load(folder / "labels.npy"), []
    for name in BENCHMARK:
        grey = np.load(folder / f"{name}.npy")[:, 0, 0, 0]
        for severity in range(5):
            own = slice(severity * N, severity * N + count)
            expected = np.mean((grey[own] > 127.5) == labels[own])
            assert found.accuracy[name][severity] == pytest.approx(expected)
            every.append(expected)
    assert found.mean_accuracy == pytest.approx(np.mean(every))


def test_pixels_of_the_folder_keep_their_place(folder):
    picture = np.random.default_rng(2).integers(0, 256, (5 * N, SMALL, SMALL, 3), np.uint8)
    np.save(folder / "gaussian_noise.npy", picture)
    first = next(iter(read_files(folder, (3, SMALL, SMALL), None, 2)))
    assert (first.name, first.severity) == ("gaussian_noise", 1)
    assert np.array_equal((255 * first.batch.x).round().numpy(), picture[:2].transpose(0, 3, 1, 2))


def damage(folder, what):
    fog = folder / "fog.npy"
    if what == "missing":
        fog.unlink()
    elif what == "no labels":
        (folder / "labels.npy").unlink()
    elif what == "short":
        np.save(fog, np.zeros((5 * N - 1, SMALL, SMALL, 3), np.uint8))
    elif what == "floats":
        np.save(fog, np.zeros((5 * N, SMALL, SMALL, 3)))
    elif what == "pickle":
        np.save(fog, np.array([{}] * 5 * N, object))
    elif what == "cut":
        fog.write_bytes(fog.read_bytes()[:-100])
    elif what == "empty":
        fog.write_bytes(b"")
    elif what == "archive":
        with fog.open("wb") as file:
            np.savez(file, a=np.zeros(3))
    elif what == "uneven":
        np.save(folder / "labels.npy", np.zeros(5 * N - 1, np.uint8))
    elif what == "float labels":
        np.save(folder / "labels.npy", np.zeros(5 * N))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", r"fog\.npy is missing; give a folder like CIFAR-10-C"),
        ("no labels", r"labels\.npy is missing"),
        ("short", r"fog\.npy is uint8 \(29, 8, 8, 3\); expected uint8 \(30, 8, 8, 3\)"),
        ("floats", r"fog\.npy is float64"),
        ("pickle", r"fog\.npy is no array"),
        ("cut", r"fog\.npy is no array"),
        ("empty", r"fog\.npy is no array"),
        ("archive", r"fog\.npy is an archive"),
        ("uneven", r"labels\.npy is uint8 \(29,\); expected 5 N integers"),
        ("float labels", r"labels\.npy is float64"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folder, what, message):
    damage(folder, what)
    with pytest.raises(DataError, match=message):
        read_files(folder, (3, SMALL, SMALL), None, 4)


def test_images_of_another_size_are_refused(folder):
    with pytest.raises(DataError, match=r"expected uint8 \(30, 32, 32, 3\)"):
        read_files(folder, (3, 32, 32), None, 4)
