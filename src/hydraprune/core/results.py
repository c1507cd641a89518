"""What evaluation produces: one frozen record per evaluated checkpoint."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

from hydraprune.core.fingerprint import fingerprint
from hydraprune.core.seeds import DERIVATION
from hydraprune.core.spec import Count, Real, Sealed, Several, Share, Spec
from hydraprune.core.threat import ThreatModel

WORST = "worst-case"
"""What the union over several attacks is called in tables."""


def _within(path: str) -> str:
    if not path.isprintable() or "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError("expected a path inside of the run, such as pretrain or hydra-0.9/finetune")
    return path


Inside = Annotated[str, Field(max_length=255), AfterValidator(_within)]
"""A path relative to a run, which never leaves it."""


class Verified(Spec):
    """What a bound proves of a network under the threat model.

    Args:
        samples: number of images.
        precision: of the proof.
        clean_accuracy: share classified correctly.
        verified_accuracy: share classified correctly whatever the adversary does.
        mean_margin: mean least margin over the images classified correctly; None if there is none.
        close: how many of them lie within what float32 arithmetic loses.
    """

    samples: Several
    precision: str
    clean_accuracy: Share
    verified_accuracy: Share
    mean_margin: Real | None = None
    close: Count = 0


class Certified(Spec):
    """What randomized smoothing certifies of a network; abstaining counts as wrong.

    Args:
        samples: number of images.
        sigma: standard deviation of the noise, in pixels of [0, 1].
        n0: draws that chose the class.
        n: draws that bounded its probability, on which the radii depend.
        alpha: probability that a certificate is wrong.
        precision: of the network.
        clean_accuracy: share that the smoothed network classifies correctly.
        certified_accuracy: l2 radius -> share classified correctly with at least that radius.
        average_certified_radius: mean radius, that of a wrong image being 0.
        abstention_rate: share without a certificate.
    """

    samples: Several
    sigma: Real
    n0: Count
    n: Count
    alpha: Real
    precision: str
    clean_accuracy: Share
    certified_accuracy: dict[Annotated[float, Field(ge=0, le=1e6)], Share]
    average_certified_radius: Real
    abstention_rate: Share


class Corrupted(Spec):
    """Accuracy under common corruptions, without an adversary.

    Args:
        samples: number of images at each severity of each corruption.
        accuracy: corruption -> shares classified correctly at severities 1 to 5.
        mean_accuracy: over corruptions and severities.
    """

    samples: Several
    accuracy: dict[str, Annotated[list[Share], Field(min_length=5, max_length=5)]]
    mean_accuracy: Share


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        network: digest of the weights.
        images: digest of the test split, of which the first images are taken.
        total: number of images in that split.
        threat: the adversary.
        seed: of attacks, noise and corruptions.
    """

    network: str
    images: str
    total: int
    threat: ThreatModel | None
    seed: int

    def made(self, **how: Any) -> str:
        """The fingerprint of a figure that is measured so, whatever the number of images."""
        threat = None if self.threat is None else self.threat.plain()
        return fingerprint(network=self.network, images=self.images, threat=threat, seed=[DERIVATION, self.seed], **how)


Counted = TypeVar("Counted", Verified, Corrupted)


class Record(Sealed):
    """One network under one threat model. Accuracies and sparsity lie in [0, 1].

    Args:
        stage: the checkpoint that was evaluated, as a path inside its run.
        network: digest of its weights, `sha256` of `model.safetensors`; None if the record does not say.
        images: digest of the test split; None if the record does not say.
        made: attack, bound, smoothing or source of corruptions -> fingerprint of all that its figures depend on, the
            number of images apart; a figure is taken over only where this is the same.
        pruner: how its connections were chosen; None for a dense network.
        sparsity: removed / total, counted over prunable weights.
        kept: prunable weights that are left.
        total: prunable weights of the dense network.
        clean_accuracy: share of `samples` images classified correctly.
        robust_accuracy: attack name -> share classified correctly however the attack changes them.
        robust_samples: attack name -> images that it was run on, where fewer than `samples`.
        macs: multiplications and additions of one image, those with removed weights left out; None if not counted.
        macs_dense: the same with every weight.
        verified: bound -> what it proves.
        certified: settings of randomized smoothing -> what it certifies.
        corrupted: where common corruptions come from -> accuracy under them.
        samples: number of test images.
        threat: the adversary.
        seed: the seed of the evaluation.
        seconds: wall time of the evaluation.
    """

    stage: Inside
    network: str | None = None
    images: str | None = None
    made: dict[str, str] = {}
    pruner: str | None = None
    sparsity: Share
    kept: Count
    total: Several
    clean_accuracy: Share
    robust_accuracy: dict[str, Share] = {}
    robust_samples: dict[str, Several] = {}
    macs: Count | None = None
    macs_dense: Count | None = None
    verified: dict[str, Verified] = {}
    certified: dict[str, Certified] = {}
    corrupted: dict[str, Corrupted] = {}
    samples: Several
    threat: ThreatModel | None = None
    seed: int
    seconds: Annotated[Real, Field(ge=0)]

    def tried(self, attack: str) -> int:
        """On how many images an attack was run."""
        return self.robust_samples.get(attack, self.samples)

    def figures(self) -> set[str]:
        """What it has figures of: attacks but for their union, bounds, smoothing and corruptions."""
        return {*self.robust_accuracy, *self.verified, *self.certified, *self.corrupted} - {WORST}

    def differing(self, other: Record) -> set[str]:
        """The figures that both have, and that were made in different ways."""
        return {name for name in self.figures() & other.figures() if self.made.get(name) != other.made.get(name)}

    def without(self, names: Collection[str]) -> Record:
        """The same without these figures, and without the union of the attacks if one of them goes."""
        gone = {*names, *([WORST] if self.robust_accuracy.keys() & names else [])}
        groups = ("robust_accuracy", "robust_samples", "verified", "certified", "corrupted", "made")
        return self.model_copy(
            update={g: {name: value for name, value in getattr(self, g).items() if name not in gone} for g in groups}
        )

    def joined(self, other: Record) -> Record:
        """This record with what `other` found of the same network by further attacks, certificates and corruptions.

        A figure that was made otherwise by `other` counts as that has it; one that was made alike as on more images.
        The union `worst-case` of several attacks is only known image by image: it comes from a record of all attacks of
        both.
        """
        if differing := self.differing(other):
            return self.without(differing).joined(other)
        larger = other if other.samples > self.samples else self
        sides: dict[str, Record] = {}
        for side in (self, other):
            for name in side.robust_accuracy:
                if name not in sides or side.tried(name) >= sides[name].tried(name):
                    sides[name] = side
        if WORST in sides:
            del sides[WORST]
            whole = [side for side in (other, self) if side.robust_accuracy.keys() >= {WORST, *sides}]
            sides |= {WORST: max(whole, key=lambda side: side.tried(WORST))} if whole else {}
        counts = {name: side.tried(name) for name, side in sides.items()}
        return self.model_copy(
            update={
                "clean_accuracy": larger.clean_accuracy,
                "samples": larger.samples,
                "network": self.network or other.network,
                "images": self.images or other.images,
                "made": self.made | other.made,
                "threat": self.threat or other.threat,
                "robust_accuracy": {name: side.robust_accuracy[name] for name, side in sides.items()},
                "robust_samples": {name: count for name, count in counts.items() if count < larger.samples},
                "verified": _larger(self.verified, other.verified),
                "certified": _wider(self.certified, other.certified),
                "corrupted": _larger(self.corrupted, other.corrupted),
                "macs": other.macs or self.macs,
                "macs_dense": other.macs_dense or self.macs_dense,
                "seconds": self.seconds + other.seconds,
            }
        )


def _larger(first: dict[str, Counted], second: dict[str, Counted]) -> dict[str, Counted]:
    """Both; of the same name the one on more images, or else the second."""
    return first | {n: new for n, new in second.items() if n not in first or new.samples >= first[n].samples}


def _wider(first: dict[str, Certified], second: dict[str, Certified]) -> dict[str, Certified]:
    """Both; of the same name the second, unless the first has all of its radii on more images."""
    larger = {
        name: old
        for name, old in first.items()
        if name in second
        and old.samples > second[name].samples
        and old.certified_accuracy.keys() >= second[name].certified_accuracy.keys()
    }
    return first | second | larger
