"""The stage that certifies networks, by bounds and by randomized smoothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from hydraprune.bounds import BOUNDS, Bounds
from hydraprune.core.errors import SpecError
from hydraprune.core.results import Certified, Record, Subject, Verified
from hydraprune.core.spec import Number
from hydraprune.evaluation import evaluate
from hydraprune.evaluation.records import ImageRecord, begin_anew, network_key
from hydraprune.evaluation.smoothing import RADII, CertifiedImage, Smoothing, certified_how, certify_dataset, summary
from hydraprune.evaluation.verification import Precision, VerifiedImage, verified_how, verify
from hydraprune.recipes.measure import place
from hydraprune.recipes.stages import Bench, Measure, Stage
from hydraprune.runs.checkpoint import Checkpoint
from hydraprune.train.hooks import progress_bar

if TYPE_CHECKING:
    from hydraprune.recipes.schema import Recipe


class Certify(Measure):
    """A stage that proves how accurate networks stay.

    Args:
        name: what `--set stages.NAME...` calls it.
        bounds: proofs of the network itself, under the recipe's threat model, such as `[ibp, crown-ibp, best]`.
        smoothing: certificates of the smoothed network, in l2, such as `{sigma: 0.25, n: 10000}`.
        radii: l2 radii that tables report, in pixels of [0, 1].
        precision: of the bounds.
        batch_size: images that are bounded at once; a killed run loses no more of them.
    """

    kind: Literal["certify"] = "certify"
    name: str = "certify"
    bounds: list[Annotated[Bounds, BOUNDS]] = []
    smoothing: Smoothing | None = None
    radii: list[Annotated[Number, Field(ge=0)]] = list(RADII)
    precision: Precision = "float64"
    batch_size: int = Field(default=50, ge=1)

    @model_validator(mode="after")
    def _certifies(self) -> Self:
        if not self.bounds and self.smoothing is None:
            raise ValueError("nothing to certify with; add `bounds: [crown]` or `smoothing: {sigma: 0.25}`")
        names = [bound.name for bound in self.bounds]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two bounds are called {name!r}; remove one")
        return self

    def check(self, recipe: Recipe, before: Sequence[Stage]) -> None:
        super().check(recipe, before)
        if self.bounds and (recipe.threat is None or recipe.threat.norm != "linf"):
            raise ValueError(
                f"stage {self.name!r} has bounds, which need a threat model of norm linf; "
                "add `threat: {norm: linf, eps: 2/255}`, or certify by smoothing"
            )

    def made(self, subject: Subject, others: Mapping[str, str]) -> dict[str, str]:
        found = {bound.name: subject.made(bound=bound.deciding(), precision=self.precision) for bound in self.bounds}
        if self.smoothing is not None:
            anyone = replace(subject, threat=None)
            how = self.smoothing.model_dump(exclude={"batch_size"})
            found[self.smoothing.name] = anyone.made(smoothing=how)
        return found

    def rest(self, before: Record | None, made: Mapping[str, str], total: int) -> Self | None:
        if before is None:
            return self
        wanted = self.wanted(total)
        known = {name for name, how in before.made.items() if made.get(name) == how}
        proofs = {name: proof.samples for name, proof in before.verified.items() if name in known}
        bounds = [bound for bound in self.bounds if proofs.get(bound.name, 0) < wanted]
        smoothing = self.smoothing
        if smoothing is not None and smoothing.name in known and smoothing.name in before.certified:
            found = before.certified[smoothing.name]
            enough = found.samples >= len(range(0, wanted, smoothing.every))
            smoothing = None if enough and found.certified_accuracy.keys() >= {*self.radii} else smoothing
        return self.model_copy(update={"bounds": bounds, "smoothing": smoothing}) if bounds or smoothing else None

    def measured(
        self,
        checkpoint: Checkpoint,
        bench: Bench,
        others: Mapping[str, Checkpoint] | None = None,
        made: Mapping[str, str] | None = None,
    ) -> Record:
        """Clean accuracy of a checkpoint, and what is proved of it.

        Records per image are kept in its folder, `verified-BOUND,eps=EPS.jsonl` and `certified-SETTINGS.jsonl`, from
        which a killed call goes on. A file of another network or other settings is put aside.
        """
        began = time.perf_counter()
        folder, recipe, subject = checkpoint.folder, bench.recipe, bench.subject(checkpoint)
        model = bench.fabric.to_device(checkpoint.network())
        beside, network = place(checkpoint, replace(subject, threat=None)), network_key(model)
        images = bench.data.test if self.samples is None else bench.data.test.take(self.samples)
        batches = images.batches(self.batch_size, seed=0, device=bench.fabric.device)
        clean = evaluate(model, batches.epoch(0), threat=recipe.threat, seed=recipe.seed)
        verified: dict[str, Verified] = {}
        certified: dict[str, Certified] = {}
        with progress_bar(bench.console) as bar:

            def advance(_: ImageRecord) -> None:
                bar.advance(bar.task_ids[-1])

            for bound in self.bounds:
                if recipe.threat is None:
                    raise SpecError("bounds need a threat model; add `threat: {norm: linf, eps: 2/255}`, or give --eps")
                bar.add_task(f"{folder.name}: {bound.name}", total=len(images), note="")
                path = beside / f"verified-{bound.name},eps={recipe.threat.eps:g}.jsonl"
                if begin_anew(VerifiedImage, path, network, verified_how(bound, recipe.threat, self.precision)):
                    bench.console.print(f"{path}: of another network or other settings, put aside", highlight=False)
                verified[bound.name] = verify(
                    model,
                    batches.epoch(0),
                    recipe.threat,
                    bound,
                    precision=self.precision,
                    path=path,
                    progress=advance,
                ).summary
            if (smoothing := self.smoothing) is not None:
                certifiable = len(range(0, len(images), smoothing.every))
                bar.add_task(f"{folder.name}: {smoothing.name}", total=certifiable, note="")
                path = beside / f"certified-{smoothing.name}.jsonl"
                if begin_anew(CertifiedImage, path, network, certified_how(smoothing, recipe.seed)):
                    bench.console.print(f"{path}: of another network or other settings, put aside", highlight=False)
                records = certify_dataset(
                    model,
                    batches.epoch(0),
                    smoothing,
                    path,
                    seed=recipe.seed,
                    progress=advance,
                )
                certified[smoothing.name] = Certified(**summary(records, smoothing, self.radii))
        record = clean.record(stage=folder.name, seed=recipe.seed, images=subject.images, **checkpoint.meta.facts())
        seconds = time.perf_counter() - began
        found = {"verified": verified, "certified": certified, "made": self.made(subject, {}), "seconds": seconds}
        record = record.model_copy(update=found)
        bench.console.print(f"{folder}: {_figures(record)}")
        return record


def _figures(record: Record) -> str:
    parts = [f"sparsity {record.sparsity:.3f}", f"clean {record.clean_accuracy:.3f}"]
    for name, proof in record.verified.items():
        doubt = f" ({proof.close} within rounding)" if proof.close else ""
        parts.append(f"{name} {proof.verified_accuracy:.3f}{doubt}")
    for name, found in record.certified.items():
        curve = ", ".join(f"{share:.3f} at {radius:.3g}" for radius, share in found.certified_accuracy.items())
        parts.append(f"{name} {curve}, average radius {found.average_certified_radius:.3f}")
    return ", ".join(parts)
