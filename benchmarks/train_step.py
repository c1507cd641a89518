"""One TRADES step of the pruning stage: the published way, a dense step without masks, and ours, in one run.

    python benchmarks/train_step.py --net vgg16_bn --batch 64 --out benchmarks/train_step_vgg16_bn_64.json

The published step is written here plainly from its description: the mask by a full sort of every score in every
forward pass, float32, and the natural logits computed anew in every attack step. The dense step is the leanest plain
one: bf16 autocast, channels-last, natural logits once. Each side's peak memory is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydraprune.core.objective import Batch, Clock
from hydraprune.core.threat import ThreatModel
from hydraprune.masks.budgets import Uniform
from hydraprune.masks.topk import top_mask
from hydraprune.masks.view import MaskView
from hydraprune.nets import Net
from hydraprune.objectives.trades import TRADES
from hydraprune.pruners.hydra import Hydra
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import prune
from hydraprune.train import Hook, OneProcess, Optim, fit
from machine import publish, synchronize

EPS, STEPS, STEP_SIZE, BETA = 8 / 255, 10, 2 / 255, 6.0


class SortedMask(torch.autograd.Function):
    """The published mask: a full ascending sort; the gradient passes straight through."""

    @staticmethod
    def forward(ctx, score: Tensor, keep: float) -> Tensor:
        flat = score.flatten()
        order = flat.sort().indices
        cut = int((1 - keep) * flat.numel())
        mask = torch.empty_like(flat)
        mask[order[:cut]] = 0
        mask[order[cut:]] = 1
        return mask.view_as(score)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class SortingParametrization(nn.Module):
    """Computes the mask in every access to the weight, as the published layers do."""

    def __init__(self, score: Tensor, keep: float) -> None:
        super().__init__()
        self.score = nn.Parameter(score)
        self.keep = keep

    def forward(self, weight: Tensor) -> Tensor:
        return weight * SortedMask.apply(self.score.abs(), self.keep)


def trades_attack(model: nn.Module, x: Tensor, natural: Callable[[], Tensor]) -> Tensor:
    model.eval()
    adversarial = x + 0.001 * torch.randn_like(x)
    for _ in range(STEPS):
        adversarial.requires_grad_()
        loss = F.kl_div(F.log_softmax(model(adversarial).float(), 1), F.softmax(natural(), 1), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, adversarial)
        adversarial = adversarial.detach() + STEP_SIZE * gradient.sign()
        adversarial = torch.min(torch.max(adversarial, x - EPS), x + EPS).clamp(0, 1)
    model.train()
    return adversarial


def trades_loss(model: nn.Module, x: Tensor, y: Tensor, adversarial: Tensor) -> Tensor:
    natural = model(x).float()
    attacked = model(adversarial).float()
    stability = F.kl_div(F.log_softmax(attacked, 1), F.softmax(natural, 1), reduction="sum") / len(x)
    return F.cross_entropy(natural, y) + BETA * stability


def published(net: nn.Module, batch: Batch, keep: float) -> Iterator[float]:
    """Seconds of each published step."""
    for module in list(net.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.requires_grad_(False)
            score = (6 / module.weight[0].numel()) ** 0.5 * module.weight / module.weight.abs().max()
            nn.utils.parametrize.register_parametrization(
                module, "weight", SortingParametrization(score.detach().clone(), keep), unsafe=True
            )
    params = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(params, lr=1e-3, momentum=0.9, weight_decay=1e-4)
    net.train()
    while True:
        began = time.perf_counter()
        with torch.no_grad():
            net(batch.x)  # for the training accuracy
        adversarial = trades_attack(net, batch.x, lambda: net(batch.x))
        with torch.no_grad():
            net(batch.x)
        optimizer.zero_grad()
        trades_loss(net, batch.x, batch.y, adversarial).backward()
        optimizer.step()
        synchronize()
        yield time.perf_counter() - began


def dense(net: nn.Module, batch: Batch) -> Iterator[float]:
    """Seconds of each dense step without masks."""
    x = batch.x.contiguous(memory_format=torch.channels_last)
    net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    net.train()
    while True:
        began = time.perf_counter()
        with torch.autocast(x.device.type, torch.bfloat16):
            net.eval()
            with torch.no_grad():
                natural = net(x).float()
            for parameter in net.parameters():
                parameter.requires_grad_(False)
            adversarial = trades_attack(net, x, partial(torch.clone, natural))
            for parameter in net.parameters():
                parameter.requires_grad_(True)
            loss = trades_loss(net, x, batch.y, adversarial)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        synchronize()
        yield time.perf_counter() - began


class Stopwatch(Hook):
    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_start(self, epochs: int, steps_per_epoch: int, done: int) -> None:
        self._began = time.perf_counter()

    def on_step(self, clock: Clock, images: int, loss: float) -> None:
        synchronize()
        now = time.perf_counter()
        self.seconds.append(now - self._began)
        self._began = now


class Repeated:
    """The same batch `steps` times."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self.batch, self.steps = batch, steps

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int) -> Iterator[Batch]:
        return iter([self.batch] * self.steps)


def ours(net: nn.Module, batch: Batch, keep: float, steps: int, compile: bool) -> list[float]:
    """Seconds of each step of `fit` over scores."""
    view = MaskView(net)
    prune(view, Hydra(), Uniform(sparsity=1 - keep))
    watch = Stopwatch()
    objective = TRADES(beta=BETA, steps=STEPS, step_size=STEP_SIZE)
    cuda = torch.cuda.is_available()
    fit(
        net,
        view.train("scores"),
        Repeated(batch, steps),
        objective,
        epochs=1,
        optim=Optim(lr=1e-3, schedule="constant"),
        threat=ThreatModel(norm="linf", eps=EPS),
        fabric=OneProcess("cuda:0" if cuda else "cpu", bf16=True),
        compile=compile,
        hooks=[watch],
    )
    return watch.seconds


def selection(net: nn.Module) -> dict[str, float]:
    """Milliseconds to select the masks of all layers: cold, warm after a small move, and by the published sort."""
    view = MaskView(net)
    scores = [s.abs().flatten() for s in Hydra().score(view, Probe(torch.Generator())).values()]
    moved = [s * (1 + 1e-4 * torch.randn_like(s)) for s in scores]
    keeps = [len(s) - int(0.9 * len(s)) for s in scores]

    def timed(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            work()
            synchronize()
            seconds.append(time.perf_counter() - began)
        return 1000 * statistics.median(seconds)

    near = [top_mask(s, k)[1] for s, k in zip(scores, keeps, strict=True)]
    return {
        "scores": sum(map(len, scores)),
        "sort": timed(lambda: [s.sort() for s in scores]),
        "cold": timed(lambda: [top_mask(s, k) for s, k in zip(scores, keeps, strict=True)]),
        "warm": timed(lambda: [top_mask(s, k, n) for s, k, n in zip(moved, keeps, near, strict=True)]),
    }


def peak_memory() -> float:
    """MB: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="vgg16_bn")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of the dense side and of ours, per round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--published-steps", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compile the network that attacks see")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", choices=["dense", "ours"], help=argparse.SUPPRESS)
    args = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = Batch(
        torch.rand(args.batch, 3, args.size, args.size, device=device), torch.arange(args.batch, device=device) % 10
    )

    def net() -> nn.Module:
        torch.manual_seed(0)
        return Net(kind=args.net).build(10, 3, args.size).to(device)

    def steps(side: str, count: int) -> list[float]:
        if side == "ours":
            return ours(net(), batch, args.keep, count + 1, args.compile)[1:]
        generator = published(net(), batch, args.keep) if side == "published" else dense(net(), batch)
        return [next(generator) for _ in range(count + 1)][1:]

    if args.memory_of:
        steps(args.memory_of, 1)
        print(peak_memory())
        return

    seconds: dict[str, list[float]] = {"dense": [], "ours": []}
    for _ in range(args.rounds):
        for side, values in seconds.items():
            values += steps(side, args.steps)
    seconds["published"] = steps("published", args.published_steps) if args.published_steps else []
    medians = {side: statistics.median(values) for side, values in seconds.items() if values}
    memory = {}
    for side in ("dense", "ours"):
        command = [sys.executable, *sys.argv, "--memory-of", side]
        memory[side] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    pick = selection(net())
    report = {
        "net": args.net,
        "batch": args.batch,
        "size": args.size,
        "keep": args.keep,
        "seconds": medians,
        "all_seconds": seconds,
        "ours_to_dense": medians["ours"] / medians["dense"],
        "published_to_ours": medians["published"] / medians["ours"] if "published" in medians else None,
        "peak_memory_mb": memory,
        "memory_ours_to_dense": memory["ours"] / memory["dense"],
        "selection_ms": pick,
        "selection_share_of_step": pick["warm"] / 1000 / medians["ours"],
        "compiled_attack": args.compile,
    }
    publish(report, args.out)


if __name__ == "__main__":
    main()
