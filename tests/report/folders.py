"""Run folders as runs write them, small, with figures that are easy to check."""

import json

import torch
import yaml

from hydraprune.core.files import write_json
from hydraprune.core.tensors import pack_mask, save_tensors

CLASSES, IMAGES = 4, 80
LAYERS = {"0.weight": (8, 1, 3, 3), "3.weight": (4, 72)}


def recipe(name="tiny", seed=0, **more):
    values = {
        "name": name,
        "about": "two layers, for tests",
        "seed": seed,
        "data": {"kind": "digits"},
        "net": {"kind": "cnn_digits"},
        "threat": {"norm": "linf", "eps": 8 / 255},
        "objective": {"kind": "trades", "beta": 6.0},
        "stages": [
            {"kind": "fit", "name": "pretrain", "over": "weights"},
            {"kind": "fit", "name": "prune", "over": "scores", "pruner": {"kind": "hydra"}},
            {"kind": "evaluate", "name": "evaluate", "of": ["pretrain", "prune"]},
        ],
        "compare": {"pruners": [{"kind": "hydra"}, {"kind": "magnitude"}], "sparsities": [0.9, 0.5]},
        "source": None,
    }
    return values | more


def record(stage, pruner, kept, clean, robust, **more):
    total = sum(torch.Size(shape).numel() for shape in LAYERS.values())
    values = {
        "stage": stage, "pruner": pruner, "sparsity": 1 - kept / total, "kept": kept, "total": total,
        "clean_accuracy": clean, "robust_accuracy": {"pgd-50x10": robust}, "samples": IMAGES,
        "threat": {"norm": "linf", "eps": 8 / 255}, "seed": 0, "seconds": 1.0,
    }  # fmt: skip
    return values | more


def write_run(folder, recipe, *, beside=True, pruners=("hydra", "magnitude"), sparsities=(0.9, 0.5)):
    """A finished run of `recipe`; with what evaluation leaves beside the checkpoints, or without."""
    rng = torch.Generator().manual_seed(recipe["seed"])
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_json(folder / "environment.json", {"device": "cpu x86_64", "versions": {"torch": "2.15"}})
    weights = {name: torch.randn(shape, generator=rng) for name, shape in LAYERS.items()}
    records = [_network(folder, "pretrain", None, weights, {}, 0.9, 0.6, rng, beside)]
    epochs = [{"stage": "pretrain", "epoch": e, "loss": 2 / e, "accuracy": 1 - 1 / e, "seconds": 60} for e in (1, 2, 3)]
    for sparsity in sparsities:
        for pruner in pruners:
            stage, gain = f"{pruner}-{sparsity:g}/prune", 0.1 * (pruner == "hydra") + 0.01 * recipe["seed"]
            masks = {name: _mask(w, pruner, sparsity, rng) for name, w in weights.items()}
            pruned = (0.5 + gain, 0.8 * (1 - sparsity) + gain)
            records.append(_network(folder, stage, pruner, weights, masks, *pruned, rng, beside))
            epochs += [{"stage": stage, "epoch": e, "loss": 1 / e, "validation_robust_accuracy": 0.4} for e in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in epochs))
    write_json(folder / "results.json", records)
    return folder


def _mask(weight, pruner, sparsity, rng):
    score = weight.abs() if pruner == "magnitude" else torch.rand(weight.shape, generator=rng)
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[score.flatten().argsort(descending=True)[: round((1 - sparsity) * weight.numel())]] = True
    return mask.view(weight.shape)


def _network(folder, stage, pruner, weights, masks, clean, robust, rng, beside):
    place = folder / stage
    masked = {name: weight * masks.get(name, 1) for name, weight in weights.items()}
    save_tensors(place / "model.safetensors", masked, {})
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    save_tensors(place / "masks.safetensors", {n: pack_mask(m) for n, m in masks.items()}, {"shapes": shapes})
    layers = {n: (int(masks[n].sum()) if n in masks else w.numel(), w.numel()) for n, w in weights.items()}
    kept = sum(count for count, _ in layers.values())
    found = record(stage, pruner, kept, clean, robust, macs=2000 * kept, macs_dense=720_000)
    meta = {"pruner": pruner, "sparsity": found["sparsity"], "kept": kept, "total": found["total"], "layers": layers}
    write_json(place / "checkpoint.json", meta)
    if beside:
        _beside(place, clean, robust, rng)
        elsewhere(place, found, 0.2, robust / 2)
        if pruner is not None:
            claim(place, f"{pruner}_Test_R18_CIFAR10_US_{round(100 * found['sparsity'])}", found["sparsity"], robust)
        certified = {"0.0": clean, "0.25": robust / 2}
        found["verified"] = {"ibp": {"samples": 40, "precision": "float32", "clean_accuracy": clean,
                                     "verified_accuracy": robust / 2, "mean_margin": 1.25}}  # fmt: skip
        found["certified"] = {"smoothing": {
            "samples": 40, "sigma": 0.25, "n0": 10, "n": 100, "alpha": 0.001, "precision": "float32",
            "clean_accuracy": clean, "certified_accuracy": certified, "average_certified_radius": 0.125,
            "abstention_rate": 0.05}}  # fmt: skip
    return found


def _beside(place, clean, robust, rng):
    label = torch.arange(IMAGES) % CLASSES
    right = torch.arange(IMAGES) < clean * IMAGES
    prediction = torch.where(right, label, (label + 1) % CLASSES)
    verdicts = {"label": label, "prediction": prediction, "confidence": torch.full((IMAGES,), 0.75),
                "survived/pgd-50x10": torch.arange(IMAGES) < robust * IMAGES}  # fmt: skip
    header = {"threat": {"norm": "linf", "eps": 8 / 255}, "seconds": 1.0, "samples": IMAGES}
    save_tensors(place / "verdicts.safetensors", verdicts, header)
    image = torch.rand(3, 1, 8, 8, generator=rng)
    changed = (image + 0.1 * torch.randn(image.shape, generator=rng).sign()).clamp(0, 1)
    examples = {"image": image, "adversarial": changed, "label": label[:3], "prediction": label[:3],
                "adversarial_prediction": label[1:4]}  # fmt: skip
    save_tensors(place / "examples.safetensors", examples, {"attack": "pgd-50x10", "eps": 0.1})
    write_json(place / "curves.json", {"security": {"fmn": {"eps": [0.0, 0.1, 0.2], "accuracy": [clean, robust, 0.0]}}})
    grid = {"x": [-1.0, 0.0, 1.0], "y": [-1.0, 0.0, 1.0], "loss": [[1.0, 2.0, 3.0], [1.5, 2.5, 3.5], [2.0, 3.0, 4.0]]}
    checks = [
        {
            "name": "radius",
            "passed": True,
            "found": "0 % at 0.2",
            "expected": "near 0",
            "why": "w",
            "figures": {"eps": [0.0, 0.1, 0.2], "accuracy": [clean, robust, 0.0]},
        },
        {"name": "black-box", "passed": robust > 0.3, "found": "f", "expected": "e", "why": "w", "figures": {}},
        {"name": "loss-surface", "passed": None, "found": "", "expected": "", "why": "", "figures": grid},
    ]
    write_json(place / "checks.json", checks)
    lines = [{"index": i, "label": 1, "prediction": 1 if i % 2 else -1, "radius": 0.1 * (i % 4)} for i in range(40)]
    (place / "smoothing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def elsewhere(place, found, eps, robust, norm="linf", **more):
    """What `hydraprune evaluate` leaves under another threat model."""
    threat = {"norm": norm, "eps": eps}
    values = {**found, "threat": threat, "robust_accuracy": {"pgd-50x10": robust}, "stage": place.name, **more}
    write_json(place / f"{norm}-{eps:g}" / "evaluation.json", values)


def claim(place, name, sparsity, robust, **more):
    """What `hydraprune benchmark` leaves."""

    def figure(accuracy, eps, samples=IMAGES):
        return {"accuracy": accuracy, "samples": samples, "eps": eps}

    strict = {"ensemble": figure(0.35, 8 / 255), "worst-case": figure(robust / 2, 8 / 255)}
    values = {
        "name": name, "eligible": False, "reasons": ["too few images"], "sparsity": sparsity, "kept": 1, "total": 2,
        "sha256": "0", "versions": {},
        "benchmark": {"clean_accuracy": 0.75, "autoattack": figure(robust, 0.031), "fmn": figure(0.5, 8 / 255, 16),
                      "fmn_settings": {}, "distances": [0.1]},
        "strict": {"clean_accuracy": 0.75, "attacks": strict},
    }  # fmt: skip
    write_json(place / "claim.json", values | more)
