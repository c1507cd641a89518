"""One process here is what Lightning Fabric makes of one."""

from contextlib import nullcontext

import pytest
import torch
from lightning_fabric import Fabric

from hydraprune.core.errors import SpecError
from hydraprune.train import OneProcess, fit
from hydraprune.train.machine import Trainer, precision
from train.small import ROBUST, THREAT, batches, plain_net


@pytest.mark.parametrize(("bf16", "theirs"), [(False, "32-true"), (True, "bf16-mixed")])
def test_it_trains_as_fabric_does_bit_for_bit(bf16, theirs):
    ends = []
    for machine in (OneProcess(bf16=bf16), Fabric(accelerator="cpu", devices=1, precision=theirs)):
        model = plain_net()
        fit(model, model.parameters(), batches(24), ROBUST, epochs=2, threat=THREAT, fabric=machine)
        ends.append(model.state_dict())
        assert precision(machine) == ("torch.bfloat16" if bf16 else "torch.float32")
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert not torch.equal(ends[0]["0.weight"], plain_net().state_dict()["0.weight"])


def test_alone_there_is_nobody_to_agree_with():
    alone, sums = OneProcess(), torch.arange(3)
    alone.launch()
    alone.barrier()
    assert (alone.world_size, alone.global_rank, alone.is_global_zero, alone.broadcast("x")) == (1, 0, True, "x")
    assert torch.equal(alone.all_reduce(sums, reduce_op="mean"), sums)


@pytest.mark.parametrize(("settings", "found"), [({}, "float32"), ({"precision": "bf16"}, "bfloat16")])
def test_a_trainer_on_the_cpu(settings, found):
    machine = Trainer(device="cpu", **settings).machine()
    assert isinstance(machine, OneProcess)
    assert (machine.device, precision(machine)) == (torch.device("cpu"), f"torch.{found}")


def test_a_trainer_with_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "autocast", lambda device, dtype: (device, dtype))
    machine = Trainer().machine()
    assert (machine.device, machine.autocast()) == (torch.device("cuda:0"), ("cuda", torch.bfloat16))
    assert isinstance(Trainer(precision="float32").machine().autocast(), nullcontext)
    assert Trainer(device="cpu").machine().device == torch.device("cpu")


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SpecError, match=r"torch sees no GPU; use `--set trainer\.device=cpu`"):
        Trainer(device="cuda").machine()


def test_several_processes_are_fabrics():
    machine = Trainer(device="cpu", devices=2).machine()
    assert isinstance(machine, Fabric)
    assert machine.world_size == 2
