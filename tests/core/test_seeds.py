"""Seeds from seeds against numpy's own, and that no two purposes share one."""

import numpy as np
import pytest
import torch

from hydraprune.core.errors import SpecError
from hydraprune.core.results import Subject
from hydraprune.core.seeds import derived, generator
from hydraprune.evaluation.smoothing import Smoothing, certified_how


@pytest.mark.parametrize("parts", [(0,), (3, 5, 0), (3, 5, 1), (2**40, 7)])
def test_numbers_are_mixed_as_numpy_mixes_them(parts):
    mixed = np.random.SeedSequence(parts).generate_state(1, np.uint64)
    assert derived(*parts) == int(mixed[0]) % 2**32
    draws = [torch.rand(5, generator=rng) for rng in (generator(*parts), torch.Generator().manual_seed(int(mixed[0])))]
    assert torch.equal(*draws)


def test_no_two_batches_of_any_two_seeds_share_one():
    seeds = [*range(40), 2**32, 2**32 + 1, 2**33]
    found = {derived(seed, "evaluation", batch) for seed in seeds for batch in range(100)}
    assert len(found) == len(seeds) * 100


def test_words_tell_purposes_apart_and_stay_what_they_are():
    assert derived(1, "prune") == 4224292674
    assert len({derived(1, word) for word in ("prune", "finetune", "prune/scores")}) == 3


@pytest.mark.parametrize("parts", [(-1,), (0, 1.5), (True,)])
def test_anything_but_whole_numbers_is_refused(parts):
    with pytest.raises(SpecError, match=r"seed is .*; give a whole number"):
        derived(*parts)


def test_figures_of_another_derivation_are_not_joined(monkeypatch):
    def made():
        return Subject("net", "images", 5, None, seed=0).made(attack="pgd"), certified_how(Smoothing(sigma=1), 0)

    before = made()
    monkeypatch.setattr("hydraprune.core.results.DERIVATION", 0)
    monkeypatch.setattr("hydraprune.evaluation.smoothing.DERIVATION", 0)
    assert not {*before} & {*made()}
