"""Measures a checkpoint, and keeps verdicts, examples, curves, corruptions and sanity checks next to it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from torch import Tensor, nn

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.core.files import inside, read_json, write_json
from hydraprune.core.results import Corrupted, Record, Subject
from hydraprune.core.spec import Spec
from hydraprune.core.tensors import save_tensors
from hydraprune.core.threat import ThreatModel
from hydraprune.data import Images
from hydraprune.evaluation import Evaluation, evaluate
from hydraprune.evaluation.checks import Check
from hydraprune.evaluation.checks import check as run_checks
from hydraprune.evaluation.records import network_key, read_records
from hydraprune.evaluation.size import macs
from hydraprune.evaluation.verdicts import Origin
from hydraprune.evaluation.verdicts import load as load_verdicts
from hydraprune.evaluation.verdicts import save as save_verdicts
from hydraprune.evaluation.verification import VerifiedImage
from hydraprune.recipes.stages import Bench
from hydraprune.runs.checkpoint import Checkpoint
from hydraprune.train.hooks import progress_bar

if TYPE_CHECKING:
    from hydraprune.evaluation.corruptions import Files, Made
    from hydraprune.recipes.evaluate import Evaluate

VERDICTS, EXAMPLES, CURVES, CHECKS = "verdicts.safetensors", "examples.safetensors", "curves.json", "checks.json"
CORRUPTIONS = "corruptions.json"
STATE = "evaluation.state.safetensors"
FARTHEST, POINTS = 4, 41
"""A security curve reaches to so many radii of the threat model, at so many points."""


class Corruptions(Spec):
    """What `corruptions.json` holds: figures of one network on one set of images, by source of the corruptions."""

    network: str
    images: str
    made: dict[str, str]
    corrupted: dict[str, Corrupted]


def measure(
    checkpoint: Checkpoint,
    stage: Evaluate,
    bench: Bench,
    others: Mapping[str, Checkpoint],
    on_file: Mapping[str, str],
) -> Record:
    """Clean and robust accuracy of a checkpoint under the recipe's threat model, and under corruptions.

    Verdicts that are kept there already, of the same network and with the same settings, are taken over; a killed call
    goes on after the last batch of an attack that it finished.

    Returns:
        The record of everything that is known of the checkpoint under this threat model.
    """
    stage.require()
    folder, recipe, fabric, test = checkpoint.folder, bench.recipe, bench.fabric, bench.data.test
    model = fabric.to_device(checkpoint.network())
    subject = bench.subject(checkpoint)
    files = place(checkpoint, subject)
    made = {**on_file, **stage.made(subject, {name: other.digest for name, other in others.items()})}
    fewer = stage.attack_samples
    asked = {attack.name for attack in stage.attacks}
    known, earlier, unfinished = _known(files, subject, made, asked, test.labels)
    origin = Origin(network=subject.network, images=subject.images, made=earlier | made)
    images = test if stage.samples is None else test.take(stage.samples)
    batches = images.batches(stage.batch_size, seed=0, device=fabric.device)
    # Before the attacks, so that a folder that does not fit is told at once.
    beside = place(checkpoint, replace(subject, threat=None))
    corrupted = _known_corrupted(beside, subject, made)
    parts = _to_corrupt(stage, images, recipe.seed, corrupted.corrupted)
    with progress_bar(bench.console) as bar:
        task = bar.add_task(f"{folder.name}: evaluate", total=(1 + len(stage.attacks)) * len(batches), note="")
        evaluation = evaluate(
            model,
            batches.epoch(0),
            threat=recipe.threat,
            attacks=stage.attacks,
            networks={name: other.network() for name, other in others.items()},
            seed=recipe.seed,
            attack_samples={a.name: fewer[a.kind] for a in stage.attacks if a.kind in fewer},
            known=known,
            progress=lambda what, done, total: bar.update(task, advance=1, note=what),
            keep=partial(save_verdicts, files / STATE, origin=origin, examples=True),
        )
    whole = evaluation.only({*evaluation.survived} - unfinished)
    _keep(files, whole, origin)
    if unfinished:  # of a killed call with other attacks, which may go on
        save_verdicts(files / STATE, evaluation.only(unfinished), origin, examples=True)
    else:
        (files / STATE).unlink(missing_ok=True)
    began = time.perf_counter()
    if parts is not None and stage.corrupted_by is not None:
        source = stage.corrupted_by
        corrupted.corrupted[source] = _corrupted(folder.name, model, parts, bench.console)
        corrupted.made[source] = made[source]
        write_json(beside / CORRUPTIONS, corrupted.plain())
    seconds = evaluation.seconds + time.perf_counter() - began
    size, _ = macs(model, bench.data.shape)
    record = whole.record(
        stage=folder.name,
        seed=recipe.seed,
        images=subject.images,
        macs=size.kept,
        macs_dense=size.dense,
        corrupted=corrupted.corrupted,
        **checkpoint.meta.facts(),
    )
    every = earlier | made | corrupted.made
    shown = {name: every[name] for name in every if name in record.figures()}
    record = record.model_copy(update={"seconds": seconds, "made": shown})
    bench.console.print(f"{folder}: {_in_words(record)}")
    return record


def _in_words(record: Record) -> str:
    figures = {"sparsity": record.sparsity, "clean": record.clean_accuracy, **record.robust_accuracy}
    figures |= {f"corruptions ({source})": one.mean_accuracy for source, one in record.corrupted.items()}
    fewer = {name: f" on {count} of {record.samples}" for name, count in record.robust_samples.items()}
    return ", ".join(f"{name} {value:.3f}{fewer.get(name, '')}" for name, value in figures.items())


def check(checkpoint: Checkpoint, samples: int, bench: Bench) -> tuple[list[Check], Path]:
    """Sanity checks of a checkpoint on the first `samples` test images, and the file that keeps them.

    Raises:
        SpecError: if the recipe has no threat model.
    """
    recipe, test = bench.recipe, bench.data.test
    if recipe.threat is None:
        raise SpecError("checks need a threat model; add `--set 'threat={norm: linf, eps: 8/255}'`")
    subject = bench.subject(checkpoint)
    files = place(checkpoint, subject)
    images = test.take(samples)
    (batch,) = images.batches(len(images), seed=0, device=bench.fabric.device).epoch(0)
    known, _ = _verdicts(files / VERDICTS, subject, {}, test.labels)
    model = bench.fabric.to_device(checkpoint.network())
    verified = _verified(place(checkpoint, replace(subject, threat=None)), model, recipe.threat)
    found = run_checks(model, batch, recipe.threat, seed=recipe.seed, verdicts=known, verified=verified)
    write_json(files / CHECKS, [one.plain() for one in found])
    return found, files / CHECKS


def _verified(files: Path, model: nn.Module, threat: ThreatModel) -> Tensor | None:
    """(n,) bool: which of the first test images one of the bounds on file proves robust; None without any."""
    proofs: dict[int, bool] = {}
    for path in files.glob(f"verified-*,eps={threat.eps:g}.jsonl") if threat.norm == "linf" else ():
        for record in read_records(VerifiedImage, path, network=network_key(model)):
            proofs[record.index] = proofs.get(record.index, False) or record.verified
    return torch.tensor([proofs.get(index, False) for index in range(max(proofs) + 1)]) if proofs else None


def place(checkpoint: Checkpoint, subject: Subject) -> Path:
    """Where the files of a measurement lie.

    Next to the checkpoint, or in a folder there for another threat model, or other test images, than those of its run.
    """
    threat, images = subject.threat, checkpoint.meta.data.get("test", subject.images)
    names = [threat.label] if threat is not None and threat != checkpoint.meta.threat else []
    names += [f"images-{subject.images}"] if images != subject.images else []
    return inside(checkpoint.folder, checkpoint.folder / ",".join(names))


def _known(
    files: Path, subject: Subject, made: Mapping[str, str], asked: Collection[str], labels: Tensor
) -> tuple[Evaluation | None, dict[str, str], set[str]]:
    """Verdicts on this network and these images, but for those that `made` makes otherwise; and how they were made.

    The third part names attacks of a killed call that are not `asked` for now: they reached some images only, so they
    wait for a call that goes on with them, and are no figures.
    """
    finished, how = _verdicts(files / VERDICTS, subject, made, labels)
    killed, so_far = _verdicts(files / STATE, subject, made, labels)
    if killed is None:
        # Only a killed call's time belongs to this one.
        return finished and replace(finished, seconds=0.0), how, set()
    return killed, so_far, {*killed.survived} - {*asked} - {*(finished.survived if finished else ())}


def _verdicts(
    path: Path, subject: Subject, made: Mapping[str, str], labels: Tensor
) -> tuple[Evaluation | None, dict[str, str]]:
    if not path.exists():
        return None, {}
    found, origin = load_verdicts(path)
    if (origin.network, origin.images, found.threat) != (subject.network, subject.images, subject.threat):
        return None, {}
    if not torch.equal(found.label, labels[: len(found.label)]):
        raise CheckpointError(
            f"{path} is damaged (its labels are not those of its images); remove it, and measure again"
        )
    same = {name: how for name, how in origin.made.items() if made.get(name, how) == how}
    return found.only(set(same)), same


def _known_corrupted(files: Path, subject: Subject, made: Mapping[str, str]) -> Corruptions:
    """Accuracy of this network under corruptions of these images, but for those that `made` makes otherwise."""
    path = files / CORRUPTIONS
    fresh = Corruptions(network=subject.network, images=subject.images, made={}, corrupted={})
    if not path.exists():
        return fresh
    found = Corruptions.parse(read_json(path, "remove it; its figures are measured again"), str(path))
    if (found.network, found.images) != (subject.network, subject.images):
        return fresh
    same = {source for source, how in found.made.items() if made.get(source, how) == how}
    return fresh.model_copy(
        update={
            "made": {source: how for source, how in found.made.items() if source in same},
            "corrupted": {source: one for source, one in found.corrupted.items() if source in same},
        }
    )


def _to_corrupt(stage: Evaluate, images: Images, seed: int, known: dict[str, Corrupted]) -> Files | Made | None:
    """The corrupted images that the stage asks for, unless accuracy on as many of them is known."""
    if stage.corrupted_by is None:
        return None
    from hydraprune.evaluation.corruptions import Made, offered, read_files  # slow to import, and seldom needed

    parts: Files | Made
    if isinstance(stage.corruptions, Path):
        parts = read_files(stage.corruptions, images.shape, stage.samples, stage.batch_size)
    else:
        parts = Made(images.batches(stage.batch_size, seed=0), offered(images.shape[0]), seed)
    done = known.get(stage.corrupted_by)
    return parts if done is None or done.samples < parts.samples else None


def _corrupted(name: str, model: nn.Module, parts: Files | Made, console: Console) -> Corrupted:
    from hydraprune.evaluation.corruptions import corruption_accuracy

    with progress_bar(console) as bar:
        task = bar.add_task(f"{name}: corruptions", total=len(parts), note="")
        return corruption_accuracy(model, parts, progress=lambda what: bar.update(task, advance=1, note=what))


def _keep(files: Path, found: Evaluation, origin: Origin) -> None:
    """Write the files of what is finished."""
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
        write_json(files / CURVES, {"security": curves})
    save_verdicts(files / VERDICTS, found, origin)
