"""Small networks that between them have every operation that bounds know."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Convolutions with batch norm, a skip connection and a projection; on 12x12, windows stay smaller than maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(3)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.project = nn.Conv2d(3, 4, 1, stride=2)
        self.bn3 = nn.BatchNorm2d(4)
        self.relu3 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        out = self.relu2(self.conv2(x)) + x
        out = self.conv3(out) + self.project(x)
        return self.fc(self.flatten(self.pool(self.relu3(self.bn3(out)))))


class Functional(nn.Module):
    """Operations as functions and methods, with buffers, parameters and numbers."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.6]).view(-1, 1, 1))
        self.scale = nn.Parameter(torch.tensor([0.5, -2.0, 1.5, 1.0, 0.0, -1.0]).view(-1, 1, 1))
        self.conv = nn.Conv2d(4, 6, (3, 2), stride=2, padding=2, dilation=(1, 2), groups=2)
        self.fc = nn.Linear(6, 5, bias=False)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / 0.25
        out = self.conv(torch.cat([x, 1.0 - x], dim=1))
        out += 0.1
        out = F.avg_pool2d(out.relu(), 3, stride=2, padding=1)
        turned = out.permute(0, 2, 3, 1).transpose(1, 2).permute(0, 3, 1, 2)
        out = torch.sub(2 * out * self.scale, turned.contiguous().mul(0.5))
        out = -F.relu(out).mean((2, 3), keepdim=True)
        out = self.drop(out.view(x.size(0), -1)).unsqueeze(1).squeeze(1)
        return F.linear(out.reshape(x.shape[0], 6), self.fc.weight).add(0.3)


class Returning(nn.Module):
    """Reads what enters a ReLU once more, after a later layer, of the same size or not, was bounded."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.middle, self.second = nn.Linear(32, 6), nn.Linear(6, 6), nn.Linear(6, width)
        self.third, self.last = nn.Linear(width, 6), nn.Linear(6, 4)
        self.relu0, self.relu1, self.relu2, self.relu3 = (nn.ReLU() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        early = self.middle(self.relu0(self.first(x.flatten(1))))
        late = self.second(self.relu1(early))
        return self.last(self.third(self.relu2(late)) + self.relu3(early))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))


def conv() -> nn.Sequential:
    """Odd sizes, of which strides leave a border over; batch norm of both kinds; two linear layers in a row."""
    return nn.Sequential(
        *[nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 2, 2), nn.ReLU()],
        *[nn.Conv2d(4, 5, 3, stride=2, bias=False), nn.ReLU(), nn.Flatten(), nn.LazyLinear(10), nn.BatchNorm1d(10)],
        *[nn.ReLU(), nn.Dropout(0.3), nn.Linear(10, 7), nn.Linear(7, 4)],
    )


def pooled() -> nn.Sequential:
    """Max pooling after ReLU and before it, leaving a border over."""
    return nn.Sequential(
        *[nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 2), nn.MaxPool2d((2, 3))],
        *[nn.ReLU(), nn.Flatten(), nn.LazyLinear(4)],
    )


def reshaped() -> nn.Sequential:
    """Layers of other shapes than the maps that they are computed as."""
    return nn.Sequential(
        *[nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Unflatten(1, (2, 6, 12)), nn.Conv2d(2, 3, 3), nn.ReLU()],
        *[nn.Flatten(2), nn.Linear(40, 5), nn.ReLU(), nn.Flatten(), nn.Linear(15, 4)],
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "mlp": (mlp, (2, 4, 4)),
    "conv": (conv, (2, 11, 11)),
    "pooled": (pooled, (2, 11, 11)),
    "residual": (Residual, (2, 12, 12)),
    "functional": (Functional, (2, 8, 8)),
    "returning": (Returning, (2, 4, 4)),
    "returning to another size": (lambda: Returning(9), (2, 4, 4)),
    "reshaped": (reshaped, (2, 8, 8)),
}


def build(name: str, images: int = 3) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in evaluation mode with unlike channels, some of them negated by their norm; images and labels."""
    torch.manual_seed(len(name))
    factory, shape = NETS[name]
    net = factory().double()
    x = torch.rand(images, *shape, dtype=torch.float64)
    x[0, 0, 0] = 0
    x[-1, -1, -1] = 1
    net(x)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.uniform_(module.running_var, 0.1, 0.5)
    net.eval()
    with torch.no_grad():
        return net, x, net(x).argmax(1)
