"""What evaluation produces: one frozen record per evaluated checkpoint."""

from __future__ import annotations

from pydantic import Field

from hydraprune.core.spec import Spec
from hydraprune.core.threat import ThreatModel


class Record(Spec):
    """One network under one threat model. Accuracies and sparsity lie in [0, 1].

    Args:
        stage: the checkpoint that was evaluated, as a path inside its run.
        pruner: how its connections were chosen; None for a dense network.
        sparsity: removed / total, counted over prunable weights.
        kept: prunable weights that are left.
        total: prunable weights of the dense network.
        clean_accuracy: share of `samples` images classified correctly.
        robust_accuracy: attack name -> share classified correctly however the attack changes them.
        robust_samples: attack name -> images that it was run on, where fewer than `samples`.
        samples: number of test images.
        threat: the adversary.
        seed: the seed of the evaluation.
        seconds: wall time of the evaluation.
    """

    stage: str
    pruner: str | None = None
    sparsity: float = Field(ge=0, le=1)
    kept: int
    total: int
    clean_accuracy: float = Field(ge=0, le=1)
    robust_accuracy: dict[str, float] = {}
    robust_samples: dict[str, int] = {}
    samples: int = Field(ge=1)
    threat: ThreatModel | None = None
    seed: int
    seconds: float

    def joined(self, other: Record) -> Record:
        """This record with what `other` found of the same network under further attacks."""
        sizes = {name: other.robust_samples.get(name, other.samples) for name in other.robust_accuracy}
        fewer = {name: count for name, count in sizes.items() if count != self.samples}
        return self.model_copy(
            update={
                "robust_accuracy": self.robust_accuracy | other.robust_accuracy,
                "robust_samples": self.robust_samples | fewer,
                "seconds": self.seconds + other.seconds,
            }
        )
