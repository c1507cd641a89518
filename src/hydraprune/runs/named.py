"""Checkpoints that go by a name: those of the zoo in the package, and those on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from hydraprune.core.errors import CheckpointError
from hydraprune.core.extras import extra
from hydraprune.core.files import read_json
from hydraprune.core.sealed import unsealed
from hydraprune.core.spec import nearest, some
from hydraprune.runs.files import PACKED_SUFFIX, finished

ZOO = Path(__file__).resolve().parent.parent / "zoo"
HUB = re.compile(
    r"(?P<hf>hf:)?(?P<id>(?P<owner>[A-Za-z0-9][\w.-]{0,95})/[A-Za-z0-9][\w.-]{0,95})(@(?P<revision>\w[\w.-]{0,99}))?"
)
"""Owner and name on the hub; a branch, tag or commit may follow."""
FETCHED = ["*.safetensors", "*.json", f"*{PACKED_SUFFIX}"]
"""What is fetched from the hub: nothing that holds code, or would be unpickled."""


def zoo_names() -> list[str]:
    """The networks that come with the package."""
    return sorted(file.name.removesuffix(PACKED_SUFFIX) for file in ZOO.glob(f"*{PACKED_SUFFIX}"))


def about(name: str) -> str:
    """What the network `zoo:NAME` is, in one line, without loading it: network, sparsity and accuracies.

    Raises:
        CheckpointError: if its manifest is missing or damaged.
    """
    entry = read_json(ZOO / f"{name}{PACKED_SUFFIX}.json", "install the package again", sealed=True)
    record = unsealed(entry["after"])
    figures = {"clean": record["clean_accuracy"], **record["robust_accuracy"]}
    shown = ", ".join(f"{attack} {100 * value:.1f} %" for attack, value in figures.items())
    threat = f"{record['threat']['norm']} {record['threat']['eps']:.3g}"
    size, sparse = f"{entry['bytes'] / 1000:.3g} kB", f"{100 * record['sparsity']:.1f} % sparse"
    return f"{entry['net']} on {entry['data']}, {sparse}, {size}: {shown} ({threat})"


def located(place: Path | str) -> Path | str:
    """Where the checkpoint lies that goes by this name; what is no name of one is returned as it is.

    A path where something lies comes first, then `zoo:NAME`, then `OWNER/NAME` or `hf:OWNER/NAME`, with `@REVISION` if
    wanted: its tensors and JSON are fetched into the cache folder. Without `hf:` it is a name on the hub only where
    there is no folder OWNER here.

    Raises:
        CheckpointError: if there is no such network in the zoo, or it cannot be fetched, or is no checkpoint.
        MissingError: without huggingface_hub.
    """
    if not isinstance(place, str) or Path(place).exists():
        return place
    if place.startswith("zoo:"):
        name = place.removeprefix("zoo:")
        if name not in zoo_names():
            raise CheckpointError(f"the zoo has no network {name!r}; {nearest(name, zoo_names())}")
        return ZOO / f"{name}{PACKED_SUFFIX}"
    found = HUB.fullmatch(place)
    if found is None or (found["hf"] is None and Path(found["owner"]).exists()):
        return place
    return _fetched(found["id"], found["revision"])


def _fetched(repository: str, revision: str | None) -> Path:
    with extra("hub", f"a checkpoint on the hub ({repository})"):
        from huggingface_hub import snapshot_download
    from hydraprune.data.cache import cache_folder  # imports torch, without which zoos are listed

    # Files of its own: in the hub's cache they are links that lead out of the folder.
    folder = cache_folder() / "hub" / "@".join([repository.replace("/", "--"), *([revision] if revision else [])])
    try:
        snapshot_download(repository, revision=revision, allow_patterns=FETCHED, local_dir=folder)
    except Exception as error:  # the hub's library raises errors of several families
        why = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"cannot fetch {repository} from the Hugging Face hub ({type(error).__name__}: {why}); correct the name, "
            "connect to the network, or give a folder or a packed file"
        ) from None
    packed = sorted(folder.glob(f"*{PACKED_SUFFIX}"))
    if finished(folder) or not packed:
        return folder
    if len(packed) > 1:
        names = some([file.name for file in packed], 8)
        raise CheckpointError(f"{repository} holds several networks ({names}), in {folder}; load one of these files")
    return packed[0]
