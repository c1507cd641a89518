"""Commands that measure a checkpoint."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from hydraprune.cli.console import console, tell
from hydraprune.cli.options import Settings, TrustCode
from hydraprune.core.errors import CheckpointError, EvaluationError, SpecError
from hydraprune.core.files import read_json, write_json
from hydraprune.runs.files import EVALUATION, META, refuse_unfinished
from hydraprune.runs.lock import own

if TYPE_CHECKING:
    from hydraprune.core.results import Record
    from hydraprune.recipes.schema import Recipe
    from hydraprune.recipes.stages import Bench
    from hydraprune.runs.checkpoint import Checkpoint

Folder = Annotated[Path, typer.Argument(help="Folder of a finished stage, such as RUN/finetune")]
P = ParamSpec("P")


def _alone(command: Callable[P, None]) -> Callable[P, None]:
    """The command, as the only writer of its checkpoint's folder."""

    @wraps(command)
    def alone(*args: P.args, **options: P.kwargs) -> None:
        folder = inspect.signature(command).bind(*args, **options).arguments["checkpoint"]
        with own(folder) if folder.is_dir() else nullcontext():
            refuse_unfinished(folder)
            try:
                command(*args, **options)
            except EvaluationError as error:
                raise EvaluationError(f"{folder}: {error}") from None

    return alone


@_alone
def evaluate(
    checkpoint: Folder,
    attacks: Annotated[
        str | None, typer.Option(help="Names, separated by commas; pgd unless there are --corruptions")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="First test images; all by default")] = None,
    transfer_from: Annotated[Path | None, typer.Option(help="Also try images found on this checkpoint")] = None,
    corruptions: Annotated[
        str | None, typer.Option(metavar="true|FOLDER", help="Common corruptions, or the folder of CIFAR-10-C")
    ] = None,
    trust_code: TrustCode = False,
    set_: Settings = None,
) -> None:
    """Clean and robust accuracy of a checkpoint, under the threat model of its recipe (or `--set threat.eps=...`).

    Also accuracy under common corruptions. What was measured before with the same settings is taken over.
    """
    from hydraprune.recipes.evaluate import Evaluate
    from hydraprune.recipes.measure import place

    opened = _opened(checkpoint, trust_code)
    recipe = _recipe_of(opened, set_)
    if attacks is None and corruptions is None:
        attacks = "pgd"
    chosen: list[Any] = attacks.split(",") if attacks else []
    others = {} if transfer_from is None else {transfer_from.name: _opened(transfer_from, trust_code)}
    chosen += [{"kind": "transfer", "origin": origin} for origin in others]
    settings: dict[str, Any] = {"attacks": chosen, "samples": samples, "corruptions": corruptions or False}
    # Random numbers of an attack follow from its batches: with those of the recipe, figures join.
    settings |= next(({"batch_size": s.batch_size} for s in recipe.stages if isinstance(s, Evaluate)), {})
    stage = Evaluate.parse(settings, "evaluate")
    bench = _bench(opened, recipe)
    record = stage.measured(opened, bench, others)
    path = place(opened, bench.subject(opened)) / EVALUATION
    write_json(path, record.plain())
    console.print(f"written to {path}")


@_alone
def check(
    checkpoint: Folder,
    samples: Annotated[int, typer.Option(min=1, help="First test images")] = 200,
    trust_code: TrustCode = False,
    set_: Settings = None,
) -> None:
    """Sanity checks against false security: is the robustness real? Exit code 1 if one fails."""
    from hydraprune.recipes import measure as measuring

    opened = _opened(checkpoint, trust_code)
    found, path = measuring.check(opened, samples, _bench(opened, _recipe_of(opened, set_)))
    for one in found:
        verdict = {True: "[green]pass[/]", False: "[red]FAIL[/]", None: "[dim]none[/]"}[one.passed]
        console.print(f"{verdict} {one.name}: {one.found}", highlight=False)
        if one.passed is False:
            console.print(f"     expected: {one.expected}; {one.why}", highlight=False, markup=False)
    console.print(f"written to {path}")
    if any(one.passed is False for one in found):
        raise typer.Exit(1)


@_alone
def benchmark(
    checkpoint: Folder,
    name: Annotated[str | None, typer.Option(help="Of the method, such as HYDRA_Sehwag2020Hydra")] = None,
    samples: Annotated[int, typer.Option(min=1, help="First test images; fewer than 10,000 make no claim")] = 10_000,
    trust_code: TrustCode = False,
    set_: Settings = None,
) -> None:
    """The adversarial pruning benchmark's protocol and a stricter one, as a claim with the measured sparsity."""
    from hydraprune.recipes import benchmark as benchmarks

    opened = _opened(checkpoint, trust_code)
    bench = _bench(opened, _recipe_of(opened, set_))
    claim, path = benchmarks.benchmark(opened, bench, name=name, samples=samples)
    console.print(claim["name"], highlight=False)
    for reason in claim["reasons"]:
        console.print(f"not eligible: {reason}", highlight=False, markup=False)
    console.print(f"written to {path}")


@_alone
def verify(
    checkpoint: Folder,
    bounds: Annotated[str, typer.Option(help="Names, separated by commas; see `hydraprune list`")] = "best",
    eps: Annotated[str | None, typer.Option(help="Radius of the adversary; that of the recipe by default")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="First test images; all by default")] = None,
    trust_code: TrustCode = False,
    set_: Settings = None,
) -> None:
    """Verified accuracy of a checkpoint: bounds that hold whatever an adversary does inside of a linf ball."""
    opened = _opened(checkpoint, trust_code)
    recipe = _recipe_of(opened, [*(set_ or []), *([] if eps is None else [f"threat.eps={eps}"])])
    _certify(opened, recipe, "verification", {"bounds": bounds.split(","), "samples": samples})


@_alone
def certify(
    checkpoint: Folder,
    sigma: Annotated[str, typer.Option(help="Standard deviation of the noise, in pixels of [0, 1]; that of training")],
    n0: Annotated[int, typer.Option(help="Draws that choose the class")] = 100,
    n: Annotated[int, typer.Option(help="Draws that bound its probability; more give larger radii")] = 100_000,
    alpha: Annotated[float, typer.Option(help="Probability that a certificate is wrong")] = 0.001,
    radii: Annotated[str, typer.Option(help="l2 radii to report, in pixels")] = "0,0.25,110/255,0.5,0.75",
    every: Annotated[int, typer.Option(help="Certify each EVERY-th image")] = 1,
    samples: Annotated[int | None, typer.Option(min=1, help="First test images; all by default")] = None,
    trust_code: TrustCode = False,
    set_: Settings = None,
) -> None:
    """Certified accuracy of a checkpoint under Gaussian noise: randomized smoothing, in l2."""
    smoothing = {"sigma": sigma, "n0": n0, "n": n, "alpha": alpha, "every": every}
    stage = {"smoothing": smoothing, "radii": radii.split(","), "samples": samples}
    opened = _opened(checkpoint, trust_code)
    _certify(opened, _recipe_of(opened, set_), "certification", stage)


def _opened(folder: Path, trust_code: bool) -> Checkpoint:
    """A checkpoint; what it makes us call is said before it is called."""
    from hydraprune.runs.checkpoint import open_checkpoint

    opened = open_checkpoint(folder, trust_code)
    if (calls := opened.calls()) is not None:
        tell(f"calling {calls}, named by {folder}")
    return opened


def _recipe_of(checkpoint: Checkpoint, overrides: list[str] | None) -> Recipe:
    from hydraprune.recipes import library

    if checkpoint.meta.recipe is None:
        return _recipe_for(checkpoint, overrides or [])
    where = f"{checkpoint.folder / META}: recipe"
    library.written(checkpoint.meta.recipe, where)
    return library.resolve(checkpoint.meta.recipe, overrides or [], where)


def _recipe_for(checkpoint: Checkpoint, overrides: list[str]) -> Recipe:
    """A recipe for a network that none made: one of the paper's schedule, of which data and adversary are given."""
    from hydraprune.recipes import library

    folder, meta = checkpoint.folder, checkpoint.meta
    if meta.net is None or not any(re.match(r"data[.=]", override) for override in overrides):
        raise SpecError(
            f"{folder} was not made by a recipe, so its data is unknown; give it: --set data.kind=cifar10, and "
            "--set threat.eps=... for another radius than 8/255"
        )
    own: dict[str, Any] = {"name": folder.resolve().name, "net": meta.net.plain()}
    own |= {} if meta.threat is None else {"threat": meta.threat.plain()}
    return library.resolve(library.changed(library.whole("base-own"), own.items()), overrides, str(folder))


def _bench(checkpoint: Checkpoint, recipe: Recipe) -> Bench:
    """What it takes; with the settings of the checkpoint's own, images must be those that it was made from."""
    from hydraprune.recipes.stages import Bench

    data, own = recipe.data.load(), checkpoint.meta.recipe or {}
    if recipe.data.plain() == own.get("data"):
        data.refuse_unless(checkpoint.meta.data, str(checkpoint.folder))
    return Bench(recipe, data, recipe.trainer.machine(), console)


def _joined(path: Path, record: Record) -> Record:
    """The record with what an earlier command of its kind found of the same network, images and adversary."""
    from hydraprune.core.results import Record

    try:
        before = Record.parse(read_json(path), str(path))
    except (CheckpointError, SpecError):  # there is none, or it is damaged and goes
        return record
    alike = all(getattr(before, name) == getattr(record, name) for name in ("network", "images", "threat"))
    return before.joined(record) if alike else record


def _certify(checkpoint: Checkpoint, recipe: Recipe, what: str, settings: dict[str, Any]) -> None:
    from hydraprune.recipes.certify import Certify
    from hydraprune.recipes.measure import place

    bench = _bench(checkpoint, recipe)
    record = Certify.parse(settings, what).measured(checkpoint, bench)
    path = place(checkpoint, bench.subject(checkpoint)) / f"{what}.json"
    write_json(path, _joined(path, record).plain())
    console.print(f"written to {path}")
