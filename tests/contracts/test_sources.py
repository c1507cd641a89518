"""What every registered source of images must give."""

import pytest
import torch

from contracts.material import settings
from hydraprune.data import SOURCES

pytestmark = pytest.mark.parametrize("name", SOURCES.names())
SIDE = 16


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Loads a source by name; files are written once, and what is decoded is kept in a folder of its own."""
    folder = tmp_path_factory.mktemp("images")

    def loaded(name, **changes):
        return SOURCES.make({"kind": name, **settings(name, folder, SIDE), **changes}, "data").load()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYDRAPRUNE_CACHE", str(folder / "cache"))
        yield loaded


def everything(batches, epoch=0):
    parts = list(batches.epoch(epoch))
    return torch.cat([batch.x for batch in parts]), torch.cat([batch.y for batch in parts])


def test_images_and_labels_are_what_training_expects(load, name):
    data = load(name)
    assert data.num_classes == len(data.classes) == 10
    for split in (data.train, data.validation, data.test):
        assert len(split) > 0
        x, y = everything(split.take(20).batches(8, seed=0, augment=True))
        assert (x.dtype, x.shape[1:]) == (torch.float32, data.shape)
        assert x.min() >= 0
        assert x.max() <= 1
        assert x.std() > 0.05
        assert (y.dtype, len(y)) == (torch.int64, len(x))
        assert y.min() >= 0
        assert y.max() < data.num_classes
    assert data.shape[1] == data.shape[2] == (8 if name == "digits" else SIDE)


def test_an_epoch_is_a_function_of_seed_and_number(load, name):
    def shuffled():
        return load(name).train.batches(8, seed=1, augment=True, shuffle=True, drop_last=True)

    batches = shuffled()
    first, again = everything(batches, 0), everything(shuffled(), 0)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], everything(batches, 1)[0])
    assert len(first[0]) == 8 * len(batches)


def test_without_augmentation_images_are_always_the_same(load, name):
    data = load(name)
    x, _ = everything(data.test.batches(8, seed=0), 0)
    other, _ = everything(data.test.batches(5, seed=9), 3)
    assert torch.equal(x, other)


def test_fewer_images_can_be_asked_for_and_every_class_stays(load, name):
    data = load(name, samples=30, validation=0.3)
    assert (len(data.train), len(data.validation)) == (21, 9)
    assert sorted(set(data.train.labels.tolist())) == list(range(10))
