"""What is said of an exported network: a JSON file beside it, or in its folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.core.files import inside, read_json
from hydraprune.core.results import Record
from hydraprune.core.spec import Spec
from hydraprune.core.threat import ThreatModel
from hydraprune.runs.meta import sha256

MANIFEST, PROBE = "manifest.json", "probe.safetensors"
"""Names in a folder; beside a file they follow its name and a dot, the manifest as `.json` alone."""
EXPORTS = "export"
"""The folder of a checkpoint where `export` writes unless told otherwise."""
REMEDY = "export it again"


class Manifest(Spec):
    """What an exported network is.

    Args:
        format: how it was written, with its settings.
        sha256: file -> digest; of a folder, every file but the manifest, by its path there.
        bytes: of what is run: of a folder without what is said of it (card, probe).
        dense_bytes: of the dense network's parameters and buffers.
        net: kind of the network; None for a module that was made in Python.
        data: kind of the data of its recipe; None without one.
        source: digest of the network that it was made from.
        pruner: how its connections were chosen; None if it is dense.
        sparsity: removed / total over prunable weights.
        kept: prunable weights left.
        total: prunable weights of the dense network.
        layers: name -> [kept, total].
        threat: the adversary that it was trained against.
        probe: images on which it was compared with its source, in another process than the one that wrote it, or in
            that one if its network was given and no other can make it; 0 if nobody could make it.
        difference: the largest difference of their logits there.
        logit: the largest logit of the source there, in absolute value.
        rounds: whether the numbers of the source were rounded.
        known: what was measured of the source by then, whenever; None if nothing was.
        before: what was measured of the source; None if nothing was.
        after: the same of the file itself, on the same images.
        versions: of the packages that made it.
    """

    format: dict[str, Any]
    sha256: dict[str, str]
    bytes: int = Field(ge=1)
    dense_bytes: int = Field(ge=1)
    net: str | None = None
    data: str | None = None
    source: str
    pruner: str | None = None
    sparsity: float = Field(ge=0, le=1)
    kept: int = Field(ge=0)
    total: int = Field(ge=1)
    layers: dict[str, tuple[int, int]]
    threat: ThreatModel | None = None
    probe: int = Field(ge=0)
    difference: float = Field(ge=0)
    logit: float = Field(ge=0)
    rounds: bool
    known: Record | None = None
    before: Record | None = None
    after: Record | None = None
    versions: dict[str, str]

    @property
    def kind(self) -> str:
        """The format's name."""
        return str(self.format.get("kind"))

    @property
    def label(self) -> str:
        """The same for tables, with how values are written."""
        return "-".join(str(self.format[part]) for part in ("kind", "values") if part in self.format)

    @property
    def smaller(self) -> float:
        """How many times smaller than the dense network it is."""
        return self.dense_bytes / self.bytes


def beside(artifact: Path, name: str) -> Path:
    """Where the manifest or the probe of an exported file or folder lies.

    Args:
        artifact: the file or folder.
        name: `MANIFEST` or `PROBE`.
    """
    if artifact.is_dir():
        return artifact / name
    return artifact.with_name(f"{artifact.name}.{name.removeprefix('manifest.')}")


def read_manifest(artifact: Path) -> Manifest:
    """The manifest of an exported file or folder, whose content is what it says.

    Raises:
        CheckpointError: if it is missing or damaged, or speaks of another file than the one that is there.
    """
    path = beside(artifact, MANIFEST)
    manifest = _read(path)
    if manifest.sha256 != digests(artifact):
        raise CheckpointError(f"{path} speaks of other content than {artifact} has; {REMEDY}")
    return manifest


def manifest_of(artifact: Path) -> Manifest | None:
    """The manifest that lies beside a file or in a folder, of whatever content; None if there is none that is whole."""
    try:
        return _read(beside(artifact, MANIFEST))
    except CheckpointError:
        return None


def _read(path: Path) -> Manifest:
    found = read_json(inside(path.parent, path), REMEDY, sealed=True)
    try:
        return Manifest.parse(found, str(path))
    except SpecError as error:
        raise CheckpointError(f"{path} has been altered: {error}; {REMEDY}") from None


def digests(artifact: Path) -> dict[str, str]:
    """File -> SHA-256, of an exported file, or of a folder by paths in it, the manifest left out."""
    return {name: sha256(file) for name, file in files(artifact)}


def files(artifact: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of each file that an artifact consists of, by name.

    Raises:
        CheckpointError: if there is none, or it lies elsewhere.
    """
    if not artifact.is_dir():
        if not artifact.is_file():  # a pipe would be waited for
            raise CheckpointError(f"{artifact} is no file; {REMEDY}")
        yield artifact.name, artifact
        return
    for file in sorted(artifact.rglob("*")):
        name = file.relative_to(artifact).as_posix()
        if file.is_file() and name != MANIFEST:
            yield name, inside(artifact, file)


def in_words(manifest: Manifest) -> str:
    """What a command says of it: bytes, and the accuracies before and after."""
    words = [f"{manifest.bytes:,} bytes instead of {manifest.dense_bytes:,}"]
    words[0] += f": {manifest.smaller:.1f} times smaller" if manifest.smaller > 1 else ""
    if manifest.before is not None and manifest.after is not None:
        for what, worst in (("clean", _clean), ("robust", robust)):
            old, new = worst(manifest.before), worst(manifest.after)
            if old is not None and new is not None:
                words.append(f"{what} {old:.3f} before, {new:.3f} after")
        for bound, proved in manifest.after.verified.items():
            old = manifest.before.verified[bound].verified_accuracy
            words.append(f"{bound} proves {old:.3f} before, {proved.verified_accuracy:.3f} after")
        words.append(f"on {manifest.after.samples} images")
    return ", ".join(words)


def _clean(record: Record) -> float:
    return record.clean_accuracy


def robust(record: Record) -> float | None:
    """The accuracy under the strongest attack; None if there was none."""
    return min(record.robust_accuracy.values(), default=None)
