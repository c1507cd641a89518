"""The digits that come with the package."""

from sklearn.datasets import load_digits

from hydraprune.data.digits import Digits


def test_they_are_those_of_scikit_learn():
    theirs, ours = load_digits(), []
    for part in Digits().read()[:2]:
        for x, y in part.batches(500, seed=0).epoch(0):
            ours += zip((16 * x).flatten(1).round().int().tolist(), y.tolist(), strict=True)
    assert sorted(ours) == sorted(zip(theirs.data.astype(int).tolist(), theirs.target.tolist(), strict=True))
