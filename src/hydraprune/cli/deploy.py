"""Commands that bring a checkpoint to where it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hydraprune.cli.console import console, tell
from hydraprune.cli.options import Settings, TrustCode
from hydraprune.cli.subject import Folder, bench_of, opened_by, recipe_of


def export(
    checkpoint: Folder,
    format: Annotated[str, typer.Option(help="See `hydraprune list`")] = "packed",
    out: Annotated[Path | None, typer.Option(help="File or folder to write; CHECKPOINT/export/ by default")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A setting of the format: values=int8")
    ] = None,
    attacks: Annotated[str, typer.Option(help="That judge it before and after, separated by commas")] = "pgd",
    samples: Annotated[int, typer.Option(min=0, help="First test images that they run on; 0 measures nothing")] = 500,
    bounds: Annotated[str, typer.Option(help="That prove accuracies too, separated by commas: best")] = "",
    trust_code: TrustCode = False,
    set_: Settings = None,
) -> None:
    """Write a checkpoint as a file or folder that is smaller or runs elsewhere; compared, and measured again."""
    from hydraprune.deploy import Worth
    from hydraprune.deploy.ship import export as write
    from hydraprune.recipes.library import parsed
    from hydraprune.runs.manifest import in_words
    from hydraprune.train.hooks import progress_bar

    opened = opened_by(checkpoint, trust_code)
    form: dict[str, Any] = {"kind": format, **dict(parsed(option or []))}
    data = worth = None
    with progress_bar(console) as bar:
        if samples:
            recipe = recipe_of(opened, set_)
            data = bench_of(opened, recipe).data
            task = bar.add_task(f"{format}: measure", total=None, note="")
            worth = Worth(
                threat=recipe.threat,
                attacks=attacks.split(","),
                bounds=[name for name in bounds.split(",") if name],
                samples=samples,
                seed=recipe.seed,
                progress=lambda what, done, total: bar.update(task, note=f"{what} {done}/{total}"),
            )
        manifest = write(checkpoint, out, form, data=data, worth=worth, trust_code=trust_code)
    tell(in_words(manifest))
