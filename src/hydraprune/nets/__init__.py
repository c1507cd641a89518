"""Networks: ordinary modules that know nothing of pruning."""

from hydraprune.nets.spec import Net, names

__all__ = ["Net", "names"]
