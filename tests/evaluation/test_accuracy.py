"""The referee's verdicts, and what it refuses to judge."""

import pytest
import torch
from torch import nn

from hydraprune.core.errors import DataError, EvaluationError, SpecError
from hydraprune.core.objective import Batch
from hydraprune.evaluation import clean_accuracy

X, Y = torch.rand(5, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1])


class Labels(nn.Module):
    """Classifies every image as 1, and notes its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]))
        self.modes = set()

    def forward(self, x):
        self.modes.add(self.training)
        return self.bias.expand(len(x), -1)


def test_is_the_share_of_all_images_over_uneven_batches():
    model = Labels().train()
    assert clean_accuracy(model, [Batch(X, Y)]) == pytest.approx(0.4)
    assert clean_accuracy(model, iter([Batch(X[:4], Y[:4]), Batch(X[4:], Y[4:])])) == pytest.approx(0.4)
    assert model.modes == {False}
    assert model.training


def test_refuses_logits_that_are_not_finite():
    model = Labels()
    model.bias.data[2] = float("nan")
    with pytest.raises(EvaluationError, match="NaN or infinite logits"):
        clean_accuracy(model, [Batch(X, Y)])


def test_refuses_a_model_without_logits_per_image():
    model = Labels()
    model.forward = lambda x: model.bias
    with pytest.raises(SpecError, match=r"expected logits \(5, classes\), the network returns torch\.float32 \(3,\)"):
        clean_accuracy(model, [Batch(X, Y)])


def test_refuses_nothing_to_do():
    with pytest.raises(EvaluationError, match="no images"):
        clean_accuracy(Labels(), [])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, Y + 1, "labels run from 1 to 3, but the network has 3 classes"),
        (X, Y - 1, "labels run from -1 to 1"),
        (X * 255, Y, r"pixels must lie in \[0, 1\]"),
        (X - 0.5, Y, r"pixels must lie in \[0, 1\]"),
        (X * float("nan"), Y, r"pixels must lie in \[0, 1\]"),
        ((X * 255).byte(), Y, r"expected float images in \[0, 1\], got torch\.uint8; write x\.float\(\) / 255"),
        (X, Y.float(), r"labels are torch\.float32 \(5,\); give one integer class id for each of 5 images"),
        (X, Y[:3], r"labels are torch\.int64 \(3,\); give one integer class id for each of 5 images"),
        (X[0], Y[:1], r"expected images \(B, C, H, W\)"),
        (X[:0], Y[:0], r"expected images \(B, C, H, W\)"),
    ],
)
def test_refuses_images_and_labels_that_do_not_fit(x, y, message):
    with pytest.raises(DataError, match=message):
        clean_accuracy(Labels(), [Batch(x, y)])
