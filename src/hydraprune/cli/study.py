"""Commands over many runs: studies and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hydraprune.cli.console import console, draw, tell
from hydraprune.cli.options import Out, Runs, Settings, Vary
from hydraprune.core.errors import SpecError
from hydraprune.core.files import output_file, write_atomically, write_json
from hydraprune.runs.files import PICTURE, RESULTS

if TYPE_CHECKING:
    from hydraprune.report import Row
    from hydraprune.study.schema import Study


def study(
    study: Annotated[str, typer.Argument(help="Name of a study, or of a recipe with --vary, or YAML file")],
    out: Out,
    vary: Vary = None,
    jobs: Annotated[int, typer.Option(min=1, help="Cells at a time")] = 1,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Run on this Ray cluster, such as auto")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the cells and run nothing")] = False,
    set_: Settings = None,
) -> None:
    """Run a grid of recipes; start it several times, on any machines that see the folder, to go faster."""
    from hydraprune.study.schema import load_study

    grid = load_study(study, set_ or [], vary or [])
    if dry_run:
        from hydraprune.study.settle import standing

        for name, state in standing(grid.cells(), out, tell).items():
            tell(f"{name}  {state}")
        return
    if ray is not None:
        from hydraprune.study.cluster import run_on_ray

        _summarize(grid, out, run_on_ray(grid, out, ray))
    else:
        run_all(grid, out, jobs)


def run_all(grid: Study, out: Path, jobs: int = 1) -> None:
    """Run a study, then show its table and write it beside a picture; exit code 1 if a cell failed."""
    from hydraprune.study.work import run_study

    _summarize(grid, out, run_study(grid, out, console, jobs=jobs))


def _summarize(grid: Study, out: Path, states: Mapping[str, str]) -> None:
    from hydraprune.report import as_table
    from hydraprune.study.table import summarize

    counts = Counter(states.values())
    if any((out / cell / RESULTS).exists() for cell, state in states.items() if state == "done"):
        found = summarize(out, tell)
        console.print(as_table(found))
        draw(found, out / PICTURE, grid.name)
    console.print(f"{out}: {', '.join(f'{count} {state}' for state, count in sorted(counts.items()))}", highlight=False)
    if counts["failed"]:
        console.print(f"why a cell failed is in {out}/CELL/failure.json; the same command tries again", markup=False)
        raise typer.Exit(1)


def table(
    runs: Runs,
    out: Annotated[
        Path | None,
        typer.Option(metavar="OUT", parser=output_file, help="Write OUT.md, OUT.json, OUT.png, and OUT.csv of a study"),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="LABEL", help="Differences from this method of a study, paired by seed")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="AXIS=LABEL", help="Only these cells of a study: seed=0")
    ] = None,
) -> None:
    """Mean and standard deviation over runs."""
    from hydraprune.report import as_markdown, rows
    from hydraprune.study.table import as_csv, differences, differences_markdown, differences_table, results, study_in

    if not study_in(runs[0]):
        if baseline is not None or where:
            raise SpecError(f"--baseline and --where are about the cells of a study, but {runs[0]} holds none")
        found = rows(runs, tell)
        if not found:
            raise SpecError(f"nothing that was measured in {', '.join(map(str, runs))} is whole; measure again")
        _write(found, out)
        return
    if len(runs) > 1:
        raise SpecError("a table shows one study; give one folder")
    cells = results(runs[0], where or [], tell)
    gains = [] if baseline is None else differences(cells, baseline)
    _write(cells, out)
    if baseline is not None:
        console.print(differences_table(gains, baseline))
    if out is None:
        return
    write_atomically(Path(f"{out}.csv"), as_csv(cells).encode())
    if baseline is not None:
        text = as_markdown(cells) + "\n" + differences_markdown(gains, baseline)
        write_atomically(Path(f"{out}.md"), text.encode())
        write_json(Path(f"{out}.differences.json"), [gain.plain() for gain in gains])


def _write(table: Sequence[Row], out: Path | None) -> None:
    from hydraprune.report import as_markdown, as_table

    console.print(as_table(table))
    if out is not None:
        write_atomically(Path(f"{out}.md"), as_markdown(table).encode())
        write_json(Path(f"{out}.json"), [row.plain() for row in table])
        draw(table, Path(f"{out}.png"))
