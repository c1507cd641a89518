"""Signs of false security, after Carlini et al. (arXiv:1902.06705) and Athalye et al. (arXiv:1802.00420).

A defence that only hides its gradients passes gradient attacks and fails here: attacks that should be weaker then win,
more effort helps the defender, or accuracy survives a radius at which every image can be made grey.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hydraprune.attacks.gradient import cross_entropy_of, pgd, slope
from hydraprune.attacks.pgd import PGD
from hydraprune.attacks.square import Square
from hydraprune.core.attack import Attack
from hydraprune.core.batches import checked
from hydraprune.core.errors import EvaluationError
from hydraprune.core.network import device_of
from hydraprune.core.objective import Batch
from hydraprune.core.seeds import generator
from hydraprune.core.spec import Spec
from hydraprune.core.threat import PIXELS, ThreatModel
from hydraprune.core.twin import judged
from hydraprune.evaluation.accuracy import classify, share
from hydraprune.evaluation.verdicts import Evaluation
from hydraprune.evaluation.worst_case import evaluate

TOLERANCE = 0.02
"""Share of the images by which random starts may differ without meaning anything."""

STEPS, RESTARTS, QUERIES = (5, 20, 80), (1, 2, 4), 500
SURFACE, IMAGES = 21, 16
"""Points along each axis of the loss surface, and images that it is a mean over."""


class Check(Spec):
    """One sanity check.

    Args:
        name: of the check.
        passed: None where the data for it is not there.
        found: what was measured, in words.
        expected: what an honest evaluation shows.
        why: what it means if it is otherwise.
        figures: numbers for a plot.
    """

    name: str
    passed: bool | None
    found: str
    expected: str
    why: str
    figures: dict[str, Any] = {}


def check(
    model: nn.Module, batch: Batch, threat: ThreatModel, *, seed: int, verdicts: Evaluation | None = None,
    verified: Tensor | None = None,
) -> list[Check]:  # fmt: skip
    """All checks of `model` on one batch, some hundred images.

    Args:
        model: returns logits (B, K); may be parametrized, in any mode, on any device.
        batch: images in [0, 1] and labels.
        threat: the adversary.
        seed: of every attack.
        verdicts: of earlier attacks on test images, the first of which are those of the batch or more.
        verified: (n,) bool, for which of the first n test images robustness is proved.

    Raises:
        EvaluationError: if no image is classified correctly, or logits are not finite.
    """
    device = device_of(model)
    x, y = checked(batch, device)
    with torch.autocast(device.type, enabled=False):
        net = judged(model)
        logits = classify(net, x, y)
        right = logits.argmax(1) == y
        if not right.any():
            raise EvaluationError("no image is classified correctly, so there is no robustness to check")
        measure = partial(_survived, model, Batch(x, y), seed=seed)
        return [
            _deterministic(logits, classify(net, x, y)),
            _gradients(net, x[right], y[right]),
            _radius(measure, threat, net, x, y),
            _black_box(measure, threat),
            _effort(measure, threat, "steps", {n: PGD(steps=n, restarts=1) for n in STEPS}),
            _effort(measure, threat, "restarts", {n: PGD(steps=STEPS[1], restarts=n) for n in RESTARTS}),
            _surface(net, x[right][:IMAGES], y[right][:IMAGES], threat, seed),
            _order(verdicts, verified),
        ]


def _survived(model: nn.Module, batch: Batch, threat: ThreatModel, attack: Attack, *, seed: int) -> Tensor:
    return evaluate(model, [batch], threat=threat, attacks=[attack], seed=seed).survived[attack.name]


def _deterministic(once: Tensor, again: Tensor) -> Check:
    largest = (once - again).abs().max().item()
    return Check(
        name="deterministic",
        passed=largest <= 1e-4 * once.abs().max().item(),
        found=f"logits of the same images differ by up to {largest:.2g}",
        expected="the same answer twice",
        why="a network that draws random numbers needs attacks that average over them (eot_samples, autoattack rand)",
        figures={"largest_difference": largest},
    )


def _gradients(net: nn.Module, x: Tensor, y: Tensor) -> Check:
    gradient, _ = slope(net, x.clone().requires_grad_(), cross_entropy_of(y))
    gradient = gradient.nan_to_num(0.0)
    zero, pixels = share((gradient.flatten(1) == 0).all(1)), share(gradient == 0)
    return Check(
        name="gradients",
        passed=zero == 0,
        found=f"{zero:.1%} of the images have no gradient of the loss, {pixels:.1%} of all pixels",
        expected="every image has a gradient",
        why="without a gradient, attacks that follow it stand still and the network looks robust",
        figures={"zero": zero, "zero_pixels": pixels},
    )


def _radius(measure: Any, threat: ThreatModel, net: nn.Module, x: Tensor, y: Tensor) -> Check:
    lowest, highest = PIXELS
    # From here on every image can be made grey, so at most the images of the class of grey survive.
    grey = share(y == net(torch.full_like(x[:1], (lowest + highest) / 2)).argmax(1))
    limit = (highest - lowest) / 2 * (1 if threat.norm == "linf" else x[0].numel() ** 0.5)
    radii = [0.0, *(threat.eps * 2**k for k in range(12) if threat.eps * 2**k < limit), limit]
    attack = PGD(steps=STEPS[1], restarts=1)
    accuracy = [share(measure(ThreatModel(norm=threat.norm, eps=eps), attack)) for eps in radii]
    return Check(
        name="radius",
        passed=accuracy[-1] <= grey and _falls(accuracy),
        found=f"accuracy falls from {accuracy[0]:.1%} to {accuracy[-1]:.1%} at radius {limit:.3g}",
        expected=f"it falls, to at most {grey:.1%}, the images of the class that grey gets: all can be made grey there",
        why="no network can do better: what is left beyond that is what the attack does not find",
        figures={"eps": radii, "accuracy": accuracy},
    )


def _black_box(measure: Any, threat: ThreatModel) -> Check:
    white, black = measure(threat, PGD(steps=STEPS[1], restarts=1)), measure(threat, Square(queries=QUERIES))
    only = share(white & ~black)
    return Check(
        name="black-box",
        passed=only <= TOLERANCE,
        found=f"accuracy {share(white):.1%} under PGD, {share(black):.1%} under Square, which alone breaks {only:.1%}",
        expected=f"at most {TOLERANCE:.0%}: an attack that sees the gradient is stronger",
        why="random search can only win where the gradient points nowhere",
        figures={"white_box": share(white), "black_box": share(black)},
    )


def _effort(measure: Any, threat: ThreatModel, what: str, attacks: dict[int, Attack]) -> Check:
    accuracy = [share(measure(threat, attack)) for attack in attacks.values()]
    path = ", ".join(f"{value:.1%} with {number}" for number, value in zip(attacks, accuracy, strict=True))
    return Check(
        name=what,
        passed=_falls(accuracy),
        found=f"accuracy under PGD: {path}",
        expected=f"more {what} never help the defender",
        why="an attack that gets weaker by working harder is not converging: its step size or the gradient is wrong",
        figures={what: list(attacks), "accuracy": accuracy},
    )


@torch.no_grad()
def _surface(net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, seed: int) -> Check:
    """The mean loss on the plane through the images, an adversarial one and a random one, to twice the radius."""
    rng = generator(seed, "loss surface", device=x.device)
    loss = cross_entropy_of(y)
    attack = pgd(net, x, threat, loss, steps=20, step_size=threat.eps / 8, start="uniform", rng=rng) - x
    random = threat.eps * threat.steepest(torch.randn(x.shape, generator=rng, device=x.device, dtype=x.dtype))
    axis = torch.linspace(-2, 2, SURFACE).tolist()
    grid = [[loss(net((x + a * attack + b * random).clamp(*PIXELS)).float()).mean().item() for a in axis] for b in axis]
    middle, one = SURFACE // 2, SURFACE // 2 + SURFACE // 4
    found, start = grid[middle][one], grid[middle][middle]
    beside = max(grid[row][middle] for row in range(SURFACE) if abs(axis[row]) <= 1)
    return Check(
        name="loss-surface",
        passed=found > start and found >= beside,
        found=f"loss {start:.3g} at the images, {found:.3g} after the attack, up to {beside:.3g} in a random direction",
        expected="the attack climbs, and higher than a random direction does",
        why="where a random direction does as well, the gradient leads nowhere",
        figures={"x": axis, "y": axis, "loss": grid},
    )


def _order(verdicts: Evaluation | None, verified: Tensor | None) -> Check:
    """Clean >= PGD >= AutoAttack >= verified, on the images that all of them saw."""
    chain = {"verified": verified} if verified is not None else {}
    if verdicts is not None:
        found = {kind: [n for n in verdicts.survived if n.startswith(kind)] for kind in ("pgd", "autoattack")}
        attacks = {kind: verdicts.survived[names[0]] for kind, names in found.items() if names}
        chain = {"clean": verdicts.correct, **attacks, **chain}
    fewest = min((len(verdict) for verdict in chain.values()), default=0)
    accuracy = {name: share(verdict[:fewest]) for name, verdict in chain.items() if fewest}
    pairs = [_common(*pair) for pair in pairwise(chain.values())]
    refuted = 0
    if verdicts is not None and verified is not None:
        pairs_of_both = ((verified[: len(s)], s[: len(verified)]) for s in verdicts.survived.values())
        refuted = sum(int((proved & ~survived).sum()) for proved, survived in pairs_of_both)
    words = ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items()) or "nothing was measured"
    return Check(
        name="order",
        passed=all(_falls(pair) for pair in pairs) and not refuted if pairs else None,
        found=words + (f"; attacks refute {refuted} proofs" if refuted else ""),
        expected="clean >= pgd >= autoattack >= verified on the same images, and no proof that an attack refutes",
        why="a stronger adversary that breaks less was not run properly; a broken proof is no proof",
        figures=accuracy,
    )


def _common(one: Tensor, other: Tensor) -> list[float]:
    """Both shares over the images that both know."""
    return [share(one[: len(other)]), share(other[: len(one)])]


def _falls(accuracy: list[float]) -> bool:
    return all(later <= before + TOLERANCE for before, later in pairwise(accuracy))
