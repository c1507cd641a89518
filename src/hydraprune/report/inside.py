"""What pruning left inside the networks: connections per layer, large and small weights, masks compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from torch import Tensor

from hydraprune.report.chart import Chart, Palette, Panels, Point, Series
from hydraprune.report.experiment import Variant, titled
from hydraprune.report.matrix import Matrix, TableCell, percent, rising, shaded
from hydraprune.runs.files import MODEL
from hydraprune.runs.folder import Network

BINS, REACH = 48, 4.0
EMPTY = 0.6
"""Where a logarithmic axis of counts begins."""


def layers(heading: str, pruned: Sequence[Variant]) -> Matrix | None:
    """The share of its connections that each layer keeps, for every pruned network."""
    columns = [(variant.name, variant.seeds[0].meta.layers) for variant in pruned if variant.seeds[0].meta.layers]
    names = list(dict.fromkeys(name for _, layers in columns for name in layers))

    def cell(row: int, column: int) -> TableCell:
        kept, total = columns[column][1].get(names[row], (0, 0))
        if not total:
            return TableCell("–")
        share = kept / total
        text = f"{kept:,} of {total:,} connections are kept"
        return TableCell(f"{100 * share:.3g}", share, rising(share**0.5), text)

    if not columns:
        return None
    caption = "Share of the connections that are kept, in percent."
    title = titled(heading, "Connections of each layer")
    return shaded(title, "layer", [name for name, _ in columns], names, cell, caption)


def histograms(heading: str, pruned: Sequence[Variant], palette: Palette) -> Panels | None:
    """The weights of the dense network of a run, and those among them that each method keeps."""
    starts: dict[object, Mapping[str, Tensor]] = {}
    charts = []
    for variant in pruned:
        dense = variant.seeds[0].run.dense
        if dense is None:
            continue
        place = dense.digest or dense
        if place not in starts:
            starts[place] = dense.tensors(MODEL, lambda tensors, _: tensors) or {}
        charts.append(_histogram(variant, starts[place], palette))
    caption = (
        "Weights of the dense network in units of their layer's standard deviation: all of them in grey, those that "
        "the method keeps in colour, counted on a logarithmic axis. Magnitude pruning can only cut the middle out; a "
        "learned mask may keep small weights. Above each chart: the share of the kept weights that magnitude pruning "
        "of the same layer would cut."
    )
    drawn = [chart for chart in charts if chart is not None]
    return Panels(titled(heading, "Weights"), drawn, caption) if drawn else None


def _histogram(variant: Variant, weights: Mapping[str, Tensor], palette: Palette) -> Chart | None:
    every, kept = np.zeros(BINS), np.zeros(BINS)
    small = 0
    masks = variant.seeds[0].masks()
    for name, mask in masks.items():
        if name not in weights or weights[name].shape != mask.shape or not weights[name].isfinite().all():
            return None
        w, m = weights[name].flatten().float().numpy(), mask.flatten().numpy()
        places = np.clip((w / max(float(w.std()), 1e-12) + REACH) * (BINS / 2 / REACH), 0, BINS - 1).astype(np.int64)
        every += np.bincount(places, minlength=BINS)
        kept += np.bincount(places[m], minlength=BINS)
        size, left = np.abs(w), int(m.sum())
        small += int((size[m] < np.partition(size, len(size) - left)[len(size) - left]).sum()) if left else 0
    if not masks:
        return None
    edges = np.linspace(-REACH, REACH, BINS + 1)
    title = f"{variant.name}: {percent(small / max(kept.sum(), 1))} % would be cut"
    series = [
        Series("all weights", "quiet", _steps(edges, every, "of all weights"), line="area", marks=False),
        Series(f"kept by {variant.label}", palette[variant.label], _steps(edges, kept, "kept"), "area", marks=False),
    ]
    return Chart(series, "weight / σ of its layer", "weights", title, y_range=(EMPTY, None), log_y=True)


def _steps(edges: np.ndarray, counts: np.ndarray, what: str) -> list[Point]:
    heights = np.append(counts, counts[-1])
    return [
        Point(float(x), max(float(y), EMPTY), f"{y:,.0f} {what} at {x:+.2f} σ")
        for x, y in zip(edges, heights, strict=True)
    ]


def overlap(heading: str, pruned: Sequence[Variant]) -> Matrix | None:
    """For every two masks of one seed, the share of the smaller one's connections that the other one keeps too."""
    seed = pruned[0].seeds[0].run.recipe.get("seed") if pruned else None
    alike = [variant for variant in pruned if variant.seeds[0].run.recipe.get("seed") == seed]
    packed = [(variant, bits) for variant in alike if (bits := _packed(variant.seeds[0]))]
    shapes = [{name: part.shape for name, part in bits.items()} for _, bits in packed]
    if len(packed) < 2 or any(other != shapes[0] for other in shapes):
        return None
    columns = [variant.name for variant, _ in packed]
    kept = [_ones(bits.values()) for _, bits in packed]

    def cell(row: int, column: int) -> TableCell:
        if row == column:
            return TableCell("·")
        one, other = packed[row], packed[column]
        both = _ones(bits & other[1][name] for name, bits in one[1].items())
        share = both / max(min(kept[row], kept[column]), 1)
        chance = 1 - min(one[0].sparsity, other[0].sparsity)
        tip = f"{both:,} connections in common; {percent(chance)} % are expected of masks that have nothing in common"
        return TableCell(f"{100 * share:.0f}", share, rising(share), f"{one[0].name}, {other[0].name}: {tip}")

    caption = "Connections that two masks share, in percent of the smaller mask."
    return shaded(titled(heading, "Masks compared"), "", columns, columns, cell, caption)


def _packed(network: Network) -> dict[str, np.ndarray]:
    """The masks as stored, eight connections to a byte."""
    return {name: np.packbits(mask.numpy()) for name, mask in network.masks().items()}


def _ones(parts: Iterable[np.ndarray]) -> int:
    return sum(int(np.bitwise_count(part).sum()) for part in parts)
