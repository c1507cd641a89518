"""Commands: each parses its options and makes one call down."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from lightning_fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console

from hydraprune.attacks import ATTACKS
from hydraprune.bounds import BOUNDS
from hydraprune.cli import study as studies
from hydraprune.cli.build import prune_recipe
from hydraprune.cli.console import console
from hydraprune.cli.options import Settings
from hydraprune.core.checkpoint import write_json
from hydraprune.core.errors import HydrapruneError, SpecError
from hydraprune.data import SOURCES
from hydraprune.masks import BUDGETS, STRUCTURES
from hydraprune.nets import names as net_names
from hydraprune.objectives import OBJECTIVES
from hydraprune.pruners import PRUNERS
from hydraprune.recipes import benchmark as benchmarks
from hydraprune.recipes import certify as certificates
from hydraprune.recipes import library
from hydraprune.recipes import measure as measuring
from hydraprune.recipes.checkpoint import load
from hydraprune.recipes.runner import fabric_for
from hydraprune.recipes.runner import run as run_recipe
from hydraprune.recipes.schema import Recipe
from hydraprune.recipes.stages import Evaluate
from hydraprune.report import as_table, draw, rows, write_page
from hydraprune.study import load_study
from hydraprune.study import names as study_names

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prune networks with the robust training objective itself, and measure what is left of their robustness.",
)

Out = Annotated[Path, typer.Option("--out", help="Folder of the run; an unfinished one is resumed")]


@app.command("list")
def list_() -> None:
    """Recipes, and the names that a recipe may use."""
    _section("recipes", ((name, library.load_recipe(name).about) for name in library.names()))
    _section("studies", ((name, load_study(name).about) for name in study_names()))
    _section("nets", ((name, "") for name in [*net_names(), "timm:NAME", "package.module:factory"]))
    for registry in (SOURCES, OBJECTIVES, PRUNERS, BUDGETS, STRUCTURES, ATTACKS, BOUNDS):
        lines = ((name, (registry.get(name).__doc__ or "").strip().splitlines()[0]) for name in registry.names())
        _section(f"{registry.noun}s", lines)


@app.command()
def show(
    recipe: Annotated[str, typer.Argument(help="Name or YAML file")],
    set_: Settings = None,
) -> None:
    """The resolved recipe as YAML, defaults included."""
    print(library.dump_recipe(library.load_recipe(recipe, set_ or [])), end="")


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="Name or YAML file")],
    out: Out,
    set_: Settings = None,
) -> None:
    """Run a recipe; go on where an earlier run into the same folder stopped."""
    _run(library.load_recipe(recipe, set_ or []), out)


@app.command()
def prune(
    net: Annotated[str, typer.Option(help="Built-in net, timm:NAME or package.module:factory")],
    data: Annotated[str, typer.Option(help="digits, cifar10, svhn or images")],
    out: Out,
    weights: Annotated[Path | None, typer.Option(help="Pre-trained weights; without them a stage pre-trains")] = None,
    objective: Annotated[str, typer.Option(help="See `hydraprune list`")] = "trades",
    eps: Annotated[str, typer.Option(help="Radius of the adversary, in pixels of [0, 1]")] = "8/255",
    norm: Annotated[str, typer.Option(help="linf or l2")] = "linf",
    sparsity: Annotated[str, typer.Option(help="Fraction of weights to remove, in [0, 1)")] = "0.9",
    pruner: Annotated[str, typer.Option(help="See `hydraprune list`")] = "hydra",
    normalize: Annotated[str | None, typer.Option(help="cifar10, cifar100 or imagenet")] = None,
    set_: Settings = None,
) -> None:
    """Prune a network of yours: learn the mask, fine-tune, evaluate, with the schedule of the paper."""
    values = prune_recipe(
        net=net,
        data=data,
        weights=weights,
        objective=objective,
        threat={"norm": norm, "eps": eps},
        sparsity=sparsity,
        pruner=pruner,
        normalize=normalize,
    )
    _run(library.resolve(values, set_ or [], "prune"), out)


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a finished stage, such as RUN/finetune")],
    attacks: Annotated[
        str | None, typer.Option(help="Names, separated by commas; pgd unless there are --corruptions")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="First test images; all by default")] = None,
    transfer_from: Annotated[Path | None, typer.Option(help="Also try images found on this checkpoint")] = None,
    corruptions: Annotated[
        str | None, typer.Option(metavar="true|FOLDER", help="Common corruptions, or the folder of CIFAR-10-C")
    ] = None,
    set_: Settings = None,
) -> None:
    """Clean and robust accuracy of a checkpoint, under the threat model of its recipe (or `--set threat.eps=...`).

    Also accuracy under common corruptions. What was measured before with the same settings is taken over.
    """
    recipe = _recipe_of(checkpoint, set_)
    if attacks is None and corruptions is None:
        attacks = "pgd"
    names = attacks.split(",") if attacks else []
    stage = Evaluate.parse({"attacks": names, "samples": samples, "corruptions": corruptions or False}, "evaluate")
    fabric = fabric_for(recipe.trainer)
    others = {} if transfer_from is None else {transfer_from.name: transfer_from}
    record = measuring.measure(
        checkpoint, recipe, stage, data=recipe.data.load(), fabric=fabric, console=console, surrogates=others
    )
    path = measuring.place(checkpoint, load(checkpoint)[1], recipe.threat) / "evaluation.json"
    write_json(path, record.plain())
    console.print(f"written to {path}")


@app.command()
def check(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a finished stage, such as RUN/finetune")],
    samples: Annotated[int, typer.Option(min=1, help="First test images")] = 200,
    set_: Settings = None,
) -> None:
    """Sanity checks against false security: is the robustness real? Exit code 1 if one fails."""
    recipe = _recipe_of(checkpoint, set_)
    found, path = measuring.check(
        checkpoint, recipe, samples, data=recipe.data.load(), fabric=fabric_for(recipe.trainer)
    )
    for one in found:
        verdict = {True: "[green]pass[/]", False: "[red]FAIL[/]", None: "[dim]none[/]"}[one.passed]
        console.print(f"{verdict} {one.name}: {one.found}", highlight=False)
        if one.passed is False:
            console.print(f"     expected: {one.expected}; {one.why}", highlight=False, markup=False)
    console.print(f"written to {path}")
    if any(one.passed is False for one in found):
        raise typer.Exit(1)


@app.command()
def benchmark(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a finished stage, such as RUN/finetune")],
    name: Annotated[str | None, typer.Option(help="Of the method, such as HYDRA_Sehwag2020Hydra")] = None,
    samples: Annotated[int, typer.Option(min=1, help="First test images; fewer than 10,000 make no claim")] = 10_000,
    set_: Settings = None,
) -> None:
    """The adversarial pruning benchmark's protocol and a stricter one, as a claim with the measured sparsity."""
    recipe = _recipe_of(checkpoint, set_)
    claim, path = benchmarks.benchmark(
        checkpoint,
        recipe,
        data=recipe.data.load(),
        fabric=fabric_for(recipe.trainer),
        console=console,
        name=name,
        samples=samples,
    )
    console.print(claim["name"], highlight=False)
    for reason in claim["reasons"]:
        console.print(f"not eligible: {reason}", highlight=False, markup=False)
    console.print(f"written to {path}")


@app.command()
def verify(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a finished stage, such as RUN/finetune")],
    bounds: Annotated[str, typer.Option(help="Names, separated by commas; see `hydraprune list`")] = "best",
    eps: Annotated[str | None, typer.Option(help="Radius of the adversary; that of the recipe by default")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="First test images; all by default")] = None,
    set_: Settings = None,
) -> None:
    """Verified accuracy of a checkpoint: bounds that hold whatever an adversary does inside of a linf ball."""
    recipe = _recipe_of(checkpoint, [*(set_ or []), *([] if eps is None else [f"threat.eps={eps}"])])
    _certify(checkpoint, recipe, "verification", {"bounds": bounds.split(","), "samples": samples})


@app.command()
def certify(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a finished stage, such as RUN/finetune")],
    sigma: Annotated[str, typer.Option(help="Standard deviation of the noise, in pixels of [0, 1]; that of training")],
    n0: Annotated[int, typer.Option(help="Draws that choose the class")] = 100,
    n: Annotated[int, typer.Option(help="Draws that bound its probability; more give larger radii")] = 100_000,
    alpha: Annotated[float, typer.Option(help="Probability that a certificate is wrong")] = 0.001,
    radii: Annotated[str, typer.Option(help="l2 radii to report, in pixels")] = "0,0.25,110/255,0.5,0.75",
    every: Annotated[int, typer.Option(help="Certify each EVERY-th image")] = 1,
    samples: Annotated[int | None, typer.Option(min=1, help="First test images; all by default")] = None,
    set_: Settings = None,
) -> None:
    """Certified accuracy of a checkpoint under Gaussian noise: randomized smoothing, in l2."""
    smoothing = {"sigma": sigma, "n0": n0, "n": n, "alpha": alpha, "every": every}
    stage = {"smoothing": smoothing, "radii": radii.split(","), "samples": samples}
    _certify(checkpoint, _recipe_of(checkpoint, set_), "certification", stage)


app.command()(studies.study)
app.command()(studies.table)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or folders of run folders such as a study")],
    out: Annotated[Path, typer.Option(help="The page, an HTML file")] = Path("report.html"),
) -> None:
    """One page about runs that opens from disk: figures, curves, checks, masks, examples, recipes."""
    write_page(runs, out)
    console.print(f"written to {out}")


def _recipe_of(checkpoint: Path, overrides: list[str] | None) -> Recipe:
    _, meta = load(checkpoint)
    if meta.recipe is None:
        raise SpecError(f"{checkpoint} was not made by a recipe, so its data is unknown; use hydraprune from Python")
    return library.resolve(meta.recipe, overrides or [], "recipe")


def _certify(checkpoint: Path, recipe: Recipe, what: str, settings: dict[str, Any]) -> None:
    stage = certificates.Certify.parse(settings, what)
    fabric = fabric_for(recipe.trainer)
    record = certificates.certify(checkpoint, recipe, stage, data=recipe.data.load(), fabric=fabric, console=console)
    path = measuring.place(checkpoint, load(checkpoint)[1], recipe.threat) / f"{what}.json"
    write_json(path, record.plain())
    console.print(f"written to {path}")


def _run(recipe: Recipe, out: Path) -> None:
    run_recipe(recipe, out, console)
    _summarize(recipe, out)


@rank_zero_only
def _summarize(recipe: Recipe, out: Path) -> None:
    if (out / "results.json").exists():
        results = rows([out])
        console.print(as_table(results))
        draw(results, out / "robust_accuracy.png", recipe.name)
    console.print(f"written to {out}")


def _section(title: str, lines: Iterable[tuple[str, str]]) -> None:
    console.print(f"[bold]{title}[/bold]")
    for name, about in lines:
        console.print(f"  {name:<28} {about}", highlight=False, markup=False, soft_wrap=True)


def main() -> None:
    """Entry point: a user's error is one line on standard error and exit code 2."""
    # Factories of the user's own, `package.module:factory`, may lie in the working directory.
    sys.path.insert(0, "")
    try:
        app()
    except HydrapruneError as error:
        line = " ".join(str(error).splitlines())
        Console(stderr=True).print(f"error: {line}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
