"""`hydraprune report`, as its users call it."""

import pytest

from report.folders import recipe, write_run


@pytest.fixture
def report(command):
    """Exit code of `hydraprune report`, and all that it printed."""

    def call(*arguments):
        code, out, err = command("report", *arguments)
        return code, out + err

    return call


def test_a_page_about_several_runs(report, tmp_path):
    for seed in range(2):
        write_run(tmp_path / f"run{seed}", recipe(seed=seed), beside=False)
    assert report("run0", "run1", "--out", "pages/page.html") == (0, "written to pages/page.html\n")
    assert "hydra 90 %" in (tmp_path / "pages" / "page.html").read_text()
    assert report("run0") == (0, "written to report.html\n")


def test_a_folder_without_runs(report, tmp_path):
    code, printed = report(".")
    assert (code, printed) == (
        2, "error: no run in .; give folders that `hydraprune run` wrote, or a folder of such folders\n"
    )  # fmt: skip
