"""What every registered method of every kind must be: a spec of its own name, documented, that survives YAML."""

import re

import pytest
import yaml

from hydraprune.attacks import ATTACKS
from hydraprune.bounds import BOUNDS
from hydraprune.core.errors import SpecError
from hydraprune.data import SOURCES
from hydraprune.masks import BUDGETS, STRUCTURES
from hydraprune.objectives import OBJECTIVES
from hydraprune.pruners import PRUNERS
from hydraprune.recipes import STAGES

REGISTRIES = (ATTACKS, BOUNDS, BUDGETS, OBJECTIVES, PRUNERS, SOURCES, STAGES, STRUCTURES)
NEEDED = {
    "budget": {"sparsity": 0.5},
    "fit": {"name": "again", "over": "weights", "epochs": 1},
    "evaluate": {"attacks": ["fgsm"]},
    "certify": {"bounds": ["ibp"]},
}
methods = [pytest.param(r, name, id=f"{r.noun}-{name}") for r in REGISTRIES for name in r.names()]
pytestmark = pytest.mark.parametrize(("registry", "name"), methods)


def make(registry, name, **changes):
    needed = NEEDED.get(registry.noun) or NEEDED.get(name) or {}
    return registry.make({"kind": name, **needed, **changes}, "here")


def test_it_is_built_by_its_name(registry, name):
    method = make(registry, name)
    assert method.kind == name
    assert type(method) is registry.get(name)
    assert registry.make(method, "here") is method


def test_it_is_the_same_after_yaml(registry, name):
    method = make(registry, name)
    text = yaml.safe_dump(method.plain())
    assert registry.make(yaml.safe_load(text), "here") == method


def test_it_is_documented(registry, name):
    kind = registry.get(name)
    first = (kind.__doc__ or "").strip().splitlines()[0]
    assert len(first) > 15
    assert first.endswith((".", ":", ","))
    described = "".join(base.__doc__ or "" for base in kind.__mro__)
    for field in kind.model_fields:
        line = rf"^ *(\w+, )*{field}(, \w+)*:"
        assert field in ("kind", "name") or re.search(line, described, re.MULTILINE), field


def test_a_setting_that_it_does_not_have_is_refused_and_it_cannot_be_changed(registry, name):
    with pytest.raises(SpecError, match=r"here: unknown key 'sparcity'; "):
        make(registry, name, sparcity=0.5)
    with pytest.raises(ValueError, match="frozen"):
        make(registry, name).kind = "other"
