"""Passes over a split: order, shares of ranks, and that an epoch is a function of seed and number."""

import pytest
import torch

from hydraprune.core.errors import HydrapruneError
from hydraprune.data import Batches, Resident


def numbered(count: int, **settings) -> Resident:
    """One-pixel images; image i has label i."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1)
    return Resident(pixels, torch.arange(count), **settings)


def labels(batches: Batches, epoch: int = 0) -> list[int]:
    return [label for batch in batches.epoch(epoch) for label in batch.y.tolist()]


def test_fixed_order_delivers_every_image_as_floats_of_its_bytes():
    batches = numbered(10).batches(4, seed=0)
    got = list(batches.epoch(0))
    assert [len(batch.y) for batch in got] == [4, 4, 2]
    assert len(batches) == 3
    assert torch.cat([batch.y for batch in got]).tolist() == list(range(10))
    x = torch.cat([batch.x for batch in got])
    assert x.dtype == torch.float32
    assert torch.equal(x.flatten(), torch.arange(10) / 255)


def test_shuffling_permutes_anew_in_each_epoch_and_with_each_seed():
    batches = numbered(100).batches(32, seed=1, shuffle=True)
    orders = [labels(batches, epoch) for epoch in range(3)] + [labels(numbered(100).batches(32, seed=2, shuffle=True))]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_an_epoch_is_a_function_of_seed_and_number():
    torch.manual_seed(5)
    pixels = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    images = Resident(pixels, torch.arange(40), flip=True, padding=2)
    first = images.batches(16, seed=3, augment=True, shuffle=True)
    state = torch.get_rng_state()
    whole = [list(first.epoch(number)) for number in range(3)]
    assert torch.equal(torch.get_rng_state(), state)  # the global random numbers are left alone
    torch.manual_seed(99)
    again = list(images.batches(16, seed=3, augment=True, shuffle=True).epoch(2))
    assert all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(whole[2], again, strict=True))
    assert not torch.equal(whole[0][0].x, whole[1][0].x)


def test_crops_depend_neither_on_batch_size_nor_on_ranks():
    pixels = torch.randint(0, 256, (24, 1, 8, 8), dtype=torch.uint8)
    images = Resident(pixels, torch.arange(24), flip=True, padding=3)

    def crops(batches: list[Batches]) -> torch.Tensor:
        got = [batch for part in batches for batch in part.epoch(7)]
        return torch.cat([batch.x for batch in got])[torch.cat([batch.y for batch in got]).argsort()]

    alone = crops([images.batches(24, seed=0, augment=True)])
    shared = crops([images.batches(5, seed=0, augment=True, shuffle=True, rank=r, world=3) for r in range(3)])
    assert torch.equal(alone, shared)


@pytest.mark.parametrize(("total", "world"), [(30, 3), (31, 3), (32, 3), (7, 2)])
def test_ranks_take_disjoint_shares_of_equal_length(total, world):
    parts = [numbered(total).batches(4, seed=0, shuffle=True, rank=rank, world=world) for rank in range(world)]
    shares = [labels(part) for part in parts]
    assert {len(share) for share in shares} == {total // world}
    assert {len(part) for part in parts} == {-(-(total // world) // 4)}
    together = {label for share in shares for label in share}
    assert len(together) == total // world * world
    assert together <= set(range(total))


@pytest.mark.parametrize("total", [30, 31, 32])
def test_ranks_cover_everything_in_fixed_order(total):
    parts = [numbered(total).batches(4, seed=0, rank=rank, world=3) for rank in range(3)]
    assert sorted(label for part in parts for label in labels(part)) == list(range(total))
    assert [len(part) for part in parts] == [len(list(part.epoch(0))) for part in parts]


def test_drop_last_leaves_out_the_short_batch():
    batches = numbered(10).batches(4, seed=0, drop_last=True)
    assert [len(batch.y) for batch in batches.epoch(0)] == [4, 4]
    assert len(batches) == 2


def test_an_empty_split_has_no_batches():
    batches = numbered(3).subset([]).batches(4, seed=0)
    assert len(batches) == 0
    assert list(batches.epoch(0)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch size is 0; give a whole number of at least 1"),
        ({"batch_size": 4, "seed": -1}, "seed is -1; give a whole number of at least 0"),
        ({"batch_size": 4, "rank": 2, "world": 2}, "rank 2 of 2"),
        ({"batch_size": 11, "drop_last": True}, "10 images over 1 processes fill no batch; lower batch size 11"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(HydrapruneError, match=message):
        numbered(10).batches(**{"seed": 0, **settings})
