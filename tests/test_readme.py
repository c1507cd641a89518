"""The README's example runs as it is printed."""

import re
from pathlib import Path

import torch

import hydraprune as hp

README = Path(__file__).parents[1] / "README.md"


def test_the_example_runs_to_its_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert code.rstrip().splitlines()[-1].startswith('hp.load("pruned", model)')
    names = {}
    exec(code, names)
    assert "LayerCount(kept=" in capsys.readouterr().out
    assert names["result"].robust_accuracy["pgd-50x10"] > 0.4
    again, meta = hp.load("pruned", hp.Net(kind="cnn_digits").build(10, in_channels=1, image_size=8))
    assert meta.sparsity > 0.94
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(again.eval()(x), names["model"].eval()(x))
