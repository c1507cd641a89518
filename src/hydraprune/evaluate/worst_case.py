"""Accuracy on the worst images that a set of attacks finds; the evaluator judges, never the attack."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import length_hint

import torch
from torch import Tensor, nn

from hydraprune.core.attack import Attack
from hydraprune.core.errors import EvaluationError, SpecError
from hydraprune.core.objective import Batch
from hydraprune.core.results import Record
from hydraprune.core.spec import nearest
from hydraprune.core.threat import ThreatModel
from hydraprune.core.twin import Twin
from hydraprune.evaluate.accuracy import checked, gathered, judge, share

Progress = Callable[[str, int, int], None]
"""What is done ("clean" or an attack's name), in how many batches, of how many (0 where unknown)."""


@dataclass(frozen=True)
class Evaluation:
    """Verdicts per image, in the order of the batches.

    Attributes:
        correct: (N,) bool, classified correctly as it is.
        survived: attack name -> (n,) bool, classified correctly before and after that attack, for the first n images.
        threat: the adversary.
        seconds: wall time.
    """

    correct: Tensor
    survived: dict[str, Tensor]
    threat: ThreatModel | None
    seconds: float

    @property
    def clean_accuracy(self) -> float:
        """Share of the N images, in [0, 1]."""
        return share(self.correct)

    @property
    def robust_accuracy(self) -> dict[str, float]:
        """Attack name -> share of the images that it was run on, wrongly classified ones included, in [0, 1]."""
        return {name: share(survived) for name, survived in self.survived.items()}

    @property
    def worst_case(self) -> Tensor:
        """(n,) bool: what no attack breaks, for the first n images, which all attacks were run on."""
        verdicts = [self.correct, *self.survived.values()]
        fewest = min(len(verdict) for verdict in verdicts)
        return torch.stack([verdict[:fewest] for verdict in verdicts]).all(0)

    def record(self, *, stage: str, pruner: str | None, kept: int, total: int, seed: int) -> Record:
        """The record of this evaluation; with several attacks it holds their union as the attack `worst-case`."""
        verdicts = dict(self.survived)
        if len(verdicts) > 1:
            verdicts["worst-case"] = self.worst_case
        return Record(
            stage=stage,
            pruner=pruner,
            sparsity=(total - kept) / total,
            kept=kept,
            total=total,
            clean_accuracy=self.clean_accuracy,
            robust_accuracy={name: share(verdict) for name, verdict in verdicts.items()},
            robust_samples={
                name: len(verdict) for name, verdict in verdicts.items() if len(verdict) < len(self.correct)
            },
            samples=len(self.correct),
            threat=self.threat,
            seed=seed,
            seconds=self.seconds,
        )


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    threat: ThreatModel | None = None,
    attacks: Sequence[Attack] = (),
    seed: int,
    attack_samples: Mapping[str, int] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Clean accuracy, and accuracy under each attack.

    Everything runs in float32 on a plain, frozen copy of the model with its norm layers folded: attacks see no
    parametrization, and the model keeps its modes, gradients, buffers and random state. Each attack starts from the
    images that are classified correctly, with its own random numbers; what it finds is projected into ball and pixel
    range and judged here.

    Args:
        model: returns logits (B, K); may be parametrized, in any mode, on any device.
        batches: images in [0, 1] and labels. Large batches (500 or more) are faster: attacks pool what stands in one.
        threat: the adversary; needed if there are attacks.
        attacks: any number, with different names.
        seed: of the random numbers of every attack.
        attack_samples: attack name -> number of first images to run it on; all by default.
        progress: called after each batch of each attack.

    Raises:
        SpecError: for attacks without a threat, or names that do not fit.
        DataError: for images outside [0, 1] or labels that the network has no class for.
        EvaluationError: without images, for logits that are not finite, or when an attack fails; it names the attack.
    """
    limits = _limits([attack.name for attack in attacks], threat, attack_samples or {})
    began = time.perf_counter()
    device = next(model.parameters()).device
    rngs = {name: torch.Generator(device).manual_seed(seed) for name in limits}
    correct: list[Tensor] = []
    survived: dict[str, list[Tensor]] = {name: [] for name in limits}
    seen, total = 0, length_hint(batches)
    with torch.autocast(device.type, enabled=False):
        net = Twin(model).refresh(0)
        for number, batch in enumerate(batches, start=1):
            x, y = checked(batch, device)
            if number == 1:
                _channels_last(net, x[:1])
            correct.append(judge(net, x, y))
            if progress:
                progress("clean", number, total)
            for attack in attacks:
                assert threat is not None  # _limits has refused attacks without one
                first = slice(max(0, limits[attack.name] - seen))
                standing = _survivors(attack, net, x[first], y[first], correct[-1][first], threat, rngs[attack.name])
                survived[attack.name].append(standing)
                if progress:
                    progress(attack.name, number, total)
            seen += len(x)
    each = {name: gathered(verdicts) for name, verdicts in survived.items()}
    return Evaluation(gathered(correct), each, threat, time.perf_counter() - began)


def _limits(names: list[str], threat: ThreatModel | None, samples: Mapping[str, int]) -> dict[str, int]:
    if names and threat is None:
        raise SpecError(f"attack {names[0]!r} needs a threat model; add `threat: {{norm: linf, eps: 8/255}}`")
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"two attacks are called {name!r}; remove one, or evaluate twice")
    for name, number in samples.items():
        if name not in names:
            raise SpecError(f"attack_samples: no attack {name!r} is run; {nearest(name, names)}")
        if number < 1:
            raise SpecError(f"attack_samples: {name!r} needs at least 1 image, got {number}")
    return {name: samples.get(name, sys.maxsize) for name in names}


def _channels_last(net: nn.Module, x: Tensor) -> None:
    """Store convolutions channels-last, which is faster, unless `net` reshapes by `view`, which forbids it."""
    net.to(memory_format=torch.channels_last)
    try:
        with torch.no_grad():
            net(x)
    except RuntimeError:
        net.to(memory_format=torch.contiguous_format)


def _survivors(
    attack: Attack,
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    correct: Tensor,
    threat: ThreatModel,
    rng: torch.Generator,
) -> Tensor:
    """`correct` (B,), less what `attack` breaks."""
    survivors = correct.clone()
    if not correct.any():
        return survivors
    x, y = x[correct], y[correct]
    try:
        found = attack.search(net, x.clone(), y.clone(), threat, rng)
        if found.shape != x.shape:
            raise EvaluationError(f"it returned images {tuple(found.shape)} for {tuple(x.shape)}")
        survivors[correct] = judge(net, threat.project(x, found.to(x)), y)
    except Exception as error:  # an attack may fail in any way; its images must not count as robust
        raise EvaluationError(f"attack {attack.name!r} failed: {type(error).__name__}: {error}") from error
    return survivors
