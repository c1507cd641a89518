"""Checkpoints: the masked network and the plain one are the same, and no damage goes unnoticed."""

import ast
import hashlib
import json
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.parameter import is_lazy

import hydraprune
from hydraprune import ERK, Hydra, Magnitude, MaskView, Net, ThreatModel, Uniform, load, prune, save
from hydraprune.core.errors import CheckpointError, HydrapruneError, SpecError
from hydraprune.core.files import read_json
from hydraprune.masks.structures import Filter
from hydraprune.runs.checkpoint import open_checkpoint
from hydraprune.runs.files import MASKS, META, MODEL, finished
from hydraprune.runs.meta import Meta

SPEC = Net(kind="cnn_digits", normalize={"mean": [0.3], "std": [0.35]})
META_GIVEN = Meta(net=SPEC, num_classes=10, in_channels=1, image_size=8, threat=ThreatModel(eps="1/10"), pruner="hydra")


def network(pruner=None, structure=None, sparsity=0.7):
    """A net whose norm layers have statistics, pruned if a pruner is given."""
    torch.manual_seed(1)
    model = SPEC.build(10, 1, 8)
    with torch.no_grad():
        model(torch.rand(32, 1, 8, 8))
    if pruner is not None:
        prune(MaskView(model), pruner, ERK(sparsity=sparsity), structure)
    return model.eval()


def logits(model):
    torch.manual_seed(2)
    with torch.no_grad():
        return model.eval()(torch.rand(16, 1, 8, 8))


CASES = {
    "dense": (None, None),
    "learned": (Hydra(), None),
    "fixed": (Magnitude(), None),
    "filters": (Magnitude(), Filter()),
}


@pytest.mark.parametrize("case", CASES)
def test_a_round_trip_gives_the_same_network(tmp_path, case):
    model = network(*CASES[case])
    saved = save(tmp_path / "run" / "finetune", model, META_GIVEN)
    found, meta = load(tmp_path / "run" / "finetune")
    assert meta == saved
    assert torch.equal(logits(found), logits(model))
    before, after = MaskView(model).masks(), MaskView(found).masks()
    assert before.keys() == after.keys()
    assert len(after) == (0 if case == "dense" else 5)
    assert all(torch.equal(mask, after[name]) for name, mask in before.items())
    assert MaskView(found).counts() == MaskView(model).counts()
    assert (meta.net, meta.threat, meta.pruner) == (SPEC, ThreatModel(eps=0.1), "hydra")


@pytest.mark.parametrize("case", CASES)
def test_the_model_file_is_one_that_the_plain_network_loads(tmp_path, case):
    model = network(*CASES[case])
    save(tmp_path, model, META_GIVEN)
    plain = SPEC.build(10, 1, 8)
    plain.load_state_dict(load_file(tmp_path / MODEL), strict=True)
    assert torch.equal(logits(plain), logits(model))
    assert not [name for name in load_file(tmp_path / MODEL) if "parametrizations" in name or "score" in name]


@pytest.mark.parametrize("case", CASES)
def test_counts_are_those_of_the_file(tmp_path, case):
    meta = save(tmp_path, network(*CASES[case]))
    weights = {n: v for n, v in load_file(tmp_path / MODEL).items() if v.dim() > 1}
    assert meta.layers == {name: (int(v.count_nonzero()), v.numel()) for name, v in weights.items()}
    assert (meta.kept, meta.total) == (sum(k for k, _ in meta.layers.values()), sum(n for _, n in meta.layers.values()))
    assert meta.sparsity == pytest.approx(1 - meta.kept / meta.total)
    if case == "filters":
        assert all(kept % weights[name][0].numel() == 0 for name, (kept, _) in meta.layers.items())
    assert meta.sparsity == pytest.approx({"dense": 0, "filters": 0.79}.get(case, 0.7), abs=0.01)


def test_what_is_written_down(tmp_path):
    meta = save(tmp_path, network(Hydra()), META_GIVEN.model_copy(update={"sparsity": 0.1, "kept": 3}))
    written = read_json(tmp_path / META)
    assert written == meta.plain()
    assert meta.sparsity > 0.6
    assert written["versions"].keys() == {"python", "hydraprune", "torch", "numpy"}
    for name in (MODEL, MASKS):
        assert written["sha256"][name] == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([META, MASKS, MODEL])


def test_a_mask_takes_one_bit_per_weight(tmp_path):
    meta = save(tmp_path, network(Hydra()))
    packed = load_file(tmp_path / MASKS)
    assert {name: len(bits) for name, bits in packed.items()} == {
        name: (total + 7) // 8 for name, (_, total) in meta.layers.items()
    }


def test_a_module_made_in_python_is_loaded_into_another_of_its_kind(tmp_path):
    def own():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    torch.manual_seed(0)
    model = own()
    prune(MaskView(model), Magnitude(), ERK(sparsity=0.5))
    save(tmp_path, model)
    with pytest.raises(CheckpointError, match=r"does not say which network it holds; pass it: load\(folder, model\)"):
        load(tmp_path)
    found, meta = load(tmp_path, own())
    assert torch.equal(logits(found), logits(model))
    assert (meta.net, meta.kept) == (None, 320)


def test_a_checkpoint_does_not_need_the_weights_that_training_started_from(tmp_path):
    spec = SPEC.model_copy(update={"weights": str(tmp_path / "gone.safetensors")})
    save(tmp_path, network(Hydra()), META_GIVEN.model_copy(update={"net": spec}))
    assert torch.equal(logits(load(tmp_path)[0]), logits(network(Hydra())))


@pytest.mark.parametrize(
    "other",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
        Net(kind="cnn_digits").build(10, 1, 8),
        Net(kind="cnn_digits", normalize={"mean": [0.3], "std": [0.35]}).build(7, 1, 8),
    ],
    ids=["another", "without-normalisation", "of-other-classes"],
)
def test_another_network_is_refused(tmp_path, other):
    save(tmp_path, network(Hydra()), META_GIVEN)
    with pytest.raises(CheckpointError, match=rf"{tmp_path} does not fit Sequential: ") as caught:
        load(tmp_path, other)
    assert "\n" not in str(caught.value)


def learning():
    """Once pruned, and with other scores since."""
    model = network(Magnitude(), sparsity=0.3)
    prune(MaskView(model), Hydra(), ERK(sparsity=0.2))
    return model


def in_part():
    model = network()
    return nn.Sequential(OrderedDict(normalize=model[0], net=torch.compile(model[1], backend="eager")))


STATES = {
    "plain": network,
    "the same masks": lambda: network(Hydra()),
    "learned scores": learning,
    "other masks": lambda: network(Magnitude(), sparsity=0.3),
    "compiled": lambda: torch.compile(network(), backend="eager"),
    "compiled with masks": lambda: torch.compile(network(Magnitude()), backend="eager"),
    "a compiled part": in_part,
}


@pytest.mark.parametrize("case", ["learned", "dense"])
@pytest.mark.parametrize("state", STATES)
def test_it_is_loaded_into_a_network_in_any_state(tmp_path, state, case):
    original = network(*CASES[case])
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.mul_(1.5)
    saved = save(tmp_path, original, META_GIVEN)
    model = STATES[state]()
    logits(model)  # what is compiled has been
    before = {name: id(value) for name, value in model.named_parameters() if "score" not in name}
    found, meta = load(tmp_path, model)
    assert found is model
    assert meta == saved
    assert torch.equal(logits(model), logits(original))
    assert MaskView(model).counts() == MaskView(original).counts()
    masks = MaskView(model).masks()
    assert all(torch.equal(mask, masks[name]) for name, mask in MaskView(original).masks().items())
    assert not [name for name, _ in model.named_parameters() if "score" in name]
    if "masks" in state:
        assert before == {name: id(value) for name, value in model.named_parameters()}  # an optimizer still has them
    again = save(tmp_path / "again", model, META_GIVEN)
    assert (again.layers, again.sha256[MODEL]) == (saved.layers, saved.sha256[MODEL])


def test_a_compiled_network_is_saved_under_the_names_of_the_plain_one(tmp_path):
    for name, made in STATES.items():
        save(tmp_path / name, made())
        assert load_file(tmp_path / name / MODEL).keys() == network().state_dict().keys()
        assert read_json(tmp_path / name / META)["layers"].keys() == MaskView(network()).counts().keys()


def shared():
    layer = nn.Linear(8, 8)
    return nn.Sequential(nn.Linear(64, 8), layer, nn.ReLU(), layer, nn.Linear(8, 10))


def test_layers_that_share_a_weight(tmp_path):
    model = shared()
    prune(MaskView(model), Magnitude(), Uniform(sparsity=0.5))
    save(tmp_path, model)
    found, _ = load(tmp_path, model)
    x = torch.rand(4, 64)
    assert torch.equal(load(tmp_path, shared())[0](x), found(x))
    assert found[1] is found[3]


def of_two_layers(width=8):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


MISFITS = {
    "another": lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    "of another width": lambda: of_two_layers(9),
    "with a layer more": lambda: nn.Sequential(*of_two_layers(), nn.Linear(10, 10)),
    "half of it on the meta device": lambda: nn.Sequential(
        nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10, device="meta")
    ),
    "lazy": lambda: nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.LazyLinear(10)),
    "with normalised weights": lambda: nn.Sequential(
        nn.Linear(64, 8), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 10))
    ),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_load_that_fails_changes_nothing(tmp_path, misfit):
    model = of_two_layers()
    prune(MaskView(model), Magnitude(), Uniform(sparsity=0.5))
    save(tmp_path, model)
    other = MISFITS[misfit]()
    held = [(name, value, None if value.is_meta or is_lazy(value) else value.detach().clone())
            for name, value in other.named_parameters()]  # fmt: skip
    modules = [type(module) for module in other.modules()]
    with pytest.raises(HydrapruneError, match=r"does not fit|meta device|is lazy|weight normalisation") as caught:
        load(tmp_path, other)
    assert "\n" not in str(caught.value)
    assert [type(module) for module in other.modules()] == modules
    for (name, value, before), (now, after) in zip(held, other.named_parameters(), strict=True):
        assert (name, value is after) == (now, True)
        assert before is None or torch.equal(before, after)


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4, device="meta")), r"is on the meta device.*call model\.to_empty"),
        (lambda: nn.Sequential(nn.LazyLinear(4)), "has no shape yet, as its layer is lazy; run the network once"),
        (lambda: "run", r"save\(folder, model\) takes a network second, got str"),
    ],
)
def test_what_cannot_be_saved(tmp_path, model, complaint):
    with pytest.raises(HydrapruneError, match=complaint):
        save(tmp_path / "x", model())
    assert not (tmp_path / "x").exists()


def test_arguments_in_another_order(tmp_path):
    model = of_two_layers()
    with pytest.raises(SpecError, match=r"save\(folder, model\) takes a folder first, got Sequential"):
        save(model, tmp_path)
    with pytest.raises(SpecError, match=r"load\(folder, model\) takes a folder first, got Sequential"):
        load(model, tmp_path)


def test_a_folder_without_a_name(tmp_path, monkeypatch):
    save(tmp_path / "finetune", of_two_layers())
    (tmp_path / "finetune" / "below").mkdir()
    for here, name in (("finetune", "."), ("finetune", ""), ("finetune/below", "..")):
        monkeypatch.chdir(tmp_path / here)
        assert open_checkpoint(name).folder.name == "finetune"


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    content = bytearray(file.read_bytes())
    content[-9] ^= 4
    file.write_bytes(content)


def sham(file):
    """A pickle that would leave a mark if anybody opened it as such."""
    file.write_bytes(pickle.dumps(Mark(file.parent / "unpickled")))


class Mark:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def empty(file):
    file.write_bytes(b"")


DAMAGE = {"missing": Path.unlink, "truncated": truncate, "altered": flip, "empty": empty, "pickle": sham}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [MODEL, MASKS, META])
def test_damage_is_one_error(tmp_path, name, damage):
    save(tmp_path, network(Hydra()), META_GIVEN)
    DAMAGE[damage](tmp_path / name)
    with pytest.raises(CheckpointError, match=r"checkpoint\.json|safetensors") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "unpickled").exists()
    assert finished(tmp_path) == ((name, damage) != (META, "missing"))


def test_a_sham_does_leave_its_mark_when_it_is_unpickled(tmp_path):
    sham(tmp_path / "file")
    pickle.loads((tmp_path / "file").read_bytes())
    assert (tmp_path / "unpickled").exists()


def test_weights_put_in_place_of_others_are_noticed(tmp_path):
    """Even if the file is whole by itself."""
    save(tmp_path / "one", network(Hydra()), META_GIVEN)
    save(tmp_path / "two", network(Hydra(), sparsity=0.5), META_GIVEN)
    for name in (MODEL, MASKS):
        (tmp_path / "one" / name).write_bytes((tmp_path / "two" / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"is corrupt: its checksum is not the one in checkpoint\.json"):
        load(tmp_path / "one")


@pytest.mark.parametrize("change", [{"net": {"kind": "cnn_digit"}}, {"sparsitty": 1}, {"kept": "many"}])
def test_an_altered_description_is_noticed(tmp_path, change):
    save(tmp_path, network(Hydra()), META_GIVEN)
    (tmp_path / META).write_text(json.dumps(read_json(tmp_path / META) | change))
    with pytest.raises(CheckpointError, match=r"checkpoint\.json.*restore it"):
        load(tmp_path)


def test_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no finished checkpoint \(no checkpoint\.json\); give a folder"):
        load(tmp_path)


def test_an_unfinished_save_is_no_checkpoint(tmp_path, monkeypatch):
    """`checkpoint.json` comes last."""
    written = []

    def cut(path, value):
        written.extend(sorted(file.name for file in tmp_path.glob("[!.]*")))
        raise KeyboardInterrupt

    monkeypatch.setattr("hydraprune.runs.checkpoint.write_json", cut)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, network(Hydra()), META_GIVEN)
    assert written == [MASKS, MODEL]
    assert not finished(tmp_path)


def calls(tree):
    """Name and keywords of every call of an attribute: `torch.load`, {"weights_only": "True"}."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_no_line_of_the_package_can_unpickle():
    """No import of a module that can, `torch.load` with `weights_only`, `np.load` without pickles: no other."""
    modules = {"pickle", "dill", "joblib", "shelve", "marshal"}
    functions = {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "numpy.load", "torch.hub.load"}
    loads = 0
    for file in Path(hydraprune.__file__).parent.rglob("*.py"):
        tree = ast.parse(file.read_text())
        assert not {name.partition(".")[0] for name in imports(tree)} & modules, file
        for name, settings in calls(tree):
            assert name not in functions, file
            assert settings.get("allow_pickle") == ("False" if name == "np.load" else None), file
            if name == "torch.load":
                loads += 1
                assert settings.get("weights_only") == "True", file
    assert loads == 1
