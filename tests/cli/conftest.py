"""The commands, called as their users call them."""

import sys

import pytest

from hydraprune.cli import main


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs a command line in an empty folder; returns exit code, output and what went to standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("PYTHONSAFEPATH", "")  # commands set it

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["hydraprune", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        return caught.value.code or 0, printed.out, printed.err

    return call
