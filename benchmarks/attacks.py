"""PGD-50x10 and AutoAttack as `evaluate` runs them, against the plain loop and the library alone, on a trained network.

    python benchmarks/attacks.py runs/digits-demo/pruner=hydra,sparsity=0.9/finetune --out attacks_digits.json

Data, threat model and network are those of the checkpoint. The plain loop never skips an image; an image is robust if
no iterate of any restart is misclassified. Both sides of a comparison must find the same images robust.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyautoattack
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hydraprune.attacks.autoattack import AutoAttack
from hydraprune.attacks.pgd import PGD
from hydraprune.core.attack import Attack
from hydraprune.core.objective import Batch
from hydraprune.core.plain import plain_copy
from hydraprune.core.threat import ThreatModel
from hydraprune.evaluation import evaluate
from hydraprune.recipes.library import load_recipe
from hydraprune.runs.checkpoint import load
from machine import publish, synchronize

STEPS, RESTARTS = 50, 10


def plain(net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """The loop that takes every step of every restart for every image, from the starts that `evaluate` draws."""
    rng = torch.Generator(x.device).manual_seed(0)
    right = net(x).argmax(1) == y
    robust = right.clone()
    size = 2.5 * threat.eps / STEPS
    for _ in range(RESTARTS):
        adversarial = x.clone()
        adversarial[right] = threat.sample(x[right], rng)
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


def library(net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> Tensor:
    """Robust images by the AutoAttack package alone."""
    package = pyautoattack.AutoAttack(net, norm="Linf", eps=threat.eps, seed=seed, device=x.device)
    found, _ = package.run_standard_evaluation(x, y, batch_size=500)
    with torch.no_grad():
        return (net(x).argmax(1) == y) & (net(found).argmax(1) == y)


def ours(net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, attack: Attack) -> Tensor:
    return evaluate(net, [Batch(x, y)], threat=threat, attacks=[attack], seed=0).survived[attack.name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="a finished stage of a run")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, _ = load(args.checkpoint)
    written = next(path for folder in args.checkpoint.parents if (path := folder / "recipe.yaml").exists())
    recipe = load_recipe(str(written))
    batch = next(iter(recipe.data.load().test.batches(args.images, seed=0).epoch(0)))
    net = plain_copy(model.to(device)).eval().requires_grad_(False)
    x, y = batch.x.to(device).contiguous(), batch.y.to(device)
    sides: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "pgd-50x10": (
            partial(plain, net, x, y, recipe.threat),
            partial(ours, net, x, y, recipe.threat, PGD(steps=STEPS, restarts=RESTARTS)),
        ),
        "autoattack": (
            partial(library, net, x, y, recipe.threat, 0),
            partial(ours, net, x, y, recipe.threat, AutoAttack()),
        ),
    }
    figures = {}
    for attack, (theirs, evaluated) in sides.items():
        robust, seconds = [], ([], [])
        for _ in range(args.rounds):
            robust = []
            for side, times in zip((theirs, evaluated), seconds, strict=True):
                began = time.perf_counter()
                robust.append(side().cpu())
                synchronize()
                times.append(time.perf_counter() - began)
        plainly, here = (statistics.median(times) for times in seconds)
        figures[attack] = {
            "seconds": {"plain": plainly, "ours": here},
            "ours_to_plain": here / plainly,
            "robust": [found.double().mean().item() for found in robust],
            "different_images": int((robust[0] != robust[1]).sum()),
        }
    publish({"checkpoint": recipe.name, "images": len(x), "attacks": figures}, args.out)


if __name__ == "__main__":
    main()
