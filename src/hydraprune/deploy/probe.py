"""A few images on which an exported network is compared with its source, here or where it is run.

They lie beside what was exported: `images`, uint8 (B, C, H, W), of which 255 is the pixel 1, and `logits` of the
source, float32 (B, K).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hydraprune.core.batches import logits_of
from hydraprune.core.errors import CheckpointError
from hydraprune.core.precision import exact
from hydraprune.core.seeds import generator
from hydraprune.core.tensors import load_tensors, save_tensors

IMAGES = 16


def images(shape: tuple[int, int, int]) -> Tensor:
    """uint8 (16, C, H, W): patches of light and noise, the same at each call; no photographs, so nobody's."""
    channels, height, width = shape
    rng = generator(0)
    patches = F.interpolate(torch.rand(IMAGES, channels, 4, 4, generator=rng), (height, width), mode="bilinear")
    noise = torch.rand(IMAGES, channels, height, width, generator=rng)
    return (255 * (0.75 * patches + 0.25 * noise)).round().to(torch.uint8)


def answers(network: nn.Module, probe: Tensor) -> Tensor:
    """Logits (B, K) for a probe's images.

    Raises:
        DataError: if the network does not take them.
        SpecError: if it gives anything else than logits.
    """
    with exact():
        return logits_of(network, probe / 255, torch.zeros(len(probe), dtype=torch.int64)).float()


def elsewhere(artifact: Path, probe: Tensor, aside: Path, trusted: bool) -> Tensor:
    """Logits (B, K) that another process gets out of `artifact`, of which it knows nothing else.

    Args:
        aside: a folder for what the processes tell each other.
        trusted: whether a factory that it names may be imported and called.

    Raises:
        CheckpointError: if it gets none.
    """
    question, answer = aside / "question.safetensors", aside / "answer.safetensors"
    save_tensors(question, {"images": probe}, {})
    arguments = [str(artifact), str(question), str(answer), *(["trusted"] if trusted else [])]
    # It finds modules where this process does, and not in the working directory, which `-m` would look into first.
    ran = subprocess.run(
        [sys.executable, "-P", "-m", __name__, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        why = ran.stderr.strip().rpartition("\n")[2] or f"exit code {ran.returncode}"
        raise CheckpointError(f"{artifact.name} was written, but another process cannot use it: {why}")
    return load_tensors(answer)[0]["logits"]


def _answer(artifact: str, question: str, answer: str, *trusted: str) -> None:
    from hydraprune.deploy.opened import opened

    network = opened(Path(artifact), trust_code=bool(trusted))
    probe = load_tensors(Path(question))[0]["images"]
    save_tensors(Path(answer), {"logits": answers(network, probe)}, {})


if __name__ == "__main__":
    _answer(*sys.argv[1:])
