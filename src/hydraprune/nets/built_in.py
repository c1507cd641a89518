"""The networks that come with the package, by name."""

from __future__ import annotations

import re

NETS = {
    "cnn_digits": "hydraprune.nets.cnn:cnn_digits",
    "cnn_small": "hydraprune.nets.cnn:cnn_small",
    "cnn_medium": "hydraprune.nets.cnn:cnn_medium",
    "cnn_large": "hydraprune.nets.cnn:cnn_large",
    "cnn7_bn": "hydraprune.nets.cnn:cnn7_bn",
    "vgg4_without_maxpool": "hydraprune.nets.cnn:vgg4_without_maxpool",
    "vgg4": "hydraprune.nets.vgg:vgg4",
    "vgg4_bn": "hydraprune.nets.vgg:vgg4_bn",
    "vgg16_bn": "hydraprune.nets.vgg:vgg16_bn",
    "resnet18": "hydraprune.nets.resnet:resnet18",
    "resnet34": "hydraprune.nets.resnet:resnet34",
    "wrn_28_4": "hydraprune.nets.wide_resnet:wrn",
    "wrn_28_10": "hydraprune.nets.wide_resnet:wrn",
    "wrn_34_10": "hydraprune.nets.wide_resnet:wrn",
}
WIDE = re.compile(r"wrn_([1-9]\d{0,2})_([1-9]\d{0,2})")
"""Wide residual nets of any depth and width are built in; the table has those of the literature."""


def built_in(kind: str) -> str | None:
    """Module and function of a built-in network; None for another."""
    return NETS["wrn_28_4"] if WIDE.fullmatch(kind) else NETS.get(kind)


def names() -> list[str]:
    """The built-in networks, in the order of the table."""
    return list(NETS)
