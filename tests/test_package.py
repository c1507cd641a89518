"""The package as users meet it: its imports, its front door, and the example of the README."""

import pkgutil
from types import ModuleType

import pytest

import hydraprune as hp
from hydraprune.attacks import ATTACKS
from hydraprune.bounds import BOUNDS
from hydraprune.data import SOURCES
from hydraprune.masks import BUDGETS, STRUCTURES
from hydraprune.objectives import OBJECTIVES
from hydraprune.pruners import PRUNERS
from misuse import refused


def test_no_public_name_stands_before_a_package():
    """`import hydraprune.evaluation.smoothing as s` asks each package for the next."""
    packages = {module.name for module in pkgutil.iter_modules(hp.__path__)}
    assert {"evaluation", "bounds", "study"} <= packages
    for name in packages & set(hp.__all__):
        assert isinstance(getattr(hp, name), ModuleType), name


def test_every_public_name_is_there():
    assert all(hasattr(hp, name) for name in hp.__all__)
    assert set(hp.__all__) <= set(dir(hp))
    assert hp.evaluation.smoothing.certify_dataset.__name__ == "certify_dataset"  # rooms need no import of their own
    with pytest.raises(AttributeError, match=r"^hydraprune has no 'TRADE'; did you mean 'TRADES'\?$"):
        hp.TRADE  # noqa: B018


@pytest.mark.parametrize(
    ("room", "registry"),
    [
        ("attacks", ATTACKS), ("bounds", BOUNDS), ("budgets", BUDGETS), ("data", SOURCES), ("objectives", OBJECTIVES),
        ("pruners", PRUNERS), ("structures", STRUCTURES),
    ],
)  # fmt: skip
def test_every_method_is_called_by_the_name_of_its_class(room, registry):
    methods = [registry.get(name) for name in registry.names()]
    assert len({method.__name__ for method in methods}) == len(methods)
    for method in methods:
        assert getattr(getattr(hp, room), method.__name__) is method
        assert method.__name__ in dir(getattr(hp, room))


def test_what_is_imported_when_it_is_used_never_stands_before_a_module():
    """It would be the one or the other, by what was used before."""
    rooms = [hp, *(getattr(hp, module.name) for module in pkgutil.iter_modules(hp.__path__) if module.ispkg)]
    lazy = [room for room in rooms if "__getattr__" in vars(room)]
    assert len(lazy) > 8
    for room in lazy:
        for module in pkgutil.iter_modules(room.__path__):
            assert module.name == "__main__" or isinstance(getattr(room, module.name), ModuleType), module.name


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            "digits-cnn_digts-trades",
            "unknown recipe 'digits-cnn_digts-trades'; did you mean 'digits-cnn_digits-trades'?",
        ),
        (3, "recipe is 3; give Recipe(...) or its settings by name"),
        (None, "recipe is None; give Recipe(...)"),
        ({"name": "mine"}, "recipe.data: Field required"),
    ],
)
def test_what_is_no_recipe_is_not_run(tmp_path, recipe, message):
    with refused(message):
        hp.run(recipe, tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_a_recipe_is_run_by_its_name(tmp_path, monkeypatch):
    ran = []
    for stage in ("training.Fit", "evaluate.Evaluate"):
        monkeypatch.setattr(f"hydraprune.recipes.{stage}.run", lambda stage, run: ran.append((stage, run.recipe)))
    monkeypatch.setattr("hydraprune.recipes.runner.Run.note", lambda run: None)
    assert hp.run("digits-cnn_digits-trades", tmp_path) == []
    recipe = hp.load_recipe("digits-cnn_digits-trades")
    assert ran == [(stage, recipe) for stage in recipe.stages]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda split: split.take(-1), "count is -1; give a whole number of at least 0"),
        (lambda split: split.take(2.5), "count is 2.5; give a whole number of at least 0"),
        (lambda split: split.batches(0, seed=0), "batch size is 0; give a whole number of at least 1"),
        (lambda split: split.batches(True, seed=0), "batch size is True; give a whole number of at least 1"),
        (lambda split: split.batches("all", seed=0), "batch size is 'all'; give a whole number of at least 1"),
        (lambda split: split.batches(8, seed=-1), "seed is -1; give a whole number of at least 0"),
        (lambda split: split.batches(8, seed=None), "seed is None; give a whole number of at least 0"),
        (lambda split: hp.Dataset.from_tensors(*PAIRS, seed=-1), "seed is -1; give a whole number of at least 0"),
        (lambda split: hp.Dataset.hold_out(split, split, "0123456789", validation=0.1, seed=None), "seed is None"),
    ],
)
def test_splits_refuse_what_is_no_number(call, message):
    with refused(message):
        call(SPLIT)


DATA = hp.load_data("digits", samples=100)
SPLIT = DATA.test
PAIRS = [tuple(next(iter(part.batches(20, seed=0).epoch(0)))) for part in (DATA.train, DATA.test)]
