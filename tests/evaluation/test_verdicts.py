"""Verdicts that are kept: joined later, and continued after a kill, they are those of one whole evaluation."""

import pytest
import torch

from attacks.trained import THREAT, digits
from hydraprune.attacks.fgsm import FGSM
from hydraprune.attacks.fmn import FMN
from hydraprune.attacks.pgd import PGD
from hydraprune.core.errors import CheckpointError, SpecError
from hydraprune.core.objective import Batch
from hydraprune.core.results import Record, Verified
from hydraprune.core.tensors import load_tensors, save_tensors
from hydraprune.evaluation import evaluate
from hydraprune.evaluation.verdicts import Origin, load, save

ATTACKS = [FGSM(), PGD(steps=3, restarts=2), FMN(steps=5)]
NAMES = [attack.name for attack in ATTACKS]


def batches(count=50, size=20):
    _, (x, y) = digits()
    return [Batch(a, b) for a, b in zip(x[:count].split(size), y[:count].split(size), strict=True)]


def run(attacks, data=None, **more):
    return evaluate(digits()[0], data or batches(), threat=THREAT, attacks=attacks, seed=4, **more)


def same(one, other):
    for group in ("survived", "distance"):
        mine, theirs = getattr(one, group), getattr(other, group)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    for name, example in one.example.items():
        assert all(torch.equal(value, other.example[name][key]) for key, value in example.items())
    return torch.equal(one.prediction, other.prediction) and torch.equal(one.confidence, other.confidence)


@pytest.fixture(scope="module")
def whole():
    return run(ATTACKS)


def test_the_file_gives_back_what_was_written(whole, tmp_path):
    made_from = Origin(network="n", images="i", made={"fgsm": "f"})
    save(tmp_path / "v", whole, made_from, examples=True)
    found, origin = load(tmp_path / "v")
    assert same(found, whole)
    assert (found.threat, found.seconds) == (THREAT, whole.seconds)
    assert origin == made_from
    save(tmp_path / "w", whole, Origin())
    assert load(tmp_path / "w")[0].example == {}


def test_the_union_is_that_of_brute_force(whole):
    net = digits()[0]
    expected = []
    for number, (x, y) in enumerate(batches()):
        union = net(x).argmax(1) == y
        right = union.nonzero().flatten()
        for attack in ATTACKS:
            rng = torch.Generator().manual_seed(4 + number)
            search = attack.closest if isinstance(attack, FMN) else attack.search
            found = search(net, x[right], y[right], THREAT, rng)
            fooled = (net(found).argmax(1) != y[right]) & (THREAT.distance(x[right], found) <= THREAT.eps * 1.000001)
            union[right[fooled]] = False
        expected.append(union)
    assert torch.equal(whole.worst_case, torch.cat(expected))
    assert 0 < whole.worst_case.sum() < whole.correct.sum()


def test_a_later_evaluation_joins_the_union(whole):
    first = run(ATTACKS[:1])
    later = run(ATTACKS[1:], known=first)
    assert same(later, whole)
    record = later.record(stage="s", pruner=None, kept=1, total=1, seed=4)
    assert record.robust_accuracy["worst-case"] == whole.worst_case.double().mean()


@pytest.mark.parametrize("step", range(1, 10))
def test_a_killed_evaluation_goes_on(whole, tmp_path, step):
    """Killed after any attack of any batch: nothing of what was done is done again, and nothing changes."""
    left, calls = [step], []

    def keep(found):
        save(tmp_path / "state", found, Origin(), examples=True)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ATTACKS, keep=keep)
    known, _ = load(tmp_path / "state")
    found = run(ATTACKS, known=known, keep=lambda found: calls.append(1))
    assert same(found, whole)
    assert len(calls) == 9 - step


def test_more_images_are_added_to_those_that_are_known(whole):
    few = run(ATTACKS, batches(20))
    assert same(run(ATTACKS, known=few), whole)
    assert same(run(ATTACKS, batches(20), known=whole), whole)


def test_batches_of_another_size_are_run_again_where_they_reach_beyond(whole):
    known = run(ATTACKS[:1], batches(30, 30))
    found = run(ATTACKS[:1], known=known)
    assert torch.equal(found.survived["fgsm"], whole.survived["fgsm"])


def test_verdicts_on_other_images_are_refused(whole):
    (batch,) = batches(20)
    with pytest.raises(SpecError, match="of other images"):
        run(ATTACKS, [Batch(batch.x, (batch.y + 1) % 10)], known=whole)


def test_examples_are_images_that_fell(whole):
    net = digits()[0]
    for name, example in whole.example.items():
        assert 0 < len(example["label"]) <= 12, name
        assert torch.equal(net(example["adversarial"]).argmax(1), example["adversarial_prediction"])
        assert torch.equal(net(example["image"]).argmax(1), example["prediction"])
        assert (example["prediction"] == example["label"]).all()
        assert (example["adversarial_prediction"] != example["label"]).all()
        assert THREAT.distance(example["image"], example["adversarial"]).max() <= THREAT.eps * (1 + 1e-5)


def record(robust, samples=10, **more):
    return Record(stage="s", sparsity=0, kept=1, total=1, clean_accuracy=samples / 100, robust_accuracy=robust,
                  samples=samples, seed=0, seconds=1, **more)  # fmt: skip


def test_joined_records_keep_the_union_only_where_it_is_known():
    both = record({"a": 0.5, "b": 0.6, "worst-case": 0.4})
    assert both.joined(record({})).robust_accuracy == both.robust_accuracy
    assert both.joined(record({"c": 0.1})).robust_accuracy == {"a": 0.5, "b": 0.6, "c": 0.1}
    every = record({"a": 0.5, "b": 0.6, "c": 0.1, "worst-case": 0.05})
    assert list(both.joined(every).robust_accuracy.items()) == list(every.robust_accuracy.items())
    assert record({"a": 0.5}).joined(record({"b": 0.2})).robust_accuracy == {"a": 0.5, "b": 0.2}


def test_joined_records_count_images():
    found = record({"a": 0.5}, 10, macs=3).joined(record({"b": 0.2}, 20, robust_samples={"b": 5}))
    assert (found.samples, found.clean_accuracy, found.macs, found.seconds) == (20, 0.2, 3, 2)
    assert found.robust_samples == {"a": 10, "b": 5}


def test_joined_records_prefer_what_was_found_on_more_images():
    many = record({"a": 0.5, "b": 0.6, "worst-case": 0.4}, 20)
    few = record({"a": 0.9, "b": 0.9, "c": 0.1, "worst-case": 0.05}, 5)
    for found in (many.joined(few), few.joined(many)):
        assert found.robust_accuracy == {"a": 0.5, "b": 0.6, "c": 0.1, "worst-case": 0.05}
        assert found.robust_samples == {"c": 5, "worst-case": 5}
    again = record({"a": 0.7, "b": 0.8, "worst-case": 0.6}, 20)
    assert many.joined(again).robust_accuracy == again.robust_accuracy
    assert many.joined(record({"a": 0.9}, 5)).robust_accuracy == many.robust_accuracy


def test_joined_proofs_prefer_more_images_and_the_threat_that_is_known():
    def proof(share, samples):
        bound = Verified(samples=samples, precision="float32", clean_accuracy=1, verified_accuracy=share)
        return record({}, verified={"ibp": bound, f"of {samples}": bound}, threat=THREAT)

    for found in (proof(0.5, 9).joined(proof(0.1, 3)), proof(0.1, 3).joined(proof(0.5, 9))):
        assert found.verified["ibp"].verified_accuracy == 0.5
        assert found.verified.keys() == {"ibp", "of 9", "of 3"}
    assert record({}).joined(proof(0.5, 9)).threat == THREAT


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": torch.zeros(49, dtype=torch.int64)}, "label is no torch.int64 for 50 images"),
        ({"prediction": torch.zeros(50)}, "prediction is no torch.int64"),
        ({"confidence": None}, "confidence is no torch.float32"),
        ({"survived/fgsm": torch.ones(51, dtype=torch.bool)}, "fgsm is no torch.bool for 50 images"),
        ({"survived/fgsm": torch.ones(50)}, "fgsm is no torch.bool"),
        ({"example/fgsm/image": None}, "the examples of fgsm are not"),
        ({"example/fgsm/label": torch.tensor(1)}, "the examples of fgsm are not"),
        ({"samples": "many"}, "samples"),
        ({"threat": {"norm": "l7", "eps": 1}}, "threat.norm"),
        ({"made": ["fgsm"]}, "made"),
        ({"seconds": None}, "seconds"),
    ],
)
def test_a_signed_file_with_odd_content_is_refused(whole, tmp_path, change, reason):
    path = tmp_path / "verdicts.safetensors"
    save(path, whole, Origin(made={"fgsm": "f"}), examples=True)
    tensors, meta = load_tensors(path)
    for key, value in change.items():
        place = meta if key in meta else tensors
        place[key] = value
    save_tensors(path, {name: value for name, value in tensors.items() if value is not None}, meta)
    with pytest.raises(CheckpointError, match=rf"verdicts.safetensors holds no verdicts \(.*{reason}.*found again"):
        load(path)
