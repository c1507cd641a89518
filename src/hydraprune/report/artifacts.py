"""What was exported from checkpoints: how large it is, what it is worth, and how fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from hydraprune.core.results import Record
from hydraprune.report.chart import Chart, Palette, Panels, Point, Series
from hydraprune.report.charts import ACCURACY
from hydraprune.report.experiment import Setting, Variant, adversary
from hydraprune.report.matrix import Matrix, TableCell, percent
from hydraprune.report.spread import interval
from hydraprune.runs.latency import LATENCY, Latency, Timed, read_latency
from hydraprune.runs.manifest import EXPORTS, Manifest, robust

ROBUST = "under the strongest attack"
NONE = TableCell("–", -1.0)


def table(variants: Sequence[Variant]) -> Matrix | None:
    """A row for each artifact of each network."""
    rows = [
        (title, [TableCell(name), TableCell(manifest.label), *size_cells(manifest.bytes, manifest.smaller),
                 _change(manifest, lambda record: record.clean_accuracy), _change(manifest, robust),
                 _difference(manifest)])
        for title, name, manifest in _every(variants)
    ]  # fmt: skip
    columns = ["file", "format", "bytes", "times smaller", "clean %", "robust %", "largest logit difference %"]
    caption = (
        "Times smaller than the dense network's tensors. Robust: under the strongest of the attacks that were run, "
        "before and after. Differences of logits are by the largest logit, on images that lie beside the file."
    )
    return Matrix("", "network", columns, rows, caption) if rows else None


def figure(setting: Setting) -> Panels | None:
    """Robust accuracy of all artifacts of a setting against their bytes."""
    points = []
    for title, _, manifest in _every(setting.variants):
        after = manifest.after
        share = None if after is None else robust(after)
        if after is not None and share is not None:
            points.append((manifest.label, manifest.bytes, share, title, after.samples))
    return Panels(setting.heading, [_against_size(points)]) if points else None


def against_size(found: Latency) -> list[Chart]:
    """The same of what was timed; none without a robust accuracy."""
    timed = [a for a in found.artifacts if a.robust is not None]
    points = [(a.format, a.bytes, a.robust, a.artifact, None) for a in timed if a.robust is not None]
    return [_against_size(points)] if points else []


def timed(variants: Sequence[Variant]) -> list[Matrix]:
    """A table for each file of times, of a network's exports or of its whole run."""
    found = {}
    for network in (network for variant in variants for network in variant.seeds):
        run = network.run
        for place in ((network.stage, EXPORTS, LATENCY), (LATENCY,)):
            times = run.read(read_latency, *place)
            if times is not None:
                found[run.path.joinpath(*place)] = _timed(times, "/".join((run.path.name, *place[:-1])))
    return list(found.values())


def speeds(found: Latency) -> list[list[str]]:
    """Titles, and the texts of each row, for a terminal."""
    matrix = _timed(found, "")
    return [[matrix.corner, *matrix.columns], *([name, *(cell.text for cell in cells)] for name, cells in matrix.rows)]


def size_cells(size: int, smaller: float | None) -> tuple[TableCell, TableCell]:
    """Bytes, and how many times smaller than dense that is."""
    return TableCell(f"{size:,}", size), NONE if smaller is None else TableCell(f"{smaller:.1f}", smaller)


def _every(variants: Iterable[Variant]) -> list[tuple[str, str, Manifest]]:
    """Network, name and manifest of each artifact."""
    return [
        (f"{network.run.path.name}: {variant.title}" if len(variant.seeds) > 1 else variant.title, name, manifest)
        for variant in variants
        for network in variant.seeds
        for name, manifest in network.exported().items()
    ]


def _change(manifest: Manifest, of: Callable[[Record], float | None]) -> TableCell:
    if manifest.before is None or manifest.after is None:
        return TableCell("not measured", -1.0)
    before, after = of(manifest.before), of(manifest.after)
    if before is None or after is None:
        return NONE
    threat = manifest.after.threat
    within = "" if threat is None else f", {adversary(threat.plain())}"
    tip = f"on {manifest.after.samples:,} images{within}"
    return TableCell(f"{percent(before)} → {percent(after)}", after, tip=tip)


def _difference(manifest: Manifest) -> TableCell:
    if not manifest.probe or not manifest.logit:
        return TableCell("not compared", -1.0)
    share = 100 * manifest.difference / manifest.logit
    return TableCell(f"{share:.2g}", share, tip=f"{manifest.difference:.3g} of {manifest.logit:.3g}")


def _against_size(points: Sequence[tuple[str, int, float, str, int | None]]) -> Chart:
    """Points of (format, bytes, robust accuracy, name, images if known)."""
    palette, groups = Palette(label for label, *_ in points), dict[str, list[Point]]()
    for label, size, share, name, samples in sorted(points, key=lambda point: point[1]):
        ends = (None, None) if samples is None else tuple(100 * end for end in interval(share, samples))
        tip = f"{name}, {label}: {percent(share)} % in {size:,} bytes"
        groups.setdefault(label, []).append(Point(size, 100 * share, tip, *ends))
    series = [Series(label, palette[label], found, line="none") for label, found in groups.items()]
    ticks = {float(size): _short(size) for size in _round([size for _, size, *_ in points])}
    return Chart(series, "bytes", ACCURACY, ROBUST, ticks, (0, None), log_x=True)


def _round(sizes: Sequence[int]) -> list[int]:
    """Powers of ten and their doubles and fives around some sizes; powers alone where these are many."""
    low, high = math.floor(math.log10(min(sizes))), math.ceil(math.log10(max(sizes) + 1))
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    every = [step * 10**power for power in range(low, high + 1) for step in steps]
    first = max(number for number, size in enumerate(every) if size <= min(sizes))
    last = min(number for number, size in enumerate(every) if size >= max(sizes))
    return every[first : last + 1]


def _short(size: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (1000, "kB")):
        if size >= unit:
            return f"{size / unit:g} {name}"
    return f"{size} B"


def _timed(found: Latency, title: str) -> Matrix:
    places = list(dict.fromkeys((one.batch, one.threads) for artifact in found.artifacts for one in artifact.times))
    columns = ["format", "runtime", "bytes", "times smaller"]
    for batch, threads in places:
        columns += [f"ms, {batch} at a time, {threads} thread{'s' * (threads > 1)}", "×"]
    rows = []
    for artifact in found.artifacts:
        for runtime in dict.fromkeys(one.runtime for one in artifact.times):
            mine = {(one.batch, one.threads): one for one in artifact.times if one.runtime == runtime}
            cells = [TableCell(artifact.format), TableCell(runtime), *size_cells(artifact.bytes, artifact.smaller)]
            cells += [cell for place in places for cell in _time(mine.get(place))]
            shares = (artifact.sparsity, artifact.clean, artifact.robust)
            cells += [NONE if share is None else TableCell(percent(share), share) for share in shares]
            rows.append((artifact.artifact, cells))
    machine = ", ".join(f"{value} {key}" if key == "cores" else str(value) for key, value in found.machine.items())
    packages = ", ".join(f"{name} {number}" for name, number in found.versions.items())
    caption = (
        f"Medians of {found.repeats} interleaved timings; ×: how many times faster than {found.baseline[0]} in "
        f"{found.baseline[1]}. {machine}; {packages}."
    )
    return Matrix(title, "artifact", [*columns, "sparsity %", "clean %", "robust %"], rows, caption)


def _time(one: Timed | None) -> tuple[TableCell, TableCell]:
    if one is None:
        return NONE, NONE
    low, high = one.quartiles
    tip = f"the middle half from {low:.3g} to {high:.3g} ms"
    return TableCell(f"{one.ms:.3g}", one.ms, tip=tip), TableCell(f"{one.faster:.2f}", one.faster)
