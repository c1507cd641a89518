"""The table of methods names all of them."""

from pathlib import Path

from hydraprune.pruners import PRUNERS


def test_every_pruner_has_a_line_in_the_document():
    lines = (Path(__file__).parents[2] / "docs" / "pruners.md").read_text().splitlines()
    named = {line.split("`")[1] for line in lines if line.startswith("| `")}
    assert set(PRUNERS.names()) <= named
