"""PGD-50x10 as `evaluate` runs it against the plain loop that never skips, on the same images.

    python benchmarks/pgd.py --net vgg4_bn --images 64 --out benchmarks/results/pgd_vgg4_bn.json

The network has random weights and its own predictions for labels; eps is bisected until about `--robust` of the images
survive. An image is robust if no iterate of any restart is misclassified; the two sets must be the same.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydraprune.attacks.pgd import PGD
from hydraprune.core.objective import Batch
from hydraprune.core.threat import ThreatModel
from hydraprune.evaluate import evaluate
from hydraprune.nets import Net
from machine import publish, synchronize

STEPS, RESTARTS = 50, 10


def plain(net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """The loop that takes every step of every restart for every image."""
    rng = torch.Generator(x.device).manual_seed(0)
    robust = net(x).argmax(1) == y
    size = 2.5 * threat.eps / STEPS
    for _ in range(RESTARTS):
        adversarial = threat.sample(x, rng)
        for _ in range(STEPS):
            adversarial.requires_grad_()
            logits = net(adversarial)
            robust &= logits.argmax(1) == y
            (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), adversarial)
            adversarial = adversarial.detach() + size * gradient.sign()
            adversarial = torch.min(torch.max(adversarial, x - threat.eps), x + threat.eps).clamp(0, 1)
        with torch.no_grad():
            robust &= net(adversarial).argmax(1) == y
    return robust


def eps_for(net: nn.Module, x: Tensor, y: Tensor, share: float) -> float:
    """The largest of some radii at which at least `share` of the images survive the attack that is timed."""
    low, high, attack = 0.0, 0.5, PGD(steps=STEPS, restarts=RESTARTS)
    for _ in range(10):
        eps = (low + high) / 2
        found = evaluate(net, [Batch(x, y)], threat=ThreatModel(eps=eps), attacks=[attack], seed=0)
        low, high = (eps, high) if found.robust_accuracy[attack.name] > share else (low, eps)
    return low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="vgg4_bn")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--robust", type=float, default=0.6)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    net = Net(kind=args.net).build(10).to(device)
    x = torch.rand(args.images, 3, 32, 32, device=device)
    with torch.no_grad():
        net.train()
        for _ in range(20):
            net(torch.rand(64, 3, 32, 32, device=device))  # gives the norm layers statistics
        net.eval()
        y = net(x).argmax(1)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    threat = ThreatModel(eps=eps_for(net, x, y, args.robust))
    seconds: dict[str, list[float]] = {"plain": [], "ours": []}
    for _ in range(args.rounds):
        began = time.perf_counter()
        expected = plain(net, x, y, threat).cpu()
        synchronize()
        seconds["plain"].append(time.perf_counter() - began)
        began = time.perf_counter()
        attack = PGD(steps=STEPS, restarts=RESTARTS)
        found = evaluate(net, [Batch(x, y)], threat=threat, attacks=[attack], seed=0).survived[attack.name]
        synchronize()
        seconds["ours"].append(time.perf_counter() - began)
    best = {side: min(values) for side, values in seconds.items()}
    report = {
        "net": args.net,
        "images": args.images,
        "eps": threat.eps,
        "robust": expected.double().mean().item(),
        "identical": bool((expected == found).all()),
        "seconds": best,
        "ratio": best["plain"] / best["ours"],
    }
    publish(report, args.out)


if __name__ == "__main__":
    main()
