"""A network of the zoo: a finished run's, rounded to half precision, packed, and measured as it is packed.

    hydraprune run digits-cnn_digits-trades --set sparsity=0.95 --out runs/zoo
    python benchmarks/zoo.py runs/zoo/finetune --name digits-cnn_digits-hydra-95

It leaves NAME.packed and NAME.json in the package, from where `hp.load("zoo:NAME")` takes it. Attacks, images and
threat model are those of the run's recipe.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console

import hydraprune as hp
from hydraprune.core.files import write_json
from hydraprune.recipes import library
from hydraprune.recipes.evaluate import Evaluate
from hydraprune.recipes.stages import Bench
from hydraprune.runs.checkpoint import open_checkpoint
from hydraprune.runs.named import PACKED, ZOO


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="the folder of a finished stage")
    parser.add_argument("--name", required=True, help="under which it is loaded; letters, digits, - and _")
    parser.add_argument("--out", type=Path, default=ZOO, help="where to; the package by default")
    args = parser.parse_args()
    if not re.fullmatch(r"[\w-]+", args.name):
        parser.error(f"--name {args.name!r} has other characters than letters, digits, - and _")
    packed = args.out / f"{args.name}{PACKED}"
    hp.export(args.checkpoint, packed, values="float16")
    opened = open_checkpoint(packed)
    recipe = library.written(opened.meta.recipe or {}, str(args.checkpoint))
    (stage,) = (stage for stage in recipe.stages if isinstance(stage, Evaluate))
    with tempfile.TemporaryDirectory() as scratch:  # for what is measured image by image
        bench = Bench(recipe, recipe.data.load(), recipe.trainer.machine(), Console())
        record = stage.measured(replace(opened, folder=Path(scratch) / args.name), bench)
    entry = {"net": recipe.net.kind, "data": recipe.data.kind, "record": record.plain()}
    write_json(packed.with_suffix(".json"), entry)


if __name__ == "__main__":
    main()
