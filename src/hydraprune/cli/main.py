"""Commands: each parses its options and makes one call down."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from hydraprune.cli import checkpoint, deploy, imports
from hydraprune.cli import study as studies
from hydraprune.cli.console import console, draw, first, printable, tell
from hydraprune.cli.options import Out, Runs, Settings, Vary
from hydraprune.core.errors import HydrapruneError, SpecError
from hydraprune.core.files import output_file
from hydraprune.runs.files import PICTURE, RESULTS

if TYPE_CHECKING:
    from hydraprune.recipes.schema import Recipe

# What a command needs beside its options it imports itself: torch takes seconds.
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prune networks with the robust training objective itself, and measure what is left of their robustness.",
)


@app.command("list")
def list_() -> None:
    """Recipes, and the names that a recipe may use."""
    from hydraprune.attacks import ATTACKS
    from hydraprune.bounds import BOUNDS
    from hydraprune.data import SOURCES
    from hydraprune.deploy import FORMATS
    from hydraprune.masks import BUDGETS, STRUCTURES
    from hydraprune.nets.built_in import names as net_names
    from hydraprune.objectives import OBJECTIVES
    from hydraprune.pruners import PRUNERS
    from hydraprune.recipes import STAGES, library
    from hydraprune.runs import named
    from hydraprune.study import schema

    _section("recipes", ((name, library.about(name)) for name in library.names()))
    _section("studies", ((name, schema.about(name)) for name in schema.names()))
    others = ["wrn_DEPTH_WIDTH", "timm:NAME", "torchvision:NAME", "package.module:factory"]
    _section("nets", ((name, "") for name in [*net_names(), *others]))
    _section("zoo", ((f"zoo:{name}", named.about(name)) for name in named.zoo_names()))
    for registry in (SOURCES, STAGES, OBJECTIVES, PRUNERS, BUDGETS, STRUCTURES, ATTACKS, BOUNDS, FORMATS):
        _section(f"{registry.noun}s", ((name, registry.about(name)) for name in registry.names()))


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="RECIPE|STUDY", help="Name or YAML file")], set_: Settings = None
) -> None:
    """The resolved recipe as YAML, defaults included; or a study."""
    from hydraprune.recipes import library
    from hydraprune.study import schema

    print(library.dump(schema.load(name, set_ or [])), end="")


@app.command()
def run(
    name: Annotated[str, typer.Argument(metavar="RECIPE|STUDY", help="Name or YAML file")],
    out: Out,
    set_: Settings = None,
    vary: Vary = None,
) -> None:
    """Run a recipe or a study; go on where an earlier run into the same folder stopped."""
    from hydraprune.study import schema

    loaded = schema.load(name, set_ or [], vary or [])
    if isinstance(loaded, schema.Study):
        studies.run_all(loaded, out)
    else:
        _run(loaded, out)


@app.command()
def prune(
    net: Annotated[str, typer.Option(help="Built-in net, timm:NAME, torchvision:NAME or package.module:factory")],
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
    from hydraprune.recipes import library

    settings = {
        "name": f"prune-{net}".replace(":", "-"),
        "data": {"kind": data},
        "net": {"kind": net, "weights": None if weights is None else str(weights), "normalize": normalize},
        "threat": {"norm": norm, "eps": eps},
        "objective": {"kind": objective},
        "pruner": pruner,
        "sparsity": sparsity,
    }
    values = library.changed(library.whole("base-own"), settings.items())
    if weights is not None:  # nothing pre-trains, and so the last network alone is measured
        *_, evaluate = values["stages"] = [stage for stage in values["stages"] if stage.get("name") != "pretrain"]
        evaluate["of"] = None
    _run(library.resolve(values, set_ or [], "prune"), out)


app.command("import")(imports.import_)
for command in (
    *(checkpoint.evaluate, checkpoint.check, checkpoint.benchmark, checkpoint.verify, checkpoint.certify),
    *(studies.study, studies.table),
    *(deploy.export, deploy.latency),
):
    app.command()(command)


@app.command()
def report(
    runs: Runs,
    out: Annotated[Path, typer.Option(metavar="FILE", parser=output_file, help="The page, of HTML")] = Path(
        "report.html"
    ),
) -> None:
    """One page about runs that opens from disk: figures, curves, checks, masks, examples, recipes."""
    from hydraprune.report import write_page

    write_page(runs, out)
    console.print(f"written to {out}")


def _run(recipe: Recipe, out: Path) -> None:
    from hydraprune.recipes.runner import run as run_recipe
    from hydraprune.report import as_table, rows

    run_recipe(recipe, out, console)
    if not first():
        return
    if (out / RESULTS).exists():
        results = rows([out])
        console.print(as_table(results))
        draw(results, out / PICTURE, recipe.name)
    console.print(f"written to {out}")


def _section(title: str, lines: Iterable[tuple[str, str]]) -> None:
    console.print(f"[bold]{title}[/bold]")
    table = list(lines)
    width = max((len(name) for name, _ in table), default=0)
    for name, about in table:
        tell(f"  {name:<{width}}  {about}")


def main() -> None:
    """Entry point: a user's error is one line on standard error and exit code 2."""
    # Processes that this one starts by `python -c` would import what lies in the working directory, a stranger's
    # modules included. Whoever has a factory there starts with PYTHONPATH=. instead.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        app()
    except HydrapruneError as error:
        # Settings are those of all processes, so one tells what is wrong with them.
        if first() or not isinstance(error, SpecError):
            line = printable(f"error: {error}")
            Console(stderr=True).print(line, style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
