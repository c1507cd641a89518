"""Robustness properties of a VNN-COMP benchmark, drawn anew from its images: python generate_properties.py SEED

It writes `vnnlib/*.vnnlib` and `instances.csv` beside itself, out of `images.npz` and `benchmark.json`, and needs numpy
alone. The same seed writes the same files.
"""

import json
import random
import sys
from pathlib import Path

import numpy as np

IMAGES, SETTINGS, INSTANCES = "images.npz", "benchmark.json", "instances.csv"


def box(image: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the images within `eps` of the bytes `image` (C, H, W) and in [0, 1], each float32 of C * H * W."""
    pixels, reach = image.reshape(-1).astype(np.float32) / np.float32(255), np.float32(eps)
    return np.clip(pixels - reach, 0, 1), np.clip(pixels + reach, 0, 1)


def formula(lower: np.ndarray, upper: np.ndarray, label: int, classes: int) -> str:
    """VNN-LIB that an image of the box satisfies if another logit is at least that of `label`."""
    lines = [f"; Label {label}: satisfiable if the network takes an image of the box for another class."]
    lines += [f"(declare-const X_{i} Real)" for i in range(len(lower))]
    lines += [f"(declare-const Y_{k} Real)" for k in range(classes)]
    for i, (low, high) in enumerate(zip(_digits(lower), _digits(upper), strict=True)):
        lines += [f"(assert (>= X_{i} {low}))", f"(assert (<= X_{i} {high}))"]
    others = [f"    (and (>= Y_{k} Y_{label}))" for k in range(classes) if k != label]
    return "\n".join([*lines, "(assert (or", *others, "))", ""])


def _digits(numbers: np.ndarray) -> list[str]:
    """The fewest digits that stand for each float32, without exponents."""
    return [np.format_float_positional(number, trim="0") for number in numbers]


def generate(folder: Path, seed: int) -> None:
    """Write the properties of images that the seed draws."""
    settings = json.loads((folder / SETTINGS).read_text())
    with np.load(folder / IMAGES, allow_pickle=False) as file:
        images, labels = file["images"], file["labels"]
    made = folder / "vnnlib"
    made.mkdir(exist_ok=True)
    for old in made.glob("*.vnnlib"):
        old.unlink()
    lines = []
    for number in sorted(random.Random(seed).sample(range(len(images)), settings["instances"])):
        ends = box(images[number], settings["eps"])
        name = f"vnnlib/image_{number}.vnnlib"
        (folder / name).write_text(formula(*ends, int(labels[number]), settings["classes"]))
        lines.append(f"{settings['network']},{name},{settings['timeout']}\n")
    (folder / INSTANCES).write_text("".join(lines))


if __name__ == "__main__":
    generate(Path(__file__).resolve().parent, int(sys.argv[1]))
