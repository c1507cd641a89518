"""Words for settings that change together."""

import pytest
import yaml

from hydraprune.core.errors import SpecError
from hydraprune.pruners import PRUNERS
from hydraprune.recipes.library import dump, load_recipe, names, read_recipe, resolve
from hydraprune.recipes.runner import run
from hydraprune.recipes.training import Fit
from hydraprune.recipes.variables import Variable, short_name
from recipes.tiny import TINY, tiny

WORDS = {
    "sparsity": "stages.prune.budget.sparsity",
    "pruner": {
        "path": "stages.prune.pruner",
        "cases": {
            "one-shot": {"stages.prune.epochs": 0, "stages.finetune.epochs": 3},
            "moving": {"stages.prune.over": "weights"},
            "random": {"seed": 7},
        },
    },
    "eps": {"path": "threat.eps", "cases": {0.2: {"objective.beta": 3}}},
}


def with_words(*overrides, **more):
    return resolve({**TINY, "variables": {**WORDS, **more}}, overrides, "tiny")


def changes(recipe):
    """Where a recipe differs from the one without overrides, its words apart."""

    def flat(value, path=""):
        if isinstance(value, dict):
            return {k: v for key, inner in value.items() for k, v in flat(inner, f"{path}.{key}").items()}
        if isinstance(value, list):
            return {k: v for n, inner in enumerate(value) for k, v in flat(inner, f"{path}.{n}").items()}
        return {path: value}

    ours, plain = flat(recipe.plain()), flat(with_words().plain())
    return {path[1:]: value for path, value in ours.items() if plain.get(path, ...) != value}


def test_words_alone_change_nothing():
    assert with_words() == tiny().model_copy(update={"variables": with_words().variables})


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sparsity=0.5"], {"stages.1.budget.sparsity": 0.5}),
        (["sparsity=0.5", "sparsity=0.3"], {"stages.1.budget.sparsity": 0.3}),
        (["eps=0.2"], {"threat.eps": 0.2, "objective.beta": 3}),
        (["eps=1/5"], {"threat.eps": 0.2, "objective.beta": 3}),
        (["stages.prune.epochs=4", "sparsity=0.5"], {"stages.1.epochs": 4, "stages.1.budget.sparsity": 0.5}),
    ],
)  # fmt: skip
def test_a_word_sets_what_it_stands_for(overrides, expected):
    assert changes(with_words(*overrides)) == expected


def test_a_pruner_brings_what_its_kind_needs():
    at_once, learned, moving = (with_words(f"pruner={name}") for name in ("snip", "harp", "rigl"))
    assert [(s.epochs, s.over) for s in at_once.stages[:3]] == [(2, "weights"), (0, "scores"), (3, "weights")]
    assert changes(learned).keys() == {p for p in changes(learned) if p.startswith("stages.1.pruner")}
    assert (moving.stages[1].over, moving.stages[1].epochs) == ("weights", 1)
    assert with_words("pruner={kind: magnitude}").stages[1].epochs == 0
    assert (with_words("pruner=random").seed, with_words("pruner=random").stages[1].epochs) == (7, 0)
    assert with_words("pruner.init=kaiming_normal").stages[1].pruner.init == "kaiming_normal"


def test_what_is_set_by_its_path_wins_over_what_a_word_brings():
    for order in (1, -1):
        settings = ["pruner=magnitude", "stages.finetune.epochs=9"][::order]
        assert with_words(*settings).stages[2].epochs == 9


def test_a_word_that_is_set_again_leaves_nothing_of_what_it_brought():
    assert with_words("pruner=magnitude", "pruner=hydra").stages == with_words("pruner=hydra").stages
    assert with_words("pruner=hydra").stages == with_words().stages
    again = resolve(with_words("pruner=magnitude").plain(), ["sparsity=0.3"], "again")
    assert again.stages[1].budget.sparsity == 0.3
    with pytest.raises(SpecError, match="no setting or variable 'pruner'"):  # it was spent
        resolve(with_words("pruner=magnitude").plain(), ["pruner=hydra"], "again")


def test_a_recipe_chooses_a_word_and_one_that_extends_it_another(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**TINY, "variables": WORDS, "set": {"pruner": "magnitude"}}))
    child = {"extends": str(tmp_path / "base.yaml"), "set": {"pruner": "hydra"}}
    (tmp_path / "child.yaml").write_text(yaml.safe_dump(child))
    assert load_recipe(str(tmp_path / "base.yaml")).stages == with_words("pruner=magnitude").stages
    assert load_recipe(str(tmp_path / "child.yaml")).stages == with_words().stages
    assert load_recipe(str(tmp_path / "child.yaml"), ["pruner=random"]).stages == with_words("pruner=random").stages


def test_the_closest_case_wins_and_numbers_are_numbers():
    cases = {"one-shot": {"seed": 2, "stages.prune.epochs": 0}, "magnitude": {"seed": 3}}
    words = {"pruner": {"path": "stages.prune.pruner", "cases": cases}}
    assert with_words("pruner=magnitude", **words).seed == 3
    assert with_words("pruner=snip", **words).seed == 2
    words = {"rate": {"path": "stages.prune.optim.lr", "cases": {0.001: {"seed": 5}}}}
    assert [with_words(f"rate={text}", **words).seed for text in ("0.001", "1e-3", "1/1000", "0.01")] == [5, 5, 5, 0]


def test_a_word_is_dropped_by_null(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**TINY, "variables": WORDS}))
    child = {"extends": str(tmp_path / "base.yaml"), "variables": {"pruner": None, "sparsity": None}}
    (tmp_path / "child.yaml").write_text(yaml.safe_dump({**child, "stages": TINY["stages"][:1]}))
    assert load_recipe(str(tmp_path / "child.yaml")).variables.keys() == {"eps"}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**TINY, "variables": WORDS, "set": {"pruner": "magnitude"}}))
    assert load_recipe(str(tmp_path / "child.yaml")).variables.keys() == {"eps"}  # and so is the value it had


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({**TINY, "words": 3}, "words: expected a mapping of words, got 3"),
        ({**TINY, "words": {"zzz": 1}}, "no variable 'zzz'"),
        (
            {"extends": "digits-cnn_digits-trades", "words": {"pruner": "hydra"}},
            "choose values of variables under",
        ),
    ],
)
def test_what_only_a_study_writes_down_is_no_setting(tmp_path, settings, complaint):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(SpecError, match=complaint):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_words_are_inherited_one_by_one(tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**TINY, "variables": WORDS}))
    child = {"extends": str(tmp_path / "base.yaml"), "variables": {"eps": "threat.eps", "width": "net.options.width"}}
    (tmp_path / "child.yaml").write_text(yaml.safe_dump(child))
    found = load_recipe(str(tmp_path / "child.yaml"), ["sparsity=0.5", "eps=0.2", "width=3"])
    assert found.variables.keys() == {"sparsity", "pruner", "eps", "width"}
    assert (found.stages[1].budget.sparsity, found.threat.eps, found.objective.beta) == (0.5, 0.2, 6)
    assert found.net.options == {"width": 3}


def test_what_was_written_down_reads_back_and_can_be_changed_again(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(with_words("sparsity=0.5", "eps=0.2")))
    assert read_recipe(file) == load_recipe(str(file)) == with_words("sparsity=0.5", "eps=0.2")
    assert load_recipe(str(file), ["sparsity=0.3"]) == with_words("eps=0.2", "sparsity=0.3")


def test_words_are_not_what_a_run_is(tmp_path):
    """A run goes on if only they have changed."""
    short = {**TINY, "stages": TINY["stages"][:1], "variables": {}}
    run(resolve(short, [], "short"), tmp_path)
    run(resolve({**short, "variables": {"eps": "threat.eps"}}, [], "short"), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "more", "complaint"),
    [
        (["sparsty=0.5"], {}, r"no setting or variable 'sparsty'; did you mean 'sparsity'\?"),
        (["pruner=hydro"], {}, r"unknown pruner 'hydro'; did you mean 'hydra'\?"),
        (["pruner=5"], {}, r"unknown pruner '5'"),
        (["sparsity=1.5"], {}, r"tiny\.stages\.1\.budget\.sparsity: Input should be less than 1"),
        ([], {"seed": "threat.eps"}, r"variables\.seed: 'seed' is a setting of every recipe; choose another word"),
        ([], {"a": "stages.prun.epochs"}, r"variables\.a: no stage 'prun'; did you mean 'prune'\?"),
        ([], {"a": "treat.eps"}, r"variables\.a: no setting 'treat\.eps'; did you mean 'threat'\?"),
        ([], {"a": {"path": "seed", "cases": {1: {"sead": 2}}}}, r"variables\.a: no setting 'sead'"),
        ([], {"a": "not a path"}, r"tiny\.variables\.a\.path: "),
        (["a=1"], {"a": 5}, r"variables\.a: "),
        (["a=1"], {"a": "b", "b": "a"}, r"no setting or variable 'b'"),
        (["a=1"], {"a": {"path": "seed", "case": {}}}, r"variables\.a: unknown key 'case'; did you mean 'cases'\?"),
    ],
)
def test_mistakes_are_told(overrides, more, complaint):
    with pytest.raises(SpecError, match=complaint):
        with_words(*overrides, **more)


@pytest.mark.parametrize("name", names())
def test_every_shipped_recipe_takes_each_pruner_and_sparsity(name):
    recipe = load_recipe(name)
    assert "sparsity" in recipe.variables
    for sparsity in (0.5, 0.99):
        (stage,) = (s for s in load_recipe(name, [f"sparsity={sparsity}"]).stages if isinstance(s, Fit) and s.pruner)
        assert stage.budget.sparsity == sparsity
    if "pruner" not in recipe.variables:
        return
    for kind in PRUNERS.names():
        stages = [s for s in load_recipe(name, [f"pruner={kind}"]).stages if isinstance(s, Fit)]
        assert (stages[1].pruner.kind, stages[1].epochs == 0) == (kind, PRUNERS.get(kind).over is None)


def test_recipes_for_a_cpu_train_every_pruner_equally_long():
    """The papers' give baselines fewer epochs, as the papers do."""
    for name in ("digits-cnn_digits-trades", "cifar10-cnn_small-trades-cpu", "digits-cnn_small-ibp-cpu"):
        recipes = [load_recipe(name, [f"pruner={kind}"]) for kind in PRUNERS.names()]
        assert len({sum(s.epochs for s in recipe.stages if isinstance(s, Fit)) for recipe in recipes}) == 1


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (0.99, "0.99"), ("8/255", "8-255"), (["pgd"], "pgd"), ({"kind": "hydra", "gradual": 2.0}, "hydra-gradual-2"),
        (True, "True"), ("a b!", "a-b"),
    ],
)  # fmt: skip
def test_short_names(value, name):
    assert short_name(value) == name
    assert Variable.make({"path": "seed", "cases": {name: {}}}, "v").cases.keys() == {name}
