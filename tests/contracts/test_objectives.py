"""What every registered objective must do, over weights and over scores."""

from contextlib import suppress
from functools import cache

import pytest
import torch
from torch import nn

from contracts.material import batch, net, quick, snapshot, unchanged
from hydraprune.core.errors import SpecError
from hydraprune.core.objective import Batch, Clock, Context
from hydraprune.core.plain import once, plain_copy
from hydraprune.core.threat import ThreatModel
from hydraprune.masks.budgets import Uniform
from hydraprune.masks.source import LearnedMask
from hydraprune.masks.view import MaskView
from hydraprune.objectives import OBJECTIVES
from hydraprune.pruners.hydra import Hydra
from hydraprune.pruners.pruning import prune
from hydraprune.train import Optim, fit

THREATS = {"linf": ThreatModel(eps="8/255"), "l2": ThreatModel(norm="l2", eps=0.5)}
pytestmark = pytest.mark.parametrize("name", OBJECTIVES.names())
overs = pytest.mark.parametrize("over", ["weights", "scores"])


def teacher():
    """A network to distil from, with weights of its own."""
    model = net().eval().requires_grad_(False)
    for weight in MaskView(model).weights().values():
        weight.copy_(weight.flip(0))
    return model


def context(threat, seed=0):
    return Context(threat, torch.Generator().manual_seed(seed), Clock(0, 2, 1), networks={"teacher": teacher()})


@cache
def threats(name):
    """Norm -> threat, for the norms that this objective trains against; one of them at least."""
    fit = {}
    for norm, threat in THREATS.items():
        with suppress(SpecError):
            step(name, "weights", context(threat))
            fit[norm] = threat
    assert fit, name
    return fit


def usual(name, seed=0):
    """The context of a first step under a threat that suits the objective."""
    return context(next(iter(threats(name).values())), seed)


def pruned(over):
    """A pruned net whose tensors are about to be moved, and those tensors."""
    model = net()
    prune(MaskView(model), Hydra(), Uniform(sparsity=0.5))
    return model.train(), [tensor for _, tensor in MaskView(model).train(over)]


def step(name, over, ctx):
    """The model, its loss and the gradients of one step."""
    model, tensors = pruned(over)
    torch.manual_seed(0)
    with once(model):
        loss = quick(OBJECTIVES.get(name))(model, batch(), ctx)
    loss.value.backward()
    return model, loss, [tensor.grad for tensor in tensors]


@overs
@pytest.mark.parametrize("norm", THREATS)
def test_one_step_is_finite_and_its_gradient_reaches_every_tensor(name, over, norm):
    if norm not in threats(name):
        with pytest.raises(SpecError, match=rf"objective '{name}' .*{norm}.*; "):
            step(name, over, context(THREATS[norm]))
        return
    model, loss, gradients = step(name, over, context(THREATS[norm]))
    assert loss.value.shape == ()
    assert loss.value.isfinite()
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert all(gradient.any() for gradient in gradients)
    scores = [source.score for source in MaskView(model).sources.values() if isinstance(source, LearnedMask)]
    assert [score.grad is not None for score in scores] == [over == "scores"] * 3
    if over == "scores":
        assert all(value.grad is None for name, value in model.named_parameters() if name.endswith("original"))


@overs
def test_metrics_are_numbers_without_gradient(name, over):
    _, loss, _ = step(name, over, usual(name))
    for metric, value in loss.metrics.items():
        assert value.shape == (), metric
        assert not value.requires_grad, metric
        assert value.isfinite(), metric
        assert "accuracy" not in metric or 0 <= value <= 1


@overs
def test_the_seed_decides(name, over):
    _, first, gradients = step(name, over, usual(name, seed=3))
    torch.rand(5)
    _, second, again = step(name, over, usual(name, seed=3))
    assert torch.equal(first.value, second.value)
    assert all(torch.equal(a, b) for a, b in zip(gradients, again, strict=True))
    assert all(torch.equal(value, second.metrics[metric]) for metric, value in first.metrics.items())


@overs
def test_the_model_and_the_images_are_left_as_they_were(name, over):
    """But for the statistics of its norm layers, which see the batch a few times, and the steps of an attack never."""
    model, _ = pruned(over)
    images = Batch(batch().x.clone(), batch().y.clone())
    model[3].eval()
    before, ctx = snapshot(model), usual(name)
    with once(model):
        quick(OBJECTIVES.get(name), few=6)(model, images, ctx)
    ctx.settle()
    assert model[1].num_batches_tracked <= 3
    assert unchanged(model, before, but_statistics=True)
    assert torch.equal(images.x, batch().x)
    assert torch.equal(images.y, batch().y)


def test_the_masked_net_has_the_loss_of_the_plain_one(name):
    _, masked, _ = step(name, "weights", usual(name))
    plain = plain_copy(pruned("weights")[0])
    torch.manual_seed(0)
    loss = quick(OBJECTIVES.get(name))(plain, batch(), usual(name))
    torch.testing.assert_close(masked.value, loss.value)


def test_what_it_carries_from_step_to_step_fits_batches_of_any_size(name):
    model, _ = pruned("weights")
    objective, ctx = quick(OBJECTIVES.get(name)), usual(name)
    assert objective.steps_per_batch() >= 1
    for number, size in enumerate((4, 16, 6)):
        ctx.clock = Clock(number, 3, 1)
        with once(model):
            loss = objective(model, batch(size), ctx)
        loss.value.backward()
        assert loss.value.isfinite()


def test_a_missing_threat_is_named_where_one_is_needed(name):
    complaint = None
    try:
        _, loss, _ = step(name, "weights", context(None))
    except SpecError as error:
        complaint = str(error)
    kinds = [name, *(part.kind for part in OBJECTIVES.get(name)().parts())]
    asked = tuple(f"objective {kind!r} needs a threat" for kind in kinds)
    assert loss.value.isfinite() if complaint is None else complaint.startswith(asked)


def test_under_autocast_it_stays_finite(name):
    model, tensors = pruned("scores")
    with torch.autocast("cpu", dtype=torch.bfloat16), once(model):
        loss = quick(OBJECTIVES.get(name))(model, batch(), usual(name))
    loss.value.backward()
    assert loss.value.dtype == torch.float32
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in tensors)


@overs
def test_it_trains(name, over):
    """Its own loss falls on a batch that is seen again and again."""

    class Again:
        def __len__(self):
            return 1

        def epoch(self, number):
            yield batch()

    model = nn.Sequential(*net())
    prune(MaskView(model), Hydra(), Uniform(sparsity=0.5))
    history = fit(
        model,
        MaskView(model).train(over),
        Again(),
        quick(OBJECTIVES.get(name)),
        epochs=40,
        optim=Optim(kind="adam", lr=0.03),
        threat=usual(name).threat.model_copy(update={"eps": 2 / 255}),
        networks={"teacher": teacher()},
    )
    assert history[-1]["loss"] < 0.9 * history[0]["loss"]
