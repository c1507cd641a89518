"""What `fit` takes beside our own batches, and what it refuses before anything moves."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import hydraprune as hp
from contracts.material import batch, net
from hydraprune.core.errors import CheckpointError
from hydraprune.core.tensors import load_tensors, save_tensors
from hydraprune.train import Hook, OneProcess
from misuse import refused
from train.small import KillAfterEpoch, Killed, digits, same

X, Y = batch(24)
PAIRS = [(X[:12], Y[:12]), (X[12:], Y[12:])]
THREAT = {"norm": "linf", "eps": "8/255"}
ROBUST = hp.TRADES(steps=1)


class Endless(IterableDataset):
    def __iter__(self):
        return iter(TensorDataset(X, Y))


class Returning(nn.Module):
    """A network that hands its logits over in some wrapping."""

    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = net(), wrap

    def forward(self, x):
        return self.wrap(self.net(x))


def train(model, batches=PAIRS, objective=ROBUST, params=None, **settings):
    params = list(model.parameters()) if params is None else params
    return hp.fit(model, params, batches, objective, **{"epochs": 1, "threat": THREAT, "seed": 0, **settings})


def trained(*args, **settings):
    """A net after `fit`, which may be followed by what it returned."""
    model = net()
    history = train(model, *args, **settings)
    return model, [{name: value for name, value in line.items() if name != "seconds"} for line in history]


def equal(one, other):
    return same(one[0], other[0]) and one[1] == other[1]


def one_hot(y):
    return nn.functional.one_hot(y, 10)


BATCHES = {
    "a split": (lambda: digits(), "write data.train.batches(128, seed=0, shuffle=True, augment=True)"),
    "a data set": (lambda: hp.load_data("digits"), "a Dataset holds no batches; give a DataLoader of (images, labels)"),
    "one batch": (lambda: batch(), "one pair of images and labels is not in batches; give a DataLoader"),
    "one pair": (lambda: (X, Y), "one pair of images and labels is not in batches"),
    "one pass": (lambda: digits().batches(24, seed=0).epoch(0), "a generator can be read only once"),
    "a generator": (lambda: (pair for pair in PAIRS), "a generator can be read only once, but every epoch reads"),
    "an iterator": (lambda: iter(PAIRS), "a list_iterator can be read only once"),
    "no length": (lambda: DataLoader(Endless(), 8), "DataLoader does not say how many batches an epoch has"),
    "nothing": (list, "there are no batches to train on"),
    "None": (lambda: None, "None holds no batches"),
    "a name": (lambda: "digits", "'digits' holds no batches; give a DataLoader"),
    "a tensor": (lambda: X, "a Tensor holds no batches"),
    "a dictionary": (lambda: {"x": X, "y": Y}, "a dict of 'x', 'y' holds no batches"),
    "dictionaries": (lambda: [{"image": X, "label": Y}], "a pair of tensors (images, labels), got a dict of 'image'"),
    "triples": (lambda: [(X, Y, Y)], "a pair of tensors (images, labels), got a tuple of Tensor, Tensor, Tensor"),
    "images alone": (lambda: [X, X], "one pair of images and labels is not in batches"),
    "arrays": (lambda: [(X.numpy(), Y.numpy())], "got a tuple of ndarray, ndarray"),
    "a torch data set": (lambda: TensorDataset(X, Y), "a TensorDataset holds no batches; give a DataLoader"),
    "single images": (lambda: [(X[0], Y[0])], "got one image (1, 8, 8) at a time; give batches (B, C, H, W)"),
    "bytes": (lambda: [((X * 255).byte(), Y)], "got torch.uint8; write x.float() / 255"),
    "0 to 255": (lambda: [(X * 255, Y)], "pixels must lie in [0, 1], found"),
    "normalised": (lambda: [(X - 0.5, Y)], "make normalisation a layer of the network"),
    "NaN": (lambda: [(X * torch.nan, Y)], "pixels must lie in [0, 1], found nan to nan"),
    "flat": (lambda: [(X.flatten(1), Y)], "expected images (B, C, H, W) and labels (B,), got (24, 64) and (24,)"),
    "colour": (lambda: [(X.expand(-1, 3, -1, -1), Y)], "does not take images (24, 3, 8, 8) of torch.float32"),
    "small": (lambda: [(X[..., :4, :4], Y)], "does not take images (24, 1, 4, 4)"),
    "float labels": (lambda: [(X, Y.float())], "labels are torch.float32 (24,); give one integer class id for each"),
    "one-hot labels": (lambda: [(X, one_hot(Y))], "labels are torch.int64 (24, 10); give one integer class id"),
    "binary labels": (lambda: [(X, Y > 4)], "labels are torch.bool (24,)"),
    "labels beyond": (lambda: [(X, Y + 1)], "labels run from 1 to 10, but the network has 10 classes; count from 0"),
    "labels below": (lambda: [(X, Y - 1)], "labels run from -1 to 8"),
    "too few labels": (lambda: [(X, Y[:3])], "labels are torch.int64 (3,)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BATCHES)
def test_batches_that_are_refused(case):
    make, message = BATCHES[case]
    model = net().eval()
    batches = make()
    with refused(message, model):
        train(model, batches)


def other():
    return hp.MaskView(net()).train("weights")


def frozen(model):
    model[0].weight.requires_grad_(False)
    return list(model.named_parameters())


ARGUMENTS = {
    "another model": (lambda m: train(m, params=other()), "'0.weight' is no parameter of this Sequential"),
    "another model's tensors": (lambda m: train(m, params=net().parameters()), "a Parameter is no parameter of this"),
    "a copy": (lambda m: train(m, params=[("0.weight", m[0].weight.clone())]), "'0.weight' is no parameter of this"),
    "names": (lambda m: train(m, params=["0.weight"]), "'0.weight' is no parameter of this Sequential"),
    "the word": (lambda m: train(m, params="weights"), "params is 'weights'; give view.train('weights')"),
    "the view": (lambda m: train(m, params=hp.MaskView(m)), "params is a MaskView; give view.train('weights')"),
    "the model": (lambda m: train(m, params=m), "params is a Sequential; give view.train"),
    "no params": (lambda m: train(m, params=[]), "params holds no tensors, so there is nothing to train"),
    "params twice": (lambda m: train(m, params=[m[0].weight] * 2), "'0.weight' comes twice"),
    "a name": (lambda m: train(m, objective="trades"), "objective is 'trades'; give the objective itself, such as"),
    "settings": (lambda m: train(m, objective={"kind": "trades"}), "objective is a dict of 'kind'; give the objective"),
    "the class": (lambda m: train(m, objective=hp.TRADES), "give the objective itself, such as hydraprune.TRADES()"),
    "an attack": (lambda m: train(m, objective=hp.PGDAttack()), "give the objective itself"),
    "a number": (lambda m: train(m, threat=0.1), "threat is 0.1; give ThreatModel(...) or its settings by name, such"),
    "a norm": (lambda m: train(m, threat={"norm": "l1", "eps": 1}), "threat.norm: Input should be 'linf' or 'l2'"),
    "a key": (lambda m: train(m, threat={"norm": "linf", "epsilon": 1}), "unknown key 'epsilon'; did you mean 'eps'?"),
    "no threat": (lambda m: train(m, threat=None), "objective 'trades' needs a threat model"),
    "the threat's class": (lambda m: train(m, threat=hp.ThreatModel), "threat is the class ThreatModel; call it"),
    "an optim's name": (lambda m: train(m, optim="adam"), "optim is 'adam'; give Optim(...) or its settings by name"),
    "an optim's kind": (lambda m: train(m, optim={"kind": "adamm"}), "optim.kind: Input should be 'sgd', 'adam'"),
    "a learning rate": (lambda m: train(m, optim=0.1), "optim is 0.1; give Optim(...) or its settings by name"),
    "torch's optimizer": (lambda m: train(m, optim=torch.optim.SGD(m.parameters())), "give Optim(...) or its settings"),
    "seed -1": (lambda m: train(m, seed=-1), "seed is -1; give a whole number of at least 0"),
    "seed None": (lambda m: train(m, seed=None), "seed is None; give a whole number of at least 0"),
    "seed 0.5": (lambda m: train(m, seed=0.5), "seed is 0.5; give a whole number"),
    "seed True": (lambda m: train(m, seed=True), "seed is True; give a whole number"),
    "epochs -1": (lambda m: train(m, epochs=-1), "epochs is -1; give a whole number of at least 0"),
    "epochs 1.5": (lambda m: train(m, epochs=1.5), "epochs is 1.5; give a whole number of at least 0"),
    "epochs None": (lambda m: train(m, epochs=None), "epochs is None"),
    "no network": (lambda m: train(m, networks={"teacher": "resnet18"}), "expected a network (torch.nn.Module), got"),
    "a bare network": (lambda m: train(m, networks=net()), "networks is a Sequential; give them by name, such as"),
    "a folder": (lambda m: train(m, state="."), "state '.' is a folder; name a file in it"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARGUMENTS)
def test_arguments_that_are_refused(case):
    call, message = ARGUMENTS[case]
    model = net().eval()
    with refused(message, model):
        call(model)


def test_a_tensor_without_gradient_is_refused_by_name():
    model = net()
    params = frozen(model)
    with refused("'0.weight' takes no gradient, so training would not move it; leave it out", model):
        train(model, params=params)


def test_params_of_an_earlier_stage_are_refused():
    model = net()
    hp.prune(model, "hydra", 0.5)
    view = hp.MaskView(model)
    weights = view.train("weights")
    view.train("scores")
    with refused("'0.weight' takes no gradient", model):
        train(model, params=weights)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Returning(lambda logits: (logits, None)), "the network returns a tuple; wrap it in a module"),
        (lambda: Returning(lambda logits: {"logits": logits}), "the network returns a dict; wrap it in a module"),
        (lambda: Returning(lambda logits: logits.argmax(1)), "the network returns torch.int64 (12,); end it in"),
        (lambda: net().half(), "the network is in torch.float16, where small steps are lost; call model.float()"),
        (lambda: net().bfloat16(), "the network is in torch.bfloat16"),
        (lambda: nn.Flatten(), "params holds no tensors"),
    ],
)
def test_networks_that_are_refused(make, message):
    model = make().eval()
    with refused(message, model):
        train(model)


def test_networks_without_values_are_refused():
    with torch.device("meta"):
        empty = net()
    with refused("'0.weight' is on the meta device and has no values"):
        train(empty)
    with refused("'1.weight' has no shape yet, as its layer is lazy; run the network once"):
        train(nn.Sequential(nn.Flatten(), nn.LazyLinear(10)))
    with refused("expected a network (torch.nn.Module), got the class Flatten"):
        train(nn.Flatten, params=[("weight", nn.Parameter(X))])


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ((X, Y + 20), "labels run from 20 to 29, but the network has 10 classes"),
        ((X[..., :4, :4], Y), "the network does not take images (24, 1, 4, 4) of torch.float32"),
        ((X[:0], Y[:0]), "expected images (B, C, H, W) and labels (B,), got (0, 1, 8, 8) and (0,)"),
        ({"image": X, "label": Y}, "a batch is a pair of tensors (images, labels), got a dict of 'image', 'label'"),
        (X, "a batch is a pair of tensors (images, labels), got a Tensor"),
        ((X * 255, Y), "pixels must lie in [0, 1], found"),
    ],
)
def test_a_later_batch_is_refused_as_the_first_one_is(later, message):
    with refused(message):
        train(net(), [PAIRS[0], later])


def test_images_may_have_several_sizes_if_the_network_takes_them():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    assert train(model, [PAIRS[0], (X[..., :4, :4], Y)])[0]["loss"] > 0


def test_what_fails_in_the_first_step_leaves_the_modes():
    class Failing(hp.Natural):
        def __call__(self, model, batch, ctx):
            raise hp.HydrapruneError("no")

    model = net().eval()
    model[1].train()
    with refused("no", model):
        train(model, objective=Failing())


def test_the_forms_of_batches_that_yield_the_same_train_alike():
    ours = digits().batches(24, seed=7)
    expected = trained(ours, epochs=2)
    images, labels = (torch.cat(parts) for parts in zip(*ours.epoch(0), strict=True))
    whole = TensorDataset(images, labels)
    forms = {
        "a DataLoader": DataLoader(whole, 24),
        "a DataLoader with workers": DataLoader(whole, 24, num_workers=1),
        "a list of batches": list(ours.epoch(0)),
        "tuples": [tuple(part) for part in ours.epoch(0)],
        "lists of float64 and int32": [[part.x.double(), part.y.int()] for part in ours.epoch(0)],
    }
    for name, form in forms.items():
        assert equal(trained(form, epochs=2), expected), name


def test_the_forms_of_settings_train_alike():
    expected = trained(threat=hp.ThreatModel(eps=8 / 255), optim=hp.Optim(kind="adam", lr=0.01))
    assert equal(trained(optim={"kind": "adam", "lr": "1/100"}), expected)


def test_params_may_be_bare_tensors_and_generators():
    expected = trained()
    model = net()
    for make in (
        lambda m: m.parameters(),
        lambda m: m.named_parameters(),
        lambda m: hp.MaskView(m).train("weights"),
    ):
        model = net()
        train(model, params=make(model))
        assert same(model, expected[0])


def test_a_float64_network_is_trained_in_float64():
    model = net().double()
    train(model)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    narrow, wide = net(), net().double()
    train(narrow, objective=hp.Natural())
    train(wide, objective=hp.Natural())
    assert all(
        torch.allclose(p.float(), q, atol=1e-4) for p, q in zip(wide.parameters(), narrow.parameters(), strict=True)
    )


class Noisy(TensorDataset):
    """Images with noise of torch's global generator, as augmentations draw it."""

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return (x + 0.1 * torch.rand_like(x)).clamp(0, 1), y


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("own", [False, True])
def test_an_epoch_of_a_loader_follows_from_the_seed_and_its_number(tmp_path, workers, own):
    def loader():
        generator = torch.Generator() if own else None
        if generator is not None:
            generator.seed()
        return DataLoader(Noisy(X, Y), 8, shuffle=True, num_workers=workers, generator=generator)

    expected = trained(loader(), epochs=2)
    assert equal(trained(loader(), epochs=2), expected)
    assert not equal(trained(loader(), epochs=2, seed=1), expected)
    state = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        trained(loader(), epochs=2, state=state, hooks=[KillAfterEpoch(2)])
    torch.rand(5)  # what happens between the two runs does not matter
    assert equal(trained(loader(), epochs=2, state=str(state)), expected)


OTHER = {
    "precision": {"fabric": OneProcess(bf16=True)},
    "objective": {"objective": hp.TRADES(steps=2)},
    "threat": {"threat": hp.ThreatModel(eps="4/255")},
    "optim": {"optim": {"lr": 0.01}},
    "epochs": {"epochs": 2},
    "seed": {"seed": 1},
    "number of batches": {"batches": PAIRS[:1]},
    "networks": {"networks": {"teacher": net()}},
    "key": {"key": "other data"},
}


@pytest.mark.parametrize("part", OTHER)
def test_a_state_of_other_settings_is_refused_by_name(tmp_path, part):
    state = tmp_path / "state.safetensors"
    done = trained(state=state)
    assert equal(trained(state=state), done)  # the same call finds the work done
    model, settings = net(), {"state": state, **OTHER[part]}
    with refused(f"state.safetensors belongs to other settings than these ({part}); use a new folder", model):
        train(model, **settings)


def test_a_state_of_another_network_or_of_other_params_is_refused(tmp_path):
    state = tmp_path / "state.safetensors"
    trained(state=state)
    model = net()
    with refused("other settings than these (params)", model):
        train(model, params=[model[0].weight], state=state)
    wider = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with refused("other settings than these (model, params)", wider):
        train(wider, state=state)


def test_a_state_of_an_older_version_is_refused(tmp_path):
    state = tmp_path / "state.safetensors"
    trained(state=state)
    tensors, meta = load_tensors(state)
    save_tensors(state, tensors, meta | {"key": "1a2b3c4d"})
    with pytest.raises(CheckpointError, match=r"other settings than these \(model, params"):
        trained(state=state)


def test_hooks_are_ended_when_a_batch_is_refused():
    class Ended(Hook):
        ended = False

        def on_end(self):
            self.ended = True

    hook = Ended()
    with refused("labels run from"):
        train(net(), [(X, Y + 1)], hooks=[hook])
    assert hook.ended


def test_nothing_is_tried_where_nothing_is_trained():
    for params, batches in product(([], "weights"), (None, [])):
        assert train(net(), batches, params=params, epochs=0) == []
