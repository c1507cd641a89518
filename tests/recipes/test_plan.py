"""What a recipe does, in which order, and from which network each stage starts."""

from hydraprune.recipes.plan import plan

from hydraprune.recipes.library import load_recipe
from hydraprune.recipes.stages import Fit
from recipes.tiny import COMPARE, tiny


def outline(recipe):
    """(folder, start) of a training stage, (folder, targets) of an evaluation."""
    return [(job.path, job.start if isinstance(job.stage, Fit) else job.targets) for job in plan(recipe)]


def inserted(recipe, position, *stages):
    """`recipe` with more stages."""
    values = recipe.plain()
    values["stages"][position:position] = stages
    return type(recipe).parse(values, "more")


def test_a_chain():
    assert outline(tiny()) == [
        ("pretrain", None), ("prune", "pretrain"), ("finetune", "prune"), ("evaluate", ("pretrain", "finetune")),
    ]  # fmt: skip


def test_an_evaluation_takes_the_last_network_and_none_starts_from_it():
    measure = {"kind": "evaluate", "attacks": ["fgsm"]}
    recipe = inserted(tiny(), 1, {**measure, "name": "early"})
    recipe = inserted(recipe, 5, {**measure, "name": "late"}, {**measure, "name": "later"})
    assert outline(recipe) == [
        ("pretrain", None), ("early", ("pretrain",)), ("prune", "pretrain"), ("finetune", "prune"),
        ("evaluate", ("pretrain", "finetune")), ("late", ("finetune",)), ("later", ("finetune",)),
    ]  # fmt: skip


def test_branches_share_the_pretraining_and_its_evaluation():
    assert outline(tiny(COMPARE)) == [
        ("pretrain", None),
        ("hydra-0.9/prune", "pretrain"),
        ("hydra-0.9/finetune", "hydra-0.9/prune"),
        ("hydra-0.9/evaluate", ("pretrain", "hydra-0.9/finetune")),
        *[
            job
            for branch in ("magnitude-0.9", "random-0.9", "hydra-0.5", "magnitude-0.5", "random-0.5")
            for job in (
                (f"{branch}/prune", "pretrain"),
                (f"{branch}/finetune", f"{branch}/prune"),
                (f"{branch}/evaluate", (f"{branch}/finetune",)),
            )
        ],
    ]


def test_branches_start_from_the_network_even_if_it_was_evaluated_before():
    recipe = inserted(tiny(COMPARE), 1, {"kind": "evaluate", "name": "early", "attacks": ["fgsm"]})
    jobs = outline(recipe)
    assert jobs[:3] == [("pretrain", None), ("early", ("pretrain",)), ("hydra-0.9/prune", "pretrain")]
    assert ("magnitude-0.5/prune", "pretrain") in jobs


def test_branches_without_pretraining_start_from_nothing():
    recipe = tiny("compare={pruners: [random], sparsities: [0.5]}")
    values = recipe.plain()
    values["stages"] = values["stages"][1:3]
    assert outline(type(recipe).parse(values, "short")) == [
        ("random-0.5/prune", None), ("random-0.5/finetune", "random-0.5/prune"),
    ]  # fmt: skip


def stages(recipe):
    return {job.path: job.stage for job in plan(recipe) if isinstance(job.stage, Fit)}


def test_every_branch_has_its_own_pruner_and_sparsity():
    found = stages(tiny(COMPARE, "stages.prune.budget={kind: erk, sparsity: 0.1}"))
    for pruner in ("hydra", "magnitude", "random"):
        for sparsity in (0.9, 0.5):
            prune, finetune = found[f"{pruner}-{sparsity}/prune"], found[f"{pruner}-{sparsity}/finetune"]
            assert (prune.pruner.kind, prune.budget.kind, prune.budget.sparsity) == (pruner, "erk", sparsity)
            assert finetune.pruner is None


def test_pruners_without_scores_spend_their_epochs_in_the_next_stage():
    settings = ("stages.prune.epochs=8", "stages.finetune.epochs=3")
    found = stages(tiny(COMPARE, *settings))
    assert [(found[f"{p}-0.9/prune"].epochs, found[f"{p}-0.9/finetune"].epochs) for p in ("hydra", "magnitude")] == [
        (8, 3), (0, 11),
    ]  # fmt: skip
    fewer = stages(tiny(COMPARE, *settings, "compare.equal_epochs=false"))
    assert [(fewer[f"{p}-0.9/prune"].epochs, fewer[f"{p}-0.9/finetune"].epochs) for p in ("hydra", "random")] == [
        (8, 3), (0, 3),
    ]  # fmt: skip


def test_iterative_pruning_gives_its_epochs_back_stage_by_stage():
    recipe = tiny("compare={pruners: [magnitude], sparsities: [0.5]}", "stages.prune.epochs=4")
    second = {**recipe.plain()["stages"][1], "name": "prune2", "epochs": 2}
    more = {**recipe.plain()["stages"][2], "name": "finetune2", "epochs": 1}
    found = stages(inserted(recipe, 3, second, more))
    assert [(name, stage.epochs) for name, stage in found.items()] == [
        ("pretrain", 2), ("magnitude-0.5/prune", 0), ("magnitude-0.5/finetune", 6),
        ("magnitude-0.5/prune2", 0), ("magnitude-0.5/finetune2", 3),
    ]  # fmt: skip


def test_the_plan_leaves_the_recipe_as_it_was():
    recipe = tiny(COMPARE)
    plan(recipe)
    assert recipe == tiny(COMPARE)


def test_the_papers_comparison_gives_the_baseline_fewer_epochs():
    found = stages(load_recipe("cifar10-vgg16-trades-compare"))
    assert len(found) == 1 + 2 * 9
    assert (found["hydra-0.99/prune"].epochs, found["hydra-0.99/finetune"].epochs) == (20, 100)
    assert (found["magnitude-0.99/prune"].epochs, found["magnitude-0.99/finetune"].epochs) == (0, 100)
