"""Where networks are computed: in this process, or in several by Lightning Fabric."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, Protocol, TypeVar

import torch
from pydantic import Field
from torch import Tensor
from torch.distributed import is_torchelastic_launched

from hydraprune.core.errors import SpecError
from hydraprune.core.extras import extra
from hydraprune.core.spec import Spec

T = TypeVar("T")


class Machine(Protocol):
    """What training asks of the machine. A `lightning_fabric.Fabric` is one, too."""

    @property
    def device(self) -> torch.device: ...
    @property
    def world_size(self) -> int: ...
    @property
    def global_rank(self) -> int: ...
    @property
    def is_global_zero(self) -> bool: ...
    def launch(self) -> Any: ...
    def to_device(self, obj: Any) -> Any: ...
    def autocast(self) -> AbstractContextManager[Any]: ...
    def barrier(self) -> None: ...
    def broadcast(self, obj: T) -> T: ...
    def all_reduce(self, data: Tensor, *, reduce_op: str) -> Any: ...


class OneProcess:
    """This process and one device.

    Args:
        device: such as `cpu` or `cuda:0`.
        bf16: compute under autocast to bfloat16; weights stay as they are.
    """

    world_size, global_rank, is_global_zero = 1, 0, True

    def __init__(self, device: torch.device | str = "cpu", *, bf16: bool = False) -> None:
        self.device = torch.device(device)
        self._bf16 = bf16

    def launch(self) -> None:
        """There is nothing to start."""

    def to_device(self, obj: Any) -> Any:
        """A tensor there, or a module, which is moved."""
        return obj.to(self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self._bf16 else nullcontext()

    def barrier(self) -> None:
        """There is nobody to wait for."""

    def broadcast(self, obj: T) -> T:
        return obj

    def all_reduce(self, data: Tensor, *, reduce_op: str) -> Tensor:
        return data


def precision(machine: Machine) -> str:
    """The type in which the machine computes, in words."""
    kind = machine.device.type
    with machine.autocast():
        return str(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.get_default_dtype())


class Trainer(Spec):
    """The machine, and how it computes.

    Args:
        device: `auto` takes the GPU if there is one.
        devices: processes, each with its own device; more than 1 averages gradients over them.
        precision: `bf16` is autocast, with weights kept in float32; `auto` takes it on a GPU only.
        channels_last: memory format of image batches.
        compile: compile the network that attacks see.
        threads: CPU threads of a process; None takes all cores. Networks of a few thousand weights gain nothing from
            more than 1.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = Field(default=1, ge=1, le=1024)
    precision: Literal["auto", "float32", "bf16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    threads: int | None = Field(default=None, ge=1, le=1024)

    def machine(self) -> Machine:
        """The machine that is asked for.

        Raises:
            SpecError: if that is a GPU and there is none, several processes without Lightning Fabric, or another number
                of them than torchrun has started.
        """
        started = int(os.environ["WORLD_SIZE"]) if is_torchelastic_launched() else self.devices
        if started != self.devices:
            raise SpecError(
                f"torchrun has started {started} processes, but trainer.devices is {self.devices}; "
                f"use `--set trainer.devices={started}`"
            )
        cuda = torch.cuda.is_available()
        if self.device == "cuda" and not cuda:
            raise SpecError("trainer.device is 'cuda' but torch sees no GPU; use `--set trainer.device=cpu`")
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        gpu = cuda and self.device != "cpu"
        bf16 = self.precision == "bf16" or (self.precision == "auto" and gpu)
        if self.devices == 1:
            return OneProcess("cuda:0" if gpu else "cpu", bf16=bf16)
        with extra("distributed", f"trainer.devices {self.devices}"):
            from lightning_fabric import Fabric
        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces the precision
        return Fabric(
            accelerator="cuda" if gpu else "cpu",
            devices=self.devices,
            strategy="ddp",
            precision="bf16-mixed" if bf16 else "32-true",
        )
