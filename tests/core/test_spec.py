"""Settings: numbers and fractions, frozen, and errors that say where and what instead."""

import json
import math

import pytest
from pydantic import Field, ValidationError

from hydraprune.core.errors import SpecError
from hydraprune.core.results import Record
from hydraprune.core.spec import Number, Spec, nearest


class Leaf(Spec):
    size: Number = Field(default=1.0, gt=0)
    width: float = 0.5
    name: str = "oak"


class Branch(Spec):
    leaf: Leaf
    leaves: list[Leaf] = []
    count: int = 3


@pytest.mark.parametrize(
    ("written", "value"),
    [("8/255", 8 / 255), (" 8 / 255 ", 8 / 255), ("0.25", 0.25), ("2e-3", 0.002), (3, 3.0), (0.1, 0.1)],
)
def test_a_number_may_be_a_fraction(written, value):
    assert Leaf(size=written).size == value
    assert Leaf.parse({"size": written}, "leaf").size == value


@pytest.mark.parametrize("bad", ["8/0", "eight", "nan", "inf", "1/2/3", "1e400", "", math.nan, math.inf, None, [1]])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(SpecError, match=r"^Leaf\.size: "):
        Leaf(size=bad)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_in_every_float(bad):
    with pytest.raises(SpecError, match=r"^leaf\.width: .*finite"):
        Leaf.parse({"width": bad}, "leaf")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"leaf": {"size": -1}}, "recipe.leaf.size: Input should be greater than 0 (got -1)"),
        ({"leaf": {"size": "8/x"}}, "recipe.leaf.size: '8/x' is not a number or a fraction such as 8/255"),
        ({"leaf": {}, "leaves": [{}, {"nmae": "elm"}]}, "recipe.leaves.1: unknown key 'nmae'; did you mean 'name'?"),
        ({"leaf": {}, "cuont": 1}, "recipe: unknown key 'cuont'; did you mean 'count'?"),
        ({"leaf": {}, "xyzzy": 1}, "recipe: unknown key 'xyzzy'; known: count, leaf, leaves"),
        ({}, "recipe.leaf: Field required"),
        ({"leaf": {}, "count": "many"}, "recipe.count: Input should be a valid integer"),
        (["leaf"], "recipe: expected a mapping of settings, got ['leaf']"),
        (None, "recipe: expected a mapping of settings, got None"),
    ],
)
def test_an_error_quotes_its_path(values, message):
    with pytest.raises(SpecError) as caught:
        Branch.parse(values, "recipe")
    assert str(caught.value).startswith(message)


def test_the_constructor_quotes_the_path_from_the_outermost_class():
    with pytest.raises(SpecError, match=r"^Branch\.leaf\.size: .*got -2"):
        Branch(leaf={"size": -2})


def test_every_complaint_is_listed():
    with pytest.raises(SpecError) as caught:
        Branch.parse({"leaf": {"size": -1, "width": "wide"}, "count": 1.5}, "recipe")
    assert [part.split(":")[0] for part in str(caught.value).split("; ")] == [
        "recipe.leaf.size",
        "recipe.leaf.width",
        "recipe.count",
    ]


def test_settings_are_frozen():
    leaf = Leaf()
    with pytest.raises(ValidationError, match="frozen"):
        leaf.size = 2.0
    assert leaf.size == 1.0


def test_defaults_are_validated():
    class Sound(Spec):
        size: Number = "8/255"

    class Broken(Spec):
        size: int = "many"

    assert Sound().size == 8 / 255
    with pytest.raises(SpecError, match=r"Broken\.size"):
        Broken()


def test_plain_values_are_json_and_make_the_same_settings():
    branch = Branch(leaf={"size": "1/3"}, leaves=[Leaf(name="elm")])
    plain = branch.plain()
    assert plain["leaf"] == {"size": 1 / 3, "width": 0.5, "name": "oak"}
    assert Branch.parse(json.loads(json.dumps(plain)), "recipe") == branch


@pytest.mark.parametrize(
    ("name", "known", "message"),
    [
        ("trade", ["trades", "mart"], "did you mean 'trades'?"),
        ("zzz", ["trades", "mart"], "known: mart, trades"),
        ("zzz", [], "known: none"),
    ],
)
def test_nearest(name, known, message):
    assert nearest(name, known) == message


RECORD = {"stage": "prune", "sparsity": 0.9, "kept": 1, "total": 10, "clean_accuracy": 0.5, "samples": 8, "seed": 0}


def test_a_record_round_trips():
    record = Record(**RECORD, seconds=1.5, robust_accuracy={"pgd-50x10": 0.25}, threat={"norm": "l2", "eps": 2})
    assert Record.parse(json.loads(json.dumps(record.plain())), "record") == record


@pytest.mark.parametrize(
    "bad", [{"sparsity": 1.1}, {"sparsity": -0.1}, {"clean_accuracy": 50.0}, {"samples": 0}, {"seconds": math.nan}]
)
def test_a_record_refuses_what_cannot_be(bad):
    with pytest.raises(SpecError, match=f"Record.{next(iter(bad))}"):
        Record(**{**RECORD, "seconds": 1.0, **bad})
