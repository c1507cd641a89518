"""A model folder for the Hugging Face Hub, with a card that says what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from hydraprune.core.errors import TrainingError
from hydraprune.core.extras import extra
from hydraprune.core.packing import Values, require_zstd
from hydraprune.core.results import Record
from hydraprune.core.threat import ThreatModel
from hydraprune.deploy.base import Format, Original
from hydraprune.runs.files import PACKED
from hydraprune.runs.manifest import Manifest
from hydraprune.runs.single import write_packed

CARD = "README.md"
OTHER = "other data"
"""Than that of the run which made the network."""
_TEXT = """---
{{ card_data }}
---

# {{ name }}

An image classifier{% if removed %} pruned to {{ sparsity }} % sparsity: {{ kept }} of {{ total }} prunable weights are
left{% endif %}{% if resists %}. It was trained to resist adversarial images{% endif %}.

| | |
| --- | --- |
{% for fact, value in facts %}| {{ fact }} | {{ value }} |
{% endfor %}
## Measured

{% if figures %}| what | value | images |
| --- | ---: | ---: |
{% for what, value, images in figures %}| {{ what }} | {{ value }} | {{ images }} |
{% endfor %}{% else %}Nothing was measured of this file.
{% endif %}
Robust accuracy is the share of images that is classified correctly however the named attack changes them within the
radius; certified and verified accuracy are what is proved. Pixels lie in [0, 1].

## Use

```python
import hydraprune as hp

model, meta = hp.load("{{ where }}")  # in evaluation mode, images (B, C, H, W) in [0, 1] to logits
```

`{{ packed }}` holds masks and weights ({{ bytes }} bytes, {{ smaller }} times smaller than the dense network) and is
read without unpickling anything; `probe.safetensors` holds images and the logits that they should give; `manifest.json`
has all figures.
"""


class HubFormat(Format):
    """A folder for the Hugging Face Hub: a packed file, a card, and what was measured; pushed only on request.

    Args:
        values: of the packed file, as in the format `packed`.
        repo: where to push it, `organisation/name`, when it is whole; None pushes nothing.
    """

    kind: Literal["hub"] = "hub"
    values: Values = "float32"
    repo: str | None = None

    @property
    def rounds(self) -> bool:
        return self.values != "float32"

    def require(self) -> None:
        super().require()
        require_zstd()
        with extra("hub", "format 'hub'"):
            import huggingface_hub  # noqa: F401

    def write(self, source: Original, path: Path) -> None:
        checkpoint = source.checkpoint
        path.mkdir()
        write_packed(path / PACKED, checkpoint.meta, checkpoint.values, checkpoint.masks, self.values)

    def describe(self, source: Original, path: Path, manifest: Manifest) -> None:
        from huggingface_hub import EvalResult, ModelCard, ModelCardData

        recipe = source.checkpoint.meta.recipe or {}
        data = manifest.data or "unknown"
        name = self.repo or str(recipe.get("name", source.checkpoint.folder.name))
        figures = [*_figures(source, manifest)]
        results = [
            EvalResult(
                task_type="image-classification",
                dataset_type=data if own else OTHER,
                dataset_name=data if own else OTHER,
                dataset_split="test",
                metric_type="accuracy",
                metric_name=f"{what}, {images} images",
                metric_value=round(100 * value, 2),
            )
            for what, value, images, own in figures
        ]
        head = ModelCardData(
            library_name="hydraprune",
            tags=["adversarial-robustness", "pruning", "sparsity", "image-classification"],
            pipeline_tag="image-classification",
            datasets=[data],
            metrics=["accuracy"],
            model_name=name.rpartition("/")[2],
            eval_results=results or None,
        )
        ModelCard.from_template(
            head,
            template_str=_TEXT,
            name=name,
            where=self.repo or "this folder",
            packed=PACKED,
            facts=[*_facts(source, manifest)],
            figures=[
                (what, f"{100 * value:.1f} %", images if own else f"{images} of {OTHER}")
                for what, value, images, own in figures
            ],
            removed=manifest.kept < manifest.total,
            resists=manifest.threat is not None,
            sparsity=f"{100 * manifest.sparsity:.4g}",
            kept=f"{manifest.kept:,}",
            total=f"{manifest.total:,}",
            bytes=f"{manifest.bytes:,}",
            smaller=f"{manifest.smaller:.1f}",
        ).save(path / CARD)

    def publish(self, path: Path) -> None:
        if self.repo is None:
            return
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            HfApi().create_repo(self.repo, exist_ok=True)
            HfApi().upload_folder(repo_id=self.repo, folder_path=path)
        except (HfHubHTTPError, OSError, ValueError) as error:
            why = str(error).strip().partition("\n")[0]
            raise TrainingError(
                f"{path} is whole, but was not pushed to {self.repo}: {why}; log in, and run the same command again"
            ) from None


def _facts(source: Original, manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "network", manifest.net or "made in Python"
    yield "images", " × ".join(map(str, source.shape)) + " (channels, height, width), pixels in [0, 1]"
    yield "pruned by", manifest.pruner or "nothing: it is dense"
    yield "threat model", "none" if manifest.threat is None else in_words(manifest.threat)
    yield "weights", "float32" if not manifest.rounds else f"rounded to {manifest.format['values']}"


def in_words(threat: ThreatModel) -> str:
    """A threat model in a sentence of a card."""
    norm = "ℓ∞" if threat.norm == "linf" else "ℓ2"
    return f"{norm}, radius {threat.eps:.4g} ({255 * threat.eps:.4g}/255)"


def _figures(source: Original, manifest: Manifest) -> Iterator[tuple[str, Any, int, bool]]:
    """What was measured of the file; of its source, too, where that is the same network.

    The last says whether it was on the test images of the network's own data, so far as that is known.
    """
    own, seen = source.checkpoint.meta.data.get("test"), set()
    for record in (manifest.after, None if manifest.rounds else manifest.known):
        for what, value, images in () if record is None else _of(record):
            if what not in seen:
                yield what, value, images, own in (None, record and record.images)
            seen.add(what)


def _of(record: Record) -> Iterator[tuple[str, float, int]]:
    within = "" if record.threat is None else f", {in_words(record.threat)}"
    yield "clean accuracy", record.clean_accuracy, record.samples
    for attack, accuracy in record.robust_accuracy.items():
        yield f"robust accuracy under {attack}{within}", accuracy, record.tried(attack)
    for bound, proved in record.verified.items():
        yield f"verified accuracy by {bound}{within}", proved.verified_accuracy, proved.samples
    for smoothing, certified in record.certified.items():
        for radius, accuracy in certified.certified_accuracy.items():
            yield f"certified accuracy at l2 radius {radius:g} ({smoothing})", accuracy, certified.samples
