"""What several tests of the report read."""

import pytest

from report.folders import write_study


@pytest.fixture
def folder(tmp_path):
    """A study of two pruners, sparsities and seeds, with nothing beside its checkpoints."""
    return write_study(tmp_path / "study", range(2), beside=False)
