"""Coupled channels under the pruners that can remove them, and through a recipe."""

import pytest
import torch
from torch import nn

import hydraprune as hp
from contracts.material import batch, net
from contracts.test_pruners import Batches, Cut, Killed
from hydraprune.core.errors import PruningError, SpecError
from hydraprune.masks.structures import Coupled
from hydraprune.objectives.natural import Natural
from hydraprune.pruners import PRUNERS
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import prune
from hydraprune.recipes.library import resolve
from hydraprune.recipes.runner import run
from hydraprune.train import Optim, fit
from masks.coupled_nets import Residual, apart, lively
from recipes.tiny import TINY, kept

IMAGE = (1, 8, 8)
ABLE = [name for name in PRUNERS.names() if PRUNERS.get(name).spans]
UNABLE = [name for name in PRUNERS.names() if name not in ABLE]


class Six(Batches):
    """The images of a residual net."""

    def epoch(self, number):
        return iter([cropped(), cropped(12)])


def cropped(size=16):
    whole = batch(size)
    return hp.Batch(whole.x[:, :, :6, :6], whole.y % 3)


def probe(images=batch):
    return Probe(torch.Generator().manual_seed(0), Natural(), None, lambda: [images()])


def pruned(model, pruner="magnitude", budget=0.5, images=batch, exempt=()):
    view = hp.MaskView(model, exempt)
    return view, prune(view, pruner, budget, "coupled", probe(images))


def settings(pruner):
    return {"kind": pruner, **({"rounds": 3} if pruner == "synflow" else {})}


def by_hand(model, few):
    """The masks of a residual net that keep `few` of each of its four sets, by the L2 norm over all that reads."""
    w = {name: tensor.detach() for name, tensor in model.named_parameters()}
    norm = {name: w[f"{name}.weight"].square().sum((0, 2, 3)) for name in ("inner", "back", "deep", "outer", "beside")}
    head = w["head.weight"].view(3, -1, 9).square().sum((0, 2))
    sizes = {
        "stem": norm["inner"] + norm["deep"] + norm["beside"],
        "inner": norm["back"],
        "deep": norm["outer"],
        "outer": head,
    }
    keep = {name: torch.zeros(len(size), dtype=torch.bool) for name, size in sizes.items()}
    for name, size in sizes.items():
        keep[name][size.topk(few[name]).indices] = True
    ends = {
        "stem": ("stem", None), "inner": ("inner", "stem"), "back": ("stem", "inner"), "deep": ("deep", "stem"),
        "outer": ("outer", "deep"), "beside": ("outer", "stem"), "head": (None, "outer"),
    }  # fmt: skip
    masks = {}
    for layer, (outputs, inputs) in ends.items():
        mask = torch.ones_like(w[f"{layer}.weight"], dtype=torch.bool)
        if outputs:
            mask[~keep[outputs]] = False
        if inputs:
            mask[:, ~(keep[inputs].repeat_interleave(9) if layer == "head" else keep[inputs])] = False
        masks[f"{layer}.weight"] = mask
    return masks


@pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.99])
def test_the_channels_that_are_read_with_the_largest_weights_stay(sparsity):
    model = lively(Residual())
    sizes = {"stem": 4, "inner": 5, "deep": 7, "outer": 6}
    expected = by_hand(model, {name: size - int(sparsity * size) for name, size in sizes.items()})
    view, _ = pruned(model, budget=sparsity, images=cropped)
    masks = view.masks()
    assert masks.keys() == expected.keys()
    for name, mask in masks.items():
        assert torch.equal(mask, expected[name]), name
    small = hp.shrink(model, (1, 6, 6))
    assert apart(model, small, torch.rand(3, 1, 6, 6)) <= 1e-6
    prunable = sum(t.numel() for name, t in small.named_parameters() if name.endswith("weight") and t.dim() > 1)
    assert prunable == view.count().kept


@pytest.mark.parametrize("pruner", [name for name in ABLE if PRUNERS.get(name).over is None])
def test_one_shot_pruners_remove_whole_channels_of_each_set(pruner):
    model = net()
    view, _ = pruned(model, settings(pruner))
    assert {name: tuple(t.shape) for name, t in hp.shrink(model, IMAGE).named_parameters() if t.dim() > 1} == {
        "0.weight": (3, 1, 3, 3), "3.weight": (4, 3, 3, 3), "6.weight": (10, 16),
    }  # fmt: skip
    assert view.count().kept == 27 + 108 + 160
    assert apart(model.eval(), hp.shrink(model, IMAGE).eval(), torch.rand(2, *IMAGE)) <= 1e-5


@pytest.mark.parametrize("budget", ["uniform", "global", "lamp", "erk", "igq", "table"])
def test_budgets_share_out_sets_of_channels(budget):
    model = net()
    view, _ = pruned(model, budget={"kind": budget, "sparsity": 0.5})
    filters = {name: int(mask.flatten(1).any(1).sum()) for name, mask in view.masks().items()}
    assert filters["0.weight"] + filters["3.weight"] == 7
    assert filters["6.weight"] == 10


def test_a_table_calls_a_set_by_the_weight_that_makes_it_first():
    model = lively(Residual())
    table = {"kind": "table", "sparsity": 0, "layers": {"stem": 0.5, "out*": 0.9}}
    view, _ = pruned(model, budget=table, images=cropped)
    rows = {name: int(mask.flatten(1).any(1).sum()) for name, mask in view.masks().items()}
    assert rows == {"stem.weight": 2, "inner.weight": 5, "back.weight": 2, "deep.weight": 7, "outer.weight": 1,
                    "beside.weight": 1, "head.weight": 3}  # fmt: skip
    with pytest.raises(PruningError, match="'back'"):  # whose channels are those of the stem
        pruned(lively(Residual()), budget={"kind": "table", "sparsity": 0, "layers": {"back": 0.5}}, images=cropped)


def test_sets_of_an_exempt_layer_stay():
    model = lively(Residual())
    view, _ = pruned(model, images=cropped, exempt=["beside"])
    whole = {name: bool(mask.all()) for name, mask in view.masks().items()}
    assert whole == {"stem.weight": True, "inner.weight": False, "back.weight": False, "deep.weight": False,
                     "outer.weight": False, "head.weight": True}  # fmt: skip
    assert torch.equal(view.masks()["inner.weight"].flatten(1).all(1), view.masks()["inner.weight"].flatten(1).any(1))


def test_nothing_to_remove_is_said():
    with pytest.raises(PruningError, match=r"no channels of Sequential can be removed.* they are the network's output"):
        pruned(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(x.flatten(1) if x.sum() > 0 else -x.flatten(1))


def test_what_cannot_be_traced_is_one_clear_error():
    with pytest.raises(SpecError, match=r"Branching cannot be traced"):
        pruned(Branching())


@pytest.mark.parametrize("pruner", UNABLE)
def test_pruners_that_choose_in_each_layer_refuse_and_name_those_that_do_not(pruner):
    with pytest.raises(PruningError, match=rf"pruner '{pruner.replace('+', '.')}' .*; use .*magnitude.*gradual"):
        pruned(net(), pruner)


@pytest.mark.parametrize("budget", ["flops", "parameters"])
def test_budgets_that_count_weights_refuse(budget):
    with pytest.raises(PruningError, match=rf"budget '{budget}' counts .*; use another budget"):
        pruned(net(), budget={"kind": budget, "sparsity": 0.5})


def test_without_images_it_says_what_is_missing():
    with pytest.raises(PruningError, match="structure looks at images; give `prune` a Probe with batches"):
        prune(net(), "magnitude", 0.5, "coupled")


class Watched(hp.pruners.Gradual):
    """Notes the masks after each step."""

    def step(self, pruning):
        yield from super().step(pruning)
        pruning.seen.append({name: mask.clone() for name, mask in pruning.view.masks().items()})


def test_what_gradual_removes_stays_removed_and_the_weights_train():
    model = lively(Residual())
    before = model.stem.weight.clone()
    view, pruning = pruned(model, Watched(updates=6), 0.75, cropped)
    pruning.seen = []
    with pruning:
        fit(model, pruning.parameters(), Six(), Natural(), epochs=4, optim=Optim(lr=0.05), hooks=[pruning])
    counts = [sum(int(mask.sum()) for mask in masks.values()) for masks in pruning.seen]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) > 3
    for earlier, later in zip(pruning.seen, pruning.seen[1:], strict=False):
        assert all(not (later[name] & ~mask).any() for name, mask in earlier.items())
    small = hp.shrink(model, (1, 6, 6))
    assert tuple(small.deep.weight.shape) == (2, 1, 3, 3)
    assert not torch.equal(model.stem.weight, before * view.masks()["stem.weight"])
    assert apart(model.eval(), small.eval(), torch.rand(3, 1, 6, 6)) <= 1e-5


def test_a_stage_that_was_cut_goes_on_to_the_same_network(tmp_path):
    states = []
    for cuts in ([4], [1, 2, 4]):
        for epochs in cuts:
            view, pruning = pruned(net(), "gradual")
            path = tmp_path / f"{len(cuts)}.safetensors"
            try:
                fit(view.model, view.train("weights"), Cut(epochs), Natural(), epochs=4,
                    optim=Optim(lr=0.05, schedule="constant"), state=path, hooks=[pruning])  # fmt: skip
            except Killed:
                assert epochs < 4
        pruning.freeze()
        states.append(view.model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("pruner", ["magnitude", "gradual"])
def test_a_recipe_removes_channels_that_shrink_takes_out(pruner, tmp_path):
    pretrain, _, finetune, _ = TINY["stages"]
    epochs = {"magnitude": 0, "gradual": 2}[pruner]
    stage = {"kind": "fit", "name": "prune", "over": "weights", "epochs": epochs, "batch_size": 45, "pruner": pruner,
             "structure": "coupled", "budget": {"kind": "uniform", "sparsity": 0.75}}  # fmt: skip
    recipe = resolve(TINY | {"stages": [pretrain, stage, finetune]}, (), "tiny")
    run(recipe, tmp_path / "run")
    model, meta = hp.load(tmp_path / "run" / "finetune")
    small, x = hp.shrink(model, IMAGE), torch.rand(4, *IMAGE)
    assert apart(model.eval(), small.eval(), x) <= 1e-5
    shapes = [tuple(tensor.shape)[:2] for tensor in small.state_dict().values() if tensor.dim() == 4]
    assert shapes == [(4, 1), (4, 4), (8, 4), (16, 8)]
    assert meta.kept == sum(t.numel() for t in small.parameters() if t.dim() > 1)
    assert kept(tmp_path / "run" / "finetune")[0] <= meta.kept


def test_the_importance_of_an_input_is_the_norm_of_its_weights():
    score = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(Coupled().pool(score), score.permute(1, 0, 2, 3).flatten(1).norm(dim=1))
