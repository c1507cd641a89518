"""A checkpoint written in a format, read again by another process, compared, measured, and described."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.core.files import output_file, staged, write_json
from hydraprune.core.network import image_of
from hydraprune.core.results import Record
from hydraprune.core.tensors import save_tensors
from hydraprune.data import Dataset
from hydraprune.deploy import FORMATS, probe
from hydraprune.deploy.base import Format, Original
from hydraprune.deploy.opened import opened
from hydraprune.deploy.worth import Worth
from hydraprune.nets import Net
from hydraprune.runs.checkpoint import Checkpoint, open_checkpoint
from hydraprune.runs.folder import RunFolder, is_run
from hydraprune.runs.lock import own
from hydraprune.runs.manifest import EXPORTS, MANIFEST, PROBE, Manifest, beside, digests, files, manifest_of
from hydraprune.runs.meta import versions

TOLERANCE = 1e-4
"""By what share of the largest logit those of a format that does not round may differ from the source's."""


def export(
    checkpoint: Path | str,
    out: Path | str | None = None,
    format: Format | str | Mapping[str, Any] = "packed",
    *,
    model: nn.Module | None = None,
    shape: tuple[int, int, int] | None = None,
    data: Dataset | None = None,
    worth: Worth | None = None,
    trust_code: bool | Net = False,
) -> Manifest:
    """Write a checkpoint in a format, and a manifest and a probe beside it.

    What is written is read by another process and compared with the source on the images of the probe, and, with
    `worth`, its accuracies are measured, before it takes the place of what lay there.

    Args:
        checkpoint: folder of a finished stage, or of `save`; or one file that this wrote.
        out: the file or folder to write, where nothing lies but an earlier export; by default one in `export/` in the
            checkpoint's folder.
        format: its name, or its name and settings: `{"kind": "packed", "values": "int8"}`.
        model: the network, for a checkpoint that names none; it is filled. Other processes cannot make it, so formats
            that need it to be read are compared in this one.
        shape: (C, H, W) of its images, for a checkpoint that does not say it.
        data: of its training; formats that round activations need it, and `worth`.
        worth: what is measured before and after; None measures nothing, and the manifest says so.
        trust_code: import and call the factory that the checkpoint may name; see `load`.

    Raises:
        SpecError: for an unknown format or setting, a network that the format cannot serve, or a place where something
            else than an export lies.
        CheckpointError: if the checkpoint is damaged or fits no network, or what was written gives other logits.
        MissingError: without a package that the format needs.
        TrainingError: if it cannot be written; what lay there is untouched.
    """
    form = FORMATS.make(format, "format")
    form.require()
    if data is not None and not (hasattr(data, "train") and hasattr(data, "test")):
        raise SpecError(f"`data` is a {type(data).__name__}; give a data set with train and test: hp.load_data(...)")
    size = None if shape is None else image_of(shape)
    source = Original(open_checkpoint(checkpoint, trust_code), model, size, data)
    form.check(source)
    if worth is not None:
        worth.refuse_unless_possible(source)
    path = _place(source.checkpoint, out, form)
    with own(path.parent), staged(path) as made:
        form.write(source, made)
        manifest = _compared(form, source, made, trust_code)
        if worth is not None:
            before, after = worth.measured(form, source, made, trust_code)
            manifest = manifest.model_copy(update={"before": before, "after": after})
        manifest = _describe(form, made, source, manifest)
        if not made.is_dir():
            # Before the file itself: a file without its manifest is none of ours, and would not be replaced.
            _settle(made, path)
    form.publish(path)
    return manifest


def _place(checkpoint: Checkpoint, out: Path | str | None, form: Format) -> Path:
    """Where to write; what lies there is nothing but an earlier export, and not what is exported."""
    if out is None:
        if checkpoint.folder.is_file():
            raise SpecError(
                f"{checkpoint.folder} is no folder to write into; say where to: `--out {form.name}{form.suffix}`"
            )
        path = checkpoint.folder / EXPORTS / f"{form.name}{form.suffix}"
    else:
        path = output_file(out)
    if path.is_dir() and (form.suffix or not _replaceable(path)):
        what = "a file" if form.suffix else "a folder of its own"
        raise SpecError(f"{path} is a folder with other things in it, and {form.kind!r} writes {what}; choose another")
    if not form.suffix and path.is_file():
        raise SpecError(f"{path} is a file, and {form.kind!r} writes a folder; choose another path")
    if (path.suffix == ".onnx") != (form.suffix == ".onnx"):  # by which programs tell what a file is
        raise SpecError(f"{form.kind!r} writes no file called {path.name}; call it {path.stem}{form.suffix}")
    if checkpoint.folder.resolve().is_relative_to(path.resolve()):
        raise SpecError(f"{path} is what is exported, and would be replaced; choose another path")
    there = [file for file in (path, beside(path, MANIFEST)) if os.path.lexists(file)] if form.suffix else []
    if there and manifest_of(path) is None:
        raise SpecError(f"{there[0]} is there already, and is no export; choose another path, or move it away")
    return path


def _replaceable(folder: Path) -> bool:
    """Whether nothing would be lost with it: it is empty, or holds what an export wrote and no other file."""
    if not any(folder.iterdir()):
        return True
    manifest = manifest_of(folder)
    return manifest is not None and all(
        file.relative_to(folder).as_posix() in {MANIFEST, *manifest.sha256}
        for file in folder.rglob("*")
        if file.is_symlink() or not file.is_dir()
    )


def _settle(made: Path, path: Path) -> None:
    """Bring what is said of a file to where it will lie."""
    for name in (PROBE, MANIFEST):
        if beside(made, name).is_file():
            beside(made, name).replace(beside(path, name))
        else:
            beside(path, name).unlink(missing_ok=True)


def _compared(form: Format, source: Original, made: Path, trust_code: bool | Net) -> Manifest:
    """What there is to say of what was written, once it gives the logits that it should."""
    meta, found = source.checkpoint.meta, digests(made)
    manifest = Manifest(
        format=form.plain(),
        sha256=found,
        bytes=sum(file.stat().st_size for _, file in files(made)),
        dense_bytes=sum(value.numel() * value.element_size() for value in source.checkpoint.values.values()),
        net=None if meta.net is None else meta.net.kind,
        data=(meta.recipe or {}).get("data", {}).get("kind"),
        source=source.checkpoint.digest,
        threat=meta.threat,
        versions=versions(),
        probe=0,
        difference=0.0,
        logit=0.0,
        rounds=form.rounds,
        known=_known(source.checkpoint),
        **{key: getattr(meta, key) for key in ("pruner", "sparsity", "kept", "total", "layers")},
    )
    if meta.net is None and source.given is None:
        return manifest
    images = probe.images(source.shape)
    expected = probe.answers(source.network, images)
    here = probe.answers(opened(made, trust_code, source.given), images)
    elsewhere = form.alone or meta.net is not None
    there = probe.elsewhere(made, images, made.parent, bool(trust_code)) if elsewhere else here
    logit = float(expected.abs().max())
    for other, who in ((here, "this process"), *(() if form.rounds else ((expected, "its source"),))):
        off = float((there - other).abs().max())
        if not off <= TOLERANCE * logit:
            raise CheckpointError(
                f"{form.kind!r} gives logits that differ by {off:.2g} from those of {who}, of which the largest is "
                f"{logit:.2g}, so it was not kept"
            )
    difference = float((there - expected).abs().max())
    return manifest.model_copy(update={"probe": len(images), "difference": difference, "logit": logit})


def _known(checkpoint: Checkpoint) -> Record | None:
    """What its run, and later commands, measured of a checkpoint."""
    run, name = checkpoint.folder.parent, checkpoint.folder.name
    networks = RunFolder(run).networks if is_run(run) else []
    return next((n.known for n in networks if (n.stage, n.digest) == (name, checkpoint.digest)), None)


def _describe(form: Format, artifact: Path, source: Original, manifest: Manifest) -> Manifest:
    if manifest.probe:
        images = probe.images(source.shape)
        save_tensors(beside(artifact, PROBE), {"images": images, "logits": probe.answers(source.network, images)}, {})
    form.describe(source, artifact, manifest)
    if artifact.is_dir():
        manifest = manifest.model_copy(update={"sha256": digests(artifact)})
    write_json(beside(artifact, MANIFEST), manifest.plain())
    return manifest
