"""A claim for the adversarial pruning benchmark (Piras et al., arXiv:2409.01249), and one under a stricter protocol."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hydraprune.attacks.autoattack import AutoAttack
from hydraprune.attacks.ensemble import Ensemble
from hydraprune.attacks.fmn import FMN
from hydraprune.core.errors import SpecError
from hydraprune.core.files import write_json
from hydraprune.core.plain import tensors
from hydraprune.core.results import Record
from hydraprune.core.threat import ThreatModel
from hydraprune.data.images import Images
from hydraprune.evaluation import evaluate
from hydraprune.evaluation.accuracy import share
from hydraprune.evaluation.tuning import tuned
from hydraprune.masks.view import MaskView
from hydraprune.recipes.evaluate import Evaluate
from hydraprune.recipes.schema import Recipe
from hydraprune.recipes.stages import Bench
from hydraprune.runs.checkpoint import Checkpoint
from hydraprune.runs.files import CLAIM
from hydraprune.runs.meta import Meta, versions

NETS = {"resnet18": "R18", "vgg16_bn": "V16"}
DATA = {"cifar10": "CIFAR10", "svhn": "SVHN"}
SPARSITIES = {"US": (90, 95, 99), "S": (50, 75, 90)}
AUTOATTACK = ThreatModel(eps=0.031)
STRICT = ThreatModel(eps=8 / 255)
IMAGES = 10_000
TRIALS, TUNED_ON, TUNING_STEPS = 32, 64, 100
FMN_STEPS, FMN_FIRST, FMN_IMAGES = 200, TRIALS * TUNED_ON, 128


def benchmark(
    checkpoint: Checkpoint, bench: Bench, *, name: str | None = None, samples: int = IMAGES
) -> tuple[dict[str, Any], Path]:
    """Measure a checkpoint under both protocols and write `claim.json` beside it; a killed call goes on.

    The benchmark's: AutoAttack in linf at 0.031 on the first 10,000 test images; tuned FMN with the DLR loss, 200
    steps, on images 2048 to 2175, of which the share farther than 8/255 counts. Its tuning compares trials on different
    images; here all trials see the first 64. The stricter one: PGD-50x10 and then AutoAttack at 8/255, and the same FMN
    on all of these images; an image counts that none of them breaks.

    Args:
        checkpoint: of a finished stage.
        bench: what it takes; the recipe's threat model is not used.
        name: of the method, as the benchmark writes it: `HYDRA_Sehwag2020Hydra`.
        samples: fewer test images, for a try-out; the claim then says that it is not eligible.

    Raises:
        SpecError: if there are too few test images to tune the attack on some and measure on others.
    """
    meta, recipe = checkpoint.meta, bench.recipe
    model = bench.fabric.to_device(checkpoint.network())
    attack, lengths = _fmn(model, bench.data.test, bench.fabric.device, recipe.seed)

    def measured(threat: ThreatModel, attacks: list[Any]) -> Record:
        stage = Evaluate(name="benchmark", attacks=attacks, samples=samples)
        here = recipe.model_copy(update={"threat": threat})
        return stage.measured(checkpoint, replace(bench, recipe=here))

    official = measured(AUTOATTACK, [AutoAttack()])
    strict = measured(STRICT, [Ensemble(), attack])
    key, reasons = _key(name or meta.pruner or "dense", model, meta, recipe)
    if official.samples < IMAGES:
        reasons.append(f"AutoAttack was run on {official.samples} images, not on {IMAGES}")
    claim = {
        "name": key,
        "eligible": not reasons,
        "reasons": reasons,
        "sparsity": _sparsity(model),
        "kept": meta.kept,
        "total": meta.total,
        "sha256": checkpoint.digest,
        "versions": versions(),
        "benchmark": {
            "clean_accuracy": official.clean_accuracy,
            "autoattack": _figure(official, AutoAttack().name, AUTOATTACK),
            "fmn": {"accuracy": share(lengths > STRICT.eps), "samples": len(lengths), "eps": STRICT.eps},
            "fmn_settings": attack.plain(),
            "distances": lengths.clamp(max=1.0).tolist(),
        },
        "strict": {
            "clean_accuracy": strict.clean_accuracy,
            "attacks": {n: _figure(strict, n, STRICT) for n in strict.robust_accuracy},
        },
    }
    path = checkpoint.folder / CLAIM
    write_json(path, claim)
    return claim, path


def _fmn(model: nn.Module, images: Images, device: torch.device, seed: int) -> tuple[FMN, torch.Tensor]:
    """The tuned attack, and distances (n,) of images that it was not tuned on."""
    if len(images) < 2 * TUNED_ON:
        raise SpecError(f"{len(images)} test images are too few to tune the attack on {TUNED_ON} and measure on others")
    first = min(FMN_FIRST, max(TUNED_ON, len(images) - FMN_IMAGES))
    some = images.subset(torch.arange(TUNED_ON)), images.subset(torch.arange(len(images))[first : first + FMN_IMAGES])
    (tune,), (report,) = (part.batches(len(part), seed=0, device=device).epoch(0) for part in some)
    start = FMN(steps=FMN_STEPS, loss="dlr")
    attack = tuned(model, tune, STRICT, attack=start, trials=TRIALS, steps=TUNING_STEPS, seed=seed)
    return attack, evaluate(model, [report], threat=STRICT, attacks=[attack], seed=seed).distance[attack.name]


def _figure(record: Record, attack: str, threat: ThreatModel) -> dict[str, Any]:
    samples = record.robust_samples.get(attack, record.samples)
    return {"accuracy": record.robust_accuracy[attack], "samples": samples, "eps": threat.eps}


def _key(method: str, model: nn.Module, meta: Meta, recipe: Recipe) -> tuple[str, list[str]]:
    """The benchmark's name of this network, and why it may not be entered."""
    reasons = []
    net, data = NETS.get(recipe.net.kind, recipe.net.kind), DATA.get(recipe.data.kind, recipe.data.kind)
    for known, value in ((NETS, recipe.net.kind), (DATA, recipe.data.kind)):
        if value not in known:
            reasons.append(f"{value} is not part of the benchmark, which has {' and '.join(known)}")
    structure, percent = _structure(model), 100 * _sparsity(model)
    rate = min(SPARSITIES[structure], key=lambda rate: abs(rate - percent))
    if abs(rate - percent) > 0.5:
        rates = ", ".join(map(str, SPARSITIES[structure]))
        reasons.append(f"its sparsity of {percent:.2f} % is none of {rates}, the rates for {structure}")
    if meta.pruner is None:
        reasons.append("it is not pruned")
    return "_".join(
        [method, net, data, structure, f"{rate if abs(rate - percent) <= 0.5 else round(percent, 1)}"]
    ), reasons


def _sparsity(model: nn.Module) -> float:
    """Share of zeros among the prunable weights, as they are stored."""
    values = tensors(model)
    weights = [values[name] for name in MaskView(model).modules]
    return 1 - sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)


def _structure(model: nn.Module) -> str:
    """`S` where every mask removes whole filters or whole input channels, `US` otherwise."""
    masks = [mask for mask in MaskView(model).masks().values() if not mask.all()]
    whole = [any((m == m[:, :1]).all() for m in (k.flatten(1), k.transpose(0, 1).flatten(1))) for k in masks]
    return "S" if whole and all(whole) else "US"
