"""Recipes by name and file, inheritance, overrides, and what is said about mistakes."""

import pytest
import yaml

from hydraprune.core.errors import SpecError
from hydraprune.recipes.library import dump, load_recipe, names, read_recipe, resolve
from recipes.tiny import TINY, tiny


@pytest.mark.parametrize("name", names())
def test_a_shipped_recipe_reads_back_as_it_was_dumped(tmp_path, name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.about
    file = tmp_path / "copy.yaml"
    file.write_text(dump(recipe))
    again = load_recipe(str(file))
    assert again == recipe
    assert dump(again) == dump(recipe)


@pytest.mark.parametrize("name", names())
def test_a_recipe_is_for_the_data_and_the_threat_of_its_name(name):
    recipe = load_recipe(name)
    kinds = {"imagenet": "images"}
    data, net, *_ = name.split("-")
    assert recipe.data.kind == kinds.get(data, data)
    assert net == "demo" or net.replace("_", "").startswith(recipe.net.kind.removeprefix("timm:").split("_")[0])
    if "smoothing" in name:
        threat = ("l2", 110 / 255)
    elif name in ("digits-cnn_digits-trades", "digits-cnn_digits-hydra-plus"):
        threat = ("linf", 0.1)
    elif {"ibp", "mixtrain"} & {*name.replace("crown-", "").split("-")} and data != "digits":
        threat = ("linf", 2 / 255)
    else:
        threat = ("linf", {"imagenet": 4 / 255}.get(data, 8 / 255))
    assert (recipe.threat.norm, recipe.threat.eps) == (threat[0], pytest.approx(threat[1]))


def test_recipes_that_others_extend_are_not_listed():
    assert names() == sorted(names())
    assert "digits-cnn_digits-trades" in names()
    assert not [name for name in names() if name.startswith("base-")]


def write(file, **values):
    file.write_text(yaml.safe_dump(values))
    return str(file)


def test_extends_replaces_whole_settings_and_set_single_ones(tmp_path):
    base = write(tmp_path / "base.yaml", **TINY)
    child = write(
        tmp_path / "child.yaml",
        extends=base, name="child", threat={"norm": "l2", "eps": 0.5},
        set={"stages.prune.budget.sparsity": 0.5, "stages.prune.pruner.init": "kaiming_normal", "seed": 3},
    )  # fmt: skip
    grandchild = write(tmp_path / "grandchild.yaml", extends=child, set={"stages.prune.budget.sparsity": 0.25})
    expected = tiny(
        "name=child", "seed=3", "threat={norm: l2, eps: 0.5}", "stages.prune.pruner={kind: hydra, init: kaiming_normal}"
    )
    assert load_recipe(child) == resolve(expected.plain(), ["stages.prune.budget.sparsity=0.5"], "")
    assert load_recipe(grandchild) == resolve(expected.plain(), ["stages.prune.budget.sparsity=0.25"], "")
    assert load_recipe(base) == tiny()


def test_a_shipped_recipe_can_be_extended(tmp_path):
    mine = load_recipe(write(tmp_path / "mine.yaml", extends="digits-cnn_digits-trades", name="mine", set={"seed": 5}))
    assert mine == load_recipe("digits-cnn_digits-trades", ["name=mine", "seed=5"])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("seed=7", lambda r: r.seed == 7),
        ("threat.eps=8/255", lambda r: r.threat.eps == 8 / 255),
        ("threat={norm: l2, eps: 0.5}", lambda r: (r.threat.norm, r.threat.eps) == ("l2", 0.5)),
        ("stages.prune.epochs=0", lambda r: r.stages[1].epochs == 0),
        ("stages.prune.optim.lr=1e-3", lambda r: r.stages[1].optim.lr == 1e-3),
        ("stages.pretrain.optim.lr=1e30", lambda r: r.stages[0].optim.lr == 1e30),
        ("stages.prune.pruner.sort_ties=true", lambda r: r.stages[1].pruner.sort_ties is True),
        ("stages.prune.structure=channel", lambda r: r.stages[1].structure.kind == "channel"),
        ("stages.evaluate.attacks=[{kind: pgd, steps: 7}]", lambda r: r.stages[3].attacks[0].name == "pgd-7x10"),
        ("stages.finetune={kind: fit, name: finetune, over: weights, epochs: 9}", lambda r: r.stages[2].epochs == 9),
        ("data.padding=0", lambda r: r.data.padding == 0),
        ("net.options.width=3", lambda r: r.net.options == {"width": 3}),
        ("trainer.precision=bf16", lambda r: r.trainer.precision == "bf16"),
    ],
)
def test_overrides(override, value):
    changed = tiny(override)
    assert value(changed)
    assert not value(tiny())


def test_later_overrides_win_and_the_settings_given_stay_as_they_were():
    before = yaml.safe_dump(TINY)
    assert tiny("seed=1", "seed=2").seed == 2
    assert yaml.safe_dump(TINY) == before


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["sead=1"], r"no setting or variable 'sead'; did you mean 'seed'\?"),
        (["stages.prun.epochs=1"], r"stages\.prun: there is no 'prun'; did you mean 'prune'\?"),
        (["stages.prune.epoch=1"], r"tiny\.stages\.1: unknown key 'epoch'; did you mean 'epochs'\?"),
        (["stages.prune.optim.learning_rate=1"], r"tiny\.stages\.1\.optim: unknown key 'learning_rate'; known: .*lr"),
        (["stages.prune.budget.sparsit=0.5"], r"tiny\.stages\.1\.budget: unknown key 'sparsit'; did you mean 'spars"),
        (["stages.prune.budget.sparsity=1.0"], r"tiny\.stages\.1\.budget\.sparsity: .*less than 1 \(got 1\.0\)"),
        (["stages.prune.budget.sparsity=-0.1"], r"sparsity: .*greater than or equal to 0 \(got -0\.1\)"),
        (["threat.eps=8"], r"tiny\.threat: eps 8 is above 1; pixels lie in \[0, 1\], so write 8/255"),
        (["threat.eps=-1"], r"tiny\.threat\.eps: .*greater than or equal to 0 \(got -1\)"),
        (["threat.eps=eight"], r"tiny\.threat\.eps: 'eight' is not a number or a fraction such as 8/255"),
        (["threat.norm=l1"], r"tiny\.threat\.norm: .*'linf' or 'l2' \(got 'l1'\)"),
        (["objective=tradez"], r"tiny\.objective: unknown objective 'tradez'; did you mean 'trades'\?"),
        (["objective.betta=1"], r"tiny\.objective: unknown key 'betta'; did you mean 'beta'\?"),
        (["stages.prune.pruner=hidra"], r"tiny\.stages\.1\.pruner: unknown pruner 'hidra'; did you mean 'hydra'\?"),
        (["stages.prune.budget.kind=erq"], r"tiny\.stages\.1\.budget: unknown budget 'erq'; did you mean 'erk'\?"),
        (["stages.prune.structure=filter"], r"filters of the last layer are whole classes; add `exempt: \[last\]`"),
        (["stages.prune.structure=filtre"], r"unknown structure 'filtre'; did you mean 'filter'\?"),
        (["stages.evaluate.attacks=[pdg]"], r"attacks\.0: unknown attack 'pdg'; did you mean 'pgd'\?"),
        (["data.kind=digit"], r"tiny\.data: unknown dataset 'digit'; did you mean 'digits'\?"),
        (["net.kind=cnn_digit"], r"tiny\.net\.kind: unknown net 'cnn_digit'; did you mean 'cnn_digits'\?"),
        (["stages.prune.kind=fitt"], r"tiny\.stages\.1: unknown stage 'fitt'; did you mean 'fit'\?"),
        (["seed=-1"], r"tiny\.seed: .*greater than or equal to 0"),
        (["seed=4294967296"], r"tiny\.seed: .*less than 2147483648"),
        (["seed.x=1"], r"tiny\.seed: "),
        (["stages.prune.epochs.x=1"], r"stages\.prune\.epochs is 1, not a group of settings, so stages\.prune"),
        (["seed"], r"--set 'seed': write path\.to\.key=value, such as stages\.prune\.epochs=5"),
        (["seed=[1"], r"--set 'seed=\[1': the value is no YAML \(line 1: "),
    ],
)  # fmt: skip
def test_mistakes_are_named_with_path_and_remedy(overrides, complaint):
    with pytest.raises(SpecError, match=complaint) as caught:
        tiny(*overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- a\n- b\n", r"expected a mapping of settings, got a list$"),
        ("name: [1\n", r"mine\.yaml is unreadable \(line 2: .*\); give a recipe as YAML"),
        ("", "expected a mapping of settings, got a NoneType"),
        ("extends: digits-dem\n", r"unknown recipe 'digits-dem'; did you mean 'digits-cnn_digits-trades'\?"),
        ("extends: digits-cnn_digits-trades\nset: 5\n", "`set` takes path.to.key: value, got 5"),
        (
            "extends: digits-cnn_digits-trades\nset: {stages.prun.epochs: 5}\n",
            r"there is no 'prun'; did you mean 'prune'\?",
        ),
        ("name: mine\n", r"mine\.data: Field required; mine\.net: Field required"),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path, text, complaint):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match=complaint) as caught:
        load_recipe(str(file))
    assert "\n" not in str(caught.value)


def test_recipes_that_extend_themselves_or_too_many(tmp_path):
    for number in range(100):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {tmp_path / str((number + 1) % 100)}.yaml")
    (tmp_path / "self.yaml").write_text(f"extends: {tmp_path / 'self.yaml'}")
    for name in ("0.yaml", "self.yaml"):
        with pytest.raises(SpecError, match=rf"recipe .*{name} extends more than 16 recipes in a row, or itself"):
            load_recipe(str(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"name: \xff\xfe", "utf-8"),
        (b"name: " + b"[" * 100 + b"]" * 100, "it is nested too deeply"),
        (b"name: 2020-99-99", "month must be in"),
        (b'extends: "x\\0y"', "unknown recipe"),
        (b"extends: " + b"x" * 5000, "unknown recipe"),
        (b"extends: ../files/digits-cnn_digits-trades", "unknown recipe"),
        (b"extends: digits-cnn_digits-trades\nset: {1: 2}", "no setting or variable '1'"),
    ],
)
def test_a_file_that_is_hostile(tmp_path, content, reason):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(SpecError, match=reason) as caught:
        load_recipe(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["canary", "canary: [", "- canary", "canary: \tcanary: canary", "%canary"])
def test_errors_show_nothing_of_what_a_file_holds(tmp_path, content):
    (tmp_path / "other").write_text(content)
    (tmp_path / "mine.yaml").write_text(f"extends: {tmp_path / 'other'}")
    with pytest.raises(SpecError, match=r"recipe .*other") as caught:
        load_recipe(str(tmp_path / "mine.yaml"))
    assert "canary" not in str(caught.value)


def test_a_recipe_that_was_written_down_makes_no_other_file_be_read(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(tiny()))
    assert read_recipe(file) == tiny()
    file.write_text(f"extends: {tmp_path / 'gone.yaml'}")
    with pytest.raises(SpecError, match="unknown key 'extends'"):
        read_recipe(file)


def test_unknown_recipes():
    with pytest.raises(
        SpecError, match=r"unknown recipe 'digits-trade'; did you mean 'digits-cnn_digits-trades'\? \(or give a file"
    ):
        load_recipe("digits-trade")
    with pytest.raises(SpecError, match=r"recipe missing\.yaml is missing"):
        load_recipe("missing.yaml")


def test_values_of_a_recipe_are_data_and_never_python(tmp_path):
    text = f"name: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n"
    file = tmp_path / "evil.yaml"
    file.write_text(text)
    with pytest.raises(SpecError, match=r"is unreadable \(line 1: could not determine a constructor"):
        load_recipe(str(file))
    with pytest.raises(SpecError, match="the value is no YAML"):
        tiny(f"name={text.removeprefix('name: ')}")
    assert not (tmp_path / "made").exists()
    yaml.unsafe_load(text)
    assert (tmp_path / "made").exists()
