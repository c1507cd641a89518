"""What an exported network is worth: its accuracies, measured of what is shipped, beside those of its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from hydraprune.core.errors import SpecError
from hydraprune.core.results import Record
from hydraprune.core.threat import ThreatModel
from hydraprune.deploy.base import Format, Original
from hydraprune.deploy.opened import opened
from hydraprune.evaluation import evaluate
from hydraprune.evaluation.worst_case import Named, Progress
from hydraprune.nets import Net


@dataclass(frozen=True)
class Worth:
    """How the accuracies of an export are measured, on the first test images of its data.

    Attributes:
        threat: the adversary; that of the checkpoint by default. Without one, clean accuracy alone is measured.
        attacks: on the source; on the export too where it has gradients.
        samples: test images.
        batch_size: images at a time.
        seed: of the attacks' random numbers.
        progress: called after each batch of each attack.
    """

    threat: ThreatModel | None = None
    attacks: Sequence[Named] = ("pgd",)
    samples: int = 500
    batch_size: int = 250
    seed: int = 0
    progress: Progress | None = None

    def measured(self, form: Format, source: Original, made: Path, trust_code: bool | Net) -> tuple[Record, Record]:
        """Records of the source and of what was written, on the same images.

        The second holds images found on the source as well, and what has no gradients is judged on images found on its
        twin, whose gradients pass straight through its rounding.

        Raises:
            SpecError: without data.
        """
        if source.data is None:
            raise SpecError("accuracies need images; give `data=`, or measure nothing: `--samples 0`")
        network = opened(made, trust_code, source.given)
        others: dict[str, nn.Module] = {}
        if form.rounds:
            others["source"] = source.network
        if (twin := form.twin(source, made)) is not None:
            others["twin"] = twin
        found = [{"kind": "transfer", "origin": name} for name in others]
        return (
            self._record("source", source, source.network, self.attacks, {}),
            self._record(form.kind, source, network, [*([] if twin else self.attacks), *found], others),
        )

    def _record(
        self, name: str, source: Original, network: nn.Module, attacks: Sequence[Named], others: dict[str, nn.Module]
    ) -> Record:
        assert source.data is not None
        images = source.data.test.take(self.samples)
        threat = self.threat or source.checkpoint.meta.threat
        found = evaluate(
            network,
            images.batches(self.batch_size, seed=0).epoch(0),
            threat=threat,
            attacks=attacks if threat is not None else (),
            networks=others,
            seed=self.seed,
            progress=self.progress,
        )
        meta = source.checkpoint.meta
        return found.record(
            stage=name,
            seed=self.seed,
            pruner=meta.pruner,
            kept=meta.kept,
            total=meta.total,
            network=source.checkpoint.digest,
            images=source.data.test.digest(),
        )
