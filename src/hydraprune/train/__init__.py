"""The training loop and what it is made of."""

from hydraprune.core.batches import Epochs
from hydraprune.core.hook import Hook
from hydraprune.train.fit import fit
from hydraprune.train.machine import OneProcess
from hydraprune.train.optim import Optim

__all__ = ["Epochs", "Hook", "OneProcess", "Optim", "fit"]
