"""One page of HTML about a run, several runs or a study; it needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from hydraprune.core.extras import extra
from hydraprune.core.files import write_atomically
from hydraprune.report import checks
from hydraprune.report.chart import STYLES
from hydraprune.report.experiment import settings_of, study_of
from hydraprune.report.overview import tiles
from hydraprune.report.plot import laid_out
from hydraprune.report.sections import PICTURED, sections
from hydraprune.runs.folder import RunFolder, find_runs

if TYPE_CHECKING:
    from jinja2 import Template


def write_page(paths: Sequence[Path], out: Path) -> None:
    """Write the page about the runs at `paths` (run folders, or folders of them) to `out`.

    What is missing, half-written or damaged is listed on the page and does not stop it.

    Raises:
        MissingError: without jinja2.
        SpecError: if there is no run at all.
        TrainingError: if the disk refuses.
    """
    _template()  # what is missing is told before the folders are read
    write_atomically(out, render(find_runs(paths)).encode(errors="replace"))  # names of folders


@cache
def _template() -> Template:
    with extra("report", "the page"):
        from jinja2 import Environment, PackageLoader, StrictUndefined
    environment = Environment(
        loader=PackageLoader("hydraprune.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.globals["laid_out"] = laid_out
    return environment.get_template("page.html")


def render(runs: Sequence[RunFolder]) -> str:
    """The page about `runs`: text from their files is escaped, and the page may load and send nothing."""
    from markupsafe import Markup

    settings = settings_of(runs)
    experiments = [experiment for setting in settings for experiment in setting.experiments]
    study = study_of([run.recipe for run in runs if run.recipe])
    alone = experiments[0].name if len(experiments) == 1 else ""
    variants = [variant for setting in settings for variant in setting.variants]
    found = checks.checks(variants)
    failed = [row for row in found if row.check.passed is False]
    static = {kind: files("hydraprune.report").joinpath(f"static/page.{kind}").read_text() for kind in ("css", "js")}
    static["css"] += "".join(
        f".c-{number} {{ --c: light-dark({style.light}, {style.dark}); }}\n" for number, style in enumerate(STYLES)
    )
    return _template().render(
        title=study or alone or f"{len(experiments)} experiments",
        about=runs[0].recipe.get("about", "") if study or alone else "",
        counts=f"{len(experiments)} experiments, {len(runs)} runs" if len(runs) > 1 else "",
        settings=[setting.name for setting in settings],
        attack=settings[0].attack() if settings else None,
        tiles=tiles(settings),
        failed=f"{len(failed)} of {len(found)} sanity checks failed" if failed else "",
        sections=sections(runs, settings, found),
        few=f"The first {PICTURED} of {len(variants)} networks." if len(variants) > PICTURED else "",
        version=version("hydraprune"),
        style=Markup(static["css"]),
        script=Markup(static["js"]),
        # The page lets no script and no style run but its own.
        digests={
            kind: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for kind, text in static.items()
        },
    )
