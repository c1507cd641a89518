"""The training loop and what it is made of."""

from hydraprune.train.fit import Batches, Hook, fit
from hydraprune.train.optim import Optim

__all__ = ["Batches", "Hook", "Optim", "fit"]
