"""One page of HTML about a run, several runs or a study; it needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from hydraprune.core.files import write_atomically
from hydraprune.report import checks
from hydraprune.report.experiment import settings_of, study_of
from hydraprune.report.folder import Run, find_runs
from hydraprune.report.overview import tiles
from hydraprune.report.sections import PICTURED, sections


def write_page(paths: Sequence[Path], out: Path) -> None:
    """Write the page about the runs at `paths` (run folders, or folders of them) to `out`.

    What is missing, half-written or damaged is listed on the page and does not stop it.

    Raises:
        SpecError: if there is no run at all.
        TrainingError: if the disk refuses.
    """
    write_atomically(out, render(find_runs(paths)).encode(errors="replace"))  # names of folders


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("hydraprune.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    return environment.get_template("page.html")


def render(runs: Sequence[Run]) -> str:
    """The page about `runs`: text from their files is escaped, and the page may load and send nothing."""
    settings = settings_of(runs)
    experiments = [experiment for setting in settings for experiment in setting.experiments]
    study = study_of([run.recipe for run in runs if run.recipe])
    alone = experiments[0].name if len(experiments) == 1 else ""
    found = checks.checks([entry for setting in settings for entry in setting.entries])
    failed = [check for check in found if check.passed is False]
    static = {kind: files("hydraprune.report").joinpath(f"static/page.{kind}").read_text() for kind in ("css", "js")}
    return _template().render(
        title=study or alone or f"{len(experiments)} experiments",
        about=runs[0].recipe.get("about", "") if study or alone else "",
        counts=f"{len(experiments)} experiments, {len(runs)} runs" if len(runs) > 1 else "",
        settings=[setting.name for setting in settings],
        attack=settings[0].attack() if settings else None,
        tiles=tiles(settings),
        failed=f"{len(failed)} of {len(found)} sanity checks failed" if failed else "",
        sections=sections(runs, settings, found),
        few=f"The first {PICTURED} of {len(experiments)} experiments." if len(experiments) > PICTURED else "",
        version=version("hydraprune"),
        style=Markup(static["css"]),
        script=Markup(static["js"]),
        # The page lets no script and no style run but its own.
        digests={
            kind: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for kind, text in static.items()
        },
    )
