"""Foreign checkpoints that were changed at random, and what an import of one must come to."""

import io
import json
import pickle
import random
import struct
import zipfile

import torch
from safetensors.torch import load_file, save

import hydraprune as hp
from hydraprune.core.errors import HydrapruneError
from hydraprune.runs.checkpoint import open_checkpoint

NET = {"kind": "cnn_digits"}
SIZES = {"num_classes": 10, "in_channels": 1, "image_size": 8}
DTYPES = ["F32", "F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E5M2", "C64", "X"]
NUMBERS = [0, 1, -1, 2, 255, 2**31 - 1, 2**32, 2**40, 2**62, 2**63, 10**30]


def originals():
    """Kind of file -> content: a plain state dict, and one with scores, as each program writes it."""
    torch.manual_seed(0)
    state = hp.Net(**NET).build(10, 1, 8).state_dict()
    layers = [name.removesuffix(".weight") for name, tensor in state.items() if tensor.dim() > 1]
    scores = {f"{layer}.popup_scores": torch.randn_like(state[f"{layer}.weight"]) for layer in layers}
    rates = {f"{layer}.k_score": torch.randn(()) for layer in layers}
    found = {}
    for name, content in {"plain": state, "hydra": state | scores, "harp": state | scores | rates}.items():
        found[f"{name}.safetensors"] = save(content)
        for suffix, zipped in (("pth", True), ("pt", False)):
            stream = io.BytesIO()
            torch.save({"epoch": 3, "state_dict": content}, stream, _use_new_zipfile_serialization=zipped)
            found[f"{name}.{suffix}"] = stream.getvalue()
    return found


def mutant(name, content, rng):
    """The content of a file, changed in one of many ways."""
    ways = [flipped, flipped, cut, doubled, blanked]
    own = {"safetensors": relabelled, "pth": repickled, "pt": flipped_head}[name.partition(".")[2]]
    return rng.choice([*ways, own, own, own])(content, rng)


def flipped(content, rng, end=None):
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        changed[rng.randrange(end or len(changed))] = rng.randrange(256)
    return bytes(changed)


def flipped_head(content, rng):
    return flipped(content, rng, 4000)


def cut(content, rng):
    return content[: rng.randrange(len(content))]


def doubled(content, rng):
    begin, end = sorted(rng.randrange(len(content)) for _ in range(2))
    at = rng.randrange(len(content))
    return content[:at] + content[begin : min(end, begin + 5000)] + content[at:]


def blanked(content, rng):
    begin = rng.randrange(len(content))
    length = rng.choice([1, 8, 100, 10_000])
    return content[:begin] + bytes(min(length, len(content) - begin)) + content[begin + length :]


def relabelled(content, rng):
    """Another header over the same numbers: entries swapped, and shapes, types and places that lie."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    for _ in range(rng.choice([1, 1, 2])):
        one, other = rng.sample([key for key in header if key != "__metadata__"], 2)
        what = rng.choice(["swap", "shape", "dtype", "offsets", "rename", "drop", "more"])
        if what == "swap":
            header[one], header[other] = header[other], header[one]
        elif what == "shape":
            header[one]["shape"] = [rng.choice(NUMBERS) for _ in range(rng.randrange(5))]
        elif what == "dtype":
            header[one]["dtype"] = rng.choice(DTYPES)
        elif what == "offsets":
            header[one]["data_offsets"] = [rng.choice([*NUMBERS, 64]), rng.choice([*NUMBERS, 128])]
        elif what == "rename":
            header[rng.choice(["module." + one, one.upper(), "", "mu", "x" * 1000, other])] = header.pop(one)
        elif what == "drop":
            del header[one]
        else:
            header[rng.choice(["mu", "sigma", "0.k_score", "layer8.weight", "mean"])] = header[one]
        if len(header) < 3:
            break
    text = json.dumps(header).encode()
    size = rng.choice([len(text)] * 9 + [0, 2**40, 2**63])
    return struct.pack("<Q", size) + text + content[8 + length :]


def repickled(content, rng):
    """An archive whose pickle or records were changed, with right checksums."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(out, "w") as target:
        entries = source.infolist()
        victim = rng.choice([entry.filename for entry in entries if entry.file_size] + ["archive/data.pkl"] * 20)
        for entry in entries:
            held = source.read(entry)
            hit = entry.filename == victim or (victim.endswith("data.pkl") and entry.filename.endswith("data.pkl"))
            if hit:
                held = rng.choice([flipped, flipped, cut, doubled, blanked])(held, rng)
            target.writestr(entry.filename, held, rng.choice([0] * 30 + [8]))
    return out.getvalue()


def outcome(path, folder, layout="auto"):
    """What an import comes to: the error that a user sees, or None where the network is that of the file.

    An AssertionError says what is wrong with the import.
    """
    found = error = None
    try:
        found = hp.import_checkpoint(path, folder, NET, layout=layout, keep=0.3, **SIZES)
    except HydrapruneError as told:
        error = told
    if found is None:
        assert "\n" not in str(error)
        assert not (folder / "checkpoint.json").exists()
        return error
    held = open_checkpoint(folder)
    assert all(bool(tensor.isfinite().all()) for tensor in held.values.values())
    try:
        theirs = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    except (TypeError, pickle.UnpicklingError):  # it names an object, so torch alone does not read it
        return None
    while "state_dict" in theirs:
        theirs = theirs["state_dict"]
    theirs = {name.removeprefix("module."): tensor for name, tensor in theirs.items()}
    for name, tensor in held.values.items():
        own = theirs.get(name, torch.zeros(()))  # a counter of batches may be missing
        kept = held.masks.get(name, torch.ones((), dtype=torch.bool))
        assert torch.equal(tensor, torch.where(kept, own.to(tensor.dtype), 0)), name
    if found.meta.origin["layout"] == "hydra":
        for name, mask in held.masks.items():
            score = theirs[name.replace("weight", "popup_scores")].float().abs().flatten().tolist()
            removed = sorted(range(len(score)), key=lambda i: (score[i], i))[: int((1 - 0.3) * len(score))]
            assert set((~mask.flatten()).nonzero().flatten().tolist()) == set(removed), name
    return None


def cases(seed, count):
    """File name and content of each mutant."""
    rng, whole = random.Random(seed), originals()
    for _ in range(count):
        name = rng.choice([*whole])
        yield name, mutant(name, whole[name], rng)
