"""A pruning stage on a small network, watched from inside."""

import torch

from contracts.material import batch, net
from hydraprune.masks.budgets import Uniform
from hydraprune.masks.view import MaskView
from hydraprune.objectives.natural import Natural
from hydraprune.pruners.probe import Probe
from hydraprune.pruners.pruning import prune
from hydraprune.train import Hook, Optim, fit

SGD = Optim(lr=0.1, schedule="constant")
HALF = Uniform(sparsity=0.5)


class Batches:
    """Two batches in each epoch."""

    def __len__(self):
        return 2

    def epoch(self, number):
        return iter([batch(), batch(12)])


def started(pruner, budget=HALF, structure=None, model=None, seed=0):
    """A view with the masks of the stage's start, and the pruning."""
    view = MaskView(model or net())
    probe = Probe(torch.Generator().manual_seed(seed))
    return view, prune(view, pruner, budget, structure, probe)


def staged(pruner, epochs=4, hooks=None, optim=SGD, **start):
    """The same after the stage. `hooks(view, process)` gives those before and those after the process."""
    view, process = started(pruner, **start)
    earlier, later = hooks(view, process) if hooks else ([], [])
    moving = view.train("weights")
    history = fit(
        view.model, moving, Batches(), Natural(), epochs=epochs, optim=optim, hooks=[*earlier, process, *later]
    )
    process.finish()
    return view, process, history


class Seen(Hook):
    """Copies of masks, weights and gradients when a step's gradient is there, and of the first two after the step."""

    def __init__(self, view, process):
        self.view, self.process = view, process
        self.gradients, self.steps = [], []

    def on_gradient(self, clock, optimizer):
        moments = {name: optimizer.state.get(p, {}) for name, p in self.process.weights.items()}
        self.gradients.append(
            {
                "masks": copies(self.view.masks()),
                "weights": copies(self.view.weights()),
                "gradients": copies({name: p.grad for name, p in self.process.weights.items()}),
                "moments": [copies({k: v for k, v in each.items() if v is not None}) for each in moments.values()],
            }
        )

    def on_step(self, clock, images, loss):
        self.steps.append({"masks": copies(self.view.masks()), "weights": copies(self.view.weights())})


def copies(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def best(values, keep, among=None):
    """Places of the `keep` largest |values| (a tensor), of those `among`, found by sorting a list; ties go late."""
    flat = values.flatten().abs().tolist()
    places = range(len(flat)) if among is None else among
    return set(sorted(places, key=lambda place: (flat[place], place))[len(places) - keep :])


def places(mask):
    """Where a mask is True."""
    return set(mask.flatten().nonzero().flatten().tolist())
