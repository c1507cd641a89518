"""What every test may ask for."""

from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"
"""Reference numbers of other implementations."""
REFERENCE = Path(__file__).resolve().parents[2] / "shared"

# Tests run side by side; with more threads they would wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _begin() -> None:
    """The same random numbers for each test, and one thread, whatever the recipe of the last one set."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of reference numbers; its README says how they were made."""
    return GOLDEN


@pytest.fixture
def reference() -> Path:
    """The folder of reference images beside the project."""
    if not REFERENCE.is_dir():
        pytest.skip("the reference folder is not beside this checkout")
    return REFERENCE
