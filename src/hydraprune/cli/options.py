"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Override a setting: stages.prune.epochs=5")
]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="Import and call the factory that the checkpoint names; it runs its code")
]
