"""What every table of misuses asserts: one sentence that a user can act on, and a model that is as it was."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import nn

from contracts.material import snapshot, unchanged
from hydraprune.core.errors import HydrapruneError


@contextmanager
def refused(message: str, *models: nn.Module) -> Iterator[None]:
    """What is inside raises one error that holds `message`, and changes none of `models`, not by a bit."""
    before = [snapshot(model) for model in models]
    with pytest.raises(HydrapruneError, match=re.escape(message)) as caught:
        yield
    assert "\n" not in str(caught.value)
    for model, was in zip(models, before, strict=True):
        assert unchanged(model, was)
