"""What a stage must remember to go on after it was killed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hydraprune.core.errors import CheckpointError
from hydraprune.core.files import load_tensors, save_tensors
from hydraprune.core.hook import Hook
from hydraprune.train.optim import Average


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    hooks: Sequence[Hook],
    epoch: int,
    history: Sequence[dict[str, Any]],
    key: Mapping[str, str],
) -> None:
    """Write model, optimizer, average, hooks and history after `epoch` epochs.

    `key` says which settings they belong to, one by one.

    Random numbers and data order need no saving: each epoch derives them from the seed and its number.
    """
    tensors: dict[str, Tensor] = {f"model/{name}": value for name, value in model.state_dict().items()}
    scalars: dict[str, Any] = {}
    for index, slots in optimizer.state_dict()["state"].items():
        for slot, value in slots.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{slot}"] = value
            elif value is not None:
                scalars[f"{index}/{slot}"] = value
    steps = 0
    if average is not None:
        values, steps = average.state()
        tensors |= {f"average/{index}": value for index, value in enumerate(values)}
    for index, hook in enumerate(hooks):
        tensors |= {f"hooks/{index}/{name}": value for name, value in hook.state().items()}
    meta = {"epoch": epoch, "history": list(history), "key": dict(key), "optimizer": scalars, "average_steps": steps}
    save_tensors(path, tensors, meta)


def load_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    hooks: Sequence[Hook],
    key: Mapping[str, str],
) -> tuple[int, list[dict[str, Any]]]:
    """Take up a saved state; returns the epochs done and their history.

    Raises:
        CheckpointError: if the file is damaged, or was written under other settings.
    """
    tensors, meta = load_tensors(path)
    if other := _differing(meta["key"], key):
        raise CheckpointError(
            f"{path} belongs to other settings than these ({', '.join(other)}); use a new folder, or remove this one"
        )
    model.load_state_dict({n.removeprefix("model/"): t for n, t in tensors.items() if n.startswith("model/")})
    slots: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer/"):
            _, index, slot = name.split("/")
            slots.setdefault(int(index), {})[slot] = value
    for name, scalar in meta["optimizer"].items():
        index, slot = name.split("/")
        slots.setdefault(int(index), {})[slot] = scalar
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
    if average is not None:
        average.restore([tensors[f"average/{i}"] for i in range(len(average.values))], meta["average_steps"])
    for position, hook in enumerate(hooks):
        mine = f"hooks/{position}/"
        hook.restore({name.removeprefix(mine): value for name, value in tensors.items() if name.startswith(mine)})
    return meta["epoch"], meta["history"]


def _differing(saved: Any, key: Mapping[str, str]) -> list[str]:
    """The settings that are not those of a saved state."""
    return [name for name, value in key.items() if not isinstance(saved, dict) or saved.get(name) != value]
