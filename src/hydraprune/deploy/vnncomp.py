"""A benchmark for verifiers, as their competition takes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from hydraprune.core.errors import SpecError
from hydraprune.core.files import write_atomically, write_json
from hydraprune.deploy import properties
from hydraprune.deploy.base import Format, Original
from hydraprune.deploy.to_onnx import INPUT, OUTPUT, as_onnx, require_onnx
from hydraprune.evaluation.accuracy import judge

SPARE = 4
"""Images from which a property is drawn, for each property."""
README = """\
# {name}

Local robustness of an image classifier that was pruned to {kept:,} of {total:,} weights.

- `onnx/{name}.onnx`: `{input}` (1, {shape}) in [0, 1] to `{output}` (1, {classes}); normalisation is part of it.
- `vnnlib/`: one property for each image. X_i are the pixels of (1, {shape}) in row-major order, within {eps:.9g} of the
  image (L-infinity) and in [0, 1]; it is satisfiable if a logit other than the label's is at least the label's.
- `instances.csv`: network, property, timeout in seconds.
- `generate_properties.py SEED`: draws {instances} of the {pool} images of `images.npz`, and writes `vnnlib/` and
  `instances.csv` anew. It needs numpy.

The network classifies all of the images, which are test images of its data set, as their labels.
"""


class VnnCompFormat(Format):
    """A benchmark folder of VNN-COMP (arXiv:2412.19985): ONNX, VNN-LIB, instances, and their generator.

    The adversary is that of the checkpoint. The folder holds test images, so whoever is given it is given these.

    Args:
        instances: properties, each of one test image that is classified correctly.
        timeout: seconds for each.
        seed: of the draw.
    """

    kind: Literal["vnncomp"] = "vnncomp"
    instances: int = Field(default=50, ge=1)
    timeout: int = Field(default=300, ge=1)
    seed: int = Field(default=0, ge=0)
    alone: ClassVar[bool] = True
    needs_data: ClassVar[bool] = True

    def require(self) -> None:
        super().require()
        require_onnx(f"format {self.kind!r}")

    def check(self, source: Original) -> None:
        threat = source.checkpoint.meta.threat
        if threat is None or threat.norm != "linf":
            raise SpecError(
                f"format 'vnncomp' writes boxes, and the checkpoint's threat is {threat and threat.norm}; export a "
                "network that was trained under `threat: {norm: linf, eps: 2/255}`, or as onnx"
            )
        if source.data is None:
            raise SpecError("format 'vnncomp' is made of test images; give `data=`, or export as onnx")

    def write(self, source: Original, path: Path) -> None:
        meta = source.checkpoint.meta
        assert meta.threat is not None
        images, labels, classes = self._images(source)
        name = "network" if meta.net is None else re.sub(r"\W+", "_", meta.net.kind)
        network = f"onnx/{name}.onnx"
        settings = {
            "network": network,
            "eps": meta.threat.eps,
            "classes": classes,
            "instances": self.instances,
            "timeout": self.timeout,
        }
        readme = README.format(
            **settings | {"name": name, "input": INPUT, "output": OUTPUT, "kept": meta.kept, "total": meta.total},
            shape=", ".join(map(str, source.shape)),
            pool=len(images),
        )
        write_atomically(path / network, as_onnx(source, 1).SerializeToString(deterministic=True))
        np.savez_compressed(path / properties.IMAGES, images=images.numpy(), labels=labels.numpy())
        write_json(path / properties.SETTINGS, settings)
        write_atomically(path / "generate_properties.py", Path(properties.__file__).read_bytes())
        write_atomically(path / "README.md", readme.encode())
        properties.generate(path, self.seed)

    def _images(self, source: Original) -> tuple[Tensor, Tensor, int]:
        """The first test images that are classified correctly, as bytes, their labels, and the number of classes."""
        assert source.data is not None
        wanted = SPARE * self.instances
        images: list[Tensor] = []
        labels: list[Tensor] = []
        for x, y in source.data.test.batches(250, seed=0).epoch(0):
            right = judge(source.network, x, y)
            images.append((x[right] * 255).round().to(torch.uint8))
            labels.append(y[right])
            if sum(map(len, labels)) >= wanted:
                break
        pixels, ids = torch.cat(images)[:wanted], torch.cat(labels)[:wanted]
        if len(ids) < self.instances:
            raise SpecError(
                f"{len(ids)} test images are classified correctly, which is fewer than {self.instances} instances; "
                "lower `instances`"
            )
        return pixels, ids, source.data.num_classes

    def twin(self, source: Original, path: Path) -> nn.Module:
        return source.network


def network_in(folder: Path) -> Path | None:
    """The ONNX file of a benchmark folder; None if it is no such folder."""
    found = sorted((folder / "onnx").glob("*.onnx")) if (folder / properties.INSTANCES).is_file() else []
    return found[0] if len(found) == 1 else None
