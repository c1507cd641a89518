"""The table of methods names all of them, and the examples run as they are printed."""

import re
from pathlib import Path

import torch

import hydraprune as hp
from contracts.material import net
from hydraprune.pruners import PRUNERS
from hydraprune.train import Optim
from pruners.staged import Batches

PAGE = (Path(__file__).parents[2] / "docs" / "pruners.md").read_text()


def test_every_pruner_has_a_line_in_the_document():
    named = {line.split("`")[1] for line in PAGE.splitlines() if line.startswith("| `")}
    assert set(PRUNERS.names()) <= named


def test_the_examples_run(capsys, monkeypatch):
    loop, method = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(loop, names)
    assert "LayerCount(kept=" in capsys.readouterr().out
    model, plain = names["model"], names["plain"]
    count = hp.MaskView(model).count()
    assert count.kept == sum(int(p.count_nonzero()) for n, p in plain.named_parameters() if p.dim() > 1)
    assert 0.09 < count.kept / count.total < 0.11
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(model.eval()(x), plain.eval()(x))

    monkeypatch.setitem(names, "__name__", "halfway")
    exec(method, names)
    with hp.prune(pruned := net(), names["Halfway"](), 0.5) as pruning:
        settings = {"epochs": 4, "optim": Optim(lr=0.1), "hooks": [pruning]}
        hp.fit(pruned, pruning.parameters(), Batches(), hp.Natural(), **settings)
    assert hp.MaskView(pruned).count().kept == 806 // 2
