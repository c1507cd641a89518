"""The way forward against the way back, of which the tests beside this one know that it is right."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bounds.small import NETS, build, conv
from hydraprune.bounds import zonotope
from hydraprune.bounds.forward import Forward
from hydraprune.bounds.interval import Interval
from hydraprune.bounds.methods import Symbolic
from hydraprune.bounds.ops import Conv, Op
from hydraprune.bounds.zonotope import Patches, Zonotope
from hydraprune.core.threat import Box, ThreatModel

THREAT = ThreatModel(eps="6/255")


def sequence(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 4))


SEQUENCES: dict[str, Callable[[], nn.Sequential]] = {
    "plain": lambda: sequence(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=2)),
    "strided": lambda: sequence(nn.Conv2d(2, 4, 4, 2, 1), nn.ReLU(), nn.Conv2d(4, 3, (2, 3), (3, 2), (1, 0))),
    "skips pixels": lambda: sequence(nn.Conv2d(2, 4, 1, 2), nn.ReLU(), nn.Conv2d(4, 3, 2, 3)),
    "dilated": lambda: sequence(nn.Conv2d(2, 4, 3, dilation=(2, 1)), nn.ReLU(), nn.Conv2d(4, 3, 2, 2, dilation=3)),
    "grouped": lambda: sequence(nn.Conv2d(2, 4, 3, groups=2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1, groups=4)),
    "two in a row": lambda: sequence(nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=2, bias=False)),
    "norm first": lambda: sequence(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(3, 2, 1)),
    "over the whole map": lambda: sequence(
        *[nn.Conv2d(2, 3, 5, padding=2), nn.ReLU(), nn.Conv2d(3, 3, 5, padding=2), nn.ReLU()],
        *[nn.Conv2d(3, 3, 5, padding=2), nn.ReLU(), nn.Conv2d(3, 3, 3, 2, 1)],
    ),
    "global pooling": lambda: nn.Sequential(
        *[nn.Conv2d(2, 6, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.ReLU(), nn.Linear(6, 4)]
    ),
    "past the uncertain": lambda: sequence(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 1, 3)),
    "wide": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(99), nn.ReLU(), nn.Linear(99, 299), nn.ReLU()),
    "flat at once": lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU()),
}


@pytest.fixture(params=[*SEQUENCES, *NETS])
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    if request.param in NETS:
        return build(request.param)
    torch.manual_seed(0)
    net, x = SEQUENCES[request.param]().double().eval(), torch.rand(3, 2, 9, 11, dtype=torch.float64)
    net(x)
    return net, x, torch.tensor([0, 1, 3])


def ends(net: nn.Module, bound: Symbolic, box: Box, y: Tensor) -> list[Tensor]:
    """Margins, logits, and whatever enters a ReLU."""
    analysis = bound.analyse(net, box)
    return [analysis.margins(y), *analysis.logits(), *[end for box in analysis.boxes.values() for end in box]]


def gradients(net: nn.Module, found: list[Tensor]) -> list[Tensor]:
    # Every end counts, and no two alike.
    total = sum((end * torch.linspace(1, 2, end.numel()).to(end).view_as(end)).sum() for end in found)
    assert isinstance(total, Tensor)
    return [torch.zeros_like(w) if g is None else g for w, g in zip(net.parameters(), grads(net, total), strict=True)]


def grads(net: nn.Module, total: Tensor) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(total, list(net.parameters()), allow_unused=True)


def test_forward_is_backward(network: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = network
    box = THREAT.box(x)
    back, forth = (ends(net, bound, box, y) for bound in (Symbolic(chunk=64), Symbolic()))
    torch.testing.assert_close(forth, back, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients(net, forth), gradients(net, back), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_go_forward_to_their_end(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    box = Forward.box

    def watched(self: Forward, name: str) -> object:
        found = box(self, name)
        asked.append(found is not None)
        return found

    monkeypatch.setattr(Forward, "box", watched)
    net = SEQUENCES[name]().double().eval()
    x = torch.rand(2, 2, 9, 11, dtype=torch.float64)
    net(x)
    Symbolic().analyse(net, THREAT.box(x))
    assert asked
    assert all(asked)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Images and coefficients of each zonotope that is made; 0 coefficients where the way ends."""
    seen: list[tuple[int, int]] = []
    after = Zonotope.after

    def watched(self: Zonotope, op: Op, box: Interval) -> Zonotope | None:
        made = after(self, op, box)
        seen.append((len(self.center), 0 if made is None else sum(part.values.numel() for part in made.parts)))
        return made

    monkeypatch.setattr(Zonotope, "after", watched)
    return seen


def test_the_way_ends_at_a_skip_connection(sizes: list[tuple[int, int]]) -> None:
    net, x, _ = build("residual")
    Symbolic().analyse(net, THREAT.box(x))
    assert [coefficients > 0 for _, coefficients in sizes] == [True] * 5  # up to the ReLU behind the second convolution


def test_so_many_images_at_once_as_fit(sizes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = build("conv", images=6)
    box = THREAT.box(x)
    expected = ends(net, Symbolic(chunk=64), box, y)
    slope = gradients(net, expected)
    ends(net, Symbolic(), box, y)
    assert {images for images, _ in sizes} == {6}
    most = max(coefficients for _, coefficients in sizes)
    for limit, fewest in ((2 * most // 3, 3), (most // 6, 1), (0, None)):
        sizes.clear()
        monkeypatch.setattr(zonotope, "MOST", limit)
        found = ends(net, Symbolic(), box, y)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(gradients(net, found), slope, rtol=1e-8, atol=1e-9)
        assert min((images for images, _ in sizes), default=None) == fewest
        assert max((coefficients for _, coefficients in sizes), default=0) <= limit


def test_a_zonotope_holds_what_the_network_does() -> None:
    """Its generators, with any signs, are outputs: at those of the pixels it is the network where no ReLU is open."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3, 2, 1), nn.Conv2d(3, 4, 2)).double()
    x, signs = torch.rand(1, 2, 7, 7, dtype=torch.float64), torch.randn(1, 2, 7, 7, dtype=torch.float64).sign()
    units = Patches.units(0.1 * signs, torch.ones_like(signs, dtype=torch.bool))
    flat = Interval(lower=x, upper=x)
    made: Zonotope | None = Zonotope(x, [units])
    for layer in net:
        assert made is not None
        made = made.after(Conv(layer.weight, layer.bias, layer.stride, layer.padding), flat)
    assert made is not None
    total = made.center + sum(part.spread(made.side).values.sum(0) for part in made.parts)
    torch.testing.assert_close(total, net(x + 0.1 * signs))


@pytest.mark.parametrize("eps", [0, "8/255"])
def test_one_image_of_a_batch_may_be_a_point(eps: str | int) -> None:
    net = conv().double()
    x = torch.rand(2, 2, 11, 11, dtype=torch.float64)
    net(x)
    net.eval()
    box = ThreatModel(eps=eps).box(x)
    box = Box(torch.cat([x[:1], box.lower[1:]]), torch.cat([x[:1], box.upper[1:]]))
    lower, upper = Symbolic().analyse(net, box).logits()
    torch.testing.assert_close(lower[0], net(x)[0])
    torch.testing.assert_close(upper[0], net(x)[0])
    assert eps == 0 or (lower[1] < net(x)[1]).all()
