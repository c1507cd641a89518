"""A checkpoint written in a format, read again by another process, compared, measured, and described."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.core.files import output_file, staged, write_json
from hydraprune.core.tensors import save_tensors
from hydraprune.data import Dataset
from hydraprune.deploy import FORMATS, probe
from hydraprune.deploy.base import Format, Original
from hydraprune.deploy.opened import opened
from hydraprune.deploy.worth import Worth
from hydraprune.nets import Net
from hydraprune.runs.checkpoint import Checkpoint, open_checkpoint
from hydraprune.runs.lock import own
from hydraprune.runs.manifest import EXPORTS, MANIFEST, PROBE, Manifest, beside, digests, files
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
        out: the file or folder to write; by default `export/` in the checkpoint's folder.
        format: its name, or its name and settings: `{"kind": "packed", "values": "int8"}`.
        model: the network, for a checkpoint that names none; it is filled. Other processes cannot make it, so formats
            that need it to be read are compared in this one.
        shape: (C, H, W) of its images, for a checkpoint that does not say it.
        data: of its training; formats that round activations need it, and `worth`.
        worth: what is measured before and after; None measures nothing, and the manifest says so.
        trust_code: import and call the factory that the checkpoint may name; see `load`.

    Raises:
        SpecError: for an unknown format or setting, or a network that the format cannot serve.
        CheckpointError: if the checkpoint is damaged or fits no network, or what was written gives other logits.
        MissingError: without a package that the format needs.
        TrainingError: if it cannot be written; what lay there is untouched.
    """
    form = FORMATS.make(format, "format")
    form.require()
    source = Original(open_checkpoint(checkpoint, trust_code), model, shape, data)
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
        if made.is_dir():
            _describe(made, source, manifest)
    if not path.is_dir():
        _describe(path, source, manifest)
    return manifest


def _place(checkpoint: Checkpoint, out: Path | str | None, form: Format) -> Path:
    if out is not None:
        return output_file(out)
    if checkpoint.folder.is_file():
        raise SpecError(f"{checkpoint.folder} is no folder to write into; say where to: `--out FILE`")
    return checkpoint.folder / EXPORTS / f"{form.name}{form.suffix}"


def _compared(form: Format, source: Original, made: Path, trust_code: bool | Net) -> Manifest:
    """What there is to say of what was written, once it gives the logits that it should."""
    meta, found = source.checkpoint.meta, digests(made)
    manifest = Manifest(
        format=form.plain(),
        sha256=found,
        bytes=sum(file.stat().st_size for _, file in files(made)),
        dense_bytes=sum(value.numel() * value.element_size() for value in source.checkpoint.values.values()),
        source=source.checkpoint.digest,
        threat=meta.threat,
        versions=versions(),
        probe=0,
        difference=0.0,
        logit=0.0,
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


def _describe(artifact: Path, source: Original, manifest: Manifest) -> None:
    if manifest.probe:
        images = probe.images(source.shape)
        save_tensors(beside(artifact, PROBE), {"images": images, "logits": probe.answers(source.network, images)}, {})
    if artifact.is_dir():  # where the probe is one of its files
        found = {"sha256": digests(artifact), "bytes": sum(file.stat().st_size for _, file in files(artifact))}
        manifest = manifest.model_copy(update=found)
    write_json(beside(artifact, MANIFEST), manifest.plain())
