"""What was proved of the networks: verified accuracy, and certified accuracy by randomized smoothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from hydraprune.core.results import Record
from hydraprune.report.experiment import Variant
from hydraprune.report.matrix import Matrix, TableCell
from hydraprune.report.spread import Spread

T = TypeVar("T")


def share(values: Sequence[float]) -> TableCell:
    """Their mean and spread as a cell, in percent."""
    spread = Spread.of(values)
    return TableCell(spread.percent, spread.mean)


def verified(variants: Sequence[Variant]) -> Matrix | None:
    """Verified accuracy, a row for each network and bound."""
    rows = []
    for variant, bound, found in _each(variants, lambda record: record.verified):
        margins = [one.mean_margin for one in found if one.mean_margin is not None]
        cells = [
            TableCell(bound),
            TableCell(f"{found[0].samples:,}", found[0].samples),
            share([one.clean_accuracy for one in found]),
            share([one.verified_accuracy for one in found]),
            TableCell(f"{Spread.of(margins).mean:.3g}", Spread.of(margins).mean) if margins else TableCell("–"),
        ]
        rows.append((variant.title, cells))
    columns = ["bound", "images", "clean %", "verified %", "mean least margin"]
    caption = "Verified: the share of images whose class provably cannot change inside the adversary's ball."
    return Matrix("Verified accuracy", "network", columns, rows, caption) if rows else None


def certified(variants: Sequence[Variant]) -> Matrix | None:
    """Certified accuracy by randomized smoothing, a row for each network and setting."""
    every = _each(variants, lambda record: record.certified)
    radii = sorted({radius for _, _, found in every for one in found for radius in one.certified_accuracy})
    rows = []
    for variant, _, found in every:
        first = found[0]
        at = [[one.certified_accuracy[r] for one in found if r in one.certified_accuracy] for r in radii]
        average = Spread.of([one.average_certified_radius for one in found])
        cells = [
            TableCell(f"σ {first.sigma:g}, n {first.n:,}, α {first.alpha:g}", first.sigma),
            TableCell(f"{first.samples:,}", first.samples),
            *(share(values) if values else TableCell("–") for values in at),
            TableCell(f"{average.mean:.3f}", average.mean),
            share([one.abstention_rate for one in found]),
        ]
        rows.append((variant.title, cells))
    columns = ["smoothing", "images", *(f"r = {radius:.3g}" for radius in radii), "mean radius", "abstained %"]
    caption = "The share of images (%) classified correctly with at least that certified ℓ2 radius r."
    return Matrix("Certified accuracy", "network", columns, rows, caption) if rows else None


def _each(variants: Sequence[Variant], read: Callable[[Record], dict[str, T]]) -> list[tuple[Variant, str, list[T]]]:
    """(network, name, what each seed found under it) for all that `read` takes from the records."""
    found = []
    for variant in variants:
        records = [read(network.known) for network in variant.seeds if network.known is not None]
        for name in dict.fromkeys(name for record in records for name in record):
            found.append((variant, name, [record[name] for record in records if name in record]))
    return found
