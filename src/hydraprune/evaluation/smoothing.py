"""Randomized smoothing: an l2 radius around each image in which no adversary can act (Cohen et al., arXiv:1902.02918).

The smoothed network answers with the class that the network most often gives to `x + sigma * n`, n being standard
normal. A certificate holds with probability `1 - alpha` for each image by itself, not for all images together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.core.batches import checked, one_pass
from hydraprune.core.errors import DataError, EvaluationError
from hydraprune.core.extras import extra
from hydraprune.core.fingerprint import fingerprint
from hydraprune.core.network import device_of
from hydraprune.core.objective import Batch
from hydraprune.core.precision import exact
from hydraprune.core.seeds import DERIVATION, generator
from hydraprune.core.spec import Number, Spec, whole
from hydraprune.core.twin import judged
from hydraprune.evaluation.accuracy import judge
from hydraprune.evaluation.records import ImageRecord, Ledger, network_key
from hydraprune.evaluation.worst_case import _channels_last

ABSTAIN = -1
"""The class of an image for which the votes do not suffice."""

RADII = (0.0, 0.25, 110 / 255, 0.5, 0.75)
"""Radii that tables report. In 3,072 dimensions the l2 ball of 110/255 stands for the linf ball of 2/255."""

_BLOCK = 2**24
"""Numbers drawn at a time. It decides which noise follows from a seed, and `batch_size` does not."""


class Smoothing(Spec):
    """How images are certified.

    Args:
        sigma: standard deviation of the noise, in pixels of [0, 1]; that of training.
        n0: draws that choose the class.
        n: new draws that bound its probability. The largest radius at hand grows with it: at sigma 0.25 and alpha
            0.001 it is 0.80 for 10,000 and 0.95 for 100,000.
        alpha: probability that a certificate is wrong.
        every: `certify_dataset` takes each `every`-th image.
        batch_size: noisy images per forward pass; it changes no noise. Small nets like it small on a CPU, a GPU large.
        precision: `float32` means what it says, without TF32. `bf16` is faster, and certifies the network as it runs
            in bf16: rounding decides votes near a tie the other way.

    Sample: `{sigma: 0.25, n: 100000, every: 20}`
    """

    sigma: Number = Field(gt=0)
    n0: int = Field(default=100, ge=1)
    n: int = Field(default=100_000, ge=1)
    alpha: float = Field(default=0.001, gt=0, lt=1)
    every: int = Field(default=1, ge=1)
    batch_size: int = Field(default=128, ge=1)
    precision: Literal["float32", "bf16"] = "float32"

    @property
    def name(self) -> str:
        """What tables call it: `sigma=0.25,n=10000`, on which every radius depends."""
        return f"sigma={self.sigma:g},n={self.n}"

    def require(self) -> None:
        _special()


def _special() -> Any:
    """The functions behind the intervals."""
    with extra("smoothing", "randomized smoothing"):
        from scipy import special
    return special


@dataclass(frozen=True)
class Certificate:
    """What is certain of B images.

    Attributes:
        label: (B,) int64, the smoothed network's class, or ABSTAIN.
        radius: (B,) float64, the l2 distance in pixels of [0, 1] below which the class cannot change; 0 if abstaining.
        counts: (B, K) int64, the votes of the `n` draws.
    """

    label: Tensor
    radius: Tensor
    counts: Tensor


class CertifiedImage(ImageRecord):
    """One line of the file that `certify_dataset` writes; its prediction is the smoothed network's class, or ABSTAIN.

    Args:
        radius: certified l2 radius, in pixels of [0, 1]; 0 if abstaining.
        counts: votes of the `n` draws per class.
    """

    radius: float = Field(ge=0)
    counts: tuple[int, ...]


def certify(model: nn.Module, x: Tensor, smoothing: Smoothing, *, seed: int = 0) -> Certificate:
    """Class and certified radius of each image (algorithm CERTIFY).

    The noise of image i follows from `(seed, i)` on a given kind of device. The model may be parametrized; it keeps
    its modes, gradients, buffers and random state.

    Args:
        model: returns logits (B, K).
        x: images (B, C, H, W) in [0, 1].

    Raises:
        DataError: for images outside [0, 1].
        EvaluationError: for logits that are not finite.
    """
    batch, seed = _unlabelled(model, x), whole(seed, "seed")
    with _deployed(model, batch, smoothing.precision) as net:
        found = [_certified(net, image, smoothing, seed, i) for i, image in enumerate(batch.x)]
    labels, radii, counts = zip(*found, strict=True)
    return Certificate(torch.tensor(labels), torch.tensor(radii, dtype=torch.float64), torch.stack(counts))


def predict(model: nn.Module, x: Tensor, smoothing: Smoothing, *, seed: int = 0) -> Tensor:
    """(B,) int64: the smoothed network's class from `n` draws, or ABSTAIN (algorithm PREDICT).

    It is wrong with probability `alpha` at most. Noise and errors are those of `certify`.
    """
    batch, seed = _unlabelled(model, x), whole(seed, "seed")
    with _deployed(model, batch, smoothing.precision) as net:
        counts = [
            _votes(net, x, smoothing.n, smoothing, generator(seed, i, device=x.device)) for i, x in enumerate(batch.x)
        ]
    return torch.tensor([decision(votes, smoothing.alpha)[0] for votes in counts])


def certify_dataset(
    model: nn.Module,
    batches: Any,
    smoothing: Smoothing,
    path: Path | str,
    *,
    seed: int = 0,
    progress: Callable[[CertifiedImage], None] | None = None,
) -> list[CertifiedImage]:
    """Certify each `every`-th image and keep the records in `path`, one line of JSON each.

    After a kill the same call goes on where it stopped. Noise follows from `seed` and an image's index, so records
    depend neither on the interruption nor on how images are batched.

    Args:
        model: as for `certify`.
        batches: the data set in its order, images in [0, 1] with labels, in any form that `evaluate` takes.
        path: the file to write, or to continue.
        progress: called with every record, those found in the file included.

    Returns:
        The records in the order of the data.

    Raises:
        CheckpointError: if `path` holds records of another network, other images, settings or seed, or no records.
        DataError: for images outside [0, 1] or labels that the network has no class for.
        EvaluationError: without images, for logits that are not finite, or if the disk refuses.
    """
    device, seed = device_of(model), whole(seed, "seed")
    ledger = Ledger(CertifiedImage, Path(path), network_key(model), certified_how(smoothing, seed))
    records: list[CertifiedImage] = []
    first = 0
    for pair in one_pass(batches):
        batch = checked(pair, device)
        with _deployed(model, batch, smoothing.precision) as net:
            for i in range(-first % smoothing.every, len(batch.x), smoothing.every):
                image, label = batch.x[i], int(batch.y[i])
                keys = ledger.keys(image, label)
                record = ledger.find(first + i, keys)
                if record is None:
                    began = time.perf_counter()
                    found = _certified(net, image, smoothing, seed, first + i)
                    record = CertifiedImage(
                        index=first + i,
                        label=label,
                        prediction=found[0],
                        radius=found[1],
                        counts=tuple(found[2].tolist()),
                        seconds=time.perf_counter() - began,
                        **keys,
                    )
                    ledger.add(record)
                records.append(record)
                if progress:
                    progress(record)
        first += len(batch.x)
    if not records:
        raise EvaluationError("no images to certify; give at least one batch")
    return records


def certified_how(smoothing: Smoothing, seed: int) -> str:
    """The fingerprint of what a certificate depends on, beside network and image."""
    return fingerprint(smoothing=smoothing.model_dump(exclude={"every", "batch_size"}), seed=[DERIVATION, seed])


def summary(records: Sequence[CertifiedImage], smoothing: Smoothing, radii: Iterable[float] = RADII) -> dict[str, Any]:
    """Figures of a certified data set, ready for JSON; abstaining counts as wrong.

    The certified accuracy depends on `n`: report both.
    """
    return {
        "samples": len(records),
        **smoothing.model_dump(include={"sigma", "n0", "n", "alpha", "precision"}),
        "clean_accuracy": certified_accuracy(records, [0.0])[0.0],
        "certified_accuracy": certified_accuracy(records, radii),
        "average_certified_radius": average_certified_radius(records),
        "abstention_rate": fmean(record.prediction == ABSTAIN for record in records),
    }


def certified_accuracy(records: Sequence[CertifiedImage], radii: Iterable[float]) -> dict[float, float]:
    """Radius -> share of the images classified correctly with at least that radius; at 0 the clean accuracy."""
    return {r: fmean(record.prediction == record.label and record.radius >= r for record in records) for r in radii}


def average_certified_radius(records: Sequence[CertifiedImage]) -> float:
    """Mean radius over all images, that of a wrong or abstaining one being 0 (arXiv:2001.02378)."""
    return fmean(record.radius * (record.prediction == record.label) for record in records)


def certificate(selection: Tensor, estimation: Tensor, sigma: float, alpha: float) -> tuple[int, float]:
    """Class, or ABSTAIN, and l2 radius, from the votes (K,) int64 of two separate rounds of draws."""
    top = int(selection.argmax())
    bound = clopper_pearson(int(estimation[top]), int(estimation.sum()), alpha)
    return (top, sigma * float(_special().ndtri(bound))) if bound >= 0.5 else (ABSTAIN, 0.0)


def clopper_pearson(hits: int, n: int, alpha: float) -> float:
    """Lower end of the one-sided interval that covers a probability with confidence `1 - alpha`, in float64."""
    return float(_special().betaincinv(hits, n - hits + 1, alpha)) if hits else 0.0


def decision(counts: Tensor, alpha: float) -> tuple[int, float]:
    """Class, or ABSTAIN, from votes (K,) int64, and the p-value of the two-sided binomial test of the two largest."""
    most, second = counts.topk(2).values.tolist()
    # At probability 1/2 both tails are equal; they overlap in a tie.
    p_value = min(1.0, 2 * float(_special().bdtr(second, most + second, 0.5)))
    return (int(counts.argmax()) if p_value <= alpha else ABSTAIN), p_value


def _certified(net: nn.Module, image: Tensor, smoothing: Smoothing, seed: int, index: int) -> tuple[int, float, Tensor]:
    rng = generator(seed, index, device=image.device)
    selection = _votes(net, image, smoothing.n0, smoothing, rng)
    estimation = _votes(net, image, smoothing.n, smoothing, rng)
    return *certificate(selection, estimation, smoothing.sigma, smoothing.alpha), estimation


def _votes(net: nn.Module, image: Tensor, draws: int, smoothing: Smoothing, rng: torch.Generator) -> Tensor:
    """(K,) int64 on the CPU: how often each class wins among the next `draws` noisy copies of `image` (C, H, W)."""
    block = max(1, _BLOCK // image.numel())
    winners, finite = [], []
    for first in range(0, draws, block):
        shape = (min(block, draws - first), *image.shape)
        noise = torch.randn(shape, generator=rng, device=image.device, dtype=image.dtype)
        for part in noise.split(smoothing.batch_size):
            logits = net(torch.add(image, part, alpha=smoothing.sigma))
            winners.append(logits.argmax(1))
            finite.append(logits.isfinite().all())
    if not torch.stack(finite).all():
        raise EvaluationError("the network returns NaN or infinite logits for noisy images; was its training stable?")
    return torch.cat(winners).cpu().bincount(minlength=logits.shape[1])


def _unlabelled(model: nn.Module, x: Tensor) -> Batch:
    device = device_of(model)
    if not isinstance(x, Tensor) or not x.dim():
        raise DataError(f"expected images (B, C, H, W), got a {type(x).__name__}; give a tensor, without labels")
    return checked(Batch(x, torch.zeros(len(x), dtype=torch.int64)), device)


@contextmanager
def _deployed(model: nn.Module, batch: Batch, precision: str) -> Iterator[nn.Module]:
    """A folded copy of `model` that has been tried on `batch`, to be used inside in the precision asked for."""
    device = batch.x.device
    with exact(), torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        net = judged(model)
        _channels_last(net, batch.x[:1])
        judge(net, *batch)  # refuses bad labels and logits before anything is written
        yield net
