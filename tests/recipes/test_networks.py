"""A stage that distils from an earlier one."""

import pytest
import torch

from hydraprune import load
from hydraprune.core.errors import SpecError
from hydraprune.core.objective import Loss
from hydraprune.objectives.natural import Natural
from hydraprune.recipes.runner import run
from recipes.tiny import tiny

TEACHER = "stages.finetune.networks.teacher"
DISTIL = ("stages.finetune.objective={kind: distill, steps: 1}", f"{TEACHER}=pretrain")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            DISTIL[:1],
            r"'distill' of stage 'finetune' asks for the network 'teacher'; add `networks: \{teacher: NAME\}`",
        ),
        (("objective={kind: awp, base: {kind: pwoa}}",), "'awp' of stage 'pretrain' asks for the network 'teacher'"),
        (
            (*DISTIL, f"{TEACHER}=pretain"),
            r"takes its teacher from 'pretain', no fit before it; did you mean 'pretrain'",
        ),
        ((*DISTIL, f"{TEACHER}=finetune"), "takes its teacher from 'finetune', no fit before it"),
        ((f"{TEACHER}=pretrain",), "'trades' of stage 'finetune' asks for no network 'teacher'"),
    ],
)
def test_a_teacher_that_is_missing_or_unknown_is_refused_before_anything_runs(overrides, message):
    with pytest.raises(SpecError, match=message):
        tiny(*overrides)


def test_the_teacher_is_the_finished_network_and_stays_as_it_is(tmp_path, monkeypatch):
    seen = []

    def look(self, model, batch, ctx):
        teacher = ctx.networks.get("teacher")
        seen.append(
            (model.training, None if teacher is None else {n: p.clone() for n, p in teacher.named_parameters()})
        )
        if teacher is not None:
            assert not teacher.training
            assert not any(p.requires_grad for p in teacher.parameters())
        return Loss(torch.nn.functional.cross_entropy(model(batch.x), batch.y), {})

    monkeypatch.setattr(Natural, "__call__", look)
    run(tiny("objective=natural", *DISTIL, "stages.prune.pruner=snip", "stages.prune.epochs=0"), tmp_path / "run")
    teachers = [teacher for _, teacher in seen if teacher is not None]
    assert 0 < len(teachers) < len(seen)
    pretrained = dict(load(tmp_path / "run" / "pretrain")[0].named_parameters())
    for teacher in teachers:
        assert teacher.keys() == pretrained.keys()
        assert all(torch.equal(value, pretrained[name]) for name, value in teacher.items())


def test_a_pruner_looks_at_a_distilled_loss(tmp_path):
    changes = ("pruner=snip", "epochs=0", "networks.teacher=pretrain", "objective={kind: distill, steps: 1}")
    overrides = [f"stages.prune.{change}" for change in changes]
    run(tiny(*overrides), tmp_path / "run")
    assert load(tmp_path / "run" / "prune")[1].pruner == "snip"


@pytest.mark.parametrize("pruner", ["{kind: hydra, gradual: 1}", "harp"])
def test_a_mask_that_is_ready_at_the_end_alone_refuses_the_best_epoch(pruner):
    with pytest.raises(SpecError, match="are found by the last epoch; use `select: last`"):
        tiny(f"stages.prune.pruner={pruner}", "stages.prune.select=best")
    tiny("stages.prune.select=best")
