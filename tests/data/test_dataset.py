"""Splits: stratified, disjoint, and fixed by their seed; sources that reduce the training set."""

import pytest
import torch

from hydraprune.core.errors import DataError, SpecError
from hydraprune.data import SOURCES, Dataset, Resident, Source
from hydraprune.data.dataset import stratified


def tensors(labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """One-pixel images; image i has the pixel i."""
    return torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1), torch.tensor(labels)


def pixels(images: Resident) -> set[int]:
    return {round(value * 255) for batch in images.batches(64, seed=0).epoch(0) for value in batch.x.flatten().tolist()}


class Bars(Source):
    """Two hundred training images of class 0, fifty of class 1; images 0..249."""

    kind: str = "bars"

    def read(self):
        train, test = tensors([0] * 200 + [1] * 50), tensors([0, 1])
        return Resident(*train), Resident(*test), ("long", "short")


@pytest.mark.parametrize("count", [1, 3, 7, 100, 299, 300])
def test_stratified_draws_every_class_in_proportion(count):
    labels = torch.tensor([0] * 200 + [2] * 75 + [1] * 25)[
        torch.randperm(300, generator=torch.Generator().manual_seed(0))
    ]
    drawn = stratified(labels, count, seed=0)
    assert len(drawn.unique()) == count
    assert torch.equal(drawn, drawn.sort().values)
    shares = labels[drawn].bincount(minlength=3) - torch.tensor([200, 25, 75]) * count / 300
    assert shares.abs().max() < 0.7


def test_stratified_draws_are_nested_and_follow_the_seed():
    labels = torch.arange(200) % 10
    small, large = stratified(labels, 40, seed=3), stratified(labels, 90, seed=3)
    assert set(small.tolist()) < set(large.tolist())
    assert torch.equal(small, stratified(labels, 40, seed=3))
    assert not torch.equal(small, stratified(labels, 40, seed=4))


def test_own_tensors_make_a_data_set_in_one_line():
    train, test = tensors([0, 1] * 50), tensors([1, 0, 1])
    data = Dataset.from_tensors(train, test, validation=0.2)
    assert (len(data.train), len(data.validation), len(data.test)) == (80, 20, 3)
    assert data.classes == ("0", "1")
    assert (data.num_classes, data.shape) == (2, (1, 1, 1))
    assert pixels(data.train) | pixels(data.validation) == set(range(100))
    assert not pixels(data.train) & pixels(data.validation)
    assert data.validation.labels.bincount().tolist() == [10, 10]
    assert data.test.labels.tolist() == [1, 0, 1]


def test_own_tensors_may_be_floats_and_have_named_classes():
    x, y = torch.rand(20, 3, 4, 4), torch.arange(20) % 2
    data = Dataset.from_tensors((x, y), (x, y), validation=0, classes=["cat", "dog"], flip=True, padding=1)
    assert (len(data.train), len(data.validation), data.classes) == (20, 0, ("cat", "dog"))
    batch = next(data.test.batches(20, seed=0).epoch(0))
    assert torch.allclose(batch.x, x, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (tensors([0, 1]), tensors([0, 5]), r"label 5 of test image 1 is outside 0\.\.1; classes: cat, dog"),
        (tensors([0, 1]), (torch.zeros(1, 3, 1, 1).byte(), torch.tensor([0])), r"test images are \(3, 1, 1\), train"),
        (tensors([0, 1]), tuple(part[:0] for part in tensors([0])), "test split has no images"),
    ],
)
def test_splits_that_do_not_fit_are_refused(train, test, message):
    with pytest.raises(DataError, match=message):
        Dataset.from_tensors(train, test, validation=0, classes=["cat", "dog"])


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_outside_its_range_is_refused(share):
    with pytest.raises(DataError, match=rf"validation {share:g} is not in \[0, 1\)"):
        Dataset.from_tensors(tensors([0, 1]), tensors([0, 1]), validation=share)


def test_a_source_reduces_first_and_then_holds_out():
    data = Bars(fraction="1/2", validation=0.2).load()
    assert data.train.labels.bincount().tolist() == [80, 20]
    assert data.validation.labels.bincount().tolist() == [20, 5]
    assert len(data.test) == 2
    assert not pixels(data.train) & pixels(data.validation)
    assert [len(split) for split in (Bars(samples=50).load().train, Bars(samples=50).load().validation)] == [45, 5]


def test_the_split_is_fixed_by_its_own_seed():
    first, again, other = (pixels(Bars(samples=50, split_seed=seed).load().train) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 251}, r"data\.samples 251 exceeds the 250 training images"),
        ({"samples": 1}, "1 of 250 training images leave class 'short' without any; raise"),
        ({"fraction": 0.004}, "class 'short' without any"),
    ],
)
def test_reductions_that_lose_a_class_are_refused(settings, message):
    with pytest.raises(DataError, match=message):
        Bars(validation=0, **settings).load()


@pytest.mark.parametrize("settings", [{"fraction": 0}, {"fraction": 1.5}, {"samples": 0}, {"validation": 1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(SpecError, match=next(iter(settings))):
        Bars(**settings)


def test_fraction_and_samples_exclude_each_other():
    with pytest.raises(SpecError, match="exclude each other"):
        Bars(fraction=0.5, samples=10)


def test_digits_need_no_download():
    data = SOURCES.make("digits", "data").load()
    assert (data.shape, data.num_classes) == ((1, 8, 8), 10)
    assert (len(data.train), len(data.validation), len(data.test)) == (1294, 144, 359)
    assert data.test.labels.bincount().min() >= 35
    x = torch.cat([batch.x for batch in data.test.batches(100, seed=0).epoch(0)])
    assert (x.min(), x.max()) == (0, 1)
    assert len(x.unique()) == 17
    same = SOURCES.make({"kind": "digits", "split_seed": 9}, "data").load()
    assert torch.equal(same.test.labels, data.test.labels)


def test_digits_take_no_path():
    with pytest.raises(SpecError, match="unknown key 'path'"):
        SOURCES.make({"kind": "digits", "path": "/data"}, "data")


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(SpecError, match="did you mean 'cifar10'"):
        SOURCES.make("cifar100", "data")
