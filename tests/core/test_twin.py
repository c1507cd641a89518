"""The network that attacks see: equal to the model in evaluation mode, frozen, folded and cast where that is exact."""

import copy

import pytest
import torch
from torch import Tensor, nn

from hydraprune.core.plain import evaluating, once
from hydraprune.core.twin import AFFINE, NORMS, Twin
from hydraprune.masks.budgets import Uniform
from hydraprune.masks.view import MaskView
from hydraprune.pruners.hydra import Hydra
from hydraprune.pruners.pruning import prune


class Residual(nn.Module):
    """The output of the first convolution is read twice; that of the second, once."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.an = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b, self.bn = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return a + self.bn(self.b(self.an(a).relu()))


class Twice(nn.Module):
    """One convolution and one norm, each called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.norm(self.conv(x)).relu()))


class SharedConv(nn.Module):
    """A norm behind the first of two calls of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(self.conv(x)).relu())


class SharedNorm(nn.Module):
    """Two convolutions before the same norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.b(self.norm(self.a(x))))


class Tied(nn.Module):
    """Two convolutions of one weight, a norm behind one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(self.a(x)).relu())


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        return out if out.sum() > 0 else -out


def preactivation() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())


def seq(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules)


IMAGE = (5, 2, 6, 6)
CASES = {
    "conv-bn": (
        lambda: seq(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)),
        0,
        IMAGE,
    ),
    "conv with bias": (lambda: seq(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)), 0, IMAGE),
    "norm without affine": (lambda: seq(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, affine=False)), 0, IMAGE),
    "norm without statistics": (
        lambda: seq(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        1,
        IMAGE,
    ),
    "another eps": (lambda: seq(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, eps=0.5)), 0, IMAGE),
    "grouped": (lambda: seq(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4)), 0, IMAGE),
    "conv1d": (lambda: seq(nn.Conv1d(2, 4, 3, bias=False), nn.BatchNorm1d(4)), 0, (5, 2, 6)),
    "conv3d": (lambda: seq(nn.Conv3d(2, 4, 3), nn.BatchNorm3d(4)), 0, (5, 2, 4, 4, 4)),
    "transposed": (lambda: seq(nn.ConvTranspose2d(2, 4, 3), nn.BatchNorm2d(4)), 1, IMAGE),
    "linear": (lambda: seq(nn.Linear(6, 4), nn.BatchNorm1d(4)), 1, (5, 6)),
    "linear of tokens": (lambda: seq(nn.Linear(6, 2), nn.BatchNorm1d(2)), 1, (5, 2, 6)),
    "linear of other tokens": (lambda: seq(nn.Linear(6, 4), nn.BatchNorm1d(2)), 1, (5, 2, 6)),
    "pre-activation": (preactivation, 1, IMAGE),
    "residual": (Residual, 1, IMAGE),
    "called twice": (Twice, 1, IMAGE),
    "shared convolution": (SharedConv, 1, IMAGE),
    "shared norm": (SharedNorm, 1, IMAGE),
    "tied weights": (Tied, 1, IMAGE),
    "untraceable": (Untraceable, 1, IMAGE),
    "nested": (lambda: seq(seq(nn.Conv2d(2, 4, 3)), seq(nn.BatchNorm2d(4), nn.Dropout(0.5))), 0, IMAGE),
}


def lived_in(model: nn.Module) -> nn.Module:
    """Norm layers as training leaves them."""
    for module in model.modules():
        if isinstance(module, NORMS):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                if value is not None:
                    value.data = torch.rand_like(value) + 0.2
    return model.train()


def prepared(case: str) -> tuple[nn.Module, int, Tensor]:
    make, left, shape = CASES[case]
    return lived_in(make()), left, torch.rand(shape)


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_twin_equals_the_model_in_evaluation_mode(case, pruned):
    model, left, x = prepared(case)
    if pruned:
        prune(MaskView(model), Hydra(), Uniform(sparsity=0.5))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    twin = Twin(model).refresh(0)
    norms = sum(isinstance(module, NORMS) for module in twin.modules())
    found = twin(x)
    assert model.training
    assert not twin.training
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
    with evaluating(model):
        torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)
    # The copies of a masked tied weight are apart, so that one of them can be folded.
    assert norms == (0 if pruned and case == "tied weights" else left)


@pytest.mark.parametrize("case", ["conv-bn", "linear"])  # folded, and not
def test_it_follows_weights_scores_and_statistics_only_when_the_step_changes(case):
    model, _, x = prepared(case)
    prune(MaskView(model), Hydra(), Uniform(sparsity=0.5))
    twin = Twin(model)
    before = twin.refresh(3)(x)
    with torch.no_grad():
        for source in MaskView(model).sources.values():
            source.score.copy_(torch.randn_like(source.score))
        for parameter in model.parameters():
            parameter.mul_(1.5)
        model[1].running_mean.add_(1)
        model[1].running_var.mul_(2)
    assert torch.equal(twin.refresh(3)(x), before)
    after = twin.refresh(4)(x)
    assert not torch.allclose(after, before, atol=1e-2)
    with evaluating(model):
        torch.testing.assert_close(after, model(x), rtol=1e-4, atol=1e-5)
    assert twin.refresh(5) is twin.refresh(6)


def test_its_parameters_take_no_gradient():
    model, _, x = prepared("conv-bn")
    twin = Twin(model).refresh(0)
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    (gradient,) = torch.autograd.grad(twin(x.requires_grad_()).sum(), x)
    assert gradient.any()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_made_inside_once_it_leaves_the_scores_their_gradient():
    model, _, x = prepared("conv-bn")
    prune(MaskView(model), Hydra(), Uniform(sparsity=0.5))
    with once(model):
        twin = Twin(model).refresh(0)
        copy.deepcopy(model)
        with torch.no_grad():
            twin(x)
        model(x).square().sum().backward()
    assert all(source.score.grad.any() for source in MaskView(model).sources.values())


@pytest.mark.parametrize("case", ["conv-bn", "pre-activation", "linear", "untraceable", "conv3d"])
def test_under_autocast_the_weights_are_cast_and_stay_so(case):
    model, _, x = prepared(case)
    twin = None
    for step in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            twin = twin or Twin(model)
            net = twin.refresh(step)
            found = net(x).float()
        for module in net.modules():
            if isinstance(module, AFFINE):
                assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
            if isinstance(module, NORMS):
                assert {p.dtype for p in module.parameters()} == {torch.float32}
        with evaluating(model), torch.no_grad():
            torch.testing.assert_close(found, model(x), rtol=0.03, atol=0.06)
            for parameter in model.parameters():
                parameter.mul_(0.7)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
