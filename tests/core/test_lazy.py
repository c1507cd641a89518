"""Names that are imported when they are used."""

import subprocess
import sys

import pytest

from hydraprune.core.lazy import lazy

FILES = {
    "__init__.py": (
        "from typing import TYPE_CHECKING\n"
        "from hydraprune.core.lazy import lazy\n"
        "if TYPE_CHECKING:\n"
        "    from hydraprune.core.errors import DataError, SpecError as Wrong\n"
        "    from torch import Tensor\n"
        "__getattr__, __dir__ = lazy(__name__, lambda: {'Snip': lambda: 7})\n"
        "here = 1\n"
    ),
    "snip.py": "loaded = True\n",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / "idle").mkdir(exist_ok=True)
        (tmp_path / "idle" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    import idle

    yield idle
    for name in [name for name in sys.modules if name.partition(".")[0] == "idle"]:
        del sys.modules[name]


def test_names_methods_and_modules_are_given_when_they_are_used(package):
    from hydraprune.core.errors import DataError, SpecError

    assert "idle.snip" not in sys.modules
    assert (package.DataError, package.Wrong, package.Snip) == (DataError, SpecError, 7)
    assert package.snip is sys.modules["idle.snip"]
    assert {"DataError", "Wrong", "Snip", "snip", "here"} <= set(dir(package))
    assert "Tensor" not in dir(package)


@pytest.mark.parametrize(("name", "near"), [("SNIP", "Snip"), ("Snap", "Snip"), ("wrong", "Wrong")])
def test_an_unknown_name_is_answered_with_the_nearest(package, name, near):
    with pytest.raises(AttributeError, match=rf"^idle has no '{name}'; did you mean '{near}'\?$"):
        getattr(package, name)
    assert not hasattr(package, "__wrapped__")


def test_a_module_may_have_names_of_others():
    get, _ = lazy(__name__, lambda: {"Plugged": lambda: 3})
    assert get("Plugged") == 3


def test_the_package_imports_nothing_heavy():
    script = "import sys, hydraprune, hydraprune.masks, hydraprune.data; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy"} & set(loaded)
