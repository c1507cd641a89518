"""Commands that bring a checkpoint to where it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hydraprune.cli.console import console, pictured, tell
from hydraprune.cli.options import Settings, TrustCode
from hydraprune.cli.subject import Folder, bench_of, opened_by, recipe_of
from hydraprune.core.errors import SpecError


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
    from hydraprune.deploy import FORMATS, Worth
    from hydraprune.deploy.ship import export as write
    from hydraprune.recipes.library import parsed
    from hydraprune.runs.manifest import in_words
    from hydraprune.train.hooks import progress_bar

    opened = opened_by(checkpoint, trust_code)
    form: dict[str, Any] = {"kind": format, **dict(parsed(option or []))}
    data = worth = None
    with progress_bar(console) as bar:
        if samples or FORMATS.get(format).needs_data:
            recipe = recipe_of(opened, set_)
            data = bench_of(opened, recipe).data
        if samples:
            task = bar.add_task(f"{format}: measure", total=None, note="")
            worth = Worth(
                threat=recipe.threat,
                attacks=[name for name in attacks.split(",") if name],
                bounds=[name for name in bounds.split(",") if name],
                samples=samples,
                seed=recipe.seed,
                progress=lambda what, done, total: bar.update(task, note=f"{what} {done}/{total}"),
            )
        manifest = write(checkpoint, out, form, data=data, worth=worth, trust_code=trust_code)
    tell(in_words(manifest))


def latency(
    artifacts: Annotated[
        list[Path] | None, typer.Argument(help="Checkpoint folders, and what `hydraprune export` wrote")
    ] = None,
    batch: Annotated[str, typer.Option(help="Images at a time, separated by commas")] = "1,64",
    threads: Annotated[str | None, typer.Option(help="Of the CPU: 1,2; one and all of them by default")] = None,
    runtimes: Annotated[
        str | None, typer.Option(help="torch,compiled,onnxruntime,openvino; what is installed, but for compiled")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Timings of each, interleaved")] = 20,
    baseline: Annotated[
        Path | None, typer.Option(metavar="ARTIFACT", help="Others are compared with it; the first by default")
    ] = None,
    shape: Annotated[str | None, typer.Option(metavar="C,H,W", help="Of an image, where no artifact says it")] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="latency.json in the folder that the artifacts have in common by default"),
    ] = None,
    trust_code: TrustCode = False,
) -> None:
    """Time checkpoints and exported files in every runtime that takes them, on the CPU."""
    from hydraprune.deploy.latency import latency as measure
    from hydraprune.deploy.latency import place_of
    from hydraprune.report import against_size, paint, speeds
    from hydraprune.report.summary import for_terminal
    from hydraprune.runs.manifest import PROBE
    from hydraprune.train.hooks import progress_bar

    size = None if shape is None else _numbers(shape, "--shape")
    if size is not None and len(size) != 3:
        raise SpecError(f"--shape is {shape!r}; write it as C,H,W: 3,32,32")
    # What the shell makes of `export/*` has manifests, probes and pictures in it.
    timed = [artifact for artifact in artifacts or [] if not artifact.name.endswith((".json", ".png", PROBE))]
    file = place_of(timed, out)
    if file == (picture := file.with_suffix(".png")):
        raise SpecError(f"--out is {file}, where the picture would replace the figures; give a .json file")
    with progress_bar(console) as bar:
        task = bar.add_task("latency", total=None, note="")
        found = measure(
            *timed,
            batch=_numbers(batch, "--batch"),
            threads=None if threads is None else _numbers(threads, "--threads"),
            runtimes=None if runtimes is None else runtimes.split(","),
            repeats=repeats,
            baseline=baseline,
            shape=None if size is None else (size[0], size[1], size[2]),
            out=file,
            trust_code=trust_code,
            progress=lambda what, done, total: bar.update(task, completed=done, total=total, note=what),
        )
    for why in found.left_out:
        tell(why)
    console.print(for_terminal(speeds(found)))
    if charts := against_size(found):
        pictured(lambda: paint(charts, picture))
    tell(f"written to {file}")


def _numbers(text: str, option: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SpecError(f"{option} is {text!r}; write whole numbers, separated by commas: 1,64") from None
