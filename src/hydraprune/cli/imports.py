"""The command that takes in other people's checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hydraprune.cli.console import console, tell
from hydraprune.cli.options import TrustCode
from hydraprune.core.errors import SpecError
from hydraprune.core.files import output_folder


def import_(
    source: Annotated[
        str,
        typer.Argument(metavar="FILE|FOLDER|NAME", help="Their checkpoint, or its folder; or an export, or zoo:NAME"),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", parser=output_folder, help="Without a checkpoint in it")],
    net: Annotated[
        str | None, typer.Option(help="Built-in net, timm:NAME, torchvision:NAME or package.module:factory")
    ] = None,
    format_: Annotated[
        str, typer.Option("--format", help="auto, hydra, harp, benchmark, robustbench, torchvision or timm")
    ] = "auto",
    keep: Annotated[float | None, typer.Option(help="Share of weights that scores keep; 1 takes them dense")] = None,
    sparsity: Annotated[float | None, typer.Option(help="Instead of --keep: the share that they remove")] = None,
    num_classes: Annotated[int, typer.Option(min=1, help="Classes")] = 10,
    in_channels: Annotated[int, typer.Option(min=1, help="Channels of an image")] = 3,
    image_size: Annotated[int, typer.Option(min=1, help="Side of an image")] = 32,
    normalize: Annotated[
        str | None, typer.Option(help="cifar10, cifar100 or imagenet: pixels are normalised so, inside of the network")
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Make a checkpoint of somebody else's one of ours, which every command takes. Nothing in it is run."""
    if keep is not None and sparsity is not None:
        raise SpecError(f"--keep {keep:g} and --sparsity {sparsity:g} say the same thing; give one of them")
    if sparsity is not None:
        keep = round(1 - sparsity, 12)
    from hydraprune.runs.imports import import_checkpoint

    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    settings = None if net is None else {"kind": net, "normalize": normalize}
    found = import_checkpoint(source, out, settings, layout=format_, keep=keep, trust_code=trust_code, **sizes)
    for note in found.notes:
        tell(note)
    meta = found.meta
    tell(f"{meta.kept:,} of {meta.total:,} weights, {100 * meta.sparsity:.2f} % sparse")
    console.print(f"written to {out}")
