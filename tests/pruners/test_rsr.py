"""RSR against its formulas written out: the noisy weight, its gradients, the lasso and what is removed at the end."""

import pytest
import torch
from torch import nn

from contracts.material import batch, net
from hydraprune.core.errors import SpecError
from hydraprune.masks.budgets import Global
from hydraprune.objectives.natural import Natural
from hydraprune.pruners.rsr import RSR
from hydraprune.train import Hook, Optim, fit
from pruners.staged import SGD, Batches, best, copies, places, staged, started

PLAIN = Optim(lr=0.1, momentum=0, weight_decay=0.01, schedule="constant")


class Drawn(Hook):
    """The noise, and the weights, of every step."""

    def __init__(self, view):
        self.view, self.noise, self.weights = view, [], []

    def on_gradient(self, clock, optimizer):
        self.noise.append(copies({name: source.noise for name, source in self.view.sources.items()}))
        self.weights.append(copies(self.view.weights()))


def drawn(seed=0, epochs=2, model=None):
    """What an RSR stage drew."""
    seen = []

    def hooks(view, process):
        seen.append(Drawn(view))
        return seen, []

    staged(RSR(), epochs, hooks, model=model, seed=seed)
    return seen[0]


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False))


def test_steps_are_those_of_noisy_weights_and_a_lasso():
    """SGD with weight decay on a linear layer, by hand."""
    view, process = started(RSR(l1=0.02, alpha=0.5), model=linear())
    (source,), (weight,) = view.sources.values(), view.weights().values()
    w, alpha = weight.clone().double(), torch.full((10, 1), 0.5, dtype=torch.float64)
    moving = view.train("weights")
    assert [name for name, _ in moving] == ["1.weight", "alpha:1.weight"]
    look = Drawn(view)
    fit(view.model, moving, Batches(), Natural(), epochs=2, optim=PLAIN, hooks=[look, process])
    for noise, images in zip(look.noise, [batch(), batch(12)] * 2, strict=True):
        noise = noise["1.weight"].double()
        x, target = images.x.flatten(1).double(), nn.functional.one_hot(images.y, 10)
        slope = ((x @ (w + alpha * noise).T).softmax(1) - target).T @ x / len(x)
        lasso = torch.where(w > 0, 0.02, -0.02)
        of_alpha = (slope * noise).sum(1, keepdim=True)
        w, alpha = w - 0.1 * (slope + lasso + 0.01 * w), alpha - 0.1 * (of_alpha + 0.01 * alpha)
    torch.testing.assert_close(weight.double(), w, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(source.alpha.detach().double(), alpha.flatten(), atol=1e-6, rtol=1e-4)
    assert float((alpha - 0.5).abs().min()) > 1e-4


def test_noise_is_normal_with_the_deviation_of_the_layer_and_new_in_every_step():
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 2000), nn.ReLU(), nn.Linear(2000, 10))
    seen = drawn(model=wide)
    assert len(seen.noise) == 4
    for noise, weights in zip(seen.noise, seen.weights, strict=True):
        for name, draw in noise.items():
            unit = (draw / weights[name].std()).flatten()
            assert float(unit.mean()) == pytest.approx(0, abs=0.03)
            assert float(unit.std()) == pytest.approx(1, abs=0.03)
            assert float((unit.abs() < 0.6745).float().mean()) == pytest.approx(0.5, abs=0.03)
    first = torch.stack([noise["1.weight"].flatten() for noise in seen.noise])
    torch.testing.assert_close(first.corrcoef(), torch.eye(4), atol=0.02, rtol=0)


def test_a_layer_of_one_weight_has_no_noise():
    view, process = started(RSR(), model=nn.Linear(1, 1))
    process.on_start(1, 1, 0)
    assert [float(source.noise) for source in view.sources.values()] == [0]


def test_noise_follows_from_the_seed():
    first, same, other = (drawn(seed).noise for seed in (3, 3, 4))
    for a, b, c in zip(first, same, other, strict=True):
        assert all(torch.equal(a[name], b[name]) and not torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 6),
        nn.Conv1d(4, 6, 3),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(4, 6, 2),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
    ],
)
def test_each_factor_is_that_of_one_output_channel(layer):
    view, process = started(RSR(), model=layer)
    (source,) = view.sources.values()
    assert source.alpha.tolist() == [0.25] * 6
    process.on_start(1, 1, 0)
    x = torch.randn(5, 4, *[7] * (layer.weight.dim() - 2), generator=torch.Generator().manual_seed(0))
    before = layer(x).detach()
    for channel in range(6):
        with torch.no_grad():
            source.alpha[channel] += 1
            changed = (layer(x) != before).transpose(0, 1).flatten(1).any(1)
            source.alpha[channel] -= 1
        assert changed.tolist() == [other == channel for other in range(6)]


def test_the_attack_of_a_step_sees_its_noise_and_an_evaluation_none():
    model = net()
    model[1] = nn.Identity()  # a norm would be folded into the convolution that is compared
    view, process = started(RSR(), model=model)
    look = Drawn(view)
    noted, evaluated = [], []

    class Noted(Natural):
        def __call__(self, model, batch, ctx):
            noted.append((model[0].weight.detach().clone(), ctx.frozen(model)[0].weight.clone()))
            return super().__call__(model, batch, ctx)

    class Evaluated(Hook):
        def on_epoch(self, epoch, model, metrics):
            evaluated.append((model.eval()[0].weight.detach().clone(), view.weights()["0.weight"].clone()))

    hooks = [process, look, Evaluated()]
    fit(model, view.train("weights"), Batches(), Noted(), epochs=2, optim=SGD, hooks=hooks)
    assert len(noted) == 4
    for (used, seen), weights, noise in zip(noted, look.weights, look.noise, strict=True):
        assert torch.equal(used, seen)
        assert float((used - weights["0.weight"]).abs().max()) > 0.1 * float(noise["0.weight"].abs().max())
    assert all(torch.equal(used, stored) for used, stored in evaluated)


def test_the_smallest_weights_go_at_the_end_and_the_noise_with_them():
    dense = []

    class Dense(Hook):
        def on_epoch(self, epoch, model, metrics):
            dense.append(view.count().kept == view.count().total)

    view, process = started(RSR(), budget=Global(sparsity=0.7, floor=0))
    fit(view.model, view.train("weights"), Batches(), Natural(), epochs=4, optim=SGD, hooks=[process, Dense()])
    assert dense == [True] * 4
    process.finish()
    stored, masks = copies(view.weights()), copies(view.masks())
    every = torch.cat([weight.flatten() for weight in stored.values()])
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    assert places(kept) == best(every, len(every) - int(0.7 * len(every)))
    for settle in (view.model.train, view.freeze):
        settle()
        for name, (module, *_) in view.modules.items():
            assert torch.equal(module.weight, stored[name] * masks[name])
    assert {name for name, _ in view.train("weights")} == {name for name, _ in net().named_parameters()}


def test_a_strong_lasso_makes_most_weights_small():
    small = []
    for l1 in (0, 0.02):
        view, _, _ = staged(RSR(l1=l1, alpha=0), epochs=50, optim=PLAIN)
        every = torch.cat([weight.flatten().abs() for weight in view.weights().values()])
        small.append(float((every < 0.005).float().mean()))
    assert small[1] > 0.5 > 3 * small[0]


@pytest.mark.parametrize("setting", ["l1", "alpha"])
def test_a_negative_strength_is_refused(setting):
    with pytest.raises(SpecError, match=setting):
        RSR(**{setting: -0.1})
