"""Files of others: every wrapping that is read, and every fault that is named."""

import pickle
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.nets.foreign import fitted, hydra_masks, load_weights
from hydraprune.nets.layouts import plain
from hydraprune.nets.spec import Net


def digits(**settings):
    return Net(kind="cnn_digits", **settings).build(10, 1, 8).eval()


def normalized():
    return digits(normalize={"mean": [0.5], "std": [0.25]})


def prefixed(state, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(3)
    return digits().state_dict()


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pt", "pth.tar"])
@pytest.mark.parametrize("prefix", ["", "module.", "net.", "module.net.", "model.", "module.model."])
@pytest.mark.parametrize("model", [digits, normalized])
def test_every_format_and_prefix(state, tmp_path, suffix, prefix, model):
    path = tmp_path / f"weights.{suffix}"
    content = prefixed(state, prefix)
    save_file(content, path) if suffix == "safetensors" else torch.save(content, path)
    loaded = model()
    load_weights(loaded, path)
    bare = loaded.net if model is normalized else loaded
    assert all(torch.equal(tensor, state[name]) for name, tensor in bare.state_dict().items())


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_wrapped_in_a_training_checkpoint(state, tmp_path, key):
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"epoch": 3, "arch": "digits", key: state, "optimizer": {"state": {}}}, path)
    model = digits()
    load_weights(model, str(path))
    assert torch.equal(model[0].weight, state["0.weight"])


def test_what_was_renamed_is_told(state):
    found = fitted(plain(prefixed(state, "model."), state, "it"), normalized().state_dict(), "it")
    assert found.tensors.keys() == normalized().state_dict().keys()
    assert found.notes == ("read as it is", "renamed: model.0.weight as net.0.weight and 25 more")
    both = prefixed(state, "net.") | {"0.weight": state["0.weight"]}
    with pytest.raises(CheckpointError, match="it holds tensors twice, under names that differ in a prefix"):
        fitted(plain(both, state, "it"), state, "it")


def test_a_net_of_its_own_called_net_keeps_its_names(tmp_path):
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(2, 2)

    source, model = Inner(), nn.Sequential()
    model.add_module("net", Inner())
    save_file(source.state_dict(), tmp_path / "a.safetensors")
    load_weights(model, tmp_path / "a.safetensors")
    assert torch.equal(model.net.net.weight, source.net.weight)


def test_files_of_old_torch_lack_the_batch_count(state, tmp_path):
    path = tmp_path / "old.pt"
    old = {name: tensor for name, tensor in state.items() if "num_batches" not in name}
    torch.save(old, path)
    model = digits()
    load_weights(model, path)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in old.items())


def test_a_file_for_another_net_names_the_first_tensors_and_changes_nothing(state, tmp_path):
    changed = {**state, "0.weight": torch.zeros(16, 3, 3, 3), "extra": torch.zeros(1)}
    for name in ["1.weight", "1.bias", "3.weight", "4.bias", "4.weight"]:
        del changed[name]
    path = tmp_path / "other.safetensors"
    save_file(changed, path)
    model = digits()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, path)
    message = str(caught.value)
    assert str(path) in message
    assert "missing: 1.weight, 1.bias, 3.weight and 2 more" in message
    assert "unexpected: extra;" in message
    assert "of another shape: 0.weight (16, 3, 3, 3) for (16, 1, 3, 3). Check" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


class Unsafe:
    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("fault", ["truncated", "garbage", "empty", "absent", "folder"])
def test_damaged_files_are_named(state, tmp_path, suffix, fault):
    path = tmp_path / f"broken{suffix}"
    if fault == "truncated":
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif fault == "folder":
        path.mkdir()
    elif fault != "absent":
        path.write_bytes(b"" if fault == "empty" else b"no checkpoint at all" * 10)
    with pytest.raises(CheckpointError, match=re.escape(str(path)) + r".*(no such file; give|damaged.*fetch it again)"):
        load_weights(digits(), path)


def test_objects_are_never_unpickled(tmp_path, capsys):
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"state_dict": Unsafe()}))
    with pytest.raises(CheckpointError, match="never unpickled"):
        load_weights(digits(), path)
    torch.save({"state_dict": Unsafe()}, path)
    with pytest.raises(CheckpointError, match="never unpickled"):
        load_weights(digits(), path)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], {"state_dict": {"a": 1}}, {1: torch.zeros(1)}])
def test_a_file_without_state_dict_is_named(tmp_path, content):
    path = tmp_path / "log.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=re.escape(str(path)) + " holds no state dict; save"):
        load_weights(digits(), path)


def test_masks_keep_the_largest_scores_and_break_ties_by_index(tmp_path):
    scores = torch.tensor([[0.5, -3.0, 0.5], [0.0, -0.5, 2.0]])
    content = {"module.fc.weight": torch.ones(2, 3), "module.fc.popup_scores": scores}
    path = tmp_path / "masked.pth.tar"
    torch.save({"state_dict": content}, path)
    for source in (path, str(path), content, {"state_dict": content}):
        masks = hydra_masks(source, 0.5)
        assert list(masks) == ["fc.weight"]
        # Three of 0.5 compete for one place; the last one stays.
        assert masks["fc.weight"].tolist() == [[False, True, False], [False, True, True]]
    assert hydra_masks(content, 1.0)["fc.weight"].all()
    # 6 - int(0.99 * 6) = 1 stays, never none.
    assert hydra_masks(content, 0.01)["fc.weight"].nonzero().tolist() == [[0, 1]]


def test_rounding_is_that_of_the_authors():
    kept = hydra_masks({"fc.popup_scores": torch.rand(10, 256), "a.popup_scores": torch.rand(10)}, 0.01)
    assert {name: int(mask.sum()) for name, mask in kept.items()} == {"fc.weight": 26, "a.weight": 1}


@pytest.mark.parametrize("k", [0, -0.1, 1.1, float("nan")])
def test_a_kept_fraction_out_of_range_is_refused(k):
    with pytest.raises(SpecError, match=f"k is {k}; give the kept fraction"):
        hydra_masks({"a.popup_scores": torch.rand(10)}, k)


def test_a_dense_checkpoint_has_no_masks(state, tmp_path):
    path = tmp_path / "dense.safetensors"
    save_file(state, path)
    for source, where in [(state, "the state dict"), (path, re.escape(str(path)))]:
        with pytest.raises(CheckpointError, match=f"{where} holds no 'popup_scores': it is dense; load it as weights"):
            hydra_masks(source, 0.1)


@pytest.mark.parametrize("model", [digits, normalized])
def test_a_checkpoint_of_the_authors_says_that_it_is_masked_and_is_loaded_so(state, tmp_path, model):
    """Their files hold dense weights and scores, and no word on how many count."""
    layers = [name.removesuffix(".weight") for name, tensor in state.items() if tensor.dim() > 1]
    scores = {f"module.{layer}.popup_scores": torch.randn_like(state[f"{layer}.weight"]) for layer in layers}
    path = tmp_path / "authors.pth.tar"
    torch.save({"state_dict": prefixed(state, "module.") | scores}, path)
    unsaid = model()
    before = {name: tensor.clone() for name, tensor in unsaid.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"holds scores of the HYDRA authors' code.*`net\.keep=0\.1` .*or 1 for"):
        load_weights(unsaid, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in unsaid.state_dict().items())
    for keep in (0.25, 1):
        load_weights(loaded := model(), path, keep)
        bare = loaded.net if model is normalized else loaded
        for layer in layers:
            weight, size = bare.get_parameter(f"{layer}.weight"), scores[f"module.{layer}.popup_scores"].abs()
            kept = weight != 0
            assert int(kept.sum()) == weight.numel() - int((1 - keep) * weight.numel())
            assert keep == 1 or size[kept].min() > size[~kept].max()
            assert torch.equal(weight[kept], state[f"{layer}.weight"][kept])
    with pytest.raises(SpecError, match="k is 2; give the kept fraction"):
        load_weights(unsaid, path, 2)
