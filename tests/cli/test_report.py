"""`hydraprune report`, as its users call it."""

import sys

import pytest

from hydraprune.cli import main
from report.folders import recipe, write_run


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["hydraprune", "report", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        return caught.value.code or 0, printed.out + printed.err

    return call


def test_a_page_about_several_runs(command, tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"run{seed}", recipe(seed=seed), beside=False)
    assert command("run0", "run1", "--out", "pages/page.html") == (0, "written to pages/page.html\n")
    assert "hydra 90 %" in (tmp_path / "pages" / "page.html").read_text()
    assert command("run0") == (0, "written to report.html\n")


def test_a_folder_without_runs(command, tmp_path):
    code, printed = command(".")
    assert (code, printed) == (
        2, "error: no run in .; give folders that `hydraprune run` wrote, or a folder of such folders\n"
    )  # fmt: skip
