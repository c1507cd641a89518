"""What several tests of the report read."""

import pytest

from report.folders import recipe, write_run


@pytest.fixture
def folder(tmp_path):
    """Two seeds of one recipe, with nothing beside their checkpoints."""
    for seed in range(2):
        write_run(tmp_path / "study" / f"seed{seed}", recipe(seed=seed), beside=False)
    return tmp_path / "study"
