"""What later commands measured joins a run's own records, unless it is of other weights or another threat model."""

import json
import shutil

import pytest

from hydraprune.core.errors import CheckpointError
from hydraprune.core.files import write_json
from hydraprune.core.threat import ThreatModel
from hydraprune.report import rows
from hydraprune.report.experiment import settings_of
from hydraprune.runs.folder import find_runs, measured
from report.folders import elsewhere, recipe, record, write_run


@pytest.fixture
def run(tmp_path):
    """A run with one pruned network."""
    return write_run(tmp_path / "run", recipe(), beside=False)


def later(place, robust, file="evaluation", **more):
    write_json(place / f"{file}.json", record(place.name, "hydra", 36, 0.5, 0) | {"robust_accuracy": robust} | more)


def figures(run, stage="prune"):
    (row,) = (row for row in rows([run]) if row.stage == stage)
    return {name: (round(f.mean, 6), f.samples) for name, f in row.figures.items()}


def on_page(run, stage="prune"):
    (found,) = find_runs([run])
    (network,) = (n for n in found.networks if n.stage == stage)
    return network.known and dict(network.known.robust_accuracy), found.problems


OWN = {"clean": (0.6, 80), "pgd-50x10": (0.18, 80)}


@pytest.mark.parametrize("network", ["hydra 0.9 0", None])
def test_attacks_measured_later_on_the_same_network_are_columns(run, network):
    later(run / "prune", {"autoattack": 0.125, "square": 0.25}, robust_samples={"square": 8}, network=network)
    assert figures(run) == OWN | {"autoattack": (0.125, 80), "square": (0.25, 8)}
    assert on_page(run) == ({"pgd-50x10": pytest.approx(0.18), "autoattack": 0.125, "square": 0.25}, [])


def test_what_was_measured_of_other_weights_is_left_out(run):
    place = run / "prune"
    later(place, {"autoattack": 0.125}, network="old")
    later(place / "linf-0.2", {"autoattack": 0.1}, network="old", threat={"norm": "linf", "eps": 0.2})
    assert figures(run) == OWN
    told: list[str] = []
    assert not measured(run, told.append)["prune"].others
    assert [text.split(" left out: ")[0] for text in told] == [
        f"{run}: prune/evaluation.json", f"{run}: prune/linf-0.2/evaluation.json",
    ]  # fmt: skip
    robust, problems = on_page(run)
    assert robust == {"pgd-50x10": pytest.approx(0.18)}
    assert [text.split(" left out: ")[0] for text in problems] == [
        "prune/evaluation.json", "prune/linf-0.2/evaluation.json",
    ]  # fmt: skip
    assert all("other weights than the checkpoint's; measure again, or remove it" in text for text in problems)


def test_a_run_whose_own_records_are_of_other_weights(run):
    """A stage that was trained anew: what is known of the weights that are there stays."""
    values = [one | {"network": "old"} for one in json.loads((run / "results.json").read_text())]
    write_json(run / "results.json", values)
    later(run / "prune", {"autoattack": 0.125}, network="hydra 0.9 0")
    told: list[str] = []
    assert [row.stage for row in rows([run], told.append)] == ["prune"]
    assert [text.partition(" left out")[0] for text in told] == [
        f"{run}: results.json: {stage}" for stage in ("pretrain", "prune")
    ]
    assert figures(run) == {"clean": (0.5, 80), "autoattack": (0.125, 80)}
    robust, problems = on_page(run)
    assert robust == {"autoattack": 0.125}
    assert "results.json: pretrain left out: it was measured on other weights; run the recipe again" in problems


def test_other_threat_models_are_kept_apart(run):
    place = run / "prune"
    elsewhere(place, record("prune", "hydra", 36, 0.6, 0), 0.2, 0.05)
    bound = {"samples": 9, "precision": "float32", "clean_accuracy": 0.6, "verified_accuracy": 0.25}
    wide = {"norm": "linf", "eps": 0.2}
    later(place / "linf-0.2", {}, "verification", verified={"ibp": bound}, threat=wide)
    assert figures(run) == OWN
    found = measured(run)["prune"].others
    assert found.keys() == {ThreatModel(eps=0.2)}
    assert found[ThreatModel(eps=0.2)].robust_accuracy == {"pgd-50x10": 0.05}
    assert found[ThreatModel(eps=0.2)].verified["ibp"].verified_accuracy == 0.25
    (page,) = find_runs([run])
    assert [n.others for n in page.networks if n.others] == [found]


def test_a_network_without_a_recipes_threat_may_have_several_beside_it(run):
    """Without a threat of its own, all evaluations of a network lie beside it."""
    (run / "results.json").unlink()
    later(run / "prune", {"fgsm": 0.25}, threat={"norm": "l2", "eps": 1.0})
    later(run / "prune", {}, "verification", threat={"norm": "linf", "eps": 0.1})
    found = measured(run)["prune"]
    assert (found.record.threat, list(found.others)) == (ThreatModel(norm="l2", eps=1.0), [ThreatModel(eps=0.1)])


def test_a_network_that_met_other_threat_models_only_is_on_the_page_with_its_clean_accuracy(run):
    (run / "results.json").unlink()
    elsewhere(run / "pretrain", record("pretrain", None, 360, 0.9, 0), 0.2, 0.3)
    assert rows([run]) == []
    (setting,) = settings_of(find_runs([run]))
    (entry,) = setting.variants
    assert {name: f.mean for name, f in entry.row.figures.items()} == {"clean": 0.9}
    robust, problems = on_page(run, "pretrain")
    assert (robust, problems) == ({}, ["0 of 2 networks measured; it stands at epoch 2 of prune"])


def test_a_seed_that_met_other_threat_models_only_takes_no_figure_from_the_others(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "results.json").unlink()
    elsewhere(other / "pretrain", record("pretrain", None, 360, 0.9, 0), 0.2, 0.3)
    (setting,) = settings_of(find_runs([other, run]))
    assert setting.variants[0].row.figures.keys() == {"clean", "pgd-50x10"}
    assert [row.runs for row in rows([other, run])] == [1, 1]


def test_fewer_images_do_not_replace_more(run):
    later(run / "prune", {"pgd-50x10": 0.5, "fgsm": 0.75}, samples=8)
    assert figures(run) == OWN | {"fgsm": (0.75, 8)}


def test_a_file_that_is_damaged_stops_a_table_and_not_a_page(run):
    (run / "prune/evaluation.json").write_text('{"stage": "pru')
    with pytest.raises(CheckpointError, match=r"evaluation\.json is unreadable"):
        rows([run])
    robust, problems = on_page(run)
    assert robust == {"pgd-50x10": pytest.approx(0.18)}
    assert problems[0].startswith("prune/evaluation.json left out: ")


def test_a_later_attack_is_a_figure_only_where_all_seeds_met_it(tmp_path):
    runs = [write_run(tmp_path / f"seed{seed}", recipe(seed=seed), beside=False) for seed in range(2)]
    for number, run in enumerate(runs):
        later(run / "pretrain", {"autoattack": 0.25 + number / 2})
    later(runs[0] / "prune", {"autoattack": 0.5})
    dense, pruned = rows(runs)
    assert dense.figures["autoattack"].values == [0.25, 0.75]
    assert pruned.figures.keys() == {"clean", "pgd-50x10"}
