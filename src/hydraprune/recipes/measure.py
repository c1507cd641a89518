"""Measures a checkpoint, and keeps verdicts, examples, curves, corruptions and sanity checks next to it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor, nn

from hydraprune.attacks.transfer import Transfer
from hydraprune.core.attack import Attack
from hydraprune.core.errors import SpecError
from hydraprune.core.files import inside, read_json, save_tensors, write_json
from hydraprune.core.results import Corrupted, Record
from hydraprune.core.threat import ThreatModel
from hydraprune.data import Dataset, Images
from hydraprune.evaluate import Evaluation, evaluate
from hydraprune.evaluate.checks import Check
from hydraprune.evaluate.checks import check as run_checks
from hydraprune.evaluate.size import macs
from hydraprune.evaluate.verdicts import load as load_verdicts
from hydraprune.evaluate.verdicts import save as save_verdicts
from hydraprune.recipes.schema import Recipe
from hydraprune.recipes.stages import Evaluate
from hydraprune.runs.checkpoint import Checkpoint
from hydraprune.train.hooks import progress_bar

if TYPE_CHECKING:
    from hydraprune.evaluate.corruptions import Files, Made

VERDICTS, EXAMPLES, CURVES, CHECKS = "verdicts.safetensors", "examples.safetensors", "curves.json", "checks.json"
CORRUPTIONS = "corruptions.json"
STATE = "evaluation.state.safetensors"
FARTHEST, POINTS = 4, 41
"""A security curve reaches to so many radii of the threat model, at so many points."""


def measure(
    checkpoint: Checkpoint,
    recipe: Recipe,
    stage: Evaluate,
    *,
    data: Dataset,
    fabric: Fabric,
    console: Console,
    surrogates: Mapping[str, Checkpoint] | None = None,
) -> Record:
    """Clean and robust accuracy of a checkpoint under the recipe's threat model, and under corruptions.

    Verdicts that are kept there already, of the same network and with the same settings, are taken over; a killed call
    goes on after the last batch of an attack that it finished.

    Args:
        checkpoint: of a finished stage.
        recipe: data, threat model and seed.
        stage: the attacks and corruptions.
        data: its test images are used.
        fabric: the machine.
        console: for progress.
        surrogates: name -> checkpoint, on which images are found that are tried on this one.

    Returns:
        The record of everything that is known of the checkpoint under this threat model.
    """
    folder, meta = checkpoint.folder, checkpoint.meta
    model = fabric.to_device(checkpoint.network())
    attacks = [*stage.attacks, *(_transfer(name, other) for name, other in (surrogates or {}).items())]
    files = place(checkpoint, recipe.threat)
    settings = {attack.name: attack.plain() | {"seed": recipe.seed} for attack in attacks}
    network = checkpoint.digest
    known, earlier = _known(files, network, recipe.threat, settings)
    header = {"seed": recipe.seed, "network": network, "attacks": earlier | settings}
    images = data.test if stage.samples is None else data.test.take(stage.samples)
    batches = images.batches(stage.batch_size, seed=0, device=fabric.device)
    # Before the attacks, so that a folder that does not fit is told at once.
    corrupted = _known_corrupted(folder, network, recipe.seed)
    parts = _to_corrupt(stage, images, recipe.seed, corrupted)
    with progress_bar(console) as bar:
        task = bar.add_task(f"{folder.name}: evaluate", total=(1 + len(attacks)) * len(batches), note="")
        evaluation = evaluate(
            model,
            batches.epoch(0),
            threat=recipe.threat,
            attacks=attacks,
            seed=recipe.seed,
            attack_samples={a.name: stage.attack_samples[a.kind] for a in attacks if a.kind in stage.attack_samples},
            known=known,
            progress=lambda what, done, total: bar.update(task, advance=1, note=what),
            keep=partial(save_verdicts, files / STATE, meta=header, examples=True),
        )
    _keep(files, evaluation, header)
    began = time.perf_counter()
    if parts is not None and stage.corrupted_by is not None:
        corrupted[stage.corrupted_by] = _corrupted(folder.name, model, parts, console)
        found = {source: one.plain() for source, one in corrupted.items()}
        write_json(folder / CORRUPTIONS, {"network": network, "seed": recipe.seed, "corrupted": found})
    seconds = evaluation.seconds + time.perf_counter() - began
    size, _ = macs(model, data.shape)
    record = evaluation.record(
        stage=folder.name,
        seed=recipe.seed,
        macs=size.kept,
        macs_dense=size.dense,
        corrupted=corrupted,
        **meta.facts(),
    ).model_copy(update={"seconds": seconds})
    figures = {"sparsity": record.sparsity, "clean": record.clean_accuracy, **record.robust_accuracy}
    figures |= {f"corruptions ({source})": one.mean_accuracy for source, one in corrupted.items()}
    console.print(f"{folder}: {', '.join(f'{name} {value:.3f}' for name, value in figures.items())}")
    return record


def check(
    checkpoint: Checkpoint, recipe: Recipe, samples: int, *, data: Dataset, fabric: Fabric
) -> tuple[list[Check], Path]:
    """Sanity checks of a checkpoint on the first `samples` test images, and the file that keeps them.

    Raises:
        SpecError: if the recipe has no threat model.
    """
    if recipe.threat is None:
        raise SpecError("checks need a threat model; add `--set 'threat={norm: linf, eps: 8/255}'`")
    files = place(checkpoint, recipe.threat)
    images = data.test.take(samples)
    (batch,) = images.batches(len(images), seed=0, device=fabric.device).epoch(0)
    known, _ = _known(files, checkpoint.digest, recipe.threat, {})
    verified = _verified(checkpoint.folder, recipe.threat)
    model = fabric.to_device(checkpoint.network())
    found = run_checks(model, batch, recipe.threat, seed=recipe.seed, verdicts=known, verified=verified)
    write_json(files / CHECKS, [one.plain() for one in found])
    return found, files / CHECKS


def _verified(folder: Path, threat: ThreatModel) -> Tensor | None:
    """(n,) bool: which of the first test images one of the bounds on file proves robust; None without any."""
    proofs: dict[int, bool] = {}
    for path in folder.glob(f"verified-*,eps={threat.eps:g}.jsonl") if threat.norm == "linf" else ():
        # A last line without an end is being written.
        for line in path.read_text().split("\n")[:-1]:
            record = json.loads(line)
            proofs[record["index"]] = proofs.get(record["index"], False) or record["verified"]
    return torch.tensor([proofs.get(index, False) for index in range(max(proofs) + 1)]) if proofs else None


def place(checkpoint: Checkpoint, threat: ThreatModel | None) -> Path:
    """Where the files of an evaluation lie: next to the checkpoint, or below it for another threat than its own."""
    if threat is None or checkpoint.meta.threat in (None, threat):
        return checkpoint.folder
    return inside(checkpoint.folder, checkpoint.folder / threat.label)


def _transfer(name: str, origin: Checkpoint) -> Attack:
    return Transfer(surrogate=origin.network(), origin=name, digest=origin.digest)


def _known(
    files: Path, network: str, threat: ThreatModel | None, settings: Mapping[str, Any]
) -> tuple[Evaluation | None, dict[str, Any]]:
    """Verdicts on this network that were not made by one of the attacks with other settings; and their settings."""
    path = files / STATE if (files / STATE).exists() else files / VERDICTS
    if not path.exists():
        return None, {}
    found, meta = load_verdicts(path)
    if meta["network"] != network or found.threat != threat:
        return None, {}
    same = {name: how for name, how in meta["attacks"].items() if settings.get(name, how) == how}
    # Only a killed call's time belongs to this one.
    return replace(found.only(set(same)), seconds=found.seconds if path.name == STATE else 0.0), same


def _known_corrupted(folder: Path, network: str, seed: int) -> dict[str, Corrupted]:
    """Source -> accuracy under its corruptions, as far as this network has it on file from this seed."""
    path = folder / CORRUPTIONS
    before = read_json(path) if path.exists() else {}
    if (before.get("network"), before.get("seed")) != (network, seed):
        return {}
    return {source: Corrupted.parse(found, f"{path}: {source}") for source, found in before["corrupted"].items()}


def _to_corrupt(stage: Evaluate, images: Images, seed: int, known: dict[str, Corrupted]) -> Files | Made | None:
    """The corrupted images that the stage asks for, unless accuracy on as many of them is known."""
    if stage.corrupted_by is None:
        return None
    from hydraprune.evaluate.corruptions import Made, offered, read_files  # slow to import, and seldom needed

    parts: Files | Made
    if isinstance(stage.corruptions, Path):
        parts = read_files(stage.corruptions, images.shape, stage.samples, stage.batch_size)
    else:
        parts = Made(images.batches(stage.batch_size, seed=0), offered(images.shape[0]), seed)
    done = known.get(stage.corrupted_by)
    return parts if done is None or done.samples < parts.samples else None


def _corrupted(name: str, model: nn.Module, parts: Files | Made, console: Console) -> Corrupted:
    from hydraprune.evaluate.corruptions import corruption_accuracy

    with progress_bar(console) as bar:
        task = bar.add_task(f"{name}: corruptions", total=len(parts), note="")
        return corruption_accuracy(model, parts, progress=lambda what: bar.update(task, advance=1, note=what))


def _keep(files: Path, found: Evaluation, header: dict[str, Any]) -> None:
    """Write the files; the state goes last, so that a kill in between loses nothing."""
    attacks = [name for name, example in found.example.items() if len(example["label"])]
    if attacks and found.threat is not None:
        strongest = min(attacks, key=lambda name: found.robust_accuracy[name])
        save_tensors(files / EXAMPLES, found.example[strongest], {"attack": strongest, "eps": found.threat.eps})
    if found.distance and found.threat is not None:
        radii = torch.linspace(0, FARTHEST * found.threat.eps, POINTS, dtype=torch.float64)
        curves = {
            name: {"eps": radii.tolist(), "accuracy": accuracy.tolist()}
            for name, accuracy in found.security(radii).items()
        }
        before = read_json(files / CURVES) if (files / CURVES).exists() else {}
        write_json(files / CURVES, before | {"security": curves})
    save_verdicts(files / VERDICTS, found, header)
    (files / STATE).unlink(missing_ok=True)
