"""A benchmark folder for verifiers, read back by a parser of its own."""

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

import hydraprune as hp
from hydraprune.attacks.gradient import cross_entropy_of, pgd
from hydraprune.deploy.opened import opened
from hydraprune.deploy.vnncomp import VnnCompFormat
from hydraprune.runs.checkpoint import save
from hydraprune.runs.meta import Meta
from misuse import refused

EPS = 0.06
COUNT = 12


@pytest.fixture(scope="module")
def folder(trained, digits, tmp_path_factory):
    path = tmp_path_factory.mktemp("vnncomp") / "benchmark"
    hp.export(trained, path, {"kind": "vnncomp", "instances": COUNT, "timeout": 90}, data=digits)
    return path


class Property:
    """What a file of VNN-LIB says: declared names, ends of inputs, and the alternatives about outputs."""

    def __init__(self, text):
        tokens = re.findall(r"[()]|[^\s()]+", re.sub(r";.*", "", text))
        self.names, self.ends, self.either = [], {}, None
        for statement in self.parsed(iter(tokens)):
            if statement[0] == "declare-const":
                assert statement[2] == "Real"
                self.names.append(statement[1])
                continue
            assert statement[0] == "assert"
            (kind, *parts) = statement[1]
            if kind == "or":
                assert self.either is None
                self.either = [[(left, right) for _, left, right in both[1:]] for both in parts]
                assert all(both[0] == "and" and {op for op, _, _ in both[1:]} == {">="} for both in parts)
            else:
                self.ends[parts[0], kind] = np.float32(parts[1])

    def parsed(self, tokens):
        found = []
        for token in tokens:
            if token == "(":
                found.append(self.parsed(tokens))
            elif token == ")":
                return found
            else:
                found.append(token)
        return found

    def box(self):
        inputs = [name for name in self.names if name.startswith("X_")]
        assert inputs == [f"X_{i}" for i in range(len(inputs))]
        return tuple(np.array([self.ends[name, kind] for name in inputs]) for kind in (">=", "<="))

    def satisfied(self, image, logits):
        lower, upper = self.box()
        value = {f"Y_{k}": logit for k, logit in enumerate(logits)}
        inside = bool(((lower <= image) & (image <= upper)).all())
        return inside and any(all(value[left] >= value[right] for left, right in both) for both in self.either)


def instances(folder, count=COUNT):
    with (folder / "instances.csv").open() as file:
        rows = list(csv.reader(file))
    assert len(rows) == count
    for network, name, timeout in rows:
        assert (folder / network).is_file()
        assert timeout == "90"
        yield int(re.fullmatch(r"vnnlib/image_(\d+)\.vnnlib", name)[1]), Property((folder / name).read_text())


@pytest.fixture(scope="module")
def pool(folder):
    with np.load(folder / "images.npz", allow_pickle=False) as file:
        return torch.from_numpy(file["images"]).float() / 255, torch.from_numpy(file["labels"])


def test_images_are_test_images_that_are_classified_correctly(pool, source, test_pair):
    x, y = pool
    assert len(x) == 4 * COUNT
    right = source.network(test_pair[0]).argmax(1) == test_pair[1]
    assert torch.equal(x, test_pair[0][right][: len(x)])
    assert torch.equal(y, test_pair[1][right][: len(x)])


def test_properties_are_the_balls_of_the_threat_and_any_other_class(folder, pool):
    x, y = pool
    seen = set()
    for number, said in instances(folder):
        box = hp.ThreatModel(norm="linf", eps=EPS).box(x[number])
        for said_end, end in zip(said.box(), box, strict=True):
            assert torch.equal(torch.from_numpy(said_end), end.flatten())
        label = int(y[number])
        others = [[(f"Y_{k}", f"Y_{label}")] for k in range(10) if k != label]
        assert said.either == others
        assert said.names[-10:] == [f"Y_{k}" for k in range(10)]
        assert len(said.names) == 64 + 10
        seen.add(number)
    assert len(seen) == COUNT


@pytest.mark.parametrize("eps", [EPS, 0.2])
def test_proofs_and_counterexamples_agree_with_the_formulas(eps, source, pool, tmp_path):
    """What is proved has no counterexample in its box, and one that PGD finds satisfies the formula."""
    threat = hp.ThreatModel(norm="linf", eps=eps)
    checkpoint = replace(source.checkpoint, meta=source.checkpoint.meta.model_copy(update={"threat": threat}))
    folder = tmp_path / "benchmark"
    VnnCompFormat(instances=10, timeout=90).write(replace(source, checkpoint=checkpoint), folder)
    chosen = list(instances(folder, 10))
    x, y = (part[[number for number, _ in chosen]] for part in pool)
    proved = [record.verified for record in hp.verify(source.network, (x, y), threat).records]
    rng = torch.Generator().manual_seed(0)
    worst = pgd(source.network, x, threat, cross_entropy_of(y), steps=40, start="uniform", rng=rng)
    session = onnxruntime.InferenceSession(next(folder.glob("onnx/*.onnx")), providers=["CPUExecutionProvider"])
    broken = []
    for (_, said), image, label, sure in zip(chosen, worst, y, proved, strict=True):
        lower, upper = (torch.from_numpy(end).view(1, 8, 8) for end in said.box())
        image = image.clamp(lower, upper)
        (logits,) = session.run(None, {"images": image[None].numpy()})
        fooled = logits[0].argmax() != int(label)
        assert not (sure and fooled)
        assert said.satisfied(image.flatten().numpy(), logits[0]) == fooled
        broken.append(fooled)
    assert any(proved if eps == EPS else broken)


def test_the_generator_needs_numpy_alone_and_follows_its_seed(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "there")
    there = tmp_path / "there"

    def drawn(seed):
        code = (
            "import runpy, sys; sys.modules.update(torch=None, hydraprune=None);"
            f"sys.argv = ['generate_properties.py', '{seed}'];"
            f"runpy.run_path({str(there / 'generate_properties.py')!r}, run_name='__main__')"
        )
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
        made = sorted(there.glob("vnnlib/*.vnnlib"))
        return {file.name: file.read_bytes() for file in [*made, there / "instances.csv"]}

    first = drawn(0)
    assert first == {
        file.name: file.read_bytes() for file in [*folder.glob("vnnlib/*.vnnlib"), folder / "instances.csv"]
    }
    other = drawn(7)
    assert other.keys() != first.keys()
    assert len(other) == COUNT + 1
    assert drawn(7) == other


def test_the_folder_is_opened_as_its_network(folder, source, test_pair):
    x = test_pair[0][:5]
    with torch.no_grad():
        assert torch.allclose(opened(folder)(x), source.network(x), atol=1e-5)
    assert json.loads((folder / "benchmark.json").read_text())["eps"] == EPS
    assert "onnx/cnn_digits.onnx" in (folder / "README.md").read_text()


def test_what_gives_no_boxes_or_too_few_images_is_refused(source, digits, tmp_path):
    meta = Meta(net=source.checkpoint.meta.net, num_classes=10, in_channels=1, image_size=8)
    for threat, told in ((None, "is None"), (hp.ThreatModel(norm="l2", eps=0.5), "is l2")):
        save(tmp_path / "net", source.network, meta.model_copy(update={"threat": threat}))
        with refused(f"format 'vnncomp' writes boxes, and the checkpoint's threat {told}"):
            hp.export(tmp_path / "net", tmp_path / "out", "vnncomp", data=digits)
    save(tmp_path / "net", source.network, source.checkpoint.meta)
    with refused("format 'vnncomp' is made of test images; give `data=`"):
        hp.export(tmp_path / "net", tmp_path / "out", "vnncomp")
    with refused("test images are classified correctly, which is fewer than 1000 instances"):
        hp.export(tmp_path / "net", tmp_path / "out", {"kind": "vnncomp", "instances": 1000}, data=digits)
