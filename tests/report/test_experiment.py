"""Which runs belong together, and how their networks are told apart."""

import pytest
import yaml
from scipy.stats import binomtest

from hydraprune.core.files import write_json
from hydraprune.report.experiment import adversary, rows, settings_of
from hydraprune.report.overview import results
from hydraprune.report.spread import interval
from hydraprune.runs.folder import find_runs
from report.folders import cell, recipe, record, write_run, write_study


def runs(folder, *recipes, records=None):
    """A run folder for each recipe, of a dense network and one that hydra pruned."""
    records = records or [record("pretrain", None, 360, 0.9, 0.6), record("prune", "hydra", 36, 0.8, 0.5)]
    for number, values in enumerate(recipes):
        (folder / f"run{number}").mkdir()
        (folder / f"run{number}" / "recipe.yaml").write_text(yaml.safe_dump(values))
        write_json(folder / f"run{number}" / "results.json", records)
    return find_runs([folder])


def pruned(budget, sparsity=0.9, **more):
    stage = {
        "kind": "fit",
        "name": "prune",
        "pruner": {"kind": "hydra"},
        "budget": {"kind": budget, "sparsity": sparsity},
    }
    return recipe(stages=[{"kind": "fit", "name": "pretrain"}, stage], **more)


def test_seeds_are_one_experiment_whatever_machine_and_evaluation(tmp_path):
    later = recipe(seed=1, trainer={"device": "cuda"})
    later["stages"] = [*later["stages"], {"kind": "evaluate", "name": "more", "attacks": []}]
    (setting,) = settings_of(runs(tmp_path, recipe(), later))
    (experiment,) = setting.experiments
    assert [run.path.name for run in experiment.runs] == ["run0", "run1"]
    assert [(variant.name, len(variant.seeds)) for variant in setting.variants] == [("dense", 2), ("hydra 90 %", 2)]
    assert (setting.heading, setting.variants[1].title) == ("", "hydra 90 %")


def test_other_settings_are_other_experiments_and_other_adversaries_are_not_compared(tmp_path):
    wider = {"norm": "linf", "eps": 0.1}
    found = settings_of(runs(tmp_path, pruned("uniform"), pruned("erk"), pruned("uniform", threat=wider)))
    assert [setting.heading for setting in found] == [
        "cnn_digits · digits · trades · ℓ∞ 8/255", "cnn_digits · digits · trades · ℓ∞ 0.1",
    ]  # fmt: skip
    assert [experiment.name for experiment in found[0].experiments] == [
        "tiny (stages.1.budget.kind uniform, threat.eps 0.03137254901960784)",
        "tiny (stages.1.budget.kind erk, threat.eps 0.03137254901960784)",
    ]


def test_networks_of_one_pruner_and_sparsity_are_told_apart_by_what_differs(tmp_path):
    (setting,) = settings_of(runs(tmp_path, pruned("uniform"), pruned("erk")))
    assert [variant.label for variant in setting.variants] == ["dense", "hydra, uniform", "hydra, erk"]
    assert [[variant.label for variant in group] for group in setting.by_sparsity()] == [
        ["hydra, uniform", "hydra, erk"]
    ]


def test_stages_of_one_network_are_told_apart(tmp_path):
    both = [record(stage, "hydra", 36, 0.8, 0.5) for stage in ("prune", "finetune")]
    (setting,) = settings_of(runs(tmp_path, recipe(), records=both))
    assert [variant.label for variant in setting.variants] == ["hydra, prune", "hydra, finetune"]


def test_sparsities_of_one_method_are_one_line(tmp_path):
    both = [record(f"hydra-{kept}", "hydra", kept, 0.8, 0.5) for kept in (36, 18, 17)]
    (setting,) = settings_of(runs(tmp_path, recipe(), records=both))
    assert {variant.label for variant in setting.variants} == {"hydra"}
    assert [[variant.row.kept for variant in group] for group in setting.by_sparsity()] == [[36], [18], [17]]


def test_a_network_that_experiments_share_is_one_row(tmp_path):
    for number, (budget, seed) in enumerate([("uniform", 0), ("erk", 0), ("erk", 1)]):
        networks = [
            record("pretrain", None, 360, 0.9, 0.6, network=f"dense {seed}"),
            record("prune", "hydra", 36, 0.8, 0.5, network=f"{budget} {seed}"),
        ]
        (tmp_path / str(number)).mkdir()
        name = f"budgets/budget={budget},seed={seed}"
        runs(tmp_path / str(number), pruned(budget, name=name, seed=seed), records=networks)
    table = results(settings_of(find_runs([tmp_path])))
    assert [(name, cells[-1].text) for name, cells in table.rows] == [
        ("dense", "2"), ("hydra, uniform", "1"), ("hydra, erk", "2"),
    ]  # fmt: skip


def test_cells_that_share_a_network_count_what_is_known_of_it_in_any_of_their_folders(tmp_path):
    study = write_study(tmp_path / "study", range(2), beside=False)
    for pruner, sparsity, seed in (("hydra", 0.5, 0), ("magnitude", 0.9, 1)):
        later = record("pretrain", None, 360, 0.9, 0, network=f"dense {seed}")
        write_json(study / cell(pruner, sparsity, seed) / "pretrain/evaluation.json", later)
        later = later | {"robust_accuracy": {"fgsm": 0.25 + seed / 2}}
        write_json(study / cell(pruner, sparsity, seed) / "pretrain/evaluation.json", later)
    dense, *pruned = rows([study])
    assert (dense.runs, dense.figures["fgsm"].values) == (2, [0.25, 0.75])
    assert [(row.pruner, row.removed, row.runs) for row in pruned] == [
        ("hydra", "50", 2), ("magnitude", "50", 2), ("hydra", "90", 2), ("magnitude", "90", 2),
    ]  # fmt: skip
    assert rows(sorted(study.glob("pruner=*"))) == [dense, *pruned]


def test_runs_of_several_pruners_are_no_repetitions(tmp_path):
    """They have a stage of the same name each, which is one network for each of them."""
    runs = [write_run(tmp_path / name, recipe(pruner=name), beside=False) for name in ("hydra", "magnitude")]
    assert [(row.pruner, row.runs) for row in rows(runs)] == [("dense", 1), ("hydra", 1), ("magnitude", 1)]


def test_networks_of_a_study_go_by_the_labels_of_their_cells(tmp_path):
    for number, (method, epochs) in enumerate([("short", 1), ("long", 9)]):
        folder = write_run(tmp_path / method, recipe(f"study/method={method}", beta=epochs), beside=False)
        labels = {"method": method, "pruner": ["hydra", "snip"][number], "seed": "0"}
        write_json(folder / "cell.json", {"labels": labels, "seconds": 1.0, "recipe": {}})
    (setting,) = settings_of(find_runs([tmp_path]))
    assert [variant.label for variant in setting.pruned] == ["hydra, long, snip", "hydra, short, hydra"]


def test_cells_of_a_study_go_by_their_labels_without_the_seed(tmp_path):
    cells = [("uniform", 0), ("uniform", 1), ("erk", 0)]
    recipes = [pruned(kind, name=f"budgets/budget={kind},seed={seed}", seed=seed) for kind, seed in cells]
    (setting,) = settings_of(runs(tmp_path, *recipes))
    assert [(e.name, len(e.runs)) for e in setting.experiments] == [("budget=uniform", 2), ("budget=erk", 1)]


def test_what_a_study_shares_is_no_run_and_a_cell_that_failed_is_one(tmp_path):
    runs(tmp_path, recipe("study/seed=0"))
    (tmp_path / "study.yaml").write_text("name: study\n")
    (tmp_path / "shared" / "0123").mkdir(parents=True)
    (tmp_path / "shared" / "0123" / "recipe.yaml").write_text("name: shared\n")
    (tmp_path / "seed=1").mkdir()
    write_json(tmp_path / "seed=1" / "failure.json", {"error": "the loss is nan", "time": 0})
    found = {run.path.name: run.problems for run in find_runs([tmp_path])}
    assert found.keys() == {"run0", "seed=1"}
    assert found["seed=1"][0] == "failed: the loss is nan"


def test_the_strongest_attack_is_the_one_that_leaves_least_among_those_that_most_met(tmp_path):
    every = [record("pretrain", None, 360, 0.9, 0.6), record("prune", "hydra", 36, 0.8, 0.5)]
    for found in every:
        found["robust_accuracy"] |= {"autoattack": found["robust_accuracy"]["pgd-50x10"] - 0.1}
        found["verified"] = {
            "ibp": {"samples": 9, "precision": "float32", "clean_accuracy": 0.8, "verified_accuracy": 0.1}
        }
    every[1]["robust_accuracy"]["square"] = 0.1
    (setting,) = settings_of(runs(tmp_path, recipe(), records=every))
    assert setting.attack() == "autoattack"


@pytest.mark.parametrize(("hits", "samples"), [(0, 10), (7, 10), (250, 359), (10_000, 10_000)])
def test_intervals_are_wilsons(hits, samples):
    low, high = interval(hits / samples, samples)
    exact = binomtest(hits, samples).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=1e-4)


@pytest.mark.parametrize(
    ("threat", "words"),
    [
        ({"norm": "linf", "eps": 8 / 255}, "ℓ∞ 8/255"),
        ({"norm": "l2", "eps": 0.5}, "ℓ2 0.5"),
        ({"norm": "linf", "eps": 0.0}, "ℓ∞ 0"),
        ({"norm": "linf", "eps": 0.2}, "ℓ∞ 0.2"),  # which is 51/255 as well
        ({"norm": "l2", "eps": 1.0}, "ℓ2 1"),
        (None, ""),
    ],
)
def test_adversaries_in_words(threat, words):
    assert adversary(threat) == words


def test_what_was_measured_later_beside_a_checkpoint_counts_too(tmp_path):
    """Commands write it there: further attacks on fewer images, and the measure of a stage that the run left out."""
    (run,) = runs(tmp_path, recipe())
    later = record("prune", "hydra", 36, 0.9, 0.1, samples=20) | {"robust_accuracy": {"fgsm": 0.4}}
    write_json(run.path / "prune" / "evaluation.json", later)
    bound = {"samples": 9, "precision": "float32", "clean_accuracy": 0.8, "verified_accuracy": 0.1}
    alone = record("finetune", "hydra", 18, 0.7, 0.3)
    write_json(run.path / "prune" / "verification.json", later | {"robust_accuracy": {}, "verified": {"ibp": bound}})
    write_json(run.path / "extra" / "evaluation.json", alone)
    write_json(run.path / "extra" / "checkpoint.json", {})
    (setting,) = settings_of(find_runs([tmp_path]))
    found = {e.row.stage: {n: (f.mean, f.samples) for n, f in e.row.figures.items()} for e in setting.variants}
    assert found["prune"] == {"clean": (0.8, 80), "pgd-50x10": (0.5, 80), "fgsm": (0.4, 20), "verified ibp": (0.1, 9)}
    assert found["extra"] == {"clean": (0.7, 80), "pgd-50x10": (0.3, 80)}
