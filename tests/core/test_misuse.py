"""Settings that were given in the wrong way: every public constructor says what it takes instead."""

from inspect import isabstract

import numpy as np
import pytest
import torch

import hydraprune as hp
from hydraprune.core.spec import Spec, said, whole
from misuse import refused

PUBLIC = [c for n in hp.__all__ if isinstance(c := getattr(hp, n), type) and issubclass(c, Spec) and not isabstract(c)]

POSITIONAL = {
    "Uniform": (lambda: hp.Uniform(0.9), "Uniform takes its settings by name, such as Uniform(sparsity=0.9)"),
    "ThreatModel": (lambda: hp.ThreatModel(8 / 255), "by name, such as ThreatModel(eps=0.03137254901960784)"),
    "ThreatModel of a dict": (lambda: hp.ThreatModel({"eps": 0.1}), "such as ThreatModel(**{'eps': 0.1})"),
    "TRADES": (lambda: hp.TRADES(6), "TRADES takes its settings by name, such as TRADES(beta=6)"),
    "PGDAttack": (lambda: hp.PGDAttack(50), "by name, such as PGD(steps=50)"),
    "Optim": (lambda: hp.Optim(0.1), "by name, such as Optim(lr=0.1)"),
    "Optim of a name": (lambda: hp.Optim("adam"), "by name, such as Optim(kind='adam')"),
    "Net": (lambda: hp.Net("cnn_digits"), "by name, such as Net(kind='cnn_digits')"),
    "Smoothing": (lambda: hp.Smoothing(0.25), "by name, such as Smoothing(sigma=0.25)"),
    "Magnitude": (lambda: hp.Magnitude(0.9), "Magnitude takes its settings by name: Magnitude()"),
}
VALUES = {
    "eps True": (lambda: hp.ThreatModel(eps=True), "ThreatModel.eps: True is not a number"),
    "eps False": (lambda: hp.ThreatModel(eps=False), "ThreatModel.eps: False is not a number"),
    "eps list": (lambda: hp.ThreatModel(eps=[0.1]), "ThreatModel.eps: Input should be a valid number"),
    "eps tensor": (lambda: hp.ThreatModel(eps=torch.ones(3, 3)), "Input should be a valid number (got a Tensor)"),
    "eps word": (lambda: hp.ThreatModel(eps="large"), "'large' is not a number or a fraction such as 8/255"),
    "eps -1": (lambda: hp.ThreatModel(eps=-1), "ThreatModel.eps: Input should be greater than or equal to 0 (got -1)"),
    "norm": (lambda: hp.ThreatModel(norm="L2", eps=1), "ThreatModel.norm: Input should be 'linf' or 'l2' (got 'L2')"),
    "steps True": (lambda: hp.PGDAttack(steps=True), "PGD.steps: True is not a number"),
    "steps 0.5": (lambda: hp.PGDAttack(steps=0.5), "PGD.steps: Input should be a valid integer"),
    "alpha True": (lambda: hp.Smoothing(sigma=0.1, alpha=True), "Smoothing.alpha: True is not a number"),
    "clip_norm True": (lambda: hp.Optim(clip_norm=True), "Optim.clip_norm: True is not a number"),
    "floor True": (lambda: hp.Uniform(sparsity=0.9, floor=True), "Uniform.floor: True is not a number"),
    "lr None": (lambda: hp.Optim(lr=None), "Optim.lr: Input should be a valid number (got None)"),
    "nesterov 3": (lambda: hp.Optim(nesterov=3), "Optim.nesterov: Input should be a valid boolean"),
    "sparsity 95": (lambda: hp.ERK(sparsity=95), "ERK.sparsity: Input should be less than 1 (got 95)"),
    "data seed": (lambda: hp.load_data("digits", split_seed=-1), "data.split_seed: Input should be greater than"),
    "data seed True": (lambda: hp.load_data("digits", split_seed=True), "data.split_seed: True is not a number"),
    "data kind": (lambda: hp.load_data("digit"), "data: unknown dataset 'digit'; did you mean 'digits'?"),
    "data key": (lambda: hp.load_data("digits", sample=9), "data: unknown key 'sample'; did you mean 'samples'?"),
}  # fmt: skip


@pytest.mark.parametrize("case", POSITIONAL | VALUES)
def test_settings_that_are_refused(case):
    call, message = (POSITIONAL | VALUES)[case]
    with refused(message):
        call()


@pytest.mark.parametrize("spec", PUBLIC, ids=lambda spec: spec.__name__)
def test_every_public_constructor_names_the_nearest_key(spec):
    field = next(name for name in spec.model_fields if len(name) > 3)
    wrong = field[:-2] + field[-1]
    with refused(f"unknown key {wrong!r}; did you mean {field!r}?"):
        spec(**{wrong: 1})


def test_a_boolean_stays_one():
    assert hp.Optim(nesterov=True).nesterov


class Leaf(Spec):
    size: float = 0.5


def test_made_of_itself_or_of_a_mapping():
    leaf = Leaf(size=2)
    assert Leaf.make(leaf, "leaf") is leaf
    assert Leaf.make({"size": 2}, "leaf") == leaf
    assert Leaf.make({}, "leaf") == Leaf()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (2, "leaf is 2; give Leaf(...) or its settings by name, such as Leaf(size=2)"),
        (True, "leaf is True; give Leaf(...) or its settings by name"),
        (None, "leaf is None; give Leaf(...) or its settings by name"),
        (Leaf, "leaf is the class Leaf; call it: Leaf(...)"),
        ([1], "leaf is a list of int; give Leaf(...)"),
        ({"sise": 1}, "leaf: unknown key 'sise'; did you mean 'size'?"),
    ],
)
def test_not_made_of_anything_else(value, message):
    with refused(message):
        Leaf.make(value, "leaf")


@pytest.mark.parametrize("value", [-1, 0.0, "0", None, True, [0]])
def test_what_is_no_whole_number(value):
    with refused(f"seed is {said(value)}; give a whole number of at least 0"):
        whole(value, "seed")


def test_whole_numbers_of_other_kinds():
    assert (whole(np.int64(3), "seed"), whole(2, "size", 2)) == (3, 2)
    with refused("size is 1; give a whole number of at least 2"):
        whole(1, "size", 2)
