"""Bounds against what networks do: sampled, attacked, and solved exactly."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds as Limits
from scipy.optimize import LinearConstraint, milp
from torch import Tensor, nn

from bounds.small import NETS, build
from hydraprune.bounds import BOUNDS, logit_bounds, margin_bounds
from hydraprune.core.threat import Box, ThreatModel
from hydraprune.nets import Net
from hydraprune.nets.wide_resnet import WideResNet

METHODS: list[Any] = [
    "ibp",
    "crown-ibp",
    {"kind": "crown-ibp", "slope": "one"},
    "crown",
    {"kind": "crown", "slope": "zero"},
    "symbolic",
]


def differences(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]) - logits


def sampled(box: Box, count: int) -> list[Tensor]:
    """Images of the box: its ends, uniform ones, and corners."""
    size, like = box.upper - box.lower, box.lower
    inside = [box.lower + size * torch.rand_like(like) for _ in range(count)]
    return [*box, *inside, *[box.lower + size * torch.rand_like(like).round() for _ in range(count)]]


def attacked(net: nn.Module, x: Tensor, y: Tensor, box: Box) -> list[Tensor]:
    """Images of the box where ascent ends for each class."""
    found, size = [], box.upper - box.lower
    for wrong in range(net(x).shape[1]):
        here = x.clone()
        for _ in range(10):
            here.requires_grad_()
            logits = net(here)
            (slope,) = torch.autograd.grad((logits[:, wrong] - logits.gather(1, y[:, None]).squeeze(1)).sum(), here)
            here = (here.detach() + size / 8 * slope.sign()).clamp(box.lower, box.upper)
        found.append(here)
    return found


@pytest.mark.parametrize("eps", [0.0, "2/255", "16/255"])
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("name", NETS)
def test_no_image_of_the_box_escapes(name: str, method: Any, eps: Any) -> None:
    net, x, y = build(name)
    box = ThreatModel(eps=eps).box(x)
    with torch.no_grad():
        analysis = BOUNDS.make(method, "bound").analyse(net, box)
        lower, upper = analysis.logits()
        margins, simple = analysis.margins(y), analysis.interval_margins(y)
    entered: dict[str, Tensor] = {}
    for path in analysis.boxes:
        if path in dict(net.named_modules()):
            net.get_submodule(path).register_forward_pre_hook(
                lambda _, inputs, path=path: entered.update({path: inputs[0].detach().clone()})
            )
    for point in [*sampled(box, 10), *attacked(net, x, y, box)]:
        logits = net(point).detach()
        assert (lower - 1e-10 <= logits).all()
        assert (logits <= upper + 1e-10).all()
        assert (torch.maximum(margins, simple) - 1e-10 <= differences(logits, y)).all()
        for path, value in entered.items():
            assert (analysis.boxes[path].lower - 1e-10 <= value).all()
            assert (value <= analysis.boxes[path].upper + 1e-10).all()
    assert entered or name == "functional"
    if eps == 0:
        assert torch.allclose(margins, differences(net(x), y), atol=1e-10)


DEEP = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2), nn.AvgPool2d(2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 4))
SHALLOW = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(162, 4))


@pytest.mark.parametrize(("net", "method"), [*[(DEEP, m) for m in METHODS[1:]], *[(SHALLOW, m) for m in METHODS]])
def test_affine_networks_are_bounded_exactly(net: nn.Module, method: Any) -> None:
    net.double().eval()
    x, y = torch.rand(5, 2, 9, 9, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    box = ThreatModel(eps="8/255").box(x)
    bound = BOUNDS.make(method, "bound")
    margins = bound.margins(net, box, y).detach()
    for wrong in range(4):
        center = ((box.lower + box.upper) / 2).requires_grad_()
        (slope,) = torch.autograd.grad(differences(net(center), y)[:, wrong].sum(), center)
        corner = torch.where(slope > 0, box.lower, box.upper)
        assert torch.allclose(differences(net(corner), y)[:, wrong].detach(), margins[:, wrong], atol=1e-12)


def exact_margin(net: nn.Sequential, box: Box, y: int, wrong: int) -> float:
    """The least f_y - f_wrong over the box of one image, as a mixed-integer program with one switch per ReLU."""
    layers = [module for module in net if isinstance(module, nn.Linear)]
    lower, upper = box.lower.flatten().numpy(), box.upper.flatten().numpy()
    low, high, switches = [lower], [upper], [np.zeros(len(lower))]
    rows: list[tuple[np.ndarray, float, float]] = []
    sizes = [len(lower)] + [2 * layer.out_features for layer in layers[:-1]]
    starts, total = np.cumsum([0, *sizes]), sum(sizes)
    for index, layer in enumerate(layers[:-1]):
        weight, bias = (t.detach().numpy() for t in (layer.weight, layer.bias))
        center, radius = (lower + upper) / 2, (upper - lower) / 2
        center, radius = weight @ center + bias, np.abs(weight) @ radius
        lower, upper = center - radius, center + radius
        n = len(lower)
        for i in range(n):
            before = np.zeros(total)
            before[starts[index] : starts[index] + len(weight[i])] = weight[i]
            after, switch = np.zeros(total), np.zeros(total)
            after[starts[index + 1] + i] = 1
            switch[starts[index + 1] + n + i] = 1
            # a >= z, a <= z - least (1 - s), a <= most s, with z = weight x + bias
            least, most = min(lower[i], 0), max(upper[i], 0)
            rows.append((after - before, bias[i], np.inf))
            rows.append((after - before - least * switch, -np.inf, bias[i] - least))
            rows.append((after - most * switch, -np.inf, 0))
        lower, upper = lower.clip(0), upper.clip(0)
        low, high = [*low, np.zeros(2 * n)], [*high, np.concatenate([upper, np.ones(n)])]
        switches.append(np.concatenate([np.zeros(n), np.ones(n)]))
    last, bias = layers[-1].weight.detach().numpy(), layers[-1].bias.detach().numpy()
    goal = np.zeros(total)
    goal[starts[-2] : starts[-2] + last.shape[1]] = last[y] - last[wrong]
    matrix, floor, ceiling = (np.array(column) for column in zip(*rows, strict=True))
    solved = milp(
        goal,
        integrality=np.concatenate(switches),
        bounds=Limits(np.concatenate(low), np.concatenate(high)),
        constraints=LinearConstraint(matrix, floor, ceiling),
    )
    assert solved.success
    return float(solved.fun + bias[y] - bias[wrong])


@pytest.mark.parametrize("eps", ["4/255", "16/255"])
def test_exact_minima_of_a_small_network(eps: str) -> None:
    net, x, y = build("mlp")
    assert isinstance(net, nn.Sequential)
    threat = ThreatModel(eps=eps)
    box = threat.box(x)
    exact = torch.tensor(
        [
            [exact_margin(net, Box(box.lower[i], box.upper[i]), int(y[i]), j) if j != y[i] else 0 for j in range(4)]
            for i in range(len(x))
        ],
        dtype=torch.float64,
    )
    reached = torch.stack([differences(net(point), y) for point in attacked(net, x, y, box)]).amin(0)
    assert (exact <= reached + 1e-6).all()
    gaps = {}
    for method in METHODS:
        lower = margin_bounds(net, x, y, threat, method).detach()
        assert (lower <= exact + 1e-6).all()
        gaps[str(method)] = float((exact - lower).mean())
    assert gaps["crown"] <= gaps["crown-ibp"] < gaps["ibp"]
    assert gaps["crown"] < 0.05 * float(exact.abs().mean())


@pytest.mark.parametrize(
    ("name", "methods"),
    [("vgg4_bn", ["ibp", "crown-ibp"]), ("resnet18", ["ibp", "crown-ibp"]), ("wrn", ["ibp", "crown-ibp", "crown"])],
)
def test_the_networks_of_the_package(name: str, methods: list[str]) -> None:
    net = WideResNet(10, 1, 10, 3) if name == "wrn" else Net(kind=name, normalize="cifar10").build(10, image_size=8)
    net.eval()
    net.requires_grad_(False)
    x = torch.rand(2, 3, 8, 8)
    y = net(x).argmax(1)
    threat = ThreatModel(eps="1/255")
    for method in methods:
        lower, upper = logit_bounds(net, x, threat, method)
        margins = margin_bounds(net, x, y, threat, method)
        room = 1e-4 * (1 + upper.abs().max())
        for point in sampled(threat.box(x), 4):
            logits = net(point)
            assert (lower - room <= logits).all()
            assert (logits <= upper + room).all()
            assert (margins - room <= differences(logits, y)).all()
