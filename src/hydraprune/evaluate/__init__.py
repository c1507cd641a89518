"""How accurate a network is, and how accurate it stays when an adversary changes the images."""

from hydraprune.evaluate.accuracy import clean_accuracy
from hydraprune.evaluate.worst_case import Evaluation, evaluate

__all__ = ["Evaluation", "clean_accuracy", "evaluate"]
