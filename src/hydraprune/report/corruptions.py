"""Accuracy under common corruptions, of dense and pruned networks side by side."""

from __future__ import annotations

import statistics

from hydraprune.core.results import Corrupted
from hydraprune.report.experiment import Variant
from hydraprune.report.matrix import Matrix, TableCell, percent
from hydraprune.report.proofs import share
from hydraprune.runs.files import CORRUPTIONS
from hydraprune.runs.folder import Network

Measured = list[tuple[str, list[Corrupted]]]
"""Network, and what each of its seeds found."""


def corruptions(title: str, variants: list[Variant]) -> list[Matrix]:
    """A table for each source of corruptions, with a column for each network that was measured on it."""
    read = [(variant.name, [_found(network) for network in variant.seeds]) for variant in variants]
    sources = dict.fromkeys(source for _, seeds in read for found in seeds for source in found)
    tables = []
    for source in sources:
        own = [(name, [found[source] for found in seeds if source in found]) for name, seeds in read]
        tables.append(_table(f"{title} ({source})", [(name, seeds) for name, seeds in own if seeds]))
    return tables


def _found(network: Network) -> dict[str, Corrupted]:
    return network.named(Corrupted, CORRUPTIONS, "corrupted")


def _table(title: str, networks: Measured) -> Matrix:
    every = [found for _, seeds in networks for found in seeds]
    rows = [("mean", [share([found.mean_accuracy for found in seeds]) for _, seeds in networks])]
    for name in dict.fromkeys(name for found in every for name in found.accuracy):
        rows.append((name.replace("_", " "), [_cell(seeds, name) for _, seeds in networks]))
    fewest, most = (some(found.samples for found in every) for some in (min, max))
    images = f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
    caption = f"Accuracy (%) on {images} images, mean over severities 1 to 5; hover over a figure for each severity."
    return Matrix(title, "corruption", [name for name, _ in networks], rows, caption)


def _cell(seeds: list[Corrupted], name: str) -> TableCell:
    curves = [found.accuracy[name] for found in seeds if name in found.accuracy]
    if not curves:
        return TableCell("–")
    mean = share([statistics.fmean(curve) for curve in curves])
    each = ", ".join(percent(statistics.fmean(values)) for values in zip(*curves, strict=True))
    return TableCell(mean.text, mean.value, tip=f"severities 1 to 5: {each}")
