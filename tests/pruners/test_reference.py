"""The pruning stage against the authors' own numbers."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hydraprune.core.objective import Batch
from hydraprune.masks.budgets import Uniform
from hydraprune.masks.view import MaskView
from hydraprune.nets import Net
from hydraprune.objectives.natural import Natural
from hydraprune.pruners.hydra import Hydra
from hydraprune.pruners.pruning import prune
from hydraprune.train import Hook, Optim, fit

NAMES = {"cifar_model": "cnn_small", "vgg4_bn": "vgg4_bn"}


def wave(count: int, phase: float) -> Tensor:
    i = torch.arange(count, dtype=torch.float64)
    return torch.sin(0.7 * i + 0.0003 * i**2 + phase)


def wavy_state(keys: dict[str, Tensor], phase: float) -> dict[str, Tensor]:
    """The state dict of the reference, whose tensor number t is a wave of phase p + t."""
    state = {}
    for number, (name, tensor) in enumerate(keys.items()):
        a = wave(tensor.numel(), phase + number).view(tensor.shape)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros_like(tensor)
        elif name.endswith("running_var"):
            state[name] = 1 + 0.5 * a**2
        elif tensor.dim() > 1:
            state[name] = a * math.sqrt(2 / math.prod(tensor.shape[1:]))
        else:
            state[name] = 1 + 0.1 * a if name.endswith("weight") else 0.1 * a
    return {name: value.to(keys[name].dtype) for name, value in state.items()}


def with_scores(state: dict[str, Tensor], layers: set[str]) -> dict[str, Tensor]:
    """The order of a masked state dict: a score tensor follows the weight and bias of each masked layer."""
    ordered: dict[str, Tensor] = {}
    for name, value in state.items():
        ordered[name] = value
        layer, _, kind = name.rpartition(".")
        if layer in layers and (kind == "bias" or f"{layer}.bias" not in state):
            ordered[f"{layer}.popup_scores"] = state[f"{layer}.weight"]
    return ordered


class Losses(Hook):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_step(self, clock, images, loss) -> None:
        self.values.append(loss)


class Same:
    """The same batch, once per epoch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def epoch(self, number: int):
        yield self.batch


@pytest.mark.parametrize("arch", ["cifar_model", "vgg4_bn"])
def test_pruning_follows_the_authors_trajectory(golden: Path, arch: str) -> None:
    trajectories = json.loads((golden / "hydra_reference.json").read_text())["prune_trajectories"]
    expected = next(t for t in trajectories if t["arch"] == arch)
    net = Net(kind=NAMES[arch]).build(10)
    view = MaskView(net)
    layers = {name.removesuffix(".weight") for name in view.modules}
    state = wavy_state(with_scores(net.state_dict(), layers), expected["phase"])
    net.load_state_dict({name: value for name, value in state.items() if not name.endswith("popup_scores")})
    weights = {name: value.clone() for name, value in view.weights().items()}

    # One layer of vgg4_bn has a tie at its threshold in step 4, which the authors' unstable sort decides.
    prune(view, Hydra(sort_ties=True), Uniform(sparsity=1 - expected["k"]))
    params = view.train("scores")
    first = params[0][1]
    torch.testing.assert_close(
        first.detach().flatten()[:10], torch.tensor(expected["initial_scores_first10"]), rtol=1e-5, atol=1e-7
    )

    x = 0.5 + 0.5 * wave(16 * 3 * 32 * 32, expected["phase"]).view(16, 3, 32, 32).float()
    batch = Batch(x, torch.arange(16) % 10)
    net.train()
    torch.nn.functional.cross_entropy(net(x), batch.y).backward()
    torch.testing.assert_close(
        first.grad.flatten()[:10], torch.tensor(expected["first_step_score_grad_first10"]), rtol=1e-3, atol=1e-8
    )
    net.zero_grad()
    for name, value in state.items():
        if "running" in name:
            net.get_buffer(name).copy_(value)

    losses = Losses()
    optim = Optim(lr=0.1, momentum=0.9, weight_decay=1e-4, schedule="constant")
    fit(net, params, Same(batch), Natural(), epochs=expected["steps"], optim=optim, hooks=[losses], channels_last=False)

    assert losses.values == pytest.approx(expected["losses"], rel=1e-5)
    masks = view.masks()
    for layer, after in expected["masks_after"].items():
        kept = masks[f"{layer}.weight"].flatten().nonzero().flatten().tolist()
        assert len(kept) == after["kept"]
        assert kept[:20] == after["first_kept"]
    for name, value in view.weights().items():
        assert torch.equal(value, weights[name])
