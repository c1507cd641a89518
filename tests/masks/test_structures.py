"""What a group is: every structure against an explicit list of its groups, in layers of every kind."""

import pytest
import torch
from torch import Tensor, nn

from contracts.grouping import members
from hydraprune.core.errors import SpecError
from hydraprune.masks import STRUCTURES
from hydraprune.masks.source import selected
from hydraprune.masks.structures import Block, Channel, Filter, NOfM, Weight

LAYERS = {
    "conv": nn.Conv2d(3, 4, 2),
    "line": nn.Conv1d(5, 6, 3),
    "linear": nn.Linear(7, 5),
    "grouped": nn.Conv2d(6, 8, 3, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4),
    "transposed": nn.ConvTranspose2d(5, 3, 2),
    "transposed and grouped": nn.ConvTranspose1d(6, 4, 2, groups=2),
}
layers = pytest.mark.parametrize("layer", LAYERS)
BLOCKS = [Block(), *(Block(rows=rows, columns=columns) for rows, columns in ((1, 4), (3, 2), (16, 16)))]
KINDS = [Weight(), Filter(), Channel(), *BLOCKS]
kinds = pytest.mark.parametrize("kind", KINDS, ids=repr)


@layers
@kinds
def test_groups_are_those_of_the_list(kind, layer):
    layer = LAYERS[layer]
    shape, expected, bound = tuple(layer.weight.shape), members(kind, layer), kind.on(layer)
    score = torch.randn(shape)
    count = bound.groups(shape)
    assert count == len(expected)
    importance = bound.pool(score)
    sizes = bound.sizes(shape)
    seen = []
    for number in range(count):
        mask = bound.expand(torch.arange(count) == number, shape)
        assert mask.shape == shape
        places = mask.flatten().nonzero().flatten().tolist()
        seen.append(places)
        assert sizes[number] == len(places)
        torch.testing.assert_close(importance[number], score.flatten()[places].abs().mean())
    assert sorted(seen) == sorted(expected)


@layers
@kinds
@pytest.mark.parametrize("share", [0, 0.3, 0.5, 1])
def test_the_best_groups_are_kept_whole(kind, layer, share):
    layer = LAYERS[layer]
    score = torch.randn_like(layer.weight)
    groups = members(kind, layer)
    keep = int(share * len(groups))
    best = sorted(groups, key=lambda group: float(score.flatten()[group].abs().mean()))[len(groups) - keep :]
    mask = selected(score, keep, kind.on(layer))
    assert mask.shape == score.shape
    assert sorted(mask.flatten().nonzero().flatten().tolist()) == sorted(place for group in best for place in group)


@layers
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (3, 5), (2, 16)])
@pytest.mark.parametrize("levels", [0, 2])
def test_n_of_m_keeps_the_n_best_of_every_m(layer, n, m, levels):
    layer, kind = LAYERS[layer], NOfM(n=n, m=m)
    score = torch.randn_like(layer.weight)
    score = (score * levels).round() if levels else score
    flat, shape = score.abs().flatten().tolist(), tuple(score.shape)
    expected = []
    for run in members(kind, layer):
        expected += sorted(run, key=lambda place: (flat[place], place))[-n:]
    bound = kind.on(layer)
    keep = bound.decided(shape)
    assert keep == len(expected)
    mask = selected(score, keep, bound)
    if levels:  # which of equals stay is free, how many is not
        for run in members(kind, layer):
            kept = mask.flatten()[run]
            assert int(kept.sum()) == min(n, len(run))
            dropped = [flat[place] for place, stays in zip(run, kept, strict=True) if not stays]
            assert not dropped or max(dropped) <= min(flat[p] for p, stays in zip(run, kept, strict=True) if stays)
    else:
        assert sorted(mask.flatten().nonzero().flatten().tolist()) == sorted(expected)


def test_n_of_m_does_not_mind_zeros_or_scale():
    for score in (torch.zeros(4, 8), torch.full((4, 8), 1e-30), torch.rand(4, 8) * 1e30):
        kind = NOfM()
        mask = selected(score, kind.decided((4, 8)), kind)
        assert (mask.view(4, 2, 4).sum(2) == 2).all()


def test_n_of_m_that_removes_nothing_is_refused():
    with pytest.raises(SpecError, match=r"4 of every 4 weights removes none; choose n below m"):
        NOfM(n=4, m=4)
    assert NOfM(n=1, m=4).sparsity == 0.75


@pytest.mark.parametrize("name", STRUCTURES.names())
def test_pooling_takes_no_gradient_and_binding_changes_nothing_else(name):
    structure = STRUCTURES.make(name, "structure")
    bound = structure.on(LAYERS["grouped"])
    score: Tensor = torch.randn(8, 3, 3, 3, requires_grad=True)
    assert not bound.pool(score).requires_grad
    assert bound.plain() == structure.plain()
    assert structure.groups((8, 3, 3, 3)) == structure.on(nn.Conv2d(3, 8, 3)).groups((8, 3, 3, 3))
