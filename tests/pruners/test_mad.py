"""Masking adversarial damage against Kronecker factors that are written out, and a mask fitted by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hydraprune.core.objective import Batch
from hydraprune.core.threat import ThreatModel
from hydraprune.masks.budgets import Uniform
from hydraprune.masks.view import MaskView
from hydraprune.objectives.natural import Natural
from hydraprune.objectives.trades import TRADES
from hydraprune.pruners.mad import MAD
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import prune
from hydraprune.pruners.random import Random


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(27, 3))


BATCHES = [
    Batch(torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(s)), torch.arange(7) % 3) for s in (0, 1)
]


def probe(objective=None, threat=None) -> Probe:
    return Probe(torch.Generator().manual_seed(0), objective or Natural(), threat, lambda: BATCHES)


def literal(net: nn.Sequential, removed: dict[str, torch.Tensor], images: Batch) -> dict[str, torch.Tensor]:
    """1/2 d (F d) with F = A x G of each layer, position by position, sample by sample."""
    first, head = net[0], net[3]
    patches = F.unfold(images.x, 2).transpose(1, 2)  # (B, 9, 4)
    before = torch.einsum("bsk,ok->bos", patches, first.weight.flatten(1)) + first.bias[:, None]
    before = before.detach().requires_grad_()
    features = before.relu().flatten(1)
    logits = head(features)
    losses = F.cross_entropy(logits, images.y, reduction="none")
    at_logits, at_first = torch.autograd.grad(losses.sum(), [logits, before])
    size, places = len(images.y), patches.shape[1]
    a = {"0.weight": sum(p[:, None] * p for b in patches for p in b) / size,
         "3.weight": sum(f[:, None] * f for f in features.detach()) / size}  # fmt: skip
    g = {"0.weight": sum(at_first[b, :, s] ** 2 for b in range(size) for s in range(places)) / (size * places),
         "3.weight": sum(v**2 for v in at_logits) / size}  # fmt: skip
    return {
        name: torch.stack([0.5 * g[name][i] * d[i] * (a[name] @ d[i]) for i in range(len(d))])
        for name, d in ((name, gone.flatten(1)) for name, gone in removed.items())
    }


def same(scores, expected):
    expected = {name: part.abs() for name, part in expected.items()}
    least = min(part.min() for part in expected.values())
    for name, score in scores.items():
        torch.testing.assert_close(score.flatten(1), (expected[name] - least).double(), rtol=1e-3, atol=1e-7)


def test_without_a_mask_it_is_the_damage_of_removing_everything():
    net = small()
    each = [literal(net, MaskView(net).weights(), images) for images in BATCHES]
    expected = {name: each[0][name] + each[1][name] for name in each[0]}
    same(MAD().score(MaskView(net), probe()), expected)


def test_a_mask_is_fitted_on_each_batch_and_says_what_is_removed():
    net, low, high = small(), torch.tensor(1e-4).expm1().log(), torch.tensor(1.0).expm1().log()
    total: dict[str, torch.Tensor] = {}
    for images in BATCHES:
        theta = {name: high.expand(w.shape).clone().requires_grad_() for name, w in MaskView(net).weights().items()}
        adam = torch.optim.Adam(list(theta.values()), lr=0.1)

        def masked(theta=theta):
            return {name: net.get_parameter(name).detach() * F.softplus(t) for name, t in theta.items()}

        for _ in range(5):
            adam.zero_grad()
            F.cross_entropy(torch.func.functional_call(net, masked(), images.x), images.y).backward()
            adam.step()
            for t in theta.values():
                t.data.clamp_(low, high)
        kept = {name: w.detach() for name, w in masked().items()}
        removed = {name: net.get_parameter(name).detach() - w for name, w in kept.items()}
        assert all((gone == 0).any() and (gone != 0).any() for gone in removed.values())
        there = small()
        for name, w in kept.items():
            there.get_parameter(name).data.copy_(w)
        for name, damage in literal(there, removed, images).items():
            total[name] = total.get(name, 0) + damage
    same(MAD(batches=2, mask_steps=5).score(MaskView(net), probe()), total)


@pytest.mark.parametrize("steps", [0, 2])
def test_it_sees_the_attack_and_no_pass_of_it(steps):
    """TRADES passes the live network twice; the passes of its attack are not damage."""
    net, scores = small(), []
    for eps in (0.0, 0.3):
        objective = TRADES(steps=3, beta=1)
        scores.append(MAD(mask_steps=steps).score(MaskView(net), probe(objective, ThreatModel(eps=eps)))["3.weight"])
    assert not torch.allclose(scores[0], scores[1], rtol=0.01, atol=0)
    assert not any(module._forward_hooks for module in net.modules())


def test_what_was_pruned_before_stays_pruned():
    view = MaskView(small())
    prune(view, Random(), Uniform(sparsity=0.5))
    before = view.masks()
    prune(view, MAD(mask_steps=2), Uniform(sparsity=0.75), probe=probe())
    assert all(not (mask & ~before[name]).any() for name, mask in view.masks().items())
