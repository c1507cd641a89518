"""What exports weigh, how fast they are, and what robustness they keep: the figures of results/deploy_cpu.md.

    python benchmarks/deploy.py sizes --data data/cifar10 --out results/deploy_cpu/vgg16_bn.json
    python benchmarks/deploy.py sizes --net resnet18 --data data/cifar10 --out results/deploy_cpu/resnet18.json
    python benchmarks/deploy.py worth RUN/finetune OTHER/finetune --out results/deploy_cpu/worth.json
    python benchmarks/deploy.py picture results/deploy_cpu/worth.json --out results/deploy_cpu.png

`sizes` takes a network with random weights (seed 0) and statistics of batch norm that have seen images, dense and
pruned by magnitude: 90, 95 and 99 % of the weights in every layer, and 50, 75 and 90 % of the coupled channels. Times
are those of `hydraprune latency`, all of a network in one run: the dense network in every runtime, and of the others
what can be faster.

`worth` exports trained checkpoints in every format and measures clean and robust accuracy before and after, on the
first test images of their data. `picture` draws what that found.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hydraprune as hp
from hydraprune.core.errors import SpecError
from hydraprune.core.packing import Values, pack, unpack
from hydraprune.core.results import Record
from hydraprune.deploy import FORMATS
from hydraprune.recipes import library
from hydraprune.report.chart import Chart, Palette, Point, Series
from hydraprune.report.picture import paint
from hydraprune.report.spread import interval
from hydraprune.runs.checkpoint import Checkpoint, open_checkpoint, save
from hydraprune.runs.manifest import EXPORTS, in_words, robust
from hydraprune.runs.meta import Meta
from machine import publish

SETTINGS: dict[str, dict[str, Any]] = {
    "packed float32": {"kind": "packed"},
    "packed float16": {"kind": "packed", "values": "float16"},
    "packed bfloat16": {"kind": "packed", "values": "bfloat16"},
    "packed int8": {"kind": "packed", "values": "int8"},
    "dense": {"kind": "dense"},
    "shrunk": {"kind": "shrunk"},
    "onnx": {"kind": "onnx"},
    "onnx-int8": {"kind": "onnx-int8"},
}
CASES = [("dense", None, 0.0)]
CASES += [("weights", "weight", sparsity) for sparsity in (0.9, 0.95, 0.99)]
CASES += [("channels", "coupled", sparsity) for sparsity in (0.5, 0.75, 0.9)]
"""What is removed, by which structure, and how much of it."""


def sizes(net: str, data: Path, repeats: int) -> dict[str, Any]:
    """Bytes of every format and times of those that can be faster, for each of `CASES`."""
    images = hp.load_data("cifar10", path=str(data))
    rows, timed = [], []
    with tempfile.TemporaryDirectory() as place:
        for what, structure, sparsity in CASES:
            torch.manual_seed(0)
            model = hp.Net(kind=net).build(10, 3, 32)
            for x, _ in images.train.take(256).batches(64, seed=0).epoch(0):
                model(x)
            if structure is not None:
                some = hp.Batch(*next(iter(images.train.take(8).batches(8, seed=0).epoch(0))))
                probe = hp.Probe(torch.Generator(), batches=partial(list, [some]))
                hp.prune(model, "magnitude", hp.Uniform(sparsity=sparsity), structure, probe)
                hp.MaskView(model).freeze()
            pruner = None if structure is None else "magnitude"
            meta = Meta(net=hp.Net(kind=net), num_classes=10, in_channels=3, image_size=32, pruner=pruner)
            folder = Path(place) / f"{what}-{100 * sparsity:g}"
            save(folder, model, meta)
            checkpoint, case = open_checkpoint(folder), {"removed": what, "sparsity": sparsity}
            dense = sum(value.nbytes for value in checkpoint.values.values())
            for name, form in SETTINGS.items():
                if form["kind"] == "packed":
                    found = _packed(checkpoint, form.get("values", "float32"))
                elif name in _timed(what, sparsity):
                    found = {"bytes": hp.export(folder, None, form, data=images).bytes}
                else:
                    continue
                rows.append({**case, "format": name, **found, "smaller": dense / found["bytes"]})
                print(rows[-1], flush=True)
            timed += [
                folder / EXPORTS / f"{form.name}{form.suffix}"
                for form in (FORMATS.make(SETTINGS[name], name) for name in _timed(what, sparsity))
            ]
        times = hp.latency(*timed, repeats=repeats, out=Path(place) / "latency.json")
    return {"net": net, "seed": 0, "sizes": rows, "latency": times.plain()}


def _packed(checkpoint: Checkpoint, values: Values) -> dict[str, float]:
    """Bytes, and megabytes of dense weights that are written and read in a second, on one core; the best of three."""
    arrays = {name: value.numpy() for name, value in checkpoint.values.items()}
    masks = {name: mask.numpy() for name, mask in checkpoint.masks.items()}
    size, wrote, read = sum(array.nbytes for array in arrays.values()) / 1e6, 0.0, 0.0
    for _ in range(3):
        began = time.perf_counter()
        content = pack(arrays, masks, checkpoint.meta.plain(), values)
        middle = time.perf_counter()
        unpack(content, "here")
        wrote, read = max(wrote, size / (middle - began)), max(read, size / (time.perf_counter() - middle))
    kept = sum(int(mask.sum()) for mask in masks.values()) / max(1, sum(mask.size for mask in masks.values()))
    chance = kept * np.log2(kept) + (1 - kept) * np.log2(1 - kept) if 0 < kept < 1 else 0.0
    limit = sum(mask.size for mask in masks.values()) * (16 * kept - chance) / 8
    return {"bytes": len(content), "random_mask_and_16_bits": limit, "written_mb_per_s": wrote, "read_mb_per_s": read}


def _timed(removed: str, sparsity: float) -> tuple[str, ...]:
    """The formats that are timed. Zeros change no time where they are multiplied, as one sparsity is to show."""
    if removed == "channels":
        return "shrunk", "onnx", "onnx-int8"
    if removed == "weights":
        return ("onnx", "onnx-int8") if sparsity == CASES[3][2] else ()
    return "dense", "onnx", "onnx-int8"


EXACT = "packed float32", "dense", "shrunk", "onnx"
"""Formats whose logits are those of the checkpoint, so that nothing is measured again here."""


def worth(checkpoints: list[Path], samples: int, restarts: int, steps: int) -> dict[str, Any]:
    """Accuracies before and after every format that is not exact."""
    attacks, rows = [{"kind": "pgd", "steps": steps, "restarts": restarts}], []
    for folder in checkpoints:
        recipe = library.resolve(open_checkpoint(folder).meta.recipe or {}, (), str(folder))
        data = recipe.data.load()
        how = hp.Worth(threat=recipe.threat, attacks=attacks, samples=samples, seed=recipe.seed)
        with tempfile.TemporaryDirectory() as place:
            for name, form in SETTINGS.items():
                measured, suffix = None if name in EXACT else how, FORMATS.make(form, name).suffix
                try:
                    manifest = hp.export(folder, Path(place) / f"net{suffix}", form, data=data, worth=measured)
                except SpecError as error:
                    print(folder, name, error, flush=True)
                    continue
                rows.append({"checkpoint": str(folder), "name": name, **manifest.plain()})
                print(folder, name, in_words(manifest), flush=True)
    return {"samples": samples, "attacks": f"PGD-{steps}×{restarts}", "rows": rows}


def picture(report: dict[str, Any], out: Path) -> None:
    """Robust accuracy against bytes: a chart for each network, a line over the formats for each sparsity."""
    nets: dict[str, dict[str, list[Point]]] = {}
    for row in report["rows"]:
        record = Record.parse(row["after"] or _source_of(row, report["rows"]), "after")
        share, how = robust(record), ", as channels" if "channels" in row["checkpoint"] else ""
        assert share is not None
        line = f"{100 * row['sparsity']:.0f} % of the weights{how}" if row["kept"] < row["total"] else "dense"
        point = Point(row["bytes"], 100 * share, row["name"], *(100 * end for end in interval(share, record.samples)))
        nets.setdefault(row["net"], {}).setdefault(line, []).append(point)
    lines = sorted({line for found in nets.values() for line in found}, key=lambda line: (line != "dense", line))
    palette = Palette(lines)
    ticks = {10.0**power: f"{10 ** (power - 3)} kB" for power in (4, 5, 6)}
    charts = [
        Chart(
            [
                Series(line, palette[line], sorted(found.get(line, ()), key=lambda point: point.x))
                for line in lines
                if line in found or net == next(iter(nets))
            ],
            "bytes",
            "accuracy, %",
            f"{net}: robust accuracy, {report['attacks']}",
            ticks,
            (0, None),
            log_x=True,
        )
        for net, found in nets.items()
    ]
    paint(charts, out)


def _source_of(row: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What was measured of the source of an exact export."""
    found: dict[str, Any] = next(r["before"] for r in rows if r["checkpoint"] == row["checkpoint"] and r["before"])
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sizes", "worth", "picture"])
    parser.add_argument("checkpoints", nargs="*", type=Path, help="or the file that `picture` draws")
    parser.add_argument("--net", default="vgg16_bn")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--steps", type=int, default=20, help="of PGD")
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.what == "picture":
        (found,) = asked.checkpoints
        picture(json.loads(found.read_text()), asked.out)
        return
    if asked.what == "sizes":
        report = sizes(asked.net, asked.data, asked.repeats)
    else:
        report = worth(asked.checkpoints, asked.samples, asked.restarts, asked.steps)
    publish(report, asked.out)


if __name__ == "__main__":
    main()
