"""Every shipped recipe takes two batches through each of its stages, and every network that they name is trained."""

import json

import pytest
import torch

from contracts.material import settings
from hydraprune.attacks.fgsm import FGSM
from hydraprune.core.plain import plain_copy
from hydraprune.evaluation import evaluate
from hydraprune.masks.view import MaskView
from hydraprune.pruners.pruning import prune
from hydraprune.recipes.certify import Certify
from hydraprune.recipes.evaluate import Evaluate
from hydraprune.recipes.library import load_recipe, names
from hydraprune.recipes.runner import run
from hydraprune.recipes.training import Fit
from hydraprune.train import fit


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    images = tmp_path_factory.mktemp("images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HYDRAPRUNE_CACHE", str(images / "cache"))
        yield images


def shortened(name, data, *more):
    """Overrides that leave a recipe its stages, objective and schedule, and take nearly all work out of it."""
    recipe = load_recipe(name)
    overrides = [f"data.{key}={json.dumps(value)}" for key, value in data.items()]
    overrides += ["data.samples=25", "data.validation=0.2"]
    few = {"steps": 1, "restarts": 1}
    methods = {"objective": recipe.objective}
    for stage in recipe.stages:
        at = f"stages.{stage.name}"
        if isinstance(stage, Fit):
            overrides += [f"{at}.epochs={min(1, stage.epochs)}", f"{at}.batch_size=10", f"{at}.validation.samples=2"]
            overrides += [f"{at}.validation.steps=1"]
            if stage.objective is not None:
                methods[f"{at}.objective"] = stage.objective
        elif isinstance(stage, Evaluate):
            kinds = dict.fromkeys("fgsm" if attack.kind == "autoattack" else attack.kind for attack in stage.attacks)
            attacks = [{"kind": kind, **(few if kind == "pgd" else {})} for kind in kinds]
            overrides += [f"{at}.attacks={json.dumps(attacks)}", f"{at}.attack_samples={{}}", f"{at}.samples=4"]
        elif isinstance(stage, Certify):
            overrides += [f"{at}.samples=4"] + ([f"{at}.smoothing.n=20"] if stage.smoothing else [])
    for path, method in methods.items():
        overrides += [f"{path}.steps=1"] if "steps" in type(method).model_fields else []
    return load_recipe(name, [*overrides, *more])


@pytest.mark.parametrize("name", names())
def test_a_recipe_runs_from_end_to_end(name, folder, tmp_path):
    """With a small network in place of its own, on images made up here."""
    kind = load_recipe(name).data.kind
    recipe = shortened(name, settings(kind, folder, 8), "net.kind=cnn_small", "net.options={}")
    records = run(recipe, tmp_path)
    trained = [stage for stage in recipe.stages if stage.trains]
    for stage in trained:
        assert (tmp_path / stage.name / "checkpoint.json").exists()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    epochs = [line["stage"] for line in lines]
    assert {name: epochs.count(name) for name in epochs} == {s.name: s.epochs for s in trained if s.epochs}
    measures = [stage for stage in recipe.stages if not stage.trains]
    assert [record.stage for record in records] == list(dict.fromkeys(name for s in measures for name in s.of))
    (budget,) = [stage.budget for stage in trained if stage.budget]
    for record in records:
        assert record.sparsity == pytest.approx(budget.sparsity if record.pruner else 0, abs=0.01)


def parts(name):
    """What makes training with one recipe other than with another: its network, its objectives and its budget."""
    recipe = load_recipe(name)
    stages = [stage for stage in recipe.stages if isinstance(stage, Fit)]
    budgets = [stage.budget.kind for stage in stages if stage.budget]
    return repr((recipe.net, recipe.objective, recipe.threat, [stage.objective for stage in stages], budgets))


DISTINCT = list({parts(name): name for name in reversed(names())}.values())
LEAST = {"vgg16_bn": 16, "timm:resnet50": 32}
"""Smallest side of an image; 8 for all others."""


class Two:
    """Two batches of two images."""

    def __init__(self, images):
        self.batches = images.take(4).batches(2, seed=0, augment=True)

    def __len__(self):
        return 2

    def epoch(self, number):
        return self.batches.epoch(number)


def two_batches(recipe, size, least):
    """Pre-train, prune and fine-tune the true network of a recipe on two batches each, and attack it."""
    data = recipe.data.load()
    torch.manual_seed(0)
    model = recipe.net.build(data.num_classes, data.shape[0], data.shape[1])
    view = MaskView(model)
    done = {}
    for stage in recipe.stages:
        if not isinstance(stage, Fit):
            continue
        if stage.pruner is not None:
            prune(view, stage.pruner, stage.budget, stage.structure)
        before = [tensor.detach().clone() for _, tensor in view.train(stage.over)]
        objective = stage.objective or recipe.objective
        moving = view.train(stage.over)
        networks = {name: done[other] for name, other in stage.networks.items()}
        how = {"optim": stage.optim, "threat": recipe.threat, "networks": networks}
        (line,) = fit(model, moving, Two(data.train), objective, epochs=1, **how)
        done[stage.name] = plain_copy(model)
        assert line["loss"] > 0
        moved = [not torch.equal(a, b) for a, (_, b) in zip(before, moving, strict=True)]
        assert all(moved), [name for (name, _), does in zip(moving, moved, strict=True) if not does]
    (budget,) = [stage.budget for stage in recipe.stages if isinstance(stage, Fit) and stage.budget]
    counts = view.counts().values() if budget.kind == "uniform" else [view.count()]
    assert all(count.kept == count.total - int(budget.sparsity * count.total) for count in counts)
    result = evaluate(model, Two(data.test).epoch(0), threat=recipe.threat, attacks=[FGSM()], seed=0)
    assert len(result.correct) == 4
    return model


@pytest.mark.parametrize("name", DISTINCT)
def test_the_true_network_of_a_recipe_can_be_trained_pruned_and_attacked(name, folder):
    recipe = load_recipe(name)
    side = LEAST.get(recipe.net.kind, 8)
    recipe = shortened(name, settings(recipe.data.kind, folder, side))
    model = two_batches(recipe, 2, side)
    assert sum(p.numel() for p in model.parameters()) > 10_000


@pytest.mark.parametrize("name", [name for name in DISTINCT if load_recipe(name).data.kind == "images"])
def test_a_recipe_for_photographs_takes_real_ones(name, reference):
    images = reference / "data" / "imagenette"
    if not images.is_dir():
        pytest.skip("there are no photographs in the reference folder")
    recipe = shortened(name, {"path": str(images), "size": 64, "workers": 0})
    data = recipe.data.load()
    assert (data.num_classes, data.shape) == (10, (3, 64, 64))
    two_batches(recipe, 2, 64)
