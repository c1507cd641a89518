"""What a study file says, and what is refused before anything runs."""

import pytest
import yaml

from hydraprune.core.errors import SpecError
from hydraprune.pruners import PRUNERS
from hydraprune.study import Study, load_study, names
from hydraprune.study.shared import key, trunk
from study.small import RECIPE, study


def test_every_combination_is_a_cell_with_its_settings():
    cells = study().cells()
    assert [cell.name for cell in cells] == [
        f"method={method},sparsity={sparsity},seed={seed}"
        for method in ("hydra", "magnitude")
        for sparsity in ("0.5", "0.9")
        for seed in (0, 1)
    ]
    for cell in cells:
        prune = cell.recipe.stages[1]
        assert prune.pruner.kind == cell.labels["method"]
        assert prune.epochs == (1 if cell.labels["method"] == "hydra" else 0)
        assert prune.budget.sparsity == float(cell.labels["sparsity"])
        assert cell.recipe.seed == int(cell.labels["seed"])
        assert cell.recipe.name == f"small/{cell.name}"


def test_the_three_ways_to_write_an_axis():
    grid = {
        "seed": [3],
        "threat.eps": ["8/255", 0.1],
        "pruner": {"stages.prune.pruner": ["hydra", {"kind": "hydra", "init": "kaiming_normal"}]},
        "long": {"no": {}, "yes": {"stages.prune.epochs": 9, "stages.finetune.epochs": 9}},
    }
    cells = study(grid=grid).cells()
    assert len(cells) == 8
    assert cells[0].name == "seed=3,threat.eps=8-255,pruner=hydra,long=no"
    assert cells[-1].name == "seed=3,threat.eps=0.1,pruner=hydra-init-kaiming_normal,long=yes"
    assert cells[0].recipe.threat.eps == 8 / 255
    assert [stage.epochs for stage in cells[-1].recipe.stages[:3]] == [1, 9, 9]
    assert cells[-1].recipe.stages[1].pruner.init == "kaiming_normal"


def test_lists_of_one_are_labelled_by_what_is_in_them():
    grid = {"attack": {"stages.evaluate.attacks": [["fgsm"], ["pgd"]]}, "seed": [0]}
    assert [cell.name for cell in study(grid=grid).cells()] == ["attack=fgsm,seed=0", "attack=pgd,seed=0"]


def test_cells_are_left_out_and_added():
    chosen = study(
        exclude=[{"method": "magnitude", "sparsity": 0.9}, {"seed": 1, "method": "hydra"}],
        include=[
            {"method": "magnitude", "sparsity": 0.9, "seed": 0},
            {"method": "long", "sparsity": 0.5, "seed": 7, "set": {"stages.prune.epochs": 5, "seed": 7}},
        ],
    ).cells()
    assert [tuple(cell.labels.values()) for cell in chosen] == [
        ("hydra", "0.5", "0"), ("hydra", "0.9", "0"), ("magnitude", "0.5", "0"), ("magnitude", "0.5", "1"),
        ("magnitude", "0.9", "0"), ("long", "0.5", "7"),
    ]  # fmt: skip
    last = chosen[-1].recipe
    assert (last.seed, last.stages[1].epochs, last.stages[1].budget.sparsity) == (7, 5, 0.5)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"grid": {}}, r"small\.grid: .*at least 1 item"),
        ({"grid": {"seed": []}}, r"grid\.seed is empty"),
        ({"grid": {"seed": 3}}, r"grid\.seed: expected \[values\], .* got 3"),
        ({"grid": {"seed": [1, 1]}}, r"grid\.seed: two values have the same label"),
        ({"grid": {"a/b": [1]}}, r"an axis called 'a/b' makes no folder name"),
        ({"grid": {"seeed": [1]}}, r"no setting or variable 'seeed'; did you mean 'seed'\?"),
        ({"grid": {"x": {"stages.prun.epochs": [1]}}}, r"stages\.prun: there is no 'prun'; did you mean 'prune'\?"),
        ({"grid": {"seed": [0, -1]}}, r"small/seed=-1\.seed: .*greater than or equal to 0"),
        ({"set": {"stages.prune.epochs": -1}}, r"method=hydra,sparsity=0\.5,seed=0\.stages\.1\.epochs"),
        ({"exclude": [{"methd": "hydra"}]}, r"there is no axis 'methd'; did you mean 'method'\?"),
        ({"exclude": [{"method": "hydro"}]}, r"axis 'method' has no 'hydro'; did you mean 'hydra'\?"),
        ({"exclude": [{"seed": 0}, {"seed": 1}]}, r"study small: the grid is empty; exclude less"),
        ({"include": [{"method": "hydra"}]}, r"give a label for each of method, sparsity, seed"),
        ({"include": [{"method": "long", "sparsity": 0.5, "seed": 0}]}, r"axis 'method' has no 'long'"),
        ({"include": [{"method": "hydra", "sparsity": 0.5, "seed": 0}]}, r"seed=0 stands in it twice"),
        ({"set": {"trainer.devices": 2}}, r"a cell runs on one device"),
        (
            {"grid": {f"data.{n}": list(range(10)) for n in "abcdef"}},
            r"study small: its grid has more than 10000 cells",
        ),
        ({"set": {"extends": "/etc/passwd"}}, r"no setting or variable 'extends'"),
        ({"grid": {"extends": ["/etc/passwd"]}}, r"no setting or variable 'extends'"),
        ({"include": [{"seed": 0, "set": 3}]}, r"`set` takes path\.to\.key: value"),
        (
            {"recipe": "digits-cnn_digits-trade"},
            r"unknown recipe '.*'; did you mean 'digits-cnn_digits-trades'\?",
        ),
    ],
)
def test_a_study_that_cannot_run_is_refused(changes, complaint):
    with pytest.raises(SpecError, match=complaint):
        study(**changes).cells()


def test_unknown_keys_and_files_are_refused(tmp_path):
    with pytest.raises(SpecError, match=r"unknown key 'gird'; did you mean 'grid'\?"):
        study(gird={})
    with pytest.raises(SpecError, match=r"unknown recipe or study 'method-digits'; did you mean 'methods-digits'\?"):
        load_study("method-digits")
    with pytest.raises(SpecError, match=r"recipe or study .*gone\.yaml is missing"):
        load_study(str(tmp_path / "gone.yaml"))
    (tmp_path / "bad.yaml").write_text("name: [")
    with pytest.raises(
        SpecError, match=r"recipe or study .*bad\.yaml is unreadable \(line 1: .*; give a recipe or study as YAML"
    ):
        load_study(str(tmp_path / "bad.yaml"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff", "utf-8"),
        (b"[" * 100 + b"]" * 100, "nested too deeply"),
        (b"name: !!python/name:os.system", "could not determine a constructor"),
        (b"- canary", "expected a mapping of settings, got a list"),
    ],
)
def test_a_file_that_is_hostile(tmp_path, content, reason):
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(SpecError, match=rf"study .*mine\.yaml.*{reason}") as caught:
        load_study(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(caught.value)
    assert "canary" not in str(caught.value)


def test_a_file_is_read_and_its_recipe_resolved(tmp_path):
    path = tmp_path / "mine.yaml"
    values = {
        "name": "mine",
        "recipe": {"extends": "digits-cnn_digits-trades", "set": {"seed": 5}},
        "grid": {"threat.eps": [0.1, 0.2]},
    }
    path.write_text(yaml.safe_dump(values))
    found = load_study(str(path))
    assert found.recipe["seed"] == 5
    assert found.recipe["net"] == {"kind": "cnn_digits"}
    assert len(found.cells()) == 2


def test_overrides_change_every_cell_but_what_the_grid_changes():
    """By its path, that is: what one of its words brings gives way."""
    cells = load_study("hydra-plus-digits", ["stages.finetune.epochs=3", "stages.finetune.optim.ema=0.5"]).cells()
    tuned = [stage for cell in cells for stage in cell.recipe.stages if stage.name == "finetune"]
    assert {stage.epochs for stage in tuned} == {3}
    assert {stage.optim.ema for stage in tuned} == {0.5, 0.95}
    with pytest.raises(SpecError, match=r"write path\.to\.key=value"):
        load_study("hydra-plus-digits", ["data.fraction"])


@pytest.mark.parametrize("name", names())
def test_studies_of_the_package_are_valid(name):
    found = load_study(name)
    assert found.name == name
    assert len(found.cells()) > 1


def test_the_study_of_methods_has_them_all():
    cells = load_study("methods-digits").cells()
    assert {cell.recipe.stages[1].pruner.kind for cell in cells} == set(PRUNERS.names())


def test_what_cells_share_is_what_comes_before_pruning():
    cells = {cell.name: cell.recipe for cell in study().cells()}
    first = trunk(next(iter(cells.values())))
    assert [stage.name for stage in first.stages] == ["pretrain", "evaluate"]
    assert first.stages[1].of == ["pretrain"]
    keys = {name: key(trunk(recipe)) for name, recipe in cells.items()}
    assert len(set(keys.values())) == 2
    assert all((keys[a] == keys[b]) == (a[-1] == b[-1]) for a in keys for b in keys)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"name": "other", "about": "of it"}, True),
        ({"stages.evaluate.attacks": ["pgd"]}, True),
        ({"stages.finetune.epochs": 9}, True),
        ({"stages.pretrain.epochs": 9}, False),
        ({"stages.pretrain.optim": {"lr": 0.3}}, False),
        ({"threat.eps": 0.2}, False),
        ({"objective.beta": 1}, False),
        ({"data.samples": 70}, False),
        ({"trainer.precision": "bf16"}, False),
    ],
)
def test_only_what_training_depends_on_separates_it(change, same):
    plain, changed = (study(set=settings, grid={"seed": [0]}).cells()[0].recipe for settings in ({}, change))
    assert (key(trunk(plain)) == key(trunk(changed))) == same


@pytest.mark.parametrize(
    ("setting", "axis"),
    [("sparsity=0.5", "sparsity"), ("stages.prune.budget.sparsity=0.5", "sparsity"), ("pruner=snip", "pruner")],
)
def test_what_the_grid_varies_is_not_set_beside_it(setting, axis):
    value = setting.partition("=")[2]
    with pytest.raises(SpecError, match=rf"the grid of digits-demo varies it; use --vary {axis}={value}"):
        load_study("digits-demo", [setting])
    assert {cell.labels[axis] for cell in load_study("digits-demo", vary=[f"{axis}={value}"]).cells()} == {value}


def test_a_setting_comes_after_what_the_study_sets():
    values = {"recipe": {"extends": "digits-cnn_digits-trades"}, "name": "s", "grid": {"seed": [0]}}
    study = Study.parse({**values, "set": {"sparsity": 0.9, "stages.prune.budget.sparsity": 0.8}}, "s")
    assert study.cells()[0].recipe.stages[1].budget.sparsity == 0.8  # by its path


def test_without_pre_training_nothing_is_shared():
    values = {**RECIPE, "stages": RECIPE["stages"][1:3]}
    assert trunk(study(recipe=values, grid={"seed": [0]}).cells()[0].recipe) is None
