"""Parametrized models: the plain copy, canonical names, and one computation of each masked weight per step."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from hydraprune.attacks.gradient import pgd
from hydraprune.core.plain import evaluating, once, parametrized, plain_copy, tensors
from hydraprune.core.threat import ThreatModel


class Scored(nn.Module):
    """Stands for a learned mask, and counts how often it is computed."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.rand_like(weight))
        self.calls = 0

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        return weight * self.score


class Net(nn.Module):
    """A bias before and after the masked weights, a nested layer, a buffer, and one layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.block = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, bias=False))
        self.again = self.first
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(4 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.block(self.again(x)).flatten(1)))


def masked() -> tuple[Net, list[Scored]]:
    net = Net()
    sources = []
    for module in (net.first, net.block[2], net.head):
        sources.append(Scored(module.weight))
        parametrize.register_parametrization(module, "weight", sources[-1], unsafe=True)
        sources[-1].calls = 0
    return net, sources


X = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_names_are_those_of_the_plain_model():
    net, _ = masked()
    assert [name for name, _, _ in parametrized(net)] == [
        "first.weight",
        "block.2.weight",
        "again.weight",
        "head.weight",
    ]
    conv = nn.Conv2d(1, 1, 1)
    parametrize.register_parametrization(conv, "weight", Scored(conv.weight))
    assert [(name, tensor) for name, _, tensor in parametrized(conv)] == [("weight", "weight")]
    assert set(tensors(conv)) == {"weight", "bias"}
    assert not list(parametrized(Net()))


@pytest.mark.parametrize("outside", [nullcontext, torch.no_grad])
def test_scores_learn_though_the_first_forward_takes_no_gradient(outside):
    net, sources = masked()
    net.eval()
    net(X).square().sum().backward()
    expected = [source.score.grad.clone() for source in sources]
    net.zero_grad()
    with outside(), once(net):
        with torch.no_grad():
            net(X)
        with torch.enable_grad():
            net(X).square().sum().backward()
    assert all(gradient.any() for gradient in expected)
    for source, gradient in zip(sources, expected, strict=True):
        torch.testing.assert_close(source.score.grad, gradient)


def test_a_masked_weight_is_computed_once_however_many_forwards_follow():
    net, sources = masked()
    with once(net):
        for _ in range(3):
            net(X)
            with torch.no_grad(), evaluating(net):
                net(X)
        plain_copy(net)
        tensors(net)
    assert [source.calls for source in sources] == [1, 1, 1]
    with once(net):
        pass
    assert [source.calls for source in sources] == [2, 2, 2]
    net(X)
    assert sources[0].calls > 2  # nothing stays behind once the block is left


def test_the_next_block_sees_the_moved_scores():
    net, sources = masked()
    with once(net):
        before = net.head.weight.clone()
    with torch.no_grad():
        sources[2].score.mul_(2)
    with once(net):
        torch.testing.assert_close(net.head.weight, 2 * before)


def test_an_attack_inside_a_step_leaves_no_gradient_and_the_shared_graph_whole():
    net, sources = masked()
    y = torch.arange(6) % 3
    with once(net):
        with evaluating(net):
            bad = pgd(
                net, X, ThreatModel(eps=0.1), lambda logits: F.cross_entropy(logits, y, reduction="none"),
                steps=3, step_size=0.05, start="uniform", rng=torch.Generator(),
            )  # fmt: skip
        assert all(parameter.grad is None for parameter in net.parameters())
        F.cross_entropy(net(bad), y).backward()  # raises where the graph from scores to weights has been freed
    assert all(source.score.grad.any() for source in sources)


def test_a_plain_copy_has_the_form_of_a_plain_net():
    net, _ = masked()
    plain, ordinary = plain_copy(net), Net()
    assert list(plain.state_dict()) == list(ordinary.state_dict())
    assert [type(m) for m in plain.modules()] == [type(m) for m in ordinary.modules()]
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in ordinary.named_parameters()]
    assert plain.again is plain.first
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in plain.parameters())


@pytest.mark.parametrize("within", [once, lambda net: torch.no_grad(), lambda net: nullcontext()])
def test_a_plain_copy_gives_equal_outputs_and_shares_nothing(within):
    net, _ = masked()
    net.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with within(net):
        plain = plain_copy(net)
        out = net(X)
        assert torch.equal(plain(X), out)
        with torch.no_grad():
            for parameter in plain.parameters():
                parameter.zero_()
        assert torch.equal(net(X), out)
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    plain_copy(net)  # a second copy, while the first is alive
    assert parametrize.is_parametrized(net.head, "weight")
    assert net(X).any()
    net.head.weight.sum().backward()
    assert net.head.parametrizations.weight[0].score.grad.any()


def test_a_copy_of_a_plain_net_is_a_deep_copy():
    net = Net().eval()
    plain = plain_copy(net)
    assert torch.equal(plain(X), net(X))
    assert plain.head.weight is not net.head.weight


def test_tensors_load_into_the_plain_net():
    net, _ = masked()
    net(X)  # moves the norm statistics
    state = tensors(net)
    assert state.keys() == Net().state_dict().keys()
    assert not any(value.requires_grad for value in state.values())
    plain = Net()
    plain.load_state_dict(state, strict=True)
    assert torch.equal(plain.eval()(X), net.eval()(X))


def test_tensors_of_a_plain_net_are_its_state():
    net = Net()
    assert list(tensors(net)) == list(net.state_dict())


def test_evaluating_restores_the_mode_of_each_module():
    net = Net().train()
    net.block.eval()
    net.block[0].train()
    modes = [module.training for module in net.modules()]

    def broken() -> None:
        with evaluating(net):
            assert not any(module.training for module in net.modules())
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert [module.training for module in net.modules()] == modes


def test_a_deep_copy_and_its_original_do_not_disturb_each_other():
    net, sources = masked()
    twin = copy.deepcopy(net)
    plain_copy(twin)
    with torch.no_grad():
        sources[0].score.zero_()
    assert not net.first.weight.any()
    assert twin.first.weight.any()
