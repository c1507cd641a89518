"""Two processes of `fit` on the CPU: `two.py FOLDER` writes what each of them ended with."""

import json
import sys
from pathlib import Path

import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file

from hydraprune.masks.view import MaskView
from hydraprune.objectives.natural import Natural
from hydraprune.train import Optim, fit
from hydraprune.train.machine import Machine
from train.small import batches, masked, net, plain_net

CASES = {"weights": plain_net, "scores": lambda: masked(plain_net()), "norm": lambda: net()[:3].append(net()[4:])}
OPTIM = Optim(lr=0.05, clip_norm=1.0, ema=0.9)


def trained(case: str, fabric: Machine, folder: Path | None = None):
    """A net and its history; with one process, on batches twice as large."""
    model = CASES[case]()
    params = MaskView(model).train("scores" if case == "scores" else "weights")
    images = batches(24 // fabric.world_size, rank=fabric.global_rank, world=fabric.world_size)
    state = None if folder is None else folder / f"{case}.state"
    history = fit(model, params, images, Natural(), epochs=2, optim=OPTIM, fabric=fabric, seed=5, state=state)
    return model, [{name: value for name, value in line.items() if name != "seconds"} for line in history]


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    shared = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    shared.launch()
    for name in CASES:
        found, lines = trained(name, shared, out)
        save_file(found.state_dict(), out / f"{name}-{shared.global_rank}.safetensors")
        (out / f"{name}-{shared.global_rank}.json").write_text(json.dumps(lines))
    shared.barrier()
