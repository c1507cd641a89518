"""What strangers may send: nothing of it is run, nothing outside of its folder is read, and each thing is one error."""

import json
import re
import resource
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

import hydraprune as hp
from hydraprune.core.errors import CheckpointError, HydrapruneError
from hydraprune.core.files import read_json
from hydraprune.core.sealed import seal
from hydraprune.core.tensors import HEADER, load_tensors, pack_mask, save_tensors
from hydraprune.nets.cnn import cnn_digits
from hydraprune.runs.checkpoint import open_checkpoint
from hydraprune.runs.files import MASKS, META, MODEL
from hydraprune.runs.meta import Meta, sha256
from recipes.tiny import tiny

CANARY = "canary-in-the-mine"
SPEC = hp.Net(kind="cnn_digits")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A whole checkpoint of a pruned network. Not to be changed."""
    folder = tmp_path_factory.mktemp("original") / "finetune"
    model = SPEC.build(10, 1, 8)
    hp.prune(hp.MaskView(model), hp.Magnitude(), hp.ERK(sparsity=0.7))
    meta = Meta(net=SPEC, num_classes=10, in_channels=1, image_size=8, recipe=tiny().plain())
    hp.save(folder, model, meta)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "finetune")


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A module that leaves a file behind when it is imported or called; and that file."""
    mark = tmp_path / "sung"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "canary.py").write_text(
        f"from pathlib import Path\nfrom torch import nn\nPath({str(mark)!r}).touch()\n"
        "def sing(num_classes, width=8):\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield mark
    sys.modules.pop("canary", None)


def sign(folder, **entries):
    """Change entries of `checkpoint.json`, and make all digests right again."""
    sums = {"sha256": {name: sha256(folder / name) for name in (MODEL, MASKS)}}
    found = read_json(folder / META) | sums | entries
    (folder / META).write_text(json.dumps(found | {"digest": seal(found)}))


def refused(folder, reason, **settings):
    with pytest.raises(HydrapruneError, match=reason) as caught:
        hp.load(folder, **settings)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_the_corpus_starts_from_something_whole(folder):
    sign(folder)
    hp.load(folder)


NAMED = {"kind": "canary:sing", "options": {"width": 6}}


def test_a_factory_of_a_strangers_is_not_even_imported(folder, canary):
    sign(folder, net=NAMED)
    said = r"finetune would import and call canary:sing with options \{'width': 6\}; .*--trust-code, or trust_code=True"
    refused(folder, said)
    refused(folder, said, trust_code=False)
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(folder, trust_code=SPEC).network()
    assert not canary.exists()
    # A network that is given needs no factory.
    hp.load(folder, SPEC.build(10, 1, 8))
    assert not canary.exists()


def test_a_factory_that_is_trusted_is_called(tmp_path, canary):
    own = hp.Net.parse(NAMED, "net")
    model = own.build(10, 1, 8)
    hp.save(tmp_path / "own", model, Meta(net=own, num_classes=10, in_channels=1, image_size=8))
    for trust in (True, own):
        found = open_checkpoint(tmp_path / "own", trust_code=trust).network()
        assert torch.equal(found[1].weight, model[1].weight)
    assert hp.load(tmp_path / "own", trust_code=True)[1].net == own
    other = own.model_copy(update={"options": {"width": 7}})
    with pytest.raises(CheckpointError, match="would import and call"):
        open_checkpoint(tmp_path / "own", trust_code=other).network()


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        ({"kind": "os:system", "options": {"command": "touch sung"}}, "would import and call os:system"),
        ({"kind": "builtins:exec", "options": {}}, "would import and call builtins:exec"),
        ({"kind": "timm:hf-hub:timm/resnet18"}, "timm would read 'hf-hub:timm/resnet18' from elsewhere"),
        ({"kind": "timm:local-dir:/etc"}, "timm would read 'local-dir:/etc' from elsewhere"),
        ({"kind": "timm:resnet18", "options": {"checkpoint_path": "/etc/passwd"}}, "not take the option 'checkpoint_p"),
        ({"kind": "timm:resnet18", "options": {"pretrained": True}}, "not take the option 'pretrained'.*`weights:`"),
        ({"kind": "timm:resnet18", "options": {"pretrained_cfg": {"file": "x"}}}, "not take the option 'pretrained_cf"),
        ({"kind": "timm:resnet18", "options": {"model_name": "hf-hub:a/b"}}, "not take the option 'model_name'"),
        ({"kind": "timm:resnet18", "options": {"cache_dir": "/tmp"}}, "not take the option 'cache_dir'"),
        ({"kind": "timm:resnet18", "options": {"device": "cpu"}}, "not take the option 'device'"),
        ({"kind": "timm:resnet18.a:b"}, "from elsewhere"),
        ({"kind": "cnn_small"}, "does not fit cnn_small"),
        ({"kind": "cnn_digits", "options": {"num_classes": "many"}}, "num_classes: Input should be a valid int"),
        ({"kind": "cnn_digits", "options": {"width": 3}}, "has no option 'width'"),
        ({"kind": "cnn_digits", "options": {"num_classes": 10**12}}, "numbers up to 1e.12 in all; give at most 65536"),
        ({"kind": "cnn_digits", "options": {"image_size": 65536}}, "does not fit cnn_digits"),
        ({"kind": "timm:vit_tiny_patch16_224", "options": {"depth": 60_000}}, "has more than [0-9]+ parts"),
        ({"kind": "timm:resnet18", "options": {"layers": [65000] * 4}}, "numbers up to"),
        ({"kind": "timm:vit_tiny_patch16_224", "options": {"embed_dim": 60_000, "depth": 1}}, "does not fit timm:vit"),
        ({"kind": "timm:resnet18", "options": {"stem_width": float("1e300")}}, "numbers up to"),
        ({"kind": "cnn_digits", "weights": "/etc/passwd", "normalize": "cifar10"}, "normalize has 3 means"),
        ({"kind": "\ud800"}, "unknown net"),
    ],
)  # fmt: skip
def test_a_network_that_claims_too_much_is_refused(folder, tmp_path, monkeypatch, net, reason):
    monkeypatch.chdir(tmp_path)
    sign(folder, net=net)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder, reason)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # KiB; torch's and timm's import
    assert not (tmp_path / "sung").exists()


@pytest.mark.parametrize("entry", ["num_classes", "in_channels", "image_size"])
@pytest.mark.parametrize("value", [10**9, 10**12, 10**30, 0, -1])
def test_shapes_that_a_file_does_not_hold_take_no_memory(folder, entry, value):
    sign(folder, **{entry: value})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder, "does not fit cnn_digits|cannot be made|greater than or equal to 1|has been altered")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_buffers_that_no_file_holds_take_no_memory(tmp_path, monkeypatch):
    """They are not among the tensors that are compared."""
    model = SPEC.build(10, 1, 8)
    hp.save(tmp_path, model, Meta(net=SPEC, num_classes=10, in_channels=1, image_size=8))

    def wide(num_classes, in_channels, image_size):
        net = cnn_digits(num_classes, in_channels, image_size)
        net[0].register_buffer("table", torch.zeros(10**10), persistent=False)
        return net

    monkeypatch.setattr("hydraprune.nets.cnn.cnn_digits", wide)
    refused(tmp_path, "that takes far more memory than its file")


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"sha256": {}}, "sha256 must name model.safetensors and masks.safetensors, and nothing else"),
        ({"sha256": {"/etc/hostname": "0"}}, "sha256 must name"),
        ({"sha256": {MODEL: "0", MASKS: "0", "../../x": "0"}}, "sha256 must name"),
        ({"sha256": {MODEL: "0", MASKS: "0"}}, "its checksum is not the one in checkpoint.json"),
        ({"sha256": [MODEL]}, "sha256: Input should be a valid dictionary"),
        ({"kept": 28}, "not as sparse as checkpoint.json says"),
        ({"total": 10**6}, "not as sparse"),
        ({"sparsity": 0.99}, "not as sparse"),
        ({"layers": {}}, "its mask for '0.weight' is not that of a weight"),
        ({"net": None}, r"does not say which network it holds; pass it: load\(folder, model\)"),
        ({"recipe": [1]}, "recipe: Input should be a valid dictionary"),
        ({"extends": "/etc/passwd"}, "unknown key 'extends'"),
    ],
)
def test_what_is_said_of_the_tensors_is_checked(folder, entries, reason):
    sign(folder, **entries)
    refused(folder, reason)


def test_an_unsigned_change_is_noticed_wherever_it_is(folder):
    whole = json.loads((folder / META).read_text())
    for name in whole:
        (folder / META).write_text(json.dumps(whole | {name: "x"}))
        refused(folder, r"checkpoint\.json is .*altered: its digest is not that of its entries\); restore it")
    (folder / META).write_text(json.dumps({k: v for k, v in whole.items() if k != "digest"}))
    refused(
        folder,
        r"checkpoint\.json is .*\(it has no digest: it is of an earlier version, or was altered\); restore it or",
    )


def test_the_digest_can_be_made_without_the_package(folder):
    """As the docstring of the module says."""
    import hashlib

    entries = json.loads((folder / META).read_text())
    digest = entries.pop("digest")
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def masks_of(folder, change, shapes=None):
    bits, header = load_tensors(folder / MASKS)
    bits = change(dict(bits)) or bits
    save_tensors(folder / MASKS, bits, header if shapes is None else {"shapes": header["shapes"] | shapes})
    sign(folder)


def renamed(bits):
    bits["nothing.weight"] = bits.pop("0.weight")
    return bits


def without(bits):
    return {name: value for name, value in bits.items() if name != "3.weight"}


MASK_DEFECTS = {
    "another name": (renamed, None, "does not give a shape for each of its masks"),
    "one more": (lambda bits: bits | {"1.weight": bits["0.weight"][:2]}, {"1.weight": [16]}, "not that of a weight"),
    "one less": (without, None, "does not give a shape for each"),
    "floats": (lambda bits: bits | {"0.weight": bits["0.weight"].float()}, None, "does not fit a weight of shape"),
    "too few bits": (lambda bits: bits | {"0.weight": bits["0.weight"][:-1]}, None, "does not fit a weight of shape"),
    "another shape": (lambda bits: None, {"0.weight": [144, 1, 1, 1]}, "its mask for '0.weight' is not that"),
    "huge": (lambda bits: None, {"0.weight": [2**62, 4]}, "does not fit a weight of shape"),
    "overflowing": (lambda bits: None, {"0.weight": [2**32, 2**32, 144]}, "does not fit a weight of shape"),
    "negative": (lambda bits: None, {"0.weight": [-16, -1, 3, 3]}, "a mask cannot have the shape"),
    "fractions": (lambda bits: None, {"0.weight": [16.0, 1, 3, 3]}, "a mask cannot have the shape"),
    "words": (lambda bits: None, {"0.weight": ["16", 1, 3, 3]}, "a mask cannot have the shape"),
    "no list": (lambda bits: None, {"0.weight": "144"}, "does not give a shape for each"),
    "booleans": (lambda bits: None, {"0.weight": [True, 144]}, "a mask cannot have the shape"),
}  # fmt: skip


@pytest.mark.parametrize("defect", MASK_DEFECTS)
def test_masks_that_are_signed_but_odd(folder, defect):
    change, shapes, reason = MASK_DEFECTS[defect]
    masks_of(folder, change, shapes)
    refused(folder, reason)


@pytest.mark.parametrize("header", [{}, {"shapes": None}, {"shapes": [1]}, {"shapes": {}}])
def test_a_header_without_shapes(folder, header):
    save_tensors(folder / MASKS, load_tensors(folder / MASKS)[0], header)
    sign(folder)
    refused(folder, "does not give a shape for each of its masks")


def test_weights_that_their_mask_removes_are_zero(folder):
    values, _ = load_tensors(folder / MODEL)
    values["9.weight"] = values["9.weight"] + 1
    save_tensors(folder / MODEL, values, {})
    sign(folder)
    refused(folder, "weights of '9.weight' that its mask removes are not zero")


def test_a_mask_on_what_is_not_prunable(folder):
    """All of it signed, and the counts made right."""
    values, _ = load_tensors(folder / MODEL)
    values["12.weight2"] = torch.zeros(2, 2)
    save_tensors(folder / MODEL, values, {})
    everything = pack_mask(torch.ones(2, 2, dtype=torch.bool))
    masks_of(folder, lambda bits: bits | {"12.weight2": everything}, {"12.weight2": [2, 2]})
    meta = read_json(folder / META)
    layers = meta["layers"] | {"12.weight2": [4, 4]}
    kept, total = meta["kept"] + 4, meta["total"] + 4
    sign(folder, layers=layers, kept=kept, total=total, sparsity=1 - kept / total)
    refused(folder, "does not fit cnn_digits: it has 12.weight2, which the network lacks")


def test_a_prunable_layer_that_is_not_counted(folder):
    bits, header = load_tensors(folder / MASKS)
    shapes = header["shapes"]
    del bits["0.weight"], shapes["0.weight"]
    save_tensors(folder / MASKS, bits, {"shapes": shapes})
    layers = read_json(folder / META)["layers"]
    del layers["0.weight"]
    kept, total = (sum(column) for column in zip(*layers.values(), strict=True))
    sign(folder, layers=layers, kept=kept, total=total, sparsity=1 - kept / total)
    refused(folder, r"does not fit Sequential: '0\.weight' is prunable in one of them only")


def test_tensors_of_other_kinds(folder):
    values, _ = load_tensors(folder / MODEL)
    for kind in (torch.int32, torch.complex64, torch.bool):
        save_tensors(folder / MODEL, values | {"0.weight": values["0.weight"].to(kind)}, {})
        sign(folder)
        refused(folder, r"does not fit cnn_digits: 0\.weight is torch\.\w+ there|removes are not zero")


def raw(header, body=b""):
    return len(header).to_bytes(8, "little") + header + body


FILES = {
    "a huge header": (2**62).to_bytes(8, "little") + b"{}",
    "a header longer than the file": (10**6).to_bytes(8, "little") + b"{}",
    "deep nesting": raw(b'{"a":' * 50_000),
    "a deep entry": to_bytes({}, {HEADER: '["0", ' + json.dumps("[" * 100_000) + "]"}),
    "an entry that is no list": to_bytes({}, {HEADER: "3"}),
    "an entry of numbers": to_bytes({}, {HEADER: "[1, 2]"}),
    "no entry": to_bytes({"a": torch.zeros(2)}, {}),
    "offsets beyond the end": raw(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}', b"\0" * 4),
    "shapes that overflow": raw(b'{"a":{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,4]}}', bytes(4)),
    "nothing": b"",
}  # fmt: skip


@pytest.mark.parametrize("content", FILES)
@pytest.mark.parametrize("name", [MODEL, MASKS])
def test_files_of_tensors_that_are_hostile(folder, name, content):
    (folder / name).write_bytes(FILES[content])
    sign(folder)
    refused(folder, rf"{name} (is corrupt or truncated|has been altered|is no hydraprune checkpoint)")


TEXTS = {
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "as deep as a reader bears": b'{"a":' * 100 + b"1" + b"}" * 100,
    "a long number": b'{"kept": ' + b"9" * 10_000 + b"}",
    "no UTF-8": b'{"net": "\xff"}',
    "a list": b"[]",
    "a word": b'"net"',
    "not a number": b'{"digest": NaN}',
}


@pytest.mark.parametrize("text", TEXTS)
def test_descriptions_that_are_hostile(folder, text):
    (folder / META).write_bytes(TEXTS[text])
    refused(folder, r"checkpoint\.json (is unreadable|has been altered|has no digest)")


@pytest.mark.parametrize("name", [META, MODEL, MASKS])
def test_links_that_lead_outside_are_not_followed(folder, tmp_path, name):
    (tmp_path / "elsewhere").mkdir()
    shutil.move(folder / name, tmp_path / "elsewhere" / name)
    (folder / name).symlink_to(tmp_path / "elsewhere" / name)
    refused(folder, rf"{name} leads outside of .*finetune, so it is not read; put the file itself there")
    (folder / name).unlink()
    (folder / name).symlink_to(folder / name)
    refused(folder, "holds no finished checkpoint|leads outside")


def test_links_that_stay_inside_and_to_the_folder_are_followed(folder, tmp_path):
    shutil.move(folder / MODEL, folder / "large")
    (folder / MODEL).symlink_to("large")
    (tmp_path / "link").symlink_to(folder)
    hp.load(tmp_path / "link")


def test_a_file_that_is_none(folder):
    import os

    (folder / MODEL).unlink()
    os.mkfifo(folder / MODEL)  # reading it would wait for ever
    refused(folder, r"model\.safetensors is missing")


def test_nothing_that_a_checkpoint_names_is_read(folder, tmp_path):
    """Neither the weights that training started from, nor its data."""
    (tmp_path / "secret").write_text(CANARY)
    sign(folder, net=SPEC.plain() | {"weights": str(tmp_path / "secret"), "init": "fast-certified"})
    found, _ = hp.load(folder)
    assert torch.equal(found.state_dict()["1.weight"], load_file(folder / MODEL)["1.weight"])


def test_random_bytes_of_a_description(folder):
    """None of them is more than one clear error."""
    whole = (folder / META).read_bytes()
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        place, value = (int(torch.randint(high, (), generator=generator)) for high in (len(whole), 256))
        damaged = bytearray(whole)
        damaged[place] = value
        (folder / META).write_bytes(damaged)
        if json.loads(whole) != _parsed(damaged):
            refused(folder, re.escape(META))


def _parsed(content):
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
