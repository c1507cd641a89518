"""What adversarial objectives do to the model beside their loss: norm statistics, dropout, gradients, precision."""

import copy

import pytest
import torch
from torch import nn

from hydraprune.core.errors import SpecError
from hydraprune.core.plain import once
from hydraprune.core.threat import ThreatModel
from hydraprune.masks.view import MaskView
from hydraprune.objectives import OBJECTIVES
from objectives.small import BATCH, context, record, small

LINF = ThreatModel(eps=0.1)
# settings -> forward passes in training mode, and passes of the frozen network
PASSES = {
    "natural": ({"kind": "natural"}, 1, 0),
    "pgd": ({"kind": "pgd", "steps": 3}, 1, 3),
    "fast": ({"kind": "fast"}, 1, 1),
    "free": ({"kind": "free"}, 1, 0),
    "mart": ({"kind": "mart", "steps": 3}, 2, 3),
    "trades": ({"kind": "trades", "steps": 3}, 2, 4),  # one of them for the natural logits
    "trades of its authors": ({"kind": "trades", "steps": 3, "natural_passes": 2}, 3, 4),
    "trades of HYDRA": ({"kind": "trades", "steps": 3, "natural_passes": 3}, 4, 4),
    "ibp": ({"kind": "ibp"}, 1, 0),
    "ibp, mixed": ({"kind": "ibp", "kappa_final": 0.5}, 1, 0),
    "crown-ibp": ({"kind": "crown-ibp", "beta_final": 0.5}, 1, 0),
    "mixtrain": ({"kind": "mixtrain", "probability": 1}, 1, 0),
    "sabr": ({"kind": "sabr", "steps": 3}, 1, 3),
}
# Those whose training passes see the images as they are.
CLEAN = ("natural", "free", "ibp", "ibp, mixed", "crown-ibp", "mixtrain", "sabr")
cases = pytest.mark.parametrize("case", PASSES)
both = pytest.mark.parametrize("over", ["weights", "scores"])


def made(case: str):
    return OBJECTIVES.make(PASSES[case][0], "objective")


@cases
def test_without_a_threat_model_it_says_what_to_add(case):
    if case == "natural":
        assert made(case)(small(), BATCH, context(None)).value.isfinite()
    else:
        with pytest.raises(SpecError, match=rf"objective '{made(case).kind}' needs a threat model; add `threat:"):
            made(case)(small(), BATCH, context(None))


@both
@cases
def test_norm_statistics_follow_the_training_passes_alone(case, over):
    _, training, frozen = PASSES[case]
    net = small(norm=True, over=over)
    fresh = copy.deepcopy(net)
    seen, attacked = record(net)
    with once(net):
        made(case)(net, BATCH, context(LINF))
    assert int(net[1].num_batches_tracked) == len(seen) == training
    assert len(attacked) == frozen
    for images in seen:
        fresh(images)
    torch.testing.assert_close(net[1].running_mean, fresh[1].running_mean)
    torch.testing.assert_close(net[1].running_var, fresh[1].running_var)
    for images in seen[:-1]:
        assert torch.equal(images, BATCH.x)


@both
@cases
def test_the_attack_leaves_no_gradient_and_the_graph_whole(case, over):
    net = small(norm=True, dropout=True, over=over)
    modes = [module.training for module in net.modules()]
    with once(net):
        loss = made(case)(net, BATCH, context(LINF))
        assert all(parameter.grad is None for parameter in net.parameters())
    assert [module.training for module in net.modules()] == modes
    loss.value.backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if name != "0.bias":  # a norm layer follows it, so that it has no effect
            assert parameter.grad is None or parameter.grad.any(), name


@cases
def test_a_masked_weight_is_computed_once_per_step(case, monkeypatch):
    net = small(over="scores")
    sources = list(MaskView(net).sources.values())
    calls = []
    for source in sources:
        plain = source.forward
        monkeypatch.setattr(source, "forward", lambda weight, s=source, f=plain: (calls.append(s), f(weight))[1])
    with once(net):
        made(case)(net, BATCH, context(LINF)).value.backward()
    assert len(calls) == len(set(calls)) == len(sources) == 2


@cases
def test_images_stay_in_ball_and_range_and_follow_the_generator(case):
    net = small(dropout=True)
    seen, _ = record(net)
    for seed in (1, 1, 2):
        made(case)(net, BATCH, context(LINF, seed))
    images = seen[:: PASSES[case][1]] if len(seen) == 3 else seen[PASSES[case][1] - 1 :: PASSES[case][1]]
    assert len(images) == 3
    for adversarial in images:
        assert (LINF.distance(BATCH.x, adversarial) <= 0.1 + 1e-6).all()
        assert (adversarial >= 0).all()
        assert (adversarial <= 1).all()
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2]) == (case in CLEAN)


@both
@cases
def test_under_bf16_autocast_losses_stay_close_and_gradients_float32(case, over):
    net = small(norm=True, over=over)
    exact = made(case)(copy.deepcopy(net), BATCH, context(LINF)).value
    with torch.autocast("cpu", torch.bfloat16), once(net):
        loss = made(case)(net, BATCH, context(LINF))
    loss.value.backward()
    assert loss.value.dtype == torch.float32
    torch.testing.assert_close(loss.value, exact, rtol=0.05, atol=0.05)
    moving = [p for p in net.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in moving)
    weights = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for module in weights:
        stored = module.parametrizations.weight[0].score if over == "scores" else module.weight
        assert stored.grad.any()


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"kind": "trades", "beta": -1}, "beta"),
        ({"kind": "trades", "natural_passes": 0}, "natural_passes"),
        ({"kind": "trades", "natural_passes": 4}, "natural_passes"),
        ({"kind": "pgd", "steps": 0}, "steps"),
        ({"kind": "pgd", "step_size": 0}, "step_size"),
        ({"kind": "mart", "step_size": "2/0"}, "step_size"),
        ({"kind": "fast", "alpha": 0}, "alpha"),
        ({"kind": "free", "replays": 0}, "replays"),
    ],
)
def test_settings_without_sense_are_refused(settings, path):
    with pytest.raises(SpecError, match=rf"^objective\.{path}: "):
        OBJECTIVES.make(settings, "objective")
