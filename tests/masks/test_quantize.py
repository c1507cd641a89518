"""Rounding inside of training: the grids, the gradient, who sees it, and that masks and networks stay what they are."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import hydraprune as hp
from hydraprune.core.errors import PruningError
from hydraprune.core.packing import pack, unpack
from hydraprune.core.plain import tensors
from hydraprune.core.twin import Twin, judged
from hydraprune.masks.source import FixedMask
from hydraprune.masks.view import MaskView
from hydraprune.runs.checkpoint import open_checkpoint
from hydraprune.train.optim import Optim
from train.small import KillAtStep, Killed, batches, net, same

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def pruned(seed=0):
    """The first weight is masked and has channels of very different sizes, the second has no mask."""
    torch.manual_seed(seed)
    model = net()
    with torch.no_grad():
        model[0].weight *= torch.tensor([1.0, 0.3, 0.01, 0.0]).view(4, 1, 1, 1)
    view = MaskView(model)
    view.attach({"0.weight": FixedMask(torch.rand(4, 1, 3, 3) < 0.5)})
    return model


def grid(weight):
    """Slowly: the nearest of 255 levels for each number, by the rule that is written down for packed files."""
    largest = np.abs(weight).max()
    out = np.zeros_like(weight)
    for channel, numbers in enumerate(weight):
        own, step = np.abs(numbers).max(), largest / np.float32(127)
        if own == 0:
            continue
        while 2 * own <= largest and own > 0:
            own, step = 2 * own, step / 2
        for place, number in np.ndenumerate(numbers):
            out[channel][place] = min(range(-127, 128), key=lambda level: abs(level * step - number)) * step
    return out


def test_weights_lie_on_the_grid_of_packed_files_and_zeros_stay_zeros():
    model = pruned()
    mask = MaskView(model).masks()["0.weight"]
    wanted = {name: grid(value.numpy()) for name, value in tensors(model).items() if value.dim() > 1}
    with hp.quantized(model):
        found = {name: value for name, value in tensors(model).items() if value.dim() > 1}
        assert all(np.allclose(found[name].numpy(), wanted[name], rtol=1e-6, atol=0) for name in wanted)
        assert not found["0.weight"][~mask].any()
        assert found["0.weight"].unique().numel() > 5
        arrays = {name: value.numpy() for name, value in found.items()}
        packed = unpack(pack(arrays, {}, {}, "int8"), "here").arrays
    assert all(np.array_equal(packed[name], arrays[name]) for name in arrays)


def test_gradients_of_weights_pass_straight_through():
    model = pruned()
    mask = MaskView(model).masks()["0.weight"]
    with hp.quantized(model):
        model.eval()
        effective = {n: v.clone().requires_grad_() for n, v in tensors(model).items() if v.dim() > 1}
        torch.func.functional_call(MaskView(model).bake(), effective, X).square().sum().backward()
        model(X).square().sum().backward()
        stored = MaskView(model).stored()
    assert torch.allclose(stored["0.weight"].grad, effective["0.weight"].grad * mask)
    assert torch.allclose(stored["5.weight"].grad, effective["5.weight"].grad)


def test_activations_are_rounded_between_ends_that_follow_what_training_saw():
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    with hp.quantized(layer):
        before = torch.tensor([[0.3], [-7.0]])
        layer.eval()
        assert torch.equal(layer(before), before)  # no range is known
        layer.train()
        layer(torch.tensor([[-1.0], [4.1]]))
        layer(torch.tensor([[0.5], [14.1]]))
        low, high = -1.0 + 0.01 * (0 + 1.0), 4.1 + 0.01 * (14.1 - 4.1)
        layer.eval()
        x = torch.linspace(-3, 6, 41).view(-1, 1).requires_grad_()
        out = layer(x)
        out.sum().backward()
    step = (high - low) / 255
    zero = round(-low / step)
    slow = [min(range(256), key=lambda k, v=v: abs((k - zero) * step - v)) for v in x.flatten().tolist()]
    assert torch.allclose(out.flatten(), (torch.tensor(slow) - zero) * step, atol=1e-5)
    inside = (x > -zero * step - step / 2) & (x < (255 - zero) * step + step / 2)
    assert torch.equal(x.grad, inside.float())
    assert 0 < inside.sum() < len(x)
    assert layer(torch.zeros(1, 1)) == 0


def test_attacks_and_evaluation_see_the_rounded_network_of_the_moment():
    model = pruned()
    with hp.quantized(model):
        model.train()
        model(X)
        twin = Twin(model)
        model(3 * X)  # moves ranges and statistics
        model.eval()
        expected = model(X)
        assert torch.allclose(twin.refresh(1)(X), expected, atol=1e-5)
        assert torch.allclose(judged(model)(X), expected, atol=1e-5)
        ranges = [tensor.clone() for name, tensor in model.named_buffers() if name.endswith("high")]
        twin.refresh(2)(5 * X)
        assert all(
            torch.equal(old, new)
            for old, new in zip(ranges, [t for n, t in model.named_buffers() if n.endswith("high")], strict=True)
        )
        with torch.autocast("cpu", torch.bfloat16):
            half = Twin(model).refresh(0)(X)
        assert torch.allclose(half.float(), expected, atol=0.1)
    assert not torch.allclose(judged(model)(X), expected, atol=1e-6)  # activations are not rounded any more


def test_afterwards_the_network_is_an_ordinary_one_with_rounded_weights(tmp_path):
    model, other = pruned(), pruned()
    names, kinds = list(model.state_dict()), [type(module) for module in model.modules()]
    parameters = {id(p) for p in model.parameters()}
    masks = MaskView(model).masks()
    with hp.quantized(model):
        model.train()
        assert {id(p) for p in model.parameters()} == parameters
    assert list(model.state_dict()) == names
    assert [type(module) for module in model.modules()] == kinds
    assert {id(p) for p in model.parameters()} == parameters
    assert MaskView(model).masks().keys() == masks.keys() == {"0.weight"}
    rounded = {name: grid(value.numpy()) for name, value in tensors(other).items() if value.dim() > 1}
    assert all(np.allclose(tensors(model)[name].numpy(), rounded[name], rtol=1e-6, atol=0) for name in rounded)
    hp.save(tmp_path / "net", model)
    hp.export(
        tmp_path / "net", tmp_path / "net.hpk", {"kind": "packed", "values": "int8"}, model=net(), shape=(1, 8, 8)
    )
    shipped = open_checkpoint(tmp_path / "net.hpk").values
    assert all(torch.equal(shipped[name], value) for name, value in tensors(model).items())


def test_a_failure_inside_leaves_the_weights_as_they_were():
    model, other = pruned(), pruned()
    with pytest.raises(ZeroDivisionError), hp.quantized(model):
        raise ZeroDivisionError
    assert same(model, other)
    assert all(torch.equal(value, tensors(other)[name]) for name, value in tensors(model).items())
    hp.prune(other, "hydra", {"kind": "uniform", "sparsity": 0.5})
    with pytest.raises(PruningError, match=r"0\.weight.*still learned"), hp.quantized(other):
        pass
    with hp.quantized(model), pytest.raises(PruningError, match="rounded already"), hp.quantized(model):
        pass


def test_layers_that_share_a_weight_have_ranges_of_their_own():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(100 * self.a(x).relu())

    model = Tied()
    x = torch.rand(4, 3)
    plain = model(x)
    with hp.quantized(model):
        model.train()
        model(x)
        model.eval()
        assert torch.allclose(model(x), plain, rtol=0.05, atol=1.0)
        assert (model.a.parametrizations.weight[0].high[1] > 10 * model.a.parametrizations.weight[0].high[0]).all()
    assert model.a.weight is model.b.weight


def test_attention_is_rounded_and_whole_again_afterwards():
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    names = set(model.state_dict())
    x = torch.rand(2, 5, 8)
    with hp.quantized(model):
        model.train()
        model(x)
        model.eval()
        assert model(x).isfinite().all()
        values = tensors(model)
        assert np.allclose(
            values["self_attn.in_proj_weight"].numpy(), grid(values["self_attn.in_proj_weight"].numpy()), rtol=1e-6
        )
    assert set(model.state_dict()) == names


def trained(tmp_path=None, hooks=()):
    model = pruned()
    with hp.quantized(model):
        state = None if tmp_path is None else tmp_path / "state.safetensors"
        moving = MaskView(model).train("weights")
        hp.fit(
            model, moving, batches(), hp.TRADES(steps=1), epochs=3, threat={"eps": 0.1}, optim=Optim(lr=0.05, ema=0.9),
            state=state, hooks=hooks,
        )  # fmt: skip
    return model


@pytest.mark.parametrize("step", [1, 4, 8])
def test_a_run_that_is_killed_ends_with_the_very_bits(tmp_path, step):
    model = trained()
    with pytest.raises(Killed):
        trained(tmp_path, [KillAtStep(step)])
    assert same(trained(tmp_path), model)


def test_it_trains_what_rounding_alone_would_spoil(monkeypatch):
    """With three levels of weights, so that rounding matters on a small task."""
    monkeypatch.setattr("hydraprune.masks.quantize.LEVELS", 1)
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = (x @ torch.randn(8, 4)).argmax(1)
    data = torch.utils.data.TensorDataset(x.sigmoid().view(-1, 1, 2, 4), y)
    float_net = nn.Sequential(nn.Flatten(), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))

    def fitted(model):
        loader = torch.utils.data.DataLoader(data, 64, shuffle=True)
        hp.fit(model, model.parameters(), loader, hp.Natural(), epochs=20, optim={"lr": 0.2})
        return model

    def accuracy(model):
        return (model.eval()(data.tensors[0]).argmax(1) == y).float().mean()

    fitted(float_net)
    aware, float_more = copy.deepcopy(float_net), fitted(copy.deepcopy(float_net))
    with hp.quantized(aware):
        fitted(aware)
    with hp.quantized(float_more):
        pass
    assert accuracy(aware) > accuracy(float_more) + 0.05
