"""Recipes that cannot work are refused before anything runs."""

import copy

import pytest

from hydraprune.core.errors import SpecError
from hydraprune.recipes.evaluate import Evaluate
from hydraprune.recipes.schema import Recipe
from hydraprune.recipes.training import Fit
from recipes.tiny import TINY, tiny


def changed(change):
    values = copy.deepcopy(TINY)
    change(values)
    return Recipe.parse(values, "tiny")


def test_the_recipe_itself_is_well():
    recipe = tiny()
    assert [type(stage) for stage in recipe.stages] == [Fit, Fit, Fit, Evaluate]
    assert [attack.name for attack in recipe.stages[3].attacks] == ["fgsm", "pgd-2x1"]


FIT = {"kind": "fit", "over": "weights", "epochs": 1}
SCORES = {"kind": "fit", "name": "again", "over": "scores", "epochs": 1}
BUDGET = {"kind": "uniform", "sparsity": 0.5}


@pytest.mark.parametrize(
    ("stage", "complaint"),
    [
        (SCORES, r"there are no scores without a pruner; add `pruner: \{kind: hydra\}`"),
        (SCORES | {"pruner": "hydra"}, r"a pruner needs a budget, such as"),
        (SCORES | {"budget": BUDGET}, r"nothing to prune with; add `pruner: hydra`"),
        (SCORES | {"exempt": ["first"]}, r"nothing to prune with; add `pruner: hydra`"),
        (SCORES | {"pruner": "hydra", "budget": BUDGET, "structure": "n:m"}, r"structure 'n:m' .* budget 'uniform'"),
        (SCORES | {"pruner": "harp", "structure": "n:m"}, r"'harp' learns how many groups each layer keeps"),
        (SCORES | {"pruner": "magnitude", "budget": BUDGET}, r"pruner 'magnitude' has no scores to train; use `ep"),
        (SCORES | {"pruner": "random", "budget": BUDGET}, r"pruner 'random' has no scores to train"),
        (FIT | {"name": "more", "pruner": "hydra", "budget": BUDGET}, r"'hydra' learns its scores, and over weights"),
        (FIT | {"name": "prune"}, r"two stages are called 'prune'; give each its own name"),
        (FIT | {"name": "../up"}, r"tiny\.stages\.4\.name: .*pattern"),
        (FIT | {"name": ""}, r"tiny\.stages\.4\.name: .*pattern"),
        (FIT | {"name": "more", "epochs": -1}, r"tiny\.stages\.4\.epochs: .*greater than or equal to 0"),
        (FIT | {"name": "more", "over": "weight"}, r"tiny\.stages\.4\.over: .*'weights' or 'scores' \(got 'weight'\)"),
        (FIT | {"name": "more", "batch_size": 0}, r"tiny\.stages\.4\.batch_size: .*greater than or equal to 1"),
        (
            FIT | {"name": "more", "select": "best", "validation": {"samples": 0}},
            r"select: best needs validation images; set validation\.samples",
        ),
        ({"kind": "evaluate", "name": "more", "attacks": []}, r"tiny\.stages\.4: nothing to measure; add `attacks"),
        (
            {"kind": "evaluate", "name": "more", "attacks": ["fgsm"], "of": ["finetun"]},
            r"stage 'more' evaluates 'finetun', no fit before it; did you mean 'finetune'\?",
        ),
        ({"kind": "evaluate", "name": "more", "attacks": ["fgsm"], "of": ["evaluate"]}, r"'evaluate', no fit"),
        (
            {"kind": "evaluate", "name": "more", "attacks": ["fgsm", "pgd", "fgsm"]},
            r"two attacks are called 'fgsm'; remove one",
        ),
        (
            {"kind": "evaluate", "name": "more", "attacks": ["fgsm"], "attack_samples": {"fgms": 5}},
            r"attack_samples: no attack 'fgms' is run; did you mean 'fgsm'\?",
        ),
        (
            {"kind": "evaluate", "name": "more", "attacks": ["fgsm"], "attack_samples": {"fgsm": 0}},
            r"attack_samples\.fgsm: .*greater than or equal to 1",
        ),
    ],
)  # fmt: skip
def test_a_stage_that_cannot_work(stage, complaint):
    with pytest.raises(SpecError, match=complaint):
        changed(lambda values: values["stages"].append(stage))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda v: v.pop("threat"), r"stage 'evaluate' has attacks, but the recipe has no threat model"),
        (
            lambda v: v["data"].update(validation=0),
            r"stage 'finetune' selects the best epoch, but data\.validation is 0",
        ),
        (lambda v: v["stages"].insert(0, v["stages"].pop()), r"stage 'evaluate' has no network to evaluate"),
        (
            lambda v: v["stages"].insert(1, {**v["stages"][3], "name": "early"}),
            r"stage 'early' evaluates 'finetune', no fit before it; known: pretrain",
        ),
        (lambda v: v.update(stages=[]), r"tiny\.stages: .*at least 1 item"),
        (lambda v: v.update(stages=v["stages"][3:]), r"stage 'evaluate' has no network to evaluate"),
        (lambda v: v.update(stages=v["stages"][0]), r"tiny\.stages: .*list"),
        (lambda v: v["stages"].append("fit"), r"tiny\.stages\.4\."),
        (lambda v: v["stages"].append(5), r"tiny\.stages\.4: expected \{kind: \.\.\.\}, got 5; kinds: fit, evaluate"),
        (lambda v: v.update(name=None), r"tiny\.name: "),
        (lambda v: v.update(trainer={"devices": 0}), r"tiny\.trainer\.devices: .*greater than or equal to 1"),
        (lambda v: v.update(trainer={"device": "tpu"}), r"tiny\.trainer\.device: .*'cuda' \(got 'tpu'\)"),
        (lambda v: v.update(source={}), r"tiny\.source\.paper: Field required"),
    ],
)
def test_a_recipe_that_cannot_work(change, complaint):
    with pytest.raises(SpecError, match=complaint):
        changed(change)


def test_every_mistake_is_named_at_once():
    with pytest.raises(SpecError) as caught:
        tiny("threat.eps=8", "stages.prune.budget.sparsity=1.0", "stages.pretrain.optim.lr=0")
    assert str(caught.value).count("tiny.") == 3
    for path in ("tiny.threat: ", "tiny.stages.1.budget.sparsity: ", "tiny.stages.0.optim.lr: "):
        assert path in str(caught.value)


def test_natural_training_needs_no_threat():
    recipe = tiny(
        "threat=null", "objective=natural", "stages.evaluate={kind: fit, name: more, over: weights, epochs: 1}"
    )
    assert recipe.threat is None


def objectives(*overrides):
    return [stage.objective for stage in tiny(*overrides).stages if isinstance(stage, Fit)]


GROWING = "objective={kind: ibp, kappa_final: 0.5, ramp: {start: 1, length: 9, shape: smooth}}"


def test_a_stage_may_change_some_of_the_objective():
    whole = tiny(GROWING).objective
    assert objectives(GROWING) == [None, None, None]
    first, second, third = objectives(
        GROWING, "stages.prune.objective={ramp: {length: 0}}", "stages.finetune.objective.kappa_final=null"
    )
    assert first is None
    assert second == whole.model_copy(update={"ramp": whole.ramp.model_copy(update={"length": 0})})
    assert third == whole.model_copy(update={"kappa_final": None})


def test_a_bare_name_can_be_changed_and_an_objective_with_a_kind_is_another_one():
    changed = "stages.prune.objective={beta: 2}"
    assert objectives("objective=trades", changed)[1].beta == 2
    assert objectives("objective=trades", changed)[1].steps == 10
    natural = objectives(GROWING, "stages.prune.objective={kind: natural}")[1]
    assert natural.kind == "natural"


def test_the_resolved_recipe_shows_whole_objectives_and_reads_back():
    recipe = tiny(GROWING, "stages.prune.objective={ramp: {length: 0}}")
    shown = recipe.plain()
    assert shown["stages"][1]["objective"] == recipe.objective.plain() | {
        "ramp": {"start": 1, "length": 0, "shape": "smooth", "middle": 0.25, "power": 4, "initial": 0}
    }
    assert Recipe.parse(shown, "again") == recipe
    assert Recipe.parse(shown | {"objective": recipe.objective, "stages": recipe.stages}, "again") == recipe


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("{rampp: {length: 0}}", r"tiny\.stages\.1\.objective: unknown key 'rampp'; did you mean 'ramp'"),
        ("{ramp: {size: 0}}", r"tiny\.stages\.1\.objective\.ramp: unknown key 'size'"),
        ("{kappa_final: 2}", r"tiny\.stages\.1\.objective\.kappa_final: .*less than or equal to 1"),
        ("5", r"tiny\.stages\.1\.objective: expected \{kind: \.\.\.\}, got 5"),
    ],
)
def test_a_change_of_the_objective_that_cannot_work(change, complaint):
    with pytest.raises(SpecError, match=complaint):
        tiny(GROWING, f"stages.prune.objective={change}")


def test_a_recipe_without_objective_says_so_although_a_stage_changes_it():
    def without(values):
        del values["objective"]
        values["stages"][1]["objective"] = {"beta": 2}

    with pytest.raises(SpecError, match=r"tiny\.objective: Field required"):
        changed(without)
