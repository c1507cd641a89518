"""One step of certified training against one of natural training, and MixTrain's bound against a dense zonotope.

    python benchmarks/certified_step.py --threads 1 --out benchmarks/results/certified_step_cnn_large_64.json

All steps are float32 over all weights, forward, backward and Adam, and take turns; so do the bounds. The dense zonotope
is written here plainly from its description: one generator for each pixel of the image (the identity of 3072 x 3072 for
CIFAR-10), one more for each open ReLU, all of them carried through every layer. The network is first trained for a few
steps with the bounds, so that as many ReLUs are open as in training.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydraprune.bounds.methods import Symbolic
from hydraprune.core.objective import Batch, Clock, Context, Objective
from hydraprune.core.threat import Box, ThreatModel
from hydraprune.nets import Net
from hydraprune.objectives.crown_ibp import CrownIBP
from hydraprune.objectives.ibp import IBP
from hydraprune.objectives.mixtrain import MixTrain
from hydraprune.objectives.natural import Natural
from machine import publish, synchronize

THREAT = ThreatModel(eps="2/255")
OBJECTIVES: dict[str, Objective] = {
    "natural": Natural(),
    "ibp": IBP(kappa_final=0.5),
    "crown-ibp": CrownIBP(kappa_final=0.5, beta_final=0.5),
    "mixtrain": MixTrain(images=1, probability=1),
}


def zonotope(net: nn.Sequential, box: Box, y: Tensor) -> Tensor:
    """(1, K) lower ends of f_y - f_j over the box of one image."""
    center, radius = (box.lower + box.upper) / 2, (box.upper - box.lower) / 2
    generators = torch.diag(radius.flatten()).view(-1, *center.shape[1:])
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            center = layer(center)
            generators = F.conv2d(generators, layer.weight, None, layer.stride, layer.padding)
        elif isinstance(layer, nn.Linear):
            center, generators = layer(center), generators @ layer.weight.T
        elif isinstance(layer, nn.Flatten):
            center, generators = center.flatten(1), generators.flatten(1)
        else:
            reach = generators.abs().sum(0, keepdim=True)
            lower, upper = center - reach, center + reach
            opened = (lower < 0) & (upper > 0)
            share = torch.where(opened, upper / torch.where(opened, upper - lower, 1), (lower >= 0).to(lower))
            half = torch.where(opened, -lower * share / 2, 0)
            center = share * center + half
            errors = half.new_zeros(int(opened.sum()), half.numel())
            errors[torch.arange(len(errors)), opened.flatten().nonzero()[:, 0]] = half[opened]
            generators = torch.cat([generators * share, errors.view(-1, *center.shape[1:])])
    worst = center - center[:, y] + (generators - generators[:, y]).abs().sum(0)
    return -worst


def step(net: nn.Module, objective: Objective, batch: Batch, optimizer: torch.optim.Optimizer) -> None:
    ctx = Context(THREAT, torch.Generator(batch.x.device), Clock(0, 1, 1))
    objective(net, batch, ctx).value.backward()
    optimizer.step()
    optimizer.zero_grad()


def timed(work: Callable[[], object]) -> float:
    synchronize()
    began = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - began


def medians(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, taking turns; a first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            seconds[name].append(timed(work))
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="cnn_large", help="a sequence of convolutions, ReLUs and linear layers")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bound-rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.rand(args.batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    batch = Batch(x, torch.arange(args.batch, device=device) % 10)
    net = Net(kind=args.net).build(10).to(device)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4, fused=True)

    def stepper(objective: Objective) -> Callable[[], None]:
        return lambda: step(net, objective, batch, optimizer)

    steps = medians({name: stepper(objective) for name, objective in OBJECTIVES.items()}, args.rounds)
    box, y = THREAT.box(x[:1].contiguous()), batch.y[:1]

    def backward(margins: Tensor) -> None:
        torch.autograd.grad(margins.sum(), list(net.parameters()))

    with torch.no_grad():
        bounds = {"ours": lambda: Symbolic().margins(net, box, y), "dense": lambda: zonotope(net, box, y)}
        torch.testing.assert_close(bounds["ours"](), bounds["dense"](), rtol=1e-3, atol=1e-4)
        values = medians(bounds, args.bound_rounds)
    gradients = medians({name: lambda work=work: backward(work()) for name, work in bounds.items()}, args.bound_rounds)
    report = {
        "net": args.net,
        "batch": args.batch,
        "seconds": steps,
        "ratio": {
            "ibp to natural": steps["ibp"] / steps["natural"],
            "crown-ibp to ibp": steps["crown-ibp"] / steps["ibp"],
            "mixtrain to natural": steps["mixtrain"] / steps["natural"],
        },
        "bound_seconds": values,
        "bound_gradient_seconds": gradients,
        "dense_to_ours": {
            "bound": values["dense"] / values["ours"],
            "gradient": gradients["dense"] / gradients["ours"],
        },
    }
    publish(report, args.out)


if __name__ == "__main__":
    main()
