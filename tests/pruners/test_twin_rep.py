"""Twin-Rep: the product trains, is pruned in its epoch, and is folded into plain weights."""

import math

import pytest
import torch
from torch import nn

from contracts.material import batch, net
from hydraprune.masks.budgets import Global, Uniform
from hydraprune.masks.view import MaskView
from hydraprune.objectives.natural import Natural
from hydraprune.pruners.magnitude import Magnitude
from hydraprune.pruners.pruning import prune
from hydraprune.pruners.selection import masked_weights
from hydraprune.pruners.twin_rep import TwinRep
from hydraprune.train import Hook, Optim, fit


class Same:
    """The same batch, three times per epoch."""

    def __len__(self) -> int:
        return 3

    def epoch(self, number: int):
        return iter([batch()] * 3)


OPTIM = Optim(lr=0.1, momentum=0.9, weight_decay=0.01, schedule="constant")


def test_a_step_is_that_of_both_factors():
    """SGD with weight decay on a linear layer, once by hand."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))
    view = MaskView(model)
    prune(view, TwinRep(), Global(sparsity=0.5))
    (source,), (weight,) = view.sources.values(), view.weights().values()
    w, a = weight.clone().double(), source.twin.detach().clone().double()
    assert 0.95 / 8 < float(a.abs().max()) <= 1 / 8
    images = batch()
    x, target = images.x.flatten(1).double(), nn.functional.one_hot(images.y, 10)
    for _ in range(3):
        slope = ((x @ (w * a).T).softmax(1) - target).T @ x / len(x)
        w, a = w - 0.1 * (slope * a + 0.01 * w), a - 0.1 * (slope * w + 0.01 * a)
    moving = view.train("weights")
    assert [name for name, _ in moving] == ["1.weight", "twin:1.weight"]
    fit(model, moving, Same(), Natural(), epochs=1, optim=OPTIM.model_copy(update={"momentum": 0}))
    torch.testing.assert_close(weight.double(), w, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(source.twin.detach().double(), a, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("when", [1, 3, 9])
def test_it_prunes_the_smallest_products_at_the_start_of_its_epoch(when):
    seen = []

    class Look(Hook):
        def on_epoch(self, epoch, model, metrics):
            masks = {name: mask.clone() for name, mask in view.masks().items()}
            seen.append(({name: w.clone() for name, w in masked_weights(view).items()}, masks))

    view = MaskView(net())
    process = prune(view, TwinRep(epoch=when), Global(sparsity=0.75, floor=0))
    first = {name: weight.clone() for name, weight in masked_weights(view).items()}
    fit(view.model, view.train("weights"), Same(), Natural(), epochs=4, optim=OPTIM, hooks=[Look(), process])
    dense = [all(bool(mask.all()) for mask in masks.values()) for _, masks in seen]
    assert dense == [number < when for number in range(1, 5)]
    products = {1: first, 3: seen[1][0], 9: masked_weights(view)}[when]
    process.finish()
    every = torch.cat([product.abs().flatten() for product in products.values()])
    threshold = every.sort().values[int(0.75 * len(every))]
    for name, mask in view.masks().items():
        assert torch.equal(mask, products[name].abs() >= threshold)
    baked = view.bake()
    x = batch().x
    outputs = view.model.eval()(x)
    view.freeze()
    assert torch.equal(view.model(x), outputs)
    assert torch.equal(baked.eval()(x), outputs)
    assert {name for name, _ in view.train("weights")} == {name for name, _ in net().named_parameters()}


def test_balanced_goes_on_from_the_weights_that_are_there():
    model = net()
    x, before = batch().x, net().eval()(batch().x)
    view = MaskView(model)
    prune(view, Magnitude(), Uniform(sparsity=0))
    prune(view, TwinRep(init="balanced"), Global(sparsity=0.5))
    torch.testing.assert_close(model.eval()(x), before, atol=1e-5, rtol=1e-5)
    for name, source in view.sources.items():
        torch.testing.assert_close(view.weights()[name].abs(), source.twin.detach())


def test_random_twins_change_the_network():
    view = MaskView(net())
    old = {name: weight.clone() for name, weight in view.weights().items()}
    prune(view, TwinRep(), Global(sparsity=0.5))
    for name, product in masked_weights(view).items():
        twin = product / old[name]
        bound = 1 / math.sqrt(old[name][0].numel())
        assert float(twin.abs().max()) <= bound * (1 + 1e-5)
        assert float(twin.std()) == pytest.approx(bound / math.sqrt(3), rel=0.2)
