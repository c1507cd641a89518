"""What `prune` takes beside its own objects, and what it refuses with the model as it was."""

import pytest
import torch
from torch import nn

import hydraprune as hp
from contracts.material import batch, net, snapshot, unchanged
from hydraprune.core.objective import Batch
from hydraprune.core.plain import tensors
from hydraprune.masks.structures import Filter
from hydraprune.pruners import PRUNERS
from hydraprune.pruners.probe import Probe
from misuse import refused
from train.small import same

COLOUR = Batch(torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8))


def probe(images):
    threat = hp.ThreatModel(eps=0.1)
    return Probe(torch.Generator().manual_seed(0), hp.TRADES(steps=1), threat, lambda: [images])


UNLIKE = {"kind": "table", "sparsity": 0.5, "layers": {"nope": 0.3}}
"""A budget that fails late, once the method has chosen its scores."""


CALLS = {
    "no budget": (lambda m: hp.prune(m, "hydra"), "a pruner needs a budget, such as {kind: uniform, sparsity: 0.9}"),
    "percent": (lambda m: hp.prune(m, "hydra", 90), "Uniform.sparsity: Input should be less than 1 (got 90)"),
    "negative": (lambda m: hp.prune(m, "hydra", -0.1), "Uniform.sparsity: Input should be greater than or equal to 0"),
    "all": (lambda m: hp.prune(m, "hydra", 1), "Uniform.sparsity: Input should be less than 1"),
    "True": (lambda m: hp.prune(m, "hydra", True), "budget: expected {kind: ...}, got True"),
    "NaN": (lambda m: hp.prune(m, "hydra", float("nan")), "Uniform.sparsity"),
    "text": (lambda m: hp.prune(m, "hydra", "0.9"), "budget: unknown budget '0.9'; known: erk, flops, global"),
    "a budget's class": (lambda m: hp.prune(m, "hydra", hp.Uniform), "budget: Uniform is a class; call it"),
    "no sparsity": (lambda m: hp.prune(m, "hydra", "uniform"), "budget.sparsity: Field required"),
    "a budget's key": (lambda m: hp.prune(m, "hydra", {"kind": "erk", "sparsty": 0.9}), "unknown key 'sparsty'"),
    "a name": (lambda m: hp.prune(m, "hydar", 0.9), "pruner: unknown pruner 'hydar'; did you mean 'hydra'?"),
    "a class": (lambda m: hp.prune(m, hp.Hydra, 0.9), "pruner: Hydra is a class; call it: Hydra(...)"),
    "a setting": (lambda m: hp.prune(m, {"kind": "hydra", "inti": "scaled"}, 0.9), "unknown key 'inti'; did you mean"),
    "an objective": (lambda m: hp.prune(m, hp.TRADES(), 0.9), "pruner: expected {kind: ...}, got TRADES("),
    "the model": (lambda m: hp.prune(m, m, 0.9), "pruner: expected {kind: ...}, got a Sequential; kinds: hydra"),
    "None": (lambda m: hp.prune(m, None, 0.9), "pruner: expected {kind: ...}, got None"),
    "swapped": (lambda m: hp.prune(m, hp.Uniform(sparsity=0.9), hp.Hydra()), "expected {kind: ...}, got Uniform("),
    "a structure": (lambda m: hp.prune(m, "hydra", 0.9, "filtr"), "unknown structure 'filtr'; did you mean 'filter'?"),
    "n:m": (lambda m: hp.prune(m, "hydra", 0.9, "n:m"), "structure 'n:m' says itself how many weights stay"),
    "no images": (lambda m: hp.prune(m, "snip", 0.9), "this pruner looks at losses; give `prune` a Probe with"),
    "macs": (lambda m: hp.prune(m, "hydra", {"kind": "flops", "sparsity": 0.5}), "give `prune` a Probe with batches"),
    "a layer": (lambda m: hp.prune(m, "magnitude", UNLIKE), "no prunable layer is called 'nope'; known: 0, 3, 6"),
    "exempt": (lambda m: hp.prune(hp.MaskView(m, ["fc"]), "magnitude", 0.9), "no prunable layer is called 'fc'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_calls_that_are_refused(case):
    call, message = CALLS[case]
    model = net().train()
    with refused(message, model):
        call(model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(10)), "layer '1' is lazy and has no weight yet; run"),
        (lambda: nn.LazyConv2d(4, 3), "layer '' is lazy and has no weight yet"),
        (lambda: nn.ReLU(), "ReLU has no convolution, linear layer or attention, so there is nothing to prune"),
        (lambda: net().state_dict(), "there is nothing to prune in a OrderedDict of"),
        (lambda: nn.Linear, "there is nothing to prune in the class Linear; give a network"),
        (lambda: None, "there is nothing to prune in None"),
        (lambda: net().to("meta"), "'0.weight' is on the meta device and has no values"),
    ],
)  # fmt: skip
def test_networks_that_are_refused(make, message):
    with refused(message):
        hp.prune(make(), "hydra", 0.9)


@pytest.mark.parametrize("name", PRUNERS.names())
def test_a_method_that_fails_leaves_the_model_as_it_was(name):
    model = net()
    with refused("the network does not take images (8, 3, 8, 8)", model):
        hp.prune(model, name, 0.9, None, probe(COLOUR))


@pytest.mark.parametrize("name", ["hydra", "magnitude", "snip", "harp", "edge-popup", "scratch", "rigl"])
def test_a_method_that_fails_late_leaves_the_model_as_it_was(name):
    model = net()
    with refused("no prunable layer is called 'nope'", model):
        hp.prune(model, name, UNLIKE, None, probe(batch()))


def test_a_second_prune_that_fails_leaves_the_first():
    model = net()
    hp.prune(model, "magnitude", 0.5)
    with refused("no prunable layer is called 'nope'", model):
        hp.prune(model, "hydra", UNLIKE)
    assert {count.kept / count.total for count in hp.MaskView(model).counts().values()} == {0.5}


def test_the_forms_of_arguments_prune_alike():
    forms = [
        lambda m: hp.prune(hp.MaskView(m), hp.Hydra(), hp.Uniform(sparsity=0.9)),
        lambda m: hp.prune(m, hp.Hydra(), 0.9),
        lambda m: hp.prune(m, "hydra", 0.9),
        lambda m: hp.prune(m, {"kind": "hydra"}, {"kind": "uniform", "sparsity": "9/10"}, "weight"),
    ]
    models = [net() for _ in forms]
    for form, model in zip(forms, models, strict=True):
        form(model)
    assert all(same(model, models[0]) for model in models)
    assert hp.MaskView(models[0]).sources
    dense = net()
    hp.prune(dense, "magnitude", 0)
    assert hp.MaskView(dense).count().kept == hp.MaskView(dense).count().total


def test_a_structure_goes_by_name_too():
    ours, theirs = net(), net()
    hp.prune(hp.MaskView(ours, ["last"]), "magnitude", 0.5, Filter())
    hp.prune(hp.MaskView(theirs, ["last"]), "magnitude", 0.5, "filter")
    assert same(ours, theirs)


def test_an_exempt_layer_stays_dense_in_a_view_alone():
    model = net()
    hp.prune(hp.MaskView(model, ["first"]), "magnitude", 0.9)
    assert set(hp.MaskView(model).masks()) == {"3.weight", "6.weight"}


def test_trying_the_images_changes_nothing():
    with_images, without = net(), net()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    hp.prune(with_images, "magnitude", 0.9, None, probe(batch()))
    assert torch.equal(torch.get_rng_state(), before)
    hp.prune(without, "magnitude", 0.9)
    assert same(with_images, without)


MASKS = {
    "mask": "cannot train over 'mask'; known: scores, weights",
    "score": "cannot train over 'score'; did you mean 'scores'?",
    "weight": "cannot train over 'weight'; did you mean 'weights'?",
    None: "cannot train over None; known: scores, weights",
}


@pytest.mark.parametrize("over", MASKS)
def test_a_view_refuses_another_word_before_it_freezes_anything(over):
    model = net()
    hp.prune(model, "hydra", 0.9)
    with refused(MASKS[over], model):
        hp.MaskView(model).train(over)


def test_a_view_that_has_no_scores_freezes_nothing():
    model = net()
    with refused("there are no scores to train", model):
        hp.MaskView(model).train("scores")


def test_masks_are_attached_all_or_none():
    model, other = net(), net()
    hp.prune(other, "magnitude", 0.5)
    sources = hp.MaskView(other).sources
    with refused("'4.weight' is no prunable weight of Sequential; did you mean", model):
        hp.MaskView(model).attach({"0.weight": sources["0.weight"], "4.weight": sources["3.weight"]})
    with refused("the mask of '3.weight' has shape (10, 32), but the weight has (8, 6, 3, 3)", model):
        hp.MaskView(model).attach({"0.weight": sources["0.weight"], "3.weight": sources["6.weight"]})


def test_what_is_exported_has_its_masks_fixed():
    model, (x, _) = net().eval(), batch()
    hp.prune(model, "hydra", 0.9)
    with refused("a mask that is still learned cannot be exported, as it is selected anew in each pass; call", model):
        torch.export.export(model, (x,))
    expected = model(x)
    baked = hp.MaskView(model).bake()
    before = snapshot(model)
    assert torch.allclose(torch.export.export(baked, (x,)).module()(x), expected, atol=1e-6)
    assert unchanged(model, before)
    hp.MaskView(model).freeze()
    assert torch.allclose(torch.export.export(model, (x,)).module()(x), expected, atol=1e-6)
    assert torch.equal(tensors(model)["0.weight"], baked[0].weight)
