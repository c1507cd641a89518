"""What exports weigh, how fast they are, and what robustness they keep: the figures of results/deploy_cpu.md.

    python benchmarks/deploy.py sizes --data data/cifar10 --out results/deploy_cpu/vgg16_bn.json
    python benchmarks/deploy.py sizes --net resnet18 --data data/cifar10 --out results/deploy_cpu/resnet18.json
    python benchmarks/deploy.py worth RUN/finetune OTHER/finetune --out results/deploy_cpu/cnn_small.json

`sizes` takes a network with random weights (seed 0) and statistics of batch norm that have seen images, dense and
pruned by magnitude: 90, 95 and 99 % of the weights in every layer, and 50, 75 and 90 % of the coupled channels. Times
are those of `hydraprune latency`, all of a network in one run: the dense network in every runtime, and of the others
what can be faster.

`worth` exports trained checkpoints in every format and measures clean and robust accuracy before and after, on the
first test images of their data.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

import hydraprune as hp
from hydraprune.core.errors import SpecError
from hydraprune.recipes import library
from hydraprune.runs.checkpoint import open_checkpoint, save
from hydraprune.runs.meta import Meta
from machine import publish

FORMATS: dict[str, dict[str, Any]] = {
    "packed float32": {"kind": "packed"},
    "packed float16": {"kind": "packed", "values": "float16"},
    "packed bfloat16": {"kind": "packed", "values": "bfloat16"},
    "packed int8": {"kind": "packed", "values": "int8"},
    "dense": {"kind": "dense"},
    "shrunk": {"kind": "shrunk"},
    "onnx": {"kind": "onnx"},
    "onnx-int8": {"kind": "onnx-int8"},
}
TIMED = "dense", "shrunk", "onnx", "onnx-int8"
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
                probe = hp.Probe.of(images.train.take(8)) if hasattr(hp.Probe, "of") else None
                hp.prune(model, "magnitude", hp.Uniform(sparsity=sparsity), structure=structure, probe=probe)
                hp.MaskView(model).freeze()
            meta = Meta(net=hp.Net(kind=net), num_classes=10, in_channels=3, image_size=32, pruner="magnitude")
            folder = Path(place) / f"{what}-{100 * sparsity:g}"
            save(folder, model, meta)
            for name, form in FORMATS.items():
                if name == "shrunk" and structure != "coupled":
                    continue
                manifest = hp.export(folder, folder / name.replace(" ", "-"), form, data=images)
                rows.append(
                    {
                        "what": what, "sparsity": sparsity, "format": name, "bytes": manifest.bytes,
                        "dense_bytes": manifest.dense_bytes, "smaller": manifest.smaller, "kept": manifest.kept,
                        "total": manifest.total, "difference": manifest.difference, "logit": manifest.logit,
                    }
                )  # fmt: skip
                print(what, sparsity, name, manifest.bytes, f"{manifest.smaller:.1f}", flush=True)
            timed += [folder / name for name in TIMED if (folder / name).exists() and (name, what) not in _SAME]
        found = hp.latency(*timed, repeats=repeats, out=Path(place) / "latency.json")
    return {"net": net, "seed": 0, "sizes": rows, "latency": found.plain()}


_SAME = {("dense", "weights"), ("dense", "channels")}
"""Zeros in a dense network change no time in torch; ONNX files of all are timed."""


def worth(checkpoints: list[Path], samples: int, attacks: list[str]) -> dict[str, Any]:
    """Accuracies before and after every format."""
    rows = []
    for folder in checkpoints:
        recipe = library.resolve(open_checkpoint(folder).meta.recipe or {}, (), str(folder))
        data = recipe.data.load()
        how = hp.Worth(threat=recipe.threat, attacks=attacks, samples=samples, seed=recipe.seed)
        with tempfile.TemporaryDirectory() as place:
            for name, form in FORMATS.items():
                try:
                    manifest = hp.export(folder, Path(place) / name.replace(" ", "-"), form, data=data, worth=how)
                except SpecError as error:
                    print(folder, name, error, flush=True)
                    continue
                rows.append({"checkpoint": str(folder), "name": name, **manifest.plain()})
                print(folder, name, manifest.bytes, manifest.after, flush=True)
    return {"samples": samples, "attacks": attacks, "rows": rows}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sizes", "worth"])
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--net", default="vgg16_bn")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--attacks", default="pgd")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.what == "sizes":
        report = sizes(asked.net, asked.data, asked.repeats)
    else:
        report = worth(asked.checkpoints, asked.samples, asked.attacks.split(","))
    publish(report, asked.out)


if __name__ == "__main__":
    main()
