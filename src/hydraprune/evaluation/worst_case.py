"""Accuracy on the worst images that a set of attacks finds; the evaluator judges, never the attack."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn

from hydraprune.attacks import ATTACKS
from hydraprune.core.attack import Attack, MinimumNorm
from hydraprune.core.batches import checked, one_pass
from hydraprune.core.errors import EvaluationError, SpecError
from hydraprune.core.network import by_name, device_of
from hydraprune.core.seeds import derived
from hydraprune.core.spec import nearest, whole
from hydraprune.core.threat import PIXELS, ThreatModel
from hydraprune.core.twin import judged
from hydraprune.evaluation.accuracy import classify
from hydraprune.evaluation.verdicts import Evaluation

Progress = Callable[[str, int, int], None]
"""What is done ("clean" or an attack's name), in how many batches, of how many (0 where unknown)."""

Named = Attack | str | Mapping[str, Any]
"""An attack, its name, or its name and settings: `{"kind": "pgd", "steps": 50}`."""

EXAMPLES = 12
"""Broken images of each attack that are kept."""


def evaluate(
    model: nn.Module,
    batches: Any,
    *,
    threat: ThreatModel | Mapping[str, Any] | None = None,
    attacks: Named | Sequence[Named] = (),
    seed: int,
    networks: Mapping[str, nn.Module] | None = None,
    attack_samples: Mapping[str, int] | None = None,
    known: Evaluation | None = None,
    progress: Progress | None = None,
    keep: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Clean accuracy, and accuracy under each attack.

    Everything runs in float32 on a plain, frozen copy of the model with its norm layers folded: attacks see no
    parametrization, and the model keeps its modes, gradients, buffers and random state. Each attack starts from the
    images that are classified correctly, with random numbers that follow from seed and batch; what it finds is
    projected into ball and pixel range and judged here. What a minimum-norm attack finds is judged by its distance.

    A network that draws random numbers in evaluation mode is judged by one draw per image, with fixed seeds: its
    figures are estimates.

    Args:
        model: returns logits (B, K); may be parametrized, in any mode, on any device, in any precision.
        batches: images in [0, 1] and labels: a split such as `data.test`, batches of it, a DataLoader or another
            iterable of pairs, or one pair. Large batches (500 or more) are faster: attacks pool what stands in one.
        threat: the adversary, or its settings; needed if there are attacks.
        attacks: any number, with different names; each an attack, its name, or its name and settings.
        seed: of the random numbers of every attack, at least 0.
        networks: other networks that attacks work with, by name; treated as `model` is.
        attack_samples: attack name -> number of first images to run it on; all by default.
        known: verdicts on the same network, images and threat, of other attacks, or of the first batches of these
            attacks; they are taken over.
        progress: called after each batch of each attack.
        keep: called after each batch of each attack with what is known so far; from there a killed call can go on.

    Raises:
        SpecError: for attacks without a threat or a network that they need, for another norm than theirs, names that do
            not fit, or a model that does not return logits or has tensors without values.
        DataError: for images outside [0, 1] or that do not fit, or labels that the network has no class for.
        EvaluationError: without images, for logits that are not finite, or when an attack fails; it names the attack.
    """
    device, seed = device_of(model), whole(seed, "seed")
    threat = None if threat is None else ThreatModel.make(threat, "threat")
    tried, others = _made(attacks), by_name(networks)
    for attack in tried:
        attack.require()
    limits = _limits(tried, threat, attack_samples or {})
    ledger = _Ledger(known, threat)
    parts = one_pass(batches)
    total = length_hint(parts)
    with torch.autocast(device.type, enabled=False), torch.random.fork_rng([device] if device.type == "cuda" else []):
        net = judged(model)
        others = {name: judged(other).to(device) for name, other in others.items()}
        tried = [attack.using(others) for attack in tried]
        for number, batch in enumerate(parts):
            drawn = derived(seed, "evaluation", number)
            torch.manual_seed(drawn)
            x, y = checked(batch, device)
            if number == 0:
                _channels_last(net, x[:1])
            logits = classify(net, x, y)
            first = ledger.clean(y, logits)
            if progress:
                progress("clean", number + 1, total)
            for attack in tried:
                assert threat is not None  # _limits has refused attacks without one
                some = slice(max(0, limits[attack.name] - first))
                if not ledger.has(attack.name, min(limits[attack.name], first + len(x))):
                    torch.manual_seed(drawn)
                    rng = torch.Generator(device).manual_seed(drawn)
                    verdicts = _verdicts(attack, net, x[some], y[some], logits[some].argmax(1), threat, rng)
                    ledger.add(attack.name, first, *verdicts)
                    if keep:
                        keep(ledger.evaluation())
                if progress:
                    progress(attack.name, number + 1, total)
    return ledger.evaluation()


def _made(attacks: Named | Sequence[Named]) -> list[Attack]:
    several = attacks if isinstance(attacks, Sequence) and not isinstance(attacks, str) else [attacks]
    return [ATTACKS.make(attack, f"attacks[{number}]") for number, attack in enumerate(several)]


class _Ledger:
    """Verdicts as they come in, on the CPU."""

    def __init__(self, known: Evaluation | None, threat: ThreatModel | None) -> None:
        none = torch.zeros(0, dtype=torch.int64)
        known = known or Evaluation(none, none, torch.zeros(0), {})
        self._began = time.perf_counter() - known.seconds
        self._known, self._threat, self._images = known, threat, 0
        self._clean = [known.label[:0], known.prediction[:0], known.confidence[:0]]
        self._survived, self._distance, self._example = dict(known.survived), dict(known.distance), dict(known.example)

    def clean(self, y: Tensor, logits: Tensor) -> int:
        """Add a batch as it is; returns how many images came before."""
        first = len(self._clean[0])
        label = self._known.label[first : first + len(y)]
        if not torch.equal(y[: len(label)].cpu(), label):
            raise SpecError("the verdicts that are known are of other images; remove them, or measure elsewhere")
        found = (y, logits.argmax(1), logits.float().softmax(1).amax(1))
        self._clean = [torch.cat([old, new.cpu()]) for old, new in zip(self._clean, found, strict=True)]
        return first

    def has(self, name: str, count: int) -> bool:
        """Whether the verdicts of an attack reach to image `count`."""
        return len(self._survived.get(name, ())) >= count

    def add(self, name: str, first: int, survived: Tensor, distance: Tensor | None, example: dict[str, Tensor]) -> None:
        """Add the verdicts of an attack on the images from `first` on; what was known of these is replaced."""
        self._survived[name] = _appended(self._survived.get(name), first, survived)
        if distance is not None:
            self._distance[name] = _appended(self._distance.get(name), first, distance)
        before = self._example.get(name)
        if first and before is not None:
            example = {key: torch.cat([before[key], value]) for key, value in example.items()}
        self._example[name] = {key: value[:EXAMPLES] for key, value in example.items()}

    def evaluation(self) -> Evaluation:
        """All of it; on images that were not seen this time, what was known."""
        old = (self._known.label, self._known.prediction, self._known.confidence)
        label, prediction, confidence = (
            torch.cat([new, before[len(new) :]]) for new, before in zip(self._clean, old, strict=True)
        )
        if not len(label):
            raise EvaluationError("no images to evaluate; give at least one batch")
        found = dict(self._survived), dict(self._distance), dict(self._example)
        return Evaluation(label, prediction, confidence, *found, self._threat, time.perf_counter() - self._began)


def _appended(before: Tensor | None, first: int, new: Tensor) -> Tensor:
    return new.cpu() if before is None else torch.cat([before[:first], new.cpu()])


def _limits(attacks: Sequence[Attack], threat: ThreatModel | None, samples: Mapping[str, int]) -> dict[str, int]:
    names = [attack.name for attack in attacks]
    if names and threat is None:
        raise SpecError(f"attack {names[0]!r} needs a threat model; add `threat: {{norm: linf, eps: 8/255}}`")
    for attack in attacks:
        if names.count(attack.name) > 1:
            raise SpecError(f"two attacks are called {attack.name!r}; remove one, or evaluate twice")
        if threat is not None and threat.norm not in attack.norms:
            raise SpecError(f"attack {attack.name!r} works in {' or '.join(attack.norms)}, the threat is {threat.norm}")
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
    except Exception:  # images that do not fit fail here as well, and are told of where they are classified
        net.to(memory_format=torch.contiguous_format)


def _verdicts(
    attack: Attack, net: nn.Module, x: Tensor, y: Tensor, prediction: Tensor, threat: ThreatModel, rng: torch.Generator
) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    """What `attack` leaves of the images classified correctly (B,), distances if it minimises them, and examples."""
    survived = prediction == y
    distance = torch.zeros(len(x), device=x.device) if isinstance(attack, MinimumNorm) else None
    right = survived.clone()
    adversarial, fooled = x, prediction
    if right.any():
        try:
            found, answers, lengths = _attacked(attack, net, x[right], y[right], threat, rng)
        except Exception as error:  # an attack may fail in any way; its images must not count as robust
            raise EvaluationError(f"attack {attack.name!r} failed: {type(error).__name__}: {error}") from error
        broken = answers != y[right]
        if distance is not None:
            distance[right] = lengths.where(broken, torch.inf)
            broken &= lengths <= threat.eps
        survived[right] = ~broken
        adversarial, fooled = x.clone(), prediction.clone()
        adversarial[right], fooled[right] = found, answers
    rows = (right & ~survived).nonzero().flatten()[:EXAMPLES]
    columns = {"image": x, "adversarial": adversarial, "label": y}
    columns |= {"prediction": prediction, "adversarial_prediction": fooled}
    return survived, distance, {key: value[rows].cpu() for key, value in columns.items()}


def _attacked(
    attack: Attack, net: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Adversarial images (B, C, H, W), the network's answers (B,), and their distances (B,)."""
    search = attack.closest if isinstance(attack, MinimumNorm) else attack.search
    found = search(net, x.clone(), y.clone(), threat, rng)
    if found.shape != x.shape:
        raise EvaluationError(f"it returned images {tuple(found.shape)} for {tuple(x.shape)}")
    found = found.to(x).clamp(*PIXELS) if isinstance(attack, MinimumNorm) else threat.project(x, found.to(x))
    return found, classify(net, found, y).argmax(1), threat.distance(x, found)
