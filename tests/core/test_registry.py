"""Names to classes: lazily, with plug-ins, and as fields of other settings."""

import sys
import types
from abc import ABC, abstractmethod
from importlib.metadata import EntryPoint
from typing import Annotated, Literal

import pytest
from pydantic import Field

from hydraprune.core import registry
from hydraprune.core.errors import SpecError
from hydraprune.core.registry import Registry
from hydraprune.core.spec import Number, Spec


class Method(Spec):
    kind: str


class Sort(Method):
    kind: Literal["sort"] = "sort"
    share: Number = Field(default=0.5, gt=0)


class Shuffle(Method):
    kind: Literal["shuffle"] = "shuffle"


class Half(Method, ABC):
    @abstractmethod
    def run(self): ...

    @abstractmethod
    def stop(self): ...


TABLE = {"sort": "methods_for_tests:Sort", "absent": "no_such_module:Absent", "wrong": "methods_for_tests:Wrong"}


@pytest.fixture(autouse=True)
def _module(monkeypatch):
    module = types.ModuleType("methods_for_tests")
    vars(module).update(Method=Method, Sort=Sort, Shuffle=Shuffle, Wrong=Spec, Half=Half, sort=sorted)
    monkeypatch.setitem(sys.modules, "methods_for_tests", module)


@pytest.fixture
def methods():
    return Registry("method", "methods_for_tests:Method", TABLE)


@pytest.fixture
def plug(monkeypatch):
    """Pretends that an installed package has one entry point."""

    def install(name: str, value: str) -> None:
        entry = EntryPoint(name, value, "hydraprune.method")
        monkeypatch.setattr(registry, "entry_points", lambda *, group: [entry] if group == entry.group else [])

    return install


def test_nothing_is_imported_before_it_is_used(methods):
    assert methods.names() == ["sort", "absent", "wrong"]
    assert methods.get("sort") is Sort
    with pytest.raises(SpecError, match=r"no_such_module:Absent, the method 'absent', cannot be imported \(ModuleNotF"):
        methods.get("absent")


def test_an_unknown_name_is_answered_with_the_nearest(methods):
    with pytest.raises(SpecError, match=r"^unknown method 'sotr'; did you mean 'sort'\?$"):
        methods.get("sotr")
    with pytest.raises(SpecError, match=r"^stage\.method: unknown method 'sotr'; did you mean 'sort'\?$"):
        methods.make("sotr", "stage.method")


def test_a_class_of_another_base_is_refused(methods):
    with pytest.raises(SpecError, match="methods_for_tests:Wrong is no Method"):
        methods.get("wrong")


@pytest.mark.parametrize("values", ["sort", {"kind": "sort"}, {"kind": "sort", "share": "1/2"}, Sort()])
def test_make(methods, values):
    assert methods.make(values, "method") == Sort(share=0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (3, "here: expected {kind: ...}, got 3; kinds: sort, absent, wrong"),
        ({"share": 1}, "here: expected {kind: ...}, got {'share': 1}; kinds: sort, absent, wrong"),
        ({"kind": "sort", "share": -1}, "here.share: Input should be greater than 0 (got -1)"),
        ({"kind": "sort", "shrae": 1}, "here: unknown key 'shrae'; did you mean 'share'?"),
    ],
)
def test_make_refuses_with_the_path(methods, values, message):
    with pytest.raises(SpecError) as caught:
        methods.make(values, "here")
    assert str(caught.value) == message


def test_a_plug_in_is_found_by_its_entry_point(plug):
    plug("shuffle", "methods_for_tests:Shuffle")
    assert Registry("method", "methods_for_tests:Method", TABLE).make("shuffle", "method") == Shuffle()
    assert Registry("noun", "methods_for_tests:Method", TABLE).names() == list(TABLE)


def test_the_entry_point_does_not_change_the_callers_table(plug):
    plug("shuffle", "methods_for_tests:Shuffle")
    table = dict(TABLE)
    Registry("method", "methods_for_tests:Method", table)
    assert table == TABLE


def test_classes_are_called_by_their_names(plug):
    plug("shuffle", "methods_for_tests:Shuffle")
    methods = Registry("method", "methods_for_tests:Method", {**TABLE, "order": "elsewhere:Sort"})
    classes = methods.classes()
    assert list(classes) == ["Sort", "Absent", "Wrong", "Shuffle"]
    assert (classes["Sort"](), classes["Shuffle"]()) == (Sort, Shuffle)
    with pytest.raises(SpecError, match="the method 'absent', cannot be imported"):
        classes["Absent"]()


def test_what_methods_say_of_themselves_is_read_without_importing_them(monkeypatch, tmp_path):
    (tmp_path / "unimportable.py").write_text(
        'class Sort:\n    """In order.\n\n    More."""\nclass Bare: ...\nraise 1\n'
    )
    (tmp_path / "acme-1.0.dist-info").mkdir()
    (tmp_path / "acme-1.0.dist-info" / "METADATA").write_text("Name: acme\nVersion: 1.0\n")
    (tmp_path / "acme-1.0.dist-info" / "entry_points.txt").write_text("[hydraprune.method]\nplug = gone:Plug\n")
    monkeypatch.syspath_prepend(tmp_path)
    methods = Registry("method", "gone:Method", {"sort": "unimportable:Sort", "bare": "unimportable:Bare"})
    assert {name: methods.about(name) for name in methods.names()} == {
        "sort": "In order.", "bare": "", "plug": "the plug-in gone:Plug of the package acme",
    }  # fmt: skip


def test_a_plug_in_may_not_take_a_name(plug):
    plug("sort", "elsewhere:Sort")
    methods = Registry("method", "methods_for_tests:Method", {**TABLE, "shuffle": "methods_for_tests:Shuffle"})
    with pytest.raises(SpecError, match=r"elsewhere:Sort takes the name of the method 'sort'; rename or uninstall it"):
        methods.get("sort")
    assert methods.get("shuffle") is Shuffle
    assert methods.names().count("sort") == 1


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("no_such_module:Plug", r"cannot be imported \(ModuleNotFoundError: No module named 'no_such_module'\)"),
        ("methods_for_tests:Plug", r"cannot be imported \(AttributeError: "),
        ("methods_for_tests:sort", "is no Method; register a subclass of it"),
        ("methods_for_tests:Half", "the method 'plug', lacks run, stop; implement it"),
        ("exits_for_tests:Plug", r"cannot be imported \(SystemExit: 3\)"),
        ("nonsense value", "cannot be imported"),
    ],
)
def test_a_plug_in_with_a_defect_is_an_error_where_it_is_used(monkeypatch, tmp_path, value, complaint):
    (tmp_path / "exits_for_tests.py").write_text("raise SystemExit(3)")
    (tmp_path / "acme-1.0.dist-info").mkdir()
    (tmp_path / "acme-1.0.dist-info" / "METADATA").write_text("Name: acme\nVersion: 1.0\n")
    (tmp_path / "acme-1.0.dist-info" / "entry_points.txt").write_text(f"[hydraprune.method]\nplug = {value}\n")
    monkeypatch.syspath_prepend(tmp_path)
    methods = Registry("method", "methods_for_tests:Method", TABLE)
    assert methods.get("sort") is Sort
    with pytest.raises(SpecError, match=rf"^(here: )?the plug-in {value} of the package acme.*{complaint}") as caught:
        methods.make("plug", "here")
    assert "\n" not in str(caught.value)


METHODS = Registry("method", "methods_for_tests:Method", TABLE)


class Stage(Spec):
    method: Annotated[Method, METHODS] = Sort()
    others: list[Annotated[Method, METHODS]] = []


@pytest.mark.parametrize("given", ["sort", {"kind": "sort", "share": "1/4"}, Sort(share=0.75)])
def test_a_field_of_another_spec_round_trips(given):
    stage = Stage.parse({"method": given, "others": [given, "sort"]}, "stage")
    assert type(stage.method) is Sort
    share = stage.method.share
    assert stage.plain()["method"] == {"kind": "sort", "share": share}
    assert stage.plain()["others"] == [{"kind": "sort", "share": share}, {"kind": "sort", "share": 0.5}]
    assert Stage.parse(stage.plain(), "stage") == stage


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "sotr"}, "stage.method: unknown method 'sotr'; did you mean 'sort'?"),
        ({"others": ["sort", {"kind": "sort", "share": 0}]}, "stage.others.1.share: Input should be greater than 0"),
        ({"method": {"kind": "sort", "shrae": 1}}, "stage.method: unknown key 'shrae'; did you mean 'share'?"),
        ({"method": 7}, "stage.method: expected {kind: ...}, got 7"),
    ],
)
def test_errors_of_a_field_quote_the_path_from_the_outermost(values, message):
    with pytest.raises(SpecError) as caught:
        Stage.parse(values, "stage")
    assert str(caught.value).startswith(message)
