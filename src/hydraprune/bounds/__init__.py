"""Certified bounds: what a network can do at worst on all images of a box."""

from hydraprune.bounds.base import Bounds
from hydraprune.bounds.certify import logit_bounds, margin_bounds
from hydraprune.bounds.registry import BOUNDS
from hydraprune.bounds.statistics import batch_statistics

__all__ = ["BOUNDS", "Bounds", "batch_statistics", "logit_bounds", "margin_bounds"]
