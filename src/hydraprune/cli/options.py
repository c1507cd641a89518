"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hydraprune.core.files import existing, output_folder

Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a setting: stages.prune.epochs=5")
]
Vary = Annotated[
    list[str] | None, typer.Option("--vary", metavar="AXIS=VALUE,VALUE", help="Run it once for each: sparsity=0.9,0.99")
]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Import and call the factory that the checkpoint names; it runs its code")
]
Runs = Annotated[
    list[Path], typer.Argument(parser=existing, help="Run folders, or folders of run folders such as a study")
]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        metavar="FOLDER",
        parser=output_folder,
        help="New, or that of an unfinished run or study, which goes on",
    ),
]
"""A folder to write into."""
