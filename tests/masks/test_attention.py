"""Attention keeps its weights in tensors of its own: they are masked, trained, saved and counted like all others."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

import hydraprune as hp
from contracts.material import batch
from hydraprune.core.errors import PruningError
from hydraprune.core.plain import tensors
from hydraprune.core.twin import Twin
from hydraprune.evaluation.size import macs
from hydraprune.masks import STRUCTURES
from hydraprune.objectives.natural import Natural
from hydraprune.pruners import PRUNERS
from hydraprune.pruners.probe import Probe


def vit():
    """torchvision's, for images (1, 8, 8): 4 patches and the class token."""
    torch.manual_seed(0)
    made = VisionTransformer(8, 4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=10)
    made.conv_proj = nn.Conv2d(1, 8, 4, 4)
    nn.init.normal_(made.heads.head.weight)
    return made


class Encoder(nn.Module):
    """torch's encoder layer over the rows of an image."""

    def __init__(self, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0, batch_first=True, **settings)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.layer(x[:, 0]).mean(1))


class Cross(nn.Module):
    """Attention whose query, key and value differ in width and number, not batch first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=16)
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        rows = x[:, 0].transpose(0, 1)
        key, value = rows.reshape(16, -1, 4), rows.reshape(4, 2, -1, 8).flatten(0, 1)
        value = torch.cat([value, value], 2).repeat(2, 1, 1)
        return self.head(self.attention(rows, key=key, value=value)[0].mean(0))


NETS = [vit, Encoder, Cross]
nets = pytest.mark.parametrize("make", NETS)


def randomly(model, sparsity=0.6):
    hp.prune(model, "random", sparsity)
    return hp.MaskView(model)


@nets
def test_every_matrix_is_prunable_but_embeddings(make):
    model = make()
    view = hp.MaskView(model)
    matrices = {name: p.numel() for name, p in model.named_parameters() if p.dim() > 1}
    outside = {"class_token": 8, "encoder.pos_embedding": 40} if make is vit else {}
    assert view.outside() == outside
    assert {name: count.total for name, count in view.counts().items()} == {
        name: size for name, size in matrices.items() if name not in outside
    }
    view = randomly(model)
    every, total = view.count_all(), sum(p.numel() for p in make().parameters())
    assert every.total == total
    assert every.kept == total - sum(int((~mask).sum()) for mask in view.masks().values())
    assert view.outside() == outside


@nets
@pytest.mark.parametrize("structure", [name for name in STRUCTURES.names() if not STRUCTURES.get(name).spans])
def test_attention_computes_with_the_masked_weights_in_every_mode(make, structure):
    """Fused or not: against a plain network that has the same zeros."""
    model, plain = make(), make()
    hp.prune(model, "random", None if structure == "n:m" else 0.5, structure)
    view = hp.MaskView(model)
    assert 0.3 < view.count().kept / view.count().total < 0.7
    plain.load_state_dict({**plain.state_dict(), **tensors(model)})
    for name, mask in view.masks().items():
        assert plain.get_parameter(name)[~mask].abs().sum() == 0
    x = batch().x
    with torch.no_grad():
        fused = model.eval()(x)
        assert torch.equal(fused, plain.eval()(x))
    assert not torch.allclose(fused, make().eval()(x), atol=1e-3)
    for mode in (model.eval, model.train):
        torch.testing.assert_close(mode()(x), fused)
    torch.testing.assert_close(Twin(model).refresh(0)(x), fused)
    torch.testing.assert_close(view.bake().eval()(x), fused)
    assert list(view.bake().state_dict()) == list(make().state_dict()) or make is Cross
    view.freeze()
    torch.testing.assert_close(copy.deepcopy(model).eval()(x), fused)


@nets
def test_it_is_saved_and_loaded(make, tmp_path):
    model, x = make(), batch().x
    view = randomly(model)
    hp.save(tmp_path / "a", model)
    again = hp.load(tmp_path / "a", make())[0]
    assert torch.equal(again.eval()(x), model.eval()(x))
    assert hp.MaskView(again).count() == view.count()
    plain = make()
    plain.load_state_dict(tensors(model))
    torch.testing.assert_close(plain.eval()(x), again(x))


@pytest.mark.parametrize("pruner", PRUNERS.names())
def test_every_pruner_takes_it(pruner):
    model = vit()
    view = hp.MaskView(model, ["*.self_attention", "*.out_proj"] if pruner == "mad" else ())
    probe = Probe(torch.Generator().manual_seed(0), Natural(), None, lambda: [batch()])
    with hp.prune(view, pruner, 0.5, None, probe) as pruning:
        settings = {"epochs": 2, "optim": {"lr": 0.01}, "hooks": [pruning]}
        hp.fit(model, pruning.parameters(), [tuple(batch())] * 2, hp.Natural(), **settings)
    assert view.count().kept < 0.6 * view.count().total + (view.count().total if pruner == "mad" else 0)
    assert model.eval()(batch().x).isfinite().all()


def test_what_a_pruner_cannot_see_is_said():
    probe = Probe(torch.Generator(), Natural(), None, lambda: [batch()])
    with pytest.raises(PruningError, match=r"attention does not show that of 'encoder.*in_proj_weight'; exempt"):
        hp.prune(vit(), "mad", 0.5, None, probe)


def test_a_layer_is_exempt_by_its_name():
    view = hp.MaskView(vit(), ["encoder.layers.encoder_layer_0.self_attention"])
    (name,) = view.counts().keys() - view.modules.keys()
    assert name == "encoder.layers.encoder_layer_0.self_attention.in_proj_weight"


@pytest.mark.parametrize(
    ("make", "uses"),
    [
        (vit, {"in_proj_weight": 5, "out_proj.weight": 5, "mlp.0.weight": 5, "conv_proj.weight": 4, "head.weight": 1}),
        (Encoder, {"in_proj_weight": 8, "out_proj.weight": 8, "linear1.weight": 8, "head.weight": 1}),
        (Cross, {"q_proj_weight": 8, "k_proj_weight": 16, "v_proj_weight": 16, "out_proj.weight": 8}),
    ],
)
def test_multiplications_are_those_of_queries_keys_and_values(make, uses):
    model = make()
    whole, layers = macs(model, (1, 8, 8))
    for end, times in uses.items():
        for name in (name for name in layers if name.endswith(end)):
            assert layers[name].dense == times * model.get_parameter(name).numel()
    rest = whole.dense - sum(layer.dense for layer in layers.values())
    tokens = {vit: 2 * 2 * 5 * 5, Encoder: 2 * 8 * 8, Cross: 2 * 8 * 16}[make]
    assert rest == 8 * tokens, "what is left are the products of queries with keys, and of these with values"
