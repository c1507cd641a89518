"""What an exported network is worth: its accuracies, measured of what is shipped, beside those of its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from hydraprune.attacks import ATTACKS
from hydraprune.attacks.pgd import PGD
from hydraprune.bounds import BOUNDS
from hydraprune.bounds.certify import Method, require_boxes
from hydraprune.core.errors import SpecError
from hydraprune.core.results import Record, Verified
from hydraprune.core.threat import ThreatModel
from hydraprune.data.images import Images
from hydraprune.deploy.base import Format, Original
from hydraprune.deploy.opened import opened
from hydraprune.evaluation import evaluate, verify
from hydraprune.evaluation.worst_case import Named, Progress
from hydraprune.nets import Net

BOUNDED = 50
"""Images that are bounded at a time, which takes far more memory than attacks do."""


@dataclass(frozen=True)
class Worth:
    """How the accuracies of an export are measured, on the first test images of its data.

    Attributes:
        threat: the adversary; that of the checkpoint by default. Without one, clean accuracy alone is measured.
        attacks: on the source; on the export too where it has gradients. Where it has none, or rounds, images are found
            elsewhere by as many steps and restarts as the first PGD among these has; without one, `PGD()` joins them.
            None measures clean accuracy alone.
        bounds: that prove accuracies; of an export that rounds as well, only if it is opened as a network of torch.
        samples: test images.
        batch_size: images at a time.
        seed: of the attacks' random numbers.
        progress: called after each batch of each attack.
    """

    threat: ThreatModel | None = None
    attacks: Sequence[Named] = ("pgd",)
    bounds: Sequence[Method] = ()
    samples: int = 500
    batch_size: int = 250
    seed: int = 0
    progress: Progress | None = None

    def refuse_unless_possible(self, source: Original) -> None:
        """Raise a SpecError without data, or for bounds under a threat that is no box."""
        if source.data is None:
            raise SpecError("accuracies need images; give `data=`, or measure nothing: `--samples 0`")
        if self.bounds:
            threat = self._threat(source)
            if threat is None:
                raise SpecError("bounds need a threat model; give `threat=` of norm linf, or leave `bounds` out")
            require_boxes(threat)

    def measured(self, form: Format, source: Original, made: Path, trust_code: bool | Net) -> tuple[Record, Record]:
        """Records of the source and of what was written, on the same images.

        The second holds images found on the source as well if numbers were rounded, and what has no gradients is judged
        on images found on its twin, whose gradients pass straight through its rounding.

        Raises:
            SpecError: without data, or for bounds under a threat that is no box.
        """
        self.refuse_unless_possible(source)
        network, twin = opened(made, trust_code, source.given), form.twin(source, made)
        others = {"source": source.network} if form.rounds else {}
        if twin is not None:
            others["twin"] = twin
        attacks = [ATTACKS.make(attack, f"attacks[{number}]") for number, attack in enumerate(self.attacks)]
        like = next((attack for attack in attacks if isinstance(attack, PGD)), None)
        if like is None and others and attacks:
            # Otherwise a weaker attack on the source would make the export seem worse than it is.
            like = PGD()
            attacks.append(like)
        how = {} if like is None else {"steps": like.steps, "restarts": like.restarts}
        found = [{"kind": "transfer", "origin": name, **how} for name in others] if attacks else []
        provable = network if twin is None else None if form.rounds else twin
        return (
            self._record("source", source, source.network, attacks, {}, source.network),
            self._record(form.kind, source, network, [*([] if twin else attacks), *found], others, provable),
        )

    def _record(
        self,
        name: str,
        source: Original,
        network: nn.Module,
        attacks: Sequence[Named],
        others: dict[str, nn.Module],
        provable: nn.Module | None,
    ) -> Record:
        assert source.data is not None
        images = source.data.test.take(self.samples)
        threat = self._threat(source)
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
            verified={} if provable is None else self._verified(provable, images, threat),
        )

    def _verified(self, network: nn.Module, images: Images, threat: ThreatModel | None) -> dict[str, Verified]:
        """Bound -> what it proves."""
        proofs = {}
        for method in self.bounds:
            assert threat is not None
            bound = BOUNDS.make(method, "bounds")
            parts = images.batches(BOUNDED, seed=0).epoch(0)
            proofs[bound.name] = verify(network, parts, threat, bound).summary
        return proofs

    def _threat(self, source: Original) -> ThreatModel | None:
        return self.threat or source.checkpoint.meta.threat
