"""Randomized smoothing as `certify` runs it against the plain float32 loop with 400 noisy images at a time.

    python benchmarks/certify.py --net vgg16_bn --n 1000 --out benchmarks/results/certify_vgg16_bn.json

The network is trained for a few steps on noisy digits; the images lie halfway between two digits, so that votes are
divided. Votes in bf16 are compared with those in float32 twice: from new noise by a two-sample chi-square test, which a
small p-value would fail, and from the same noise.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.stats import chi2_contingency, combine_pvalues
from sklearn.datasets import load_digits
from torch import Tensor, nn

from hydraprune.evaluation.smoothing import Smoothing, certify
from hydraprune.nets import Net
from machine import publish, synchronize

SIGMA, BATCH = 0.25, 400


@torch.no_grad()
def plain(net: nn.Module, x: Tensor, n0: int, n: int) -> list[Tensor]:
    """The votes (K,) of both rounds for each image, from the network as it is."""
    counts = []
    for image in x:
        for draws in (n0, n):
            votes = torch.zeros(10, dtype=torch.int64, device=x.device)
            for part in torch.arange(draws).split(BATCH):
                noise = torch.randn(len(part), *image.shape, device=x.device) * SIGMA
                votes += net(image + noise).argmax(1).bincount(minlength=10)
            counts.append(votes)
    return counts


def digits(side: int = 32) -> tuple[Tensor, Tensor]:
    """The digits of scikit-learn, enlarged: (1797, 3, side, side) in [0, 1], and their labels."""
    raw = load_digits()
    x = torch.tensor(raw.images / 16, dtype=torch.float32)[:, None]
    return F.interpolate(x, size=side).expand(-1, 3, -1, -1), torch.tensor(raw.target, dtype=torch.int64)


def network(kind: str, device: str, steps: int) -> nn.Module:
    """In evaluation mode, after a few steps on noisy digits: enough for votes as those of a real network."""
    net = Net(kind=kind).build(10).to(device)
    x, y = digits()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for rows in torch.randint(1500, (steps, 32)):
        noisy = (x[rows] + SIGMA * torch.randn(32, *x.shape[1:])).to(device)
        with torch.autocast(device, torch.bfloat16):
            loss = F.cross_entropy(net(noisy), y[rows].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def p_value(left: Tensor, right: Tensor) -> float:
    """Of the hypothesis that two rounds of votes (K,) come from one distribution; rare classes count as one."""
    table = torch.stack([left, right])
    rare = table.sum(0) < 10
    table = torch.cat([table[:, ~rare], table[:, rare].sum(1, keepdim=True)], 1)
    table = table[:, table.sum(0) > 0]
    return float(chi2_contingency(table.numpy()).pvalue) if table.shape[1] > 1 else 1.0


def timed(work: Callable[[], object]) -> float:
    synchronize()
    began = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="vgg16_bn")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--n0", type=int, default=100)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="of training")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    net = network(args.net, device, args.steps)
    x = digits()[0][-2 * args.images :].unflatten(0, (2, -1)).mean(0).to(device)
    exact = Smoothing(sigma=SIGMA, n0=args.n0, n=args.n)
    fast = exact.model_copy(update={"precision": "bf16"})
    sides = {
        "plain": lambda: plain(net, x, args.n0, args.n),
        "float32": lambda: certify(net, x, exact),
        "bf16": lambda: certify(net, x, fast),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, work in sides.items():
            seconds[side].append(timed(work))
    best = {side: min(values) for side, values in seconds.items()}
    here, same, fresh = (certify(net, x, s, seed=seed).counts for s, seed in ((exact, 0), (fast, 0), (fast, 1)))
    p_values = [p_value(left, right) for left, right in zip(here, fresh, strict=True)]
    report = {
        "net": args.net,
        "images": args.images,
        "n0": args.n0,
        "n": args.n,
        "images_per_minute": {side: 60 * args.images / value for side, value in best.items()},
        "ratio": {side: best["plain"] / best[side] for side in ("float32", "bf16")},
        "votes": here.tolist(),
        "bf16": {
            "p_value": float(combine_pvalues(p_values).pvalue),
            "smallest_p_value": min(p_values),
            "votes_moved": ((here - same).abs().sum() / (2 * here.sum())).item(),
        },
    }
    publish(report, args.out)


if __name__ == "__main__":
    main()
