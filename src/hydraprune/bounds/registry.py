"""The bounds by name."""

from hydraprune.bounds.base import Bounds
from hydraprune.core.registry import Registry

BOUNDS: Registry[Bounds] = Registry(
    "bound",
    Bounds,
    {
        "ibp": "hydraprune.bounds.methods:IBP",
        "crown": "hydraprune.bounds.methods:Crown",
        "crown-ibp": "hydraprune.bounds.methods:CrownIBP",
        "symbolic": "hydraprune.bounds.methods:Symbolic",
        "best": "hydraprune.bounds.best:Best",
    },
)
