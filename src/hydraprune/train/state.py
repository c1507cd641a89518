"""What a stage must remember to go on after it was killed: its two newest states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hydraprune.core.errors import CheckpointError
from hydraprune.core.hook import Hook, alike
from hydraprune.core.tensors import load_tensors, save_tensors
from hydraprune.train.optim import Average, Optim

History = list[dict[str, Any]]


def both(path: Path) -> tuple[Path, Path]:
    """The files of a stage's two newest states: `state.safetensors`, and before it `state.previous.safetensors`."""
    return path, path.with_name(f"{path.stem}.previous{path.suffix}")


class States:
    """The two newest states of a stage: model, optimizer, average, hooks and history after an epoch.

    Random numbers and data order need no saving: each epoch derives them from the seed and its number.

    Args:
        path: of the newest one; the one before it lies beside it.
        key: name of each setting that they belong to -> its fingerprint.
        optim: what built `optimizer`.
    """

    def __init__(
        self,
        path: Path,
        key: Mapping[str, str],
        model: nn.Module,
        optim: Optim,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        hooks: Sequence[Hook],
    ) -> None:
        self.path, self.older = both(path)
        self.key, self.model, self.optim, self.optimizer = dict(key), model, optim, optimizer
        self.average, self.hooks = average, hooks
        self._whole = False
        """Whether the newest one is known to be whole: only such a one takes the place of the older one."""

    def save(self, epoch: int, history: Sequence[dict[str, Any]]) -> None:
        """Write the state after `epoch` epochs, and keep the one before it."""
        tensors: dict[str, Tensor] = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{index}/{slot}": slots[slot] for slot in self.optim.slots if slot in slots}
        steps = 0
        if self.average is not None:
            values, steps = self.average.state()
            tensors |= {f"average/{index}": value for index, value in enumerate(values)}
        for index, hook in enumerate(self.hooks):
            tensors |= {f"hooks/{index}/{name}": value for name, value in hook.state().items()}
        if self._whole:
            self.path.replace(self.older)
        save_tensors(
            self.path, tensors, {"epoch": epoch, "history": list(history), "key": self.key, "average_steps": steps}
        )
        self._whole = True

    def load(self, epochs: int, told: Callable[[str], None]) -> tuple[int, History]:
        """Take up the newest state that is whole; returns the epochs done and their history, 0 if nothing was saved.

        Args:
            epochs: of the stage.
            told: gets a line if a damaged one is passed over.

        Raises:
            CheckpointError: if what is there is damaged, or was written under other settings; nothing is changed.
        """
        damaged: list[CheckpointError] = []
        for file in (self.path, self.older):
            if not file.exists():
                continue
            try:
                tensors, meta = load_tensors(file, "it is passed over")
                self._require_meta(file, meta, epochs)
                if meta["key"] == self.key:
                    parts = self._checked(file, tensors, meta)
            except CheckpointError as error:
                damaged.append(error)
                continue
            if meta["key"] != self.key:
                saved = meta["key"] if isinstance(meta["key"], dict) else {}
                others = ", ".join(name for name, value in self.key.items() if saved.get(name) != value)
                raise CheckpointError(
                    f"{file} belongs to other settings than these ({others}); use a new folder, or remove it"
                )
            if damaged:
                told(f"{damaged[0]}: training goes on after epoch {meta['epoch']}, from {file.name}")
            self._take(parts, meta)
            self._whole = file == self.path
            return meta["epoch"], meta["history"]
        if damaged:
            raise self._lost(damaged)
        return 0, []

    def _lost(self, damaged: Sequence[CheckpointError]) -> CheckpointError:
        reasons = " and ".join(str(error).removesuffix("; it is passed over") for error in damaged)
        which = "both" if len(damaged) > 1 else "it"
        return CheckpointError(
            f"{reasons}, so this stage cannot go on: restore a copy, or remove {which}, which loses the stage's "
            "training, and run the same command again"
        )

    def _require_meta(self, file: Path, meta: Mapping[str, Any], epochs: int) -> None:
        """Raises CheckpointError unless it says what a state says."""
        history, epoch = meta.get("history"), meta.get("epoch")
        whole = "key" in meta and _is_count(epoch) and _is_count(meta.get("average_steps"))
        if whole and meta["key"] == self.key:
            whole = 1 <= meta["epoch"] <= epochs
        if not whole or not _is_history(history, epoch):
            raise _foreign(file, "its epochs are not those of a stage")

    def _checked(self, file: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> dict[str, Any]:
        """The parts of a state, each of which fits.

        Raises:
            CheckpointError: if one does not.
        """
        groups: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            group, _, rest = name.partition("/")
            groups.setdefault(group, {})[rest] = value
        model, averages = groups.pop("model", {}), groups.pop("average", {})
        slots, kept = self._slots(file, groups.pop("optimizer", {})), groups.pop("hooks", {})
        present = self.average.values if self.average is not None else []
        hooks = [
            {name.partition("/")[2]: value for name, value in kept.items() if name.startswith(f"{position}/")}
            for position in range(len(self.hooks))
        ]
        wrong = {
            "model": not alike(model, self.model.state_dict()),
            "average": not alike(averages, {str(number): value for number, value in enumerate(present)}),
            "hooks": sum(map(len, hooks)) != len(kept)
            or not all(hook.fits(state) for hook, state in zip(self.hooks, hooks, strict=True)),
            **dict.fromkeys(groups, True),
        }
        for group, bad in wrong.items():
            if bad:
                raise _foreign(file, f"its {group} does not fit")
        averaged = [averages[str(number)] for number in range(len(present))]
        return {"model": model, "average": averaged, "optimizer": slots, "hooks": hooks}

    def _slots(self, file: Path, found: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
        """Number of a moved tensor -> what the optimizer remembers of it."""
        params = [tensor for group in self.optimizer.param_groups for tensor in group["params"]]
        slots: dict[int, dict[str, Tensor]] = {}
        for number, tensor in enumerate(params):
            mine = {slot: found[f"{number}/{slot}"] for slot in self.optim.slots if f"{number}/{slot}" in found}
            if mine:
                slots[number] = mine
                wanted = {slot: tensor if shaped else torch.zeros(()) for slot, shaped in self.optim.slots.items()}
                if not alike(mine, wanted):
                    raise _foreign(file, "its optimizer does not fit")
        if sum(map(len, slots.values())) != len(found):
            raise _foreign(file, "its optimizer does not fit")
        return slots

    def _take(self, parts: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
        self.model.load_state_dict(parts["model"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": parts["optimizer"], "param_groups": groups})
        if self.average is not None:
            self.average.restore(parts["average"], meta["average_steps"])
        for hook, state in zip(self.hooks, parts["hooks"], strict=True):
            hook.restore(state)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_history(value: Any, epochs: Any) -> bool:
    """Whether it has the metrics of each of `epochs` epochs."""
    return (
        isinstance(value, list)
        and all(isinstance(line, dict) and all(isinstance(v, int | float) for v in line.values()) for line in value)
        and [line.get("epoch") for line in value] == list(range(1, epochs + 1))
    )


def _foreign(file: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{file} is damaged ({why}); it is passed over")
