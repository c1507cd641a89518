"""What pruning left inside the networks: connections per layer, large and small weights, masks compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from torch import Tensor

from hydraprune.report.charts import Figure, Palette
from hydraprune.report.experiment import titled
from hydraprune.report.folder import Network, Run
from hydraprune.report.matrix import Cell, Matrix, percent, rising, shaded
from hydraprune.report.plot import Plot, Point, Series, plot

BINS, REACH = 48, 4.0
EMPTY = 0.6
"""Where a logarithmic axis of counts begins."""


def layers(heading: str, run: Run) -> Matrix | None:
    """The share of its connections that each layer keeps, for every pruned network."""
    networks = [n for n in run.pruned if n.meta.get("layers")]
    names = list(dict.fromkeys(name for n in networks for name in n.meta["layers"]))

    def cell(row: int, column: int) -> Cell:
        kept, total = networks[column].meta["layers"].get(names[row], (0, 0))
        if not total:
            return Cell("–")
        share = kept / total
        text = f"{kept:,} of {total:,} connections are kept"
        return Cell(f"{100 * share:.3g}", share, rising(share**0.5), text)

    if not networks:
        return None
    caption = "Share of the connections that are kept, in percent."
    return shaded(
        titled(heading, "Connections of each layer"), "layer", [n.name for n in networks], names, cell, caption
    )


def histograms(heading: str, run: Run, palette: Palette) -> Figure | None:
    """The weights of the dense network, and those among them that each method keeps."""
    dense = run.dense
    weights = dense.tensors("model.safetensors", lambda tensors, _: tensors) if dense is not None else None
    if weights is None:
        return None
    plots = [p for network in run.pruned if (p := _histogram(network, weights, palette)) is not None]
    caption = (
        "Weights of the dense network in units of their layer's standard deviation: all of them in grey, those that "
        "the method keeps in colour, counted on a logarithmic axis. Magnitude pruning can only cut the middle out; a "
        "learned mask may keep small weights. Above each chart: the share of the kept weights that magnitude pruning "
        "of the same layer would cut."
    )
    return Figure(titled(heading, "Weights"), plots, caption) if plots else None


def _histogram(network: Network, weights: Mapping[str, Tensor], palette: Palette) -> Plot | None:
    every, kept = np.zeros(BINS), np.zeros(BINS)
    small = 0
    masks = network.masks()
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
    title = f"{network.name}: {percent(small / max(kept.sum(), 1))} % would be cut"
    series = [
        Series("all weights", "quiet", _steps(edges, every, "of all weights"), line="area", marks=False),
        Series(
            f"kept by {network.pruner}", palette[network.pruner], _steps(edges, kept, "kept"), line="area", marks=False
        ),
    ]
    return plot(
        series, title=title, x_label="weight / σ of its layer", y_label="weights", y_range=(EMPTY, None), log_y=True
    )


def _steps(edges: np.ndarray, counts: np.ndarray, what: str) -> list[Point]:
    heights = np.append(counts, counts[-1])
    return [
        Point(float(x), max(float(y), EMPTY), f"{y:,.0f} {what} at {x:+.2f} σ")
        for x, y in zip(edges, heights, strict=True)
    ]


def overlap(heading: str, run: Run) -> Matrix | None:
    """For every two masks, the share of the smaller one's connections that the other one keeps too."""
    packed = [(network, bits) for network in run.pruned if (bits := _packed(network))]
    shapes = [{name: part.shape for name, part in bits.items()} for _, bits in packed]
    if len(packed) < 2 or any(other != shapes[0] for other in shapes):
        return None
    columns = [network.name for network, _ in packed]
    kept = [_ones(bits.values()) for _, bits in packed]

    def cell(row: int, column: int) -> Cell:
        if row == column:
            return Cell("·")
        one, other = packed[row], packed[column]
        both = _ones(bits & other[1][name] for name, bits in one[1].items())
        share = both / max(min(kept[row], kept[column]), 1)
        chance = 1 - min(one[0].sparsity, other[0].sparsity)
        tip = f"{both:,} connections in common; {percent(chance)} % are expected of masks that have nothing in common"
        return Cell(f"{100 * share:.0f}", share, rising(share), f"{one[0].name}, {other[0].name}: {tip}")

    caption = "Connections that two masks share, in percent of the smaller mask."
    return shaded(titled(heading, "Masks compared"), "", columns, columns, cell, caption)


def _packed(network: Network) -> dict[str, np.ndarray]:
    """The masks as stored, eight connections to a byte."""
    return {name: np.packbits(mask.numpy()) for name, mask in network.masks().items()}


def _ones(parts: Iterable[np.ndarray]) -> int:
    return sum(int(np.bitwise_count(part).sum()) for part in parts)
