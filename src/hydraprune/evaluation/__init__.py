"""How accurate a network is, and how accurate it stays when an adversary changes the images."""

from hydraprune.evaluation.accuracy import clean_accuracy
from hydraprune.evaluation.smoothing import Smoothing
from hydraprune.evaluation.verdicts import Evaluation
from hydraprune.evaluation.verification import Verification, verify
from hydraprune.evaluation.worst_case import evaluate

__all__ = ["Evaluation", "Smoothing", "Verification", "clean_accuracy", "evaluate", "verify"]
