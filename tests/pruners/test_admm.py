"""ADMM against its formulas written out, and that weights and their sparse copies come together."""

import pytest
import torch

from hydraprune.core.errors import SpecError
from hydraprune.masks.budgets import Global
from hydraprune.pruners.admm import ADMM
from pruners.staged import Seen, best, copies, places, staged, started


def test_the_penalty_is_the_gradient_of_its_formula_and_the_updates_are_those_of_the_paper():
    """U of the released code keeps a graph, which makes the penalty grow with every update; here it is a constant."""
    admm = ADMM(rho=0.3, growth=1.5, updates=4)
    seen = []

    def hooks(view, process):
        seen.extend([Seen(view, process), Seen(view, process)])
        return seen[:1], seen[1:]

    _, process, _ = staged(admm, hooks=hooks)
    weights = seen[0].gradients[0]["weights"]
    z, u, rho = projected(weights), {name: torch.zeros_like(w) for name, w in weights.items()}, 0.3
    for step, (old, new) in enumerate(zip(seen[0].gradients, seen[1].gradients, strict=True)):
        for name, w in old["weights"].items():
            w.requires_grad_()
            penalty = rho / 2 * (w - z[name] + u[name]).square().sum()
            expected = old["gradients"][name] + torch.autograd.grad(penalty, w)[0]
            torch.testing.assert_close(new["gradients"][name], expected)
        if step % 2:  # 4 updates in 8 steps, each after the step
            weights = seen[0].steps[step]["weights"]
            z = projected({name: w + u[name] for name, w in weights.items()})
            # The multiplier rho * U is what goes on, so U shrinks as rho grows.
            u = {name: rho * (u[name] + w - z[name]) / (1.5 * rho) for name, w in weights.items()}
            rho *= 1.5
    for name in z:
        torch.testing.assert_close(process.memory[f"z/{name}"], z[name])
        torch.testing.assert_close(process.memory[f"u/{name}"], u[name])


def projected(weights):
    kept = {name: best(w, w.numel() - int(0.5 * w.numel())) for name, w in weights.items()}
    flat = {name: torch.tensor([place in kept[name] for place in range(w.numel())]) for name, w in weights.items()}
    return {name: w.detach() * flat[name].view(w.shape) for name, w in weights.items()}


def test_weights_come_to_their_sparse_copies_and_are_projected_at_the_end():
    view, _, history = staged(ADMM(rho=0.1), epochs=100)
    off = [line["admm_residual"] for line in history]
    assert off[-1] < 0.05 * off[0]
    for name, weight in view.weights().items():
        assert places(view.masks()[name]) == best(weight, weight.numel() - int(0.5 * weight.numel()))


def test_until_the_end_the_network_is_dense():
    view, process = started(ADMM(), budget=Global(sparsity=0.7))
    assert view.count().kept == view.count().total
    process.finish()
    assert view.count().kept == view.count().total - int(0.7 * view.count().total)


def test_z_and_u_survive():
    _, process, _ = staged(ADMM())
    _, resumed = started(ADMM())
    resumed.restore(copies(process.state()))
    resumed.on_start(4, 2, done=4)
    assert all(torch.equal(value, resumed.state()[name]) for name, value in process.state().items())
    assert any(value.abs().sum() > 0 for name, value in process.state().items() if name.startswith("u/"))


@pytest.mark.parametrize("growth", [0.9, 0])
def test_a_penalty_that_fades_is_refused(growth):
    with pytest.raises(SpecError, match="growth"):
        ADMM(growth=growth)
