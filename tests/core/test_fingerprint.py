"""Fingerprints change with every part, and with nothing else."""

import pytest
import torch

from hydraprune.core.fingerprint import content, fingerprint


def test_every_part_counts_and_order_does_not():
    base = fingerprint(network="a", attack={"kind": "pgd", "steps": 10}, eps=0.1)
    assert base == fingerprint(eps=0.1, attack={"steps": 10, "kind": "pgd"}, network="a")
    others = [
        fingerprint(network="b", attack={"kind": "pgd", "steps": 10}, eps=0.1),
        fingerprint(network="a", attack={"kind": "pgd", "steps": 11}, eps=0.1),
        fingerprint(network="a", attack={"kind": "pgd", "steps": 10}, eps=0.2),
        fingerprint(network="a", attack={"kind": "pgd", "steps": 10}),
    ]
    assert len({base, *others}) == 5


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(TypeError):
        fingerprint(weights=torch.zeros(1))
    with pytest.raises(ValueError, match="Out of range float values"):
        fingerprint(eps=float("nan"))


def test_content_is_type_shape_and_values():
    base = torch.arange(6, dtype=torch.float32)
    assert content(base.view(2, 3)) == content(base.view(2, 3).clone().t().contiguous().t())
    different = [base, base.view(2, 3), base.view(3, 2), base.double(), base + 1, base.int()]
    assert len({content(one) for one in different}) == len(different)
    assert content(base[:3], base[3:]) != content(base)
