"""What selecting masks costs, for every pruner: seconds per step of a stage, and as a share of a TRADES-10 step.

    python benchmarks/selection.py --net vgg16_bn --out benchmarks/results/selection_vgg16_bn.json

A pruner that trains goes through a stage of 20 epochs of 390 steps by its default schedule. The objective is a sum of
all masked weights with random factors, so that little else takes time. Not every step is taken: of the steps at which
masks move, of the ends of epochs and of all others some are timed, spread over the stage, and each kind counts as often
as the stage has it. *Added* is the time in the hooks of the pruner, and in computing the masked weights beyond what a
fixed mask takes; *step* compares whole steps with those under a fixed mask, backward pass and optimizer included. The
start (scores, first masks) and the end of the stage are spread over its steps. A pruner that fixes its mask at once
is timed once, without the passes through the network that it asks for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from hydraprune.core.objective import Batch, Clock
from hydraprune.core.plain import once
from hydraprune.masks.budgets import Budget, Global, Uniform
from hydraprune.masks.view import MaskView
from hydraprune.nets import Net
from hydraprune.objectives.natural import Natural
from hydraprune.pruners import PRUNERS
from hydraprune.pruners.admm import ADMM
from hydraprune.pruners.base import Pruner
from hydraprune.pruners.dns import DNS
from hydraprune.pruners.growing import GrowingSparsity
from hydraprune.pruners.magnitude import Magnitude
from hydraprune.pruners.moving import moments
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import Pruning, prune
from hydraprune.pruners.regrow import Regrow
from hydraprune.pruners.synflow import SynFlow
from hydraprune.train import Optim
from machine import publish, synchronize

EPOCHS, PER_EPOCH, SPARSITY = 20, 390, 0.9
UPDATES, WARM = 4, 3
"""Timed updates, and steps before the clock starts: the first ones select from nothing and make the momentum."""
SLOPE = 1e-3
"""Size of the gradients: about that of a network in robust training."""
ROUNDS = 4
"""Of SynFlow, whose rounds are all alike; the seconds of these are multiplied to the default."""


class Parts:
    """Seconds of the steps of one stage, by kind of step."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[Any, list[float]]] = {
            part: defaultdict(list) for part in ("refresh", "hooks", "step")
        }
        self.once = 0.0

    def mean(self, part: str, counts: Counter[Any]) -> float:
        """Seconds per step over the whole stage, each kind of step counted as often as it comes."""
        means = {kind: statistics.mean(self.seconds[part][kind]) for kind in counts}
        return sum(means[kind] * count for kind, count in counts.items()) / counts.total()

    def median(self, part: str) -> float:
        """Seconds of a step at which nothing special happens."""
        return statistics.median(self.seconds[part][False, False])


def clock(step: int) -> Clock:
    return Clock(step, PER_EPOCH, EPOCHS)


def done(pruner: Pruner, step: int) -> float:
    """What jumps with every update that the schedule of the pruner asks for, after `step` steps."""
    match pruner:
        case Regrow():  # moves connections before the step is taken
            return moments(clock(step - 1), pruner.updates, pruner.until)
        case ADMM():
            return moments(clock(step), pruner.updates)
        case GrowingSparsity():
            return pruner.level(clock(step), SPARSITY)
        case DNS():
            return pruner.done(clock(step))
    return 0


def spread(steps: list[int], count: int) -> list[int]:
    """`count` of them, at even distances."""
    return [steps[int((i + 0.5) * len(steps) / count)] for i in range(count)] if count < len(steps) else steps


def stage(pruner: Pruner, budget: Budget, net: str, steps: int) -> tuple[Parts, Counter[Any]]:
    """The timed steps of a stage, and how many of each kind (masks move, epoch ends) it has."""
    torch.manual_seed(0)
    view, parts = MaskView(Net(kind=net).build(10).to(DEVICE)), Parts()
    with timed() as spent:
        pruning = prune(view, pruner, budget)
    parts.once += spent[0]
    kind = type(pruner)
    ends = kind.after_epoch is not Pruner.after_epoch or kind.measured is not Pruner.measured
    kinds = [
        (done(pruner, step + 1) != done(pruner, step), ends and (step + 1) % PER_EPOCH == 0)
        for step in range(EPOCHS * PER_EPOCH)
    ]
    chosen: list[int] = []
    for each in set(kinds):
        those = [s for s, same in enumerate(kinds) if same == each]
        chosen += spread(those, EPOCHS if each[1] else UPDATES if each[0] else steps)
    rng = torch.Generator(DEVICE).manual_seed(0)
    size = sum(weight.numel() for weight in view.weights().values())
    slopes = SLOPE * torch.randn(2 * size, generator=rng, device=DEVICE)
    moved = [tensor for _, tensor in view.train(pruner.over or "weights")]
    optim = Optim()
    optimizer = optim.build(moved)
    pruning.on_start(EPOCHS, PER_EPOCH, 0)
    for number, step in enumerate([0] * WARM + sorted(chosen)):
        first = int(torch.randint(size, (), generator=rng, device=DEVICE))
        seconds = one(view, pruning, optimizer, optim.rate(clock(step)), slopes[first : first + size], step)
        if number >= WARM:
            for part, value in seconds.items():
                parts.seconds[part][kinds[step]].append(value)
    with timed() as spent:
        pruning.finish()
    parts.once += spent[0]
    return parts, Counter(kinds)


def one(view: MaskView, pruning: Pruning, optimizer: Any, rate: float, slopes: Tensor, step: int) -> dict[str, float]:
    """One step as `fit` takes it, and the seconds of its parts."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    synchronize()
    began = time.perf_counter()
    with once(view.model):
        synchronize()
        refresh = time.perf_counter() - began
        weights = [module.weight.flatten() for module, *_ in view.modules.values()]
        factors = slopes.split([len(weight) for weight in weights])
        loss = torch.stack([torch.dot(w, f) for w, f in zip(weights, factors, strict=True)]).sum()
    del weights
    loss.backward()
    with timed() as gradient:
        pruning.on_gradient(clock(step), optimizer)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with timed() as after:
        pruning.on_step(clock(step + 1), 1, 0.0)
        if (step + 1) % PER_EPOCH == 0:
            epoch = (step + 1) // PER_EPOCH
            # A network that overfits, for those who look at that.
            pruning.on_epoch(epoch, view.model, {"accuracy": epoch / EPOCHS, "validation_accuracy": 1 / epoch})
    return {"refresh": refresh, "hooks": gradient[0] + after[0], "step": time.perf_counter() - began}


def at_once(pruner: Pruner, net: str) -> float:
    """Seconds to fix a mask, but for passes through the network."""
    torch.manual_seed(0)
    model = Net(kind=net).build(10).to(DEVICE)
    passes, since = [0.0], [0.0]

    # Functions, as deep copies of the network share them.
    def enter(*_: Any) -> None:
        synchronize()
        since[0] = time.perf_counter()

    def leave(*_: Any) -> None:
        synchronize()
        passes[0] += time.perf_counter() - since[0]

    def backward(*args: Any, **settings: Any) -> Any:
        enter()
        found = grad(*args, **settings)
        leave()
        return found

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave)
    grad = torch.autograd.grad
    batch = Batch(torch.rand(2, 3, 32, 32, device=DEVICE), torch.arange(2, device=DEVICE))
    probe = Probe(torch.Generator(DEVICE).manual_seed(0), Natural(), None, lambda: [batch] * 100)
    with mock.patch.object(torch.autograd, "grad", backward), timed() as spent:
        prune(MaskView(model), pruner, Global(sparsity=SPARSITY), probe=probe)
    return spent[0] - passes[0]


@contextmanager
def timed() -> Iterator[list[float]]:
    """A list that holds the seconds of what happened inside."""
    spent: list[float] = []
    synchronize()
    began = time.perf_counter()
    yield spent
    synchronize()
    spent.append(time.perf_counter() - began)


def training_step(net: str) -> float | None:
    """Seconds of a TRADES-10 step at batch 64, as `train_step.py` has measured them."""
    path = Path(__file__).parent / "results" / f"train_step_{net}_64.json"
    return json.loads(path.read_text())["seconds"]["ours"] if path.exists() else None


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="vgg16_bn")
    parser.add_argument("--pruners", nargs="+", default=PRUNERS.names())
    parser.add_argument("--steps", type=int, default=12, help="timed steps at which nothing special happens")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    def fixed_mask() -> Parts:
        return stage(Magnitude(), Global(sparsity=SPARSITY), args.net, args.steps)[0]

    fixed_mask()  # the first stage of a process is slower than all others
    base, measured, seconds = [fixed_mask()], {}, {}
    for name in args.pruners:
        print(name, file=sys.stderr, flush=True)
        kind = PRUNERS.get(name)
        if kind.over is None:
            few = kind is SynFlow
            pruner = SynFlow(rounds=ROUNDS) if few else kind()
            seconds[name] = at_once(pruner, args.net) * (SynFlow().rounds / ROUNDS if few else 1)
            continue
        budgets: list[Budget] = [Global(sparsity=SPARSITY)]
        if name == "hydra":
            budgets.append(Uniform(sparsity=SPARSITY))
        for budget in budgets:
            measured[name, budget.kind] = stage(kind(), budget, args.net, args.steps)
    base.append(fixed_mask())

    fixed = {part: statistics.mean(side.median(part) for side in base) for part in ("refresh", "step")}
    whole = training_step(args.net)
    stages = {}
    print("| pruner, budget | most steps, ms | mean, ms | of a TRADES-10 step | whole step, mean ms | an update, ms |")
    print("|---|---:|---:|---:|---:|---:|")
    for (name, budget_kind), (parts, counts) in measured.items():
        mean = parts.mean("refresh", counts) + parts.mean("hooks", counts) - fixed["refresh"]
        mean += parts.once / counts.total()
        moves = [second for kind, each in parts.seconds["hooks"].items() if kind[0] for second in each]
        stages[f"{name}, {budget_kind}"] = row = {
            "added_median": parts.median("refresh") + parts.median("hooks") - fixed["refresh"],
            "added_mean": mean,
            "share": whole and mean / whole,
            "step_median": parts.median("step") - fixed["step"],
            "step_mean": parts.mean("step", counts) - fixed["step"],
            "once": parts.once,
            "updates": sum(count for (moved, _), count in counts.items() if moved),
            "update": statistics.mean(moves) if moves else None,
        }
        share = f"{100 * row['share']:.1f} %" if whole else "–"
        update = f"{row['updates']} × {1000 * row['update']:.0f}" if moves else "–"
        print(
            f"| `{name}`, {budget_kind} | {1000 * row['added_median']:.0f} | {1000 * mean:.0f} | {share} "
            f"| {1000 * row['step_mean']:.0f} | {update} |"
        )
    for name, second in seconds.items():
        print(f"`{name}`: {second:.1f} s")
    report = {
        "net": args.net,
        "sparsity": SPARSITY,
        "stage": [EPOCHS, PER_EPOCH],
        "training_step": whole,
        "fixed_mask": fixed,
        "stages": stages,
        "at_once": seconds,
    }
    publish(report, args.out)


if __name__ == "__main__":
    main()
