"""How accurate a network is, and how accurate it stays when an adversary changes the images."""

from hydraprune.evaluate.accuracy import clean_accuracy
from hydraprune.evaluate.smoothing import Smoothing
from hydraprune.evaluate.verdicts import Evaluation
from hydraprune.evaluate.verification import Verification, verify
from hydraprune.evaluate.worst_case import evaluate

__all__ = ["Evaluation", "Smoothing", "Verification", "clean_accuracy", "evaluate", "verify"]
